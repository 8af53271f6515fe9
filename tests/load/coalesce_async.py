"""The page of `coalesce_app` under the libraries that need an event loop, without a web framework.

Served by ``gunicorn -k asgi``. The callers await the function itself, so that requests cost
these libraries nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

from tests.load.coalesce_app import CONNECTIONS, LEASE, TTL, begin, end

Page = Callable[[str, float, bool], Awaitable[str]]

_leader: list[Any] = []


async def page(key: str, work: float, fail: bool) -> str:
    """Be slow."""
    text = begin(key)
    _leader[:] = [asyncio.current_task()]
    await asyncio.sleep(work)
    return end(text, fail)


class Herd:
    """Answers ``/herd`` as `coalesce_app.Herd` does; its callers are tasks."""

    def __init__(self, shared: Page) -> None:
        self._shared = shared

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"] == "/herd"
        body = json.dumps(await self._run(**dict(parse_qsl(scope["query_string"].decode()))))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body.encode()})

    async def _run(
        self, callers: str, at: str, key: str, work: str, fail: str = "", cancel: str = ""
    ) -> dict[str, Any]:
        seconds: list[float | None] = [None] * int(callers)
        pages: list[str | None] = [None] * int(callers)
        moment = float(at)

        async def call(number: int) -> None:
            try:
                pages[number] = await self._shared(key, float(work), bool(fail))
            finally:
                seconds[number] = time.time() - moment

        await asyncio.sleep(max(0, moment - time.time()))
        tasks = [asyncio.create_task(call(number)) for number in range(len(pages))]
        if cancel:
            await asyncio.sleep(float(cancel))
            # The work may have a task of its own, which its first caller awaits.
            (_leader[0] if _leader[0] in tasks else tasks[0]).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return {"pid": os.getpid(), "seconds": seconds, "pages": pages}


def create(kind: str) -> Herd:
    """Return the app of a library."""
    return Herd(WRAPS[kind]())


def cashews() -> Page:
    """Return the page with all that cashews has against herds."""
    from cashews import Cache, thunder_protection

    key = "cashews:{key}"
    cache = Cache()
    cache.setup(os.environ["REDIS"])
    kept = cache(ttl=TTL, key=key, protected=False)(page)
    return thunder_protection(key=key)(cache.locked(ttl=LEASE, key=key)(kept))


def aiocache() -> Page:
    """Return the page with the one decorator of aiocache that has a lock."""
    from aiocache import Cache, cached_stampede
    from redis.asyncio.connection import parse_url

    at = parse_url(os.environ["REDIS"])
    shared: Page = cached_stampede(
        lease=LEASE,
        ttl=TTL,
        key_builder=lambda _function, key, *_: f"aiocache:{key}",
        cache=Cache.REDIS,
        endpoint=at["host"],
        port=at["port"],
        pool_max_size=CONNECTIONS,
    )(page)
    return shared


WRAPS: dict[str, Callable[[], Page]] = {"cashews": cashews, "aiocache": aiocache}

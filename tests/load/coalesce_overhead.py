"""What a hit costs, in one process and beside a bare GET, with each library."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import redis
from flask import Flask

from flask_noc_realtime import NocRealtime, coalesce
from tests.load.coalesce_site import AIOCACHE, CASHEWS, DOGPILE, FLASK_CACHING, OURS, Library
from tests.redis_server import RedisServer

TTL = 600
PAYLOAD = "x" * 10_240
"""What a view returns: 10 KiB."""

Batch = Callable[[int], list[float]]
"""Makes so many calls and returns what each took, in seconds."""


@dataclass
class Hits:
    """What was timed, in rounds that take turns."""

    batch: Batch
    seconds: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)

    def round(self, calls: int) -> None:
        """Make some calls."""
        took = self.batch(calls)
        self.seconds += took
        self.rounds.append(median(took))

    @property
    def p50(self) -> float:
        """Microseconds of the median call."""
        return median(self.seconds) * 1e6

    @property
    def best(self) -> float:
        """Microseconds of the median call in the best round."""
        return min(self.rounds) * 1e6


def take_turns(hits: list[Hits], rounds: int, calls: int) -> None:
    """Let whatever else the machine does fall on all alike."""
    for _ in range(rounds):
        for each in hits:
            each.round(calls)


def timed(call: Callable[[], Any]) -> Batch:
    """Return what times *call*."""

    def batch(calls: int) -> list[float]:
        took = []
        for _ in range(calls):
            begun = time.perf_counter()
            call()
            took.append(time.perf_counter() - begun)
        return took

    return batch


def in_requests(app: Flask, call: Callable[[], Any]) -> Batch:
    """Return what times *call* alone, each time in a request of its own.

    What goes to Redis is timed so even where it needs no request: called over and over, without
    a pause in which Redis falls asleep, the same GET takes half the time.
    """

    def batch(calls: int) -> list[float]:
        took = []
        for _ in range(calls):
            with app.test_request_context("/page"):
                begun = time.perf_counter()
                call()
                took.append(time.perf_counter() - begun)
        return took

    return batch


def awaited(loop: asyncio.AbstractEventLoop, call: Callable[[], Awaitable[Any]]) -> Batch:
    """Return what times an await of *call*."""

    async def batch(calls: int) -> list[float]:
        took = []
        for _ in range(calls):
            begun = time.perf_counter()
            await call()
            took.append(time.perf_counter() - begun)
        return took

    return lambda calls: loop.run_until_complete(batch(calls))


def number(number: int) -> int:
    """Be cheap."""
    return number


def page() -> str:
    """Be a page of 10 KiB."""
    return PAYLOAD


async def async_number(number: int) -> int:
    """Be cheap."""
    return number


async def async_page() -> str:
    """Be a page of 10 KiB."""
    return PAYLOAD


@dataclass(frozen=True)
class Batches:
    """What is timed of a library.

    :ivar function: a hit in memory, of a function of one number.
    :ivar view: a hit in memory, of a view of 10 KiB; None where it knows no views.
    :ivar shared: a hit in Redis, of the same view, or of a function where it knows no views.
    """

    function: Batch
    view: Batch | None
    shared: Batch


def ours(url: str, stack: ExitStack) -> Batches:
    """Time functions and views that only time ends, and a view that events end."""
    local, shared = _app(), _app()
    function = coalesce(scope="public", ttl=TTL)(number)
    view = _routed(local, coalesce(scope="public", ttl=TTL)(page))
    strict = _routed(shared, coalesce(scope="public", ttl=TTL, invalidate_on=["incident.*"])(page))
    for app, broker in ((local, "memory://"), (shared, url)):
        app.config.update(SECRET_KEY="a key of the benchmark", NOC_REALTIME_URL=broker)
        NocRealtime(app)
        stack.callback(app.extensions["noc_realtime"].process().close)

    def in_app(calls: int) -> list[float]:
        with local.app_context():
            return timed(lambda: function(7))(calls)

    return Batches(in_app, in_requests(local, view), in_requests(shared, strict))


def dogpile(url: str, stack: ExitStack) -> Batches:
    """Time what a region returns."""
    from dogpile.cache import make_region

    local = make_region().configure("dogpile.cache.memory", expiration_time=TTL)
    shared = make_region().configure(
        "dogpile.cache.redis", expiration_time=TTL, arguments={"url": url}
    )
    stack.callback(shared.backend.writer_client.close)
    function = local.cache_on_arguments()(number)
    hit = in_requests(_app(), lambda: shared.get_or_create("dogpile", page))
    return Batches(timed(lambda: function(7)), None, hit)


def cashews(url: str, stack: ExitStack) -> Batches:
    """Time functions in an event loop."""
    from cashews import Cache

    loop = _loop(stack)
    local, shared = Cache(), Cache()
    local.setup("mem://")
    shared.setup(url)
    for cache in (local, shared):
        stack.callback(lambda cache=cache: loop.run_until_complete(cache.close()))
    function = local(ttl=TTL, key="{number}")(async_number)
    kept = shared(ttl=TTL, key="cashews")(async_page)
    return Batches(awaited(loop, lambda: function(7)), None, awaited(loop, kept))


def aiocache(url: str, stack: ExitStack) -> Batches:
    """Time functions in an event loop."""
    from aiocache import Cache, cached
    from redis.asyncio.connection import parse_url

    loop = _loop(stack)
    at = parse_url(url)
    function = cached(ttl=TTL, namespace="local")(async_number)
    kept = cached(
        ttl=TTL,
        key_builder=lambda *_: "aiocache",
        cache=Cache.REDIS,
        endpoint=at["host"],
        port=at["port"],
    )(async_page)
    stack.callback(lambda: loop.run_until_complete(kept.cache.close()))
    return Batches(awaited(loop, lambda: function(7)), None, awaited(loop, kept))


def flask_caching(url: str, stack: ExitStack) -> Batches:
    """Time ``memoize`` and ``cached``."""
    from flask_caching import Cache

    local, shared = _app(), _app()
    in_memory = Cache(local, config={"CACHE_TYPE": "SimpleCache"})
    in_redis = Cache(shared, config={"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": url})
    stack.callback(shared.extensions["cache"][in_redis]._write_client.close)
    function = in_memory.memoize(timeout=TTL)(number)
    view = in_memory.cached(timeout=TTL)(page)
    kept = in_redis.cached(timeout=TTL)(page)

    def in_app(calls: int) -> list[float]:
        with local.app_context():
            return timed(lambda: function(7))(calls)

    return Batches(in_app, in_requests(local, view), in_requests(shared, kept))


LIBRARIES: dict[Library, Callable[[str, ExitStack], Batches]] = {
    OURS: ours,
    DOGPILE: dogpile,
    CASHEWS: cashews,
    AIOCACHE: aiocache,
    FLASK_CACHING: flask_caching,
}


@dataclass(frozen=True)
class Overhead:
    """What the hits of a library took."""

    function: Hits
    view: Hits | None
    shared: Hits


def measure(
    libraries: Sequence[Library], server: RedisServer, rounds: int, calls: int
) -> tuple[Hits, dict[str, Overhead]]:
    """Return what a bare GET of the page took, and the hits of each library by its name."""
    with warnings.catch_warnings(), ExitStack() as stack:
        # Some of them call what redis-py has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        bare = redis.Redis.from_url(server.url)
        stack.callback(bare.close)
        bare.set("bare", PAYLOAD)
        get = Hits(in_requests(_app(), lambda: bare.get("bare")))
        overheads = {}
        for library in libraries:
            batches = LIBRARIES[library](server.url, stack)
            overheads[library.name] = Overhead(
                Hits(batches.function),
                Hits(batches.view) if batches.view else None,
                Hits(batches.shared),
            )
        for each in overheads.values():
            # The first call of each is a miss, the second looks for what that has left.
            for hits in (each.function, each.view, each.shared):
                if hits is not None:
                    hits.batch(20)
        for pick in ("function", "view"):
            turns = [getattr(each, pick) for each in overheads.values()]
            take_turns([hits for hits in turns if hits], rounds, calls)
        get.batch(20)
        take_turns([get, *(each.shared for each in overheads.values())], rounds, calls)
        return get, overheads


def _app() -> Flask:
    return Flask("overhead")


def _routed(app: Flask, view: Callable[[], Any]) -> Callable[[], Any]:
    app.add_url_rule("/page", view_func=view)
    return view


def _loop(stack: ExitStack) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    return loop

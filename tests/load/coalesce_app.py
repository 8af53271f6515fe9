"""One slow page, coalesced by each library, and ``/herd``, which asks for it many times at once.

Served by ``gunicorn "tests.load.coalesce_app:create('ours')"``; see `coalesce_async` for the
libraries that need an event loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import gevent
from flask import Flask, Response, request
from werkzeug.test import create_environ
from werkzeug.wrappers import Request

from flask_noc_realtime import NocRealtime, coalesce

LEASE = 3
"""Seconds a lock may be held: those of our leases, set alike where a library lets one say it."""

TTL = 60

CONNECTIONS = 2000
"""To Redis, for libraries whose callers all wait there; redis-py ends at 100 with an error."""

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


class DatabaseDown(Exception):
    """What a query raises at times."""


def begin(key: str) -> str:
    """Count an execution in a file, and return what only this one returns."""
    with open(Path(os.environ["COALESCE_COUNTS"]) / key, "ab") as counts:
        counts.write(b"x")
    return f"{os.getpid()}-{time.monotonic_ns()}"


def end(page: str, fail: bool) -> str:
    """Return the page, or fail."""
    if fail:
        raise DatabaseDown
    return page


class Herd:
    """Answers ``/herd``: how long each of *callers* took from the moment *at*, and what it got.

    They are greenlets that call the app as a server does, with environs made beforehand.
    """

    def __init__(self, app: Flask) -> None:
        self.leader: gevent.Greenlet | None = None
        self._app = app

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        asked = Request(environ)
        if asked.path != "/herd":
            return self._app(environ, start_response)
        response = Response(self._app.json.dumps(self._run(**asked.args.to_dict())))
        return response(environ, start_response)

    def _run(
        self, callers: str, at: str, path: str = "/page", cancel: str = "", **query: str
    ) -> dict[str, Any]:
        environs = [create_environ(path, query_string=query) for _ in range(int(callers))]
        seconds: list[float | None] = [None] * len(environs)
        pages: list[str | None] = [None] * len(environs)
        moment = float(at)

        def call(number: int) -> None:
            statuses: list[str] = []
            body = self._app(environs[number], lambda status, *_: statuses.append(status))
            text = b"".join(body).decode()
            body.close()
            seconds[number] = time.time() - moment
            if statuses == ["200 OK"]:
                pages[number] = text

        gevent.sleep(max(0, moment - time.time()))
        greenlets = [gevent.spawn(call, number) for number in range(len(environs))]
        if cancel:
            gevent.sleep(float(cancel))
            assert self.leader in greenlets
            self.leader.kill(block=False)
        gevent.joinall(greenlets)
        return {"pid": os.getpid(), "seconds": seconds, "pages": pages}


def create(kind: str) -> Herd:
    """Return the app with its page wrapped by *kind*."""
    app = Flask("page")
    herd = Herd(app)

    def page() -> str:
        fail = "fail" in request.args
        text = begin(request.args["key"])
        herd.leader = gevent.getcurrent()
        time.sleep(float(request.args["work"]))
        return end(text, fail)

    def wait() -> str:
        time.sleep(float(request.args["work"]))
        return "waited"

    app.add_url_rule("/wait", view_func=wait)
    app.add_url_rule("/page", view_func=WRAPS[kind](app)(page))
    app.register_error_handler(DatabaseDown, lambda _: ("the database is down", 503))
    return herd


def ours(app: Flask) -> Wrap:
    """Return `coalesce` as the manual shows it."""
    app.config.update(SECRET_KEY="a key of the benchmark", NOC_REALTIME_URL=os.environ["REDIS"])
    NocRealtime(app)
    return coalesce(scope="public", ttl=TTL, invalidate_on=["incident.*"])


def flask_caching(app: Flask) -> Wrap:
    """Return ``cached`` of Flask-Caching, which has no lock."""
    from flask_caching import Cache

    config = {
        "CACHE_TYPE": "RedisCache",
        "CACHE_REDIS_URL": os.environ["REDIS"],
        "CACHE_OPTIONS": {"max_connections": CONNECTIONS},
    }
    wrap: Wrap = Cache(app, config=config).cached(timeout=TTL, query_string=True)
    return wrap


def dogpile(app: Flask) -> Wrap:
    """Return a region of dogpile.cache with its lock in Redis."""
    from dogpile.cache import make_region

    region = make_region().configure(
        "dogpile.cache.redis",
        expiration_time=TTL,
        arguments={
            "url": os.environ["REDIS"],
            "distributed_lock": True,
            "thread_local_lock": False,
            "lock_timeout": LEASE,
            "connection_kwargs": {"max_connections": CONNECTIONS},
        },
    )

    def wrap(view: Callable[[], str]) -> Callable[[], Any]:
        return wraps(view)(lambda: region.get_or_create(f"dogpile:{request.args['key']}", view))

    return wrap


WRAPS: dict[str, Callable[[Flask], Wrap]] = {
    "ours": ours,
    "dogpile.cache": dogpile,
    "Flask-Caching": flask_caching,
}

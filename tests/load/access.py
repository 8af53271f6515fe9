"""Streams that show who they are for: how fast a worker lets them in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import jwt

from flask_noc_realtime.auth import Identity, encode_ticket
from flask_noc_realtime.blueprint import ticket_key
from flask_noc_realtime.broker.redis import RedisBroker, RedisOptions
from tests.load.access_app import KEY
from tests.load.clients import Connected, Streams
from tests.load.server import VIEW, LoadServer, serve
from tests.redis_server import RedisServer

STREAM = "/api/v1/events/stream"
PER_USER = 3

_LASTS = timedelta(minutes=10)

Paths = Callable[[int, str], Iterable[str]]


def views(streams: int, url: str) -> list[str]:
    """Return the path of the ordinary view: the floor of a request on a new connection."""
    return [VIEW] * streams


def tokens(streams: int, url: str) -> list[str]:
    """Return paths with a JWT each, every user's as often as the limit allows."""
    now = datetime.now(timezone.utc)
    return [f"{STREAM}?token={_token(number // PER_USER, now)}" for number in range(streams)]


def tickets(streams: int, url: str) -> list[str]:
    """Return paths with a ticket each, as `connect` hands them out."""
    broker = RedisBroker(url, RedisOptions())
    names = [f"ticket-of-the-load-benchmark-{number:08}" for number in range(streams)]
    try:
        for number, ticket in enumerate(names):
            identity = Identity(f"user-{number // PER_USER}", permissions=frozenset({"all"}))
            broker.put(ticket_key(ticket), encode_ticket(identity, ""), _LASTS.total_seconds())
    finally:
        broker.close()
    return [f"{STREAM}/{ticket}" for ticket in names]


def measure(streams: int, directory: Path, paths: Paths, config: str = "") -> Connected:
    """Return how one worker with a Redis let *streams* in.

    :param config: lines for ``gunicorn.conf.py``.
    """
    redis = RedisServer(directory / "redis").start()
    try:
        with serve(
            directory / "server",
            url=redis.url,
            transport="auto",
            workers=1,
            settings={"MAX_STREAMS_PER_USER": str(PER_USER)},
            app="tests.load.access_app:app",
            config=config,
        ) as server:
            return _connect(server, streams, directory / "paths", paths(streams, redis.url))
    finally:
        redis.close()


def _connect(server: LoadServer, streams: int, file: Path, paths: Iterable[str]) -> Connected:
    file.write_text("\n".join(paths) + "\n")
    with Streams(server.port, streams, VIEW, paths=file) as clients:
        return clients.connect(-1)


def _token(number: int, now: datetime) -> str:
    claims = {
        "sub": f"user-{number}",
        "type": "access",
        "jti": str(number),
        "fresh": False,
        "iat": now,
        "nbf": now,
        "exp": now + _LASTS,
        "permissions": ["all"],
        "role": "operator",
    }
    return jwt.encode(claims, KEY, "HS256")

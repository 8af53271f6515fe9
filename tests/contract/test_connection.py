"""Connections to Redis: what they ask before a command costs nobody a turn."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
import redis
from redis.connection import Connection
from redis.sentinel import SentinelManagedConnection

import flask_noc_realtime.broker.connection as connection_module
from flask_noc_realtime.broker.connection import prompt
from tests.conftest import RedisFactory
from tests.processes import wait_until
from tests.redis_server import RedisServer


@pytest.fixture
def server(redis_server: RedisFactory) -> RedisServer:
    """Return a Redis that runs."""
    return redis_server()


@pytest.fixture
def connection(server: RedisServer) -> Iterator[Any]:
    """Return a connection that is subscribed, and has read that it is."""
    made = prompt(Connection)(host="127.0.0.1", port=server.port, protocol=2)
    made.send_command("SUBSCRIBE", "news")
    made.read_response()
    yield made
    made.disconnect()


def test_nobody_else_runs_while_a_quiet_connection_is_looked_at(connection: Any) -> None:
    """Under gevent, redis-py's own way lets all that are ready run first."""
    ran: list[bool] = []
    other = gevent.spawn(ran.append, True)
    assert connection.can_read() is False
    assert ran == []
    other.join()
    assert ran == [True]


def test_what_came_is_seen(server: RedisServer, connection: Any) -> None:
    """And can be read."""
    server.client().publish("news", "x")
    wait_until(connection.can_read, 20, "the message")
    assert connection.read_response() == [b"message", b"news", b"x"]
    assert connection.can_read() is False


def test_one_that_redis_closed_is_no_quiet_one(server: RedisServer, connection: Any) -> None:
    """So that the pool replaces it, and the command is not lost on it."""
    server.client().client_kill_filter(_type="pubsub")

    def ended() -> bool:
        try:
            return bool(connection.can_read())
        except redis.ConnectionError:
            return True

    wait_until(ended, 20, "the end")


def test_a_timeout_is_waited_for(server: RedisServer, connection: Any) -> None:
    """Until something comes."""
    greenlet = gevent.spawn(server.client().publish, "news", "x")
    greenlet.join()
    assert connection.can_read(timeout=20)


class Kernel:
    """Says what the test says of a descriptor, and notes how long it was to wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, comes: bool) -> None:
        self.comes = comes
        self.waits: list[int] = []
        monkeypatch.setattr(connection_module, "readable", self)

    def __call__(self, fd: int, milliseconds: int = 0) -> bool:
        if milliseconds:
            self.waits.append(milliseconds)
        return self.comes and bool(milliseconds)


def test_a_reply_is_waited_for_on_the_spot_for_a_moment(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else runs meanwhile, so it is no longer than a millisecond."""
    kernel = Kernel(monkeypatch, comes=True)
    connection.linger()
    connection.linger()
    assert kernel.waits == [1, 1]


def test_a_redis_far_away_is_waited_for_once_a_second(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On whatever connection: a flood of pages nobody has would hold everybody up."""
    kernel = Kernel(monkeypatch, comes=False)
    other = type(connection)(host="127.0.0.1", port=connection.port, protocol=2)
    other.connect()
    for each in (connection, other, connection):
        each.linger()
    assert kernel.waits == [1]
    type(connection).far_until = 0.0
    other.linger()
    assert kernel.waits == [1, 1]
    other.disconnect()


def test_who_is_cut_short_while_lingering_leaves_no_reply_behind(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next command would be given it."""

    def cut(fd: int, milliseconds: int = 0) -> bool:
        if milliseconds:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(connection_module, "readable", cut)
    with pytest.raises(KeyboardInterrupt):
        connection.linger()
    assert connection._sock is None


def test_a_closed_connection_is_not_waited_for(connection: Any) -> None:
    """Another thread may have closed it."""
    connection.disconnect()
    connection.linger()


@pytest.mark.parametrize("kind", [Connection, SentinelManagedConnection])
def test_a_reply_that_comes_too_late_is_nobody_elses(
    server: RedisServer, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Sentinel, redis-py leaves the connection as it is."""
    options: dict[str, Any] = {}
    if kind is SentinelManagedConnection:
        monkeypatch.setattr(kind, "connect", Connection.connect)
        options["connection_pool"] = SimpleNamespace(is_master=True)
    connection = prompt(kind)(
        host="127.0.0.1", port=server.port, protocol=2, socket_timeout=0.2, **options
    )
    connection.connect()
    server.pause()
    connection.send_command("ECHO", "first")
    with pytest.raises(redis.TimeoutError):
        connection.read_response()
    server.resume()
    connection.send_command("ECHO", "second")
    assert connection.read_response() == b"second"
    connection.disconnect()

"""Connections to Redis: what they ask before a command costs nobody a turn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
import redis
from redis.connection import Connection

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


def test_nobody_else_runs_while_a_reply_is_waited_for_on_the_spot(server: RedisServer) -> None:
    """And what comes is read afterwards, whether it came in time or not."""
    connection = prompt(Connection)(host="127.0.0.1", port=server.port, protocol=2)
    connection.connect()
    ran: list[bool] = []
    other = gevent.spawn(ran.append, True)
    connection.send_command("PING")
    connection.linger()
    assert ran == []
    other.join()
    assert connection.read_response() == b"PONG"
    connection.disconnect()


def test_waiting_on_the_spot_is_over_when_nothing_comes(connection: Any) -> None:
    """A Redis far away holds nobody up for longer than a moment."""
    begun = time.monotonic()
    connection.linger()
    assert time.monotonic() - begun < 10
    assert connection.can_read() is False

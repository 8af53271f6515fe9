"""A process that can start no more threads serves on, and starts what it lacks when it can."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from flask_noc_realtime.broker.redis import RedisBroker
from flask_noc_realtime.emit import EmitOptions, Publisher
from flask_noc_realtime.event import Catalogue
from flask_noc_realtime.hub import Hub, HubOptions
from flask_noc_realtime.lease import LeaseOptions, Leases
from flask_noc_realtime.shelf import Keeper
from flask_noc_realtime.transport.portable import Portable
from tests.conftest import RedisFactory
from tests.contract.conftest import BrokerFactory
from tests.contract.sinks import key, record
from tests.processes import free_port, wait_until


@pytest.fixture
def exhausted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Let no thread of ours start; return what ends that."""
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name.startswith("noc-realtime"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        yield patch.undo


@pytest.fixture
def broker(redis_server: RedisFactory, connect: BrokerFactory) -> RedisBroker:
    """Return a broker whose Redis is there."""
    return connect(redis_server().url)


def running(name: str) -> set[threading.Thread]:
    """Return the threads of that name; other tests may have left some."""
    return {thread for thread in threading.enumerate() if thread.name == name}


def test_events_are_followed_once_there_is_a_thread_for_it(
    broker: RedisBroker, exhausted: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Pages and streams that come before are served without, and do not wait for it."""
    hub = Hub(broker, HubOptions(start_timeout=20.0))
    for _ in range(3):
        hub.start()
    assert caplog.text.count("No event is followed") == 1
    exhausted()
    position = broker.publish(record(0), key())
    hub.start()
    assert hub.position == position


def test_leases_are_renewed_once_there_is_a_thread_for_it(
    broker: RedisBroker, exhausted: Callable[[], None]
) -> None:
    """A stream is let in without."""
    before = running("noc-realtime-leases")
    leases = Leases(broker, LeaseOptions(), lambda lease: None)
    leases.acquire("ada")
    exhausted()
    assert not running("noc-realtime-leases") - before
    leases.acquire("ada")
    assert running("noc-realtime-leases") - before
    leases.close()


def test_flights_are_renewed_once_there_is_a_thread_for_it(
    broker: RedisBroker, exhausted: Callable[[], None]
) -> None:
    """One that is not may be flown twice, which costs its time."""
    before = running("noc-realtime-flights")
    keeper = Keeper(broker.pages, 3.0)
    keeper.hold("a", broker.pages.token())
    exhausted()
    assert not running("noc-realtime-flights") - before
    keeper.hold("b", broker.pages.token())
    assert running("noc-realtime-flights") - before
    keeper.close()


def test_the_end_of_a_worker_is_seen_once_there_is_a_thread_for_it(
    broker: RedisBroker, exhausted: Callable[[], None]
) -> None:
    """Its streams would otherwise hold it up."""
    before = running("noc-realtime-worker-watch")
    hub = Hub(broker, HubOptions())
    portable = Portable(hub, Leases(broker, LeaseOptions(), lambda lease: None))
    worker = SimpleNamespace(alive=True)
    portable.join(worker)
    exhausted()
    assert not running("noc-realtime-worker-watch") - before
    portable.join(worker)
    worker.alive = False
    wait_until(hub.closing.is_set, 20, "the end is seen")


def test_what_is_queued_is_published_once_there_is_a_thread_for_it(
    redis_server: RedisFactory, connect: BrokerFactory, exhausted: Callable[[], None]
) -> None:
    """The next emit starts it."""
    port = free_port()
    publisher = Publisher(connect(f"redis://127.0.0.1:{port}/0"), Catalogue(), EmitOptions())
    publisher.emit("log.added")
    exhausted()
    server = redis_server(port=port)
    publisher.emit("log.added")
    assert publisher.flush(20)
    assert server.client().xlen("{noc}:log") == 3  # the opening entry and both events

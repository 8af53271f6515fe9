"""Emitting never breaks the service that calls it, and never holds it up."""

from __future__ import annotations

import logging
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flask_noc_realtime.emit import EmitOptions, Emitter
from flask_noc_realtime.errors import BrokerUnavailable, EventError, UnknownTypeError
from flask_noc_realtime.event import Catalogue
from tests.conftest import RedisFactory
from tests.contract.conftest import BrokerFactory
from tests.contract.sinks import RecordingSink
from tests.processes import free_port, wait_until

TIMEOUT = 0.5


@pytest.fixture
def emitter(connect: BrokerFactory) -> Iterator[Any]:
    """Return a factory of emitters to a URL, closed when the test is over."""
    emitters: list[Emitter] = []

    def make(url: str, **options: Any) -> Emitter:
        emitters.append(Emitter(connect(url, timeout=TIMEOUT), Catalogue(), EmitOptions(**options)))
        return emitters[-1]

    yield make
    for one in emitters:
        one.close(0.0)


def emit(emitter: Emitter, number: int) -> str | None:
    """Emit a numbered event."""
    return emitter.emit("log.added", {"n": number, "padding": ""})


def timed(emitter: Emitter, number: int) -> float:
    """Emit a numbered event; return the seconds it took."""
    begun = time.perf_counter()
    emit(emitter, number)
    return time.perf_counter() - begun


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as an error by the emitter."""
    return [
        r.getMessage()
        for r in caplog.records
        if r.levelno >= logging.ERROR and "app serves on" not in r.getMessage()
    ]


def test_an_emit_returns_the_position(redis_server: RedisFactory, emitter: Any) -> None:
    """Of an event that is published."""
    assert emit(emitter(redis_server().url), 1) is not None


@pytest.mark.parametrize("how", ["unreachable", "killed", "stopped"])
def test_an_outage_costs_one_timeout_and_then_next_to_nothing(
    how: str, redis_server: RedisFactory, emitter: Any
) -> None:
    """The circuit opens with the first failure; under a millisecond from then on."""
    server = redis_server()
    url = f"redis://127.0.0.1:{free_port()}/0" if how == "unreachable" else server.url
    made = emitter(url)
    if how != "unreachable":
        emit(made, 0)
        server.kill9() if how == "killed" else server.pause()
    assert timed(made, 1) < 4 * TIMEOUT
    assert statistics.median(timed(made, n) for n in range(2, 1000)) < 0.001
    assert made.queued > 900
    if how == "stopped":
        server.resume()


def test_what_was_queued_is_published_in_order_when_redis_is_back(
    redis_server: RedisFactory, emitter: Any, connect: BrokerFactory
) -> None:
    """From several threads, each in its own order, and each event once."""
    server = redis_server(appendonly=True)
    sink = RecordingSink()
    connect(server.url).start(sink)
    made = emitter(server.url)
    emit(made, 0)
    sink.wait_for_number(0)
    server.kill9()

    def work(first: int) -> None:
        for number in range(first, first + 100):
            emit(made, number)

    threads = [threading.Thread(target=work, args=(first,)) for first in (1000, 2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.queued > 0
    server.start()
    assert made.flush(20)
    sink.wait_for(lambda: len(sink.entries) == 301, "all of them")
    for first in (1000, 2000, 3000):
        own = [n for n in sink.numbers if first <= n < first + 1000]
        assert own == list(range(first, first + 100))
    assert (made.queued, made.dropped) == (0, 0)
    assert emit(made, 5000) is not None


def test_the_queue_drains_while_a_steady_flow_goes_on(
    redis_server: RedisFactory, emitter: Any
) -> None:
    """One by one it would stay behind for ever."""
    server = redis_server(appendonly=True)
    made = emitter(server.url)
    emit(made, 0)
    server.kill9()
    for number in range(2000):
        emit(made, number)
    server.start()
    stop = threading.Event()

    def flow() -> None:
        while not stop.wait(0.0005):
            emit(made, 1)

    flowing = threading.Thread(target=flow)
    flowing.start()
    wait_until(lambda: made.queued == 0, 20, "the queue is empty")
    wait_until(lambda: emit(made, 2) is not None, 20, "emits go straight to Redis again")
    stop.set()
    flowing.join()


@pytest.mark.parametrize(
    "options", [{"queue_events": 10}, {"queue_bytes": 1200}], ids=["events", "bytes"]
)
def test_the_queue_is_bounded_and_what_it_drops_is_counted_and_logged_once(
    options: dict[str, int],
    redis_server: RedisFactory,
    emitter: Any,
    connect: BrokerFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The oldest go first, and the newest arrive."""
    server = redis_server(appendonly=True)
    sink = RecordingSink()
    connect(server.url).start(sink)
    made = emitter(server.url, **options)
    emit(made, 0)
    sink.wait_for_number(0)
    server.kill9()
    for number in range(1, 101):
        emit(made, number)
    assert made.queued <= 30  # the bound, and as many that are being sent
    assert len([e for e in errors(caplog) if "queue is full" in e]) == 1
    server.start()
    assert made.flush(20)
    sink.wait_for_number(100)
    arrived = sink.numbers[1:]
    assert arrived == sorted(arrived)
    assert len(arrived) + made.dropped == 100


def test_raise_mode_raises_and_recovers(redis_server: RedisFactory, emitter: Any) -> None:
    """For services that want to know; nothing is queued behind their back."""
    server = redis_server()
    made = emitter(server.url, raises=True)
    emit(made, 0)
    server.kill9()
    for number in (1, 2):
        with pytest.raises(BrokerUnavailable, match="EMIT_ERRORS"):
            emit(made, number)
    assert made.queued == 0
    server.start()

    def recovered() -> bool:
        try:
            return emit(made, 3) is not None
        except BrokerUnavailable:
            return False

    wait_until(recovered, 20, "emits succeed")
    assert server.client().xlen("{noc}:log") == 2


def test_an_event_whose_answer_was_lost_is_published_once(
    redis_server: RedisFactory, emitter: Any, connect: BrokerFactory
) -> None:
    """Redis has it, the emitter cannot know, and tries again."""
    server = redis_server()
    sink = RecordingSink()
    connect(server.url).start(sink)
    with LossyProxy(server.port) as proxy:
        made = emitter(f"redis://127.0.0.1:{proxy.port}/0")
        emit(made, 0)
        for number in range(1, 21):
            proxy.lose_next_answer()
            emit(made, number)
            made.flush(10)
        assert proxy.lost >= 20
    sink.wait_for_number(20)
    assert sink.numbers == list(range(21))


class LossyProxy:
    """Stands before Redis and, when told, passes a command on and drops its answer."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.lost = 0
        self._target = target
        self._lose = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", self.port))

    def __enter__(self) -> LossyProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would leave the accepting thread where it waits.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def lose_next_answer(self) -> None:
        """Cut the connection instead of passing the next answer back."""
        self._lose.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as redis:
            while command := client.recv(65536):
                redis.sendall(command)
                answer = redis.recv(65536)
                if self._lose.is_set() and b"EVALSHA" in command:
                    self._lose.clear()
                    self.lost += 1
                    return
                client.sendall(answer)


def test_a_wrong_event_raises_and_publishes_nothing(
    redis_server: RedisFactory, emitter: Any
) -> None:
    """It is the developer's mistake, and retrying would not help."""
    server = redis_server()
    made = emitter(server.url)
    with pytest.raises(UnknownTypeError):
        made.emit("incident.craeted", {})
    with pytest.raises(EventError, match=r"data\.at\[0\]"):
        made.emit("incident.created", {"at": [object()]})
    with pytest.raises(EventError, match="permissions"):
        made.emit("incident.created", {}, permissions=[])
    assert not server.client().exists("{noc}:log")


def test_closing_in_an_outage_gives_up_in_time_and_says_what_is_lost(
    emitter: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that ends must end."""
    made = emitter(f"redis://127.0.0.1:{free_port()}/0")
    for number in range(10):
        emit(made, number)
    begun = time.perf_counter()
    made.close(0.3)
    assert time.perf_counter() - begun < 3
    wait_until(lambda: made.dropped == 10, 10, "all are counted")
    assert any("were dropped" in message for message in errors(caplog))

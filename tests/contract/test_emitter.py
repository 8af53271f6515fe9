"""Emitting never breaks the service that calls it, and never holds it up."""

from __future__ import annotations

import logging
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flask_noc_realtime.emit import EmitOptions, Publisher
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
    emitters: list[Publisher] = []

    def make(url: str, **options: Any) -> Publisher:
        emitters.append(
            Publisher(connect(url, timeout=TIMEOUT), Catalogue(), EmitOptions(**options))
        )
        return emitters[-1]

    yield make
    for one in emitters:
        one.close(0.0)


def emit(emitter: Publisher, number: int) -> str | None:
    """Emit a numbered event."""
    return emitter.emit("log.added", {"n": number, "padding": ""})


def timed(emitter: Publisher, number: int) -> float:
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
    assert timed(made, 1) < 2 * TIMEOUT
    assert statistics.median(timed(made, n) for n in range(2, 1000)) < 0.001
    assert made.queued > 900
    if how == "stopped":
        server.resume()


AWAY = {
    "server": "redis://127.0.0.1:{port}/0",
    "sentinel": "redis+sentinel://127.0.0.1:{port},localhost:{port},[::ffff:127.0.0.1]:{port}/noc",
    "cluster": "redis+cluster://127.0.0.1:{port},localhost:{port},[::ffff:127.0.0.1]:{port}",
}


@pytest.mark.parametrize("how", ["refuses", "is silent"])
@pytest.mark.parametrize("kind", AWAY)
def test_whatever_leads_to_redis_may_be_away(
    kind: str, how: str, redis_server: RedisFactory, emitter: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One timeout in all, however many sentinels or nodes there are: an emit returns None then."""
    port = free_port()
    if how == "is silent":
        redis_server(port=port).pause()
    made = emitter(AWAY[kind].format(port=port))
    begun = time.perf_counter()
    assert emit(made, 1) is None
    assert time.perf_counter() - begun < 2 * TIMEOUT
    assert made.queued == 1
    assert len(errors(caplog)) == 1
    assert "Traceback" not in caplog.text


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
    assert made.queued <= 20  # the bound, and as many that are being sent
    assert len([e for e in errors(caplog) if "queue is full" in e]) == 1
    server.start()
    assert made.flush(20)
    sink.wait_for_number(100)
    arrived = sink.numbers[1:]
    assert arrived == sorted(set(arrived))
    assert arrived[-5:] == [96, 97, 98, 99, 100]
    assert len(arrived) + made.dropped == 100


def test_raise_mode_raises_and_recovers(redis_server: RedisFactory, emitter: Any) -> None:
    """For services that want to know; nothing is queued behind their back."""
    server = redis_server()
    made = emitter(server.url, raises=True)
    emit(made, 0)
    server.kill9()
    for number in (1, 2):
        with pytest.raises(BrokerUnavailable, match=r"EMIT_ERRORS.* was not published") as caught:
            emit(made, number)
        assert not caught.value.uncertain
    assert made.queued == 0
    server.start()

    def recovered() -> bool:
        try:
            return emit(made, 3) is not None
        except BrokerUnavailable:
            return False

    wait_until(recovered, 20, "emits succeed")
    assert server.client().xlen("{noc}:log") == 2


def test_raise_mode_says_when_an_event_may_have_been_published(
    redis_server: RedisFactory, emitter: Any
) -> None:
    """A frozen Redis takes it when it goes on: whoever emits it again doubles it."""
    server = redis_server()
    made = emitter(server.url, raises=True)
    emit(made, 0)
    server.pause()
    with pytest.raises(BrokerUnavailable, match="may have been published or not") as caught:
        emit(made, 1)
    assert caught.value.uncertain
    assert isinstance(caught.value.__cause__, BrokerUnavailable)
    with pytest.raises(BrokerUnavailable, match="was not published") as caught:
        emit(made, 2)
    assert not caught.value.uncertain
    server.resume()
    client = server.client()
    wait_until(lambda: client.xlen("{noc}:log") == 3, 10, "the opening entry and two events")


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


def test_an_event_whose_first_attempt_arrives_after_the_second_is_published_once(
    redis_server: RedisFactory, emitter: Any
) -> None:
    """A frozen Redis takes what waits in its sockets in any order when it goes on."""
    server = redis_server()
    with LossyProxy(server.port) as proxy:
        made = emitter(f"redis://127.0.0.1:{proxy.port}/0")
        emit(made, 0)
        proxy.hold_next_command()
        emit(made, 1)
        if not made.flush(10):
            pytest.fail("the second attempt was not published")
        proxy.release()
        wait_until(lambda: proxy.late_answers == 1, 10, "Redis executed the first attempt")
    assert server.client().xlen("{noc}:log") == 3  # the opening entry and both events


class LossyProxy:
    """Stands before Redis and, when told, drops an answer or holds a command back."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.lost = 0
        self.late_answers = 0
        self._hold = threading.Event()
        self._released = threading.Event()
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

    def hold_next_command(self) -> None:
        """Pass the next command on only after `release`, whether its sender waits or not."""
        self._hold.set()

    def release(self) -> None:
        """Pass on what is held."""
        self._released.set()

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
                if self._hold.is_set() and b"EVALSHA" in command:
                    self._hold.clear()
                    self._released.wait(30)
                    redis.sendall(command)
                    self.late_answers += bool(redis.recv(65536))
                    return
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


def test_every_outage_is_logged_once_with_its_end(
    redis_server: RedisFactory, emitter: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """However many events meet it."""
    server = redis_server()
    made = emitter(server.url)
    for outage in (1, 2):
        emit(made, 0)
        server.kill9()
        for number in range(100):
            emit(made, number)
        server.start()
        assert made.flush(20)
        wait_until(lambda n=outage: caplog.text.count("takes events again") == n, 20, "the end")
    assert len(errors(caplog)) == 2
    assert all("does not take events" in message for message in errors(caplog))


def test_each_of_several_threads_that_meet_the_outage_keeps_its_order(
    redis_server: RedisFactory, emitter: Any, connect: BrokerFactory
) -> None:
    """Redis freezes under their emits: each waits one timeout, and no event overtakes another."""
    server = redis_server()
    sink = RecordingSink()
    connect(server.url).start(sink)
    made = emitter(server.url)
    slow: list[float] = []

    def work(first: int) -> None:
        for number in range(first, first + 500):
            took = timed(made, number)
            if took > TIMEOUT / 2:
                slow.append(took)

    threads = [threading.Thread(target=work, args=(n,)) for n in (1000, 2000, 3000, 4000)]
    for thread in threads:
        thread.start()
    sink.wait_for(lambda: len(sink.entries) > 100, "a flow")
    server.pause()
    for thread in threads:
        thread.join()
    assert made.queued > 0
    server.resume()
    assert made.flush(20)
    sink.wait_for(lambda: len(sink.entries) == 2000, "all of them")
    for first in (1000, 2000, 3000, 4000):
        own = [n for n in sink.numbers if first <= n < first + 1000]
        assert own == list(range(first, first + 500))
    assert 1 <= len(slow) <= 4
    assert max(slow) < 2 * TIMEOUT


def test_an_event_queued_as_the_outage_ends_is_not_overtaken(
    redis_server: RedisFactory,
    emitter: Any,
    connect: BrokerFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The emit saw the circuit open, and the courier closed it before the event was queued."""
    server = redis_server(appendonly=True)
    sink = RecordingSink()
    made = emitter(server.url)
    emit(made, 0)
    server.kill9()
    emit(made, 1)
    postpone = made._postpone

    def late(item: Any) -> None:
        server.start()
        assert made.flush(20)
        server.pause()
        postpone(item)

    monkeypatch.setattr(made, "_postpone", late)
    emit(made, 2)
    monkeypatch.undo()
    assert timed(made, 3) < TIMEOUT / 2  # queued behind it, and not sent past it
    server.resume()
    assert made.flush(20)
    connect(server.url).start(sink)
    sink.wait_for_number(3)
    assert sink.numbers == [0, 1, 2, 3]


def test_closing_waits_for_the_events_that_are_being_sent(
    redis_server: RedisFactory, emitter: Any
) -> None:
    """The queue is empty then, and they are not published yet."""
    server = redis_server()
    made = emitter(server.url)
    emit(made, 0)
    server.pause()
    emit(made, 1)
    wait_until(lambda: not made._queue, 10, "the courier took it")
    closing = threading.Thread(target=made.close, args=(20.0,))
    closing.start()
    closing.join(TIMEOUT / 2)
    assert closing.is_alive()
    server.resume()
    closing.join(20)
    assert (made.queued, made.dropped) == (0, 0)
    assert server.client().xlen("{noc}:log") == 3  # the opening entry and both events


@pytest.mark.parametrize("how", ["unreachable", "stopped"])
def test_closing_in_an_outage_gives_up_in_time_and_says_what_is_lost(
    how: str, redis_server: RedisFactory, emitter: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that ends must end; what was being sent counts, and counts once."""
    server = redis_server()
    made = emitter(f"redis://127.0.0.1:{free_port()}/0" if how == "unreachable" else server.url)
    server.pause()
    for number in range(10):
        emit(made, number)
    begun = time.perf_counter()
    made.close(0.2)
    assert time.perf_counter() - begun < 1
    assert made.dropped == 10
    for thread in threading.enumerate():
        if thread.name == "noc-realtime-courier":
            thread.join(20)
            assert not thread.is_alive()
    assert (made.dropped, made.queued) == (10, 0)
    assert sum("were dropped" in message for message in errors(caplog)) == 1
    assert emit(made, 11) is None
    wait_until(lambda: made.dropped == 11, 10, "an event after closing is counted too")


def test_the_courier_outlives_an_error_nobody_expected(
    emitter: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A courier that died would leave every later event in the queue."""
    made = emitter(f"redis://127.0.0.1:{free_port()}/0")
    failed = threading.Event()

    def fail(*args: Any, **options: Any) -> None:
        failed.set()
        raise ValueError("not of redis-py's family")

    assert emit(made, 0) is None
    monkeypatch.setattr(made._broker, "publish_all", fail)
    assert failed.wait(10)
    failed.clear()
    assert failed.wait(10)
    monkeypatch.setattr(made._broker, "publish_all", lambda events, **options: ["1-1"])
    assert made.flush(10)
    assert (made.queued, made.dropped) == (0, 0)
    assert caplog.text.count("The courier stumbled") == 1


@pytest.mark.parametrize("raises", [False, True])
def test_an_error_nobody_expected_is_an_outage(
    raises: bool,
    redis_server: RedisFactory,
    emitter: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The service that emits is not to blame for it, and can do nothing about it."""
    made = emitter(redis_server().url, raises=raises)

    def fail(*args: Any, **options: Any) -> None:
        raise ValueError("not of redis-py's family")

    for name in ("publish", "publish_all", "ping"):
        monkeypatch.setattr(made._broker, name, fail)
    for number in range(3):
        if raises:
            with pytest.raises(BrokerUnavailable):
                emit(made, number)
        else:
            assert emit(made, number) is None
    assert caplog.text.count("does not take events: not of redis-py's family") == 1
    assert "Traceback" in caplog.text
    monkeypatch.undo()
    assert made.flush(10)
    wait_until(lambda: not made._open, 10, "the end of the outage")
    assert emit(made, 3) is not None


def test_what_waits_for_the_broker_is_counted_at_any_moment(
    emitter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the courier takes it and puts it back: cached pages hang on that number."""
    monkeypatch.setattr("flask_noc_realtime.emit._BACKOFF", (0.0,))
    made = emitter(f"redis://127.0.0.1:{free_port()}/0")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        assert emit(made, 1) is None
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            assert made.queued == 1
            time.sleep(0)
    finally:
        sys.setswitchinterval(interval)

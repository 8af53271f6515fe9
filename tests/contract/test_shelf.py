"""The shelf: one worker works a result out for all, and none is given what an event has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import pytest

from flask_noc_realtime.broker.pages import LANDED, Look
from flask_noc_realtime.broker.redis import RedisBroker
from flask_noc_realtime.emit import EmitOptions, Publisher
from flask_noc_realtime.event import Catalogue
from flask_noc_realtime.flight import How, Landed
from flask_noc_realtime.generation import Generations, Unknown
from flask_noc_realtime.shelf import Codec, Shelf
from tests.conftest import RedisFactory
from tests.contract.conftest import BrokerFactory
from tests.contract.sinks import RecordingSink, key, record
from tests.processes import wait_until
from tests.redis_server import RedisServer

TIMEOUT = 20.0
KEY = b"k" * 16
PATTERNS = ("log.*",)


class Worker:
    """What one process has: a broker with a subscription, and a shelf."""

    def __init__(self, broker: RedisBroker, lease: float = 3.0) -> None:
        self.broker = broker
        self.emitter = Publisher(broker, Catalogue(), EmitOptions())
        self.generations = Generations(broker, self.emitter)
        self.shelf = Shelf(broker.pages, self.generations, lease)
        self.executions = 0
        sink = RecordingSink()
        broker.start(sink)
        sink.wait_for(lambda: bool(sink.restarts), "the subscription")

    def execute(self, value: str, ttl: float = 60.0) -> Callable[[Hashable], Landed[str]]:
        """Return work that brings *value*."""

        def work(generations: Hashable) -> Landed[str]:
            self.executions += 1
            return Landed(value, ttl)

        return work

    def obtain(
        self,
        work: Callable[[Hashable], Landed[str]],
        patterns: tuple[str, ...] = PATTERNS,
        key: bytes = KEY,
    ) -> tuple[How, Landed[str] | None]:
        """Obtain what *work* brings, or another worker."""
        return self.shelf.obtain(key, patterns, CODEC, work, strict=bool(patterns))

    def look(self, patterns: tuple[str, ...] = PATTERNS) -> Look:
        """Look, and take no lease."""
        return self.broker.pages.look_up(KEY.hex(), patterns)


def unseal(data: bytes, key: bytes) -> str | None:
    """Read what CODEC wrote."""
    head, _, text = data.partition(b"|")
    return text.decode() if head == key else None


CODEC: Codec[str] = Codec(lambda value, key, seconds: key + b"|" + value.encode(), unseal)


@pytest.fixture
def workers(
    redis: RedisServer, connect: BrokerFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Worker, Worker]]:
    """Return two workers of one Redis, in a namespace of the test's own."""
    name = f"shelf-{abs(hash(request.node.nodeid))}"
    both = Worker(connect(redis.url, namespace=name)), Worker(connect(redis.url, namespace=name))
    yield both
    for worker in both:
        worker.shelf.close()


class Gate:
    """Work that stops until it may go on."""

    def __init__(self, landed: Landed[str], error: BaseException | None = None) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.generations: Hashable = None
        self._landed = landed
        self._error = error

    def __call__(self, generations: Hashable) -> Landed[str]:
        self.generations = generations
        self.begun.set()
        assert self.go.wait(TIMEOUT)
        if self._error is not None:
            raise self._error
        return self._landed


class Caller:
    """A call in a thread of its own, whose work stands at a gate."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.value = self._call()
        except BaseException as error:
            self.error = error

    def result(self) -> Any:
        """Wait for the value."""
        self.done()
        assert self.error is None, self.error
        return self.value

    def done(self) -> Caller:
        """Wait until it is over."""
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), "the call hangs"
        return self


def leading(worker: Worker, gate: Gate, patterns: tuple[str, ...] = PATTERNS) -> Caller:
    """Start a leader that stands at the gate."""
    caller = Caller(lambda: worker.obtain(gate, patterns))
    assert gate.begun.wait(TIMEOUT)
    return caller


def waiting(worker: Worker, work: Callable[[Hashable], Landed[str]]) -> Caller:
    """Start a caller that waits for the leader in another worker."""
    asked = threading.Event()
    look_up = worker.broker.pages.look_up

    def noted(*args: Any, **options: Any) -> Look:
        look = look_up(*args, **options)
        if look.state == "wait":
            asked.set()
        return look

    worker.broker.pages.look_up = noted  # type: ignore[method-assign]
    caller = Caller(lambda: worker.obtain(work))
    assert asked.wait(TIMEOUT)
    return caller


def noting(look_up: Callable[..., Look], looks: list[str]) -> Callable[..., Look]:
    """Return what looks up, and notes what was found."""

    def noted(*args: Any, **options: Any) -> Look:
        look = look_up(*args, **options)
        looks.append(look.state)
        return look

    return noted


def test_a_result_of_one_worker_is_given_out_by_the_other(workers: tuple[Worker, Worker]) -> None:
    """For the rest of its time, and not begun anew."""
    one, other = workers
    assert one.obtain(one.execute("a")) == (How.LED, Landed("a", 60.0))
    how, landed = other.obtain(other.execute("b"))
    assert how is How.KEPT
    assert landed is not None
    assert landed.value == "a"
    assert 0 < landed.ttl <= 60
    assert (one.executions, other.executions) == (1, 0)
    assert other.look().value == CODEC.seal("a", KEY, 60.0)


def test_another_worker_waits_for_the_leader_and_is_woken(workers: tuple[Worker, Worker]) -> None:
    """Long before its lease would lapse."""
    one, other = workers
    gate = Gate(Landed("a", 60.0))
    leader = leading(one, gate)
    follower = waiting(other, other.execute("b"))
    gate.go.set()
    assert leader.result() == (How.LED, Landed("a", 60.0))
    assert follower.result()[0] is How.KEPT
    assert other.executions == 0


def test_an_event_ends_what_is_kept_for_all_workers(workers: tuple[Worker, Worker]) -> None:
    """Whoever asks after it was published finds nothing."""
    one, other = workers
    one.obtain(one.execute("a"))
    other.broker.publish(record(1), key())
    assert one.look().state == other.look().state == "none"
    assert other.obtain(other.execute("b"))[0] is How.LED


def test_a_result_that_an_event_overtook_is_not_kept(workers: tuple[Worker, Worker]) -> None:
    """And nobody who came after the event waits for it."""
    one, other = workers
    gate = Gate(Landed("old", 60.0))
    leader = leading(one, gate)
    one.broker.publish(record(1), key())
    assert other.obtain(other.execute("new")) == (How.LED, Landed("new", 60.0))
    gate.go.set()
    assert leader.result() == (How.LED, Landed("old", 0.0))
    assert one.look().value == CODEC.seal("new", KEY, 60.0)


def test_of_all_who_wait_for_what_an_event_overtook_one_leads(
    redis: RedisServer, connect: BrokerFactory
) -> None:
    """The others wait again, as if they had just come."""
    made = [Worker(connect(redis.url, namespace="overtaken")) for _ in range(4)]
    old, new = Gate(Landed("old", 60.0)), Gate(Landed("new", 60.0))
    looks: list[str] = []
    for worker in made:
        worker.broker.pages.look_up = noting(worker.broker.pages.look_up, looks)  # type: ignore[method-assign]
    leader = leading(made[0], old)
    followers = [Caller(lambda worker=worker: worker.obtain(new)) for worker in made[1:]]
    wait_until(lambda: looks.count("wait") == 3, TIMEOUT, "they wait")
    made[0].broker.publish(record(1), key())
    old.go.set()
    assert leader.result() == (How.LED, Landed("old", 0.0))
    wait_until(lambda: looks.count("wait") >= 5, TIMEOUT, "they wait again")
    new.go.set()
    assert sorted(follower.result()[0].value for follower in followers) == ["kept", "kept", "led"]
    assert len(looks) < 20
    for worker in made:
        worker.shelf.close()


def test_the_leader_sees_generations_from_before_it_reads(workers: tuple[Worker, Worker]) -> None:
    """They are those of the step that gave it the lease."""
    one, _ = workers
    gate = Gate(Landed("a", 60.0))
    before = one.broker.generations(PATTERNS)
    leader = leading(one, gate)
    gate.go.set()
    leader.result()
    assert gate.generations == before


def test_who_reads_in_a_transaction_from_before_an_event_leads_nobody(
    workers: tuple[Worker, Worker],
) -> None:
    """The lease is free again at once, and nothing is kept."""
    one, other = workers
    since = one.broker.generations(PATTERNS)
    seen: list[Hashable] = []

    def work(generations: Hashable) -> Landed[str]:
        seen.append(generations)
        return Landed("old", 60.0)

    one.broker.publish(record(1), key())
    how, landed = one.shelf.obtain(KEY, PATTERNS, CODEC, work, since=since)
    assert (how, landed) == (How.LED, Landed("old", 60.0))
    assert isinstance(seen[0], Unknown)
    assert one.look().state == "none"
    assert other.obtain(other.execute("new")) == (How.LED, Landed("new", 60.0))
    since = one.broker.generations(PATTERNS)
    assert one.shelf.obtain(KEY, PATTERNS, CODEC, work, since=since)[0] is How.KEPT


def test_without_patterns_no_event_ends_it(workers: tuple[Worker, Worker]) -> None:
    """Time does."""
    one, other = workers
    one.obtain(one.execute("a"), ())
    one.broker.publish(record(1), key())
    assert other.obtain(other.execute("b"), ())[0] is How.KEPT


def test_a_leader_that_died_is_replaced_when_its_lease_lapses(
    redis: RedisServer, connect: BrokerFactory
) -> None:
    """Killed, it renews no more and tells nobody."""
    one = Worker(connect(redis.url, namespace="died"), lease=0.3)
    pages = one.broker.pages
    name = KEY.hex()
    assert pages.look_up(name, PATTERNS, "dead", 0.3).state == "lead"
    assert one.obtain(one.execute("b")) == (How.LED, Landed("b", 60.0))
    one.shelf.close()


def test_a_zombie_overwrites_nothing(workers: tuple[Worker, Worker]) -> None:
    """Its lease lapsed while it was frozen, whether or not another has led since."""
    one, _ = workers
    pages, name = one.broker.pages, KEY.hex()
    look = pages.look_up(name, PATTERNS, "zombie", 0.05)
    assert look.state == "lead"
    wait_until(
        lambda: pages.look_up(name, PATTERNS, "next", 60.0).state == "lead", TIMEOUT, "it lapses"
    )
    assert not pages.commit(name, "zombie", LANDED, look, PATTERNS, b"old", 60.0)
    assert one.look().value is None
    assert pages.commit(name, "next", LANDED, look, PATTERNS, b"new", 60.0)
    assert not pages.commit(name, "zombie", LANDED, look, PATTERNS, b"old", 60.0)
    assert one.look().value == b"new"


def test_work_longer_than_the_lease_keeps_it(redis: RedisServer, connect: BrokerFactory) -> None:
    """It is renewed as long as the leader lives."""
    one = Worker(connect(redis.url, namespace="long"), lease=0.3)
    other = Worker(connect(redis.url, namespace="long"), lease=0.3)
    gate = Gate(Landed("a", 60.0))
    leader = leading(one, gate)
    renewals: list[list[bool]] = []
    renew = one.broker.pages.renew

    def noted(*args: Any) -> list[bool]:
        renewals.append(renew(*args))
        return renewals[-1]

    one.broker.pages.renew = noted  # type: ignore[method-assign]
    follower = waiting(other, other.execute("b"))
    wait_until(lambda: len(renewals) >= 4, TIMEOUT, "it is renewed")
    gate.go.set()
    assert leader.result()[0] is How.LED
    assert follower.result()[0] is How.KEPT
    assert other.executions == 0
    assert all(all(each) for each in renewals[:4])
    for worker in (one, other):
        worker.shelf.close()
    names = [thread.name for thread in threading.enumerate()]
    assert "noc-realtime-flights" not in names


def test_a_failure_sends_all_workers_to_work_at_once(workers: tuple[Worker, Worker]) -> None:
    """One after the other, the last would wait for all of them to fail."""
    one, other = workers
    gate = Gate(Landed("a"), LookupError("no"))
    leader = leading(one, gate)
    follower = waiting(other, other.execute("b"))
    gate.go.set()
    assert isinstance(leader.done().error, LookupError)
    assert follower.result() == (How.LED, Landed("b", 60.0))
    assert one.look().value is None


def test_a_cancelled_leader_is_replaced_at_once(workers: tuple[Worker, Worker]) -> None:
    """What ends one request says nothing of the result."""
    one, other = workers
    gate = Gate(Landed("a"), KeyboardInterrupt())
    leader = leading(one, gate)
    follower = waiting(other, other.execute("b"))
    gate.go.set()
    assert isinstance(leader.done().error, KeyboardInterrupt)
    assert follower.result() == (How.LED, Landed("b", 60.0))
    assert one.look().value == CODEC.seal("b", KEY, 60.0)


def test_what_cannot_be_shared_lets_all_workers_go_their_own_way(
    workers: tuple[Worker, Worker],
) -> None:
    """At once, and for a while nobody waits for it."""
    one, other = workers
    gate = Gate(Landed("mine", shared=False))
    leader = leading(one, gate)
    follower = waiting(other, other.execute("b"))
    gate.go.set()
    assert leader.result() == (How.LED, Landed("mine", shared=False))
    assert follower.result() == (How.ALONE, None)
    assert one.obtain(one.execute("c")) == (How.ALONE, None)
    assert other.look().state == "alone"


def test_a_planted_value_is_a_miss_and_goes(workers: tuple[Worker, Worker]) -> None:
    """Who can write to Redis shows nobody a page."""
    one, other = workers
    pages, name = one.broker.pages, KEY.hex()
    look = pages.look_up(name, PATTERNS, "evil", 1.0)
    pages.commit(name, "evil", LANDED, look, PATTERNS, b"planted", 60.0)
    assert one.look().value == b"planted"
    assert one.obtain(one.execute("a")) == (How.LED, Landed("a", 60.0))
    assert other.obtain(other.execute("b"))[0] is How.KEPT


def test_all_who_read_generations_at_once_share_a_round_trip(
    workers: tuple[Worker, Worker],
) -> None:
    """The first one's has begun; all others share the next, whatever each of them asks for."""
    one, _ = workers
    begun, go = threading.Event(), threading.Event()
    trips: list[Sequence[str]] = []
    read = one.broker.generations
    patterns = ("log.*", "incident.*", "*")
    one.broker.publish(record(1), key())
    expected = dict(zip(patterns, read(patterns), strict=True))

    def slow(asked: Sequence[str], *, at_once: bool = False) -> tuple[str, ...]:
        trips.append(asked)
        begun.set()
        assert go.wait(TIMEOUT)
        return read(asked)

    one.broker.generations = slow  # type: ignore[method-assign]
    callers = [Caller(lambda: one.generations.read(patterns))]
    assert begun.wait(TIMEOUT)
    for number in range(20):
        asked = patterns[number % len(patterns) :]
        callers.append(Caller(lambda asked=asked: one.generations.read(asked)))
    waiting = one.generations._combined._waiting
    wait_until(lambda: len(waiting) == 20, TIMEOUT, "they wait")
    go.set()
    for number, caller in enumerate(callers[1:]):
        asked = patterns[number % len(patterns) :]
        assert caller.result() == tuple(expected[pattern] for pattern in asked)
    assert len(trips) == 2


# Without Redis.


def test_without_redis_each_worker_works_and_keeps_nothing(
    redis_server: RedisFactory, connect: BrokerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked again after a moment, and the outage is said once."""
    server = redis_server()
    worker = Worker(connect(server.url, timeout=0.2))
    worker.obtain(worker.execute("a"))
    server.stop()
    assert isinstance(worker.generations.read(PATTERNS), Unknown)
    assert not worker.generations.readable
    assert isinstance(worker.generations.read(PATTERNS), Unknown)
    seen: list[Hashable] = []

    def work(generations: Hashable) -> Landed[str]:
        seen.append(generations)
        return Landed("b", 60.0)

    assert worker.obtain(work) == (How.LED, Landed("b", 60.0))
    assert isinstance(seen[0], Unknown)
    assert worker.obtain(work, ()) == (How.LED, Landed("b", 60.0))
    assert seen[1] == ()
    assert caplog.text.count("are not kept meanwhile") == 1
    server.start()
    wait_until(lambda: worker.generations.readable, TIMEOUT, "Redis is asked again")
    assert worker.generations.read(PATTERNS) == worker.broker.generations(PATTERNS)
    assert caplog.text.count("are kept again") == 1
    worker.shelf.close()


def test_what_this_process_has_not_published_yet_makes_generations_unknown(
    redis_server: RedisFactory, connect: BrokerFactory
) -> None:
    """Its event has happened, though no generation says so."""
    server = redis_server()
    worker = Worker(connect(server.url, timeout=0.2))
    server.pause()
    assert worker.emitter.emit("log.added") is None
    assert not worker.generations.readable
    assert isinstance(worker.generations.read(PATTERNS), Unknown)
    server.resume()
    assert worker.emitter.flush(TIMEOUT)
    wait_until(lambda: worker.generations.readable, TIMEOUT, "it is readable again")
    assert worker.generations.read(PATTERNS) == worker.broker.generations(PATTERNS)
    worker.emitter.close()
    worker.shelf.close()


def test_a_redis_that_lost_everything_costs_an_execution_and_no_more(
    workers: tuple[Worker, Worker], redis: RedisServer
) -> None:
    """The leader's lease is gone: its result is not kept, and it is no error."""
    one, other = workers
    gate = Gate(Landed("a", 60.0))
    leader = leading(one, gate)
    redis.client().flushall()
    gate.go.set()
    assert leader.result() == (How.LED, Landed("a", 0.0))
    assert one.look().value is None
    assert other.obtain(other.execute("b")) == (How.LED, Landed("b", 60.0))

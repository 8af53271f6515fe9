"""Flights: one execution for the herd, and never a result from before what its caller saw."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime.flight import (
    ALONE_SECONDS,
    FlightOptions,
    Flights,
    Flown,
    How,
    Kept,
    Landed,
    ReentrantCall,
    Results,
    twin,
)
from tests.processes import wait_until

TIMEOUT = 20.0


class Clock:
    """A clock that stands still unless it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Caller:
    """A call in a thread of its own."""

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
        """Wait for the value, or raise the error."""
        self.done()
        if self.error is not None:
            raise self.error
        return self.value

    def done(self) -> Caller:
        """Wait until the call is over."""
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), "the call hangs"
        return self


class World:
    """Flights over a version that writers raise, and work that stops where a test says."""

    def __init__(self, ttl: float = 0.0, **options: Any) -> None:
        self.clock = Clock()
        self.flights: Flights[Any] = Flights(FlightOptions(**options), self.clock)
        self.version = 0
        self.executions = 0
        self.ttl = ttl
        self.shared = True
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Semaphore(0)

    def work(self, generations: Any) -> Landed[Any]:
        """Read the version, wait at the gate, and return what was read."""
        read = self.version
        self.executions += 1
        self.running.release()
        assert self.gate.wait(TIMEOUT)
        return Landed(read, self.ttl, self.shared)

    def fly(self, key: str = "k", work: Callable[[Any], Landed[Any]] | None = None) -> Flown[Any]:
        """Call with the generations that hold now."""
        return self.flights.fly(key, lambda: (self.version,), work or self.work)

    def start(self, key: str = "k") -> Caller:
        """Start a call whose work has read and stands at the gate."""
        self.gate.clear()
        caller = Caller(lambda: self.fly(key))
        assert self.running.acquire(timeout=TIMEOUT)
        return caller

    def follow(self, count: int = 1, key: str = "k") -> list[Caller]:
        """Start calls that wait for another's flight."""
        before = self.flights.waiting
        callers = [Caller(lambda: self.fly(key)) for _ in range(count)]
        wait_until(lambda: self.flights.waiting == before + count, TIMEOUT, "they wait")
        return callers


@pytest.fixture
def world() -> Iterator[World]:
    """Return a world whose flights are all over in the end."""
    world = World()
    yield world
    assert len(world.flights) == 0
    assert world.flights.waiting == 0


def test_callers_of_one_key_share_one_execution(world: World) -> None:
    """The herd costs as much as one."""
    leader = world.start()
    followers = world.follow(20)
    world.gate.set()
    assert leader.result().how is How.LED
    assert {caller.result().how for caller in followers} == {How.JOINED}
    assert world.executions == 1


def test_other_keys_fly_at_the_same_time(world: World) -> None:
    """A slow key holds up nobody else."""
    first = world.start("a")
    second = world.start("b")
    assert len(world.flights) == 2
    world.gate.set()
    assert first.result().how is second.result().how is How.LED


def test_a_caller_after_an_event_is_never_given_what_was_read_before_it(world: World) -> None:
    """It waits for a flight that begins after it, and so do all who come until then."""
    old = world.start()
    joined = world.follow()
    world.version = 1
    later = world.follow(3)
    world.version = 2
    latest = world.follow(3)
    world.gate.set()
    assert old.result().value == joined[0].result().value == 0
    assert [caller.result().value for caller in later + latest] == [2] * 6
    assert world.executions == 2


def test_one_flight_runs_and_one_is_queued_however_many_events_come(world: World) -> None:
    """An event storm costs two executions for each that ends."""
    callers = [world.start()]
    for version in range(1, 30):
        world.version = version
        callers += world.follow()
    world.gate.set()
    for caller in callers:
        caller.result()
    assert world.executions == 2


def test_a_result_is_kept_for_its_ttl_and_its_generations() -> None:
    """And no moment longer."""
    world = World(ttl=5.0)
    assert world.fly().how is How.LED
    assert world.fly().how is How.KEPT
    world.clock.now += 4.999
    assert world.fly().how is How.KEPT
    world.clock.now += 0.001
    assert world.fly().how is How.LED
    world.version = 1
    assert world.fly() == Flown(1, How.LED, world.clock.now, world.clock.now + 5.0)
    assert world.executions == 3


def test_a_late_result_of_old_generations_answers_nobody_who_knows_better() -> None:
    """The event came while the work was under way."""
    world = World(ttl=5.0)
    leader = world.start()
    world.version = 1
    world.gate.set()
    assert leader.result().value == 0
    assert world.fly().value == 1


def test_who_missed_the_store_by_a_hair_finds_it_before_leading() -> None:
    """Else a caller between look-up and take-off would do the work a second time."""
    world = World(ttl=5.0)
    captures: list[str] = []

    def capture() -> tuple[int]:
        if not captures:
            captures.append("once")
            world.fly()
        return (world.version,)

    assert world.flights.fly("k", capture, world.work).how is How.KEPT
    assert world.executions == 1


def test_forgotten_keys_are_worked_out_anew() -> None:
    """By hand, where no event says so."""
    world = World(ttl=5.0)
    world.fly()
    world.flights.forget("k")
    assert world.fly().how is How.LED


def test_a_key_is_idle_while_nothing_of_it_is_kept_or_in_flight(world: World) -> None:
    """Then whoever comes next has all after it wait."""
    assert world.flights.idle("k")
    caller = world.start("k")
    assert not world.flights.idle("k")
    assert world.flights.idle("other")
    world.gate.set()
    caller.result()
    assert world.flights.idle("k")
    kept = World(ttl=5.0)
    kept.fly()
    assert not kept.flights.idle("k")
    kept.clock.now += 5.0
    assert kept.flights.idle("k")


# Errors.


def test_twenty_callers_of_failing_work_cost_one_execution(world: World) -> None:
    """Each gets an error of its own, nothing is kept, and nobody queues to fail again."""
    original = LookupError("no such site", 7)
    original.__cause__ = OSError("disk")

    def fail(generations: Any) -> Landed[Any]:
        world.work(generations)
        raise original

    world.gate.clear()
    leader = Caller(lambda: world.fly(work=fail))
    assert world.running.acquire(timeout=TIMEOUT)
    followers = world.follow(19)
    world.gate.set()
    errors = [caller.done().error for caller in (leader, *followers)]
    assert len({id(error) for error in errors}) == 20
    for error in errors:
        assert type(error) is LookupError
        assert error.args == ("no such site", 7)
        assert error.__cause__ is original.__cause__
        assert "in fail" in "".join(traceback.format_exception(error))
    assert world.executions == 1
    assert world.fly().how is How.LED


class Picky(Exception):
    """An error that cannot be made from its args, as many libraries have."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class Uncopyable(Exception):
    """An error that refuses to be copied."""

    def __copy__(self) -> Uncopyable:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "error",
    [Picky(404, detail="gone"), Uncopyable("a", 1), OSError(2, "missing", "file"), KeyError("k")],
    ids=lambda error: type(error).__name__,
)
def test_a_twin_is_another_object_that_says_the_same(error: Exception) -> None:
    """Whatever its class asks for when it is made."""
    double = twin(error)
    assert double is not error
    assert type(double) is type(error)
    assert str(double) == str(error)
    assert double.__dict__ == error.__dict__


# Leaders that do not arrive.


class Cancelled(BaseException):
    """What ends a greenlet from outside, such as GreenletExit or gevent.Timeout."""


def test_a_cancelled_leader_fails_alone_and_a_follower_leads_on(world: World) -> None:
    """The timeout of one request is no reason to fail twenty."""
    calls: list[str] = []

    def work(generations: Any) -> Landed[Any]:
        landed = world.work(generations)
        calls.append("called")
        if len(calls) == 1:
            raise Cancelled
        return landed

    world.gate.clear()
    leader = Caller(lambda: world.fly(work=work))
    assert world.running.acquire(timeout=TIMEOUT)
    before = world.flights.waiting
    followers = [Caller(lambda: world.fly(work=work)) for _ in range(5)]
    wait_until(lambda: world.flights.waiting == before + 5, TIMEOUT, "they wait")
    world.version = 3
    world.gate.set()
    assert isinstance(leader.done().error, Cancelled)
    assert [caller.result().value for caller in followers] == [3] * 5
    assert sorted(caller.value.how.value for caller in followers) == ["joined"] * 4 + ["led"]
    assert world.executions == 2


def test_a_cancelled_leader_without_followers_leaves_the_key_free(world: World) -> None:
    """The queued flight goes on as well."""

    def cancelled(generations: Any) -> Landed[Any]:
        world.work(generations)
        raise Cancelled

    world.gate.clear()
    leader = Caller(lambda: world.fly(work=cancelled))
    assert world.running.acquire(timeout=TIMEOUT)
    world.version = 1
    queued = world.follow(2)
    world.gate.set()
    assert isinstance(leader.done().error, Cancelled)
    assert [caller.result().value for caller in queued] == [1, 1]


def test_a_leader_that_takes_too_long_is_replaced_and_stores_nothing() -> None:
    """It may have been frozen: what it read is older than what the follower brings."""
    world = World(ttl=60.0, patience=0.1)
    clock = world.flights.clock = world.clock
    leader = world.start()
    gate, world.gate = world.gate, threading.Event()
    world.gate.set()
    world.version = 0
    follower = Caller(world.fly)
    wait_until(lambda: world.flights.waiting == 1, TIMEOUT, "it waits")
    clock.now += 0.1
    assert follower.result().how is How.LED
    gate.set()
    assert leader.result().how is How.ALONE
    assert world.fly().how is How.KEPT
    assert world.executions == 2
    assert len(world.flights) == 0


def test_work_longer_than_patience_costs_two_executions_and_no_convoy() -> None:
    """Who waits is given what the leader in whose place another began brings after all."""
    world = World(patience=0.1)
    leader = world.start()
    followers = world.follow(8)
    slow, world.gate = world.gate, threading.Event()
    world.clock.now += 0.1
    assert world.running.acquire(timeout=TIMEOUT)
    wait_until(lambda: world.flights.waiting == 7, TIMEOUT, "one of them leads")
    world.version = 1
    slow.set()
    assert leader.result().how is How.ALONE
    wait_until(lambda: world.flights.waiting == 0, TIMEOUT, "they are let go")
    world.gate.set()
    found = sorted(caller.result().how.value for caller in followers)
    assert found == ["joined"] * 7 + ["led"]
    assert world.executions == 2
    assert len(world.flights) == 0


def test_what_a_leader_brings_too_late_is_for_those_who_saw_what_it_saw() -> None:
    """Not for who came after an event, nor for who came when it had landed."""
    world = World(patience=0.1)
    leader = world.start()
    world.follow()
    slow, world.gate = world.gate, threading.Event()
    world.version = 1
    world.clock.now += 0.1
    assert world.running.acquire(timeout=TIMEOUT)
    later = world.follow(2)
    slow.set()
    assert leader.result().value == 0
    world.version = 0
    latest = world.follow()
    world.version = 1
    world.gate.set()
    assert [caller.result().value for caller in later] == [1, 1]
    assert latest[0].result().value == 1
    assert world.executions == 3


def test_callers_queued_behind_a_hung_flight_nobody_follows_are_let_go(world: World) -> None:
    """Its leader may never come back."""
    world = World(patience=0.1)
    leader = world.start()
    gate, world.gate = world.gate, threading.Event()
    world.gate.set()
    world.version = 1
    queued = Caller(world.fly)
    wait_until(lambda: world.flights.waiting == 1, TIMEOUT, "it waits")
    world.clock.now += 0.1
    assert queued.result().value == 1
    gate.set()
    assert leader.result().value == 0


# Callers who read in a transaction that began before.


def test_who_is_bound_to_an_old_snapshot_leads_nobody_who_knows_better(world: World) -> None:
    """What it would read in its turn is from before they came."""
    old = world.start()
    world.version = 1
    bound = world.flights.fly("k", lambda: (1,), lambda _: Landed("old snapshot"), bound=True)
    assert bound == Flown("old snapshot", How.ALONE, world.clock.now)
    queued = world.follow()
    world.gate.set()
    assert [caller.result().value for caller in (old, *queued)] == [0, 1]


def test_who_is_bound_joins_what_began_as_it_came_and_leads_at_once(world: World) -> None:
    """But takes none over from a leader that was cancelled: others may have come since."""

    def cancelled(generations: Any) -> Landed[Any]:
        world.work(generations)
        raise Cancelled

    def fly() -> Flown[Any]:
        return world.flights.fly("k", lambda: (0,), world.work, lambda: "alone", bound=True)

    assert fly().how is How.LED
    world.gate.clear()
    leader = Caller(lambda: world.fly(work=cancelled))
    for _ in range(2):
        assert world.running.acquire(timeout=TIMEOUT)
    bound = Caller(fly)
    wait_until(lambda: world.flights.waiting == 1, TIMEOUT, "it waits")
    world.gate.set()
    assert isinstance(leader.done().error, Cancelled)
    assert bound.result().value == "alone"
    assert world.executions == 2


# Calls within calls.


def test_a_call_of_itself_raises_instead_of_waiting_for_ever(world: World) -> None:
    """Also when an event came meanwhile, and it would be queued behind itself."""
    for bump in (0, 1):

        def again(generations: Any, bump: int = bump) -> Landed[Any]:
            world.version += bump
            return Landed(world.fly().value)

        with pytest.raises(ReentrantCall, match="undecorated"):
            world.fly(work=again)


def test_two_flights_that_ask_for_each_other_raise_instead_of_waiting_for_ever(
    world: World,
) -> None:
    """A waits for B in another thread, and B for A."""
    both = threading.Barrier(2)

    def asks(key: str) -> Callable[[Any], Landed[Any]]:
        def work(generations: Any) -> Landed[Any]:
            both.wait(TIMEOUT)
            return Landed(world.fly(key).value)

        return work

    callers = [
        Caller(lambda: world.fly("a", work=asks("b"))),
        Caller(lambda: world.fly("b", work=asks("a"))),
    ]
    errors = [caller.done().error for caller in callers]
    assert [type(error) for error in errors] == [ReentrantCall, ReentrantCall]


def test_flights_may_ask_for_others(world: World) -> None:
    """A page made of coalesced parts."""

    def page(generations: Any) -> Landed[Any]:
        return Landed([world.fly("part").value, world.fly("part").value])

    assert world.fly("page", work=page).value == [0, 0]


# What cannot be shared.


def test_waiters_of_an_unshareable_result_are_released_together() -> None:
    """And for a while nobody waits for that key at all: one by one would be a convoy."""
    world = World(ttl=5.0)
    world.shared = False
    leader = world.start()
    followers = world.follow(5)
    world.version = 1
    queued = world.follow(2)
    callers = (leader, *followers, *queued)
    gate, world.gate = world.gate, threading.Event()
    gate.set()
    for _ in range(7):
        assert world.running.acquire(timeout=TIMEOUT)
    late = Caller(world.fly)
    assert world.running.acquire(timeout=TIMEOUT)
    world.gate.set()
    assert {caller.result().how for caller in (*callers, late)} == {How.ALONE}
    assert world.executions == 9
    world.clock.now += ALONE_SECONDS
    world.shared = True
    assert world.fly().how is How.LED
    assert len(world.flights) == 0


# Bounds.


def test_beyond_the_limit_of_keys_callers_work_alone() -> None:
    """A flood of keys costs memory for no more than the limit."""
    world = World(max_lanes=2)
    first, second = world.start("a"), world.start("b")
    assert world.fly("c", work=lambda _: Landed(7)).how is How.ALONE
    world.gate.set()
    assert first.result().how is second.result().how is How.LED
    assert world.fly("c").how is How.LED


def kept(value: int, weight: int = 1, until: float = 10.0) -> Kept[int]:
    """Return an entry of generation zero."""
    return Kept(value, 0, 0.0, until, weight)


def test_results_are_bounded_in_number_and_weight() -> None:
    """Oldest out first; what is heavier than all room is not kept."""
    results: Results[int] = Results(3, 10)
    for number in range(5):
        assert results.put(number, kept(number))
    assert [results.get(number, 0, 1.0) is not None for number in range(5)] == [False] * 2 + [
        True
    ] * 3
    assert not results.put("huge", kept(0, 11))
    assert results.put("large", kept(0, 9))
    assert len(results) == 2
    assert results.weight == 10
    results.clear()
    assert len(results) == results.weight == 0


def test_a_store_of_no_entries_keeps_nothing() -> None:
    """It is how keeping is switched off."""
    results: Results[int] = Results(0, 10)
    assert not results.put("k", kept(1))
    assert len(results) == results.weight == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.booleans()), max_size=60))
def test_the_weight_of_results_is_the_sum_of_what_is_there(
    steps: list[tuple[int, int, bool]],
) -> None:
    """Whatever is put, replaced and dropped."""
    results: Results[int] = Results(4, 12)
    weights: dict[int, int] = {}
    for key, weight, drop in steps:
        if drop:
            results.drop(key)
            weights.pop(key, None)
        elif results.put(key, kept(weight, weight)):
            weights[key] = weight
        found = {key: results.get(key, 0, 0.0) for key in range(6)}
        there = {key: entry.value for key, entry in found.items() if entry is not None}
        assert sum(there.values()) == results.weight <= 12
        assert len(there) == len(results) <= 4
        assert there.items() <= weights.items()


# Everything at once.


def give_way() -> None:
    """Let others run here, under gevent too."""
    time.sleep(0)


def test_no_call_returns_less_than_was_announced_before_it_began() -> None:
    """Writers commit and then announce; readers call: never a result older than the news."""
    world = World(ttl=60.0)
    committed = [0] * 4
    announced = [0] * 4
    stale: list[tuple[int, int]] = []
    calls: list[int] = []
    over = threading.Event()

    def write() -> None:
        for number in range(1, 400):
            for key in range(4):
                committed[key] = number
                give_way()
                announced[key] = number
        over.set()

    def capture(key: int) -> tuple[int]:
        seen = announced[key]
        give_way()
        return (seen,)

    def work(key: int) -> Landed[int]:
        read = committed[key]
        give_way()
        return Landed(read, 60.0)

    def read(key: int) -> None:
        count = 0
        while not over.is_set() or not count:
            count += 1
            news = announced[key]
            flown = world.flights.fly(key, lambda: capture(key), lambda _: work(key))
            if flown.value < news:
                stale.append((news, flown.value))
        calls.append(count)

    readers = [Caller(lambda key=n % 4: read(key)) for n in range(8)]  # type: ignore[misc]
    Caller(write).result()
    for reader in readers:
        reader.result()
    assert not stale
    assert sum(calls) >= 8
    assert len(world.flights) == 0

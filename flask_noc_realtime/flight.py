"""Flights: one caller does the work, and those who ask for the same meanwhile share it.

A flight belongs to a key and to generations: what its caller saw of the world's version before
it read anything. Generations are only ever compared for equality. Who sees others than those of
the running flight is never given what that flight brings; all of them share the next one.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from .errors import NocRealtimeError
from .metrics import OFF, Metrics

T = TypeVar("T")

ALONE_SECONDS = 30.0
"""How long callers of a key whose result cannot be shared do not wait for each other."""


class ReentrantCall(NocRealtimeError, RuntimeError):
    """A flight asks for its own result, and would wait for itself for ever."""


class How(Enum):
    """How a caller came by a value."""

    KEPT = "kept"
    LED = "led"
    JOINED = "joined"
    ALONE = "alone"


@dataclass(frozen=True, slots=True)
class Landed(Generic[T]):
    """What the work brought.

    :ivar ttl: seconds it may be given to callers who see the same generations; 0 is not at all.
    :ivar shared: whether the callers who wait may have it; if not, each does the work alone.
    :ivar weight: what it counts for in the store.
    :ivar stored: what is kept in place of the value, such as where it is to be found.
    """

    value: T
    ttl: float = 0.0
    shared: bool = True
    weight: int = 1
    stored: T | None = None


@dataclass(frozen=True, slots=True)
class Flown(Generic[T]):
    """A value, and how the caller came by it.

    :ivar since: when it was begun to be worked out.
    :ivar until: when others cease to be given it; not after *since* when it is not kept.
    """

    value: T
    how: How
    since: float
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Kept(Generic[T]):
    """An entry of the store."""

    value: T
    generations: Hashable
    since: float
    until: float
    weight: int


class Results(Generic[T]):
    """What flights brought, bounded in number and weight, oldest out first.

    Writing belongs to the owner's lock. Reading needs none: it is one look into a dict.

    :param max_entries: entries at most.
    :param max_weight: sum of their weights at most; what weighs more alone is not kept.
    """

    def __init__(self, max_entries: int, max_weight: int) -> None:
        self.weight = 0
        self._max_entries = max_entries
        self._max_weight = max_weight
        self._entries: dict[Hashable, Kept[T]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def holds(self, key: Hashable, now: float) -> bool:
        """Tell whether the key has an entry that callers at *now* may be given."""
        kept = self._entries.get(key)
        return kept is not None and now < kept.until

    def get(self, key: Hashable, generations: Hashable, now: float) -> Kept[T] | None:
        """Return the entry for callers who see *generations* at *now*."""
        kept = self._entries.get(key)
        if kept is None or now >= kept.until or kept.generations != generations:
            return None
        return kept

    def put(self, key: Hashable, kept: Kept[T]) -> bool:
        """Keep an entry in place of the key's older one; return whether it fits."""
        self.drop(key)
        if kept.weight > self._max_weight or not self._max_entries:
            return False
        self._entries[key] = kept
        self.weight += kept.weight
        while len(self._entries) > self._max_entries or self.weight > self._max_weight:
            self.drop(next(iter(self._entries)))
        return True

    def drop(self, key: Hashable) -> None:
        """Forget the key."""
        kept = self._entries.pop(key, None)
        if kept is not None:
            self.weight -= kept.weight

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.weight = 0


class _Outcome(Generic[T]):
    """How a flight ended: with a value, an error, or nothing that can be shared."""

    __slots__ = ("error", "flown", "raised")

    def __init__(self, flown: Flown[T] | None = None, error: Exception | None = None) -> None:
        self.flown = flown
        self.error = error
        self.raised = None if error is None else error.__traceback__

    def give(self) -> Flown[T] | None:
        """Return the follower's share, raise a copy of the error, or return None."""
        if self.error is not None:
            raise twin(self.error).with_traceback(self.raised)
        return self.flown


@dataclass(eq=False, slots=True)
class _Flight(Generic[T]):
    """One execution, running or queued.

    :ivar changed: tells its followers that it ended, or that it is theirs to lead.
    :ivar generations: what its leader saw before it read anything; see `known`.
    :ivar leader: the thread or greenlet that flies it, or None while nobody does.
    :ivar turn: counts its leaders, so that a deposed one is recognised.
    :ivar late: what deposed ones brought, for those who wait and saw the same generations.
    """

    changed: threading.Condition
    generations: Hashable = None
    known: bool = False
    leader: int | None = None
    turn: int = 0
    since: float = 0.0
    followers: int = 0
    outcome: _Outcome[T] | None = None
    late: list[tuple[Hashable, _Outcome[T]]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Lane(Generic[T]):
    """The flights of one key: one that runs, and one that is queued behind it."""

    key: Hashable
    running: _Flight[T]
    queued: _Flight[T] | None = None


@dataclass(frozen=True, slots=True)
class FlightOptions:
    """The bounds of an engine.

    :param max_lanes: keys in flight at once; callers of further keys do the work alone.
    :param max_kept: results kept.
    :param max_weight: sum of the weights of the results kept.
    :param patience: seconds a flight may take before a follower flies in its leader's place.
    """

    max_lanes: int = 1024
    max_kept: int = 4096
    max_weight: int = 64 * 1024 * 1024
    patience: float = 30.0


class Flights(Generic[T]):
    """Single-flight by key and generations, with a short-lived store. Thread-safe.

    The lock guards the maps only; no work and no capture of generations runs under it.
    """

    def __init__(
        self,
        options: FlightOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics = OFF,
    ) -> None:
        self.metrics = metrics
        self.options = options or FlightOptions()
        self.clock = clock
        self.results: Results[T] = Results(self.options.max_kept, self.options.max_weight)
        self._alone: Results[None] = Results(self.options.max_kept, self.options.max_kept)
        # See the hub's: a Condition must not ask a gevent lock by acquire(False).
        self._lock = threading.RLock()
        self._lanes: dict[Hashable, _Lane[T]] = {}
        self._waits: dict[int, _Lane[T]] = {}

    def __len__(self) -> int:
        """Return how many keys are in flight."""
        return len(self._lanes)

    @property
    def waiting(self) -> int:
        """How many callers wait for another's flight."""
        return len(self._waits)

    def idle(self, key: Hashable) -> bool:
        """Tell whether nothing for *key* is kept, nor in flight."""
        return key not in self._lanes and not self.results.holds(key, self.clock())

    def forget(self, key: Hashable) -> None:
        """Drop what is kept for *key*; a flight that runs is still stored."""
        with self._lock:
            self.results.drop(key)
            self._alone.drop(key)

    def fly(
        self,
        key: Hashable,
        capture: Callable[[], Hashable],
        work: Callable[[Hashable], Landed[T]],
        alone: Callable[[], T] | None = None,
        spare: Kept[T] | None = None,
        bound: bool = False,
    ) -> Flown[T]:
        """Return what *work* brings, doing it at most once for all who may share it.

        An Exception of the work is raised to all of them, each getting a copy. What only ends
        the caller that happens to lead (GreenletExit, a gevent.Timeout, KeyboardInterrupt)
        ends nobody else: a follower leads on.

        :param capture: returns the generations that hold now; never None.
        :param work: takes the generations that held before it began.
        :param alone: what a caller does instead whose result nobody else will have.
        :param spare: what the caller is content with while another works out the next.
        :param bound: whether the caller reads what was there when it captured first: it leads at
            once, or nobody else has what it brings.
        :raises ReentrantCall: when the caller is itself the work of *key*.
        """
        generations = capture()
        seen: Hashable | None = None
        me = threading.get_ident()
        with self._lock:
            now = self.clock()
            kept = self.results.get(key, generations, now)
            lane = self._lanes.get(key)
            if spare is not None and (kept is None or kept.until <= spare.until):
                kept = spare if lane is not None else None
            if kept is not None:
                return Flown(kept.value, How.KEPT, kept.since, kept.until)
            outcome: _Outcome[T] | None = None
            late = bound and lane is not None and not self._joinable(lane.running, generations)
            if late or self._flies_alone(key, lane, now):
                flight, turn = None, 0
            elif lane is None:
                flight = self._new_flight()
                lane = self._lanes[key] = _Lane(key, flight)
                turn = self._take(flight, me, generations)
                seen = generations
            else:
                self._refuse_circle(lane, me)
                flight = self._board(lane, generations)
                turn, outcome = self._follow(lane, flight, me, generations, bound)
        if turn and flight is not None and lane is not None:
            return self._lead(lane, flight, turn, seen, capture, work)
        return (outcome and outcome.give()) or self._fly_alone(capture, work, alone)

    def _flies_alone(self, key: Hashable, lane: _Lane[T] | None, now: float) -> bool:
        if self._alone.get(key, None, now) is not None:
            return True
        return lane is None and len(self._lanes) >= self.options.max_lanes

    def _fly_alone(
        self,
        capture: Callable[[], Hashable],
        work: Callable[[Hashable], Landed[T]],
        alone: Callable[[], T] | None,
    ) -> Flown[T]:
        since = self.clock()
        value = work(capture()).value if alone is None else alone()
        return Flown(value, How.ALONE, since)

    # Under the lock.

    def _new_flight(self) -> _Flight[T]:
        return _Flight(threading.Condition(self._lock))

    def _take(self, flight: _Flight[T], me: int, generations: Hashable | None = None) -> int:
        flight.leader = me
        flight.turn += 1
        flight.since = self.clock()
        flight.generations = generations
        flight.known = generations is not None
        return flight.turn

    def _refuse_circle(self, lane: _Lane[T], me: int) -> None:
        """Raise when waiting in *lane* would be waiting for oneself, directly or through others."""
        leader = lane.running.leader
        while leader is not None:
            if leader == me:
                raise ReentrantCall(
                    "A coalesced function or view called itself with the same key, and would "
                    "wait for its own result. Call the undecorated function, or change the key."
                )
            after = self._waits.get(leader)
            leader = None if after is None else after.running.leader

    def _board(self, lane: _Lane[T], generations: Hashable) -> _Flight[T]:
        """Return the flight that begins, or began, with what the caller has seen."""
        running = lane.running
        if running.leader is None or self._joinable(running, generations):
            return running
        if lane.queued is None:
            lane.queued = self._new_flight()
        return lane.queued

    def _joinable(self, flight: _Flight[T], generations: Hashable) -> bool:
        return flight.known and flight.generations == generations

    def _follow(
        self, lane: _Lane[T], flight: _Flight[T], me: int, generations: Hashable, bound: bool
    ) -> tuple[int, _Outcome[T] | None]:
        """Wait for the outcome, or return the turn in which the flight is the caller's to lead.

        Who is bound leads no more, and is let go without either.
        """
        flight.followers += 1
        self._waits[me] = lane
        late = len(flight.late)
        try:
            while flight.outcome is None:
                running = lane.running
                for seen, outcome in flight.late[late:]:
                    if seen == generations:
                        return 0, outcome
                if running is flight and flight.leader is None:
                    return 0 if bound else self._take(flight, me), None
                left = running.since + self.options.patience - self.clock()
                if running.leader is not None and left <= 0:
                    self._depose(lane)
                else:
                    flight.changed.wait(left if left > 0 else self.options.patience)
            return 0, flight.outcome
        finally:
            flight.followers -= 1
            del self._waits[me]
            self._go_on(lane)

    def _depose(self, lane: _Lane[T]) -> None:
        """Leave the running flight to a follower, or to nobody."""
        flight = lane.running
        flight.leader = None
        flight.known = False
        flight.turn += 1
        flight.since = self.clock()
        flight.changed.notify_all()
        self._go_on(lane)

    def _go_on(self, lane: _Lane[T]) -> None:
        """Let the queued flight run when nobody needs the running one any more."""
        running, queued = lane.running, lane.queued
        if running.outcome is None and (running.leader is not None or running.followers):
            return
        if self._lanes.get(lane.key) is not lane:
            return
        lane.queued = None
        if queued is None or not queued.followers:
            del self._lanes[lane.key]
            return
        lane.running = queued
        queued.since = self.clock()
        queued.changed.notify_all()

    # The leader.

    def _lead(
        self,
        lane: _Lane[T],
        flight: _Flight[T],
        turn: int,
        generations: Hashable | None,
        capture: Callable[[], Hashable],
        work: Callable[[Hashable], Landed[T]],
    ) -> Flown[T]:
        since = flight.since
        try:
            if generations is None:
                generations = capture()
                kept = self._depart(lane, flight, turn, generations)
            else:
                kept = None
            landed = None if kept is not None else work(generations)
        except Exception as error:
            self._end(lane, flight, turn, _Outcome(error=error))
            raise
        except BaseException:
            with self._lock:
                if flight.turn == turn:
                    self._depose(lane)
            raise
        if kept is not None:
            flown = Flown(kept.value, How.KEPT, kept.since, kept.until)
            self._end(lane, flight, turn, _Outcome(flown))
            return flown
        assert landed is not None
        return self._land(lane, flight, turn, landed, generations, since)

    def _depart(
        self, lane: _Lane[T], flight: _Flight[T], turn: int, generations: Hashable
    ) -> Kept[T] | None:
        """Let others join from now on; return what the flight before has brought for all."""
        with self._lock:
            if flight.turn == turn:
                flight.generations = generations
                flight.known = True
            return self.results.get(lane.key, generations, self.clock())

    def _land(
        self,
        lane: _Lane[T],
        flight: _Flight[T],
        turn: int,
        landed: Landed[T],
        generations: Hashable,
        since: float,
    ) -> Flown[T]:
        with self._lock:
            if flight.turn != turn:
                # Frozen for a long time, perhaps: what it brings may be older than what is kept.
                if landed.shared:
                    joined = Flown(landed.value, How.JOINED, since)
                    flight.late.append((generations, _Outcome(joined)))
                    flight.changed.notify_all()
                return Flown(landed.value, How.ALONE, since)
            if not landed.shared:
                self._send_alone(lane)
                self._end(lane, flight, turn, _Outcome())
                return Flown(landed.value, How.ALONE, since)
            until = self.clock() + landed.ttl
            value = landed.value if landed.stored is None else landed.stored
            kept = Kept(value, generations, since, until, landed.weight)
            if landed.ttl <= 0 or not self.results.put(lane.key, kept):
                until = 0.0
            joined = Flown(landed.value, How.JOINED, since, until)
            self._end(lane, flight, turn, _Outcome(joined))
            return Flown(landed.value, How.LED, since, until)

    def _send_alone(self, lane: _Lane[T]) -> None:
        now = self.clock()
        self._alone.put(lane.key, Kept(None, None, now, now + ALONE_SECONDS, 1))
        if lane.queued is not None:
            lane.queued.outcome = _Outcome()
            lane.queued.changed.notify_all()

    def _end(self, lane: _Lane[T], flight: _Flight[T], turn: int, outcome: _Outcome[T]) -> None:
        with self._lock:
            if flight.turn != turn:
                return
            self.metrics.landed(self.clock() - flight.since)
            flight.outcome = outcome
            flight.leader = None
            flight.changed.notify_all()
            self._go_on(lane)


def first(seen: Hashable, capture: Callable[[], Hashable]) -> Callable[[], Hashable]:
    """Return a function that returns what was seen, and from then on what *capture* does."""
    held = [seen]
    return lambda: held.pop() if held else capture()


def twin(error: Exception) -> Exception:
    """Return a copy of *error*: one object raised in several threads mixes their tracebacks."""
    try:
        double = copy.copy(error)
    except Exception:
        double = error
    if double is error or type(double) is not type(error):
        kind = type(error)
        double = kind.__new__(kind, *error.args)
        double.__dict__.update(error.__dict__)
    double.__cause__ = error.__cause__
    double.__context__ = error.__context__
    double.__suppress_context__ = error.__suppress_context__
    return double

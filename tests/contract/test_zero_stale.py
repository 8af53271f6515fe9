"""Nothing stale: whoever asks after an event is given what was committed before it, or newer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from werkzeug.exceptions import ServiceUnavailable

from flask_noc_realtime.flight import FlightOptions, Flights
from tests.processes import wait_until
from tests.redis_server import RedisServer
from tests.stale import (
    CALLS,
    PAGES,
    TIMEOUT,
    TYPES,
    Cancelled,
    Herd,
    Naive,
    Site,
    Store,
    disturbance,
    report,
)


class Call:
    """A call in a thread of its own; each execution in it stands at a gate after it has read."""

    def __init__(self, site: Site, page: str, view: bool, least: Sequence[int]) -> None:
        self.page = page
        self.least = list(least)
        self.versions: tuple[int, ...] | None = None
        self.gates: list[Gate] = []
        self.moved = threading.Event()
        ask = site.view if view else site.call
        self._thread = threading.Thread(target=self._run, args=(ask,), daemon=True)
        self._thread.start()
        # Whoever waits for another does not move.
        self.moved.wait(0.01)

    def join(self) -> None:
        """Wait for its end, and check what it was given."""
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        if self.versions is not None:
            for index, version in zip(PAGES[self.page], self.versions, strict=True):
                assert version >= self.least[index]

    def _run(self, ask: Callable[[str], tuple[int, ...] | None]) -> None:
        _here.call = self
        self.versions = ask(self.page)
        self.moved.set()


class Gate:
    """Holds an execution until it is told how to end."""

    def __init__(self) -> None:
        self._end: type[BaseException] | None = None
        self._open = threading.Event()

    def open(self, end: type[BaseException] | None = None) -> None:
        """Let it go on, or fail."""
        self._end = end
        self._open.set()

    def wait(self) -> None:
        """Stand here."""
        assert self._open.wait(TIMEOUT)
        if self._end is not None:
            raise self._end


_here = threading.local()


class Interleaving(RuleBasedStateMachine):
    """Calls, commits and events of one process, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.calls: list[Call] = []
        self.standing: list[Gate] = []
        self.free = False
        self.pending: list[tuple[int, int]] = []
        self.now = 0.0
        self.site = Site(self.store, self.stand)
        options = FlightOptions(patience=10.0)
        self.site.process.flights = Flights(options, clock=lambda: self.now)

    def stand(self) -> None:
        """Stand at a gate, in the thread of an execution."""
        if self.free:
            return
        gate = Gate()
        self.standing.append(gate)
        if self.free:
            gate.open()
        _here.call.moved.set()
        gate.wait()

    @precondition(lambda self: len(self.calls) < 12)
    @rule(page=st.sampled_from(list(PAGES)), view=st.booleans())
    def ask(self, page: str, view: bool) -> None:
        """Begin a call."""
        self.calls.append(Call(self.site, page, view, self.store.announced))

    @rule(index=st.sampled_from(range(len(TYPES))))
    def write(self, index: int) -> None:
        """Commit and emit."""
        self.site.write(index)

    @rule(index=st.sampled_from(range(len(TYPES))))
    def commit(self, index: int) -> None:
        """Commit; the emit is yet to come."""
        self.pending.append((index, self.store.commit(index)))

    @precondition(lambda self: self.pending)
    @rule()
    def emit(self) -> None:
        """Emit for the oldest commit that waits for it."""
        index, version = self.pending.pop(0)
        self.site.emit(index, version)

    # No rule depends on how far the threads have come, which is another each time.
    @rule(
        which=st.integers(0, 11),
        end=st.sampled_from([None, None, None, ServiceUnavailable, Cancelled]),
    )
    def go_on(self, which: int, end: type[BaseException] | None) -> None:
        """Let an execution end, if there is one."""
        if not self.standing:
            return
        gate = self.standing.pop(which % len(self.standing))
        flown = self.site.process.flights
        before = (len(flown), flown.waiting, len(flown.results), len(self.standing))
        gate.open(end)
        deadline = time.monotonic() + 0.01
        while time.monotonic() < deadline:
            if (len(flown), flown.waiting, len(flown.results), len(self.standing)) != before:
                break
            time.sleep(0.0005)

    @rule()
    def lose_patience(self) -> None:
        """Depose the leaders that stand; the next to follow leads in their place."""
        self.now += 11.0

    def teardown(self) -> None:
        """Let everything end, and ask once more."""
        self.free = True
        while self.standing:
            self.standing.pop().open()
        for call in self.calls:
            call.join()
        for page in PAGES:
            Call(self.site, page, False, self.store.announced).join()
        self.site.close()


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(
    max_examples=40 + CALLS // 500,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("view", [True, False])
def test_a_leader_that_was_given_up_leaves_nothing_to_those_who_ask_after_an_event(
    view: bool,
) -> None:
    """It read before the event, and the one in its place captured the generations after it."""
    machine = Interleaving()
    machine.ask(page="log", view=view)
    machine.ask(page="log", view=view)
    flights = machine.site.process.flights
    wait_until(lambda: flights.waiting == 1, TIMEOUT, "the second waits")
    machine.site.write(1)
    machine.lose_patience()
    machine.ask(page="log", view=view)
    wait_until(lambda: len(machine.standing) == 2, TIMEOUT, "another leads")
    machine.standing.pop(0).open()
    machine.calls[0].join()
    assert machine.calls[0].versions == (0,)
    machine.ask(page="log", view=view)
    machine.teardown()
    assert [call.versions for call in machine.calls[1:]] == [(1,), (1,), (1,)]


@pytest.fixture
def sites() -> Iterator[list[Site]]:
    """Return a list of sites, closed when the test is over."""
    made: list[Site] = []
    yield made
    for site in made:
        site.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_nobody_in_one_process_is_given_what_an_event_has_ended(
    sites: list[Site], seed: int
) -> None:
    """Whatever gives way, fails, is cancelled, or comes back after it was given up."""
    store = Store()
    sites.append(Site(store, disturbance(random.Random(seed))))
    herd = Herd(store, sites, seed, (CALLS * 2 // 5) or 2000).run()
    report(herd, store, "memory")
    assert herd.stale == []
    assert herd.calls - herd.failed > store.executions


def test_a_cache_that_is_emptied_after_each_commit_gives_out_what_is_stale() -> None:
    """So the harness sees what it is there to see."""
    store = Store()
    herd = Herd(store, [Naive(store, disturbance(random.Random(1)))], 1, 3000).run()
    report(herd, store, "Flask-Caching")
    assert herd.stale


class Faults:
    """What befalls a Redis, one after the other, with some peace between."""

    def __init__(self, redis: RedisServer) -> None:
        self.happened = 0
        self._redis = redis
        self._client = redis.client(socket_timeout=5)
        self._turn = 0

    def __call__(self) -> None:
        """Let time pass, and now and then something happen."""
        self._turn += 1
        if self._turn % 5:
            # Leases lapse all along, while their holders are at work.
            self._delete("flight:*")
            return
        kinds = [
            self._forget_generations,
            self._cut_connections,
            self._pause,
            self._forget_everything,
            self._stop,
            self._forget_results,
        ]
        kinds[self.happened % len(kinds)]()
        self.happened += 1

    def _delete(self, pattern: str) -> None:
        for key in self._client.scan_iter(f"{{noc}}:{pattern}"):
            self._client.delete(key)

    def _forget_generations(self) -> None:
        self._delete("generations")

    def _forget_results(self) -> None:
        self._delete("page:*")

    def _forget_everything(self) -> None:
        self._client.flushall()

    def _cut_connections(self) -> None:
        self._client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def _pause(self) -> None:
        self._redis.pause()
        time.sleep(0.1)
        self._redis.resume()

    def _stop(self) -> None:
        self._redis.stop()
        time.sleep(0.1)
        self._redis.restart(empty=True)
        # What the others found closed, this client finds closed as well.
        self._client.connection_pool.disconnect()


def test_nobody_in_three_processes_is_given_what_an_event_has_ended(
    sites: list[Site], redis: RedisServer
) -> None:
    """Whichever of them emits or answers, while Redis goes on."""
    store = Store()
    chance = random.Random(3)
    redis.client().flushall()
    sites += [Site(store, disturbance(chance), redis.url) for _ in range(3)]
    herd = Herd(store, sites, 3, (CALLS * 3 // 20) or 1500).run()
    report(herd, store, "three processes")
    assert herd.stale == []
    assert herd.calls - herd.failed > store.executions


def test_nobody_is_given_it_while_redis_is_cut_emptied_and_forgets(
    sites: list[Site], redis: RedisServer
) -> None:
    """Leases lapse, connections break, generations vanish, and Redis comes back empty."""
    store = Store()
    chance = random.Random(4)
    redis.client().flushall()
    sites += [Site(store, disturbance(chance), redis.url) for _ in range(3)]
    faults = Faults(redis)
    wanted = (CALLS * 3 // 20) or 2500
    herd = Herd(store, sites, 4, wanted).run(faults)
    report(herd, store, f"three processes, {faults.happened} faults")
    assert herd.stale == []
    assert faults.happened >= 6

"""Nothing stale: whoever asks after an event is given what was committed before it, or newer."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import pytest
from flask import Flask
from flask_caching import Cache
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from werkzeug.exceptions import ServiceUnavailable

from flask_noc_realtime import NocRealtime, coalesce
from flask_noc_realtime.flight import FlightOptions, Flights
from flask_noc_realtime.shelf import Shelf
from tests.processes import wait_until
from tests.redis_server import RedisServer

CALLS = int(os.environ.get("NOC_REALTIME_STALE_CALLS", "0"))
TIMEOUT = 30.0 + CALLS / 100

EVENTS = 60

TYPES = ("incident.updated", "log.added")
PAGES = {"incident": (0,), "log": (1,), "both": (0, 1)}
"""What is read, and the indexes of the types whose events end it."""
REFRESHED = ("both",)
SNAPSHOT = ("incident",)
"""Read in a transaction that begins when it is looked up who shares."""


class Cancelled(BaseException):
    """Ends the one who runs into it, as GreenletExit does."""


class Store:
    """The database: a version for each type of event, and what was announced of it."""

    def __init__(self) -> None:
        self.versions = [0] * len(TYPES)
        self.announced = [0] * len(TYPES)
        self.executions = 0
        self._lock = threading.Lock()

    def commit(self, index: int) -> int:
        """Write a new version."""
        with self._lock:
            self.versions[index] += 1
            return self.versions[index]

    def announce(self, index: int, version: int) -> None:
        """Note that the emit that followed a commit has returned."""
        with self._lock:
            self.announced[index] = max(self.announced[index], version)

    def read(self, page: str, versions: Sequence[int] | None = None) -> tuple[int, ...]:
        """Read what a page shows, of the newest versions or those of a transaction."""
        with self._lock:
            self.executions += 1
        return tuple([(versions or self.versions)[index] for index in PAGES[page]])


Disturb = Callable[[], None]


class Reader(Protocol):
    """What a process of the harness can do."""

    def view(self, page: str) -> tuple[int, ...] | None:
        """Request a page; None when it failed."""

    def call(self, page: str) -> tuple[int, ...] | None:
        """Call the function for it."""

    def write(self, index: int) -> bool:
        """Commit and publish; return whether it was published."""


class Site:
    """One process: an app whose pages and functions are coalesced.

    :param disturb: is called by each execution, after it has read.
    """

    def __init__(self, store: Store, disturb: Disturb, url: str = "memory://") -> None:
        self.app = Flask("site")
        self.app.secret_key = "test"
        self.app.config["NOC_REALTIME_URL"] = url
        self.realtime = NocRealtime(self.app)
        self.process = self.app.extensions["noc_realtime"].process()
        # Leaders that take long are deposed, and come back as zombies.
        self.process.flights = Flights(FlightOptions(patience=0.02))
        pages = getattr(self.process.broker, "pages", None)
        if pages is not None:
            self.process.shelf = Shelf(pages, self.process.generations, lease=0.05)
            self.process.position()
        self._store = store
        self._transaction = threading.local()
        self.realtime.transaction_probe(lambda: self._snapshot is not None)
        self._functions = {page: self._serve(page, disturb) for page in PAGES}

    @property
    def _snapshot(self) -> list[int] | None:
        return getattr(self._transaction, "snapshot", None)

    def _begin(self) -> str:
        """Begin a transaction, and say that all share."""
        self._transaction.snapshot = list(self._store.versions)
        return "all"

    def _end(self) -> None:
        """End the transaction, if one has begun."""
        self._transaction.snapshot = None

    def _serve(self, page: str, disturb: Disturb) -> Callable[[], tuple[int, ...]]:
        types = [TYPES[index].partition(".")[0] + ".*" for index in PAGES[page]]
        # Given out while the next is worked out, but not beyond an event either.
        stale = {"ttl": 0.01, "stale_while_revalidate": 600}
        times = stale if page in REFRESHED else {"ttl": 600}
        scope = self._begin if page in SNAPSHOT else "public"

        @coalesce(scope=scope, invalidate_on=types, view=False, **times)
        def function() -> tuple[int, ...]:
            versions = self._store.read(page, self._snapshot)
            disturb()
            return versions

        @coalesce(scope=scope, invalidate_on=types, view=True, **times)
        def view() -> str:
            versions = self._store.read(page, self._snapshot)
            disturb()
            return " ".join(map(str, versions))

        self.app.add_url_rule(f"/{page}", page, view)
        return function

    def view(self, page: str) -> tuple[int, ...] | None:
        try:
            with self.app.test_client().get(f"/{page}") as response:
                if response.status_code != 200:
                    return None
                return tuple(map(int, response.text.split()))
        except Cancelled:
            return None
        finally:
            self._end()

    def call(self, page: str) -> tuple[int, ...] | None:
        try:
            with self.app.app_context():
                return self._functions[page]()
        except (Cancelled, ServiceUnavailable):
            return None
        finally:
            self._end()

    def write(self, index: int) -> bool:
        return self.emit(index, self._store.commit(index))

    def emit(self, index: int, version: int) -> bool:
        """Emit for a commit; return whether the event was published."""
        with self.app.app_context():
            position = self.realtime.emit(TYPES[index], {"version": version})
        if position is None:
            return False
        self._store.announce(index, version)
        return True

    def close(self) -> None:
        """Release everything."""
        self.process.close()


class Naive:
    """One process that keeps results in Flask-Caching and deletes them after each commit."""

    def __init__(self, store: Store, disturb: Disturb) -> None:
        self.app = Flask("naive")
        self.cache = Cache(self.app, config={"CACHE_TYPE": "SimpleCache"})
        self._store = store
        self._disturb = disturb

    def view(self, page: str) -> tuple[int, ...] | None:
        kept: tuple[int, ...] | None = self.cache.get(page)
        if kept is not None:
            return kept
        versions = self._store.read(page)
        try:
            self._disturb()
        except (Cancelled, ServiceUnavailable):
            return None
        self.cache.set(page, versions, timeout=600)
        return versions

    call = view

    def write(self, index: int) -> bool:
        version = self._store.commit(index)
        for page, indexes in PAGES.items():
            if index in indexes:
                self.cache.delete(page)
        self._store.announce(index, version)
        return True


def disturbance(chance: random.Random) -> Disturb:
    """Return what gives way, dawdles, fails or is cancelled now and then."""

    def disturb() -> None:
        dice = chance.random()
        if dice < 0.3:
            time.sleep(0)
        elif dice < 0.6:
            time.sleep(chance.uniform(0, 0.004))
        elif dice < 0.62:
            time.sleep(0.05)
        elif dice < 0.66:
            raise ServiceUnavailable
        elif dice < 0.7:
            raise Cancelled

    return disturb


class Herd:
    """Readers and writers that go on until enough calls were answered."""

    def __init__(self, store: Store, sites: Sequence[Reader], seed: int, wanted: int) -> None:
        self.calls = 0
        self.failed = 0
        self.written = 0
        self.stale: list[str] = []
        self._store = store
        self._sites = sites
        self._wanted = wanted
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        jobs = [self._read] * 6 + [self._write] * 2
        self._threads = [
            threading.Thread(target=self._run, args=(job, random.Random(seed * 100 + number)))
            for number, job in enumerate(jobs)
        ]

    def run(self, fault: Disturb | None = None) -> Herd:
        """Let them go on; *fault* is called all along."""
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)
        try:
            for thread in self._threads:
                thread.start()
            deadline = time.monotonic() + TIMEOUT
            while not self._enough() and not self._errors and time.monotonic() < deadline:
                if fault is not None:
                    fault()
                self._over.wait(0.02)
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(TIMEOUT)
            sys.setswitchinterval(interval)
        assert not any(thread.is_alive() for thread in self._threads)
        assert not self._errors, self._errors
        assert self._enough()
        return self

    def _enough(self) -> bool:
        return self.calls >= self._wanted and self.written >= EVENTS

    def _run(self, job: Callable[[random.Random], None], chance: random.Random) -> None:
        try:
            while not self._over.is_set():
                job(chance)
        except BaseException as error:
            self._errors.append(error)

    def _read(self, chance: random.Random) -> None:
        # Under gevent a hit in memory lets nobody else run.
        time.sleep(0)
        site = chance.choice(self._sites)
        page = chance.choice(list(PAGES))
        least = list(self._store.announced)
        versions = site.view(page) if chance.random() < 0.5 else site.call(page)
        with self._lock:
            self.calls += 1
            if versions is None:
                self.failed += 1
                return
            for index, version in zip(PAGES[page], versions, strict=True):
                if version < least[index]:
                    self.stale.append(f"{page}: {version} after {least[index]}")

    def _write(self, chance: random.Random) -> None:
        if chance.choice(self._sites).write(chance.randrange(len(TYPES))):
            with self._lock:
                self.written += 1
        time.sleep(chance.uniform(0, 0.02))


def report(herd: Herd, store: Store, what: str) -> None:
    """Say how much was asked; shown by ``pytest -s``."""
    print(
        f"\n{what}: {herd.calls} calls, {herd.failed} failed, {store.executions} executions, "
        f"{herd.written} events, {len(herd.stale)} stale"
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

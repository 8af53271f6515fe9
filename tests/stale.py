"""Counts what is stale: readers and writers, and whoever asks after an event and is given less."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from flask import Flask
from flask_caching import Cache
from werkzeug.exceptions import ServiceUnavailable

from flask_noc_realtime import NocRealtime, coalesce
from flask_noc_realtime.flight import FlightOptions, Flights
from flask_noc_realtime.shelf import Shelf

CALLS = int(os.environ.get("NOC_REALTIME_STALE_CALLS", "0"))
"""How many are made of a test's own choice, instead of a few thousand."""

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

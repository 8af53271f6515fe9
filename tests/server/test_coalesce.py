"""`@coalesce` over several workers: one execution, takeovers, and nothing stale whatever breaks."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flask_noc_realtime.shelf import LEASE
from tests.conftest import GunicornFactory, RedisFactory
from tests.gunicorn_server import GunicornServer
from tests.processes import wait_until
from tests.redis_server import RedisServer
from tests.server.coalesce_app import Data

APP = "tests.server.coalesce_app:create()"
TIMEOUT = 30.0

CALLS = int(os.environ.get("NOC_REALTIME_STALE_CALLS", "0"))
CALLS_OF_ROUND = 800
"""In each of which a worker is killed, and Redis cut thrice, emptied and stopped."""


class Answer(NamedTuple):
    """A response; *status* is 0 when the connection broke."""

    status: int
    text: str
    cache: str

    @property
    def pid(self) -> int:
        """The worker that worked it out."""
        return int(self.text.split()[1])


class Site:
    """Running workers, their Redis, and their data."""

    def __init__(self, server: GunicornServer, redis: RedisServer, data: Data) -> None:
        self.server = server
        self.redis = redis
        self.data = data

    def ask(self, path: str, method: str = "GET") -> Answer:
        """Request *path* on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=TIMEOUT)
        try:
            connection.request(method, path, headers={"Connection": "close"})
            response = connection.getresponse()
            text = response.read().decode()
            cache = response.headers.get("Cache-Status", "").partition("; ")[2]
            return Answer(response.status, text, cache)
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, repr(error), "")
        finally:
            connection.close()

    def herd(self, path: str, count: int) -> Callable[[], list[Answer]]:
        """Send *count* requests at once; return what waits for their answers."""
        pool = ThreadPoolExecutor(count)
        futures = [pool.submit(self.ask, path) for _ in range(count)]

        def wait() -> list[Answer]:
            answers = [future.result(TIMEOUT) for future in futures]
            pool.shutdown()
            return answers

        return wait

    def leader(self, name: str, number: int = 0) -> int:
        """Wait for an execution and return the worker that does it."""
        runs = self.data.runs
        return wait_until(lambda: runs(name)[number:], TIMEOUT, "it is executed")[0]


Start = Callable[..., Site]


@pytest.fixture
def start(gunicorn: GunicornFactory, redis_server: RedisFactory, tmp_path: Path) -> Start:
    """Return a factory of sites."""

    def make(workers: int = 2, **options: Any) -> Site:
        redis = redis_server()
        directory = tmp_path / "data"
        directory.mkdir()
        environment = {"NOC_REALTIME_URL": redis.url, "SITE_DATA": str(directory)}
        server = gunicorn(APP, workers=workers, env=environment, **options)
        return Site(server, redis, Data(directory))

    return make


def trips(redis: RedisServer) -> int:
    """Return how many scripts clients have run so far."""
    stats = redis.client().info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


@pytest.mark.parametrize("worker_class", ["gevent", "gthread"])
def test_a_herd_over_all_workers_costs_one_execution(start: Start, worker_class: str) -> None:
    """And far fewer round trips to Redis than callers."""
    options = {"args": ["--threads", "60"]} if worker_class == "gthread" else {}
    site = start(4, worker_class=worker_class, **options)
    site.herd("/pid", 40)()
    before = trips(site.redis)
    answers = site.herd("/slow/cold?seconds=1", 100)()
    assert {answer.status for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert len(site.data.runs("cold")) == 1
    assert trips(site.redis) - before <= 100
    assert site.ask("/slow/cold?seconds=1").cache.startswith("hit; ttl=")


def test_a_result_without_events_is_fetched_once_by_each_worker(start: Start) -> None:
    """And then answered from its own memory."""
    site = start(2)
    answers = [site.ask("/timed/a") for _ in range(40)]
    assert len({answer.text for answer in answers}) == 1
    assert len(site.data.runs("a")) == 1
    before = trips(site.redis)
    assert all(site.ask("/timed/a").cache.startswith("hit") for _ in range(20))
    assert trips(site.redis) - before <= 2


def test_a_killed_leader_is_replaced_within_its_lease(start: Start) -> None:
    """By a follower in another worker, and by one only."""
    site = start(3)
    wait = site.herd("/slow/killed?seconds=1", 45)
    killed = site.leader("killed")
    wait_until(lambda: trips(site.redis) >= 5, TIMEOUT, "others wait")
    os.kill(killed, signal.SIGKILL)
    begun = time.monotonic()
    successor = site.leader("killed", 1)
    replaced = time.monotonic() - begun
    answers = wait()
    alive = [answer for answer in answers if answer.status]
    assert alive
    assert {answer.status for answer in alive} == {200}
    assert {answer.pid for answer in alive} == {successor}
    assert len(site.data.runs("killed")) == 2
    assert replaced < LEASE + 1.0


def test_a_leader_that_was_frozen_overwrites_nothing(start: Start) -> None:
    """Its worker wakes up when another has long done the work."""
    site = start(2)
    wait = site.herd("/slow/frozen?seconds=0.5", 30)
    frozen = site.leader("frozen")
    os.kill(frozen, signal.SIGSTOP)
    try:
        site.leader("frozen", 1)
    finally:
        os.kill(frozen, signal.SIGCONT)
    answers = wait()
    assert {answer.status for answer in answers} == {200}
    assert len(site.data.runs("frozen")) == 2
    after = {site.ask("/slow/frozen?seconds=0.5").pid for _ in range(10)}
    assert after == {site.data.runs("frozen")[1]}


def test_a_leader_that_lets_nobody_run_is_replaced_and_overwrites_nothing(start: Start) -> None:
    """It computes, and its worker cannot renew the lease meanwhile."""
    site = start(2)
    wait = site.herd(f"/spin/busy?seconds={LEASE + 10}", 20)
    site.leader("busy")
    begun = time.monotonic()
    successor = site.leader("busy", 1)
    assert time.monotonic() - begun < LEASE + 3.0
    answers = wait()
    assert {answer.status for answer in answers} == {200}
    assert len(site.data.runs("busy")) == 2
    after = {site.ask(f"/spin/busy?seconds={LEASE + 10}").pid for _ in range(10)}
    assert after == {successor}


def test_a_failing_view_costs_each_worker_one_execution_and_no_queue(start: Start) -> None:
    """Nobody waits for the failures of others one after the other."""
    site = start(2)
    begun = time.monotonic()
    answers = site.herd("/slow/failing?seconds=1&fail=1", 20)()
    taken = time.monotonic() - begun
    assert {answer.status for answer in answers} == {503}
    assert len(site.data.runs("failing")) <= 2
    assert taken < 3.0


class Readers:
    """Threads that read all along and note every result older than the news."""

    def __init__(self, site: Site, keys: int, count: int) -> None:
        self.stale: list[str] = []
        self.answered = 0
        self.failed = 0
        self.announced = 0
        self._site = site
        self._keys = keys
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._read, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def announce(self, version: int) -> None:
        """Expect from now on what was committed before an event that was published."""
        with self._lock:
            self.announced = max(self.announced, version)

    def stop(self) -> None:
        """End them."""
        self._over.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()

    def _read(self) -> None:
        while not self._over.is_set():
            announced = self.announced
            answer = self._site.ask(f"/version/{random.randrange(self._keys)}")
            with self._lock:
                if answer.status != 200:
                    self.failed += 1
                    continue
                self.answered += 1
                if int(answer.text) < announced:
                    self.stale.append(f"{answer.text} after {announced}: {answer.cache}")


def write(site: Site, readers: Readers, until: Callable[[], bool]) -> None:
    """Commit and emit until it is enough."""
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline, "the readers get no answers"
        answer = site.ask("/write", "POST")
        if answer.status == 200:
            written = json.loads(answer.text)
            if written["published"]:
                readers.announce(written["version"])


def test_nobody_is_given_less_than_was_emitted_before_they_asked(start: Start) -> None:
    """Whichever worker emits, and whichever answers."""
    site = start(3)
    readers = Readers(site, keys=3, count=8)
    write(site, readers, lambda: readers.answered >= 1500)
    readers.stop()
    assert not readers.stale
    assert not readers.failed
    assert readers.announced > 100
    assert sum(len(site.data.runs(str(key))) for key in range(3)) < readers.answered


@pytest.mark.timeout(120 + CALLS / 20)
def test_nobody_is_given_less_while_redis_is_cut_and_workers_are_killed(start: Start) -> None:
    """Slower, and never stale; NOC_REALTIME_STALE_CALLS says for how many calls."""
    site = start(3)
    readers = Readers(site, keys=3, count=8)
    rounds = max(1, CALLS // CALLS_OF_ROUND)
    begun = time.monotonic()
    for _ in range(rounds):
        befall(site, readers)
    readers.stop()
    print(
        f"\n3 workers: {readers.answered} calls in {time.monotonic() - begun:.0f} s, "
        f"{readers.failed} failed, {readers.announced} events, {rounds} workers killed, "
        f"Redis cut {3 * rounds} times, emptied and stopped {rounds} times: "
        f"{len(readers.stale)} stale"
    )
    assert not readers.stale
    assert readers.answered >= rounds * CALLS_OF_ROUND
    assert readers.failed < readers.answered / 10
    assert readers.announced > 50


def befall(site: Site, readers: Readers) -> None:
    """Let everything happen once, while so many are answered."""

    def go_on(share: float) -> None:
        wanted = readers.answered + round(share * CALLS_OF_ROUND)
        write(site, readers, lambda: readers.answered >= wanted)

    go_on(0.2)
    client = site.redis.client()
    for _ in range(3):
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        go_on(0.1)
    os.kill(random.choice(site.server.worker_pids()), signal.SIGKILL)
    go_on(0.1)
    client.flushall()
    go_on(0.1)
    site.redis.stop()
    go_on(0.1)
    site.redis.start()
    go_on(0.2)
    client.close()

"""Workers that write and relay are killed at random moments, and a stream sees each event once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from flask_noc_realtime.testing import process_of, stream_client
from tests.conftest import RedisFactory
from tests.processes import wait_until
from tests.server.outbox_worker import COUNTERS, Site

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = int(os.environ.get("NOC_REALTIME_TEST_KILLS", "8"))
WORKERS = 2
TIMEOUT = 60.0


class Workers:
    """Some workers of one site, of which there are always as many."""

    def __init__(self, *arguments: str) -> None:
        self._command = [sys.executable, "-m", "tests.server.outbox_worker", *arguments]
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start one more."""
        self._running.append(subprocess.Popen(self._command, cwd=ROOT))

    def kill(self, chosen: random.Random) -> None:
        """Kill one, which was not to end before."""
        worker = self._running.pop(chosen.randrange(len(self._running)))
        assert worker.poll() is None, "a worker ended by itself"
        worker.kill()
        worker.wait(10.0)

    def close(self) -> None:
        """Kill all."""
        while self._running:
            self.kill(random.Random(0))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/app.db?timeout=30"
    url: str = request.getfixturevalue("postgres_server").url
    return url


@pytest.fixture
def site(database: str, redis_server: RedisFactory) -> Iterator[Site]:
    """Return an app with the database and Redis, whose counters are at 0."""
    site = Site(database, redis_server().url)
    site.app.testing = True
    site.metadata.drop_all(site.engine)
    site.metadata.create_all(site.engine)
    with site.engine.begin() as connection:
        connection.execute(insert(site.counter), [{"id": id, "n": 0} for id in range(COUNTERS)])
    yield site
    process_of(site.app).close()
    site.metadata.drop_all(site.engine)
    site.engine.dispose()


@pytest.fixture
def workers(database: str, site: Site) -> Iterator[Workers]:
    """Return workers that are all gone after the test."""
    workers = Workers(database, site.app.config["NOC_REALTIME_URL"])
    yield workers
    workers.close()


@pytest.mark.timeout(120 + 20 * KILLS)
def test_killed_workers_lose_nothing_and_show_nothing_twice(site: Site, workers: Workers) -> None:
    """Each count that is committed is seen, once and in order; none that was rolled back is."""
    seed = time.time_ns()
    print(f"seed {seed}")
    chosen = random.Random(seed)
    with stream_client(site.app, timeout=TIMEOUT) as stream:
        for _ in range(WORKERS):
            workers.start()
        for _ in range(KILLS):
            wait_until(stream.read, TIMEOUT, "events go on")
            # Not to wait for anything: to kill at any moment.
            time.sleep(chosen.uniform(0.0, 0.3))
            workers.kill(chosen)
            workers.start()
        wait_until(stream.read, TIMEOUT, "events go on")
        workers.close()
        with site.app.app_context():
            site.outbox.drain(TIMEOUT)
            process_of(site.app).emitter.emit("log.added", "last")
        counted = committed(site)
        while not stream.received or stream.received[-1].data != "last":
            next(stream)
    assert {event.type for event in stream.received} == {"log.added"}, "the stream was reset"
    events = [event.data for event in stream.received[:-1]]
    for counter, last in counted.items():
        numbers = [number for id, number in events if id == counter]
        assert numbers == list(range(1, last + 1))
    print(f"{len(events)} events")


def committed(site: Site) -> dict[int, int]:
    """Return what the counters show."""
    with site.engine.connect() as connection:
        return {row.id: row.n for row in connection.execute(select(site.counter))}

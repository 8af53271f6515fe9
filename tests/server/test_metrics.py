"""What several workers count together, against what their clients received."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flask_noc_realtime import Emitter
from tests.conftest import GunicornFactory, RedisFactory, require
from tests.gunicorn_server import GunicornServer
from tests.processes import wait_until
from tests.redis_server import RedisServer
from tests.sse_client import ServerEvent, SSEClient

APP = "tests.server.metrics_app:create()"
CHILD_EXIT = "\nfrom flask_noc_realtime.gunicorn import child_exit\n"
SENT = "sse_events_sent_total"
ENDED = ("sse_connection_duration_count", "")
UNKNOWN = "link.flapped"
CONTROL = {"stream.open", "stream.reset", "stream.close", "heartbeat"}
TIMEOUT = 30.0

Start = Callable[..., GunicornServer]


@pytest.fixture
def start(gunicorn: GunicornFactory, redis_server: RedisFactory, tmp_path: Path) -> Start:
    """Return what starts workers that count together."""
    require("prometheus_flask_exporter")

    def start(redis: RedisServer, workers: int, **settings: object) -> GunicornServer:
        directory = tmp_path / "counts"
        directory.mkdir()
        env = {f"NOC_REALTIME_{name}": str(value) for name, value in settings.items()}
        env |= {"NOC_REALTIME_URL": redis.url, "PROMETHEUS_MULTIPROC_DIR": str(directory)}
        return gunicorn(APP, workers=workers, env=env, config=CHILD_EXIT)

    return start


def samples(server: GunicornServer) -> dict[tuple[str, str], float]:
    """Return what the metrics page shows, by name and the value of the only label."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
        return {
            (sample.name, "".join(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
            if sample.name.startswith(("sse_", "dedup_"))
        }


def sent(server: GunicornServer) -> Counter[str]:
    """Return how many events were sent, by type."""
    shown = samples(server)
    return Counter({label: int(n) for (name, label), n in shown.items() if name == SENT and n})


class Browser:
    """One user's stream and all that came of it, also before it came back."""

    def __init__(self, server: GunicornServer, user: str, **options: Any) -> None:
        self.user = user
        self.events: list[ServerEvent] = []
        self._server = server
        self._options = options
        self.client = self._open()

    @property
    def worker(self) -> int:
        """The process that serves it."""
        return int(self.client.headers["x-worker"])

    def _open(self, **headers: str) -> SSEClient:
        headers["X-User"] = self.user
        path = "/api/v1/events/stream"
        return SSEClient(self._server.address, path, headers=headers, **self._options)

    def read_until(self, mark: str) -> None:
        """Read up to the event that holds *mark*."""
        self.events += self.client.events_until(lambda event: mark in event.data, TIMEOUT)

    def read_to_the_end(self) -> None:
        """Read until the server closes."""
        self.events += self.client.until_end(TIMEOUT)

    def come_back(self, position: str) -> None:
        """Resume at *position*."""
        self.client.close()
        self.client = self._open(**{"Last-Event-ID": position})

    def count(self, type: str) -> int:
        """Return how many events of a type came."""
        return sum(event.type == type for event in self.events)


class Crowd:
    """Browsers that read at the same time, and who emits to them."""

    def __init__(self, server: GunicornServer, redis: RedisServer, history_events: int) -> None:
        self.browsers: list[Browser] = []
        self.emitter = Emitter(redis.url, strict_types=False, history_events=history_events)
        self._server = server
        self._pool = ThreadPoolExecutor(32)

    def join(self, user: str, **options: Any) -> Browser:
        """Open a stream."""
        browser = Browser(self._server, user, **options)
        self.browsers.append(browser)
        return browser

    def read_until(self, mark: str, *browsers: Browser) -> None:
        """Emit *mark* until all of them have it: who falls off the log never sees what was."""
        reads = [self._pool.submit(browser.read_until, mark) for browser in browsers]

        def all_have_it() -> bool:
            self.emitter.emit("incident.updated", mark)
            return all(read.done() for read in reads)

        wait_until(all_have_it, TIMEOUT, f"everybody has {mark!r}")
        for read in reads:
            read.result()

    def end(self, *browsers: Browser) -> None:
        """Have the server end their streams, and read what is left."""
        for browser in browsers:
            post(self._server, "/disconnect", {"user_id": browser.user, "then": []})
        for _ in self._pool.map(Browser.read_to_the_end, browsers):
            pass

    def close(self) -> None:
        """Leave."""
        self.emitter.close()
        self._pool.shutdown()
        for browser in self.browsers:
            browser.client.close()

    def received(self) -> Counter[str]:
        """Return how many events came, as the metrics name their types."""
        types = Counter(event.type for browser in self.browsers for event in browser.events)
        named = {"other" if type == UNKNOWN else type: n for type, n in types.items()}
        return Counter({type: n for type, n in named.items() if type not in CONTROL})


def post(server: GunicornServer, path: str, body: Any) -> None:
    """Post JSON."""
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture
def crowd() -> Iterator[Callable[..., Crowd]]:
    """Return what makes a crowd, which leaves with the test."""
    with ExitStack() as stack:

        def make(*args: Any) -> Crowd:
            made = Crowd(*args)
            stack.callback(made.close)
            return made

        yield make


@pytest.mark.parametrize("transport", ["detached", "portable"])
def test_the_sum_over_four_workers_is_what_clients_received(
    transport: str, start: Start, redis_server: RedisFactory, crowd: Callable[..., Crowd]
) -> None:
    """Whether it was written in parts, replayed, for one user, or after a reset."""
    redis = redis_server()
    server = start(redis, 4, TRANSPORT=transport, HISTORY_EVENTS=60, MAX_LAG=60)
    users = crowd(server, redis, 60)
    quick = [users.join(f"{n}") for n in range(8)]
    # Each takes much less at once than it is sent.
    slow = [users.join(f"slow-{n}", receive_buffer=4096) for n in range(6)]
    for n in range(15):
        users.emitter.emit("incident.created", [n])
        users.emitter.emit(UNKNOWN, [n])
        users.emitter.emit("log.added", [n], user_id=f"{n % 8}")
    users.read_until("first", *quick)
    users.end(*quick[:4])
    for n in range(10):
        users.emitter.emit("server.status.changed", ["x" * 20_000, n])
    users.read_until("between", *quick[4:])
    for browser in quick[:2]:
        browser.come_back(browser.events[-1].id)
    for browser in quick[2:4]:
        browser.come_back("1-1")
    users.read_until("second", *quick)
    # More than the sockets hold, and then than the history does.
    for n in range(100):
        users.emitter.emit("server.status.changed", ["x" * 20_000, n])
    users.end(*slow[:3])
    users.read_until("third", *quick, *slow[3:])
    users.end(*quick, *slow[3:])

    expected = users.received()
    assert expected["other"] == 15 * 14 and expected["log.added"] == 15
    streams = len(users.browsers) + 4
    wait_until(lambda: sent(server) == expected, 10.0, "everything is counted")
    wait_until(lambda: samples(server)[ENDED] == streams, 10.0, "every end is counted")
    shown = samples(server)
    resets = sum(browser.count("stream.reset") for browser in users.browsers)
    assert sum(n for (name, _), n in shown.items() if name == "sse_resets_total") == resets
    assert shown["sse_resets_total", "unknown-position"] == 2
    assert shown["sse_connections_total", ""] == streams
    assert shown["sse_reconnections_total", ""] == 4
    assert shown["sse_replayed_events_total", ""] > 0
    assert shown["sse_delivery_latency_count", ""] > 0
    if transport == "detached":
        assert shown["sse_resets_total", "overrun"] > 0


def test_the_gauges_of_a_killed_worker_disappear(
    start: Start, redis_server: RedisFactory, crowd: Callable[..., Crowd]
) -> None:
    """Nobody else takes its streams off the sum; what it counted stays."""
    redis = redis_server()
    server = start(redis, 2)
    users = crowd(server, redis, 60)
    while len({browser.worker for browser in users.browsers}) < 2:
        assert len(users.browsers) < 200
        users.join(f"{len(users.browsers)}")
    count = len(users.browsers)
    wait_until(lambda: active(server) == count, 10.0, "all streams are counted")
    users.read_until("mark", *users.browsers)
    victim = users.browsers[0].worker
    os.kill(victim, signal.SIGKILL)
    left = sum(browser.worker != victim for browser in users.browsers)
    wait_until(lambda: active(server) == left, 10.0, "its streams are not counted")
    # A worker that is told to leave before it listens to signals never does.
    wait_until(lambda: len(server.worker_pids()) == 2, 20.0, "another worker serves")
    shown = samples(server)
    assert shown["sse_connections_total", ""] == count
    assert shown["sse_broker_up", ""] == 1
    assert sum(sent(server).values()) >= count


def active(server: GunicornServer) -> float:
    """Return how many streams the metrics page says there are."""
    return samples(server)["sse_connections_active", ""]

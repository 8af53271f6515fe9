"""Redis dies, comes back, comes back empty, or never comes: what streams and emitters see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.conftest import GunicornFactory, RedisFactory
from tests.gunicorn_server import ROOT, GunicornServer
from tests.processes import free_port, wait_until
from tests.redis_server import RedisServer
from tests.sse_client import SSEClient

APP = "tests.server.apps:create()"
STREAMS = 20
READS = ("xrange", "xrevrange", "xread")

# Prints every position Redis acknowledged, at once, until its input ends.
EMITTER = """
import sys, threading, time
from tests.server.apps import create
from flask_noc_realtime.errors import BrokerUnavailable

app = create(NOC_REALTIME_EMIT_ERRORS="raise")
emitter = app.extensions["noc_realtime"].process().emitter
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
n = 0
while not ended.wait(0.002):
    n += 1
    try:
        print(n, emitter.emit("log.added", {"n": n}), flush=True)
    except BrokerUnavailable:
        print(n, "refused", flush=True)
"""


def get(server: GunicornServer, path: str) -> Any:
    """Return the decoded JSON of a response."""
    with urllib.request.urlopen(server.url + path, timeout=10) as response:
        return json.load(response)


def environment(redis: RedisServer | str) -> dict[str, str]:
    """Return what makes an app use *redis* and serve detached streams."""
    url = redis if isinstance(redis, str) else redis.url
    return {"NOC_REALTIME_URL": url, "NOC_REALTIME_TRANSPORT": "detached"}


@contextmanager
def open_streams(server: GunicornServer, count: int = STREAMS) -> Iterator[list[SSEClient]]:
    """Open streams that have all said `stream.open`."""
    with ExitStack() as stack:
        clients = [stack.enter_context(SSEClient(server.address)) for _ in range(count)]
        for client in clients:
            assert client.next_event().type == "stream.open"
        yield clients


class Load:
    """Another process that emits, and what Redis acknowledged to it."""

    def __init__(self, redis: RedisServer) -> None:
        self.acknowledged: list[str] = []
        self.refused = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", EMITTER],
            cwd=ROOT,
            env={**os.environ, "NOC_REALTIME_URL": redis.url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            position = line.split()[1]
            if position == "refused":
                self.refused += 1
            else:
                self.acknowledged.append(position)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._reader.join(20)
        self._process.wait(20)
        self._process.stdout.close()

    def more(self, count: int) -> None:
        """Wait until *count* more events were acknowledged."""
        goal = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= goal, 15, f"{count} more acknowledged")


def collect(clients: list[SSEClient], last: str, timeout: float = 15.0) -> list[list[str]]:
    """Return the positions of the events each stream got up to *last*, and that no reset came."""
    deadline = time.monotonic() + timeout
    found = []
    for client in clients:
        events = client.events_until(
            lambda e: e.type == "log.added" and e.id == last, deadline - time.monotonic()
        )
        assert {event.type for event in events} <= {"log.added", "heartbeat"}
        found.append([event.id for event in events if event.type == "log.added"])
    return found


def assert_exactly_once(found: list[list[str]], acknowledged: list[str]) -> None:
    """Every acknowledged event is there, nothing twice, all in order, the same on all."""
    for seen in found:
        assert len(seen) == len(set(seen))
        assert seen == sorted(seen, key=lambda p: tuple(map(int, p.split("-"))))
        assert set(acknowledged) <= set(seen)
        assert seen == found[0]


def test_a_redis_that_crashes_under_load_loses_no_acknowledged_event(
    gunicorn: GunicornFactory, redis_server: RedisFactory
) -> None:
    """With an AOF synced on every write, streams go on where they were."""
    redis = redis_server(appendonly=True)
    server = gunicorn(APP, env=environment(redis))
    with open_streams(server) as clients:
        with Load(redis) as load:
            load.more(200)
            redis.kill9()
            wait_until(lambda: load.refused, 10, "the emitter notices")
            redis.restart()
            load.more(200)
        found = collect(clients, load.acknowledged[-1])
    assert_exactly_once(found, load.acknowledged)


def test_lost_subscriptions_lose_no_event(
    gunicorn: GunicornFactory, redis_server: RedisFactory
) -> None:
    """The subscription dies alone while publishing goes on: the history fills the hole."""
    redis = redis_server()
    server = gunicorn(APP, env=environment(redis))
    with open_streams(server) as clients, redis.client() as admin:
        with Load(redis) as load:
            for _ in range(3):
                load.more(50)
                assert admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
            load.more(50)
        found = collect(clients, load.acknowledged[-1])
    assert_exactly_once(found, load.acknowledged)
    assert set(found[0]) == set(load.acknowledged)


def test_a_redis_that_comes_back_empty_resets_every_stream(
    gunicorn: GunicornFactory, redis_server: RedisFactory
) -> None:
    """What was lost is not known, so clients must fetch anew; then the stream goes on."""
    redis = redis_server()
    server = gunicorn(APP, env=environment(redis))
    with open_streams(server) as clients:
        get(server, "/emit?count=3")
        redis.kill9()
        redis.restart(empty=True)
        for client in clients:
            found = client.events_until(lambda e: e.type == "stream.reset", 10)
            assert [e.json["data"]["n"] for e in found if e.type == "log.added"] == [0, 1, 2]
        assert get(server, "/emit?first=3") != [None]
        for client in clients:
            (event,) = client.events_until(lambda e: e.type == "log.added")
            assert event.json["data"] == {"n": 3}


def test_an_event_reaches_the_streams_of_every_worker(
    gunicorn: GunicornFactory, redis_server: RedisFactory
) -> None:
    """It does not matter which worker the emitting request hits; each is subscribed once."""
    redis = redis_server()
    server = gunicorn(APP, workers=2, env=environment(redis))
    assert len(server.worker_pids()) == 2
    with open_streams(server, 50) as clients:
        counts: dict[int, int] = {}

        def know_both() -> bool:
            shown = get(server, "/streams")
            counts[shown["pid"]] = shown["detached"]
            return len(counts) == 2

        wait_until(know_both, 10, "both workers answer")
        assert sum(counts.values()) == 50
        assert all(counts.values()), counts
        assert redis.client().pubsub_numsub("{noc}:events") == [(b"{noc}:events", 2)]
        emitters: set[int] = set()
        positions = []

        def both_emitted() -> bool:
            (position,) = get(server, "/emit")
            positions.append(position)
            emitters.add(get(server, "/streams")["pid"])
            return len(emitters) == 2 and len(positions) >= 20

        wait_until(both_emitted, 20, "both workers emitted")
        found = collect(clients, positions[-1])
    assert found == [positions] * 50


@pytest.mark.parametrize("trouble", ["unreachable", "wrong password"])
def test_without_redis_the_app_serves_and_streams_are_reset_when_it_comes(
    trouble: str, gunicorn: GunicornFactory, redis_server: RedisFactory
) -> None:
    """One clear line for each worker, never the secret, and no restart once it is repaired."""
    port = free_port()
    url = f"redis://:s3cret@127.0.0.1:{port}/0"
    if trouble == "wrong password":
        redis = redis_server(port=port, args=["--requirepass", "another"])
    server = gunicorn(APP, workers=2, env=environment(url))
    with open_streams(server, 6) as clients:
        assert urllib.request.urlopen(server.url + "/pid", timeout=5).status == 200

        def complaints() -> list[str]:
            lines = server.log().splitlines()
            return [line for line in lines if f"Redis at redis://127.0.0.1:{port}/0" in line]

        wait_until(lambda: len(complaints()) == 2, 10, "both workers complain")
        assert all(
            "check that it runs and that NOC_REALTIME_URL is right" in c for c in complaints()
        )
        if trouble == "wrong password":
            with redis.client(password="another") as admin:
                admin.config_set("requirepass", "s3cret")
        else:
            redis_server(port=port, args=["--requirepass", "s3cret"])
        for client in clients:
            reset = client.events_until(lambda e: e.type == "stream.reset", 10)[-1]
            assert reset.id
        (position,) = get(server, "/emit")
        assert position is not None
        for client in clients:
            client.events_until(lambda e, p=position: e.id == p and e.type == "log.added")
        assert len([c for c in complaints() if "answers again" not in c]) == 2
    assert "s3cret" not in server.log()
    assert "Traceback" not in server.log()


def test_a_storm_of_reconnects_reads_redis_no_more_than_one_does(
    gunicorn: GunicornFactory, redis_server: RedisFactory
) -> None:
    """300 streams that missed 100 events each are served from memory, exactly once, in order."""
    redis = redis_server()
    # A heartbeat would put a stream right that was forgotten.
    env = {**environment(redis), "NOC_REALTIME_HEARTBEAT": "60"}
    server = gunicorn(APP, env=env)
    with open_streams(server, 1) as clients, redis.client() as admin:
        positions = get(server, "/emit?count=150")
        clients[0].events_until(lambda e: e.id == positions[-1])
        missed = {"last_event_id": positions[49]}
        admin.config_resetstat()
        with ExitStack() as stack, ThreadPoolExecutor(16) as pool:
            storm = list(pool.map(lambda _: SSEClient(server.address, **missed), range(300)))
            for client in storm:
                stack.enter_context(client)
            for client in storm:
                assert client.next_event().type == "stream.open"
                found = client.events_until(lambda e: e.id == positions[-1])
                assert [event.id for event in found] == positions[50:]
        stats = admin.info("commandstats")
        # The subscription's check of the log every fifteen seconds may fall in between.
        assert sum(stats.get(f"cmdstat_{c}", {"calls": 0})["calls"] for c in READS) <= 2

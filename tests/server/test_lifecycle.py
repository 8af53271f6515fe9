"""The life of processes: how workers end, fork and share, and what their streams see of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest
from flask import Flask

from flask_noc_realtime import ConfigError, NocRealtime
from tests.conftest import GunicornFactory, RedisFactory
from tests.gunicorn_server import ROOT, GunicornServer
from tests.processes import wait_until
from tests.sse_client import EventParser, ServerEvent, SSEClient

APP = "tests.server.apps:create()"
STREAMS = 6
PROMPT = 4.0

KINDS = {
    "detached": {"worker_class": "gevent", "env": {"NOC_REALTIME_TRANSPORT": "detached"}},
    "portable": {"worker_class": "gevent", "env": {"NOC_REALTIME_TRANSPORT": "portable"}},
    "gthread": {"worker_class": "gthread", "args": ["--threads", str(STREAMS + 4)]},
}


def get(server: GunicornServer, path: str) -> Any:
    """Return the decoded JSON of a response."""
    with urllib.request.urlopen(server.url + path, timeout=10) as response:
        return json.load(response)


def held(server: GunicornServer) -> tuple[int, int]:
    """Return how many streams the only worker has, detached and portable."""
    shown = get(server, "/streams")
    return shown["detached"], shown["portable"]


@contextmanager
def open_streams(server: GunicornServer, count: int = STREAMS) -> Iterator[list[SSEClient]]:
    """Open streams that have all said `stream.open`."""
    with ExitStack() as stack:
        clients = [stack.enter_context(SSEClient(server.address)) for _ in range(count)]
        for client in clients:
            assert client.next_event().type == "stream.open"
        yield clients


def assert_goodbye(clients: list[SSEClient], timeout: float, reason: str = "shutdown") -> None:
    """Every stream was told to come back, each at another time, and has ended cleanly."""
    retries = []
    deadline = time.monotonic() + timeout
    for client in clients:
        events = client.until_end(max(0.01, deadline - time.monotonic()))
        assert [event.type for event in events if event.type != "heartbeat"] == ["stream.close"]
        assert events[-1].json["reason"] == reason
        assert client.retry == events[-1].json["retry"]
        assert not client.truncated
        assert client.raw.endswith(b"\r\n0\r\n\r\n")
        retries.append(client.retry)
    assert len(set(retries)) > 1, retries


def assert_quiet(server: GunicornServer) -> None:
    """Nothing went wrong on the way out."""
    log = server.log()
    for trouble in ("Traceback", "Exception ignored", "SIGKILL", "Worker graceful timeout"):
        assert trouble not in log, log


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT])
def test_a_stopped_server_says_goodbye_on_every_stream(
    number: signal.Signals, kind: str, gunicorn: GunicornFactory
) -> None:
    """Streams never end by themselves: a worker that waited for them would have to be killed."""
    server = gunicorn(APP, **KINDS[kind])
    with open_streams(server) as clients:
        expected = (STREAMS, 0) if kind == "detached" else (0, STREAMS)
        assert held(server) == expected
        began = time.monotonic()
        assert server.stop(number, PROMPT) == 0
        assert time.monotonic() - began < PROMPT
        assert_goodbye(clients, 1.0)
    assert_quiet(server)


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_at_max_requests_says_goodbye_and_is_replaced(
    kind: str, gunicorn: GunicornFactory
) -> None:
    """Recycling must not wait for streams, nor cut them."""
    options = dict(KINDS[kind])
    options["args"] = [*options.get("args", []), "--max-requests", str(STREAMS + 1)]
    server = gunicorn(APP, **options)
    (old,) = server.worker_pids()
    with open_streams(server) as clients:
        assert urllib.request.urlopen(server.url + "/pid", timeout=5).read() == str(old).encode()
        assert_goodbye(clients, PROMPT)
        wait_until(lambda: server.worker_pids() not in ([], [old]), PROMPT, "a new worker serves")
    with open_streams(server, 1):
        pass
    assert_quiet(server)


def test_a_worker_that_was_told_to_leave_says_so_to_balancers(gunicorn: GunicornFactory) -> None:
    """On a connection they have; it takes no new one soon after."""
    server = gunicorn(APP, args=["--keep-alive", "30"])
    (worker,) = server.worker_pids()
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)

    def health() -> tuple[int, str]:
        connection.request("GET", "/api/v1/events/health")
        with connection.getresponse() as answer:
            return answer.status, json.load(answer)["status"]

    assert health() == (200, "ok")
    os.kill(worker, signal.SIGTERM)
    wait_until(lambda: health() == (503, "draining"), PROMPT, "it says so")
    connection.close()


def test_an_emit_before_the_fork_breaks_nothing_in_the_workers(
    gunicorn: GunicornFactory, redis_server: RedisFactory
) -> None:
    """With --preload the master may emit at import; the workers connect anew."""
    redis = redis_server()
    env = {"NOC_REALTIME_URL": redis.url}
    server = gunicorn("tests.server.apps:preloaded()", workers=2, args=["--preload"], env=env)
    with open_streams(server) as clients:
        get(server, "/emit?count=3")
        for client in clients:
            assert [client.next_event().json["data"]["n"] for _ in range(3)] == [0, 1, 2]
        with redis.client() as connection:
            first = connection.xrange("{noc}:log", count=2)[1]
        assert b'{"n":-1}' in first[1][b"r"]
        assert server.stop() == 0
        assert_goodbye(clients, 1.0)
    assert_quiet(server)


FORK = """
import os, sys, threading
from tests.server.apps import create

app = create()
realtime = app.extensions["noc_realtime"]
process = realtime.process()
position = app.test_client().get("/snapshot").headers["X-Noc-Position"]
emit = lambda n: app.test_client().get(f"/emit?first={n}").json[0]
before = emit(1)


def follow(position):
    client = app.test_client()
    response = client.get("/api/v1/events/stream?last_event_id=" + position)
    bodies = response.iter_encoded()
    next(bodies)
    return bodies


parent = follow(before)
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    child = realtime.process()
    assert child is not process and child.hub is not process.hub
    bodies = follow(before)
    emitted = emit(2)
    while emitted.encode() not in (body := next(bodies)):
        pass
    os.write(write, b"ok")
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert os.read(read, 2) == b"ok"
assert realtime.process() is process
emitted = emit(3)
seen = b""
while emitted.encode() not in seen:
    seen += next(parent)
assert seen.count(b"id: " + emitted.encode()) == 1
print("events", seen.count(b"event: log.added"))
"""


@pytest.mark.parametrize(("url", "events"), [("memory", 1), ("redis", 2)])
def test_a_forked_child_gets_a_hub_of_its_own(
    url: str, events: int, redis_server: RedisFactory
) -> None:
    """Threads and connections do not survive a fork, and must not be shared over one."""
    env = {**os.environ, "NOC_REALTIME_URL": "memory://"}
    if url == "redis":
        env["NOC_REALTIME_URL"] = redis_server().url
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore:This process", "-c", FORK],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"events {events}\n"


def test_a_killed_worker_is_replaced_and_its_streams_resume(
    gunicorn: GunicornFactory, redis_server: RedisFactory
) -> None:
    """Kill -9 says no goodbye, but the positions its clients hold are good elsewhere."""
    server = gunicorn(APP, env={"NOC_REALTIME_URL": redis_server().url})
    (old,) = server.worker_pids()
    with open_streams(server) as clients:
        get(server, "/emit?count=2")
        first = clients[0].next_event()
        assert first.json["data"]["n"] == 0
        os.kill(old, signal.SIGKILL)
        for client in clients:
            client.until_end(PROMPT)
            assert client.truncated
    wait_until(lambda: server.worker_pids() not in ([], [old]), PROMPT, "a new worker serves")
    get(server, "/emit?first=2")
    with SSEClient(server.address, last_event_id=first.id) as client:
        found = client.events_until(lambda event: event.id and event.json.get("data") == {"n": 2})
    assert [event.type for event in found] == ["stream.open", "log.added", "log.added"]
    assert found[1].json["data"] == {"n": 1}


def test_several_workers_without_redis_are_warned_about(gunicorn: GunicornFactory) -> None:
    """Half the events would be missing, in silence; once for each worker is enough."""
    server = gunicorn(APP, workers=2)
    warning = "NOC_REALTIME_URL is memory:// and the server runs several workers"
    with ExitStack() as stack:
        serving: set[str] = set()

        def both_serve() -> bool:
            client = stack.enter_context(SSEClient(server.address))
            assert client.next_event().type == "stream.open"
            # A memory position begins with a token of its process.
            serving.add(client.last_event_id.partition("-")[0])
            return len(serving) == 2

        wait_until(both_serve, 10, "both workers serve a stream")
        for _ in range(4):
            client = stack.enter_context(SSEClient(server.address))
            assert client.next_event().type == "stream.open"
    assert server.stop() == 0
    assert server.log().count(warning) == 2


def test_one_worker_without_redis_is_not_warned_about(gunicorn: GunicornFactory) -> None:
    """A warning that is always there is not read."""
    server = gunicorn(APP)
    with open_streams(server):
        pass
    assert server.stop() == 0
    assert "NOC_REALTIME_URL" not in server.log()


def test_streams_end_at_their_lifetime(gunicorn: GunicornFactory) -> None:
    """A balancer can spread the load anew only when clients reconnect."""
    for kind in KINDS.values():
        env = {**kind.get("env", {}), "NOC_REALTIME_STREAM_LIFETIME": "1"}
        server = gunicorn(APP, **{**kind, "env": env})
        with open_streams(server) as clients:
            assert_goodbye(clients, 2.5, "lifetime")
            assert held(server) == (0, 0)
        server.close()
        assert_quiet(server)


def test_apps_of_one_process_share_nothing(redis_server: RedisFactory) -> None:
    """Each app has its prefix, its namespace and its log."""
    realtime = NocRealtime()
    url = redis_server().url
    north, south = Flask("north"), Flask("south")
    for app in (north, south):
        app.config.update(
            NOC_REALTIME_URL=url,
            NOC_REALTIME_PREFIX=f"/{app.name}/events",
            NOC_REALTIME_NAMESPACE=app.name,
            NOC_REALTIME_ALLOW_ANONYMOUS=True,
        )
        realtime.init_app(app)
    try:
        assert north.test_client().get("/south/events/stream").status_code == 404
        streams = {}
        for app in (north, south):
            response = app.test_client().get(f"/{app.name}/events/stream")
            streams[app.name] = parse(response)
            assert next(streams[app.name]).type == "stream.open"
        for app in (north, south, north):
            with app.app_context():
                realtime.emit("log.added", app.name)
        assert [next(streams["north"]).json["data"] for _ in range(2)] == ["north", "north"]
        assert next(streams["south"]).json["data"] == "south"
    finally:
        for app in (north, south):
            app.extensions["noc_realtime"].process().close()
    assert [event.type for event in streams["south"]] == ["stream.close"]


def parse(response: Any) -> Iterator[ServerEvent]:
    """Yield the events of a response of Flask's test client as they come."""
    parser = EventParser()
    for body in response.iter_encoded():
        yield from parser.feed(body)


def test_an_app_is_initialised_once() -> None:
    """A second blueprint and a second set of hooks would be hard to find later."""
    app = Flask("twice")
    realtime = NocRealtime(app)
    for again in (realtime.init_app, NocRealtime, NocRealtime().init_app):
        with pytest.raises(ConfigError, match=r"already initialised for 'twice'.*only once"):
            again(app)


def test_emit_finds_the_only_app_and_asks_when_there_are_two() -> None:
    """A script need not push a context, but must not guess either."""
    realtime = NocRealtime()
    with pytest.raises(ConfigError, match="0 apps"):
        realtime.emit("log.added", 1)
    first, second = Flask("first"), Flask("second")
    realtime.init_app(first)
    assert realtime.emit("log.added", 1) is not None
    realtime.init_app(second)
    with pytest.raises(ConfigError, match=r"2 apps.*`with app\.app_context\(\):`"):
        realtime.emit("log.added", 1)
    with second.app_context():
        assert realtime.emit("log.added", 1) is not None
    stranger = Flask("stranger")
    with stranger.app_context(), pytest.raises(ConfigError, match=r"init_app\(app\)"):
        realtime.emit("log.added", 1)
    for app in (first, second):
        app.extensions["noc_realtime"].process().close()


QUIET_INIT = """
import os, sys, threading
from flask import Flask
from flask_noc_realtime import NocRealtime

opened = []
sys.addaudithook(lambda name, args: opened.append(name) if name.startswith("socket.") else None)
before, descriptors = threading.enumerate(), os.listdir("/proc/self/fd")
app = Flask("quiet")
app.config["NOC_REALTIME_URL"] = sys.argv[1]
realtime = NocRealtime(app)
realtime.register_type("link.flapped")
realtime.types()
assert threading.enumerate() == before, threading.enumerate()
assert os.listdir("/proc/self/fd") == descriptors
assert opened == [], opened
assert "gevent" not in sys.modules
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("url", ["memory://", "redis://127.0.0.1:1/0", "redis+cluster://[::1]:1"])
def test_init_app_starts_no_thread_and_opens_no_socket(url: str) -> None:
    """What the master opens before the fork, all workers would share; the CLI needs none of it."""
    command = [sys.executable, "-c", QUIET_INIT, url]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stderr) == (0, "")

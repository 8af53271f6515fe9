"""An Emitter reaches an app's streams from any process, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_noc_realtime import (
    BrokerUnavailable,
    ConfigError,
    Emitter,
    EventError,
    UnknownTypeError,
)
from tests.conftest import RedisFactory
from tests.processes import free_port, wait_until
from tests.redis_server import RedisServer

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
"""A pool that forks does so with threads around."""

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def server(redis_server: RedisFactory) -> RedisServer:
    """Return a Redis that keeps its data over a restart."""
    return redis_server(appendonly=True)


@pytest.fixture
def emitter(server: RedisServer) -> Iterator[Emitter]:
    """Return an emitter to that Redis."""
    with Emitter(server.url) as made:
        yield made


def events(server: RedisServer, namespace: str = "noc") -> list[dict[str, Any]]:
    """Return the envelopes in the log, oldest first."""
    rows = server.client().xrange(f"{{{namespace}}}:log")
    return [json.loads(row[b"r"].partition(b"\n")[2]) for _, row in rows if row[b"r"]]


def data(server: RedisServer) -> list[Any]:
    """Return the data of the events in the log."""
    return [event["data"] for event in events(server)]


def connections(server: RedisServer) -> int:
    """Return how many others are connected besides the one that asks."""
    client = server.client(client_name="asking")
    return len([each for each in client.client_list() if each["name"] != "asking"])


def in_child(work: Callable[[], object]) -> None:
    """Run *work* in a fork, which must end without an error, in time, and without `atexit`."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    ended: list[int] = []

    def has_ended() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        ended.extend([status] if found else [])
        return bool(found)

    wait_until(has_ended, 20, "the child ended")
    assert ended == [0]


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a script of its own, without any Flask app."""
    command = [sys.executable, "-W", "error", "-c", code, *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_an_event_from_a_script_is_in_the_app_s_log(server: RedisServer, emitter: Emitter) -> None:
    """With a position, the rule and the envelope of `realtime.emit`."""
    position = emitter.emit("incident.created", {"id": 7}, permissions=["b", "a"], user_id="9")
    [(_, opening), (found, row)] = server.client().xrange("{noc}:log")
    assert (opening[b"r"], found.decode()) == (b"", position)
    assert row[b"r"].partition(b"\n")[0] == b'["incident.created",["a","b"],"9"]'
    assert events(server)[0]["data"] == {"id": 7}


def test_nothing_is_connected_until_the_first_emit(server: RedisServer) -> None:
    """Modules of Celery tasks are loaded where nobody emits."""
    with Emitter(server.url) as emitter:
        assert connections(server) == 0
        assert emitter.flush(0.0)
        assert connections(server) == 0
        emitter.emit("log.added", 1)
        assert connections(server) == 1
    wait_until(lambda: connections(server) == 0, 10, "closed")


def test_an_emit_after_close_connects_anew(server: RedisServer) -> None:
    """A library that logs at the very end is no reason for an error."""
    emitter = Emitter(server.url)
    emitter.emit("log.added", 1)
    emitter.close()
    emitter.close()
    emitter.emit("log.added", 2)
    emitter.close()
    assert data(server) == [1, 2]


def test_memory_is_refused_for_it_would_reach_nobody() -> None:
    """Also when the settings simply lack a URL."""
    for make in (lambda: Emitter("memory://"), lambda: Emitter.from_mapping({})):
        with pytest.raises(ConfigError, match=r"memory://.*reach nobody.*same Redis"):
            make()


@pytest.mark.parametrize(
    "wrong",
    [{"url": "http://x"}, {"namespace": "a b"}, {"emit_errors": "no"}, {"history_events": 0}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_settings_show_when_it_is_made(wrong: dict[str, Any]) -> None:
    """Not in the first task that emits."""
    with pytest.raises(ConfigError, match=f"NOC_REALTIME_{next(iter(wrong)).upper()} is"):
        Emitter(**{"url": "redis://127.0.0.1:1", **wrong})


def test_the_settings_of_the_app_are_taken_as_they_are(server: RedisServer) -> None:
    """From its config or the environment: the bound on an event, and the namespace."""
    settings = {
        "NOC_REALTIME_URL": server.url,
        "NOC_REALTIME_NAMESPACE": "south",
        "NOC_REALTIME_MAX_EVENT_BYTES": "100",
        "PATH": "/bin",
    }
    with Emitter.from_mapping(settings) as emitter:
        emitter.emit("log.added", 1)
        with pytest.raises(EventError, match="limit is 100"):
            emitter.emit("log.added", "x" * 100)
    assert [event["data"] for event in events(server, "south")] == [1]


def test_types_are_those_of_the_catalogue_and_those_registered(emitter: Emitter) -> None:
    """As in the app; nothing is published for another."""
    with pytest.raises(UnknownTypeError, match=r"link\.flapped"):
        emitter.emit("link.flapped")
    emitter.register_type("link.flapped")
    assert emitter.emit("link.flapped") is not None
    assert "link.flapped" in emitter.types()


def test_the_history_is_trimmed_to_the_app_s_bound(server: RedisServer) -> None:
    """Whoever emits trims."""
    with Emitter(server.url, history_events=10) as emitter:
        for number in range(500):
            emitter.emit("log.added", number)
    assert 10 <= server.client().xlen("{noc}:log") < 200


def test_events_wait_in_order_while_redis_is_away(server: RedisServer, emitter: Emitter) -> None:
    """As in the app; `flush` waits for them."""
    emitter.emit("log.added", 0)
    server.kill9()
    assert [emitter.emit("log.added", number) for number in range(1, 50)] == [None] * 49
    assert not emitter.flush(0.01)
    server.start()
    assert emitter.flush(20)
    assert data(server) == list(range(50))


def test_raise_mode_raises() -> None:
    """For a job that is to be tried again."""
    with (
        Emitter(f"redis://127.0.0.1:{free_port()}", emit_errors="raise") as emitter,
        pytest.raises(BrokerUnavailable),
    ):
        emitter.emit("log.added", 1)


def test_a_forked_child_connects_for_itself(server: RedisServer, emitter: Emitter) -> None:
    """Two processes on one connection would read each other's answers (Celery's prefork pool)."""
    emitter.emit("log.added", "parent")
    ids = {each["id"] for each in server.client().client_list()}

    def work() -> None:
        for number in range(100):
            assert emitter.emit("log.added", number) is not None
        emitter.close()

    in_child(work)
    for number in range(100, 200):
        emitter.emit("log.added", number)
    assert data(server) == ["parent", *range(200)]
    assert ids <= {each["id"] for each in server.client().client_list()}


def test_what_a_parent_has_queued_stays_with_the_parent(
    server: RedisServer, emitter: Emitter
) -> None:
    """Otherwise every child would publish it once more."""
    emitter.emit("log.added", 0)
    server.kill9()
    emitter.emit("log.added", 1)

    def work() -> None:
        assert emitter.flush(0.0)
        emitter.emit("log.added", 2)
        deadline = time.monotonic() + 20
        while not emitter.flush(0.05):
            assert time.monotonic() < deadline
        emitter.close()

    parent = os.getpid()
    # Greenlets go on in a child as well, and it would start another one.
    started = threading.Timer(0.3, lambda: os.getpid() == parent and server.start())
    started.start()
    in_child(work)
    started.join()
    assert emitter.flush(20)
    assert sorted(data(server)) == [0, 1, 2]


SCRIPT = """
import sys
from flask_noc_realtime import Emitter
emitter = Emitter(sys.argv[1])
for number in range(10):
    emitter.emit("log.added", number)
"""


def test_a_script_needs_no_more_than_its_emits(server: RedisServer) -> None:
    """It ends without a word."""
    ended = run(SCRIPT, server.url)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert data(server) == list(range(10))


def test_a_script_that_ends_during_an_outage_says_what_is_lost_and_does_not_hang() -> None:
    """On stderr, without any logging set up."""
    begun = time.monotonic()
    ended = run(SCRIPT, f"redis://127.0.0.1:{free_port()}")
    assert time.monotonic() - begun < 20
    assert ended.returncode == 0
    assert "10 events were dropped: the process ended during an outage." in ended.stderr


def test_a_script_whose_redis_comes_back_as_it_ends_loses_nothing(server: RedisServer) -> None:
    """Within the bound it waits for."""
    server.kill9()
    command = [sys.executable, "-c", SCRIPT + "print('done', flush=True)", server.url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        server.start()
        assert process.wait(30) == 0
    assert data(server) == list(range(10))


def test_threads_share_one_emitter(server: RedisServer, emitter: Emitter) -> None:
    """Also when all come first at once; each thread's events keep their order."""
    together = threading.Barrier(8)

    def work(first: int) -> None:
        together.wait(10)
        for number in range(first, first + 50):
            emitter.emit("log.added", number)

    threads = [threading.Thread(target=work, args=(n * 1000,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = data(server)
    assert len(found) == 400
    for first in range(0, 8000, 1000):
        own = [number for number in found if first <= number < first + 1000]
        assert own == list(range(first, first + 50))

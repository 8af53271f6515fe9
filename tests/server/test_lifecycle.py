"""The life of processes: how workers end, fork and share, and what their streams see of it."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.conftest import GunicornFactory
from tests.gunicorn_server import GunicornServer
from tests.processes import wait_until
from tests.sse_client import SSEClient

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
        streams = get(server, "/streams")
        assert streams == {
            "detached": STREAMS if kind == "detached" else 0,
            "portable": 0 if kind == "detached" else STREAMS,
        }
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

"""Attacks on a real server, byte by byte."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from flask_noc_realtime import Emitter
from tests.conftest import GunicornFactory, RedisFactory
from tests.gunicorn_server import GunicornServer
from tests.server.client import Site

APP = "tests.server.transport_apps:create_app()"
PREFIX = "/api/v1/events"
TIMEOUT = 10.0
MEBIBYTE = 1024 * 1024


class Target:
    """A server with one worker and a stream that everybody else must leave alone."""

    def __init__(self, server: GunicornServer, stack: ExitStack) -> None:
        assert isinstance(server.address, tuple)
        self.address = server.address
        self.site = Site(server.address)
        (self.worker,) = server.worker_pids()
        self.operator = self.site.stream()
        stack.callback(self.operator.close)
        assert self.operator.next_event().type == "stream.open"
        self._stack = stack
        self._events = 0

    def connection(self) -> socket.socket:
        """Return a connection that is closed with the test."""
        sock = socket.create_connection(self.address, timeout=TIMEOUT)
        self._stack.callback(sock.close)
        return sock

    def send(self, request: bytes) -> bytes:
        """Send a request as it is; return what comes back, of a stream only the beginning."""
        sock = self.connection()
        with contextlib.suppress(ConnectionError):
            sock.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while b"stream.open" not in answer:
                part = sock.recv(65536)
                if not part:
                    break
                answer += part
        sock.close()
        return answer

    def serves_on(self) -> None:
        """See an event reach the operator at once."""
        self._events += 1
        begun = time.monotonic()
        self.site.emit("log.added", {"n": self._events})
        event = self.operator.next_event(TIMEOUT)
        while event.type == "heartbeat":
            event = self.operator.next_event(TIMEOUT)
        assert event.json["data"] == {"n": self._events}
        assert time.monotonic() - begun < 2.0

    def memory(self) -> int:
        """Return the bytes the worker holds."""
        status = Path(f"/proc/{self.worker}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) * 1024


@pytest.fixture
def target(gunicorn: GunicornFactory) -> Iterator[Target]:
    """Return a server under `gunicorn -k gevent`."""
    with ExitStack() as stack:
        yield Target(gunicorn(APP), stack)


def request(path: bytes, *fields: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    """Return the bytes of a request by an operator."""
    head = [
        b"%b %b HTTP/1.1" % (method, path),
        b"Host: localhost",
        b"Connection: close",
        b"X-User: 7",
        *fields,
    ]
    return b"\r\n".join([*head, b"", body])


INJECTIONS = [
    b"1%0d%0aInjected:%201",
    b"1%0aInjected:%201",
    b"1%0d%0a%0d%0aevent:%20injected%0adata:%201%0a%0a",
    b"1\rInjected: 1",
    b"1\nInjected: 1",
    b"1\x00Injected: 1",
    b"1%00%0dInjected:1",
    b"1%e2%80%a8event: injected",
    b"\xff\xfeInjected",
]


@pytest.mark.parametrize("injection", INJECTIONS)
def test_no_parameter_and_no_header_is_let_into_the_answer(
    target: Target, injection: bytes
) -> None:
    """Neither as a header nor as an event, whatever gunicorn makes of the request."""
    paths = [
        b"/stream?types=" + injection,
        b"/stream?last_event_id=" + injection,
        b"/stream?token=" + injection,
        b"/stream?" + injection + b"=1",
        b"/stream/" + injection,
        b"/poll?after=" + injection,
        b"/poll?wait=" + injection,
        b"/" + injection,
    ]
    names = [b"Last-Event-ID", b"Origin", b"Authorization", b"Cookie", b"Accept", b"If-None-Match"]
    attacks = [request(PREFIX.encode() + path) for path in paths]
    attacks += [
        request(b"/api/v1/events/" + route, b"%b: %b" % (name, injection))
        for name in names
        for route in (b"stream", b"poll")
    ]
    for attack in attacks:
        head, _, body = target.send(attack).partition(b"\r\n\r\n")
        lines = [line.lower() for line in head.split(b"\r\n")]
        assert not any(line.startswith(b"injected") for line in lines), attack
        assert b"\nevent: injected" not in body, attack
        assert b"\r" not in head.replace(b"\r\n", b""), attack
    target.serves_on()


@pytest.mark.parametrize("path", ["/stream", "/poll", "/connect"])
def test_a_megabyte_of_query_or_header_is_refused(target: Target, path: str) -> None:
    """The worker does not grow by it, and serves on meanwhile."""
    method = b"POST" if path == "/connect" else b"GET"
    url = (PREFIX + path).encode()
    before = target.memory()
    for _ in range(10):
        attacks = [
            request(url + b"?types=" + b"x" * MEBIBYTE, method=method),
            request(url, b"X-Large: " + b"x" * MEBIBYTE, method=method),
            request(url, b"Last-Event-ID: " + b"9" * MEBIBYTE, method=method),
        ]
        for attack in attacks:
            answer = target.send(attack)
            assert answer == b"" or answer.split(b" ")[1][:1] == b"4", answer[:200]
        target.serves_on()
    assert target.memory() - before < 16 * MEBIBYTE


def test_slow_clients_hold_up_nobody(target: Target) -> None:
    """Two hundred that send a letter now and then, and bodies that never come."""
    head = request(b"/api/v1/events/connect", b"Content-Length: 10", method=b"POST")
    slow = [target.connection() for _ in range(200)]
    for letter in range(0, len(head), 20):
        for number, sock in enumerate(slow):
            # Some are at their head, some at their body, some have not begun.
            with contextlib.suppress(ConnectionError):
                sock.sendall(head[letter : letter + 20] if number % 3 else head[:1])
        answer: Any = target.site.ask("POST", f"{PREFIX}/connect", headers={"X-User": "8"})
        assert answer.status == 200
        target.serves_on()


def test_slow_clients_that_hold_every_connection_end_no_stream(
    gunicorn: GunicornFactory, redis_server: RedisFactory
) -> None:
    """Gunicorn sets them no time, and new requests wait; a detached stream needs none of these."""
    url = redis_server().url
    server = gunicorn(APP, args=["--worker-connections", "10"], env={"NOC_REALTIME_URL": url})
    with ExitStack() as stack:
        target = Target(server, stack)
        emitter = Emitter(url)
        stack.callback(emitter.close)
        slow = [target.connection() for _ in range(20)]
        for sock in slow:
            sock.sendall(request(f"{PREFIX}/connect".encode(), method=b"POST")[:20])
        late = target.connection()
        late.sendall(request(b"/state"))
        late.settimeout(0.5)
        with pytest.raises(TimeoutError):
            late.recv(1)
        emitter.emit("log.added", {"n": 1})
        assert target.operator.next_event(TIMEOUT).json["data"] == {"n": 1}
        for sock in slow:
            sock.close()
        late.settimeout(TIMEOUT)
        assert late.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_streams_of_many_filters_leave_nothing_behind(target: Target) -> None:
    """A worker that served thousands of filters is no larger than after the first.

    Nor does it keep anything until the identities expire.
    """
    headers = {"X-User": "7", "X-Expires-In": "3600"}

    def visit(first: int, count: int) -> None:
        for number in range(first, first + count):
            names = ",".join(f"x{number}.y{i}" for i in range(32))
            with target.site.stream(f"?types={names}", headers=headers) as client:
                assert client.next_event().type == "stream.open"

    visit(0, 500)
    target.serves_on()
    before = target.memory()
    visit(500, 1500)
    target.serves_on()
    assert target.memory() - before < MEBIBYTE


def test_of_many_who_show_one_ticket_at_once_one_gets_the_stream(
    gunicorn: GunicornFactory, redis_server: RedisFactory
) -> None:
    """On two workers, twenty times."""
    env = {"NOC_REALTIME_URL": redis_server().url}
    server = gunicorn(APP, workers=2, env=env)
    site = Site(server.address)
    for _ in range(20):
        answer: Any = site.ask("POST", f"{PREFIX}/connect", headers={"X-User": "7"})
        path = json.loads(answer.text)["url"].removeprefix(f"{PREFIX}/stream")
        assert sorted(show_at_once(site, path)) == [200] + [401] * 7


def show_at_once(site: Site, path: str) -> list[int]:
    """Return how eight clients are answered that show one ticket."""
    statuses: list[int] = []
    ready = threading.Barrier(8)

    def show() -> None:
        ready.wait(TIMEOUT)
        with site.stream(path, headers={}) as client:
            statuses.append(client.status)

    threads = [threading.Thread(target=show) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    return statuses

"""Streams through nginx as it comes: buffering on, and compressing what it may."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import GunicornFactory, require
from tests.gunicorn_server import GunicornServer
from tests.nginx import Nginx
from tests.processes import wait_until
from tests.sse_client import EventParser, SSEClient

APP = "tests.server.apps:create()"


@pytest.fixture(autouse=True)
def program() -> None:
    """Require nginx."""
    require("nginx")


@pytest.fixture
def server(gunicorn: GunicornFactory) -> GunicornServer:
    """Serve detached streams with a heartbeat every half second at most."""
    env = {"NOC_REALTIME_TRANSPORT": "detached", "NOC_REALTIME_HEARTBEAT": "0.5"}
    return gunicorn(APP, env=env)


@pytest.fixture
def nginx(server: GunicornServer, tmp_path: Path) -> Iterator[Nginx]:
    """Put nginx with its default settings for proxies in front."""
    nginx = Nginx(server, tmp_path / "nginx")
    yield nginx
    nginx.stop()


def emit(server: GunicornServer) -> None:
    """Emit one event past the proxy."""
    urllib.request.urlopen(server.url + "/emit", timeout=5).close()


def detached(server: GunicornServer) -> int:
    """Return how many streams the worker has."""
    with urllib.request.urlopen(server.url + "/streams", timeout=5) as response:
        count: int = json.load(response)["detached"]
    return count


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_events_pass_at_once(version: str, server: GunicornServer, nginx: Nginx) -> None:
    """X-Accel-Buffering turns the buffer off for the stream, and for the stream alone."""
    with SSEClient(nginx.address, version=version) as client:
        assert client.status == 200
        assert "x-accel-buffering" not in client.headers
        assert client.next_event(0.5).type == "stream.open"
        for _ in range(20):
            began = time.monotonic()
            emit(server)
            client.events_until(lambda e: e.type == "log.added", 0.5)
            assert time.monotonic() - began < 0.3
        assert detached(server) == 1


def test_without_the_header_nginx_would_hold_events_back(
    server: GunicornServer, tmp_path: Path
) -> None:
    """This nginx does buffer: the tests beside would fail without X-Accel-Buffering."""
    nginx = Nginx(server, tmp_path / "nginx", "proxy_ignore_headers X-Accel-Buffering;")
    try:
        with pytest.raises(TimeoutError), SSEClient(nginx.address, timeout=1.5) as client:
            client.next_event(0.5)
    finally:
        nginx.stop()


def test_events_pass_at_once_through_compression(server: GunicornServer, nginx: Nginx) -> None:
    """An nginx told to compress event streams does so, but flushes what is not buffered."""
    with SSEClient(nginx.address, headers={"Accept-Encoding": "gzip"}) as client:
        assert client.headers["content-encoding"] == "gzip"
        shown = decompressed(client, b"event: stream.open", 0.5)
        for count in range(1, 21):
            emit(server)
            shown = decompressed(client, b"event: log.added", 0.5, count)
        assert EventParser().feed(shown)[0].type == "stream.open"


def decompressed(client: SSEClient, mark: bytes, timeout: float, count: int = 1) -> bytes:
    """Return the decoded body once it holds *mark* *count* times."""
    deadline = time.monotonic() + timeout
    while True:
        shown = zlib.decompressobj(wbits=31).decompress(bytes(client.body))
        if shown.count(mark) >= count:
            return shown
        before = len(client.body)
        while len(client.body) == before:
            client._receive(deadline)


def test_heartbeats_keep_an_idle_stream_through_the_read_timeout(
    server: GunicornServer, nginx: Nginx
) -> None:
    """Nginx ends what is silent for proxy_read_timeout; ten heartbeats outlast it twice."""
    with SSEClient(nginx.address) as client:
        assert client.next_event().type == "stream.open"
        began = time.monotonic()
        while time.monotonic() - began < 4.5:
            assert client.next_event(1.0).type == "heartbeat"
        emit(server)
        client.events_until(lambda e: e.type == "log.added", 1.0)
    assert "timed out" not in nginx.log()


def test_a_client_that_goes_is_gone_from_the_worker_too(
    server: GunicornServer, nginx: Nginx
) -> None:
    """Streams of closed tabs must not pile up behind the proxy."""
    clients = [SSEClient(nginx.address) for _ in range(10)]
    for client in clients:
        assert client.next_event().type == "stream.open"
    assert detached(server) == 10
    for client in clients:
        client.close()
    wait_until(lambda: detached(server) == 0, 5, "the worker notices")


def test_clients_that_are_slow_to_ask_stay_in_the_proxy(
    gunicorn: GunicornFactory, tmp_path: Path
) -> None:
    """It passes on whole requests only; without it they would hold every connection there is."""
    nginx = Nginx(gunicorn(APP, args=["--worker-connections", "5"]), tmp_path / "nginx")
    head = b"POST /api/v1/events/connect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    with ExitStack() as stack:
        stack.callback(nginx.stop)
        for number in range(100):
            slow = stack.enter_context(socket.create_connection(nginx.address))
            slow.sendall(head if number % 2 else head[:30])
        client = stack.enter_context(SSEClient(nginx.address))
        assert client.next_event().type == "stream.open"
        for _ in range(20):
            with urllib.request.urlopen("http://{}:{}/pid".format(*nginx.address), timeout=10):
                pass


def test_a_goodbye_passes(server: GunicornServer, nginx: Nginx) -> None:
    """Behind the proxy, too, clients learn when to come back and see a clean end."""
    with SSEClient(nginx.address) as client:
        assert client.next_event().type == "stream.open"
        assert server.stop() == 0
        assert client.until_end()[-1].type == "stream.close"
        assert client.retry
        assert not client.truncated

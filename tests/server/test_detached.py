"""Taking a connection from gunicorn, and leaving everything else as it was."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.certificate import Certificate
from tests.conftest import GunicornFactory, missing, require
from tests.gunicorn_server import GunicornServer
from tests.processes import wait_until
from tests.server.client import Site

APP = "tests.server.transport_apps:create_app()"
DETACHED = {"NOC_REALTIME_TRANSPORT": "detached"}
OLDEST = "21.2.0"


def site_of(server: GunicornServer) -> Site:
    """Return the site a server serves."""
    return Site(server.address)


def wait_for_streams(site: Site, count: int, kind: str = "detached") -> Any:
    """Wait until the worker holds that many streams; return its state."""
    return wait_until(
        lambda: (state := site.state())[kind] == count and state, 20, f"{count} {kind} streams"
    )


def follows(site: Site, stream: Any, data: Any) -> None:
    """Show that an event emitted now is on the stream."""
    site.emit("log.added", data)
    assert stream.events_until(lambda e: e.type == "log.added")[-1].json["data"] == data


@pytest.fixture(scope="session")
def oldest_gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the oldest gunicorn that is supported."""
    directory = tmp_path_factory.mktemp("gunicorn")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    done = subprocess.run([*pip, str(directory), f"gunicorn=={OLDEST}"], capture_output=True)
    if done.returncode:
        missing(f"gunicorn {OLDEST}")
    return directory


def test_the_oldest_supported_gunicorn_detaches(
    gunicorn: GunicornFactory, oldest_gunicorn: Path
) -> None:
    """What is taken over is what its version gives."""
    path = os.pathsep.join([str(oldest_gunicorn), os.environ.get("PYTHONPATH", "")])
    server = gunicorn(APP, env=DETACHED | {"PYTHONPATH": path})
    assert f"gunicorn {OLDEST}" in server.log()
    with site_of(server).stream() as stream:
        stream.next_event()
        wait_for_streams(site_of(server), 1)
        follows(site_of(server), stream, "old")


def test_the_newest_gunicorn_detaches(gunicorn: GunicornFactory) -> None:
    """The one that is installed, with its stock worker and no special option."""
    import gunicorn as package

    server = gunicorn(APP, env=DETACHED)
    assert f"gunicorn {package.__version__}" in server.log()
    with site_of(server).stream() as stream:
        stream.next_event()
        wait_for_streams(site_of(server), 1)
        follows(site_of(server), stream, "new")


def test_a_stream_is_no_greenlet_of_the_worker(gunicorn: GunicornFactory) -> None:
    """Fifty streams and ordinary views fit into five worker connections."""
    server = gunicorn(APP, env=DETACHED, args=["--worker-connections", "5"])
    site = site_of(server)
    streams = [site.stream() for _ in range(50)]
    for stream in streams:
        stream.next_event()
    wait_for_streams(site, 50)
    site.emit("log.added", "for all")
    for stream in streams:
        stream.events_until(lambda e: e.type == "log.added")
        stream.close()
    wait_for_streams(site, 0)


def test_the_server_logs_and_hooks_the_response_at_once(gunicorn: GunicornFactory) -> None:
    """To gunicorn it is an ordinary response that has ended."""
    hook = (
        "def post_request(worker, req, environ, resp):\n    worker.log.info('hooked %s', req.path)"
    )
    server = gunicorn(APP, env=DETACHED, args=["--access-logfile", "-"], config=hook)
    with site_of(server).stream() as stream:
        stream.next_event()
        wait_until(lambda: "hooked /api/v1/events/stream" in server.log(), 10, "the hook")
        assert '"GET /api/v1/events/stream HTTP/1.1" 200' in server.log()
        follows(site_of(server), stream, "after")


def test_lazy_middleware_does_not_matter(gunicorn: GunicornFactory) -> None:
    """It passes on what comes, so the head and the first bytes are out in time."""
    server = gunicorn("tests.server.middleware:wrapped('lazily')", env=DETACHED)
    site = site_of(server)
    with site.stream() as stream:
        stream.next_event()
        wait_for_streams(site, 1)
        follows(site, stream, "lazily")


def test_middleware_that_reads_ahead_is_served_portably(gunicorn: GunicornFactory) -> None:
    """Taken over before its head was sent, the connection would carry garbage."""
    server = gunicorn("tests.server.middleware:wrapped('prefetching')", env=DETACHED)
    site = site_of(server)
    connection = socket.create_connection(site.address)
    connection.sendall(
        b"GET /api/v1/events/stream?types=log.added HTTP/1.1\r\nHost: x\r\nX-User: 7\r\n\r\n"
    )
    wait_for_streams(site, 1, "portable")
    site.emit("log.added", "ahead")
    site.emit("log.added", "of it")
    connection.settimeout(20)
    received = b""
    while b"of it" not in received:
        received += connection.recv(65536)
    connection.close()
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert received.index(b"stream.open") < received.index(b"ahead") < received.index(b"of it")


def test_middleware_that_collects_the_body_gets_nothing_taken_over(
    gunicorn: GunicornFactory,
) -> None:
    """Its body never ends; the client must not be sent one without a head."""
    server = gunicorn("tests.server.middleware:wrapped('joining')", env=DETACHED)
    site = site_of(server)
    with socket.create_connection(site.address) as connection:
        connection.sendall(
            b"GET /api/v1/events/stream?types=log.added HTTP/1.1\r\nHost: x\r\nX-User: 7\r\n\r\n"
        )
        assert wait_for_streams(site, 1, "portable")["detached"] == 0
        site.emit("log.added", "collected")
        assert site.state()["detached"] == 0
        # The goodbye of a stopped server ends the body, and so shows all that was collected.
        server.stop()
        connection.settimeout(20)
        received = b""
        while more := connection.recv(65536):
            received += more
    assert received.count(b"HTTP/1.1 ") == 1
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    order = [b"stream.open", b"collected", b"stream.close"]
    assert [received.index(word) for word in order] == sorted(map(received.index, order))


def test_middleware_that_announces_a_length_is_served_portably(
    gunicorn: GunicornFactory,
) -> None:
    """The server counts what it sends against that length, and must see all of it."""
    server = gunicorn("tests.server.middleware:wrapped('measuring')", env=DETACHED)
    site = site_of(server)
    with site.stream() as stream:
        assert stream.headers["content-length"] == "1000000"
        assert "transfer-encoding" not in stream.headers
        stream.next_event()
        assert wait_for_streams(site, 1, "portable")["detached"] == 0
        follows(site, stream, "measured")


def test_a_connection_with_tls_is_never_taken_over(
    gunicorn: GunicornFactory, certificate: Certificate
) -> None:
    """Not even on demand: its bytes must be encrypted, and the server says what it does."""
    server = gunicorn(APP, env=DETACHED, tls=certificate)
    site = Site(server.address, certificate.client_context())
    with site.stream() as stream:
        stream.next_event()
        assert wait_for_streams(site, 1, "portable")["detached"] == 0
        follows(site, stream, "encrypted")
    assert "NOC_REALTIME_TRANSPORT is 'detached' and this server cannot detach" in server.log()


def test_middleware_that_compresses_is_served_portably(gunicorn: GunicornFactory) -> None:
    """Its client could not read bytes that are not compressed."""
    server = gunicorn("tests.server.middleware:wrapped('compressing')", env=DETACHED)
    site = site_of(server)
    with site.stream() as stream:
        wait_for_streams(site, 1, "portable")
        site.emit("log.added", "squeezed")

        def readable() -> bool:
            stream.silent_for(0.01)
            return b"squeezed" in gzip.decompress(bytes(stream.body))

        wait_until(readable, 10, "the event can be read")


def test_a_disconnect_is_seen_at_once(gunicorn: GunicornFactory) -> None:
    """Not at the next write, which on a quiet night may be long."""
    server = gunicorn(APP, env=DETACHED | {"NOC_REALTIME_HEARTBEAT": "3600"})
    site = site_of(server)
    streams = [site.stream() for _ in range(10)]
    for stream in streams:
        stream.next_event()
    wait_for_streams(site, 10)
    for stream in streams[:5]:
        stream.close()
    wait_for_streams(site, 5)
    for stream in streams[5:]:
        stream.reset()
    wait_for_streams(site, 0)


def test_file_descriptors_are_given_back(gunicorn: GunicornFactory) -> None:
    """Two hundred streams come and go, some of them before they have begun."""
    server = gunicorn(APP, env=DETACHED)
    site = site_of(server)
    with site.stream() as stream:
        stream.next_event()
    before = wait_for_streams(site, 0)["files"]
    for number in range(200):
        if number % 3:
            with site.stream() as stream:
                stream.next_event()
        else:
            with socket.create_connection(site.address) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.sendall(
                    b"GET /api/v1/events/stream HTTP/1.1\r\nHost: x\r\nX-User: 7\r\n\r\n"
                )
    wait_until(lambda: site.state()["files"] <= before, 20, "as few files as before")
    wait_for_streams(site, 0)


def test_numbers_that_are_used_again_do_not_cross(gunicorn: GunicornFactory) -> None:
    """A stream's old number is soon another connection's; each gets what is its own."""
    server = gunicorn(APP, env=DETACHED)
    site = site_of(server)
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    for number in range(300):
        with site.stream("?types=log.added") as stream:
            stream.next_event()
            kept.request("POST", "/emit", json.dumps({"type": "log.added", "data": number}), JSON)
            answer = kept.getresponse()
            position = json.loads(answer.read())["position"]
            event = stream.next_event()
            assert (event.id, event.json["data"]) == (position, number)
    kept.close()


JSON = {"Content-Type": "application/json"}


def test_a_second_request_on_the_connection_does_no_harm(gunicorn: GunicornFactory) -> None:
    """Pipelined behind the stream's; the connection belongs to the stream."""
    server = gunicorn(APP, env=DETACHED)
    site = site_of(server)
    with site.stream() as stream:
        stream.next_event()
        stream.socket.sendall(b"GET /state HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for_streams(site, 1)
        follows(site, stream, "still")


@pytest.mark.parametrize("path", ["/state", "/api/v1/events/stream"])
def test_a_request_pipelined_with_the_stream_is_not_answered_into_it(
    gunicorn: GunicornFactory, path: str
) -> None:
    """The server read both at once and answers the second, but no longer to the client."""
    server = gunicorn(APP, env=DETACHED)
    site = site_of(server)
    head = "Host: x\r\nX-User: 7\r\n\r\n"
    with socket.create_connection(site.address) as connection:
        connection.settimeout(20)
        request = f"GET /api/v1/events/stream HTTP/1.1\r\n{head}GET {path} HTTP/1.1\r\n{head}"
        connection.sendall(request.encode())
        wait_for_streams(site, 1)
        site.emit("log.added", "piped")
        received = b""
        while b"piped" not in received:
            received += connection.recv(65536)
        assert received.count(b"HTTP/1.1 ") == received.count(b"stream.open") == 1
        assert site.state()["detached"] == 1
    wait_for_streams(site, 0)
    assert site.state()["portable"] == 0
    assert "Traceback" not in server.log()


def test_http_2_in_clear_text_is_served_portably(gunicorn: GunicornFactory) -> None:
    """All streams of an HTTP/2 connection share its one socket."""
    curl = require("curl")
    require("h2")
    arguments = ["--http-protocols", "h1,h2", "--http2-cleartext", "prior-knowledge"]
    server = gunicorn(APP, env=DETACHED, args=arguments)
    http2 = [curl, "-sN", "--max-time", "20", "--http2-prior-knowledge", "-H", "X-User: 7"]
    stream = subprocess.Popen(
        [*http2, f"{server.url}/api/v1/events/stream"], stdout=subprocess.PIPE
    )
    assert stream.stdout is not None
    assert [stream.stdout.readline() for _ in range(5)][2] == b"event: stream.open\n"
    body = json.dumps({"type": "log.added", "data": "by HTTP/2"})
    emit = [*http2, "-H", "Content-Type: application/json", "-d", body, f"{server.url}/emit"]
    subprocess.run(emit, check=True, capture_output=True)
    state = json.loads(subprocess.check_output([*http2, f"{server.url}/state"]))
    assert (state["detached"], state["portable"]) == (0, 1)
    assert b"by HTTP/2" in [stream.stdout.readline() for _ in range(3)][2]
    stream.terminate()
    stream.communicate()


def test_another_event_loop_is_served_portably(gunicorn: GunicornFactory) -> None:
    """Only libev on epoll lets a connection go."""
    server = gunicorn(APP, env={"GEVENT_LOOP": "libuv"})
    site = site_of(server)
    with site.stream() as stream:
        stream.next_event()
        wait_for_streams(site, 1, "portable")
        follows(site, stream, "libuv")


def test_an_event_of_a_native_thread_is_sent_at_once(gunicorn: GunicornFactory) -> None:
    """Code in gevent's thread pool wakes the pump of another thread."""
    server = gunicorn("tests.server.native:create_app()", env=DETACHED)
    site = site_of(server)
    with site.stream() as stream:
        stream.next_event()
        wait_for_streams(site, 1)
        for number in range(20):
            site.post("/native", {"type": "log.added", "data": number})
            event = stream.events_until(lambda e: e.type == "log.added")[-1]
            assert event.json["data"] == number


def test_an_idle_stream_costs_the_worker_two_kilobytes_at_most(gunicorn: GunicornFactory) -> None:
    """A thousand of them, measured on the worker."""
    server = gunicorn(APP, env=DETACHED)
    site = site_of(server)
    for _ in range(50):
        with site.stream() as stream:
            stream.next_event()
    wait_for_streams(site, 0)
    (worker,) = server.worker_pids()
    before = resident(worker)
    streams = [site.stream() for _ in range(1000)]
    wait_for_streams(site, 1000)
    assert (resident(worker) - before) / 1000 <= 2048
    for stream in streams:
        stream.close()


def resident(pid: int) -> int:
    """Return the bytes of memory a process has."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024

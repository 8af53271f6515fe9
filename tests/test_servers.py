"""The tools of the server tests: a tool that is wrong makes every test that uses it wrong."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from tests import conftest
from tests.certificate import Certificate
from tests.conftest import GunicornFactory, RedisFactory, require
from tests.sse_client import EventParser, ServerEvent, SSEClient


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"data: a\n\n", [ServerEvent("message", "a", "")]),
        (b"data:a\r\ndata: b\r\n\r\n", [ServerEvent("message", "a\nb", "")]),
        (b"event: x.y\rid: 7\rdata\r\r:", [ServerEvent("x.y", "", "7")]),
        (b"id: 1\n\ndata:  a\n\n", [ServerEvent("message", " a", "1")]),
        (b"id: 1\x002\ndata: a\n\n", [ServerEvent("message", "a", "")]),
        (b"data: \xe2\x80\xa8\n\n", [ServerEvent("message", "\u2028", "")]),
        (b"\xef\xbb\xbfdata: a\n\n", [ServerEvent("message", "a", "")]),
        (b"data: unfinished\n", []),
        (b"event: x\n\ndata: a\n\n", [ServerEvent("message", "a", "")]),
    ],
)
def test_the_parser_dispatches_as_a_browser_does(body: bytes, expected: list[ServerEvent]) -> None:
    """WHATWG HTML, section 9.2.6, whole and one byte at a time."""
    assert EventParser().feed(body) == expected
    parser = EventParser()
    assert [e for i in range(len(body)) for e in parser.feed(body[i : i + 1])] == expected


def test_the_parser_keeps_retry_and_comments() -> None:
    """A retry of digits counts, another does not, and a comment is no event."""
    parser = EventParser()
    assert parser.feed(b"retry: 1500\nretry: 2s\n: hello\n\n") == []
    assert (parser.retry, parser.comments) == (1500, ["hello"])


def test_what_is_missing_skips_a_test_and_fails_it_in_strict_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a laptop a missing tool costs its tests; in CI it must not go unnoticed."""
    assert Path(require("redis-server")).is_file()
    assert Path(require("pytest")).is_file()
    monkeypatch.setattr(conftest, "STRICT", False)
    with pytest.raises(pytest.skip.Exception, match="missing no-such-tool"):
        require("no-such-tool")
    monkeypatch.setattr(conftest, "STRICT", True)
    with pytest.raises(pytest.fail.Exception, match="missing no-such-tool"):
        require("no-such-tool")


class OneAnswer:
    """Accepts one connection, sends *parts* one by one, and closes."""

    def __init__(self, *parts: bytes, tls: ssl.SSLContext | None = None, unix: str = "") -> None:
        self._listener = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        self._listener.bind(unix or ("127.0.0.1", 0))
        self._listener.listen()
        self.address = unix or self._listener.getsockname()
        self.request = b""
        self._parts, self._tls = parts, tls
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._listener, self._listener.accept()[0] as plain:
            sock = plain if self._tls is None else self._tls.wrap_socket(plain, server_side=True)
            with sock:
                while b"\r\n\r\n" not in self.request:
                    self.request += sock.recv(4096)
                for part in self._parts:
                    sock.sendall(part)

    def __enter__(self) -> OneAnswer:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join(10)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nX-A: 2\r\n\r\n"


def test_the_client_takes_chunks_apart_wherever_they_are_cut() -> None:
    """Chunk borders, event borders and packet borders are independent."""
    wire = CHUNKED + b"4\r\ndata\r\n5;x=y\r\n: a\n\n\r\n9\r\ndata: b\n\n\r\n0\r\n\r\n"
    with OneAnswer(*(wire[i : i + 1] for i in range(len(wire)))) as server:
        with SSEClient(server.address, last_event_id="5-1") as client:
            assert (client.status, client.headers["x-a"]) == (200, "1, 2")
            assert [event.data for event in client.until_end()] == ["a", "b"]
            assert client.body == b"data: a\n\ndata: b\n\n"
            assert client.raw == wire
            assert not client.truncated
    assert b"GET /api/v1/events/stream HTTP/1.1\r\n" in server.request
    assert b"Last-Event-ID: 5-1\r\n" in server.request


def test_the_client_tells_a_cut_stream_from_a_finished_one() -> None:
    """A chunked body without its last chunk was cut."""
    with OneAnswer(CHUNKED, b"9\r\ndata: a\n\n\r\n") as server:
        with SSEClient(server.address) as client:
            assert [event.data for event in client.until_end()] == ["a"]
            assert client.truncated
            with pytest.raises(EOFError):
                client.next_event()


def test_the_client_reads_http_1_0_until_the_connection_ends() -> None:
    """Without chunks or a length, the end of the connection ends the body."""
    with OneAnswer(b"HTTP/1.0 200 OK\r\n\r\ndata: a\n\n", b"data: b\n\n") as server:
        with SSEClient(server.address, version="1.0") as client:
            found = client.events_until(lambda event: event.data == "b")
            assert [event.data for event in found] == ["a", "b"]
            assert client.until_end() == []
            assert not client.truncated
    assert b" HTTP/1.0\r\n" in server.request


def test_the_client_reads_a_problem_body() -> None:
    """A response with a length ends there."""
    head = b"HTTP/1.1 401 UNAUTHORIZED\r\nContent-Length: 14\r\n\r\n"
    with OneAnswer(head + b'{"status":401}') as server, SSEClient(server.address) as client:
        assert (client.status, client.problem()) == (401, {"status": 401})


def test_the_client_gives_up_at_its_deadline() -> None:
    """Neither an empty nor a half event holds a test up."""
    released = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as sock:
                sock.recv(4096)
                sock.sendall(CHUNKED + b"5\r\ndata:\r\n")
                released.wait(10)

        thread = threading.Thread(target=serve)
        thread.start()
        with SSEClient(listener.getsockname()) as client:
            with pytest.raises(TimeoutError):
                client.next_event(0.05)
            with pytest.raises(TimeoutError, match="0 events before"):
                client.events_until(lambda event: True, 0.05)
            assert client.silent_for(0.05)
        released.set()
        thread.join(10)


def test_the_client_speaks_tls_and_unix_sockets(certificate: Certificate, tmp_path: Path) -> None:
    """The same stream, whatever it comes through."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    wire = CHUNKED + b"9\r\ndata: a\n\n\r\n0\r\n\r\n"
    with OneAnswer(wire, tls=context) as server:
        with SSEClient(server.address, tls=certificate.client_context()) as client:
            assert client.next_event().data == "a"
    with OneAnswer(wire, unix=str(tmp_path / "s")) as server:
        with SSEClient(server.address) as client:
            assert client.next_event().data == "a"


@pytest.mark.parametrize("kind", ["port", "unix", "tls"])
def test_redis_answers_at_its_url(
    kind: str, redis_server: RedisFactory, request: pytest.FixtureRequest
) -> None:
    """Each way to listen gives a URL redis-py understands."""
    options: dict[str, Any] = {}
    if kind == "unix":
        options["unix"] = True
    if kind == "tls":
        options["tls"] = request.getfixturevalue("certificate")
    with redis_server(**options).client() as client:
        assert client.ping()


def test_redis_keeps_its_data_over_a_crash_only_with_appendonly(redis_server: RedisFactory) -> None:
    """Kill -9 and restart: the AOF survives, memory does not, and empty is empty."""
    kept, lost = redis_server(appendonly=True), redis_server()
    for server in (kept, lost):
        with server.client() as client:
            client.set("a", "1")
        server.kill9()
        assert not server.running
        server.restart()
    with kept.client() as client:
        assert client.get("a") == b"1"
    with lost.client() as client:
        assert client.get("a") is None
    kept.restart(empty=True)
    with kept.client() as client:
        assert client.get("a") is None


def test_redis_that_cannot_start_shows_its_log(redis_server: RedisFactory) -> None:
    """A wrong option is an error at once, not a deadline later."""
    with pytest.raises(RuntimeError, match="no-such-option"):
        redis_server(args=["--no-such-option", "1"])


def test_a_paused_redis_can_be_stopped(redis_server: RedisFactory) -> None:
    """Freezing it is how tests make it hang; ending it must work all the same."""
    server = redis_server()
    server.pause()
    server.stop()
    assert not server.running


APP = "tests.test_servers:echo"


def echo(environ: dict[str, str], start_response: object) -> list[bytes]:
    """Answer with the process id, as a WSGI app."""
    body = b"data: %d\n\n" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])  # type: ignore[operator]
    return [body]


@pytest.mark.parametrize("worker_class", ["gevent", "gthread", "sync"])
def test_gunicorn_serves_and_leaves_nothing_behind(
    worker_class: str, gunicorn: GunicornFactory
) -> None:
    """Started means every worker is ready; stopped means all of them are gone."""
    server = gunicorn(APP, worker_class=worker_class, workers=2)
    workers = server.worker_pids()
    assert len(workers) == 2
    with SSEClient(server.address) as client:
        assert int(client.next_event().data) in workers
    assert server.stop() == 0
    assert "Traceback" not in server.log()


def test_gunicorn_serves_tls_and_unix_sockets(
    gunicorn: GunicornFactory, certificate: Certificate, tmp_path: Path
) -> None:
    """Both are addresses of a client."""
    tls = gunicorn(APP, tls=certificate)
    assert tls.url.startswith("https://127.0.0.1:")
    with SSEClient(tls.address, tls=certificate.client_context()) as client:
        assert int(client.next_event().data) in tls.worker_pids()
    unix = gunicorn(APP, unix=str(tmp_path / "g"))
    with SSEClient(unix.address) as client:
        assert int(client.next_event().data) in unix.worker_pids()


def test_gunicorn_that_cannot_load_its_app_shows_its_log(gunicorn: GunicornFactory) -> None:
    """A broken app is an error at once, not a deadline later."""
    with pytest.raises(RuntimeError, match="no_such_app"):
        gunicorn("tests.test_servers:no_such_app")


def test_gunicorn_that_leaves_a_child_is_noticed(gunicorn: GunicornFactory) -> None:
    """A worker that outlives its arbiter fails the test."""
    server = gunicorn(APP)
    with pytest.raises(AssertionError, match="left"):
        server.stop(signal.SIGKILL)

"""What every transport does, in every server."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificate import Certificate
from tests.conftest import require
from tests.demo import ROOT
from tests.gunicorn_server import GunicornServer
from tests.processes import free_port, wait_until
from tests.server.client import OPERATOR, Site, numbers

HEARTBEAT = 1.0
SETTINGS = {"NOC_REALTIME_HEARTBEAT": str(HEARTBEAT)}

GUNICORNS: dict[str, dict[str, Any]] = {
    "detached": {"env": {"NOC_REALTIME_TRANSPORT": "detached"}},
    "detached-unix": {"env": {"NOC_REALTIME_TRANSPORT": "detached"}, "unix": True},
    "portable-gevent": {"env": {"NOC_REALTIME_TRANSPORT": "portable"}},
    "portable-gthread": {"worker_class": "gthread", "args": ["--threads", "16"]},
    "portable-tls": {"tls": True},
}
STANDALONE = ("pywsgi", "werkzeug")


@pytest.fixture(scope="module", params=[*GUNICORNS, *STANDALONE])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Serve the app once for the module's tests; each uses types or users of its own."""
    directory = tmp_path_factory.mktemp(request.param)
    if request.param in STANDALONE:
        yield from _standalone(request.param, directory)
        return
    options = dict(GUNICORNS[request.param])
    options["env"] = {**SETTINGS, **options.get("env", {})}
    context = None
    if options.get("tls"):
        require("trustme")
        certificate: Certificate = request.getfixturevalue("certificate")
        options["tls"], context = certificate, certificate.client_context()
    if options.get("unix"):
        options["unix"] = str(directory / "s")
    server = GunicornServer(
        "tests.server.transport_apps:create_app()", directory, **options
    ).start()
    yield Site(server.address, context)
    server.close()
    assert "Traceback" not in server.log()


def _standalone(kind: str, directory: Path) -> Iterator[Site]:
    port = free_port()
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.serve", kind, str(port)],
            cwd=ROOT,
            env=os.environ | SETTINGS,
            stdout=output,
            stderr=output,
        )
    site = Site(("127.0.0.1", port))

    def serves() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return site.state()["pid"] == process.pid
        except OSError:
            return False

    wait_until(serves, 20, f"{kind} serves")
    yield site
    process.terminate()
    process.wait(20)
    assert "Traceback" not in log.read_text()


def test_the_head_keeps_proxies_from_buffering_and_compressing(site: Site) -> None:
    """And the first event comes at once, with a position and a delay for the return."""
    with site.stream() as stream:
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        opened = stream.next_event()
        assert (opened.type, opened.id) == ("stream.open", opened.json["position"])
        assert stream.retry == opened.json["retry"]
        assert 1500 <= opened.json["retry"] <= 4500


def test_the_transport_is_the_one_the_server_allows(
    site: Site, request: pytest.FixtureRequest
) -> None:
    """Detached on gunicorn's gevent worker without TLS, portable everywhere else."""
    kind = request.node.callspec.params["site"]
    with site.stream() as stream:
        stream.next_event()
        expected = ("detached", "portable") if "detached" in kind else ("portable", "detached")
        state = wait_until(
            lambda: (s := site.state())[expected[0]] >= 1 and s, 10, "the stream is counted"
        )
        assert state[expected[1]] == 0


def test_an_event_is_these_bytes(site: Site) -> None:
    """Id, type and envelope, and nothing of who may see it."""
    with site.stream("?types=automation.started") as stream:
        stream.next_event()
        before = len(stream.body)
        position = site.emit("automation.started", {"id": 7}, permissions=["incidents.read"])
        stream.events_until(lambda e: e.type == "automation.started")
        frame = bytes(stream.body[before:]).split(b"event: heartbeat")[0]
        assert re.fullmatch(
            rb"id: " + position.encode() + rb"\nevent: automation.started\n"
            rb'data: \{"type":"automation.started","data":\{"id":7\},'
            rb'"timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"\}\n\n.*',
            frame,
            re.DOTALL,
        )


@pytest.mark.parametrize("by", ["header", "parameter"])
def test_resume_replays_then_follows_without_gap_or_duplicate(site: Site, by: str) -> None:
    """While another client keeps emitting, each event once and in order."""
    type = f"incident.{'created' if by == 'header' else 'updated'}"
    positions = site.burst(type, 0, 50)
    emitting = threading.Thread(
        target=lambda: [site.burst(type, n, 10) for n in range(50, 250, 10)]
    )
    emitting.start()
    query, options = f"?types={type}", {}
    if by == "header":
        options = {"last_event_id": positions[9]}
    else:
        query += f"&last_event_id={positions[9]}"
    with site.stream(query, **options) as stream:
        events = stream.events_until(lambda e: e.type == type and e.json["data"]["n"] == 249, 20)
    emitting.join()
    assert (events[0].type, events[0].id) == ("stream.open", positions[9])
    assert numbers(events, type) == list(range(10, 250))


@pytest.mark.parametrize(
    "position",
    ["0-0", "99999999999999-0", "nonsense", "%00", "1-0%0d%0aid:%20x", "%E2%80%A8", "x" * 4000],
)
def test_a_position_that_is_not_found_is_a_reset(site: Site, position: str) -> None:
    """Malformed, foreign or forged: the client refetches, and the server does not fail."""
    with site.stream(f"?last_event_id={position}") as stream:
        opened, reset = stream.next_event(), stream.next_event()
        assert (opened.type, reset.type) == ("stream.open", "stream.reset")
        assert reset.json == {"reason": "unknown-position", "position": opened.id}


def test_types_narrow_the_stream(site: Site) -> None:
    """Exact names and prefixes, several of them."""
    with site.stream("?types=server.*,log.added") as stream:
        stream.next_event()
        site.emit("notification.sent", 1)
        site.emit("server.status.changed", 2)
        site.emit("log.added", 3)
        events = stream.events_until(lambda e: e.type == "log.added")
        assert [e.json["data"] for e in events if e.type != "heartbeat"] == [2, 3]


@pytest.mark.parametrize("types", ["Incident.*", "*.created", "a%0d%0ab", "a" * 2000])
def test_wrong_types_are_a_problem_of_the_client(site: Site, types: str) -> None:
    """RFC 9457, with a sentence that says what to use."""
    with site.stream(f"?types={types}") as answer:
        problem = answer.problem()
        assert answer.status == 400
        assert answer.headers["content-type"] == "application/problem+json"
        assert (problem["status"], problem["title"]) == (400, "Bad Request")
        assert "types" in problem["detail"]


def test_nobody_in_particular_gets_nothing(site: Site) -> None:
    """Closed by default: a JSON problem, and never a redirect to a login page."""
    with site.stream(headers={}) as answer:
        assert answer.problem()["status"] == answer.status == 401
        assert "event" not in bytes(answer.body).decode().replace("text/event-stream", "")


def test_permissions_and_users_decide_who_sees_an_event(site: Site) -> None:
    """Any permission, only the user, or everyone; live and replayed alike."""
    type = "automation.completed"
    start = site.emit(type, "for all")
    site.emit(type, "for readers", permissions=["incidents.read", "admin"])
    site.emit(type, "for admins", permissions=["admin"])
    site.emit(type, "for 7", user_id="7")
    site.emit(type, "for 8", user_id="8")

    def seen(who: dict[str, str], end: str) -> list[str]:
        with site.stream(f"?types={type}&last_event_id={start}", headers=who) as stream:
            found = []
            while not found or found[-1] != end:
                event = stream.next_event()
                if event.type == type:
                    found.append(event.json["data"])
            return found

    site.emit(type, "the end")
    assert seen(OPERATOR, "the end") == ["for readers", "for 7", "the end"]
    assert seen({"X-User": "8", "X-Permissions": "admin"}, "the end") == [
        "for readers",
        "for admins",
        "for 8",
        "the end",
    ]
    assert seen({"X-User": "9"}, "the end") == ["the end"]
    with site.stream(f"?types={type}") as stream:
        stream.next_event()
        for user in ("8", "7"):
            site.emit(type, f"live for {user}", user_id=user)
        assert stream.events_until(lambda e: e.type == type)[-1].json["data"] == "live for 7"


def test_an_idle_stream_beats_and_keeps_its_position_new(site: Site) -> None:
    """Hidden events move the position on, so that a rare stream can still resume."""
    with site.stream("?types=link.never.happens") as stream:
        stream.next_event()
        hidden = site.emit("notification.sent", "hidden")
        beats = stream.events_until(lambda e: e.id == hidden, 4 * HEARTBEAT)
        assert {beat.type for beat in beats} == {"heartbeat"}
        assert beats[-1].json == {"position": hidden}


def test_a_head_request_opens_no_stream(site: Site) -> None:
    """It gets the head of a stream and an end; another method is refused."""
    assert site.ask("POST", "/api/v1/events/stream").status == 405
    wait_until(lambda: not streams_of(site), 10, "the streams of other tests have ended")
    answer: Any = site.ask("HEAD", "/api/v1/events/stream", headers=OPERATOR)
    assert (answer.status, answer.text) == (200, b"")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert not streams_of(site)
    assert site.ask("HEAD", "/api/v1/events/stream").status == 401


def streams_of(site: Site) -> int:
    """Return how many streams the worker holds."""
    state = site.state()
    count: int = state["detached"] + state["portable"]
    return count


@pytest.mark.parametrize("position", ["nonsense", "%0d%0aid: 1", "\u2028", "x" * 4000])
def test_a_position_in_the_header_that_is_not_found_is_a_reset(site: Site, position: str) -> None:
    """The header is as little to be trusted as the URL."""
    with site.stream(last_event_id=position) as stream:
        opened, reset = stream.next_event(), stream.next_event()
        assert (opened.type, reset.type) == ("stream.open", "stream.reset")
        assert reset.json == {"reason": "unknown-position", "position": opened.id}


def test_an_http_1_0_client_gets_no_chunks(site: Site, request: pytest.FixtureRequest) -> None:
    """It would show the chunk sizes as lines of the stream."""
    if request.node.callspec.params["site"] == "werkzeug":
        pytest.skip("Werkzeug's server chunks whatever version the client speaks")
    with site.stream("?types=notification.sent", version="1.0") as stream:
        assert "transfer-encoding" not in stream.headers
        stream.next_event()
        site.emit("notification.sent", "plain")
        events = stream.events_until(lambda e: e.type == "notification.sent")
        assert events[-1].json["data"] == "plain"


def test_a_client_that_does_not_read_delays_nobody(site: Site) -> None:
    """It gets everything or a reset when it reads again; the others get it meanwhile."""
    type = "incident.status.changed"
    with (
        site.stream(f"?types={type}", receive_buffer=4096) as slow,
        site.stream(f"?types={type}") as quick,
    ):
        slow.next_event()
        quick.next_event()
        for first in range(0, 120, 10):
            site.burst(type, first, 10, size=100_000)
            seen = quick.events_until(
                lambda e, last=first + 9: e.type == type and e.json["data"]["n"] == last, 20
            )
            assert numbers(seen, type) == list(range(first, first + 10))
        events = slow.events_until(
            lambda e: e.type == "stream.reset" or (e.type == type and e.json["data"]["n"] == 119),
            20,
        )
        got = numbers(events, type)
        assert got == list(range(len(got)))
        assert events[-1].type == "stream.reset" or len(got) == 120


class FrozenError(Exception):
    """A server that runs answers nobody."""


@pytest.mark.xfail(
    raises=FrozenError,
    reason="a portable stream waits on a threading.Condition, which without gevent's patches "
    "stops the only thread there is",
)
def test_pywsgi_without_patches_serves_others_beside_a_stream(tmp_path: Path) -> None:
    """Right with and without gevent's monkey patching, as the design says of this transport."""
    sites = _standalone("pywsgi-unpatched", tmp_path)
    site = next(sites)
    try:
        with (
            site.stream() as stream,
            socket.create_connection(("127.0.0.1", site.address[1]), 5) as other,
        ):
            stream.next_event()
            other.sendall(b"GET /state HTTP/1.0\r\n\r\n")
            if not select.select([other], [], [], 5)[0]:
                raise FrozenError
            assert other.recv(15).startswith(b"HTTP/1.")
    finally:
        next(sites, None)

"""What the doctor finds on the way to a real server: past proxies, logins and limits."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, redirect

from flask_noc_realtime import Identity, NocRealtime, doctor
from flask_noc_realtime.cli import group
from flask_noc_realtime.doctor import judge_visit
from flask_noc_realtime.target import Target
from flask_noc_realtime.visit import Visit, visit
from tests.certificate import Certificate
from tests.conftest import GunicornFactory, RedisFactory, require
from tests.documentation import blocks
from tests.gunicorn_server import GunicornServer
from tests.nginx import Nginx
from tests.redis_server import RedisServer
from tests.server.serve import served

APP = "tests.server.apps:create()"
PREFIX = "/api/v1/events"
OFTEN = {"NOC_REALTIME_HEARTBEAT": "0.5"}
PROXY_HOLDS_BACK = "proxy_ignore_headers X-Accel-Buffering;"

Front = Callable[..., str]


@pytest.fixture(scope="module")
def redis(module_redis_server: RedisFactory) -> RedisServer:
    """Return a Redis that takes snapshots."""
    return module_redis_server(args=["--save", "3600 1"])


@pytest.fixture(scope="module")
def server(
    redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GunicornServer]:
    """Serve streams with a heartbeat every half second, to all tests of the module."""
    env = OFTEN | {"NOC_REALTIME_URL": redis.url}
    server = GunicornServer(APP, tmp_path_factory.mktemp("gunicorn"), env=env)
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def nginx(server: GunicornServer, tmp_path: Path) -> Iterator[Front]:
    """Return what puts nginx in front, and returns its URL."""
    started: list[Nginx] = []

    require("nginx")

    def start(extra: str = "", silence: str = "2s") -> str:
        started.append(Nginx(server, tmp_path / "nginx", extra, silence))
        return "http://{}:{}".format(*started[-1].address)

    yield start
    for each in started:
        each.stop()


def look(url: str, patience: float = 10.0, wait: float = 0.0) -> Visit:
    """Visit a stream."""
    return visit(Target.parse(url), PREFIX, patience=patience, wait=wait)


def wrong(seen: Visit) -> dict[str, str]:
    """Return what is not well, and its level; a machine that is busy is slow to open a stream."""
    return {
        found.what: found.level
        for found in judge_visit(seen)
        if found.level != "ok" and not found.what.startswith("stream.open came after")
    }


def test_a_stream_of_gunicorn_is_well(server: GunicornServer) -> None:
    """It opens, and its heartbeat comes, in the time it says."""
    seen = look(server.url)
    assert wrong(seen) == {}
    assert (seen.heartbeat, seen.version, seen.offers_h2) == (0.5, "1.1", None)
    assert seen.arrivals and not seen.ended
    assert len(seen.workers) == 8
    assert len(set(seen.workers) - {""}) == 1


def test_the_command_shows_what_the_page_about_it_shows(
    server: GunicornServer,
    redis: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for its numbers; and the token is nowhere."""
    for name in ("_SLOW_OPEN", "_SLOW_REDIS", "_LATE_SECONDS"):
        monkeypatch.setattr(doctor, name, 10.0)  # A machine that is busy is no other output.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "-k gevent -w 4")
    monkeypatch.setenv("NOC_REALTIME_TOKEN", "top.secret.token")
    app = Flask("patient")
    app.config.update(NOC_REALTIME_URL=redis.url, NOC_REALTIME_ALLOW_ANONYMOUS=True)
    NocRealtime(app)
    look(server.url)  # A worker is not asked before it has served a stream.
    args = ["doctor", "--url", f"{server.url}/", "--streams", "20"]
    result = app.test_cli_runner().invoke(group, args)
    assert result.exit_code == 0, result.output
    assert "secret" not in result.output
    [shown] = blocks("terminal", "console", "Finding what is wrong")
    assert without_numbers(shown.partition("\n")[2]) == without_numbers(result.output)


def without_numbers(text: str) -> list[str]:
    """Return the lines of a text, its numbers and the address replaced."""
    text = re.sub(r"https?://[\w.:]+", "URL", text)
    return re.sub(r"\d[\d.]*\b", "N", text).split()


def test_it_is_watched_for_as_long_as_is_asked(server: GunicornServer) -> None:
    """Over several heartbeats."""
    seen = look(server.url, wait=1.6)
    assert wrong(seen) == {}
    assert seen.watched >= 1.6
    assert len(seen.arrivals) >= 2


def test_a_proxy_that_compresses_is_found(nginx: Front) -> None:
    """It flushes what it compresses, so that nothing else is wrong."""
    [(what, level)] = wrong(look(nginx())).items()
    assert (what.partition(",")[0], level) == ("It is compressed with gzip", "warn")


def test_a_proxy_that_buffers_is_found(nginx: Front) -> None:
    """The app is well, and no byte of its stream comes."""
    seen = look(nginx(PROXY_HOLDS_BACK), patience=1.0)
    assert seen.health is not None
    assert wrong(seen) == {"A stream could not be opened: no answer within 1 s.": "fail"}
    assert "X-Accel-Buffering" in judge_visit(seen)[-1].what_to_do


def test_a_proxy_that_ends_what_is_idle_is_found(nginx: Front) -> None:
    """It waits for less time than passes between two heartbeats."""
    seen = look(nginx(silence="250ms"), wait=20)
    assert seen.ended
    [cut] = [found for found in judge_visit(seen) if found.level == "fail"]
    assert cut.what.startswith("Something in between ended it after ")
    assert "proxy_read_timeout" in cut.what_to_do


def test_http_2_is_looked_for_and_certificates_are_checked(
    gunicorn: GunicornFactory, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser would not connect to one that it does not trust."""
    require("h2")
    url = gunicorn(APP, tls=certificate, env=OFTEN, args=["--http-protocols", "h2,h1"]).url
    assert "certificate is not trusted here" in look(url).error
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.authority))
    seen = look(url)
    assert seen.offers_h2 is True
    assert wrong(seen) == {}


@pytest.mark.parametrize(
    ("login", "said"),
    [
        (lambda: redirect("/login?next=/"), "A stream is answered with 302, to /login."),
        (lambda: "Who are you?", "A stream is answered with text/html; charset=utf-8."),
    ],
    ids=["redirect", "page"],
)
def test_an_app_that_asks_everybody_to_log_in_is_found(login: Any, said: str) -> None:
    """Its before_request comes before our views, and a stream is none of its pages."""
    app = Flask("login")
    app.before_request(login)
    NocRealtime(app)
    with served(app) as url:
        findings = [found for found in judge_visit(look(url)) if found.level == "fail"]
    assert [found.what for found in findings][1:] == [said]
    assert "before_request" in findings[1].what_to_do


def test_a_stream_that_the_app_ends_is_no_fault_of_a_proxy() -> None:
    """It said so."""
    app = Flask("brief")
    app.config.update(NOC_REALTIME_STREAM_LIFETIME=0.3, NOC_REALTIME_ALLOW_ANONYMOUS=True)
    NocRealtime(app)
    with served(app) as url:
        seen = look(url, wait=20)
    assert (seen.ended, seen.closing) == (True, "lifetime")
    assert "fail" not in wrong(seen).values()


def test_a_heartbeat_that_is_far_off_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would be shown of all else until then."""
    monkeypatch.setattr("flask_noc_realtime.visit._LONGEST", 0.1)
    app = Flask("silent")
    app.config.update(NOC_REALTIME_HEARTBEAT=600, NOC_REALTIME_ALLOW_ANONYMOUS=True)
    NocRealtime(app)
    with served(app) as url:
        assert wrong(look(url)) == {"It ended before a heartbeat was due.": "warn"}


def test_a_health_that_has_no_end_is_of_somebody_else() -> None:
    """Who waits for all of it waits for ever."""
    app = Flask("catch-all")
    NocRealtime(app)
    over = threading.Event()

    def endless() -> Iterator[bytes]:
        while not over.wait(0.05):
            yield b"data: x\n\n"

    @app.before_request
    def answer() -> Response:
        return Response(endless(), mimetype="text/event-stream")

    with served(app) as url:
        try:
            seen = look(url, patience=0.5)
        finally:
            over.set()
    assert (seen.health_status, seen.health, seen.opened) == (200, None, None)


def test_a_cookie_that_binds_a_browser_to_a_machine_is_found() -> None:
    """Among others, each in a header of its own."""
    app = Flask("bound")
    app.config.update(NOC_REALTIME_HEARTBEAT=0.5, NOC_REALTIME_ALLOW_ANONYMOUS=True)
    NocRealtime(app)

    @app.after_request
    def bind(response: Any) -> Any:
        for name in ("theme", "SERVERID", "lang"):
            response.set_cookie(name, "x")
        return response

    with served(app) as url:
        found = wrong(look(url))
    assert found["The cookie SERVERID binds a browser to a machine."] == "warn"


def test_who_asks_is_said_by_a_header() -> None:
    """Without one the app answers as it does to anybody."""
    app = Flask("closed")
    app.config["NOC_REALTIME_HEARTBEAT"] = 0.5
    realtime = NocRealtime(app)
    realtime.identity_loader(
        lambda request: Identity(request.headers["User"]) if "User" in request.headers else None
    )
    with served(app) as url:
        assert wrong(look(url)) == {"A stream is answered with 401.": "fail"}
        seen = visit(Target.parse(url, ["User: 7"]), PREFIX, patience=10, wait=0)
    assert (seen.status, seen.error) == (200, "")
    assert seen.arrivals

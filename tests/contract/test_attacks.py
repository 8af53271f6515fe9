"""What a hostile client tries on the routes under the prefix."""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Request, session

from flask_noc_realtime import Identity, NocRealtime
from flask_noc_realtime.audience import TypeFilter
from tests.conftest import RedisFactory

PREFIX = "/api/v1/events"
STREAM = f"{PREFIX}/stream"
CONNECT = f"{PREFIX}/connect"
POLL = f"{PREFIX}/poll"
HOME = "http://localhost"
FRIEND = "https://wallboard.example"


class Site:
    """An app with a session login, and a client of it."""

    def __init__(self, **config: Any) -> None:
        self.app = Flask(__name__)
        self.app.config.update({"SECRET_KEY": "of the tests", **config})
        self.realtime = NocRealtime(self.app)
        self.realtime.identity_loader(self.load)
        self.client = self.app.test_client()

    def load(self, request: Request) -> Identity | None:
        """Return whom the session or, for a second user, a header names."""
        user = request.headers.get("X-User") or session.get("user")
        return None if user is None else Identity(user)

    def log_in(self, user: str = "7") -> None:
        """Give the client the session of *user*."""
        with self.client.session_transaction() as stored:
            stored["user"] = user

    def ticket(self, **headers: str) -> str:
        """Return the URL of a new ticket."""
        answer = self.client.post(CONNECT, headers=headers)
        assert answer.status_code == 200, answer.json
        url: str = answer.json["url"]
        return url

    @property
    def streams(self) -> int:
        """How many places are taken."""
        return len(self.app.extensions["noc_realtime"].process().leases._users)

    @property
    def tickets(self) -> int:
        """How many tickets are kept."""
        return len(self.app.extensions["noc_realtime"].process().broker._kept)


@pytest.fixture
def site() -> Iterator[Site]:
    """Return an app that pages of one other origin may use; the client is logged in."""
    site = Site(NOC_REALTIME_CORS_ORIGINS=[FRIEND])
    site.log_in()
    with site.app.app_context():
        yield site


def is_problem(answer: Any, status: int) -> None:
    """Check that *answer* is an RFC 9457 problem that nothing keeps."""
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    body = json.loads(answer.text)
    assert set(body) == {"type", "title", "status", "detail"}
    assert body["status"] == status
    assert body["detail"]


def test_a_ticket_is_used_up(site: Site) -> None:
    """Whoever reads it in a log later has nothing."""
    url = site.ticket()
    with site.client.get(url) as answer:
        assert answer.status_code == 200
        assert next(answer.response).startswith(b"retry:")
    is_problem(site.client.get(url), 401)


def test_a_ticket_of_another_user_is_refused(site: Site) -> None:
    """A page that was given somebody's ticket shows who it is by its cookie."""
    url = site.ticket(**{"X-User": "8"})
    is_problem(site.client.get(url), 403)
    is_problem(site.client.get(url, headers={"X-User": "8"}), 401)
    assert site.streams == 0


@pytest.mark.parametrize("ticket", ["x", "%00", "%2e%2e", "a" * 5000, "\u2603", "{noc}:log"])
def test_a_guessed_ticket_is_refused(site: Site, ticket: str) -> None:
    """Of any shape."""
    is_problem(site.client.get(f"{STREAM}/{ticket}"), 401)
    assert site.streams == 0


def test_a_ticket_is_void_after_its_user_was_disconnected(site: Site) -> None:
    """Also when no stream was open yet."""
    url, other = site.ticket(), site.ticket(**{"X-User": "8"})
    site.realtime.disconnect("7")
    is_problem(site.client.get(url), 401)
    with site.client.get(other, headers={"X-User": "8"}) as answer:
        assert answer.status_code == 200
    with site.client.get(site.ticket()) as answer:
        assert answer.status_code == 200


def test_head_uses_up_no_ticket(site: Site) -> None:
    """Whatever looks at links before it shows them would have it, and the browser nothing."""
    url = site.ticket()
    with site.client.head(url) as answer:
        assert (answer.status_code, answer.mimetype) == (200, "text/event-stream")
    with site.client.get(url) as answer:
        assert answer.status_code == 200


def test_head_ends_no_stream() -> None:
    """It asks what a GET would be answered with, and takes no place that another must give up."""
    site = Site(NOC_REALTIME_STREAM_LIMIT="evict", NOC_REALTIME_MAX_STREAMS_PER_USER=1)
    site.log_in()
    with site.app.app_context(), site.client.get(STREAM) as oldest:
        next(oldest.response)
        with site.client.head(STREAM) as answer:
            assert (answer.status_code, answer.mimetype) == (200, "text/event-stream")
            assert "Content-Length" not in answer.headers
        site.realtime.emit("incident.created", 1)
        assert b"event: incident.created" in next(oldest.response)
    assert site.client.head(f"{STREAM}?types=;").status_code == 400
    assert site.client.head(STREAM, headers={"Accept": "text/html"}).status_code == 406
    assert Site().client.head(STREAM).status_code == 401


def test_without_its_broker_nobody_gets_or_uses_a_ticket(redis_server: RedisFactory) -> None:
    """It is said to be for now, and the ticket is still good when the broker is back."""
    server = redis_server(appendonly=True)
    site = Site(NOC_REALTIME_URL=server.url)
    site.log_in()
    url = site.ticket()
    server.stop()
    for answer in (site.client.post(CONNECT), site.client.get(url)):
        is_problem(answer, 503)
        assert answer.headers["Retry-After"] in ("2", "3", "4")
        assert "check that it runs" in answer.json["detail"]
    server.start()
    with site.client.get(url) as answer:
        assert answer.status_code == 200
    site.app.extensions["noc_realtime"].process().close()


def test_nobody_gets_neither_stream_nor_ticket_nor_events() -> None:
    """Closed by default, and with a problem, not with the app's login page."""
    site = Site()

    @site.app.errorhandler(401)
    def login(error: Any) -> Any:
        return "", 302, {"Location": "/login"}

    for answer in (site.client.get(STREAM), site.client.get(POLL), site.client.post(CONNECT)):
        is_problem(answer, 401)
    assert (site.streams, site.tickets) == (0, 0)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/stream", "/stream/x", "/connect", "/poll", "/no", "/no/where"])
def test_no_route_ever_redirects(site: Site, method: str, path: str) -> None:
    """EventSource follows to a login page and takes it for the end of the stream."""
    with site.client.open(PREFIX + path, method=method) as answer:
        assert answer.status_code in (200, 401, 404, 405)
        if answer.status_code >= 400 and method != "HEAD":
            is_problem(answer, answer.status_code)


@pytest.mark.parametrize("path", ["//stream", "//stream?token=secret", "///", "/", "/stream//x"])
def test_an_address_that_is_none_of_ours_is_no_redirect_either(site: Site, path: str) -> None:
    """Flask would send whoever doubled a slash to the address without it, token and all."""
    is_problem(site.client.get(PREFIX + path), 404)


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND", "X"])
def test_a_method_of_no_route_is_501(site: Site, method: str) -> None:
    """RFC 9110, section 9.1; and nothing is said of what another address takes."""
    for path in ("/stream", "/no/where", "//stream"):
        is_problem(site.client.open(PREFIX + path, method=method), 501)


def test_what_matches_no_route_elsewhere_is_the_apps_own(site: Site) -> None:
    """Its redirects and its page for a 404; also right beside the prefix, and what it has there."""
    site.app.add_url_rule(f"{PREFIX}x/list/", "list", lambda: "a list")
    site.app.add_url_rule(f"{PREFIX}/", "own", lambda: "its own", methods=["POST"])
    site.app.register_error_handler(404, lambda error: ("lost", 404))
    answer = site.client.get(f"{PREFIX}x/list")
    assert (answer.status_code, answer.location) == (308, f"{HOME}{PREFIX}x/list/")
    assert site.client.get(f"{PREFIX}x//stream").text == "lost"
    assert site.client.get(PREFIX).text == "lost"
    assert site.client.post(f"{PREFIX}/").text == "its own"
    assert site.client.get(f"{PREFIX}/").status_code == 405


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/stream", "GET, HEAD, OPTIONS"),
        ("DELETE", "/poll", "GET, HEAD, OPTIONS"),
        ("GET", "/connect", "POST, OPTIONS"),
    ],
)
def test_another_method_is_405(site: Site, method: str, path: str, allow: str) -> None:
    """And says which one is meant (RFC 9110, section 15.5.6)."""
    answer = site.client.open(PREFIX + path, method=method)
    is_problem(answer, 405)
    assert answer.headers["Allow"] == allow


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/stream", "GET, HEAD, OPTIONS"),
        ("/stream/x", "GET, HEAD, OPTIONS"),
        ("/connect", "POST, OPTIONS"),
        ("/poll", "GET, HEAD, OPTIONS"),
        ("/config", "GET, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/client.js", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_tells_the_methods_to_anybody(site: Site, path: str, allow: str) -> None:
    """Without an identity, as a preflight comes; it takes and uses up nothing."""
    answer = site.app.test_client().options(PREFIX + path)
    assert (answer.status_code, answer.headers["Allow"], answer.data) == (204, allow, b"")


def test_who_is_refused_for_now_comes_back_spread_out() -> None:
    """A herd that came at once would come at once again, after the same seconds."""
    site = Site(NOC_REALTIME_MAX_STREAMS_PER_USER=1, NOC_REALTIME_RETRY=60)
    site.log_in()
    with site.client.get(STREAM):
        answers = [site.client.get(STREAM) for _ in range(30)]
    for answer in answers:
        is_problem(answer, 429)
    seconds = {int(answer.headers["Retry-After"]) for answer in answers}
    assert len(seconds) > 5
    assert seconds <= set(range(30, 91))


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (None, 200),
        ("", 200),
        ("*/*", 200),
        ("text/event-stream", 200),
        ("text/*;q=0.5, application/json", 200),
        ("text/html", 406),
        ("application/json", 406),
        ("text/event-stream;q=0, text/html", 406),
    ],
)
def test_a_client_that_takes_no_stream_gets_none(
    site: Site, accept: str | None, status: int
) -> None:
    """A link that was followed by mistake would load for ever."""
    headers = {} if accept is None else {"Accept": accept}
    with site.client.get(STREAM, headers=headers) as answer:
        assert answer.status_code == status
        if status == 406:
            is_problem(answer, 406)
    assert site.streams == 0


BREAKS = ["a%0d%0aX-Evil: 1", "a%0aX-Evil: 1", "a%0dX-Evil: 1", "a%00b", "%e2%80%a8X-Evil", "a:b"]


@pytest.mark.parametrize("value", BREAKS)
@pytest.mark.parametrize("name", ["types", "last_event_id", "after", "wait", "token", "other"])
def test_no_parameter_reaches_a_header_or_a_frame(site: Site, name: str, value: str) -> None:
    """Not as a header of the response, and not as a field of an event."""
    for path in (STREAM, POLL):
        with site.client.get(f"{path}?{name}={value}") as answer:
            assert answer.status_code in (200, 400)
            assert not any("vil" in part for item in answer.headers for part in item)
            if path == STREAM and answer.status_code == 200:
                assert b"Evil" not in next(answer.response)
    assert site.streams == 0


@pytest.mark.parametrize("path", [STREAM, POLL])
def test_a_megabyte_of_query_is_refused_before_it_is_read(site: Site, path: str) -> None:
    """Whichever parameter holds it."""
    for name in ("types", "last_event_id", "x"):
        is_problem(site.client.get(f"{path}?{name}=" + "a" * 2**20), 400)
    is_problem(site.client.get(f"{path}?" + "a&" * 2**19), 400)


def test_a_large_body_is_refused(site: Site) -> None:
    """None of the routes reads one."""
    is_problem(site.client.post(CONNECT, data=b"x" * 2**20), 413)
    assert site.tickets == 0


@pytest.mark.parametrize("wait", ["nan", "inf", "-1", "1e400", "x", "", "0x10", "1;2"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(site: Site, wait: str) -> None:
    """Nothing waits for it."""
    is_problem(site.client.get(f"{POLL}?wait={wait}"), 400)


def test_distinct_filters_are_not_kept() -> None:
    """Were as little as one object kept for each, a million of them would be a million."""
    site = Site(NOC_REALTIME_ALLOW_ANONYMOUS=True)
    position = site.realtime.position()
    site.realtime.emit("incident.created", 1)

    def ask(first: int, count: int) -> None:
        for number in range(first, first + count):
            answer = site.client.get(f"{POLL}?types=incident.*,x{number}.y&after={position}")
            assert len(answer.json["events"]) == 1
            with site.client.get(f"{STREAM}?types=incident.x{number}") as stream:
                next(stream.response)

    def kept() -> tuple[int, int]:
        gc.collect()
        filters = [each for each in gc.get_objects() if isinstance(each, TypeFilter)]
        return len(filters), sys.getallocatedblocks()

    with site.app.app_context():
        ask(0, 300)
        _, before = kept()
        ask(300, 600)
        filters, after = kept()
    assert filters < 100
    # What is allocated for a few filters comes and goes.
    assert after - before < 400


# Other origins.


def shared(answer: Any) -> dict[str, str]:
    """Return the CORS headers of a response."""
    return {name: value for name, value in answer.headers if name.startswith("Access-Control")}


FOREIGN = [
    "https://evil.example",
    "https://wallboard.example.evil.example",
    "https://evil-wallboard.example",
    "http://wallboard.example",
    "https://wallboard.example:8443",
    "null",
    "",
    "https://wallboard.example/path",
    f"{HOME}/path",
    "localhost",
    "http://[",
    "http://[::1",
    "https://a]b",
]


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_page_of_another_origin_gets_nothing(site: Site, origin: str) -> None:
    """Its user's cookies come with the request; it may neither read nor take up a place."""
    headers = {"Origin": origin}
    for answer in (
        site.client.get(STREAM, headers=headers),
        site.client.get(POLL, headers=headers),
        site.client.post(CONNECT, headers=headers),
    ):
        is_problem(answer, 403)
        assert shared(answer) == {}
    assert shared(site.client.options(CONNECT, headers=headers)) == {}
    assert (site.streams, site.tickets) == (0, 0)


@pytest.mark.parametrize("site_of_it", ["cross-site", "same-site"])
def test_a_picture_or_a_frame_on_a_page_elsewhere_gets_nothing(site: Site, site_of_it: str) -> None:
    """Its request names no origin, and would take up a place all the same (W3C Fetch Metadata)."""
    headers = {"Sec-Fetch-Site": site_of_it, "Sec-Fetch-Mode": "no-cors"}
    for answer in (
        site.client.get(STREAM, headers=headers),
        site.client.get(site.ticket(), headers=headers),
        site.client.get(POLL, headers=headers),
        site.client.post(CONNECT, headers=headers),
    ):
        is_problem(answer, 403)
    assert (site.streams, site.tickets) == (0, 1)
    assert site.client.get(f"{PREFIX}/client.js", headers=headers).status_code == 200


@pytest.mark.parametrize("site_of_it", ["same-origin", "none"])
def test_a_page_of_our_own_and_the_address_bar_may_ask(site: Site, site_of_it: str) -> None:
    """Without an origin, as a browser sends a GET of its own site."""
    headers = {"Sec-Fetch-Site": site_of_it}
    assert site.client.get(POLL, headers=headers).status_code == 200
    with site.client.get(STREAM, headers=headers) as answer:
        assert answer.status_code == 200


@pytest.mark.parametrize("origin", [FRIEND, "https://WALLBOARD.example"])
def test_a_page_of_a_listed_origin_may_connect(site: Site, origin: str) -> None:
    """With credentials, and errors are readable to it as well."""
    headers = {"Origin": origin}
    with site.client.get(STREAM, headers=headers) as answer:
        assert answer.status_code == 200
        assert shared(answer)["Access-Control-Allow-Origin"] == origin
        assert shared(answer)["Access-Control-Allow-Credentials"] == "true"
        assert "Origin" in answer.headers["Vary"]
    refused = site.client.get(f"{POLL}?types=;", headers=headers)
    is_problem(refused, 400)
    assert shared(refused)["Access-Control-Allow-Origin"] == origin
    preflight = site.client.options(
        CONNECT,
        headers={
            **headers,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        },
    )
    assert preflight.status_code == 204
    assert "POST" in shared(preflight)["Access-Control-Allow-Methods"]
    assert "Authorization" in shared(preflight)["Access-Control-Allow-Headers"]


def test_a_page_of_our_own_may_connect(site: Site) -> None:
    """Its browser names the origin with a POST, and says itself that it is the same."""
    assert site.client.post(CONNECT, headers={"Origin": HOME}).status_code == 200
    behind = {"Origin": "https://noc.example", "Sec-Fetch-Site": "same-origin"}
    assert site.client.post(CONNECT, headers=behind).status_code == 200
    cross = {"Origin": HOME, "Sec-Fetch-Site": "cross-site"}
    is_problem(site.client.post(CONNECT, headers=cross), 403)


def test_answers_are_kept_apart_by_user(site: Site) -> None:
    """Two users of one browser, or a cache that ignores `private`."""
    answer = site.client.get(POLL)
    assert "private" in answer.headers["Cache-Control"]
    assert {"Cookie", "Authorization"} <= set(answer.headers["Vary"].split(", "))


def test_neither_token_nor_ticket_is_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """At any level."""
    caplog.set_level(logging.DEBUG)
    url = site.ticket()
    secret = url.rpartition("/")[2]
    for _ in range(2):
        with site.client.get(url) as answer:
            assert answer.status_code == 401 or next(answer.response)
    site.client.get(f"{POLL}?token=s3cret-token&types=;")
    site.client.post(CONNECT, headers={"Authorization": "Bearer s3cret-token"})
    assert secret not in caplog.text
    assert "s3cret-token" not in caplog.text

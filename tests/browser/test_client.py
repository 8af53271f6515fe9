"""The browser's module in a real browser: it is live, or says what it is instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import GunicornFactory
from tests.faults import FaultProxy
from tests.processes import wait_until
from tests.server.client import Site

pytestmark = pytest.mark.browser

TIMEOUT = 20.0
ENV = {
    "NOC_REALTIME_HEARTBEAT": "0.4",
    "NOC_REALTIME_RETRY": "0.2",
    "NOC_REALTIME_POLL_INTERVAL": "0.1",
}

CONNECT = """async (options) => {
  const { connect } = await import("/api/v1/events/client.js");
  window.numbers = [];
  window.states = [];
  window.lost = [];
  window.stream = connect({
    openTimeout: 1000,
    maxDelay: 400,
    ...options,
    onState: ({ name }) => states.push(name),
    onGap: ({ reason }) => lost.push(reason),
  });
  stream.on("log.added", ({ n }) => numbers.push(n));
}"""

PARSE = """async ([pieces]) => {
  const { EventParser } = await import("/api/v1/events/client.js");
  const events = [], retries = [];
  const parser = new EventParser((event) => events.push(event), (retry) => retries.push(retry));
  for (const piece of pieces) parser.feed(piece);
  return { events: events.map(({ type, data, id }) => [type, data, id]), retries };
}"""


class Network:
    """A server, the way to it, and a browser's page that was loaded over that way."""

    def __init__(self, page: Any, site: Site, proxy: FaultProxy) -> None:
        self.page = page
        self.site = site
        self.proxy = proxy
        self.emitted = 0

    def connect(self, **options: Any) -> None:
        """Open a stream in the page."""
        self.page.evaluate(CONNECT, options)

    def emit(self, count: int = 5) -> None:
        """Emit numbered events, not through the proxy."""
        self.site.ask("GET", f"/emit?first={self.emitted}&count={count}")
        self.emitted += count

    def wait_for_state(self, *names: str) -> None:
        """Wait until the page shows one of the states."""
        self.page.wait_for_function(
            "(names) => names.includes(stream.snapshot().name)", arg=list(names)
        )

    def wait_for_all(self) -> None:
        """Wait until the page has every event, and see each there once, in order."""
        self.page.wait_for_function("(count) => numbers.length >= count", arg=self.emitted)
        assert self.page.evaluate("numbers") == list(range(self.emitted))

    @property
    def streams(self) -> int:
        """How many streams the server has."""
        answer: Any = self.site.ask("GET", "/streams")
        return int(json.loads(answer.text)["detached"])

    @property
    def states(self) -> list[str]:
        """The states the page showed, one after the other."""
        seen: list[str] = self.page.evaluate("states")
        return [name for i, name in enumerate(seen) if i == 0 or seen[i - 1] != name]


@pytest.fixture
def network(page: Any, gunicorn: GunicornFactory) -> Iterator[Network]:
    """Return a page over a proxy that passes everything on, so far."""
    server = gunicorn("tests.server.apps:create()", env=ENV)
    assert isinstance(server.address, tuple)
    with FaultProxy(server.address) as proxy:
        page.goto(proxy.url + "/snapshot")
        yield Network(page, Site(server.address), proxy)


# Reading a stream. The cases are those of the specification's rules, one by one.

CASES: list[tuple[str, str, list[tuple[str, str, str]]]] = [
    ("one line", "data: a\n\n", [("message", "a", "")]),
    ("several lines", "data: a\ndata: b\n\n", [("message", "a\nb", "")]),
    ("no space after the colon", "data:a\n\n", [("message", "a", "")]),
    ("one space is taken away", "data:  a\n\n", [("message", " a", "")]),
    ("a tab is not", "data:\ta\n\n", [("message", "\ta", "")]),
    ("CRLF", "data: a\r\ndata: b\r\n\r\n", [("message", "a\nb", "")]),
    ("CR", "data: a\rdata: b\r\r\n", [("message", "a\nb", "")]),
    ("all line ends at once", "data: a\rdata: b\ndata: c\r\n\n", [("message", "a\nb\nc", "")]),
    ("no other line ends", "data: a\u2028\x0c\x85b\n\n", [("message", "a\u2028\x0c\x85b", "")]),
    ("no data is no event", "event: x\nid: 1\n\ndata: a\n\n", [("message", "a", "1")]),
    ("empty data is one", "data\n\ndata:\n\n", [("message", "", ""), ("message", "", "")]),
    ("two empty lines of data", "data\ndata\n\n", [("message", "\n", "")]),
    ("an event that does not end", "data: a\n\ndata: b\n", [("message", "a", "")]),
    ("a comment", ": a\n:\ndata: b\n\n", [("message", "b", "")]),
    ("a type", "event: x\ndata: a\n\ndata: b\n\n", [("x", "a", ""), ("message", "b", "")]),
    ("the last type counts", "event: x\nevent: y\ndata: a\n\n", [("y", "a", "")]),
    ("an empty type is none", "event: x\nevent\ndata: a\n\n", [("message", "a", "")]),
    ("an id stays", "id: 1\n\ndata: a\n\n", [("message", "a", "1")]),
    ("an empty id is one", "id: 1\n\nid\ndata: a\n\n", [("message", "a", "")]),
    ("an id with NUL is none", "id: 1\nid: 2\x002\ndata: a\n\n", [("message", "a", "1")]),
    ("names are case-sensitive", "Data: a\nDATA: b\n data: c\ndata: d\n\n", [("message", "d", "")]),
    ("unknown names are ignored", "datas: a\nfoo\ndata: b\n\n", [("message", "b", "")]),
    ("a leading mark", "\ufeffdata: a\n\n", [("message", "a", "")]),
    ("one leading mark only", "\ufeff\ufeffdata: a\n\ndata: b\n\n", [("message", "b", "")]),
    ("a mark amid", "data: a\n\n\ufeffdata: b\n\n", [("message", "a", "")]),
    ("a colon in the value", "data: a: b\n\n", [("message", "a: b", "")]),
    ("beyond the basic plane", "data: \U0001f6a8\n\n", [("message", "\U0001f6a8", "")]),
]  # fmt: skip


def test_a_stream_is_read_by_the_rules_of_the_specification(network: Network) -> None:
    """WHATWG HTML, section 9.2.6, whole, letter by letter, and cut anywhere."""
    for name, text, events in CASES:
        cuts = [[text[:at], text[at:]] for at in range(len(text) + 1)]
        for pieces in ([text], list(text), *cuts):
            parsed = network.page.evaluate(PARSE, [pieces])
            assert parsed["events"] == [list(event) for event in events], (name, pieces)


def test_a_retry_is_digits_only(network: Network) -> None:
    """What is not is ignored."""
    text = "retry: 10\nretry: 1x\nretry:\nretry: -5\nretry: 1.5\nretry:7\n\n"
    assert network.page.evaluate(PARSE, [[text]])["retries"] == [10, 7]


# Being live.


def test_events_come_live_in_order(network: Network) -> None:
    """From connecting to live, with nothing shown between."""
    network.connect()
    network.wait_for_state("live")
    network.emit(50)
    network.wait_for_all()
    assert network.states == ["live"]
    assert network.page.problems == []


def test_a_page_misses_nothing_since_it_was_computed(network: Network) -> None:
    """It passes the position it was rendered with."""
    position = network.page.get_attribute("main", "data-position")
    network.emit(5)
    network.connect(since=position)
    network.wait_for_all()


def test_handlers_are_called_by_type_pattern_and_all(network: Network) -> None:
    """With the data and the event; one that throws is reported, and stops nobody."""
    network.connect()
    network.page.evaluate(
        """() => {
          window.calls = [];
          stream.on("log.added", () => { throw new Error("the page's own"); });
          stream.on("log.*", ({ n }, event) => calls.push(["log.*", n, event.type]));
          stream.on("*", (data, { id, timestamp }) => calls.push(["*", !!id, !!timestamp]));
          stream.on("incident.*", () => calls.push("wrong"));
          stream.on("log.added", () => calls.push("off"))();
        }"""
    )
    network.wait_for_state("live")
    network.emit(1)
    network.page.wait_for_function("calls.length === 2")
    assert network.page.evaluate("calls") == [["log.*", 0, "log.added"], ["*", True, True]]
    network.wait_for_all()
    network.page.wait_for_timeout(0)
    assert network.page.problems == ["the page's own"]


def test_a_filter_narrows(network: Network) -> None:
    """On the server: what it hides never comes."""
    network.connect(types=["incident.*", "server.*"])
    network.wait_for_state("live")
    network.page.evaluate("void stream.on('*', ({ n }) => numbers.push(n))")
    network.emit(3)
    network.site.ask("GET", "/incident/100")
    network.page.wait_for_function("numbers.includes(100)")
    assert network.page.evaluate("numbers") == [100]


def test_closing_ends_the_connection_and_the_state(network: Network) -> None:
    """For good."""
    network.connect()
    network.wait_for_state("live")
    network.page.evaluate("stream.close()")
    assert network.page.evaluate("stream.snapshot().name") == "closed"
    wait_until(lambda: network.streams == 0, TIMEOUT, "the server has no stream")


# What breaks.

NOT_A_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno"
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
LOGIN = b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("how", "answer", "shown"),
    [
        ("refuse", b"", "reconnecting"),
        ("hang", b"", "reconnecting"),
        ("freeze", b"", "reconnecting"),
        ("answer", UNAVAILABLE, "reconnecting"),
        ("answer", BAD_GATEWAY, "reconnecting"),
        ("answer", NOT_A_STREAM, "reconnecting"),
        ("answer", LOGIN, "unauthorized"),
    ],
    ids=["refused", "hanging", "half-open", "503", "502", "a page instead", "a login instead"],
)
def test_whatever_breaks_is_shown_and_mended_without_a_gap(
    network: Network, how: str, answer: bytes, shown: str
) -> None:
    """The state says so meanwhile; afterwards every event was there, once and in order."""
    network.connect()
    network.wait_for_state("live")
    network.emit()
    network.wait_for_all()
    network.proxy.behave(how, answer)
    network.wait_for_state(shown)
    network.emit()
    asked = network.proxy.asked
    wait_until(lambda: network.proxy.asked > asked + 2, TIMEOUT, "it tries again and again")
    assert network.page.evaluate("numbers.length") == 5
    network.proxy.behave()
    network.wait_for_state("live")
    network.emit()
    network.wait_for_all()
    assert network.page.evaluate("lost") == []
    assert shown in network.states


def test_a_connection_that_is_cut_is_there_again(network: Network) -> None:
    """Ten times, amid events."""
    network.connect()
    network.wait_for_state("live")
    for _ in range(10):
        network.emit(20)
        network.proxy.cut()
        network.emit(5)
    network.wait_for_all()


def test_where_streams_are_held_back_it_polls_and_probes(network: Network) -> None:
    """Events still come, by the same ids; when streams come through it is live by itself."""
    network.page.route(
        "**/events/stream*",
        lambda route: route.fulfill(
            status=200, headers={"Content-Type": "text/event-stream"}, body=": held back\n\n"
        ),
    )
    network.connect()
    network.wait_for_state("polling")
    network.emit(30)
    network.wait_for_all()
    network.page.unroute("**/events/stream*")
    for _ in range(10):
        network.emit(10)
    network.wait_for_state("live")
    network.emit(10)
    network.wait_for_all()
    assert network.states == ["reconnecting", "polling", "live"]


def test_a_position_that_is_gone_is_a_gap(network: Network) -> None:
    """The page is told, and goes on from the newest."""
    network.emit(3)
    network.connect(since="1-1")
    network.page.wait_for_function("lost.length === 1")
    assert network.page.evaluate("lost") == ["unknown-position"]
    network.site.ask("GET", "/emit?first=7&count=1")
    network.page.wait_for_function("numbers.length === 1")
    assert network.page.evaluate("numbers") == [7]


def test_the_browser_says_when_it_is_offline(network: Network) -> None:
    """The state follows at once, and so does the return."""
    network.connect()
    network.wait_for_state("live")
    network.page.context.set_offline(True)
    network.wait_for_state("offline")
    network.emit()
    network.page.context.set_offline(False)
    network.wait_for_state("live")
    network.wait_for_all()


def test_the_module_is_kept_by_its_content() -> None:
    """An address that names it is good for ever; the plain one is checked each time."""
    from tests.server.apps import create

    client = create().test_client()
    plain = client.get("/api/v1/events/client.js")
    assert plain.mimetype == "text/javascript"
    assert plain.headers["Cache-Control"] == "no-cache"
    tag = plain.headers["ETag"]
    again = client.get("/api/v1/events/client.js", headers={"If-None-Match": tag})
    assert (again.status_code, again.data) == (304, b"")
    named = client.get(f"/api/v1/events/client.js?v={tag.strip(chr(34))}")
    assert named.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    other = client.get("/api/v1/events/client.js?v=0000000000000000")
    assert other.headers["Cache-Control"] == "no-cache"


def test_a_token_that_is_refused_is_asked_for_anew(network: Network) -> None:
    """At once, and saying so to the provider; the server is never asked with the old one again."""
    network.page.route(
        "**/events/stream*",
        lambda route: (
            route.continue_()
            if route.request.headers.get("authorization") == "Bearer new"
            else route.fulfill(status=401, body="{}")
        ),
    )
    network.page.evaluate(
        """async () => {
          const { connect } = await import("/api/v1/events/client.js");
          window.asked = [];
          window.states = [];
          const token = async ({ refresh }) => {
            asked.push(refresh);
            return refresh ? "new" : "old";
          };
          window.stream = connect({ token, onState: ({ name }) => states.push(name) });
        }"""
    )
    network.wait_for_state("live")
    assert network.page.evaluate("asked") == [False, True]
    assert network.states == ["unauthorized", "live"]


def test_each_connection_has_a_ticket_of_its_own(network: Network) -> None:
    """A ticket opens one stream, so the next one needs another."""
    network.page.evaluate(
        """async () => {
          const { connect } = await import("/api/v1/events/client.js");
          window.numbers = [];
          window.tickets = 0;
          window.lives = 0;
          const ticket = async ({ signal }) => {
            tickets += 1;
            return (await fetch("/api/v1/events/connect", { method: "POST", signal })).json();
          };
          const onState = ({ name }) => (lives += name === "live");
          window.stream = connect({ ticket, onState });
          stream.on("log.added", ({ n }) => numbers.push(n));
        }"""
    )
    for number in range(1, 4):
        network.page.wait_for_function("(number) => lives === number", arg=number)
        network.emit()
        network.wait_for_all()
        assert network.page.evaluate("tickets") >= number
        network.proxy.cut()

"""The browser's module in a real browser: it is live, or says what it is instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.browser.network import NOT_FOR_AN_HOUR, TIMEOUT, Network
from tests.processes import wait_until

pytestmark = pytest.mark.browser


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


def test_what_failed_before_a_connection_opened_is_over(network: Network) -> None:
    """Only those that opened and were lost soon, two here, count on: the next try is not far."""
    network.connect()
    network.wait_for_state("live")
    network.proxy.behave("refuse")
    network.page.wait_for_function("stream.snapshot().attempt > 3")
    network.proxy.behave()
    network.wait_for_state("live")
    network.page.evaluate("void stream.subscribe(() => attempts.push(stream.snapshot().attempt))")
    network.proxy.cut()
    network.page.wait_for_function("attempts.some((attempt) => attempt)")
    assert next(filter(None, network.page.evaluate("attempts"))) == 2


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


def test_a_server_that_answers_polls_again_is_asked_for_a_stream_at_once(network: Network) -> None:
    """What kept both away is over; the next probe might be half a minute away."""
    streams: list[str] = []

    def refuse_streams(route: Any) -> None:
        streams.append(route.request.url)
        if len(streams) < 4:
            route.abort()
        elif len(streams) == 4:
            route.fulfill(status=503, headers={"Retry-After": "3600"})
        else:
            route.continue_()

    def refuse_polls(route: Any) -> None:
        if len(streams) < 4:
            route.fulfill(status=503)
        else:
            route.continue_()

    network.page.route("**/events/stream*", refuse_streams)
    network.page.route("**/events/poll*", refuse_polls)
    network.connect()
    network.wait_for_state("live")
    network.emit()
    network.wait_for_all()
    assert len(streams) == 5


def test_a_gap_that_a_poll_has_told_is_not_told_by_the_stream_as_well(network: Network) -> None:
    """One that was asked for from before the gap is asked for anew, from after it."""
    streams: list[str] = []
    held: list[Any] = []

    def hold_streams(route: Any) -> None:
        streams.append(route.request.url)
        if len(streams) < 4:
            route.abort()
        elif len(streams) == 4:
            held.append(route)
        else:
            route.continue_()

    def wait_for_a_held_stream(route: Any) -> None:
        if held:
            route.continue_()
        else:
            route.fulfill(status=503)

    network.page.route("**/events/stream*", hold_streams)
    network.page.route("**/events/poll*", wait_for_a_held_stream)
    network.connect(since="1-1", openTimeout=60_000)
    network.wait_for_state("live")
    network.site.ask("GET", "/emit?count=1")
    network.wait_for([0])
    assert network.lost == ["unknown-position"]
    assert all("last_event_id=1-1" in url for url in streams[:4])
    assert "last_event_id=1-1" not in streams[4]


def test_a_page_that_is_looked_at_again_tries_at_once(network: Network) -> None:
    """Its user may have logged in elsewhere."""
    network.connect()
    network.wait_for_state("live")
    network.proxy.behave("answer", NOT_FOR_AN_HOUR)
    network.wait_for_state("unauthorized")
    network.proxy.behave()
    network.page.evaluate("void document.dispatchEvent(new Event('visibilitychange'))")
    network.wait_for_state("live")


def test_a_position_that_is_gone_is_a_gap(network: Network) -> None:
    """The page is told, and goes on from the newest."""
    network.emit(3)
    network.connect(since="1-1")
    network.page.wait_for_function("lost.length === 1")
    assert network.page.evaluate("lost") == ["unknown-position"]
    network.site.ask("GET", "/emit?first=7&count=1")
    network.page.wait_for_function("numbers.length === 1")
    assert network.page.evaluate("numbers") == [7]


@pytest.mark.parametrize("share", [False, "auto"], ids=["its own", "shared"])
def test_the_browser_says_when_it_is_offline(network: Network, share: bool | str) -> None:
    """The state follows at once, and so does the return."""
    network.connect(share, maxDelay=60_000)
    network.wait_for_state("live")
    network.page.context.set_offline(True)
    network.wait_for_state("offline")
    network.emit()
    network.page.context.set_offline(False)
    network.wait_for_state("live")
    network.wait_for_all()


def test_a_machine_that_slept_reconnects_at_once(network: Network) -> None:
    """It knows by its clock; whatever happened meanwhile is there."""
    network.connect(maxDelay=60_000)
    network.wait_for_state("live")
    network.emit()
    network.wait_for_all()
    network.page.evaluate("{ const now = Date.now; Date.now = () => now() + 3600_000; }")
    network.page.wait_for_function("reasons.includes('suspended')")
    network.wait_for_state("live")
    network.emit()
    network.wait_for_all()
    assert network.states == ["live", "reconnecting", "live"]


def test_a_clock_that_is_set_back_does_not_put_the_watch_off(network: Network) -> None:
    """Silence is noticed as ever."""
    network.connect()
    network.wait_for_state("live")
    network.page.evaluate("{ const now = Date.now; Date.now = () => now() - 3600_000; }")
    network.proxy.behave("freeze")
    network.wait_for_state("reconnecting")


@pytest.mark.parametrize(
    ("leave", "come"),
    [
        ("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))", "pageshow"),
        ("document.dispatchEvent(new Event('freeze'))", "resume"),
    ],
    ids=["kept for the back button", "frozen"],
)
def test_a_page_that_is_put_away_has_no_stream_and_misses_nothing(
    network: Network, leave: str, come: str
) -> None:
    """It has one again when it is shown, from where it was."""
    network.connect("auto")
    network.wait_for_state("live")
    network.page.evaluate(leave)
    wait_until(lambda: network.streams == 0, TIMEOUT, "the stream ends")
    network.emit()
    target = "window" if come == "pageshow" else "document"
    network.page.evaluate(f"{target}.dispatchEvent(new Event('{come}'))")
    network.wait_for_all()
    network.wait_for_state("live")
    assert network.lost == []


def test_a_wallboard_is_never_paused(network: Network) -> None:
    """A page nobody looks at goes on."""
    network.connect()
    network.wait_for_state("live")
    network.page.evaluate(
        """() => {
          Object.defineProperty(document, "visibilityState", { value: "hidden" });
          Object.defineProperty(document, "hidden", { value: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    network.emit()
    network.wait_for_all()
    assert network.states == ["live"]


def test_the_snapshot_has_what_a_footer_shows(network: Network) -> None:
    """The state and since when, how old the last event is, the gaps, the tabs and the streams."""
    network.connect()
    network.wait_for_state("live")
    network.emit(3)
    network.wait_for_all()
    seen = network.snapshot
    now = network.page.evaluate("Date.now()")
    assert 0 <= seen.pop("lastEventAge") <= now - seen["since"]
    for name in ("since", "heardAt", "lastEventAt"):
        assert now - 30_000 <= seen.pop(name) <= now, name
    assert seen == {
        "name": "live",
        "attempt": 0,
        "reason": None,
        "position": network.position,
        "delivered": 3,
        "gaps": 0,
        "tabs": 1,
        "streams": 1,
        "way": "own",
        "leads": True,
    }


# Where the server says to poll.


@pytest.fixture
def roll_out(network: Network) -> Iterator[Callable[[float], Any]]:
    """Return how to say what percentage of the users have streams."""

    def roll_out(percent: float) -> Any:
        return network.site.ask("GET", f"/rollout/{percent:.1f}")

    yield roll_out
    roll_out(100)


def test_a_server_that_says_to_poll_is_asked_for_no_stream(
    network: Network, roll_out: Callable[[float], Any]
) -> None:
    """Until a poll says that there are streams; then the page is live at once."""
    asked: list[str] = []
    network.page.on("request", lambda request: asked.append(request.url))
    network.connect()
    network.wait_for_state("live")
    roll_out(0)
    network.wait_for_state("polling")
    assert network.snapshot["reason"] == "rollout"
    network.emit()
    network.wait_for_all()
    del asked[:]
    while len(asked) < 10:
        network.page.wait_for_event("request")
    assert not any("/stream" in url for url in asked)
    roll_out(100)
    network.wait_for_state("live")
    network.emit()
    network.wait_for_all()
    assert network.states == ["live", "polling", "live"]
    assert network.lost == []


def test_a_page_that_is_not_to_stream_polls_from_the_start(
    network: Network, roll_out: Callable[[float], Any]
) -> None:
    """A 204 says so; whoever shares does so too."""
    roll_out(0)
    network.connect("auto")
    network.wait_for_state("polling")
    network.emit()
    network.wait_for_all()
    assert network.states == ["polling"]
    assert network.snapshot["streams"] == network.streams == 0


def test_a_server_that_does_not_say_whether_there_are_streams_is_tried(network: Network) -> None:
    """One that knows of no rollout, behind what answers 204 for a while."""
    network.answer("**/events/stream*", status=204)

    def say_nothing(route: Any) -> None:
        response = route.fetch()
        answer = response.json()
        del answer["stream"]
        route.fulfill(response=response, json=answer)

    network.page.route("**/events/poll*", say_nothing)
    network.connect()
    network.wait_for_state("polling")
    network.page.unroute("**/events/stream*")
    network.wait_for_state("live")
    network.emit()
    network.wait_for_all()
    assert network.states == ["polling", "live"]


def test_who_polls_is_shown_when_the_login_has_ended(
    network: Network, roll_out: Callable[[float], Any]
) -> None:
    """The provider is asked anew."""
    roll_out(0)
    network.connect(token="({ refresh }) => (refresh && window.renewed ? 'new' : 'old')")
    network.wait_for_state("polling")
    network.page.route(
        "**/events/poll*",
        lambda route: (
            route.continue_()
            if route.request.headers["authorization"] == "Bearer new"
            else route.fulfill(status=401)
        ),
    )
    network.wait_for_state("unauthorized")
    network.page.evaluate("window.renewed = true")
    network.wait_for_state("polling")


# Where a response cannot be read while it comes.

OLD_BROWSER = """() => {
  Object.defineProperty(Response.prototype, "body", { get: () => null });
  window.sources = [];
  window.EventSource = class extends EventSource {
    constructor(url, options) {
      super(url, options);
      sources.push(url);
    }
  };
}"""


@pytest.fixture
def old(network: Network) -> Network:
    """Return a page whose browser has no streams but EventSource."""
    network.page.evaluate(OLD_BROWSER)
    return network


def test_an_old_browser_has_the_same_states_and_events(old: Network) -> None:
    """Through what is cut, and what is silent."""
    old.connect()
    old.wait_for_state("live")
    old.emit()
    old.wait_for_all()
    old.proxy.cut()
    old.emit()
    old.wait_for_all()
    old.wait_for_state("live")
    old.proxy.behave("freeze")
    old.wait_for_state("reconnecting")
    old.emit()
    old.proxy.behave()
    old.wait_for_state("live")
    old.wait_for_all()
    assert old.lost == []
    assert len(old.page.evaluate("sources")) >= 3
    old.page.evaluate("stream.close()")
    wait_until(lambda: old.streams == 0, TIMEOUT, "the server has no stream")


def test_an_old_browser_is_told_of_a_login_and_of_a_gap(old: Network) -> None:
    """An EventSource keeps the status to itself, so it is asked for."""
    old.page.route("**/events/*", lambda route: route.fulfill(status=401))
    old.page.route("**/events/client.js", lambda route: route.continue_())
    old.page.route("**/events/config", lambda route: route.continue_())
    old.connect(since="1-1")
    old.wait_for_state("unauthorized")
    old.page.unroute_all()
    old.wait_for_state("live")
    old.page.wait_for_function("lost.length === 1")
    assert old.lost == ["unknown-position"]


def test_an_old_browser_polls_where_the_server_says_so(
    old: Network, roll_out: Callable[[float], Any]
) -> None:
    """The poll says it, since an EventSource cannot."""
    roll_out(0)
    old.connect()
    old.wait_for_state("polling")
    assert old.snapshot["reason"] == "rollout"


def test_an_old_browser_shows_no_token_in_an_address(old: Network) -> None:
    """It gets a ticket for it."""
    old.connect(token="'secret'")
    old.wait_for_state("live")
    old.emit()
    old.wait_for_all()
    (source,) = old.page.evaluate("sources")
    assert "/api/v1/events/stream/" in source
    assert "secret" not in source


# Who asks.


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
          const onState = ({ name }) => states.push(name);
          window.stream = connect({ token, share: false, onState });
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
          window.stream = connect({ ticket, share: false, onState });
          stream.on("log.added", ({ n }) => numbers.push(n));
        }"""
    )
    for number in range(1, 4):
        network.page.wait_for_function("(number) => lives === number", arg=number)
        network.emit()
        network.wait_for_all()
        assert network.page.evaluate("tickets") >= number
        network.proxy.cut()

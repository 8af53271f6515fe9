"""One stream per browser: tabs share it, and none misses or doubles an event."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest

from tests.browser.network import NAME, NOT_FOR_AN_HOUR, TIMEOUT, Network, Tab
from tests.processes import wait_until

pytestmark = pytest.mark.browser

NO_WORKER = "delete globalThis.SharedWorker"


@pytest.fixture(params=["worker", "locks"])
def way(request: pytest.FixtureRequest, network: Network) -> str:
    """Return how the tabs share."""
    if request.param == "locks":
        network.page.context.add_init_script(NO_WORKER)
        network.page.reload()
    return str(request.param)


def share(network: Network, count: int, **options: object) -> list[Tab]:
    """Return tabs that are live."""
    tabs = network.tabs(count)
    for tab in tabs:
        tab.connect("auto", **options)
    for tab in tabs:
        tab.wait_for_state("live")
    return tabs


def test_ten_tabs_have_one_stream_on_plain_http(network: Network) -> None:
    """Ten streams would hold up every other request of the origin."""
    tabs = network.tabs(10, NAME)
    assert not tabs[0].page.evaluate("isSecureContext")
    for tab in tabs:
        tab.connect("auto")
    for tab in tabs:
        tab.wait_for_state("live")
    assert network.streams == 1
    # Who subscribes learns where it begins, late as it came.
    tabs[-1].page.wait_for_function("positions.at(-1)")
    for tab in tabs:
        assert int(tab.page.evaluate("fetch('/pid').then((answer) => answer.text())"))
    network.emit(50)
    for tab in tabs:
        tab.wait_for(list(range(50)))
        seen = tab.snapshot
        assert (seen["tabs"], seen["streams"], seen["way"]) == (10, 1, "worker")


def test_closing_tabs_hands_over_without_a_missed_event(network: Network, way: str) -> None:
    """The first first, who leads where a tab does; those that stay have every event, once."""
    tabs = share(network, 4)
    assert network.streams == 1
    assert {tab.snapshot["way"] for tab in tabs} == {way}
    while len(tabs) > 1:
        network.emit(20)
        tabs.pop(0).page.close()
        network.emit(20)
        for tab in tabs:
            tab.wait_for(list(range(network.emitted)))
            assert tab.lost == []
        wait_until(lambda: network.streams == 1, TIMEOUT, "one stream is left")
        tabs[0].page.wait_for_function("(n) => stream.snapshot().tabs === n", arg=len(tabs))
    tabs[0].page.close()
    wait_until(lambda: network.streams == 0, TIMEOUT, "the last tab ends the stream")


def test_a_worker_that_dies_is_replaced(network: Network) -> None:
    """The tabs notice, and go on from where each is, when the server gives them a new one."""
    tabs = share(network, 3)
    network.emit()
    for tab in tabs:
        tab.wait_for(list(range(5)))
    network.proxy.behave("refuse")
    browser = network.page.context.browser.new_browser_cdp_session()
    for target in browser.send("Target.getTargets")["targetInfos"]:
        if target["type"] == "shared_worker":
            browser.send("Target.closeTarget", {"targetId": target["targetId"]})
    network.emit()
    for tab in tabs:
        tab.page.wait_for_function("reasons.includes('handover')")
    asked = network.proxy.asked
    wait_until(lambda: network.proxy.asked > asked, TIMEOUT, "a tab asks for the script")
    network.proxy.behave()
    for tab in tabs:
        tab.wait_for(list(range(10)))
        tab.wait_for_state("live")
        assert tab.lost == []
        assert tab.snapshot["way"] == "worker"
    assert network.streams == 1


TICKET = """async () => {
  window.tickets = (window.tickets ?? 0) + 1;
  return (await fetch("/api/v1/events/connect", { method: "POST" })).json();
}"""


def test_a_tab_that_crashes_is_noticed(network: Network) -> None:
    """It is counted no more, and nobody waits for it to give a ticket."""
    from playwright.sync_api import Error

    tabs = network.tabs(3)
    for tab in tabs:
        tab.connect(True, ticket=TICKET)
        tab.wait_for_state("live")
    crashed = tabs.pop().page
    with crashed.expect_event("crash"), contextlib.suppress(Error):
        crashed.goto("chrome://crash", wait_until="commit")
    network.proxy.cut()
    network.emit()
    for tab in tabs:
        tab.wait_for(list(range(5)))
        tab.wait_for_state("live")
        tab.page.wait_for_function("stream.snapshot().tabs === 2")


def test_each_connection_has_a_ticket_from_some_tab(network: Network, way: str) -> None:
    """From one tab, once for each, whichever tabs are there by then."""
    tabs = network.tabs(3)
    for tab in tabs:
        tab.connect(True, ticket=TICKET)
        tab.wait_for_state("live")
    asked = sum(tab.page.evaluate("window.tickets ?? 0") for tab in tabs)
    assert asked == 1
    tabs.pop(0).page.close()
    network.proxy.cut()
    network.emit()
    for tab in tabs:
        tab.wait_for(list(range(5)))
        assert tab.lost == []
    assert network.streams == 1
    assert tabs[0].snapshot["way"] == way


def test_a_tab_that_comes_late_misses_nothing_since_it_was_computed(network: Network) -> None:
    """What the stream has had, and what was before it; the others get no more."""
    positions = [network.position]
    network.emit(5)
    positions.append(network.position)
    first, *others = network.tabs(4)
    first.connect("auto")
    first.wait_for_state("live")
    network.emit(5)
    positions.append(network.position)
    network.emit(5)
    first.wait_for(list(range(5, 15)))
    for tab, since in zip(others, positions, strict=True):
        tab.connect("auto", since=since)
    for tab, start in zip(others, (0, 5, 10), strict=True):
        tab.wait_for(list(range(start, 15)))
    network.emit(5)
    for tab, start in zip((first, *others), (5, 0, 5, 10), strict=True):
        tab.wait_for(list(range(start, 20)))
        assert tab.lost == []
        assert tab.snapshot["position"] == network.position
    assert network.streams == 1


def test_a_tab_whose_position_is_gone_is_told_of_a_gap(network: Network) -> None:
    """It alone; from then on it has what the others have."""
    (old,) = share(network, 1)
    (late,) = share(network, 1, since="1-1")
    late.page.wait_for_function("lost.length === 1")
    assert late.lost == ["unknown-position"]
    network.emit()
    for tab in (old, late):
        tab.wait_for(list(range(5)))
    assert old.lost == []
    assert network.streams == 1


def test_a_leader_that_hangs_is_replaced(network: Network) -> None:
    """A tab behind a dialog leads nobody; when it goes on, it follows, and has missed nothing."""
    network.page.context.add_init_script(NO_WORKER)
    leader, *others = share(network, 3)
    dialogs: list[Any] = []
    leader.page.on("dialog", lambda dialog: dialogs.append(dialog))
    leader.page.evaluate("void setTimeout(() => alert('Look here.'))")
    others[0].page.wait_for_function("stream.snapshot().tabs === 2")
    network.emit()
    for tab in others:
        tab.wait_for(list(range(5)))
    dialogs[0].dismiss()
    leader.wait_for(list(range(5)))
    network.emit()
    for tab in (leader, *others):
        tab.wait_for(list(range(10)))
        assert tab.lost == []
    wait_until(lambda: network.streams == 1, TIMEOUT, "the leader that hung leads no more")


def jwt(**claims: Any) -> str:
    """Return JavaScript that returns a token with these claims."""
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"async () => 'head.{payload}.signature'"


FAILS_ONCE = """(() => {
  let times = 0;
  return () => {
    if (!times++) throw new Error("no session yet");
    return "opaque";
  };
})()"""

SAME: dict[str, tuple[list[dict[str, Any]], int]] = {
    "the same": ([{}, {"share": True}, {"types": []}], 1),
    "types": ([{}, {"types": ["log.*"]}, {"types": ["log.*", "incident.*"]}], 3),
    "their order": ([{"types": ["log.*", "incident.*"]}, {"types": "incident.*,log.*"}], 1),
    "not to share": ([{}, {"share": False}, {"share": False}], 3),
    "a name": ([{"share": "anna"}, {"share": "anna"}, {"share": "bert"}], 2),
    "a token": ([{"token": "'a'"}, {"token": "'a'"}, {"token": "'b'"}], 2),
    "a renewed token": ([{"token": jwt(sub="1", exp=1)}, {"token": jwt(sub="1", exp=2)}], 1),
    "users": ([{"token": jwt(sub="1")}, {"token": jwt(sub="2")}, {"token": "() => 'x'"}], 3),
    "tickets, of users unknown": ([{"ticket": TICKET}, {"ticket": TICKET}], 2),
    "no token": ([{"token": "() => null"}, {"token": FAILS_ONCE}, {}], 3),
}

CONNECT_ALL = """async (wanted) => {
  const { connect } = await import("/api/v1/events/client.js");
  window.streams = [];
  const live = wanted.map((options) => new Promise((resolve) => {
    for (const name of ["ticket", "token"]) {
      if (options[name]) options[name] = (0, eval)(options[name]);
    }
    const onState = ({ name }) => name === "live" && resolve();
    streams.push(connect({ ...options, onState }));
  }));
  await Promise.all(live);
}"""


def test_only_what_is_the_same_for_all_is_shared(network: Network) -> None:
    """Two users never share, nor do those that ask for something else."""
    for name, (options, streams) in SAME.items():
        network.page.evaluate(CONNECT_ALL, options)
        assert network.streams == streams, name
        network.page.evaluate("streams.forEach((stream) => stream.close())")
        wait_until(lambda: network.streams == 0, TIMEOUT, "all are closed")


@pytest.mark.parametrize(
    ("policy", "way"),
    [
        ("worker-src 'self'", "worker"),
        ("worker-src 'none'", "locks"),
    ],
)
def test_a_strict_content_security_policy_is_kept(network: Network, policy: str, way: str) -> None:
    """Where it allows no worker, the tabs share all the same."""
    policy = f"default-src 'none'; script-src 'self'; connect-src 'self'; {policy}"
    tabs = network.tabs(2)
    for tab in tabs:
        tab.answer(
            "**/snapshot",
            headers={"Content-Type": "text/html", "Content-Security-Policy": policy},
            body='<script src="/api/v1/events/client.classic.js"></script>',
        )
        tab.page.reload()
        tab.connect("auto")
        tab.wait_for_state("live")
        assert tab.page.evaluate("typeof NocRealtime.connect") == "function"
    network.emit()
    for tab in tabs:
        tab.wait_for(list(range(5)))
        assert tab.snapshot["way"] == way
    assert network.streams == 1


def test_what_breaks_is_shown_in_every_tab_and_mended(network: Network) -> None:
    """They share the stream, so they share its state."""
    tabs = share(network, 2)
    network.proxy.behave("freeze")
    for tab in tabs:
        tab.wait_for_state("reconnecting")
    network.emit()
    network.proxy.behave()
    for tab in tabs:
        tab.wait_for_state("live")
        tab.wait_for(list(range(5)))
        assert tab.lost == []


def test_a_tab_that_comes_after_a_login_has_the_others_try_at_once(network: Network) -> None:
    """Who shares a stream that is refused need not wait for its next try."""
    old, late = network.tabs(2)
    late.page.evaluate("() => import('/api/v1/events/client.js').then(() => {})")
    old.connect("auto")
    old.wait_for_state("live")
    network.proxy.behave("answer", NOT_FOR_AN_HOUR)
    old.wait_for_state("unauthorized")
    network.proxy.behave()
    late.connect("auto")
    for tab in (late, old):
        tab.wait_for_state("live")


def test_tabs_of_two_releases_do_not_meet(network: Network) -> None:
    """A worker that runs another one's script refuses, and the tab takes another way."""
    answer = network.page.evaluate(
        """() => new Promise((resolve) => {
          const script = "/api/v1/events/client.js";
          const { port } = new SharedWorker(script, { type: "module", name: "another" });
          port.onmessage = ({ data }) => resolve(data);
          port.postMessage({ kind: "join", build: "another" });
        })"""
    )
    assert answer == {"kind": "refused"}

"""The demo's dashboard in a real browser: it is live, and says what it is when it is not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.desk import banner, enter, enter_live, row, wait_for_state
from tests.demo import Demo
from tests.faults import FaultProxy

pytestmark = pytest.mark.browser

SHOWS_WHAT_THE_DATABASE_SAYS = """async () => {
  const text = (row) => JSON.stringify(Object.entries(row).sort());
  for (const [name, { id }] of Object.entries(noc.SOURCES)) {
    for (const row of await noc.fetch(`/api/${name}`)) {
      const shown = document.getElementById(id(row));
      if (!shown || text(JSON.parse(shown.row)) !== text(row)) return false;
    }
  }
  return true;
}"""

ALONE = """
  delete window.SharedWorker;
  Object.defineProperty(navigator, "locks", { value: undefined });
"""

DEVICES_WITH_INCIDENTS = (
    "[...document.querySelectorAll('#incidents .device')].map((cell) => cell.textContent).sort()"
)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Return a demo in which much happens."""
    with Demo(tmp_path_factory.mktemp("busy"), DEMO_RATE="20") as demo:
        yield demo


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Return a demo in which nothing happens by itself, and whose clients are impatient."""
    with Demo(
        tmp_path_factory.mktemp("quiet"),
        DEMO_RATE="0.01",
        NOC_REALTIME_RETRY="0.2",
        NOC_REALTIME_HEARTBEAT="0.5",
        NOC_REALTIME_POLL_INTERVAL="0.2",
    ) as demo:
        yield demo


def test_events_are_on_screen_within_a_tenth_of_a_second(page: Any, busy: Demo) -> None:
    """Half of them far sooner, measured in the page from the event's own timestamp."""
    enter_live(page, busy)
    # What happened while the page loaded is replayed, and old by then.
    page.evaluate("window.nocLatencies.length = 0")
    page.wait_for_function("() => window.nocLatencies.length >= 40")
    latencies = sorted(page.evaluate("window.nocLatencies"))
    assert latencies[len(latencies) // 2] < 100
    assert page.locator("#servers span").count() == 200
    assert page.problems == []


def test_a_page_drawn_event_by_event_shows_what_a_reload_shows(page: Any, busy: Demo) -> None:
    """The same rows, in the same order, with the same words."""
    enter_live(page, busy, "alex")
    page.wait_for_function("() => window.nocLatencies.length >= 120")
    # True between two events, unless a row was left behind.
    page.wait_for_function(SHOWS_WHAT_THE_DATABASE_SAYS)
    incidents = page.evaluate("[...document.querySelectorAll('#incidents tr')].map((e) => e.rank)")
    assert incidents == sorted(incidents)
    assert page.problems == []


def test_what_happens_between_the_data_and_the_stream_is_not_lost(page: Any, quiet: Demo) -> None:
    """The stream starts at the position of the page, which is older than the data it fetches."""
    incident = quiet.incident()["id"]

    def acknowledge_once_it_is_read(route: Any) -> None:
        old = route.fetch()
        quiet.acknowledge(incident)
        route.fulfill(response=old)

    page.route("**/api/incidents", acknowledge_once_it_is_read)
    enter(page, quiet)
    page.wait_for_selector(f"#incident-{incident} >> text=kim")
    assert page.problems == []


def test_the_footer_says_how_fresh_it_all_is(page: Any, quiet: Demo) -> None:
    """The state, the last event, what was missed, and how the windows share."""
    enter_live(page, quiet)
    quiet.acknowledge(quiet.incident()["id"])
    connection = page.locator("#connection")
    page.wait_for_function("() => nocStream.snapshot().delivered > 0")
    page.evaluate("noc.tick()")
    assert re.match(r"· last event \d s ago · 0 missed", connection.text_content())
    enter_live(page.context.new_page(), quiet)
    page.wait_for_function("() => nocStream.snapshot().tabs === 2")
    page.evaluate("noc.tick()")
    assert connection.text_content().endswith(" · 0 missed · 1 stream / 2 tabs")
    assert page.problems == []


def test_a_lost_connection_is_said_and_marks_what_is_old(page: Any, quiet: Demo) -> None:
    """Within seconds, each widget for itself; it is live again without a reload."""
    with FaultProxy(("127.0.0.1", quiet.port)) as proxy:
        enter_live(page, quiet, url=proxy.url)
        stale = page.locator("[data-stale]")
        assert stale.count() == 0
        page.evaluate("noc.patience = 1500")
        proxy.behave("refuse")
        wait_for_state(page, "reconnecting")
        banner(page, "connection").get_by_text("No connection since").wait_for()
        page.wait_for_function("() => document.querySelectorAll('[data-stale]').length === 4")
        assert page.locator(".log .stale").text_content().startswith("⚠ stale: as of ")
        proxy.behave()
        wait_for_state(page, "live")
        page.wait_for_function("() => document.querySelectorAll('[data-stale]').length === 0")
        assert banner(page, "connection").count() == 0
        assert banner(page, "gap").count() == 0


def test_where_streams_do_not_come_through_the_page_says_that_it_polls(
    page: Any, quiet: Demo
) -> None:
    """It shows what happens all the same, and goes back by itself."""
    # Only what a page asks itself can be held back here.
    page.add_init_script(ALONE)
    page.route("**/events/stream*", lambda route: route.fulfill(status=200, body="held back"))
    enter(page, quiet)
    wait_for_state(page, "polling")
    banner(page, "connection").get_by_text("asked every few seconds").wait_for()
    incident = quiet.incident()["id"]
    quiet.acknowledge(incident)
    row(page, incident).get_by_text("kim").wait_for()
    page.unroute("**/events/stream*")
    wait_for_state(page, "live")
    banner(page, "connection").wait_for(state="detached")
    assert page.problems == []


def test_whoever_is_logged_out_is_told_and_goes_on_after_a_login(
    page: Any, others: Callable[[], Any], quiet: Demo
) -> None:
    """In any window, without a reload; what happened meanwhile is shown."""
    enter_live(page, quiet, "alex")
    second = page.context.new_page()
    second.goto(quiet.url)
    second.get_by_role("button", name="Log out").click()
    wait_for_state(page, "unauthorized")
    banner(page, "connection").get_by_text("You are logged out").wait_for()
    incident = quiet.incident()["id"]
    quiet.acknowledge(incident)
    second.get_by_role("button", name="Log in as alex").click()
    wait_for_state(second, "live")
    wait_for_state(page, "live")
    row(page, incident).get_by_text("kim").wait_for()


def test_the_page_is_right_after_a_restart_with_another_network(page: Any, tmp_path: Path) -> None:
    """It says what it missed, is live again by itself, and shows no row of before."""
    with Demo(tmp_path, DEMO_RATE="0.01", NOC_REALTIME_RETRY="0.2") as demo:
        enter_live(page, demo)
        before = page.evaluate(DEVICES_WITH_INCIDENTS)
        demo.stop()
        wait_for_state(page, "reconnecting")
        page.route("**/api/logs", lambda route: route.fulfill(status=500, body="no"))
        page.evaluate("noc.patience = 2500")
        demo.environ["DEMO_SEED"] = "11"
        with demo:
            wait_for_state(page, "live")
            after = sorted(row["server"] for row in demo.ask("/api/incidents"))
            assert after != before
            page.wait_for_function(
                f"(now) => `${{{DEVICES_WITH_INCIDENTS}}}` === `${{now}}`", arg=after
            )
            # One widget could not be had again, the others could.
            page.wait_for_function("() => document.querySelectorAll('[data-stale]').length === 1")
            assert page.locator(".log .stale").text_content().startswith("⚠ stale: as of ")
            page.unroute("**/api/logs")
            page.wait_for_function("() => document.querySelectorAll('[data-stale]').length === 0")
            said = banner(page, "gap")
            said.get_by_text("Events were missed").wait_for()
            page.evaluate("noc.tick()")
            assert re.search(r" [1-9] missed ·", page.locator("#connection").text_content())
            said.get_by_role("button", name="Understood").click()
            assert said.count() == 0


def test_the_legacy_page_polls(page: Any, tmp_path: Path) -> None:
    """It shows the same rows, up to five seconds late, and redraws only what changed."""
    with Demo(tmp_path, "--legacy", DEMO_RATE="0.01") as demo:
        enter(page, demo)
        wait_for_state(page, "polling")
        incident, other = (row["id"] for row in demo.ask("/api/incidents")[:2])
        page.evaluate(f"document.getElementById('incident-{other}').untouched = true")
        demo.acknowledge(incident)
        page.wait_for_selector(f"#incident-{incident} >> text=kim")
        assert page.evaluate(f"document.getElementById('incident-{other}').untouched")
        asked = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert not any("stream" in url for url in asked)
        assert page.problems == []

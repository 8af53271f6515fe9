"""The demo's page in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.demo import Demo

pytestmark = pytest.mark.browser

SHOWS_WHAT_THE_DATABASE_SAYS = """async () => {
  const text = (row) => JSON.stringify(Object.entries(row).sort());
  for (const [name, [, id]] of Object.entries(noc.SOURCES)) {
    for (const row of await noc.fetch(`/api/${name}`)) {
      const shown = document.getElementById(id(row));
      if (!shown || text(JSON.parse(shown.row)) !== text(row)) return false;
    }
  }
  return true;
}"""

DEVICES_WITH_INCIDENTS = (
    "[...document.querySelectorAll('#incidents .device')].map((cell) => cell.textContent).sort()"
)


def test_events_are_on_screen_within_a_tenth_of_a_second(page: Any, tmp_path: Path) -> None:
    """Half of them far sooner, measured in the page from the event's own timestamp."""
    with Demo(tmp_path, DEMO_RATE="20") as demo:
        page.goto(demo.url)
        wait_for_state(page, "live")
        # What happened while the page loaded is replayed, and old by then.
        page.evaluate("window.nocLatencies.length = 0")
        page.wait_for_function("window.nocLatencies.length >= 40")
        latencies = sorted(page.evaluate("window.nocLatencies"))
        assert latencies[len(latencies) // 2] < 100
        assert page.locator("#servers span").count() == 200
        assert page.problems == []


def test_a_page_drawn_event_by_event_shows_what_a_reload_shows(page: Any, tmp_path: Path) -> None:
    """The same rows, in the same order, with the same words."""
    with Demo(tmp_path, DEMO_RATE="20") as demo:
        page.goto(demo.url)
        wait_for_state(page, "live")
        page.wait_for_function("window.nocLatencies.length >= 120")
        # True between two events, unless a row was left behind.
        page.wait_for_function(SHOWS_WHAT_THE_DATABASE_SAYS)
        incidents = page.evaluate(
            "[...document.querySelectorAll('#incidents tr')].map((e) => e.rank)"
        )
        assert incidents == sorted(incidents)
        assert page.problems == []


def test_an_acknowledgement_appears_in_a_window_that_did_nothing(page: Any, tmp_path: Path) -> None:
    """Without a reload, and with the name of who is on it."""
    with Demo(tmp_path) as demo:
        page.goto(demo.url)
        wait_for_state(page, "live")
        page.evaluate("window.sameDocument = true")
        page.wait_for_selector("#incidents tr button")
        incident = demo.incident()
        demo.acknowledge(incident["id"], "kim")
        page.wait_for_selector(f"#incident-{incident['id']} >> text=kim")
        assert page.evaluate("window.sameDocument")
        assert page.problems == []


def test_the_button_acknowledges_in_the_name_of_the_operator(page: Any, tmp_path: Path) -> None:
    """The row shows it, and the legacy app stored it."""
    with Demo(tmp_path, DEMO_RATE="0.01") as demo:
        page.goto(demo.url)
        wait_for_state(page, "live")
        page.fill("#operator", "alex")
        row = page.locator("#incidents tr:has(button)").first
        id = int(row.get_attribute("id").removeprefix("incident-"))
        row.locator("button").click()
        page.wait_for_selector(f"#incident-{id} >> text=alex")
        stored = {incident["id"]: incident for incident in demo.get("/api/incidents")}
        assert stored[id]["acknowledged_by"] == "alex"
        assert page.problems == []


def test_what_happens_between_the_data_and_the_stream_is_not_lost(
    page: Any, tmp_path: Path
) -> None:
    """The stream starts at the position of the page, which is older than the data it fetches."""
    with Demo(tmp_path, DEMO_RATE="0.01") as demo:
        incident = demo.incident()["id"]

        def acknowledge_once_it_is_read(route: Any) -> None:
            old = route.fetch()
            demo.acknowledge(incident, "kim")
            route.fulfill(response=old)

        page.route("**/api/incidents", acknowledge_once_it_is_read)
        page.goto(demo.url)
        page.wait_for_selector(f"#incident-{incident} >> text=kim")
        assert page.problems == []


def test_the_page_is_right_after_a_restart_with_another_network(page: Any, tmp_path: Path) -> None:
    """It says that it is reconnecting, is live again by itself, and shows no row of before."""
    with Demo(tmp_path, DEMO_RATE="0.01") as demo:
        page.goto(demo.url)
        wait_for_state(page, "live")
        before = page.evaluate(DEVICES_WITH_INCIDENTS)
        demo.stop()
        wait_for_state(page, "reconnecting")
        demo.environ["DEMO_SEED"] = "11"
        with demo:
            wait_for_state(page, "live")
            after = sorted(row["server"] for row in demo.get("/api/incidents"))
            assert after != before
            page.wait_for_function(
                f"(now) => `${{{DEVICES_WITH_INCIDENTS}}}` === `${{now}}`", arg=after
            )


def test_the_legacy_page_polls(page: Any, tmp_path: Path) -> None:
    """It shows the same rows, up to five seconds late, and redraws only what changed."""
    with Demo(tmp_path, "--legacy", DEMO_RATE="0.01") as demo:
        page.goto(demo.url)
        wait_for_state(page, "polling")
        incident, other = (row["id"] for row in demo.get("/api/incidents")[:2])
        page.evaluate(f"document.getElementById('incident-{other}').untouched = true")
        demo.acknowledge(incident, "kim")
        page.wait_for_selector(f"#incident-{incident} >> text=kim")
        assert page.evaluate(f"document.getElementById('incident-{other}').untouched")
        asked = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert not any("stream" in url for url in asked)
        assert page.problems == []


def wait_for_state(page: Any, state: str) -> None:
    """Wait until the footer says *state*."""
    page.wait_for_function(f"document.getElementById('state').dataset.state === '{state}'")

"""The demo's page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.demo import Demo

pytestmark = pytest.mark.browser

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def page() -> Iterator[Any]:
    """Return a page of Debian's Chromium that collects what went wrong in `problems`."""
    chromium = require("chromium")
    require("playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page: Any = browser.new_page()
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        yield page
        browser.close()


def test_events_are_on_screen_within_a_tenth_of_a_second(page: Any, tmp_path: Path) -> None:
    """Half of them far sooner, measured in the page from the event's own timestamp."""
    with Demo(tmp_path, DEMO_RATE="20") as demo:
        page.goto(demo.url)
        page.wait_for_function("document.getElementById('state').dataset.state === 'live'")
        # What happened while the page loaded is replayed, and old by then.
        page.evaluate("window.nocLatencies.length = 0")
        page.wait_for_function("window.nocLatencies.length >= 40")
        latencies = sorted(page.evaluate("window.nocLatencies"))
        assert latencies[len(latencies) // 2] < 100
        assert page.locator("#servers span").count() == 200
        assert page.problems == []


def test_an_acknowledgement_appears_in_a_window_that_did_nothing(page: Any, tmp_path: Path) -> None:
    """Without a reload, and with the name of who is on it."""
    with Demo(tmp_path, DEMO_RATE="20") as demo:
        page.goto(demo.url)
        page.wait_for_function("document.getElementById('state').dataset.state === 'live'")
        page.evaluate("window.sameDocument = true")
        page.wait_for_selector("#incidents tr button")
        incident = demo.incident()
        demo.acknowledge(incident["id"], "kim")
        page.wait_for_selector(f"#incident-{incident['id']} >> text=kim")
        assert page.evaluate("window.sameDocument")
        assert page.problems == []


def test_the_page_goes_on_after_a_restart_of_the_server(page: Any, tmp_path: Path) -> None:
    """It says that it is reconnecting, and is live again by itself."""
    with Demo(tmp_path, DEMO_RATE="20") as demo:
        page.goto(demo.url)
        page.wait_for_function("document.getElementById('state').dataset.state === 'live'")
        demo.stop()
        page.wait_for_function("document.getElementById('state').dataset.state === 'reconnecting'")
        with demo:
            page.wait_for_function("document.getElementById('state').dataset.state === 'live'")

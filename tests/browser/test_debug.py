"""The debug page in a real browser: what the stream does, and what came over the wire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.network import ENV, TIMEOUT
from tests.conftest import require
from tests.gunicorn_server import GunicornServer
from tests.processes import wait_until
from tests.server.client import Site

pytestmark = pytest.mark.browser

DEBUG = "/api/v1/events/debug"
STREAM = "() => import('/api/v1/events/client.js?v=0').then(({ connect }) => void connect())"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GunicornServer]:
    """Return an app with the page."""
    env = {**ENV, "NOC_REALTIME_DEBUG_PAGE": "1"}
    server = GunicornServer("tests.server.apps:create()", tmp_path_factory.mktemp("debug"), env=env)
    try:
        yield server.start()
    finally:
        server.close()


def wait(page: Any, expression: str) -> None:
    """Wait until an expression is true; Playwright's own way needs 'unsafe-eval'."""
    wait_until(lambda: page.evaluate(expression), TIMEOUT, expression)


def texts(page: Any, selector: str) -> list[str]:
    """Return the texts of elements, newest first."""
    found: list[str] = page.locator(selector).all_text_contents()
    return found


def fact(page: Any, name: str) -> str:
    """Return what the page says of the stream as it is now."""
    found: str = page.locator(f"dt:text-is('{name}') + dd").text_content()
    return found


def test_what_comes_and_what_breaks_is_on_the_debug_page(page: Any, server: GunicornServer) -> None:
    """The frames as they came, and each state; no token is left in the address."""
    site = Site(server.address)
    page.goto(f"{server.url}{DEBUG}?token=secret&types=log.*")
    wait(page, "document.getElementById('state').dataset.state === 'live'")
    assert page.evaluate("location.search") == "?types=log.*"
    site.ask("GET", "/emit?first=7&count=1")
    frames = "#frames pre"
    wait_until(lambda: any('{"n":7}' in text for text in texts(page, frames)), TIMEOUT, "a frame")
    assert "event: stream.open\ndata: " in texts(page, frames)[-1]
    assert fact(page, "Position") == site.ask("GET", "/snapshot").headers["X-Noc-Position"]
    assert (fact(page, "Transport"), fact(page, "Events")) == ("stream, read by fetch", "1")
    page.get_by_role("button", name="Drop the connection").click()
    wait(page, "document.querySelectorAll('#history tbody tr').length >= 3")
    states = texts(page, "#history tbody td:nth-child(2)")
    assert states[-3:] == ["live", "reconnecting", "live"]
    assert texts(page, "#history tbody td:nth-child(3)")[-2] == "dropped"
    assert "secret" not in page.content()
    assert page.problems == []


def test_the_debug_page_shows_the_stream_of_the_other_tabs(
    page: Any, server: GunicornServer
) -> None:
    """It is the one they share, so that what is wrong with it is there to be seen."""
    page.goto(server.url + "/snapshot")
    page.evaluate(STREAM)
    debug = page.context.new_page()
    debug.goto(server.url + DEBUG)
    wait_until(lambda: fact(debug, "Tabs") == "2", TIMEOUT, "both tabs share a stream")
    assert fact(debug, "Held by") == "a shared worker"


def test_a_gap_is_on_the_debug_page(page: Any, server: GunicornServer) -> None:
    """With its reason, and from where to where."""
    reset = 'event: stream.reset\ndata: {"reason": "overrun"}\nid: 9-9\n\n'
    opened = "event: stream.open\ndata: {}\nid: 1-1\n\n"
    page.context.add_init_script("delete globalThis.SharedWorker; delete navigator.__proto__.locks")
    page.route(
        "**/events/stream*",
        lambda route: route.fulfill(content_type="text/event-stream", body=opened + reset),
        times=1,
    )
    page.goto(server.url + DEBUG)
    wait(page, "document.querySelectorAll('#gaps tbody tr').length")
    assert texts(page, "#gaps tbody tr:last-child td")[1:] == ["overrun", "1-1", "9-9"]
    assert fact(page, "Held by") == "this tab, for itself"


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_finds_no_violation_on_the_debug_page(
    page: Any, server: GunicornServer, theme: str
) -> None:
    """With something in each of its parts."""
    require("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=theme)
    page.goto(server.url + DEBUG)
    wait(page, "document.getElementById('state').dataset.state === 'live'")
    Site(server.address).ask("GET", "/emit?count=40")
    wait(page, "document.querySelectorAll('#frames li').length > 2")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()

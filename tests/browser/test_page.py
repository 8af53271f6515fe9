"""What templates are given keeps their pages live, under a strict policy and with htmx."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GunicornFactory
from tests.gunicorn_server import GunicornServer
from tests.processes import wait_until
from tests.server.client import Site

pytestmark = pytest.mark.browser

TIMEOUT = 20.0


def wait(page: Any, expression: str) -> None:
    """Wait until an expression is true; Playwright's own way needs 'unsafe-eval'."""
    wait_until(lambda: page.evaluate(expression), TIMEOUT, expression)


@pytest.mark.parametrize(
    ("path", "script"),
    [("/script", "client-page.js"), ("/script?classic", "client.classic.js")],
    ids=["a module", "a classic script"],
)
def test_a_tag_keeps_a_page_live_from_its_position_on(
    page: Any, pages: GunicornServer, path: str, script: str
) -> None:
    """Its events, states and gaps are DOM events; a policy of nonces alone lets it work."""
    site = Site(pages.address)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    def happen_meanwhile(route: Any) -> None:
        site.emit("log.added", {"n": 1})
        site.emit("server.status.changed", {"n": 2})
        route.continue_()

    page.route(f"**/{script}*", happen_meanwhile, times=1)
    page.goto(pages.url + path)
    wait(page, "told.some(([name, { name: state }]) => name === 'state' && state === 'live')")
    site.emit("log.added", {"n": 3})
    wait(page, "told.filter(([name]) => name === 'log.added').length === 2")
    logs = "told.filter(([name]) => name.includes('.')).map(([, { type, data }]) => [type, data.n])"
    assert page.evaluate(logs) == [["log.added", 1], ["log.added", 3]]
    assert page.evaluate("nocRealtime.snapshot().delivered") == 2
    assert page.evaluate("nocRealtime.snapshot().way") == "worker"
    assert any("/client.js" in url for url in asked) == (script == "client-page.js")
    assert page.problems == []


def test_a_gap_is_told_to_the_page(page: Any, pages: GunicornServer) -> None:
    """With its reason, as to `onGap`."""

    def be_older(route: Any) -> None:
        answer = route.fetch()
        text = re.sub('data-since="[^"]+"', 'data-since="1-1"', answer.text())
        route.fulfill(response=answer, body=text)

    page.route("**/script", be_older)
    page.goto(pages.url + "/script")
    wait(page, "told.some(([name]) => name === 'gap')")
    gaps = "told.filter(([name]) => name === 'gap').map(([, { reason }]) => reason)"
    assert page.evaluate(gaps) == ["unknown-position"]


def test_the_recipe_for_htmx_follows_events(
    page: Any, gunicorn: GunicornFactory, packages: Path
) -> None:
    """As it stands in the documentation; what comes while it asks costs one more request."""
    dist = packages / "node_modules" / "htmx.org" / "dist"
    server = gunicorn("tests.server.htmx_app:create()", env={"HTMX": str(dist)})
    site = Site(server.address)
    asked: list[Any] = []
    page.route("**/incidents/rows", lambda route: asked.append(route))
    page.goto(server.url)
    assert page.locator("tr").count() == 0
    wait(page, "window.nocRealtime?.snapshot().name === 'live'")
    for title in "abcd":
        site.post("/incidents", title)
    wait(page, "nocRealtime.snapshot().delivered === 4")
    for _ in range(2):
        # Playwright takes requests only while it is asked for something.
        wait_until(lambda: page.evaluate("1") and asked, TIMEOUT, "the table asks")
        asked.pop().continue_()
    wait_until(lambda: page.locator("tr").count() == 4, TIMEOUT, "the rows are there")
    assert page.locator("tr").all_inner_texts() == ["a", "b", "c", "d"]
    assert asked == []
    assert page.problems == []

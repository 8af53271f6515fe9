"""Windows of the demo's pages."""

from __future__ import annotations

from typing import Any

from tests.demo import Demo


def enter(page: Any, demo: Demo, name: str = "kim", path: str = "/", url: str = "") -> Any:
    """Open a page of the demo as somebody who is logged in; return the page.

    :param url: the way to the demo, if it is not the straight one.
    """
    cookie, _, value = demo.login(name).partition("=")
    page.context.add_cookies([{"name": cookie, "value": value, "url": demo.url}])
    page.goto((url or demo.url) + path)
    return page


def enter_live(page: Any, demo: Demo, name: str = "kim", path: str = "/", url: str = "") -> Any:
    """Open a page as `enter` does, and return it when it is live."""
    enter(page, demo, name, path, url)
    wait_for_state(page, "live")
    return page


def wait_for_state(page: Any, state: str) -> None:
    """Wait until the footer says *state*."""
    page.wait_for_function(
        "(state) => document.getElementById('state')?.dataset.state === state", arg=state
    )


def row(page: Any, incident: int) -> Any:
    """Return the row of an incident."""
    return page.locator(f"#incident-{incident}")


def banner(page: Any, name: str) -> Any:
    """Return what the page says above the widgets."""
    return page.locator(f"#banner-{name}")

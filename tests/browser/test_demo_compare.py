"""The page that compares, in a real browser: what polling costs, and what breaks and recovers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import new_page
from tests.browser.desk import enter, wait_for_state
from tests.conftest import RedisFactory, require
from tests.demo import Demo

pytestmark = pytest.mark.browser

FAST = {
    "DEMO_RATE": "5",
    "DEMO_BREAK_SECONDS": "2",
    "NOC_REALTIME_RETRY": "0.2",
    "NOC_REALTIME_HEARTBEAT": "0.5",
}

RECOVERED = """(fault) => document.querySelector(`li[data-fault="${fault}"][data-done]`)"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Return a demo whose faults are short."""
    with Demo(tmp_path_factory.mktemp("demo"), **FAST) as demo:
        yield demo


@pytest.fixture(scope="module")
def compare(browser: Any, demo: Demo) -> Iterator[Any]:
    """Return the page, which the tests of a fault share, so that none is made good by a reload."""
    with new_page(browser) as page:
        yield open_compare(page, demo)


def open_compare(page: Any, demo: Demo) -> Any:
    """Return the page, when the stream has brought something."""
    enter(page, demo, path="/compare")
    wait_for_state(page, "live")
    page.wait_for_function("() => nocCounted.events > 0")
    return page


def break_it(page: Any, fault: str) -> dict[str, Any]:
    """Press a button, wait until the page says that it has recovered, and return how."""
    page.locator(f'button[data-fault="{fault}"]').click()
    page.wait_for_function(RECOVERED, arg=fault)
    item = page.locator(f'li[data-fault="{fault}"]')
    return {
        "states": item.locator(".bar span").all_text_contents(),
        "outcome": item.locator(".outcome").text_content(),
        "wrong": item.locator(".outcome[data-wrong]").count(),
        "counted": page.evaluate("({ ...nocCounted })"),
    }


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        ("503", "reconnecting"),
        ("hang", "reconnecting"),
        ("cut", "reconnecting"),
        ("half-open", "reconnecting"),
        ("logout", "unauthorized"),
        ("overflow", "gap"),
    ],
)
def test_what_is_broken_is_live_again_with_nothing_missing_or_doubled(
    compare: Any, fault: str, shown: str
) -> None:
    """Without a reload; what the page counts is compared with the database."""
    recovery = break_it(compare, fault)
    assert shown in recovery["states"]
    assert recovery["states"][-1] == "live"
    assert recovery["outcome"].startswith("live again after ")
    assert not recovery["wrong"], recovery
    assert (recovery["counted"]["missing"], recovery["counted"]["doubled"]) == (0, 0)


def test_a_killed_worker_that_had_its_log_in_memory_is_a_gap(compare: Any) -> None:
    """The page is told, fetches what it missed, and is live by the next worker."""
    recovery = break_it(compare, "kill")
    assert "gap" in recovery["states"]
    assert recovery["states"][-1] == "live"
    assert not recovery["wrong"], recovery


def test_a_killed_worker_of_four_on_redis_is_no_gap(
    page: Any, tmp_path: Path, redis_server: RedisFactory
) -> None:
    """Another one goes on from where the page was."""
    with Demo(tmp_path, REDIS_URL=redis_server().url, **FAST) as demo:
        recovery = break_it(open_compare(page, demo), "kill")
    assert recovery["states"][-1] == "live"
    assert "gap" not in recovery["states"]
    assert not recovery["wrong"], recovery
    assert recovery["counted"]["fetched"] == 0


def test_viewers_that_poll_and_viewers_that_stream_are_measured(page: Any, demo: Demo) -> None:
    """By all four charts; who moves the slider moves it in all windows."""
    open_compare(page, demo)
    second = enter(page.context.new_page(), demo, path="/compare")
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    second.wait_for_function("() => document.getElementById('viewers').value === '10'")
    second.close()
    page.wait_for_function(
        """() => [...document.querySelectorAll("[data-now], [data-saved]")]
          .every((box) => /[0-9]/.test(box.textContent))"""
    )
    page.wait_for_function(
        """() => document.querySelector("[data-now=polling-queries]").textContent !== "0" """
    )
    assert page.locator("[data-chart] canvas").count() == 4
    assert page.problems == []
    page.keyboard.press("ArrowLeft")


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_finds_no_violation_on_it(page: Any, demo: Demo, theme: str) -> None:
    """With a recovery on it."""
    require("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=theme)
    break_it(open_compare(page, demo), "cut")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()

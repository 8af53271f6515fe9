"""The page about emitting outside of Flask is run as it stands."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flask_noc_realtime import Emitter, RealtimeHandler
from flask_noc_realtime.testing import Events, capture
from tests.conftest import RedisFactory
from tests.documentation import blocks
from tests.processes import free_port

START, ENVIRON, TYPE, WAIT, DICT_CONFIG, HANDLER = blocks("outside", "python")


class Page:
    """What has run some of the page's blocks."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.names: dict[str, Any] = {}

    def run(self, block: str) -> None:
        """Run a block with the Redis of the test."""
        exec(block.replace("redis://localhost:6379/0", self.url), self.names)

    def close(self) -> None:
        """Close what the blocks left open."""
        emitter = self.names.get("emitter")
        if isinstance(emitter, Emitter):
            emitter.close(0.0)


@pytest.fixture
def open_page() -> Iterator[Callable[[str], Page]]:
    """Return a function that opens the page for a Redis."""
    pages: list[Page] = []

    def open(url: str) -> Page:
        pages.append(Page(url))
        return pages[-1]

    yield open
    for page in pages:
        page.close()


@pytest.fixture
def page(open_page: Callable[[str], Page], redis_server: RedisFactory) -> Page:
    """Return the page with a Redis."""
    return open_page(redis_server().url)


@pytest.fixture
def events() -> Iterator[Events]:
    """Return what is emitted during the test."""
    with capture() as events:
        yield events


def test_the_first_example_publishes(page: Page, events: Events) -> None:
    """With a type of one's own, too."""
    page.run(START)
    page.run(TYPE)
    page.names["emitter"].emit("link.flapped")
    assert events.types == ["incident.created", "link.flapped"]
    assert all(event.position for event in events)


def test_the_environment_holds_the_settings(
    page: Page, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the names the app reads them by."""
    monkeypatch.setenv("NOC_REALTIME_URL", page.url)
    page.run(START.splitlines()[0])
    page.run(ENVIRON)
    assert page.names["emitter"].emit("log.added", 1) is not None


def test_a_script_knows_whether_its_event_is_published(
    page: Page, open_page: Callable[[str], Page], events: Events
) -> None:
    """It ends well, or as the page says."""
    page.run(START.splitlines()[0])
    page.run(WAIT)
    assert events.types == ["automation.completed"]
    away = open_page(f"redis://127.0.0.1:{free_port()}")
    away.run(START.splitlines()[0])
    with pytest.raises(SystemExit, match="Redis is away"):
        away.run(WAIT.replace("timeout=30", "timeout=0.01"))


def test_the_logging_example_sends_what_the_page_shows(page: Page, events: Events) -> None:
    """The keys in their order; the level and the permissions hold."""
    page.run(DICT_CONFIG)
    (handler,) = logging.getLogger("noc").handlers
    try:
        logging.getLogger("noc.bgp").info("fine")
        raise ConnectionError
    except ConnectionError:
        logging.getLogger("noc.bgp").exception("peer %s is down", "10.0.0.1")
    finally:
        logging.getLogger("noc").removeHandler(handler)
        handler.close()
    (event,) = events
    (shown,) = map(json.loads, blocks("outside", "json"))
    assert list(event.data) == list(shown)
    for key in ("level", "logger", "message"):
        assert event.data[key] == shown[key]
    assert event.permissions == {"logs.read"}


def test_a_record_s_user_sees_it(page: Page, events: Events) -> None:
    """By the function of the page."""
    page.run(START)
    page.run(HANDLER)
    handler = page.names["handler"]
    assert isinstance(handler, RealtimeHandler)
    handler.handle(logging.makeLogRecord({"msg": "yours", "user": "7"}))
    assert events[-1].user_id == "7"

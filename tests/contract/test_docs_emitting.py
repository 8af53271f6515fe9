"""The page about emitting is run as it stands."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import flask_login
import pytest
from blinker import Signal
from flask import Flask

from flask_noc_realtime import NocRealtime
from tests.documentation import blocks
from tests.emitted import emitted, told

STAY = "Services that stay as they are"


class Page:
    """An app that runs some of the page's blocks."""

    def __init__(self) -> None:
        self.app = Flask("docs")
        self.realtime = NocRealtime(self.app)
        session = SimpleNamespace(add=self.add, commit=lambda: None)
        self.names: dict[str, Any] = {
            "app": self.app,
            "realtime": self.realtime,
            "Incident": SimpleNamespace,
            "db": SimpleNamespace(session=session),
            "line": "a line",
            "note": "a note",
            "restart": lambda: 0,
            "incident_closed": Signal(),
            "fill_the_test_database": lambda: self.realtime.emit("log.added"),
        }

    @staticmethod
    def add(incident: Any) -> None:
        """Give a row its key."""
        incident.id = 7

    def run(self, *code: str) -> dict[str, Any]:
        """Run blocks; return what they defined."""
        for block in code:
            exec(block, self.names)
        return self.names


@pytest.fixture
def page() -> Iterator[Page]:
    """Return the page, its app being the current one."""
    page = Page()
    with page.app.app_context():
        yield page
    page.app.extensions["noc_realtime"].process().close()


def test_the_service_emits_by_hand(page: Page) -> None:
    """The first example."""
    names = page.run(blocks("emitting", "python")[0])
    names["IncidentService"]().create("down")
    assert told(page.app) == [("incident.created", {"id": 7, "title": "down"})]


def test_the_examples_of_an_audience(page: Page) -> None:
    """Everybody, holders of a permission, and one user."""
    page.run(*blocks("emitting", "python", "Who sees it"))
    rules = [(event.rule.permissions, event.rule.user_id) for event in emitted(page.app)]
    assert rules == [(None, None), ({"logs.read", "admin"}, None), (None, "7")]


def test_a_type_of_the_page_is_registered(page: Page) -> None:
    """And may be emitted from then on."""
    page.run(*blocks("emitting", "python", "Types"))
    assert "link.flapped" in page.realtime.types()


def test_the_services_emit_by_decoration(page: Page) -> None:
    """And the table's forms of data do what it says."""
    names = page.run(*blocks("emitting", "python", STAY))
    service = names["IncidentService"]()
    service.create("down")
    service.change_status(SimpleNamespace(id=7), "closed")
    names["notify"](SimpleNamespace(id=9), "hello")
    assert told(page.app) == [
        ("automation.completed", {"name": "restart", "exit": 0}),
        ("incident.created", {"id": 7, "title": "down"}),
        ("incident.status.changed", {"id": 7, "status": "closed"}),
        ("notification.sent", "hello"),
    ]
    assert emitted(page.app)[-1].rule.user_id == "9"


def test_the_signals_are_bridged(page: Page) -> None:
    """The app's own, and Flask-Login's."""
    names = page.run(*blocks("emitting", "python", "Signals the app sends already"))
    names["incident_closed"].send("service", id=7)
    flask_login.user_logged_in.send(page.app, user=SimpleNamespace(id="9"))
    assert told(page.app) == [("incident.updated", {"id": 7}), ("log.added", {"user": "9"})]


def test_the_test_database_is_filled_in_silence(page: Page) -> None:
    """And only that."""
    page.run(*blocks("emitting", "python", "Emitting nothing"))
    page.realtime.emit("log.added", "then")
    assert told(page.app) == [("log.added", "then")]

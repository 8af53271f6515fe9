"""The page about coalescing is run as it stands."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask, request

from flask_noc_realtime import ConfigError, Identity, NocRealtime
from tests.documentation import blocks

START, WHO, EMIT, PROBE, READS, FUNCTION, INVALIDATE, REFRESH = blocks("coalesce", "python")


class Page:
    """An app that has run some of the page's blocks."""

    def __init__(self, *code: str) -> None:
        self.app = Flask("docs")
        self.app.testing = True
        self.realtime = NocRealtime(self.app)
        self.realtime.identity_loader(lambda request: Identity("7", role="operator"))
        self.runs = itertools.count(1)
        self.names: dict[str, Any] = {
            "app": self.app,
            "realtime": self.realtime,
            "request": request,
            "count_open_incidents": lambda: next(self.runs),
            "load_open_incidents": lambda site: [site, next(self.runs)],
            "save_all": lambda rows: None,
            "slow_report": lambda: str(next(self.runs)),
            "draw": lambda *what: [*what, next(self.runs)],
            "db": SimpleNamespace(session=SimpleNamespace(commit=lambda: None)),
        }
        for block in (START, *code):
            exec(block, self.names)

    def get(self, path: str, **headers: str) -> Any:
        """Request a page; underscores in names of headers are hyphens."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.app.test_client().get(path, headers=sent)

    def close_incident(self) -> None:
        """Do what the page's service does."""
        with self.app.app_context():
            self.names["close_incident"](SimpleNamespace(id=7, status="open"))


def test_the_first_example_is_shared_until_its_event() -> None:
    """And says so in its headers as the table has them."""
    page = Page(EMIT)
    first, second = page.get("/stats"), page.get("/stats")
    assert first.json == second.json == {"open": 1}
    assert first.headers["Cache-Status"] == "noc-realtime; fwd=uri-miss; stored"
    assert second.headers["Cache-Status"].startswith("noc-realtime; hit; ttl=")
    assert first.headers["Cache-Control"] == "private"
    page.close_incident()
    assert page.get("/stats").json == {"open": 2}


def test_the_example_of_a_scope_is_shared_by_those_it_names() -> None:
    """Per site and language."""
    page = Page(WHO)
    sites = [page.get("/topology", X_Site=site).json for site in ("a", "b", "a")]
    assert sites == [["a", None, 1], ["b", None, 2], ["a", None, 1]]
    assert page.get("/topology", X_Site="a", Accept_Language="de").json == ["a", "de", 3]


def test_the_unsound_example_is_refused_in_the_words_of_the_page() -> None:
    """So that whoever searches for the message finds the page."""
    page = Page(READS)
    with pytest.raises(ConfigError) as caught:
        page.get("/greeting")
    (text,) = blocks("coalesce", "text")
    assert str(caught.value).split() == text.split()


def test_an_app_says_that_its_statements_see_the_newest() -> None:
    """Then an open transaction is no reason to share nothing."""
    page = Page(EMIT, PROBE)
    assert not page.app.extensions["noc_realtime"].in_transaction()
    assert page.get("/stats").json == page.get("/stats").json == {"open": 1}


def test_the_function_is_shared_by_its_arguments_until_its_event() -> None:
    """The very same object, in an app context."""
    page = Page(EMIT, FUNCTION)
    function = page.names["open_incidents"]
    with page.app.app_context():
        first = function("north")
        assert function(site="north") is first
        assert function("south") != first
        page.close_incident()
        assert function("north") == ["north", 3]


def test_an_import_ends_what_it_says() -> None:
    """The pages and the function, each by its own way."""
    page = Page(WHO, FUNCTION, INVALIDATE)

    def ask() -> list[Any]:
        with page.app.app_context():
            counted = [page.names["open_incidents"](site) for site in ("oslo", "rome")]
        return [page.get("/stats").json, page.get("/topology", X_Site="a").json, *counted]

    before = ask()
    assert ask() == before
    with page.app.app_context():
        page.names["import_incidents"]([])
    assert not any(one == other for one, other in zip(ask(), before, strict=True))


def test_a_report_is_worked_out_by_one_while_others_are_given_what_is_there() -> None:
    """Once it is due, and not before."""
    page = Page(REFRESH)
    flights = page.app.extensions["noc_realtime"].process().flights
    clock, passed = flights.clock, [0.0]
    flights.clock = lambda: clock() + passed[0]
    assert page.get("/report").text == page.get("/report").text == "1"
    passed[0] = 50.0
    assert page.get("/report").text == page.get("/report").text == "2"
    passed[0] += 80.0
    assert page.get("/report").text == "3"

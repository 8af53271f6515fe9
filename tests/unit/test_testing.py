"""What the tests of an app are given, run on apps of this test's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from flask import Flask, request, session

from flask_noc_realtime import BrokerUnavailable, ConfigError, Identity, NocRealtime, coalesce
from flask_noc_realtime.testing import (
    Events,
    StreamRefused,
    Switch,
    capture,
    cut,
    process_of,
    stream_client,
)


class Site:
    """An app whose users log in by a session or a header."""

    def __init__(self, name: str = "site", **config: Any) -> None:
        self.app = Flask(name)
        self.app.secret_key = "test"
        self.app.config.update({f"NOC_REALTIME_{key}": value for key, value in config.items()})
        self.realtime = NocRealtime(self.app)
        self.realtime.identity_loader(self.who)
        self.app.add_url_rule("/login/<user>", view_func=self.login)

    def who(self, _: Any) -> Identity | None:
        """Return whom the session or the header names."""
        user = session.get("user") or request.headers.get("X-User")
        return Identity(user, "operator", frozenset({"logs.read"})) if user else None

    def login(self, user: str) -> str:
        """Begin a session."""
        session["user"] = user
        return user


@pytest.fixture
def site() -> Site:
    """Return an app that needs no login."""
    return Site(ALLOW_ANONYMOUS=True)


@pytest.fixture
def events() -> Iterator[Events]:
    """Capture."""
    with capture() as events:
        yield events


def test_events_are_captured_as_the_browser_gets_them(site: Site, events: Events) -> None:
    """Also those whose data changes later; who may see them is there as well."""
    data = {"due": date(2026, 1, 2)}
    position = site.realtime.emit("log.added", data, permissions=["logs.read"], user_id="7")
    data.clear()
    event = events.one("log.added")
    assert event.data == {"due": "2026-01-02"}
    assert (event.permissions, event.user_id) == (frozenset({"logs.read"}), "7")
    assert event.position == position
    assert event.timestamp.endswith("Z")


def test_what_was_not_emitted_is_not_captured(events: Events) -> None:
    """Neither what is refused, nor what raised, nor what ends streams."""
    site = Site(EMIT_ERRORS="raise")
    with pytest.raises(ValueError):
        site.realtime.emit("log.added", object())
    switch = Switch(site.app)
    switch.cut()
    with pytest.raises(BrokerUnavailable):
        site.realtime.emit("log.added")
    switch.heal()
    site.realtime.disconnect("7")
    assert events.types == []


def test_events_are_chosen_by_pattern_and_forgotten(site: Site, events: Events) -> None:
    """In the order they were emitted."""
    for type in ("incident.created", "log.added", "incident.updated"):
        site.realtime.emit(type)
    assert events.of("incident.*").types == ["incident.created", "incident.updated"]
    assert events.of("log.added,incident.updated").types == ["log.added", "incident.updated"]
    assert [event.type for event in events[1:]] == ["log.added", "incident.updated"]
    events.clear()
    assert (len(events), events.types) == (0, [])


def test_several_apps_are_told_apart(site: Site, events: Events) -> None:
    """All are captured, in one sequence."""
    other = Site("other")
    site.realtime.emit("log.added", 1)
    other.realtime.emit("log.added", 2)
    assert [event.data for event in events] == [1, 2]
    assert events.from_app(other.app).one("log.added").data == 2
    with pytest.raises(ConfigError, match=r"init_app"):
        events.from_app(Flask("none"))


def test_nothing_is_captured_after_the_end(site: Site) -> None:
    """Two captures at once have the same."""
    with capture() as first:
        with capture() as second:
            site.realtime.emit("log.added", 1)
        site.realtime.emit("log.added", 2)
    site.realtime.emit("log.added", 3)
    assert ([e.data for e in first], [e.data for e in second]) == ([1, 2], [1])


@pytest.mark.parametrize(
    ("emitted", "told"),
    [
        ([], "nothing was emitted. Does the code come to realtime.emit()?"),
        (["incident.updated"], "\n  incident.updated 0\nDid you mean 'incident.updated'?"),
        (["log.added"], "this was emitted:\n  log.added 0"),
        (["incident.created"] * 2, "2 were emitted:\n  incident.created 0\n  incident.created 1\n"),
    ],
)
def test_an_assertion_that_fails_says_what_was_emitted_instead(
    site: Site, events: Events, emitted: list[str], told: str
) -> None:
    """And, where it can be guessed, what was meant."""
    for number, type in enumerate(emitted):
        site.realtime.emit(type, number)
    with pytest.raises(AssertionError) as caught:
        events.one("incident.created")
    assert str(caught.value).startswith("One 'incident.created' was expected, and ")
    assert told in str(caught.value)


def test_what_another_thread_emits_is_waited_for(site: Site, events: Events) -> None:
    """Up to a deadline, which says what came instead."""
    thread = threading.Thread(target=site.realtime.emit, args=["log.added", 1])
    thread.start()
    assert events.wait("log.added", timeout=20.0).one("log.added").data == 1
    thread.join()
    with pytest.raises(AssertionError, match=r"2 of 'log.added' .* 0.01 s, and .*\n  log.added 1"):
        events.wait("log.added", count=2, timeout=0.01)


def test_a_stream_has_what_was_emitted_and_no_more(site: Site) -> None:
    """Filtered as it asked, without the events before it was opened."""
    site.realtime.emit("incident.created", 0)
    with stream_client(site.app, ["incident.*", "notification.sent"]) as stream:
        assert stream.opened.type == "stream.open"
        assert stream.read() == []
        for number, type in enumerate(("incident.created", "log.added", "notification.sent"), 1):
            position = site.realtime.emit(type, number)
        assert next(stream).data == 1
        assert [(e.type, e.data, e.position) for e in stream.read()] == [
            ("notification.sent", 3, position)
        ]
        assert stream.position == position
        assert [event.data for event in stream.received] == [1, 3]


def test_a_stream_goes_on_from_a_position(site: Site) -> None:
    """As a browser that reconnects."""
    position = site.realtime.emit("log.added", 1)
    site.realtime.emit("log.added", {"line": "one\u2028two"})
    with stream_client(site.app, last_event_id=position) as stream:
        assert [event.data for event in stream.read()] == [{"line": "one\u2028two"}]


def test_a_stream_that_waits_is_woken(site: Site) -> None:
    """By an emit of another thread."""
    with stream_client(site.app, timeout=20.0) as stream:
        thread = threading.Thread(target=site.realtime.emit, args=["log.added", 1])
        thread.start()
        assert next(stream).data == 1
        thread.join()


def test_a_deadline_says_what_was_received(site: Site) -> None:
    """And one that has received nothing says so."""
    with stream_client(site.app, timeout=0.01) as stream:
        with pytest.raises(AssertionError, match=r"within 0.01 s.*nothing since it was opened"):
            next(stream)
        site.realtime.emit("log.added", {"n": 1})
        with pytest.raises(
            AssertionError, match=r"'incident.\*' was expected next.*\n  log.added {\"n\": 1}"
        ):
            stream.next("incident.*")


def test_heartbeats_are_passed_over(site: Site) -> None:
    """They move the position, and are no event of the app."""
    quick = Site(ALLOW_ANONYMOUS=True, HEARTBEAT=0.1)
    with stream_client(quick.app, "incident.*", timeout=0.5) as stream:
        position = quick.realtime.emit("log.added")
        with pytest.raises(AssertionError, match="nothing since"):
            next(stream)
        assert stream.position == position


def test_a_stream_ends_as_the_app_ends_it(site: Site) -> None:
    """The last event says why; after it there is none."""
    with stream_client(site.app, headers={"X-User": "ada"}) as stream:
        site.realtime.disconnect("ada")
        assert [event.type for event in stream] == ["stream.close"]
        with pytest.raises(AssertionError, match=r"has ended.*\n  stream.close"):
            stream.next()


def test_a_closed_stream_gives_its_place_back(site: Site) -> None:
    """A user may have three, and as many one after the other as the test needs."""
    for _ in range(5):
        with stream_client(site.app, headers={"X-User": "ada"}):
            pass
    assert process_of(site.app).portable.streams == 0
    streams = [stream_client(site.app, headers={"X-User": "ada"}) for _ in range(3)]
    with pytest.raises(StreamRefused, match="429"):
        stream_client(site.app, headers={"X-User": "ada"})
    for stream in streams:
        stream.close()


def test_a_refused_stream_says_why_and_what_to_do() -> None:
    """And has the app's answer; a test client that has logged in is given its stream."""
    site = Site()
    with pytest.raises(StreamRefused, match=r"401 UNAUTHORIZED.*Pass headers=") as caught:
        stream_client(site.app)
    assert caught.value.response.json["title"] == "Unauthorized"
    client = site.app.test_client()
    client.get("/login/ada")
    with stream_client(client) as stream:
        site.realtime.emit("notification.sent", "hello", user_id="ada")
        site.realtime.emit("notification.sent", "psst", user_id="bob")
        assert [event.data for event in stream.read()] == ["hello"]
    with pytest.raises(StreamRefused, match="400 BAD REQUEST"):
        stream_client(client, types="Incident")
    with pytest.raises(ConfigError, match="init_app"):
        stream_client(Flask("none"))


def test_a_cut_broker_queues_and_a_healed_one_publishes_in_order(
    site: Site, events: Events
) -> None:
    """The stream that was there all the time has everything once."""
    with stream_client(site.app) as stream:
        with cut(site.app):
            assert [site.realtime.emit("log.added", n) for n in range(3)] == [None] * 3
            assert stream.read() == []
            assert site.app.test_client().post("/api/v1/events/connect").status_code == 503
        assert [event.data for event in stream.read()] == [0, 1, 2]
    assert [event.position for event in events] == [None] * 3
    assert site.realtime.emit("log.added") is not None


def test_results_are_kept_again_once_the_broker_is_healed(site: Site) -> None:
    """At once, so that a test after an outage shares what it would share without one."""
    runs: list[int] = []

    @site.app.get("/stats")
    @coalesce(scope="public", ttl=60, invalidate_on=["incident.*"])
    def stats() -> list[int]:
        runs.append(len(runs))
        return runs

    client = site.app.test_client()
    with cut(site.app):
        assert [client.get("/stats").json[-1] for _ in range(2)] == [0, 1]
    assert [client.get("/stats").json[-1] for _ in range(2)] == [2, 2]


def test_only_the_app_that_is_meant_is_cut(site: Site) -> None:
    """Another one of the same process goes on."""
    other = Site("other")
    with cut(site.app):
        assert site.realtime.emit("log.added") is None
        assert other.realtime.emit("log.added") is not None


def test_a_broker_that_lost_its_history_resets_streams(site: Site) -> None:
    """Those that are there, and those that come back from before."""
    before = site.realtime.emit("log.added", 1)
    with stream_client(site.app) as stream:
        with cut(site.app, lost=True):
            site.realtime.emit("log.added", 2)
        (reset,) = stream.read()
        assert (reset.type, reset.data["reason"]) == ("stream.reset", "history-lost")
        assert stream.position == site.realtime.position()
        site.realtime.emit("log.added", 3)
        assert [event.data for event in stream.read()] == [3]
    with stream_client(site.app, last_event_id=before) as stream:
        assert stream.next().data["reason"] == "unknown-position"


def test_a_real_redis_is_not_cut() -> None:
    """The error says what to do."""
    site = Site(URL="redis://127.0.0.1:1/0")
    with pytest.raises(ConfigError, match=r"NOC_REALTIME_URL = 'memory://'"):
        Switch(site.app)

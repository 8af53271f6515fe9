"""Bridges from blinker signals to events."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import flask
import flask_login
import pytest
from blinker import Namespace, Signal
from flask import Flask

from flask_noc_realtime import ConfigError, EventError, NocRealtime
from tests.emitted import emitted, told


@pytest.fixture
def realtime() -> NocRealtime:
    """Return the extension, as modules hold it."""
    return NocRealtime()


@pytest.fixture
def app(realtime: NocRealtime) -> Iterator[Flask]:
    """Return an app with the extension; no context is pushed."""
    app = Flask("bridge")
    realtime.init_app(app)
    yield app
    app.extensions["noc_realtime"].process().close()


@pytest.fixture
def closed() -> Signal:
    """Return a signal of the app's own."""
    return Namespace().signal("incident-closed")


def test_a_signal_becomes_an_event_of_its_keywords(
    app: Flask, realtime: NocRealtime, closed: Signal
) -> None:
    """The extension keeps the bridge, since blinker would let it go."""
    realtime.bridge(closed, type="incident.updated")
    gc.collect()
    assert closed.send("service", id=7, status="closed") == [(realtime_receiver(closed), None)]
    assert told(app) == [("incident.updated", {"id": 7, "status": "closed"})]


def realtime_receiver(signal: Signal) -> Any:
    """Return the one receiver of a signal."""
    (receiver,) = signal.receivers_for("service")
    return receiver


def test_an_event_is_made_of_sender_and_keywords(
    app: Flask, realtime: NocRealtime, closed: Signal
) -> None:
    """By paths and functions, as with `@emits`."""
    realtime.bridge(closed, type="log.added", data={"by": "sender", "site": "at.site"})
    realtime.bridge(
        closed,
        type="incident.updated",
        data=lambda sender, at: [sender, at["id"]],
        permissions=lambda at: [f"sites.{at['site']}"],
        user_id=lambda sender: sender,
    )
    closed.send("7", at={"site": "north", "id": 1})
    assert sorted(told(app)) == [
        ("incident.updated", ["7", 1]),
        ("log.added", {"by": "7", "site": "north"}),
    ]
    rules = {(event.rule.permissions, event.rule.user_id) for event in emitted(app)}
    assert rules == {(None, None), (frozenset({"sites.north"}), "7")}


def test_a_bridge_may_listen_to_one_sender(
    app: Flask, realtime: NocRealtime, closed: Signal
) -> None:
    """As blinker's own receivers may."""
    realtime.bridge(closed, type="log.added", sender="a")
    closed.send("a", n=1)
    closed.send("b", n=2)
    assert told(app) == [("log.added", {"n": 1})]


@pytest.mark.parametrize("sender", [None, "a"])
def test_a_bridge_that_is_stopped_emits_no_more(
    app: Flask, realtime: NocRealtime, closed: Signal, sender: str | None
) -> None:
    """Stopping it twice does no harm; others go on."""
    only = {} if sender is None else {"sender": sender}
    bridge = realtime.bridge(closed, type="log.added", data=lambda: "stopped", **only)
    realtime.bridge(closed, type="log.added", data=lambda: "other")
    bridge.stop()
    bridge.stop()
    closed.send("a")
    assert told(app) == [("log.added", "other")]
    assert bridge not in realtime._wires


def test_a_bridge_ends_with_its_extension(closed: Signal) -> None:
    """Signals outlive the apps that tests make."""
    NocRealtime().bridge(closed, type="log.added")
    gc.collect()
    assert not list(closed.receivers_for("a"))


def test_a_muted_bridge_emits_nothing(app: Flask, realtime: NocRealtime, closed: Signal) -> None:
    """And does again afterwards, whatever happened meanwhile."""
    realtime.bridge(closed, type="log.added")
    with pytest.raises(LookupError), realtime.muted():
        closed.send("a", n=1)
        raise LookupError
    closed.send("a", n=2)
    assert told(app) == [("log.added", {"n": 2})]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("usr.id", "'usr', which is none of: sender, user"),
        (lambda user: 1 / 0, "ZeroDivisionError"),
        ("user", "data is a object"),
    ],
)
def test_what_fails_about_the_event_does_not_reach_the_sender(
    app: Flask,
    realtime: NocRealtime,
    closed: Signal,
    data: Any,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor the receivers that come after."""
    realtime.bridge(closed, type="log.added", data=data)
    came = []
    closed.connect(lambda sender, **keywords: came.append(sender), weak=False)
    closed.send("a", user=object())
    assert came == ["a"]
    assert told(app) == []
    assert "No 'log.added' was emitted." in caplog.text
    assert words in caplog.text


def test_what_fails_is_raised_where_the_app_wants_it(closed: Signal) -> None:
    """With NOC_REALTIME_EMIT_ERRORS = "raise"."""
    app = Flask("strict")
    app.config["NOC_REALTIME_EMIT_ERRORS"] = "raise"
    realtime = NocRealtime(app)
    realtime.bridge(closed, type="log.added", data="user")
    with pytest.raises(ConfigError, match="'user', which is none of: sender"):
        closed.send("a")


def test_a_bridge_that_cannot_work_is_refused_at_once(
    realtime: NocRealtime, closed: Signal
) -> None:
    """And does not listen."""
    with pytest.raises(EventError):
        realtime.bridge(closed, type="Log added")
    with pytest.raises(ConfigError):
        realtime.bridge(closed, type="log.added", data=7)  # type: ignore[arg-type]
    assert not list(closed.receivers_for("a"))


def test_signals_of_other_apps_are_none_of_ours(
    app: Flask, realtime: NocRealtime, closed: Signal, caplog: pytest.LogCaptureFixture
) -> None:
    """A signal belongs to the process; the event goes to the app that is the current one."""
    realtime.bridge(closed, type="log.added")
    other, plain = Flask("other"), Flask("plain")
    NocRealtime(other)
    for one in (other, plain):
        with one.app_context():
            closed.send("a")
    assert told(app) == told(other) == []
    assert not caplog.records


def test_outside_of_two_apps_the_log_says_that_it_is_unclear_which_is_meant(
    app: Flask, realtime: NocRealtime, closed: Signal, caplog: pytest.LogCaptureFixture
) -> None:
    """One app would be meant even there."""
    realtime.init_app(second := Flask("second"))
    realtime.bridge(closed, type="log.added")
    closed.send("a")
    assert "No 'log.added' was emitted: There is no application context, and 2 apps" in caplog.text
    with second.app_context():
        closed.send("a", n=1)
    assert (told(app), told(second)) == ([], [("log.added", {"n": 1})])


def test_signals_of_flask_and_its_extensions_are_bridged(app: Flask, realtime: NocRealtime) -> None:
    """Their senders are apps, which no event can hold: say what it is made of."""
    app.secret_key = "secret"
    flask_login.LoginManager(app)
    user = flask_login.UserMixin()
    user.id = "7"
    bridges = [
        realtime.bridge(
            flask_login.user_logged_in, type="log.added", data={"in": "user.id"}, sender=app
        ),
        realtime.bridge(
            flask.request_finished, type="log.added", data={"status": "response.status_code"}
        ),
    ]
    app.add_url_rule("/login", view_func=lambda: str(flask_login.login_user(user)), endpoint="in")
    assert app.test_client().get("/login").text == "True"
    for bridge in bridges:
        bridge.stop()
    assert told(app) == [("log.added", {"in": "7"}), ("log.added", {"status": 200})]

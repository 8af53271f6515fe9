"""Ingest: reading webhooks, telling what is news, and telling a right signature."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime.errors import BodyError
from flask_noc_realtime.ingest import Alert, news, read_alerts, read_events, sign, signed

ALERT: dict[str, Any] = {
    "status": "firing",
    "labels": {"alertname": "InstanceDown", "severity": "critical"},
    "annotations": {"summary": "web-1 is down"},
    "startsAt": "2026-01-01T00:00:00Z",
    "endsAt": "0001-01-01T00:00:00Z",
    "generatorURL": "http://prometheus.example/graph",
    "fingerprint": "c1f4f6a1d0e2b3a4",
}
SECRET, NOW = b"secret", 1_767_225_600.0


def body(*alerts: Any, version: Any = "4") -> bytes:
    """Return a webhook body."""
    return json.dumps({"version": version, "status": "firing", "alerts": alerts}).encode()


def read(**changes: Any) -> Alert:
    """Return the alert, with some of it changed."""
    (alert,) = read_alerts(body({**ALERT, **changes}))
    return alert


RESOLVED = {"status": "resolved", "endsAt": "2026-01-01T01:00:00Z"}
WORSE = {"annotations": {"summary": "web-1 is still down"}}
CREATED, UPDATED, CHANGED = "incident.created", "incident.updated", "incident.status.changed"


def test_an_incident_is_an_alert_and_when_it_began() -> None:
    """A notification of the same one has its key, whatever else it says."""
    assert read().key == read(**RESOLVED).key == read(**WORSE).key
    again = read(startsAt="2026-01-02T00:00:00Z")
    assert len({read().key, again.key, read(fingerprint="d1").key}) == 3


@pytest.mark.parametrize(
    ("notifications", "types"),
    [
        ([(0, {})], [CREATED]),
        ([(0, {}), (0, {}), (59, {})], [CREATED, None, None]),
        ([(0, {}), (60, {}), (61, {}), (120, {})], [CREATED, UPDATED, None, UPDATED]),
        ([(0, {}), (1, WORSE), (2, WORSE), (3, {})], [CREATED, UPDATED, None, UPDATED]),
        ([(0, {}), (1, {"generatorURL": "http://replica.example"})], [CREATED, None]),
        ([(0, {}), (1, RESOLVED), (2, RESOLVED), (90, RESOLVED)], [CREATED, CHANGED, None, None]),
        ([(0, RESOLVED), (1, RESOLVED)], [CHANGED, None]),
        ([(0, {}), (1, RESOLVED), (2, {}), (3, RESOLVED)], [CREATED, CHANGED, CHANGED, CHANGED]),
        ([(0, {}), (-5, {})], [CREATED, None]),
    ],
)
def test_what_was_said_already_is_no_news(
    notifications: list[tuple[float, dict[str, Any]]], types: list[str | None]
) -> None:
    """Within a minute; another text, another state or a minute later is."""
    said, seen = None, []
    for seconds, changes in notifications:
        found = news(read(**changes), said, NOW + seconds, 60)
        said = said if found is None else found[1]
        seen.append(None if found is None else found[0].type)
    assert seen == types


def test_the_data_of_an_event_is_what_the_alert_says() -> None:
    """Without an end while it fires, and without a severity where it has no such label."""
    assert read().data == {
        "fingerprint": "c1f4f6a1d0e2b3a4",
        "status": "firing",
        "severity": "critical",
        "labels": ALERT["labels"],
        "annotations": ALERT["annotations"],
        "startsAt": "2026-01-01T00:00:00Z",
        "endsAt": None,
        "generatorURL": "http://prometheus.example/graph",
    }
    assert read(**RESOLVED).data["endsAt"] == "2026-01-01T01:00:00Z"
    assert read(labels={}).data["severity"] is None


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        (b"", "The body is not JSON"),
        (b"\xff", "The body is not JSON"),
        (b"[" * 100_000, "The body is not JSON"),
        (b'{"version": "4", "alerts": [], "x": NaN}', "The body is not JSON"),
        (b"[]", "The body is not an object"),
        (body(version="3"), "version is not '4'"),
        (body(version=4), "version is not '4'"),
        (b'{"version": "4"}', "alerts is not a list"),
        (body(None), "alerts[0] is not an object"),
        (body(ALERT, {**ALERT, "status": "unknown"}), "alerts[1].status is neither"),
        (body({**ALERT, "fingerprint": ""}), "alerts[0] has no fingerprint"),
        (body({**ALERT, "labels": {"severity": 1}}), "alerts[0].labels does not map"),
        (body({**ALERT, "annotations": []}), "alerts[0].annotations is not an object"),
        (body({**ALERT, "endsAt": "\ud800"}), "alerts[0].endsAt is not a string"),
    ],
)
def test_a_malformed_notification_is_refused_by_its_part(wrong: bytes, part: str) -> None:
    """The sender is told which."""
    with pytest.raises(BodyError) as caught:
        list(read_alerts(wrong))
    assert str(caught.value).startswith(part)


EVENT = {"type": "log.added", "data": None}


def test_a_webhook_holds_an_event_or_a_list_of_them() -> None:
    """Each with the place an error about it would name."""
    full = {**EVENT, "permissions": ["a"], "user_id": "7"}
    assert read_events(json.dumps(full).encode()) == {"The body": full}
    assert read_events(json.dumps([EVENT, full]).encode()) == {"[0]": EVENT, "[1]": full}


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ("x", "The body is not an object"),
        ([], "The body has no event"),
        ([EVENT, []], "[1] is not an object"),
        ({"type": "log.added"}, "The body has no data"),
        ([EVENT, {"data": 1}], "[1] has no type"),
        ({**EVENT, "permission": ["a"]}, "The body has 'permission'; use data, permissions, "),
        ({**EVENT, "permissions": {"a": 1}}, "The body.permissions is not a list"),
        ({**EVENT, "permissions": "a"}, "The body.permissions is not a list"),
    ],
)
def test_a_malformed_event_is_refused_by_its_place(wrong: Any, part: str) -> None:
    """A field nobody knows is most likely one that is misspelt."""
    with pytest.raises(BodyError) as caught:
        read_events(json.dumps(wrong).encode())
    assert str(caught.value).startswith(part)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from([*ALERT]), inner),
)


@given(JSON, st.sampled_from([*ALERT]))
def test_any_json_is_read_or_refused_and_never_fails(value: Any, name: str) -> None:
    """A sender's mistake is the sender's: no other error comes out."""
    for content in (json.dumps(value).encode(), body(value), body({**ALERT, name: value})):
        for reader in (read_alerts, read_events):
            try:
                list(reader(content))
            except BodyError:
                pass


def test_a_signature_covers_the_timestamp_and_the_body_within_the_window() -> None:
    """Whatever of them changes, or is too old or too new, is refused."""
    stamp = str(int(NOW))
    right = sign(SECRET, stamp, b"{}")
    assert signed(SECRET, stamp, b"{}", right, NOW + 300, 300)
    assert not signed(SECRET, stamp, b"{}", right, NOW + 301, 300)
    assert not signed(SECRET, stamp, b"{}", right, NOW - 301, 300)
    assert not signed(SECRET, stamp, b"{ }", right, NOW, 300)
    assert not signed(b"other", stamp, b"{}", right, NOW, 300)
    assert not signed(SECRET, str(int(NOW) + 1), b"{}", right, NOW, 300)
    assert not signed(SECRET, stamp, b"{}", "\xe9", NOW, 300)
    for odd in ("+" + stamp, " " + stamp, "", "x", "٣", "9" * 5000):
        assert not signed(SECRET, odd, b"{}", sign(SECRET, odd, b"{}"), NOW, 300)

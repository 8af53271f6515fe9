"""Ingest: reading Alertmanager's webhook, and telling a right signature."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime.errors import ParameterError
from flask_noc_realtime.ingest import read_alerts, sign, signed

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


def test_a_repeat_has_the_key_of_its_first_delivery_and_a_change_does_not() -> None:
    """The key is the fingerprint, the status and the start; the rest may differ."""
    repeat = {**ALERT, "annotations": {"summary": "still down"}}
    resolved = {**ALERT, "status": "resolved", "endsAt": "2026-01-01T01:00:00Z"}
    again = {**ALERT, "startsAt": "2026-01-02T00:00:00Z"}
    first, second, third, fourth = (
        a.key for a in read_alerts(body(ALERT, repeat, resolved, again))
    )
    assert first == second
    assert len({first, third, fourth}) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"version": "4", "alerts": [], "x": NaN}',
        body(version="3"),
        body(version=4),
        body(None),
        body(ALERT, {**ALERT, "status": "unknown"}),
        body({**ALERT, "fingerprint": ""}),
        body({**ALERT, "labels": {"severity": 1}}),
        body({**ALERT, "annotations": []}),
        body({**ALERT, "endsAt": "\ud800"}),
    ],
)
def test_a_malformed_body_is_refused_whole(wrong: bytes) -> None:
    """One wrong alert refuses them all."""
    with pytest.raises(ParameterError):
        read_alerts(wrong)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from([*ALERT]), inner),
)


@given(JSON, st.sampled_from([*ALERT]))
def test_any_json_is_read_or_refused_and_never_fails(value: Any, name: str) -> None:
    """A sender's mistake is the sender's: no other error comes out."""
    for content in (json.dumps(value).encode(), body(value), body({**ALERT, name: value})):
        try:
            read_alerts(content)
        except ParameterError:
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

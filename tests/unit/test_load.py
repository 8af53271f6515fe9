"""What is told of a load: durations, and how pages were shared."""

from __future__ import annotations

import pytest

from flask_noc_realtime import load
from flask_noc_realtime.errors import ParameterError
from flask_noc_realtime.load import Herd, Times, how_shared


def test_times_are_told_by_their_median_their_99th_percentile_and_the_longest() -> None:
    """In milliseconds, of a hundred and of one."""
    times = Times()
    assert times.milliseconds() is None
    times.add(0.0123)
    assert times.milliseconds() == {"p50": 12.3, "p99": 12.3, "max": 12.3}
    times = Times()
    for number in range(100, 0, -1):
        times.add(number / 1000)
    assert times.milliseconds() == {"p50": 50.0, "p99": 99.0, "max": 100.0}


def test_of_very_many_times_a_part_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly, with the longest of all; a load that lasts for an hour takes no more memory."""
    monkeypatch.setattr(load, "_KEPT", 100)
    times = Times()
    for number in range(10_000):
        times.add(number / 1000)
    assert len(times._kept) <= 101
    shown = times.milliseconds()
    assert shown is not None
    assert shown["max"] == 9999.0
    assert shown["p50"] == pytest.approx(5000, abs=200)


@pytest.mark.parametrize(
    ("header", "shared"),
    [
        ("noc-realtime; hit; ttl=4", "kept"),
        ("noc-realtime; fwd=uri-miss; collapsed", "joined"),
        ("noc-realtime; fwd=uri-miss; stored", "worked out"),
        ("noc-realtime; fwd=uri-miss", "worked out"),
        ("noc-realtime; fwd=miss, CDN; hit", "worked out"),
        ("nginx; hit, noc-realtime; hit; ttl=0", "kept"),
        ("nginx; hit", "not coalesced"),
        ("", "not coalesced"),
    ],
)
def test_cache_status_says_how_a_page_was_shared(header: str, shared: str) -> None:
    """What other caches on the way say of themselves is not ours (RFC 9211)."""
    assert how_shared(header) == shared


@pytest.mark.parametrize("path", ["stats", "", "/a b", "/\r\nX: 1", "http://noc.example/"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    """It would be another request."""
    with pytest.raises(ParameterError, match="is no path"):
        Herd(path)

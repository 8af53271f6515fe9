"""Following the log from a terminal: what comes, and what was."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import click
import pytest

from flask_noc_realtime import ParameterError
from flask_noc_realtime.audience import TypeFilter
from flask_noc_realtime.broker import Broker
from flask_noc_realtime.event import Event, notice
from flask_noc_realtime.tail import Happened, Tail
from tests.contract.conftest import BYTES, HISTORY
from tests.contract.sinks import LIMIT, key

NOW = datetime.now(timezone.utc)


def emit(broker: Broker, type: str, data: Any, ago: float = 0.0, **rule: Any) -> str:
    """Publish an event that happened *ago* seconds before now; return its position."""
    event = Event(type, data, NOW - timedelta(seconds=ago), **rule)
    return broker.publish(event.record(LIMIT), key())


def following(
    broker: Broker, types: str = "", since: str | None = None, history: int = HISTORY
) -> Tail:
    """Return a tail that has started."""
    tail = Tail(TypeFilter.parse(types), history, BYTES)
    tail.start(broker, since)
    return tail


def read(tail: Tail, count: int) -> list[Happened]:
    """Return the next *count* events; a page of others only is empty, and comes at once."""
    events: list[Happened] = []
    deadline = time.monotonic() + 20
    while len(events) < count:
        page = tail.read(deadline - time.monotonic())
        events += page.events
        assert not page.gap and time.monotonic() < deadline, (events, page)
    return events


def test_it_follows_from_now_on(broker: Broker) -> None:
    """In order, without what was before."""
    emit(broker, "log.added", "before")
    tail = following(broker)
    for number in range(3):
        emit(broker, "log.added", number)
    assert [event.data for event in read(tail, 3)] == [0, 1, 2]
    assert tail.read(0.0).events == []


def test_it_shows_what_nobody_in_particular_may_see(broker: Broker) -> None:
    """With the rule that says who may."""
    tail = following(broker)
    position = emit(broker, "incident.created", {"id": 7}, permissions=("b", "a"), user_id="9")
    stamp = NOW.isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert read(tail, 1) == [
        Happened(position, "incident.created", {"id": 7}, stamp, ["a", "b"], "9")
    ]


def test_it_begins_after_a_position(broker: Broker) -> None:
    """Without a hole to what comes."""
    positions = [emit(broker, "log.added", number) for number in range(4)]
    tail = following(broker, since=positions[1])
    emit(broker, "log.added", 4)
    assert [event.data for event in read(tail, 3)] == [2, 3, 4]


def test_it_begins_so_long_ago(broker: Broker) -> None:
    """By the time that events say they happened."""
    for ago in (7200, 5500, 3600, 5):
        emit(broker, "log.added", ago, ago)
    tail = following(broker, since="1h30m")
    assert [event.data for event in read(tail, 2)] == [3600, 5]


@pytest.mark.parametrize("since", ["yesterday", "1h30", "-1h", "1-2-3", "0-0"])
def test_what_is_neither_is_refused(broker: Broker, since: str) -> None:
    """And the message says what the log holds."""
    emit(broker, "log.added", 1)
    with pytest.raises(ParameterError, match=r"neither a duration .* holds 1 events after"):
        following(broker, since=since)


def test_more_than_all_time_is_refused(broker: Broker) -> None:
    """Instead of failing."""
    with pytest.raises(ParameterError, match="too long ago"):
        following(broker, since="9" * 400 + "d")


def test_a_filter_narrows(broker: Broker) -> None:
    """And notices are no events."""
    tail = following(broker, "incident.*,log.added")
    broker.publish(notice("stream.disconnect", "7"), key())
    for type in ("incident.created", "server.status.changed", "log.added"):
        emit(broker, type, None)
    assert [event.type for event in read(tail, 2)] == ["incident.created", "log.added"]


def test_what_left_the_log_unread_is_a_gap(broker: Broker) -> None:
    """Then it goes on with the oldest there is."""
    tail = following(broker, history=3)
    for number in range(6):
        emit(broker, "log.added", number)
    last: list[Any] = []
    gaps = 0
    while 5 not in last:
        page = tail.read(20.0)
        gaps += page.gap
        last += [event.data for event in page.events]
    assert last == sorted(last)
    assert bool(gaps) == (len(last) < 6)


def happened(data: Any, **rule: Any) -> Happened:
    """Return an event with some data."""
    fields = {"permissions": None, "user_id": None, **rule}
    return Happened("1-1", "log.added", data, "2026-01-02T03:04:05.000000Z", **fields)


def test_a_line_for_the_eye_says_who_may_see_it() -> None:
    """After what happened."""
    line = happened({"n": 1}, permissions=["a", "b"], user_id="7").as_text()
    assert click.unstyle(line) == (
        '2026-01-02T03:04:05.000000Z log.added {"n": 1} (any of a, b; user 7)'
    )


def test_a_line_of_json_is_the_whole_event() -> None:
    """For other programs."""
    assert json.loads(happened("ü").as_json()) == {
        "position": "1-1",
        "type": "log.added",
        "data": "ü",
        "timestamp": "2026-01-02T03:04:05.000000Z",
        "permissions": None,
        "user_id": None,
    }


@pytest.mark.parametrize("form", [Happened.as_text, Happened.as_json])
def test_no_event_steers_the_terminal(form: Any) -> None:
    """Neither with control characters, nor by turning the writing round."""
    hostile = "\x1b\x9b\n\r\x07\u202e\u2028\ufeff"
    line = click.unstyle(form(happened(hostile, user_id=hostile, permissions=[hostile])))
    assert not set(hostile) & set(line)

"""Cursors: what is after this ordinal, for this audience?"""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from flask_noc_realtime.audience import Audience, TypeFilter
from flask_noc_realtime.cursor import Reader, read
from flask_noc_realtime.event import parse_rule
from flask_noc_realtime.eventlog import Entry, EventLog


def entry(number: int, permissions: list[str] | None = None, user_id: str | None = None) -> Entry:
    """Return an entry whose frame is its number."""
    header = json.dumps(["incident.created", permissions, user_id]).encode()
    return Entry(f"p-{number}", b"<%d>" % number, parse_rule(header))


def log_of(*entries: Entry) -> EventLog:
    """Return a log of these entries."""
    log = EventLog(1000, 10**6, base="p-0")
    for one in entries:
        log.append(one)
    return log


def test_all_cursors_of_a_class_get_the_same_bytes_object() -> None:
    """Encoding and joining happen once, however many streams there are."""
    reader = Reader(log_of(entry(1), entry(2)), 1000)
    one = reader.read_for(Audience(frozenset("a")), "7", 0)
    other = reader.read_for(Audience(frozenset("a")), "8", 0)
    assert one.body == b"<1><2>"
    assert one.body is other.body


def test_a_batch_ends_before_the_limit_but_holds_one_event_at_least() -> None:
    """A single large event still goes out whole."""
    log = log_of(entry(1), entry(2), entry(3))
    assert read(log, Audience(), 0, 6).body == b"<1><2>"
    assert read(log, Audience(), 0, 1).body == b"<1>"


def test_hidden_events_move_the_cursor_and_send_nothing() -> None:
    """A stream that sees little stays at the newest position all the same."""
    log = log_of(entry(1, ["secret"]), entry(2, ["secret"]))
    batch = read(log, Audience(), 0, 1000)
    assert (batch.body, batch.events, batch.end) == (b"", 0, 2)


def test_a_forgotten_ordinal_is_a_gap() -> None:
    """And nothing else is given."""
    log = EventLog(1, 1000, base="p-0")
    log.append(entry(1))
    log.append(entry(2))
    batch = read(log, Audience(), 0, 1000)
    assert (batch.gap, batch.body, batch.end) == ("overrun", b"", 0)


def test_a_private_event_is_in_its_users_batch_alone() -> None:
    """In its place in the order, and not in the shared bytes."""
    reader = Reader(log_of(entry(1), entry(2, user_id="7"), entry(3)), 1000)
    assert reader.read_for(Audience(), "7", 0).body == b"<1><2><3>"
    assert reader.read_for(Audience(), "8", 0).body == b"<1><3>"
    assert reader.read_for(Audience(), None, 0).body == b"<1><3>"


permissions = st.none() | st.lists(st.sampled_from("ab"), min_size=1, unique=True)
steps = st.lists(
    st.tuples(permissions, st.none() | st.sampled_from(["7", "8"])) | st.integers(0, 3),
    max_size=40,
)


@settings(max_examples=60)
@given(steps=steps, limit=st.integers(1, 30))
def test_history_and_live_meet_without_gap_or_duplicate(
    steps: list[tuple[list[str] | None, str | None] | int], limit: int
) -> None:
    """However appends and reads alternate, each stream is given exactly what it may see."""
    log = EventLog(1000, 10**6, base="p-0")
    reader = Reader(log, limit)
    streams = [
        (Audience(frozenset(held), TypeFilter(), user), [b""], [0])
        for held, user in (("", None), ("a", "7"), ("ab", "8"), ("a", "8"))
    ]
    entries: list[Entry] = []
    for step in steps:
        if isinstance(step, int):
            audience, got, at = streams[step]
            batch = reader.read_for(audience.shared, audience.user_id, at[0])
            assert batch.end > at[0] or at[0] == log.end
            got[0] += batch.body
            at[0] = batch.end
        else:
            made = entry(len(entries) + 1, *step)
            entries.append(made)
            log.append(made)
    for audience, got, at in streams:
        while at[0] != log.end:
            batch = reader.read_for(audience.shared, audience.user_id, at[0])
            got[0] += batch.body
            at[0] = batch.end
        assert got[0] == b"".join(e.frame for e in entries if audience.sees(e.rule))

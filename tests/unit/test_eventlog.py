"""The log: a bounded ring that knows what it has forgotten."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flask_noc_realtime.errors import EventError
from flask_noc_realtime.event import parse_rule
from flask_noc_realtime.eventlog import UNKNOWN, Entry, EventLog

RULE = parse_rule(b'["incident.created",null,null]')


def entry(number: int, size: int = 1) -> Entry:
    """Return an entry of *size* bytes."""
    return Entry(f"p-{number}", b"x" * size, RULE)


def filled(count: int, max_events: int = 100, max_bytes: int = 10**6) -> EventLog:
    """Return a log of *count* entries, p-1 and on."""
    log = EventLog(max_events, max_bytes, base="p-0")
    for number in range(1, count + 1):
        log.append(entry(number))
    return log


def test_an_entry_is_the_frame_browsers_get() -> None:
    """Encoded once, when it arrives, with the position they resume from."""
    record = b'["incident.created",["ops"],"7"]\n{"type":"incident.created","data":1}'
    made = Entry.from_record("5-0", record)
    assert made.position == "5-0"
    assert made.frame == (
        b'id: 5-0\nevent: incident.created\ndata: {"type":"incident.created","data":1}\n\n'
    )
    assert (made.rule.permissions, made.rule.user_id) == (frozenset({"ops"}), "7")
    with pytest.raises(EventError):
        Entry.from_record("5-0", b"rubbish")


def test_the_oldest_entries_are_forgotten_past_the_bound_of_events() -> None:
    """The newest stay, and what is gone is not found."""
    log = filled(5, max_events=3)
    assert [e.position for e in log.after(log.start, 10)] == ["p-3", "p-4", "p-5"]
    assert log.find("p-1") is None


def test_the_oldest_entries_are_forgotten_past_the_bound_of_bytes() -> None:
    """But the newest is kept whatever its size."""
    log = EventLog(100, 10, base="p-0")
    for number in range(1, 4):
        log.append(entry(number, 4))
    assert (log.end - log.start, log.bytes) == (2, 8)
    log.append(entry(4, 50))
    assert (log.end - log.start, log.bytes) == (1, 50)


def test_a_position_is_found_as_the_ordinal_after_it() -> None:
    """A stream that has p-3 goes on with p-4."""
    log = filled(5)
    ordinal = log.find("p-3")
    assert ordinal is not None
    assert [e.position for e in log.after(ordinal, 10)] == ["p-4", "p-5"]


def test_the_entry_forgotten_last_is_still_a_place_to_resume() -> None:
    """Who has it has missed nothing that the log lacks."""
    log = filled(5, max_events=3)
    assert log.find("p-2") == log.start


def test_pages_follow_each_other_round_the_ring() -> None:
    """Also across the place where the ring begins anew, and never past the newest."""
    log = filled(8, max_events=5)
    pages, ordinal = [], log.start
    while page := log.after(ordinal, 2):
        pages.append([e.position for e in page])
        ordinal += len(page)
    assert pages == [["p-4", "p-5"], ["p-6", "p-7"], ["p-8"]]
    assert ordinal == log.end


def test_the_position_at_an_ordinal_is_that_of_the_entry_before() -> None:
    """It is what a stream that starts there names as its own."""
    log = filled(5, max_events=3)
    ordinals = range(log.start, log.end + 1)
    assert [log.position_at(o) for o in ordinals] == ["p-2", "p-3", "p-4", "p-5"]
    assert [log.find(log.position_at(o)) for o in ordinals] == list(ordinals)


def test_a_log_of_one_event_works() -> None:
    """The least that can be configured."""
    log = filled(3, max_events=1)
    assert [e.position for e in log.after(log.start, 9)] == ["p-3"]
    assert (log.find("p-2"), log.find("p-3"), log.find("p-1")) == (2, 3, None)


def test_an_ordinal_of_the_future_is_an_error() -> None:
    """Some cursor was not given out by this log."""
    with pytest.raises(IndexError):
        filled(3).after(4, 1)


def test_an_unknown_position_is_not_found_even_in_an_empty_log() -> None:
    """Before the broker was reached nothing can be said to be continuous."""
    log = EventLog(10, 10)
    assert log.find(UNKNOWN) is None
    assert log.find("") is None
    log.append(entry(1))
    assert log.find(UNKNOWN) is None
    log.restart(UNKNOWN)
    assert log.find(UNKNOWN) is None


def test_a_cursor_that_fell_off_the_ring_has_a_gap() -> None:
    """It is told so, never silently moved on."""
    log = filled(5, max_events=3)
    assert log.gap(0) == "overrun"
    assert log.gap(log.start) is None
    with pytest.raises(IndexError):
        log.after(0, 10)


def test_a_restart_leaves_every_cursor_with_a_gap() -> None:
    """Also the one that had everything: it cannot know what it missed."""
    log = filled(5)
    cursors = range(log.end + 1)
    log.restart("q-0")
    assert {log.gap(cursor) for cursor in cursors} == {"history-lost"}
    with pytest.raises(IndexError):
        log.after(cursors[-1], 1)
    assert log.find("p-5") is None
    assert log.find("q-0") == log.start == log.end
    assert log.position == "q-0"


def test_a_gap_says_whether_history_was_lost_or_overrun() -> None:
    """The operator must tell a slow stream from a broker that lost its log."""
    log = filled(3, max_events=2)
    old = log.end
    log.restart("q-0")
    new = log.end
    assert (log.gap(old), log.gap(new)) == ("history-lost", None)
    for number in range(10, 13):
        log.append(entry(number))
    assert (log.gap(old), log.gap(new)) == ("history-lost", "overrun")
    log.restart("r-0")
    assert {log.gap(cursor) for cursor in range(log.start)} == {"history-lost"}


def test_an_empty_log_restarts_as_well() -> None:
    """The first stream may be there before the broker is."""
    log = EventLog(10, 10)
    log.restart("q-0")
    assert (log.gap(0), log.find("q-0"), log.bytes) == ("history-lost", 1, 0)


class LogAgainstList(RuleBasedStateMachine):
    """The ring does what a list that is never cut would do, within its bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.log = EventLog(4, 20, base="p0-0")
        self.all: list[Entry] = []
        self.gone: list[str] = []
        self.base = "p0-0"
        self.first = 0
        self.restarts = 0

    @rule(size=st.integers(1, 30))
    def append(self, size: int) -> None:
        number = len(self.all) + 1
        made = Entry(f"p{self.restarts}-{number}", b"x" * size, RULE)
        self.all.append(made)
        self.log.append(made)

    @rule()
    def restart(self) -> None:
        newest = self.log.end
        self.gone += [self.base, *(e.position for e in self.all)]
        self.restarts += 1
        self.base = f"p{self.restarts}-0"
        self.log.restart(self.base)
        assert self.log.start == self.log.end > newest
        self.all = []
        self.first = self.log.start

    @rule(data=st.data(), limit=st.integers(0, 6))
    def page(self, data: st.DataObject, limit: int) -> None:
        ordinal = data.draw(st.integers(self.log.start, self.log.end))
        index = ordinal - self.first
        assert list(self.log.after(ordinal, limit)) == self.all[index : index + limit]

    @invariant()
    def keeps_a_suffix_within_the_bounds(self) -> None:
        log, dropped = self.log, self.log.start - self.first
        kept = self.all[dropped:]
        assert list(log.after(log.start, 100)) == kept
        assert log.bytes == sum(len(e.frame) for e in kept)
        assert len(kept) <= 4
        assert log.bytes <= 20 or len(kept) == 1
        # Nothing is forgotten that would still fit.
        if dropped:
            longer = self.all[dropped - 1 :]
            assert len(longer) > 4 or sum(len(e.frame) for e in longer) > 20

    @invariant()
    def finds_what_it_has(self) -> None:
        log, dropped = self.log, self.log.start - self.first
        positions = [self.base, *(e.position for e in self.all)]
        for index, position in enumerate(positions):
            expected = self.first + index if index >= dropped else None
            assert log.find(position) == expected
            if expected is not None:
                assert log.position_at(expected) == position
        assert log.position == positions[-1]
        assert all(log.find(position) is None for position in self.gone)

    @invariant()
    def knows_its_gaps(self) -> None:
        for ordinal in range(self.log.end + 1):
            reason = "history-lost" if ordinal < self.first else "overrun"
            assert self.log.gap(ordinal) == (None if ordinal >= self.log.start else reason)


LogAgainstList.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestLogAgainstList = LogAgainstList.TestCase

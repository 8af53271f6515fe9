"""The log: a bounded ring that knows what it has forgotten."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

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


def test_an_unknown_position_is_not_found_even_in_an_empty_log() -> None:
    """Before the broker was reached nothing can be said to be continuous."""
    assert EventLog(10, 10).find(UNKNOWN) is None


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
    assert log.find("p-5") is None
    assert log.find("q-0") == log.start == log.end
    assert log.position == "q-0"


class LogAgainstList(RuleBasedStateMachine):
    """The ring does what a list that is never cut would do, within its bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.log = EventLog(4, 20, base="p-0")
        self.all: list[Entry] = []
        self.base = "p-0"
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
        self.restarts += 1
        self.base = f"p{self.restarts}-0"
        self.log.restart(self.base)
        self.all = []
        self.first = self.log.start

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
        assert log.position == positions[-1]


LogAgainstList.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestLogAgainstList = LogAgainstList.TestCase

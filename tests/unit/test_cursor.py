"""Cursors: what is after this ordinal, for this audience?"""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from flask_noc_realtime.audience import Audience, TypeFilter
from flask_noc_realtime.cursor import Batch, Reader, read
from flask_noc_realtime.event import parse_rule
from flask_noc_realtime.eventlog import Entry, EventLog


def entry(number: int, permissions: list[str] | None = None, user_id: str | None = None) -> Entry:
    """Return an entry whose frame is its number."""
    header = json.dumps(["incident.created", permissions, user_id]).encode()
    return Entry(f"p-{number}", b"<%d>" % number, parse_rule(header))


def log_of(*entries: Entry) -> EventLog:
    """Return a log of these entries."""
    log = EventLog(2000, 10**6, base="p-0")
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
    assert reader.read_for(Audience(frozenset("b")), "7", 0).body == one.body


def test_a_batch_is_shared_also_where_the_range_holds_events_for_others() -> None:
    """One notification to one user must not make every stream read for itself."""
    reader = Reader(log_of(entry(1), entry(2, user_id="7"), entry(3)), 1000)
    eight, nobody = (reader.read_for(Audience(), user, 0) for user in ("8", None))
    assert eight is nobody
    assert eight.private == {"7"}


def test_what_is_appended_later_is_read_by_who_has_asked_before() -> None:
    """A remembered batch lasts no longer than the log it was read from."""
    log = log_of(entry(1))
    reader = Reader(log, 1000)
    assert reader.read(Audience(), 0).body == b"<1>"
    assert reader.read(Audience(), 1).body == b""
    log.append(entry(2))
    assert reader.read(Audience(), 0).body == b"<1><2>"
    assert reader.read(Audience(), 1).body == b"<2>"


def test_a_restart_is_a_gap_also_for_who_has_asked_before() -> None:
    """Everything a stream was to get next is gone."""
    log = log_of(entry(1))
    reader = Reader(log, 1000)
    reader.read(Audience(), 1)
    log.restart("q-0")
    assert reader.read_for(Audience(), "7", 1) == Batch(b"", (), 1, gap="history-lost")
    assert reader.read_for(Audience(), "7", log.end) == Batch(b"", [], log.end)


def test_remembered_batches_are_few() -> None:
    """Streams that replay from a thousand places would keep the log in memory as often."""
    log = log_of(*(entry(number) for number in range(200)))
    reader = Reader(log, 10_000)
    for ordinal in range(200):
        assert reader.read(Audience(), ordinal) == read(log, Audience(), ordinal, 10_000)
    assert len(reader._batches) <= 64


def test_a_batch_ends_before_the_limit_but_holds_one_event_at_least() -> None:
    """A single large event still goes out whole."""
    log = log_of(entry(1), entry(2), entry(3))
    assert read(log, Audience(), 0, 6).body == b"<1><2>"
    assert read(log, Audience(), 0, 5).body == b"<1>"
    assert read(log, Audience(), 0, 1) == Batch(b"<1>", [entry(1).rule], 1)
    assert read(log, Audience(), 0, 9) == Batch(b"<1><2><3>", [entry(1).rule] * 3, 3)


def test_an_event_larger_than_the_limit_waits_for_a_batch_of_its_own() -> None:
    """It neither joins others nor is cut, and what follows is not lost."""
    large = Entry("p-2", b"x" * 100, entry(2).rule)
    log = log_of(entry(1), large, entry(3))
    bodies, ordinal = [], 0
    while ordinal < log.end:
        batch = read(log, Audience(), ordinal, 10)
        bodies.append(batch.body)
        ordinal = batch.end
    assert bodies == [b"<1>", b"x" * 100, b"<3>"]


def test_hidden_events_move_the_cursor_and_send_nothing() -> None:
    """A stream that sees little stays at the newest position all the same."""
    log = log_of(entry(1, ["secret"]), entry(2, ["secret"]))
    batch = read(log, Audience(), 0, 1000)
    assert (batch.body, len(batch.rules), batch.end) == (b"", 0, 2)


def test_one_read_passes_over_any_number_of_hidden_events() -> None:
    """Or a stream that sees little would be woken for nothing, page by page."""
    log = log_of(*(entry(number, ["secret"]) for number in range(1, 1500)), entry(1500))
    assert read(log, Audience(), 0, 1000) == Batch(b"<1500>", [entry(1).rule], 1500)
    assert len(read(log, Audience(frozenset(["secret"])), 0, 10**6).rules) == 1500


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


def test_a_private_event_after_the_batch_is_not_lost() -> None:
    """The shared batch is full before it, and the next holds it."""
    reader = Reader(log_of(entry(1), entry(2), entry(3, user_id="7")), 3)
    first = reader.read_for(Audience(), "7", 0)
    assert first is reader.read_for(Audience(), None, 0)
    second = reader.read_for(Audience(), "7", first.end)
    assert (first.body, second.body) == (b"<1>", b"<2>")
    assert reader.read_for(Audience(), "7", second.end).body == b"<3>"


permissions = st.none() | st.lists(st.sampled_from("ab"), min_size=1, unique=True)
events = st.tuples(
    st.sampled_from(["incident.created", "log.added"]),
    permissions,
    st.none() | st.sampled_from(["7", "8"]),
    st.integers(1, 12),
)
AUDIENCES = [
    Audience(frozenset(held), TypeFilter.parse(types), user)
    for held, types, user in (
        ("", "", None),
        ("a", "", "7"),
        ("a", "", "8"),
        ("a", "", None),
        ("ab", "log.*", "8"),
        ("ab", "log.*", "7"),
        ("b", "incident.*", "9"),
    )
]
steps = st.lists(events | st.integers(0, len(AUDIENCES) - 1), max_size=50)


def made(number: int, event: tuple[str, list[str] | None, str | None, int]) -> Entry:
    """Return an entry that differs from all others, of about the length asked for."""
    type, held, user, size = event
    header = json.dumps([type, held, user]).encode()
    return Entry(f"p-{number}", b"<%d%b>" % (number, b"." * size), parse_rule(header))


@settings(max_examples=80)
@given(steps=steps, limit=st.integers(1, 60))
def test_history_and_live_meet_without_gap_or_duplicate(
    steps: list[tuple[str, list[str] | None, str | None, int] | int], limit: int
) -> None:
    """However appends and reads alternate, each stream is given exactly what it may see."""
    log = EventLog(1000, 10**6, base="p-0")
    reader = Reader(log, limit)
    entries: list[Entry] = []
    got = [b""] * len(AUDIENCES)
    at = [0] * len(AUDIENCES)

    def advance(number: int) -> None:
        audience = AUDIENCES[number]
        batch = reader.read_for(audience.shared, audience.user_id, at[number])
        assert batch.gap is None
        assert batch.end > at[number] or at[number] == log.end
        assert len(batch.body) <= limit or len(batch.rules) == 1
        assert len(batch.rules) == batch.body.count(b"<")
        got[number] += batch.body
        at[number] = batch.end

    for step in steps:
        if isinstance(step, int):
            advance(step)
        else:
            entries.append(made(len(entries) + 1, step))
            log.append(entries[-1])
    for number, audience in enumerate(AUDIENCES):
        while at[number] != log.end:
            advance(number)
        assert got[number] == b"".join(e.frame for e in entries if audience.sees(e.rule))


@settings(max_examples=80)
@given(steps=steps)
def test_what_a_short_log_loses_is_a_gap_and_never_a_silent_hole(
    steps: list[tuple[str, list[str] | None, str | None, int] | int],
) -> None:
    """A stream is given everything between its resets, and is reset only if it fell off."""
    log = EventLog(3, 40, base="p-0")
    reader = Reader(log, 30)
    entries: list[Entry] = []
    at = [0] * len(AUDIENCES)
    for step in steps:
        if not isinstance(step, int):
            entries.append(made(len(entries) + 1, step))
            log.append(entries[-1])
            continue
        audience, start = AUDIENCES[step], at[step]
        batch = reader.read_for(audience.shared, audience.user_id, start)
        if start < log.start:
            assert batch == Batch(b"", (), start, gap="overrun")
            at[step] = log.end
        else:
            seen = [e.frame for e in entries[start : batch.end] if audience.sees(e.rule)]
            assert (batch.body, batch.gap) == (b"".join(seen), None)
            at[step] = batch.end

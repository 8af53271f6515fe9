"""The timing wheel: nothing late, nothing much too early, nothing lost."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime.wheel import Wheel

ticks = st.sampled_from([0.25, 0.1, 0.7, 1.0, 3.0])
times = st.floats(-10, 10**6) | st.integers(0, 50).map(float)


def test_an_empty_wheel_has_nothing_next() -> None:
    """So that an idle process sets no timer."""
    wheel: Wheel[str] = Wheel(0.25)
    assert wheel.next is None
    assert wheel.take(math.inf) == []
    wheel.add(10.1, "a")
    assert wheel.next == 10.0
    assert wheel.take(9.9) == []
    assert wheel.take(10.0) == ["a"]
    assert wheel.next is None


def test_items_of_one_slot_share_it_and_keep_their_order() -> None:
    """Ten thousand heartbeats are then a few dozen wake-ups."""
    wheel: Wheel[str] = Wheel(0.25)
    for due, item in ((10.2, "b"), (10.0, "a"), (10.25, "d"), (10.1, "c"), (9.0, "first")):
        wheel.add(due, item)
    assert wheel.take(10.0) == ["first", "b", "a", "c"]
    assert wheel.next == 10.25


def test_an_item_in_the_past_is_taken_at_once() -> None:
    """A loop that was held up adds what is overdue already."""
    wheel: Wheel[str] = Wheel(0.25)
    wheel.add(20.0, "later")
    wheel.take(10.0)
    wheel.add(1.0, "overdue")
    assert wheel.take(10.0) == ["overdue"]


def test_what_is_discarded_does_not_come_and_is_not_kept() -> None:
    """Whoever is gone before its time; a slot that has come is no reason to fail."""
    wheel: Wheel[str] = Wheel(0.25)
    slots = {item: wheel.add(10.0, item) for item in "abc"}
    wheel.discard(slots["b"], "b")
    wheel.discard(slots["b"], "b")
    assert wheel.take(10.0) == ["a", "c"]
    wheel.discard(slots["a"], "a")
    wheel.discard(-1, "a")
    assert wheel.next is None


def test_what_was_discarded_long_before_its_time_leaves_nothing() -> None:
    """A hundred thousand streams that left, each of which would have expired in an hour."""
    wheel: Wheel[int] = Wheel(0.25)
    wheel.add(50_000.0, -1)
    for number in range(1000):
        wheel.discard(wheel.add(3600.0 + number, number), number)
    assert len(wheel._slots) == 1
    assert len(wheel._order) < 100
    assert wheel.next == 50_000.0
    assert wheel.take(math.inf) == [-1]


@pytest.mark.parametrize(
    ("tick", "due"), [(0.7, 456196.99999999994), (0.1, 0.3), (0.25, -0.1), (0.25, 10.0)]
)
def test_a_slot_never_begins_after_what_is_in_it(tick: float, due: float) -> None:
    """A plain quotient is rounded, sometimes up: into the slot after."""
    wheel: Wheel[None] = Wheel(tick)
    wheel.add(due, None)
    assert wheel.next is not None
    assert due - tick * (1 + 1e-9) <= wheel.next <= due


@given(ticks, st.lists(st.tuples(times, st.none() | st.floats(0, 10**6)), max_size=30))
def test_items_come_at_their_time_or_a_tick_before(
    tick: float, steps: list[tuple[float, float | None]]
) -> None:
    """A list that is sorted and searched every time does no better, but for the tick."""
    wheel: Wheel[tuple[float, int]] = Wheel(tick)
    left: list[tuple[float, int]] = []
    for number, (due, now) in enumerate(steps):
        wheel.add(due, (due, number))
        left = sorted([*left, (due, number)])
        if now is not None:
            taken = wheel.take(now)
            assert all(due - tick * (1 + 1e-6) <= now for due, _ in taken)
            for item in taken:
                left.remove(item)
            assert all(due > now for due, _ in left)
        if left:
            assert wheel.next is not None
            assert left[0][0] - tick * (1 + 1e-6) <= wheel.next <= left[0][0]
        else:
            assert wheel.next is None
    assert sorted(wheel.take(math.inf)) == left

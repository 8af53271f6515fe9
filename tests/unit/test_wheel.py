"""The timing wheel: nothing late, nothing much too early, nothing lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flask_noc_realtime.wheel import Wheel

times = st.floats(0, 100, allow_nan=False)


def test_an_empty_wheel_has_nothing_next() -> None:
    """So that an idle process sets no timer."""
    wheel: Wheel[str] = Wheel(0.25)
    assert wheel.next is None
    wheel.add(10.1, "a")
    assert wheel.next == 10.0
    assert wheel.take(9.9) == []
    assert wheel.take(10.0) == ["a"]
    assert wheel.next is None


@given(st.lists(times), st.lists(times))
def test_items_come_at_their_time_or_a_tick_before(dues: list[float], nows: list[float]) -> None:
    """Whatever is due has been taken, and nothing more than a tick early."""
    wheel: Wheel[float] = Wheel(0.25)
    for due in dues:
        wheel.add(due, due)
    left = sorted(dues)
    for now in sorted(nows):
        taken = wheel.take(now)
        assert all(due - 0.25 <= now for due in taken)
        for due in taken:
            left.remove(due)
        assert all(due > now for due in left)
    assert sorted(wheel.take(1000.0)) == left

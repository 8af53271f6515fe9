"""Combining: one call for all who ask at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from flask_noc_realtime.combine import Combine
from tests.processes import wait_until

TIMEOUT = 10.0


class Desk:
    """Answers questions with their double, and keeps each call; a test may hold it up."""

    def __init__(self, limit: int = 500) -> None:
        self.calls: list[list[int]] = []
        self.amid: Callable[[], object] = lambda: None
        self.ask: Combine[int, int] = Combine(self._answer, limit)
        self.answers: dict[int, int | BaseException] = {}
        self.threads: list[threading.Thread] = []

    def _answer(self, questions: Sequence[int]) -> list[int]:
        self.calls.append(list(questions))
        self.amid()
        return [2 * question for question in questions]

    def visit(self, question: int) -> None:
        """Ask, and keep the answer."""
        try:
            self.answers[question] = self.ask(question)
        except BaseException as error:
            self.answers[question] = error

    def come(self, question: int) -> None:
        """Have somebody ask; return when the desk is asking, or they are in line."""
        line, calls = len(self.ask._waiting), len(self.calls)
        self.threads.append(threading.Thread(target=self.visit, args=(question,), daemon=True))
        self.threads[-1].start()
        wait_until(
            lambda: len(self.ask._waiting) > line or len(self.calls) > calls, TIMEOUT, "they come"
        )

    def join(self) -> None:
        """Wait until everybody has left."""
        for thread in self.threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def test_a_single_question_is_asked_at_once() -> None:
    """On the caller's own thread."""
    desk = Desk()
    assert [desk.ask(1), desk.ask(2)] == [2, 4]
    assert desk.calls == [[1], [2]]


def held_up(desk: Desk) -> threading.Event:
    """Hold the next call up until the event is set."""
    go_on = threading.Event()

    def hold() -> None:
        desk.amid = lambda: None
        assert go_on.wait(TIMEOUT)

    desk.amid = hold
    return go_on


def test_who_comes_during_a_call_is_in_the_next_one() -> None:
    """All of them together, in the order they came, and each gets their own answer."""
    desk = Desk()
    go_on = held_up(desk)
    for question in range(5):
        desk.come(question)
    go_on.set()
    desk.join()
    assert desk.calls == [[0], [1, 2, 3, 4]]
    assert desk.answers == {question: 2 * question for question in range(5)}


def test_a_call_has_so_many_questions_at_most() -> None:
    """What is over is in the one after."""
    desk = Desk(limit=2)
    go_on = held_up(desk)
    for question in range(6):
        desk.come(question)
    go_on.set()
    desk.join()
    assert desk.calls == [[0], [1, 2], [3, 4], [5]]


def test_an_error_is_everybodys_whose_question_it_was() -> None:
    """And nobody else's."""
    desk = Desk()
    go_on = held_up(desk)
    for question in range(3):
        desk.come(question)

    def fail() -> None:
        desk.amid = lambda: None
        raise LookupError("no answer")

    desk.amid = fail
    go_on.set()
    desk.join()
    assert desk.answers[0] == 0
    assert [type(desk.answers[question]) for question in (1, 2)] == [LookupError] * 2
    assert desk.ask(4) == 8


def test_who_is_cut_short_while_asking_for_all_ends_nobody_else() -> None:
    """The next in line asks anew for those who are left."""
    desk = Desk()
    go_on = held_up(desk)
    for question in range(4):
        desk.come(question)

    def cut_short() -> None:
        desk.amid = lambda: None
        raise KeyboardInterrupt

    desk.amid = cut_short
    go_on.set()
    desk.join()
    assert isinstance(desk.answers.pop(1), KeyboardInterrupt)
    assert desk.answers == {0: 0, 2: 4, 3: 6}
    assert desk.calls == [[0], [1, 2, 3], [2, 3]]


@pytest.mark.parametrize("victim", [2, 3])
def test_who_is_cut_short_while_asked_for_is_not_asked_for_anew(
    victim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it ask for the others, when who asked for all is cut short after it."""
    desk = Desk()
    go_on, cut = held_up(desk), threading.Event()

    class CutShort(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert cut.wait(TIMEOUT)
            raise KeyboardInterrupt

    for question in range(4):
        if question == victim:
            doubles = SimpleNamespace(Event=CutShort)
            monkeypatch.setattr("flask_noc_realtime.combine.threading", doubles)
        desk.come(question)
        with desk.ask._lock:  # Until then it may not have made its event.
            monkeypatch.undo()

    def cut_both_short() -> None:
        desk.amid = lambda: None
        cut.set()
        desk.threads[victim].join(TIMEOUT)
        raise KeyboardInterrupt

    desk.amid = cut_both_short
    go_on.set()
    desk.join()
    assert all(isinstance(desk.answers.pop(each), KeyboardInterrupt) for each in (1, victim))
    left = 5 - victim
    assert desk.answers == {0: 0, left: 2 * left}
    assert desk.calls == [[0], [1, 2, 3], [left]]


def test_who_is_cut_short_while_waiting_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do those behind wait for them."""
    desk = Desk()
    go_on = held_up(desk)
    desk.come(0)

    class CutShort:
        def wait(self) -> bool:
            raise KeyboardInterrupt

    victim = threading.Thread(target=desk.visit, args=(1,))
    monkeypatch.setattr("flask_noc_realtime.combine.threading", SimpleNamespace(Event=CutShort))
    victim.start()
    victim.join(TIMEOUT)
    monkeypatch.undo()
    desk.come(2)
    go_on.set()
    desk.join()
    assert isinstance(desk.answers.pop(1), KeyboardInterrupt)
    assert desk.answers == {0: 0, 2: 4}
    assert desk.calls == [[0], [2]]

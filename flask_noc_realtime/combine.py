"""One call for all who ask at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class _Asker(Generic[Q, A]):
    __slots__ = ("answer", "error", "gone", "leads", "question", "turn")

    def __init__(self, question: Q) -> None:
        self.question = question
        self.answer: A | None = None
        self.error: BaseException | None = None
        self.gone = False
        self.leads = False
        self.turn: threading.Event | None = None


class Combine(Generic[Q, A]):
    """Combines questions: whoever comes first asks for all that wait by then.

    The next in line asks for those that came meanwhile. A single caller is not held up, and a
    thousand cost a few calls (flat combining; Hendler et al., SPAA 2010).

    :param ask: answers several questions, in their order; an Exception it raises all of them
        get. When the caller that asks is cut short, it is asked again for those who still wait.
    :param limit: questions of one call at most.
    """

    def __init__(self, ask: Callable[[Sequence[Q]], Sequence[A]], limit: int = 500) -> None:
        self._ask_all = ask
        self._limit = limit
        self._lock = threading.RLock()
        self._waiting: list[_Asker[Q, A]] = []
        self._asking = False

    def __call__(self, question: Q) -> A:
        """Return the answer to *question*."""
        asker: _Asker[Q, A] = _Asker(question)
        with self._lock:
            self._waiting.append(asker)
            asker.leads, self._asking = not self._asking, True
            if not asker.leads:
                asker.turn = threading.Event()
        if asker.turn is not None:
            self._wait(asker, asker.turn)
        if asker.leads:
            self._ask(asker)
        if asker.error is not None:
            raise asker.error
        return asker.answer  # type: ignore[return-value]  # every question was answered

    def _wait(self, asker: _Asker[Q, A], turn: threading.Event) -> None:
        try:
            turn.wait()
        except BaseException:
            # A request cut short would otherwise hold up all behind it.
            with self._lock:
                asker.gone = True
                if asker in self._waiting:
                    self._waiting.remove(asker)
                if asker.leads:
                    self._pass_on()
            raise

    def _ask(self, leader: _Asker[Q, A]) -> None:
        with self._lock:
            asked = self._waiting[: self._limit]
            del self._waiting[: self._limit]
        try:
            answers = self._ask_all([each.question for each in asked])
            for each, answer in zip(asked, answers, strict=True):
                each.answer = answer
        except Exception as error:
            for each in asked:
                each.error = error
        except BaseException:
            # What ends the request that happens to ask must end no other: they are asked anew.
            with self._lock:
                leader.gone = True
                self._waiting[:0] = [each for each in asked if not each.gone]
            asked = []
            raise
        finally:
            with self._lock:
                for each in asked:
                    if each.turn is not None:
                        each.turn.set()
                self._pass_on()

    def _pass_on(self) -> None:
        self._asking = bool(self._waiting)
        if self._waiting:
            following = self._waiting[0]
            following.leads = True
            assert following.turn is not None, "only who does not lead waits"
            following.turn.set()

"""What a balancer asks of a worker, and what it is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from .errors import BrokerUnavailable

_logger = logging.getLogger("flask_noc_realtime")


class Health(NamedTuple):
    """How a worker is.

    :ivar worker: its name, which says nothing but that it is another.
    :ivar draining: whether it was told to leave.
    :ivar loaded: whether it has ever had the broker's history.
    :ivar away: seconds for which the broker has been away, 0 while it is there.
    :ivar grace: seconds it may be.
    :ivar answers: whether the broker answered just now; None when it was not asked.
    :ivar lag: seconds by which the slowest stream is behind; None where the server sends them.
    :ivar streams: how many there are.
    :ivar position: the newest one it knows.
    """

    worker: str
    draining: bool
    loaded: bool
    away: float
    grace: float
    answers: bool | None
    lag: float | None
    streams: int
    position: str

    @property
    def status(self) -> str:
        """``ok``, ``degraded`` without the broker, or ``draining``."""
        if self.draining:
            return "draining"
        lost = not self.loaded or self.away > self.grace or self.answers is False
        return "degraded" if lost else "ok"

    @property
    def broker(self) -> dict[str, Any]:
        """What is known of the broker: ``starting``, ``up`` or ``away``."""
        state = "starting" if not self.loaded else "away" if self.away else "up"
        known: dict[str, Any] = {"state": state, "away": round(self.away, 1)}
        return known if self.answers is None else {**known, "answers": self.answers}

    def body(self) -> dict[str, Any]:
        """Return what JSON shows; nothing in it is a secret."""
        return {
            "status": self.status,
            "broker": self.broker,
            "lag": None if self.lag is None else round(self.lag, 3),
            "streams": self.streams,
            "position": self.position,
            "worker": self.worker,
        }


class Probe:
    """Asks the broker whether it answers: once for all who want to know, and not for long.

    :param ping: raises BrokerUnavailable when it does not.
    :param timeout: seconds after which silence is an answer.
    """

    def __init__(self, ping: Callable[[], None], timeout: float = 1.0) -> None:
        self._ping = ping
        self._timeout = timeout
        self._lock = threading.Lock()
        self._question: _Question | None = None

    def __call__(self) -> bool:
        """Return whether the broker answers in time."""
        with self._lock:
            question = self._question
            if question is None:
                question = self._begin()
        return question.done.wait(self._timeout) and question.answered

    def _begin(self) -> _Question:
        """Ask in a thread: looking up a name, or one sentinel after the other, has no limit."""
        question = _Question()
        threading.Thread(
            target=self._ask, args=(question,), name="noc-realtime-probe", daemon=True
        ).start()
        self._question = question
        return question

    def _ask(self, question: _Question) -> None:
        try:
            self._ping()
            question.answered = True
        except BrokerUnavailable:
            pass
        except Exception:
            _logger.exception("The probe stumbled.")
        finally:
            with self._lock:
                self._question = None
            question.done.set()


class _Question:
    def __init__(self) -> None:
        self.answered = False
        self.done = threading.Event()

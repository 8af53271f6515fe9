"""Asking every worker how it is, through the one subscription each of them has.

Nobody reports anything until somebody asks: what nobody looks at costs nothing.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from ..errors import BrokerUnavailable

_TURN = 0.2
_KEPT = 10_000
"""Milliseconds that answers are kept for whoever asked, who may be gone."""

# A list that an answer began and nobody let expire would stay for ever.
_ANSWER = """
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

_logger = logging.getLogger("flask_noc_realtime")

SCRIPTS = {"census.answer": _ANSWER}


class Answers(NamedTuple):
    """What the workers said.

    :ivar asked: how many were asked, or None where that cannot be known, as in a Cluster.
    :ivar reports: what was answered in time, in no order.
    """

    asked: int | None
    reports: list[bytes]


class Census:
    """Asks the workers of one namespace, and answers for this one. Thread-safe.

    :param client: the Redis client.
    :param run: runs a script by name with keys and arguments.
    :param namespace: prefix of the keys and the channel.
    :param countable: whether Redis knows how many are asked.
    """

    def __init__(
        self, client: Any, run: Callable[..., Any], namespace: str, *, countable: bool
    ) -> None:
        self.channel = f"{{{namespace}}}:census"
        self.report: Callable[[], bytes] | None = None
        self._client = client
        self._run = run
        self._countable = countable

    def ask(self, seconds: float) -> Answers:
        """Return what the workers answer within *seconds*, sooner when all have.

        :raises redis.RedisError: when Redis does not answer.
        """
        question = secrets.token_hex(8)
        told = self._client.publish(self.channel, question)
        # A node of a cluster counts its own subscribers only.
        asked = told if self._countable else None
        reports: list[bytes] = []
        deadline = time.monotonic() + seconds
        while len(reports) != asked and time.monotonic() < deadline:
            # In turns: a longer wait would pass the client's own timeout.
            found = self._client.blpop([self._key(question)], timeout=_TURN)
            if found is not None:
                reports.append(found[1])
        return Answers(asked, reports)

    def answer(self, question: bytes) -> None:
        """Answer what came through the subscription, from a thread: no event waits for that.

        Whoever asks sees that one is missing where it cannot be done.
        """
        with suppress(RuntimeError):
            threading.Thread(
                target=self._answer, args=(question,), name="noc-realtime-census", daemon=True
            ).start()

    def _answer(self, question: bytes) -> None:
        if self.report is None:
            return
        key = self._key(question.decode("ascii", "replace"))
        try:
            self._run("census.answer", [key], [self.report(), _KEPT])
        except BrokerUnavailable:
            pass
        except Exception:
            _logger.exception("A question how this worker is was not answered.")

    def _key(self, question: str) -> str:
        return f"{self.channel}:{question}"

"""Generations as a reader may rely on them, also while the broker is away."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from typing import TypeVar

from .broker import Broker
from .combine import Combine
from .emit import Publisher
from .errors import BrokerUnavailable

T = TypeVar("T")

_Question = tuple[tuple[str, ...], bool]
"""Patterns, and whether to wait for the answer on the spot."""

_PAUSE = 1.0

_logger = logging.getLogger("flask_noc_realtime")


class Unknown:
    """Generations that could not be read: equal to none, not even to others like it.

    So nobody joins a flight that began before they came, and nothing of it is given out later.
    """


class Generations:
    """Reads the broker's generations, and after a failure leaves it in peace for a moment.

    :param broker: has the generations.
    :param emitter: what it has queued has happened, though the broker does not know it yet.
    """

    def __init__(
        self, broker: Broker, emitter: Publisher, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._broker = broker
        self._emitter = emitter
        self._clock = clock
        self._closed_until = 0.0
        self._complained = False
        self._combined: Combine[_Question, tuple[str, ...] | None] = Combine(self._ask)

    @property
    def readable(self) -> bool:
        """Whether it is worth asking the broker."""
        return not self._emitter.queued and self._clock() >= self._closed_until

    def read(self, patterns: Sequence[str], *, at_once: bool = False) -> Hashable:
        """Return what names the newest event of each pattern, or an `Unknown`.

        All who ask at the same time share a round trip. Who comes while one is under way waits
        for the next: it must see every event that was emitted before it came.

        :param at_once: whether to wait on the spot for a moment, if it is the caller that asks.
        """
        if not patterns:
            return ()
        if not self.readable:
            return Unknown()
        if self._broker.shared:
            names = self._combined((tuple(patterns), at_once))
        else:
            names = self.attempt(functools.partial(self._broker.generations, patterns))
        return Unknown() if names is None else names

    def _ask(self, questions: Sequence[_Question]) -> list[tuple[str, ...] | None]:
        wanted = [patterns for patterns, _ in questions]
        at_once = any(at_once for _, at_once in questions)
        patterns = list(dict.fromkeys(chain.from_iterable(wanted)))
        ask = functools.partial(self._broker.generations, patterns, at_once=at_once)
        names = self.attempt(ask)
        if names is None or len(questions) == 1:
            return [names] * len(questions)
        name_of = dict(zip(patterns, names, strict=True))
        return [tuple([name_of[pattern] for pattern in each]) for each in wanted]

    def retry(self) -> None:
        """Leave the broker in peace no longer: it is known to be back."""
        self._closed_until = 0.0

    def attempt(self, call: Callable[[], T]) -> T | None:
        """Return what *call* returns, or None when the broker is away."""
        try:
            result = call()
        except BrokerUnavailable as error:
            self._closed_until = self._clock() + _PAUSE
            if not self._complained:
                self._complained = True
                _logger.error("%s. Results that events invalidate are not kept meanwhile.", error)
            return None
        if self._complained:
            self._complained = False
            _logger.warning("The broker answers again; results are kept again.")
        return result

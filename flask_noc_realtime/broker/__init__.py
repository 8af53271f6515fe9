"""The contract between brokers and the hub.

A broker gives every published record one position in one total order, keeps the newest ones,
and feeds each process's hub from a single subscription.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from ..eventlog import Entry


class Sink(Protocol):
    """Where a broker delivers; the hub is one."""

    def deliver(self, entries: Sequence[Entry]) -> None:
        """Take entries that follow, without a hole, what was taken before."""

    def restart(self, base: str, entries: Sequence[Entry]) -> None:
        """Take a history that starts just after *base* and continues nothing taken before."""


class Broker(Protocol):
    """What carries events from emitters to hubs. Every method is thread-safe."""

    shared: bool
    """Whether events reach other processes."""

    def publish(self, record: bytes, key: str) -> str:
        """Append *record* to the total order and return its position.

        :param key: unique to the event, so that a second attempt can be recognised.
        :raises BrokerUnavailable: when it is not known to be published.
        """

    def publish_all(
        self, events: Sequence[tuple[bytes, str]], *, again: bool, age: float = math.inf
    ) -> list[str]:
        """Append records with their keys, in order, and return their positions.

        :param again: an earlier attempt may have succeeded unnoticed; publish none twice.
        :param age: seconds since the earliest attempt began: how far back to look for it.
        :raises BrokerUnavailable: when not all are known to be published; try *again*.
        """

    def follows(self, position: str, other: str) -> bool:
        """Tell whether *position* may be one after *other* that has not been delivered yet."""

    def ping(self) -> None:
        """Return when the broker would take an event.

        :raises BrokerUnavailable: when it would not.
        """

    def start(self, sink: Sink) -> None:
        """Begin feeding *sink*: its first `restart` brings the history, at once or later."""

    def close(self) -> None:
        """Stop feeding, and release connections."""

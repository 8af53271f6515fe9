"""The contract between brokers and the hub.

A broker gives every published record one position in one total order, keeps the newest ones,
and feeds each process's hub from a single subscription.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..eventlog import Entry

MAX_GENERATIONS = 10_000
"""Generations kept, about; beyond that all are forgotten, and so is every result they name."""


class Claim(NamedTuple):
    """A stream's place among those of its user.

    :ivar lease: unique to the stream; it begins with its worker's name and a colon.
    """

    user_id: str
    lease: str


class Terms(NamedTuple):
    """What a worker's leases are worth.

    :ivar worker: the worker's name, unique for ever, without a colon.
    :ivar seconds: how long they hold unless renewed; 0 ends them.
    :ivar limit: streams of one user at most.
    :ivar evict: let a new stream in and the user's oldest go, instead of refusing the new one.
    """

    worker: str
    seconds: float
    limit: int
    evict: bool = False


class Leased(NamedTuple):
    """What became of claims.

    :ivar renewed: whether the worker's leases held until now; if not, it must claim them anew.
    :ivar refused: leases that were not granted.
    :ivar evicted: leases of others that are void.
    """

    renewed: bool
    refused: frozenset[str]
    evicted: tuple[str, ...]


class Change(NamedTuple):
    """A record that is published only if nobody has said anything new of its subject meanwhile.

    :ivar key: names the subject.
    :ivar before: what is known to have been said of it; None when nothing was.
    :ivar after: what the record says of it, not empty.
    """

    key: str
    before: bytes | None
    after: bytes
    record: bytes


class Sink(Protocol):
    """Where a broker delivers; the hub is one."""

    def deliver(self, entries: Sequence[Entry]) -> None:
        """Take entries that follow, without a hole, what was taken before."""

    def restart(self, base: str, entries: Sequence[Entry]) -> None:
        """Take a history that starts just after *base* and continues nothing taken before.

        The notice that stands comes first, at *base*, whenever it was published.
        """


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

    def publish_changes(self, changes: Sequence[Change], seconds: float) -> list[str | None]:
        """Append records in order, each if what was said of its subject is still what it knows.

        Each that is appended, and what it says, are one step: after a failure the same changes
        can be published again, and those that were are not. What is said is known for so many
        *seconds*.

        :return: their positions; None for those that were not appended.
        :raises BrokerUnavailable: when it is not known whether they are published.
        """

    def recall(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return what the newest change of each key said.

        :raises BrokerUnavailable: when it cannot be known.
        """

    def generations(self, patterns: Sequence[str], *, at_once: bool = False) -> tuple[str, ...]:
        """Return what names the newest event of each pattern, such as ``incident.*``.

        It has changed before the publishing of an event that matches returns, and before any
        stream is sent it. Names are only ever compared for equality.

        :param at_once: whether to wait for the answer on the spot for a moment: the work of many
            waits for it.
        :raises BrokerUnavailable: when it cannot be known.
        """

    def follows(self, position: str, other: str) -> bool:
        """Tell whether *position* may be one after *other* that has not been delivered yet."""

    def ping(self) -> None:
        """Return when the broker would take an event.

        :raises BrokerUnavailable: when it would not.
        """

    def away(self) -> float:
        """Return the seconds for which nothing could be delivered; 0 while it can.

        Nobody is asked: it is what the subscription knows.
        """

    def stand(self, record: bytes, key: str) -> str:
        """Publish a notice as `publish` does, and let it stand in place of the one before.

        Every sink is given the notice that stands, also one that starts when it has left the log.

        :raises BrokerUnavailable: when it is not known to stand.
        """

    def standing(self) -> bytes | None:
        """Return the notice that stands, or None.

        :raises BrokerUnavailable: when it cannot be known.
        """

    def lease(
        self, terms: Terms, claims: Sequence[Claim] = (), released: Sequence[Claim] = ()
    ) -> Leased:
        """Renew all leases of a worker, give back some, and claim some, in one step.

        A claim that is already held is granted again. When a worker does not renew in time,
        its leases are void.

        :raises BrokerUnavailable: when it is not known what became of them.
        """

    def put(self, key: str, value: bytes, seconds: float) -> None:
        """Keep *value* under *key* for a while.

        :raises BrokerUnavailable: when it is not known to be kept.
        """

    def take(self, keys: Sequence[str]) -> list[bytes | None]:
        """Remove what is kept under each key and return it; of several callers one gets it.

        :raises BrokerUnavailable: when it cannot be known.
        """

    def start(self, sink: Sink) -> None:
        """Begin feeding *sink*: its first `restart` brings the history, at once or later.

        :raises RuntimeError: when there can be no thread for it; it can be tried again.
        """

    def close(self) -> None:
        """Stop feeding, and release connections."""

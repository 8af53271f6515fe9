"""Emitting: from a service to the broker, without ever breaking or holding up the service."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any, NamedTuple

from .broker import Broker
from .errors import BrokerUnavailable
from .event import Catalogue, Details, notice, record_of
from .metrics import OFF, Metrics

_BATCH_EVENTS = 200
_BATCH_BYTES = 1024 * 1024
_BACKOFF = (0.05, 0.1, 0.2, 0.5, 1.0)

_logger = logging.getLogger("flask_noc_realtime")

observers: list[Callable[[Publisher, bytes, str | None], None]] = []
"""Called with every record that was emitted in this process, and its position or None; for the
tests of apps, which cannot know the emitter before the app is made."""


@dataclass(frozen=True, slots=True)
class EmitOptions:
    """How an emitter treats events and outages.

    :param max_event_bytes: bytes of one encoded event at most.
    :param queue_events: events queued during an outage at most.
    :param queue_bytes: bytes queued during an outage at most.
    :param raises: raise `BrokerUnavailable` instead of queueing.
    """

    max_event_bytes: int = 256 * 1024
    queue_events: int = 10_000
    queue_bytes: int = 16 * 1024 * 1024
    raises: bool = False


class _Queued(NamedTuple):
    """An event that waits; `since` is when its first attempt began, if there was one."""

    record: bytes
    key: str
    since: float | None


class Publisher:
    """Publishes events in order; while the broker is away it queues them.

    The first failed publish opens the circuit: from then on an emit only appends to the
    queue, and one courier thread publishes from it until the broker is back and the queue is
    empty. What exceeds the queue is dropped, oldest first, counted, and logged once an outage.
    """

    def __init__(
        self,
        broker: Broker,
        catalogue: Catalogue,
        options: EmitOptions,
        metrics: Metrics = OFF,
    ) -> None:
        self.dropped = 0
        self._metrics = metrics
        self._broker = broker
        self._catalogue = catalogue
        self._options = options
        self._name = secrets.token_hex(8)
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._queue: deque[_Queued] = deque()
        self._queue_bytes = 0
        self._sending = 0
        self._open = False
        self._complained = False
        self._idle = threading.Event()
        self._idle.set()
        self._closing = threading.Event()

    @property
    def queued(self) -> int:
        """How many events wait for the broker."""
        with self._lock:
            # In between, the courier has them in neither place.
            return len(self._queue) + self._sending

    def emit(
        self,
        type: str,
        data: Any = None,
        *,
        permissions: Collection[str] | None = None,
        user_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> str | None:
        """Publish an event; return its position, or None when it is queued.

        :raises EventError: when the event itself is wrong; nothing is published.
        :raises BrokerUnavailable: only when the options say so.
        """
        return self.publish(self.encode(type, data, permissions, user_id, timestamp))

    def encode(
        self,
        type: str,
        data: Any = None,
        permissions: Collection[str] | None = None,
        user_id: str | None = None,
        timestamp: datetime | None = None,
    ) -> bytes:
        """Return the record of an event that is published later, or never.

        :raises EventError: when the event itself is wrong.
        """
        self._catalogue.check(type)
        details = Details(permissions, user_id, timestamp)
        return record_of(type, data, details, self._options.max_event_bytes)

    def publish(self, record: bytes) -> str | None:
        """Publish what `encode` returned; return as `emit` does.

        :raises BrokerUnavailable: only when the options say so.
        """
        position = self._send(record)
        for observe in observers:
            observe(self, record, position)
        return position

    def give_notice(self, type: str, about: str) -> str | None:
        """Publish a notice, in order with the events; return as `emit` does."""
        return self._send(notice(type, about))

    def _send(self, record: bytes) -> str | None:
        key = f"{self._name}-{next(self._numbers)}"
        since: float | None = None
        cause: Exception | None = None
        if not self._open:
            since = time.monotonic()
            try:
                return self._broker.publish(record, key)
            except Exception as error:
                # Whatever it is: an emit never breaks its caller.
                cause = error
                self._log_outage(error)
        self._postpone(_Queued(record, key, since))
        if self._options.raises:
            raise _refusal(cause) from cause
        return None

    def flush(self, timeout: float) -> bool:
        """Wait up to *timeout* seconds until nothing is queued; return whether that is so."""
        return self._idle.wait(timeout)

    def close(self, timeout: float = 2.0) -> None:
        """Give the queue *timeout* seconds, then drop and count the rest."""
        if self.queued:
            self.flush(timeout)
        self._closing.set()
        self._abandon()

    def _log_outage(self, error: Exception) -> None:
        with self._lock:
            first, self._open = not self._open, True
        if first:
            _logger.error(
                "The broker does not take events: %s. %s",
                error,
                "Emits raise until it is back."
                if self._options.raises
                else "They are queued and published in order when it is back.",
                exc_info=None if isinstance(error, BrokerUnavailable) else error,
            )

    def _postpone(self, item: _Queued) -> None:
        """Leave *item* to the courier, unless its caller is told; the courier ends the outage."""
        self._metrics.emit_failed()
        with self._lock:
            # The courier may have just closed it: the next event would overtake this one.
            self._open = True
            if not self._options.raises:
                self._enqueue(item)
            if self._idle.is_set():
                self._start_courier()

    def _start_courier(self) -> None:
        self._idle.clear()
        try:
            threading.Thread(target=self._deliver, name="noc-realtime-courier", daemon=True).start()
        except RuntimeError:
            # No more threads, or the interpreter ends: the next event tries again.
            self._idle.set()

    def _enqueue(self, item: _Queued) -> None:
        if item.since is not None:
            # Behind all that others queued meanwhile, its second attempt could come when the
            # first has already left the log, and would not find it.
            self._queue.appendleft(item)
        else:
            self._queue.append(item)
        self._queue_bytes += len(item.record)
        self._trim()

    def _trim(self) -> None:
        options = self._options
        while self._queue and (
            len(self._queue) > options.queue_events or self._queue_bytes > options.queue_bytes
        ):
            self._queue_bytes -= len(self._queue.popleft().record)
            self._drop(1)
            if not self._complained:
                self._complained = True
                _logger.error("The emit queue is full; the oldest events are being dropped.")

    def _drop(self, events: int) -> None:
        self.dropped += events
        self._metrics.emit_dropped(events)

    def _deliver(self) -> None:
        """Publish the queue in order until it is empty, then close the circuit."""
        failures = 0
        stumbled = False
        while not self._closing.is_set():
            items = self._take()
            now = time.monotonic()
            try:
                if items:
                    since = min((i.since for i in items if i.since is not None), default=now)
                    events = [item[:2] for item in items]
                    self._broker.publish_all(events, again=since < now, age=now - since)
                else:
                    self._broker.ping()
            except Exception as error:
                if not isinstance(error, BrokerUnavailable) and not stumbled:
                    stumbled = True
                    _logger.exception("The courier stumbled; it tries again.")
                self._put_back(items, now)
                self._closing.wait(_BACKOFF[min(failures, len(_BACKOFF) - 1)])
                failures += 1
                continue
            failures = 0
            if self._settled():
                return
        self._abandon()

    def _abandon(self) -> None:
        with self._lock:
            lost = len(self._queue) + self._sending
            self._queue.clear()
            self._queue_bytes = self._sending = 0
            self._drop(lost)
            self._idle.set()
        if lost:
            _logger.error("%d events were dropped: the process ended during an outage.", lost)

    def _take(self) -> list[_Queued]:
        """Take what one round trip publishes: by the piece, a steady flow would never drain."""
        items: list[_Queued] = []
        room = _BATCH_BYTES
        with self._lock:
            while self._queue and room > 0 and len(items) < _BATCH_EVENTS:
                item = self._queue.popleft()
                self._queue_bytes -= len(item.record)
                room -= len(item.record)
                items.append(item)
            self._sending = len(items)
        return items

    def _put_back(self, items: list[_Queued], now: float) -> None:
        with self._lock:
            if not self._sending:
                return  # `close` has counted them as lost.
            self._queue.extendleft(
                item if item.since is not None else item._replace(since=now)
                for item in reversed(items)
            )
            self._queue_bytes += sum(len(item.record) for item in items)
            self._sending = 0
            self._trim()

    def _settled(self) -> bool:
        """Close the circuit if nothing is queued."""
        with self._lock:
            self._sending = 0
            if self._queue:
                return False
            self._open = self._complained = False
            self._idle.set()
        _logger.warning("The broker takes events again; %d were dropped so far.", self.dropped)
        return True


def _refusal(cause: Exception | None) -> BrokerUnavailable:
    """Say what is known of an event that is left to its caller; without a cause it was not sent."""
    uncertain = cause is not None and getattr(cause, "uncertain", True)
    return BrokerUnavailable(
        "The broker is away and NOC_REALTIME_EMIT_ERRORS is 'raise'; "
        + (
            "the event may have been published or not: whoever emits it again may emit it twice."
            if uncertain
            else "the event was not published."
        ),
        uncertain=uncertain,
    )

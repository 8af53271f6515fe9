"""The hub: one per process, it owns the log and tells transports when there is more."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from .audience import Audience
from .broker import Broker
from .cursor import Batch, Reader
from .errors import ConfigError
from .event import ROLLOUT
from .eventlog import Entry, EventLog
from .frame import control
from .notice import Invalidations, Notices
from .rollout import Rollout, rollout_of

SPREAD = 0.8
"""The least share of an interval that streams are spread over."""

_ARRIVAL_STEP = 0.05
_SOON = 0.1
_ARRIVAL_WAIT = 0.5
_BLINK = 1.0

_logger = logging.getLogger("flask_noc_realtime")


@dataclass(frozen=True, slots=True)
class HubOptions:
    """How a hub keeps and sends events.

    :param history_events: entries in the log.
    :param history_bytes: bytes of frames in the log.
    :param write_limit: bytes a stream is given at once. A send costs a fixed sum and then by
        size: a cap much lower loses throughput, and none at all lets one slow round make the
        next one slower still.
    :param max_lag: seconds a live stream may be behind before it is reset.
    :param heartbeat: seconds of silence on a stream at most.
    :param retry: seconds until a browser reconnects, on average.
    :param stream_lifetime: seconds a stream lasts at most; 0 is for ever.
    :param rollout: who has streams while nothing else is stored.
    :param start_timeout: seconds the first stream waits for the broker's history.
    """

    history_events: int = 10_000
    history_bytes: int = 64 * 1024 * 1024
    write_limit: int = 128 * 1024
    max_lag: float = 2.0
    heartbeat: float = 15.0
    retry: float = 3.0
    stream_lifetime: float = 0.0
    rollout: Rollout = field(default_factory=Rollout)
    start_timeout: float = 1.0


class Opening(NamedTuple):
    """Where a stream starts.

    :ivar preamble: the first bytes of the body.
    :ivar ordinal: the cursor.
    :ivar live_from: the cursor's value from which on the stream counts as live.
    :ivar reset: why the preamble sends the stream to the newest position, if it does.
    """

    preamble: bytes
    ordinal: int
    live_from: int
    reset: str | None = None


class Hub:
    """Owns the log of one process, and is the sink of its only broker subscription.

    Start it after the fork. All methods are thread-safe.
    """

    def __init__(self, broker: Broker, options: HubOptions) -> None:
        self.options = options
        self.closing = threading.Event()
        self.invalidations = Invalidations()
        self.rollout = options.rollout
        self._broker = broker
        # A Condition on a plain Lock asks gevent's by acquire(False), which lets the event loop
        # run while the lock is held, and the loop's own callbacks may not wait for it.
        self._lock = threading.RLock()
        self._appended = threading.Condition(self._lock)
        self._log = EventLog(options.history_events, options.history_bytes)
        self._reader = Reader(self._log, options.write_limit)
        self._notices = Notices()
        self._arrivals: deque[tuple[float, int]] = deque()
        self._listeners: list[Callable[[], None]] = []
        self._loaded = threading.Event()
        self._patience: float | None = None
        self._complained = False

    def start(self) -> None:
        """Subscribe to the broker, once, and give its history a moment to arrive.

        Nobody waits longer than `start_timeout` after the first call: without the broker the
        app serves on, and streams are reset when it comes.
        """
        if self._loaded.is_set():
            return
        with self._lock:
            first = self._patience is None
            if self._patience is None:
                self._patience = time.monotonic() + self.options.start_timeout
            patience = self._patience
        if first and not self._follow():
            return
        self._loaded.wait(max(0.0, patience - time.monotonic()))

    def close(self) -> None:
        """Stop the subscription and tell transports to end their streams."""
        self.closing.set()
        self._notify()
        self._broker.close()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call *listener*, from any thread, whenever there is more to read."""
        self._listeners.append(listener)

    # What the broker calls.

    def deliver(self, entries: Sequence[Entry]) -> None:
        """Append entries that follow the log without a hole."""
        with self._lock:
            self._arrive()
            self.rollout = self._rollout_after(entries, self.rollout)
            self._append(entries)
            self._appended.notify_all()
        self._notify()

    def restart(self, base: str, entries: Sequence[Entry]) -> None:
        """Replace the log: every stream there is gets a reset."""
        with self._lock:
            self.rollout = self._rollout_after(entries, self.options.rollout)
            self._log.restart(base)
            self._arrivals.clear()
            self._append(entries)
            self.invalidations.count_all()
            self._loaded.set()
            self._appended.notify_all()
        self._notify()

    # What transports call.

    @property
    def position(self) -> str:
        """The newest position this process knows."""
        with self._lock:
            return self._log.position

    @property
    def end(self) -> int:
        """The ordinal after the newest entry."""
        return self._log.end

    @property
    def loaded(self) -> bool:
        """Whether the broker's history has come."""
        return self._loaded.is_set()

    @property
    def away(self) -> bool:
        """Whether the broker is; one that only restarts is not worth a word."""
        return self._broker.away() > _BLINK

    @property
    def noticed(self) -> tuple[int, Rollout]:
        """What changes with every notice that ends streams."""
        return self._notices.newest, self.rollout

    def told(self, since: int, user_id: str | None, lease: str | None = None) -> str | None:
        """Return what a user or a lease was told after the log's end was *since*, or None."""
        return self._notices.since(since, user_id, lease)

    def ended(self, since: int, user_id: str | None, lease: str | None) -> str | None:
        """Return why a stream must end that was let in when the log's end was *since*."""
        told = self.told(since, user_id, lease)
        return told or (None if self.rollout.includes(user_id) else "rollout")

    def ended_after(self, position: str, user_id: str | None) -> str | None:
        """Return why what was granted to a user at *position* is void.

        When the position has left the log, any notice about the user that is remembered counts.
        """
        found = self.locate(position)
        return self._notices.since(-1 if found is None else found, user_id, None)

    def open(self, last_position: str | None) -> Opening:
        """Find where a stream starts: after *last_position*, or now when that is None."""
        # In steps, so that streams that come together share the bytes.
        retry = round(self.retry() * 20) * 50
        with self._lock:
            found = self._find(last_position)
            end = self._log.end
            ordinal = end if found is None else found
            position = self._log.position_at(ordinal)
            loaded = self.loaded
        preamble = open_frame(position, retry, round(self.options.heartbeat * 1000), self.away)
        # Before the history has come every position is unknown, and its coming resets all.
        if found is not None or not loaded:
            return Opening(preamble, ordinal, end)
        reason = "unknown-position"
        return Opening(preamble + reset_frame(reason, position), ordinal, end, reason)

    def read(self, audience: Audience, user_id: str | None, ordinal: int) -> Batch:
        """Return what follows *ordinal*; *audience* is the shared one."""
        with self._lock:
            return self._reader.read_for(audience, user_id, ordinal)

    def locate(self, position: str | None) -> int | None:
        """Return the ordinal just after *position*, the end when it is None, None if not found."""
        with self._lock:
            return self._find(position)

    def page(self, audience: Audience, user_id: str | None, ordinal: int) -> tuple[Batch, str]:
        """Return as `read` does, and the position the batch reaches."""
        with self._lock:
            batch = self._reader.read_for(audience, user_id, ordinal)
            return batch, "" if batch.gap is not None else self._log.position_at(batch.end)

    def reset(self, reason: str) -> tuple[bytes, int]:
        """Return the frame that sends a stream to the newest position, and its ordinal."""
        with self._lock:
            position, end = self._log.position, self._log.end
        return reset_frame(reason, position), end

    def heartbeat(self) -> tuple[bytes, int]:
        """Return the heartbeat of a stream that has everything before the returned ordinal.

        It carries the position: a stream whose filter hides most events would otherwise
        reconnect from one that has left the log, and be reset having missed nothing.
        """
        with self._lock:
            position, end = self._log.position, self._log.end
        data = {"position": position, **said_of(self.away)}
        return control("heartbeat", data, id=position), end

    def horizon(self, now: float) -> int:
        """Return the ordinal that a live stream must have passed at *now*."""
        limit = now - self.options.max_lag
        with self._lock:
            self._expire_arrivals(limit)
            oldest = self._arrivals[0] if self._arrivals else None
            return oldest[1] if oldest is not None and oldest[0] <= limit else 0

    def lag(self, ordinal: int, now: float) -> float:
        """Return the seconds for which what follows *ordinal* has been there, or 0.

        It is right to a twentieth of a second, as far back as `max_lag` remembers.
        """
        with self._lock:
            if ordinal >= self._log.end or not self._arrivals:
                return 0.0
            arrived = [at for at, end in self._arrivals if end <= ordinal]
            return now - (arrived[-1] if arrived else self._arrivals[0][0])

    def retry(self) -> float:
        """Return a reconnection delay in seconds, spread so that herds do not return at once."""
        return self.options.retry * random.uniform(0.5, 1.5)

    def silence(self) -> float:
        """Return the seconds until a stream's next heartbeat, spread to at most `heartbeat`."""
        return self.options.heartbeat * random.uniform(SPREAD, 1.0)

    def lifetime(self) -> float | None:
        """Return the seconds a new stream may last, spread like `retry`, or None for ever."""
        longest = self.options.stream_lifetime
        return longest * random.uniform(SPREAD, 1.0) if longest else None

    def goodbye(self, reason: str) -> bytes:
        """Return the last frame of a stream; one that is to look up its rights returns soon."""
        retry = round(self.retry() * (_SOON if reason == "refresh" else 1.0) * 1000)
        return control("stream.close", {"reason": reason, "retry": retry}, retry=retry)

    def _follow(self) -> bool:
        """Start the subscription; without a thread for it the next caller tries again."""
        try:
            self._broker.start(self)
        except RuntimeError as error:
            if not self._complained:
                self._complained = True
                _logger.error("No event is followed until there is a thread for it: %s.", error)
            self._patience = None
            return False
        return True

    def _find(self, position: str | None) -> int | None:
        """Find where to resume, giving what another worker has already shown time to arrive."""
        log = self._log
        if position is None:
            return log.end
        if log.find(position) is None and self._broker.follows(position, log.position):
            self._appended.wait_for(lambda: log.find(position) is not None, _ARRIVAL_WAIT)
        return log.find(position)

    def _append(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._log.append(entry)
            self._notices.add(entry.rule, self._log.end)
            self.invalidations.add(entry.rule)

    def _rollout_after(self, entries: Sequence[Entry], before: Rollout) -> Rollout:
        """Return the newest rollout of *entries*, or else the one *before*."""
        for entry in reversed(entries):
            if entry.rule.type == ROLLOUT:
                try:
                    return rollout_of(entry.rule, self.options.rollout)
                except ConfigError as error:
                    _logger.error("Passed over %s in the event log: %s", entry.position, error)
        return before

    def _arrive(self) -> None:
        now = time.monotonic()
        if not self._arrivals or now - self._arrivals[-1][0] >= _ARRIVAL_STEP:
            self._expire_arrivals(now - self.options.max_lag)
            self._arrivals.append((now, self._log.end))

    def _expire_arrivals(self, limit: float) -> None:
        arrivals = self._arrivals
        while len(arrivals) > 1 and arrivals[1][0] <= limit:
            arrivals.popleft()

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()


@lru_cache(maxsize=256)
def open_frame(position: str, retry: int, heartbeat: int, away: bool = False) -> bytes:
    """Encode the event a stream begins with; *retry* and *heartbeat* are in milliseconds."""
    data = {"position": position, "retry": retry, "heartbeat": heartbeat, **said_of(away)}
    return control("stream.open", data, id=position, retry=retry)


def said_of(away: bool) -> dict[str, str]:
    """Return what a client is told of the broker: a stream that brings nothing looks alive."""
    return {"broker": "away"} if away else {}


@lru_cache(maxsize=8)
def reset_frame(reason: str, position: str) -> bytes:
    """Encode the event that tells a client to fetch everything again."""
    return control("stream.reset", {"reason": reason, "position": position}, id=position)

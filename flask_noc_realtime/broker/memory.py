"""The embedded default: one process, no Redis."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from ..errors import BrokerUnavailable
from ..event import generations_of
from ..eventlog import Entry, EventLog
from . import MAX_GENERATIONS, Change, Claim, Leased, Sink, Terms

_KEPT_LIMIT = 100_000

_NOTHING = (0.0, b"")

Kept = OrderedDict[str, tuple[float, bytes]]
"""Values, and when each is void; what was kept last comes last."""


class MemoryBroker:
    """Keeps the total order in this process; the hub's contract is the same as with Redis.

    Positions start with a token of the process, so that one from before a restart, or from
    another worker, is not found and answered with a reset instead of a wrong replay.

    An app's tests `cut` it off, and `heal` it, to see what the app does while Redis is away.
    Streams are counted all the same, as each worker does by itself then.

    :param max_events: entries kept.
    :param max_bytes: bytes of frames kept.
    """

    shared = False

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._epoch = secrets.token_hex(6)
        self._log = EventLog(max_events, max_bytes, base=f"{self._epoch}-0")
        self._sink: Sink | None = None
        self._cut_at: float | None = None
        self._standing: bytes | None = None
        self._max_events = max_events
        self._published: OrderedDict[str, str] = OrderedDict()
        # What has no name of its own has that of nothing.
        self._generations = {"": self._epoch}
        self._leases: dict[str, dict[str, None]] = {}
        self._kept: Kept = OrderedDict()
        self._said: Kept = OrderedDict()

    def publish(self, record: bytes, key: str) -> str:
        with self._lock:
            self._reach()
            return self._append(record, key)

    def publish_all(
        self, events: Sequence[tuple[bytes, str]], *, again: bool, age: float = math.inf
    ) -> list[str]:
        with self._lock:
            self._reach()
            known: Mapping[str, str] = self._published if again else {}
            return [known.get(key) or self._append(record, key) for record, key in events]

    def publish_changes(self, changes: Sequence[Change], seconds: float) -> list[str | None]:
        with self._lock:
            self._reach()
            return [self._change(change, seconds) for change in changes]

    def recall(self, keys: Sequence[str]) -> list[bytes | None]:
        with self._lock:
            self._reach()
            return [_value(self._said.get(key, _NOTHING)) for key in keys]

    def generations(self, patterns: Sequence[str], *, at_once: bool = False) -> tuple[str, ...]:
        self._reach()
        newest = self._generations
        unnamed = newest[""]
        return tuple([newest.get(pattern, unnamed) for pattern in patterns])

    def follows(self, position: str, other: str) -> bool:
        return False

    def ping(self) -> None:
        self._reach()

    def away(self) -> float:
        cut_at = self._cut_at
        return 0.0 if cut_at is None else time.monotonic() - cut_at

    def stand(self, record: bytes, key: str) -> str:
        with self._lock:
            self._reach()
            self._standing = record
            return self._append(record, key)

    def standing(self) -> bytes | None:
        self._reach()
        return self._standing

    def lease(
        self, terms: Terms, claims: Sequence[Claim] = (), released: Sequence[Claim] = ()
    ) -> Leased:
        refused, evicted = set(), []
        with self._lock:
            for user_id, lease in released:
                held = self._leases.get(user_id, {})
                held.pop(lease, None)
                if not held:
                    self._leases.pop(user_id, None)
            for user_id, lease in claims:
                held = self._leases.setdefault(user_id, {})
                if lease in held:
                    continue
                if len(held) >= terms.limit:
                    if not terms.evict:
                        refused.add(lease)
                        continue
                    evicted.append(next(iter(held)))
                    del held[evicted[-1]]
                held[lease] = None
        return Leased(True, frozenset(refused), tuple(evicted))

    def put(self, key: str, value: bytes, seconds: float) -> None:
        with self._lock:
            self._reach()
            _keep(self._kept, key, value, seconds)

    def take(self, keys: Sequence[str]) -> list[bytes | None]:
        with self._lock:
            self._reach()
            return [_value(self._kept.pop(key, _NOTHING)) for key in keys]

    def start(self, sink: Sink) -> None:
        with self._lock:
            log = self._log
            base = log.position_at(log.start)
            entries = [] if self._standing is None else [Entry.from_record(base, self._standing)]
            sink.restart(base, [*entries, *log.after(log.start, log.end - log.start)])
            self._sink = sink

    def close(self) -> None:
        with self._lock:
            self._sink = None

    def cut(self) -> None:
        """Take nothing and give nothing from now on, as a Redis that is away."""
        with self._lock:
            self._cut_at = time.monotonic()

    def heal(self, *, lost: bool = False) -> None:
        """Undo `cut`.

        :param lost: come back without the history, as a Redis that lost its data.
        """
        with self._lock:
            self._cut_at = None
            if lost:
                self._epoch = secrets.token_hex(6)
                self._log.restart(f"{self._epoch}-{self._log.end + 1}")
                self._published.clear()
                self._generations = {"": self._epoch}
                self._kept.clear()
                self._said.clear()
                self._standing = None
                if self._sink is not None:
                    self._sink.restart(self._log.position, [])

    def _reach(self) -> None:
        if self._cut_at is not None:
            raise BrokerUnavailable("The broker is cut off, by a test")

    def _change(self, change: Change, seconds: float) -> str | None:
        if _value(self._said.get(change.key, _NOTHING)) != change.before:
            return None
        _keep(self._said, change.key, change.after, seconds)
        return self._append(change.record, change.key)

    def _append(self, record: bytes, key: str) -> str:
        entry = Entry.from_record(f"{self._epoch}-{self._log.end + 1}", record)
        self._log.append(entry)
        for pattern in generations_of(entry.rule):
            self._generations[pattern] = entry.position
        if len(self._generations) > MAX_GENERATIONS:
            self._generations = {"": entry.position}
        self._published[key] = entry.position
        if len(self._published) > self._max_events:
            self._published.popitem(last=False)
        if self._sink is not None:
            self._sink.deliver([entry])
        return entry.position


def _keep(kept: Kept, key: str, value: bytes, seconds: float) -> None:
    now = time.monotonic()
    kept[key] = (now + seconds, value)
    kept.move_to_end(key)
    # Most live equally long, so that the first are the first to be void.
    while kept and (len(kept) > _KEPT_LIMIT or next(iter(kept.values()))[0] <= now):
        kept.popitem(last=False)


def _value(entry: tuple[float, bytes]) -> bytes | None:
    due, value = entry
    return value if due > time.monotonic() else None

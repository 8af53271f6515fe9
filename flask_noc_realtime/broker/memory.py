"""The embedded default: one process, no Redis."""

from __future__ import annotations

import math
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from ..eventlog import Entry, EventLog
from . import Sink


class MemoryBroker:
    """Keeps the total order in this process; the hub's contract is the same as with Redis.

    Positions start with a token of the process, so that one from before a restart, or from
    another worker, is not found and answered with a reset instead of a wrong replay.

    :param max_events: entries kept.
    :param max_bytes: bytes of frames kept.
    """

    shared = False

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._epoch = secrets.token_hex(6)
        self._log = EventLog(max_events, max_bytes, base=f"{self._epoch}-0")
        self._sink: Sink | None = None
        self._max_events = max_events
        self._published: OrderedDict[str, str] = OrderedDict()

    def publish(self, record: bytes, key: str) -> str:
        with self._lock:
            return self._append(record, key)

    def publish_all(
        self, events: Sequence[tuple[bytes, str]], *, again: bool, age: float = math.inf
    ) -> list[str]:
        with self._lock:
            known: Mapping[str, str] = self._published if again else {}
            return [known.get(key) or self._append(record, key) for record, key in events]

    def follows(self, position: str, other: str) -> bool:
        return False

    def ping(self) -> None:
        pass

    def start(self, sink: Sink) -> None:
        with self._lock:
            log = self._log
            sink.restart(log.position_at(log.start), log.after(log.start, log.end - log.start))
            self._sink = sink

    def close(self) -> None:
        with self._lock:
            self._sink = None

    def _append(self, record: bytes, key: str) -> str:
        entry = Entry.from_record(f"{self._epoch}-{self._log.end + 1}", record)
        self._log.append(entry)
        self._published[key] = entry.position
        if len(self._published) > self._max_events:
            self._published.popitem(last=False)
        if self._sink is not None:
            self._sink.deliver([entry])
        return entry.position

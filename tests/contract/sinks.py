"""What the contract tests put behind a broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from itertools import count

from flask_noc_realtime.event import Event
from flask_noc_realtime.eventlog import Entry

NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)
LIMIT = 512 * 1024

_keys = count(1)


def record(number: int, size: int = 0, type: str = "log.added") -> bytes:
    """Return the record of a numbered event."""
    return Event(type, {"n": number, "padding": "x" * size}, NOW).record(LIMIT)


def key() -> str:
    """Return a key no other event has."""
    return f"test-{next(_keys)}"


def number(entry: Entry) -> int:
    """Return the number of an event."""
    return int(entry.frame.partition(b'"n":')[2].partition(b",")[0])


class RecordingSink:
    """Keeps what a broker delivers, and lets a test wait for it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.restarts: list[str] = []
        self._changed = threading.Condition()

    def deliver(self, entries: Sequence[Entry]) -> None:
        """Take what follows."""
        with self._changed:
            self.entries += entries
            self._changed.notify_all()

    def restart(self, base: str, entries: Sequence[Entry]) -> None:
        """Take a new history."""
        with self._changed:
            self.restarts.append(base)
            self.entries = list(entries)
            self._changed.notify_all()

    @property
    def numbers(self) -> list[int]:
        """The numbers of the events, in the order they came."""
        return [number(entry) for entry in self.entries]

    def wait_for(self, condition: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
        """Wait until *condition* holds after a delivery.

        :raises TimeoutError: naming *what* did not happen.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition():
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"{what}: not within {timeout} s; {len(self.entries)} came")

    def wait_for_number(self, last: int) -> None:
        """Wait until the event of that number came."""
        self.wait_for(lambda: bool(self.entries) and number(self.entries[-1]) >= last, f"{last}")

"""The bounded log every stream is a cursor into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .event import Rule, split_record
from .frame import event_frame

UNKNOWN = "0-0"


class Entry(NamedTuple):
    """One event in the total order, encoded once."""

    position: str
    frame: bytes
    rule: Rule

    @classmethod
    def from_record(cls, position: str, record: bytes) -> Entry:
        """Encode a broker's record to its frame.

        :raises EventError: when *record* is not one of ours.
        """
        rule, envelope = split_record(record)
        return cls(position, event_frame(envelope, type=rule.type, id=position), rule)


class EventLog:
    """A ring of entries in the total order, bounded by events and by bytes.

    A position (a str) names an entry everywhere; an ordinal (an int) counts entries in this
    log alone and is what cursors hold. ``start <= ordinal <= end``: a cursor at *ordinal* has
    been given everything before it. Not thread-safe: locking belongs to its owner.

    :param max_events: entries kept at most.
    :param max_bytes: bytes of frames kept at most; the newest entry is always kept.
    :param base: the position just before the first entry.
    """

    def __init__(self, max_events: int, max_bytes: int, base: str = UNKNOWN) -> None:
        self.start = 0
        self.end = 0
        self.bytes = 0
        self._base = base
        self._broken = 0
        self._max_bytes = max_bytes
        self._ring: list[Entry | None] = [None] * max_events
        self._after: dict[str, int] = {}

    @property
    def position(self) -> str:
        """The newest position."""
        return self.position_at(self.end)

    def position_at(self, ordinal: int) -> str:
        """Return the position of the entry just before *ordinal*."""
        if ordinal == self.start:
            return self._base
        entry = self._ring[(ordinal - 1) % len(self._ring)]
        assert entry is not None
        return entry.position

    def append(self, entry: Entry) -> None:
        """Add the newest entry, and forget the oldest where a bound is passed."""
        if self.end - self.start == len(self._ring):
            self._forget()
        self._ring[self.end % len(self._ring)] = entry
        self.end += 1
        self.bytes += len(entry.frame)
        self._after[entry.position] = self.end
        while self.bytes > self._max_bytes and self.end - self.start > 1:
            self._forget()

    def find(self, position: str) -> int | None:
        """Return the ordinal just after *position*, or None when it is not in the log."""
        if position == self._base:
            return self.start if position != UNKNOWN else None
        return self._after.get(position)

    def after(self, ordinal: int, limit: int) -> Sequence[Entry]:
        """Return up to *limit* entries from *ordinal* on.

        :raises IndexError: when the entry at *ordinal* is forgotten; see `gap`.
        """
        if not self.start <= ordinal <= self.end:
            raise IndexError(f"ordinal {ordinal} is not in {self.start}..{self.end}")
        stop = min(ordinal + limit, self.end)
        size = len(self._ring)
        low, count = ordinal % size, stop - ordinal
        part = self._ring[low : low + count]
        if len(part) < count:
            part += self._ring[: count - len(part)]
        return part  # type: ignore[return-value]  # start..end holds no None

    def gap(self, ordinal: int) -> str | None:
        """Say why nothing can follow *ordinal* without a hole; None when something can."""
        if ordinal >= self.start:
            return None
        return "history-lost" if ordinal < self._broken else "overrun"

    def restart(self, base: str) -> None:
        """Forget everything: the order went on somewhere this log has not seen.

        Every cursor given out so far, the newest included, is left with a gap.
        """
        while self.start < self.end:
            self._forget()
        self.start = self.end = self._broken = self.end + 1
        self._base = base

    def _forget(self) -> None:
        index = self.start % len(self._ring)
        entry = self._ring[index]
        assert entry is not None
        self._ring[index] = None
        self.start += 1
        self.bytes -= len(entry.frame)
        self._base = entry.position
        del self._after[entry.position]

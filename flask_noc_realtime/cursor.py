"""What is after this ordinal, for this audience?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .audience import Audience, Verdict
from .event import Rule
from .eventlog import EventLog

_PAGE = 512
_BATCHES = 64


class Batch(NamedTuple):
    """Everything a cursor is given at once.

    :ivar body: frames joined; empty when the audience sees none of the events passed over.
    :ivar rules: of the frames.
    :ivar end: the ordinal the cursor moves to.
    :ivar private: users for whom the range also holds events of their own.
    :ivar gap: why the range begins with a hole, or None; then nothing else is set.
    """

    body: bytes
    rules: Sequence[Rule]
    end: int
    private: frozenset[str] = frozenset()
    gap: str | None = None


class Reader:
    """Reads the log for cursors, one bytes object for all that ask the same.

    Not thread-safe: its owner holds the lock of the log.

    :param limit: bytes after which a batch ends; a single larger event still goes whole.
    """

    def __init__(self, log: EventLog, limit: int) -> None:
        self._log = log
        self._limit = limit
        self._batches: dict[tuple[Audience, int], Batch] = {}
        self._bounds = (0, 0)

    def read(self, audience: Audience, ordinal: int) -> Batch:
        """Return the batch that follows *ordinal* for *audience*."""
        bounds = (self._log.start, self._log.end)
        if bounds != self._bounds:
            self._batches.clear()
            self._bounds = bounds
        key = (audience, ordinal)
        batch = self._batches.get(key)
        if batch is None:
            if len(self._batches) >= _BATCHES:
                self._batches.clear()
            batch = self._batches[key] = read(self._log, audience, ordinal, self._limit)
        return batch

    def read_for(self, audience: Audience, user_id: str | None, ordinal: int) -> Batch:
        """Return the shared batch, or the user's own where the range holds events for them."""
        batch = self.read(audience, ordinal)
        if user_id is not None and user_id in batch.private:
            own = Audience(audience.permissions, audience.types, user_id)
            return read(self._log, own, ordinal, self._limit)
        return batch


def read(log: EventLog, audience: Audience, ordinal: int, limit: int) -> Batch:
    """Collect frames from *ordinal* on, up to about *limit* bytes."""
    gap = log.gap(ordinal)
    if gap is not None:
        return Batch(b"", (), ordinal, gap=gap)
    frames: list[bytes] = []
    rules: list[Rule] = []
    private: set[str] = set()
    room = limit
    while room > 0:
        entries = log.after(ordinal, _PAGE)
        if not entries:
            break
        for entry in entries:
            rule = entry.rule
            verdict = audience.verdict(rule)
            if verdict is Verdict.SEEN:
                frame = entry.frame
                size = len(frame)
                if size > room and frames:
                    room = 0
                    break
                frames.append(frame)
                rules.append(rule)
                room -= size
            elif verdict is Verdict.PRIVATE and rule.user_id is not None:
                private.add(rule.user_id)
            ordinal += 1
    return Batch(b"".join(frames), rules, ordinal, frozenset(private))

"""Which users and leases were told to leave, and when; and which results were invalidated."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from .event import INVALIDATE, NOTICES, Rule, generations_of

_LIMIT = 10_000


class Notices:
    """The newest notice about each user and each lease, bounded.

    An ordinal is that of the log just after the notice. Reading is thread-safe, adding belongs
    to the owner of the log.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self.newest = 0
        self._limit = limit
        self._forgotten = -1
        self._about: OrderedDict[tuple[bool, str], tuple[int, str]] = OrderedDict()

    def add(self, rule: Rule, ordinal: int) -> None:
        """Remember the notice that *rule* is, or nothing when it is an event's."""
        reason = NOTICES.get(rule.type)
        if reason is None or rule.user_id is None:
            return
        key = (rule.type == "stream.evict", rule.user_id)
        self._about[key] = (ordinal, reason)
        # What is assigned anew keeps its place, and would be forgotten too soon.
        self._about.move_to_end(key)
        self.newest = ordinal
        if len(self._about) > self._limit:
            _, (self._forgotten, _) = self._about.popitem(last=False)

    def since(self, ordinal: int, user_id: str | None, lease: str | None) -> str | None:
        """Return why a stream that was let in at *ordinal* must end, or None.

        What was forgotten may have been about anyone: such a stream is sent to come again.
        """
        if self.newest <= ordinal:
            return None
        for key in ((False, user_id), (True, lease)):
            found = self._about.get(key)  # type: ignore[arg-type]  # None is about nobody
            if found is not None and found[0] > ordinal:
                return found[1]
        return "refresh" if ordinal < self._forgotten and user_id is not None else None


class Invalidations:
    """Counts how often results were invalidated by hand, by the names of their generations.

    Counts are only ever compared for equality. Reading is thread-safe; two who count at once
    may count once, which changes the count all the same.
    """

    def __init__(self) -> None:
        self._everything = 0
        self._counts: dict[str, int] = {}

    def of(self, name: str) -> int:
        """Return the count of *name*."""
        return self._everything + self._counts.get(name, 0)

    def add(self, rule: Rule) -> None:
        """Count what the notice that *rule* is invalidates, or nothing for another record."""
        if rule.type == INVALIDATE:
            self.count(generations_of(rule))

    def count(self, names: Iterable[str]) -> None:
        """Count an invalidation of each of *names*."""
        for name in names:
            self._counts[name] = self._counts.get(name, 0) + 1

    def count_all(self) -> None:
        """Count one of everything: notices may have been lost."""
        self._everything += 1

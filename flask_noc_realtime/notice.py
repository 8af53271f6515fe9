"""Which users and leases were told to leave, and when."""

from __future__ import annotations

from .event import NOTICES, Rule

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
        self._about: dict[tuple[bool, str], tuple[int, str]] = {}

    def add(self, rule: Rule, ordinal: int) -> None:
        """Remember the notice that *rule* is, or nothing when it is an event's."""
        reason = NOTICES.get(rule.type)
        if reason is None or rule.user_id is None:
            return
        key = (rule.type == "stream.evict", rule.user_id)
        self._about[key] = (ordinal, reason)
        self.newest = ordinal
        if len(self._about) > self._limit:
            forgotten, _ = self._about.pop(next(iter(self._about)))
            self._forgotten = max(self._forgotten, forgotten)

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

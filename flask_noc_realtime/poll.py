"""The same log without a stream: what is after this position, for this audience?"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .errors import BrokerUnavailable
from .frame import unframe
from .hub import said_of
from .transport import Caller, StreamRequest
from .transport.portable import Portable

_BODY_LIMIT = 256 * 1024
_CALLER_CHECK = 1.0


class Answer(NamedTuple):
    """What a client that polls is told.

    :ivar events: the frames of the events, joined.
    :ivar position: where to go on.
    :ivar reset: why everything must be fetched again, or None.
    :ivar more: whether to come again at once.
    """

    events: bytes
    position: str
    reset: str | None = None
    more: bool = False

    def body(self, interval: float, stream: bool, away: bool) -> bytes:
        """Return the JSON body.

        :param interval: seconds to wait before the next poll.
        :param stream: whether the client may have a stream.
        :param away: whether the broker is.
        """
        events = b",".join(
            b'{"id":%b,%b' % (json.dumps(id).encode(), data[1:])
            for id, data in unframe(self.events)
        )
        rest = {
            "position": self.position,
            "reset": self.reset,
            "retry_after": 0 if self.more else interval,
            "stream": stream,
            **said_of(away),
        }
        return b'{"events":[%b],%b' % (events, json.dumps(rest).encode()[1:])


class LongPolls:
    """Counts the polls that wait in one process: each holds a thread or greenlet of the server.

    :param per_user: polls of one user at most; 0 is any number.
    :param per_worker: polls of all users at most; 0 is any number.
    """

    def __init__(self, per_user: int, per_worker: int) -> None:
        self._per_user = per_user
        self._per_worker = per_worker
        self._lock = threading.Lock()
        self._users: Counter[str | None] = Counter()

    @contextmanager
    def admit(self, user_id: str | None, wait: float) -> Iterator[float]:
        """Give the seconds a poll may wait, *wait* or none, and count it in the block."""
        admitted = wait > 0 and self._enter(user_id)
        try:
            yield wait if admitted else 0.0
        finally:
            if admitted:
                self._leave(user_id)

    def _enter(self, user_id: str | None) -> bool:
        with self._lock:
            if self._per_worker and self._users.total() >= self._per_worker:
                return False
            if user_id is not None and 0 < self._per_user <= self._users[user_id]:
                return False
            self._users[user_id] += 1
            return True

    def _leave(self, user_id: str | None) -> None:
        with self._lock:
            self._users[user_id] -= 1
            if not self._users[user_id]:
                del self._users[user_id]


def poll(portable: Portable, request: StreamRequest, wait: float, caller: Caller) -> Answer:
    """Return what follows the client's position, waiting up to *wait* seconds for it.

    :raises BrokerUnavailable: when nothing is known of positions yet.
    """
    hub = portable.hub
    now = time.monotonic()
    deadline, check = now + wait, now + _CALLER_CHECK
    ordinal = hub.locate(request.last_position)
    if ordinal is None and not hub.loaded:
        raise BrokerUnavailable("The broker's history has not come yet; ask again.")
    if ordinal is None:
        return Answer(b"", hub.position, "unknown-position")
    bodies: list[bytes] = []
    room = _BODY_LIMIT
    position = ""
    while room > 0:
        batch, reached = hub.page(request.audience, request.user_id, ordinal)
        if batch.gap is not None:
            return Answer(b"", hub.position, batch.gap)
        if hub.told(request.since, request.user_id) is not None:
            # The next request learns what the client may see now.
            return Answer(b"".join(bodies), position or request.last_position or reached, more=True)
        if batch.end == ordinal:
            now = time.monotonic()
            if now >= check:
                check = now + _CALLER_CHECK
                deadline = deadline if caller.waits() else now
            if bodies or hub.closing.is_set() or now >= deadline:
                return Answer(b"".join(bodies), reached)
            portable.wait(ordinal, min(deadline, check))
        if batch.body:
            bodies.append(batch.body)
            room -= len(batch.body)
        ordinal, position = batch.end, reached
    return Answer(b"".join(bodies), position, more=True)

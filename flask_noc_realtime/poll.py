"""The same log without a stream: what is after this position, for this audience?"""

from __future__ import annotations

import json
import time
from typing import NamedTuple

from .frame import unframe
from .transport import StreamRequest
from .transport.portable import Portable

_BODY_LIMIT = 256 * 1024


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

    def body(self, interval: float, stream: bool) -> bytes:
        """Return the JSON body.

        :param interval: seconds to wait before the next poll.
        :param stream: whether the client may have a stream.
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
        }
        return b'{"events":[%b],%b' % (events, json.dumps(rest).encode()[1:])


def poll(portable: Portable, request: StreamRequest, wait: float) -> Answer:
    """Return what follows the client's position, waiting up to *wait* seconds for it."""
    hub = portable.hub
    deadline = time.monotonic() + wait
    ordinal = hub.locate(request.last_position)
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
            if bodies or hub.closing.is_set() or time.monotonic() >= deadline:
                return Answer(b"".join(bodies), reached)
            portable.wait(ordinal, deadline)
        if batch.body:
            bodies.append(batch.body)
            room -= len(batch.body)
        ordinal, position = batch.end, reached
    return Answer(b"".join(bodies), position, more=True)

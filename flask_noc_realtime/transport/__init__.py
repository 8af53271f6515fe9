"""Transports carry a stream from its cursor to the browser.

Portable works in every WSGI server and keeps a thread or greenlet for each stream. Detached
needs gunicorn's stock gevent worker, and keeps a file descriptor and a few hundred bytes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ..audience import Audience
from ..descriptor import hung_up


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """What a client asked for.

    :ivar audience: the shared audience class.
    :ivar user_id: whose private events the stream also carries.
    :ivar last_position: where to resume, or None to start now.
    :ivar since: the end of the log before the client's rights were looked up; a notice that
        is not older ends the stream.
    :ivar expires_at: when those rights end, on the monotonic clock.
    :ivar lease: the stream's place among its user's, given back when it ends.
    """

    audience: Audience
    user_id: str | None = None
    last_position: str | None = None
    since: int = 0
    expires_at: float | None = None
    lease: str | None = None

    def end(self, lifetime: float | None, now: float) -> tuple[float, str]:
        """Return when the stream ends, and the reason it will give."""
        ends = [(math.inf, "")]
        if lifetime is not None:
            ends.append((now + lifetime, "lifetime"))
        if self.expires_at is not None:
            ends.append((self.expires_at, "expired"))
        return min(ends)


class Caller:
    """Who waits for the answer to a request, as far as its server shows it."""

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._worker = gunicorn_worker()
        self._socket = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")

    def waits(self) -> bool:
        """Tell whether the client is still there, and the worker that is to answer it stays."""
        if self._worker is not None and not self._worker.alive:
            return False
        return self._socket is None or not hung_up(self._socket.fileno())


def server_frame(module: str, function: str) -> FrameType | None:
    """Return the server's own frame that is iterating over our response, if it is *function*."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == function and frame.f_globals.get("__name__") == module:
            return frame
        frame = frame.f_back
    return None


def gunicorn_worker() -> Any | None:
    """Return the gunicorn worker whose stack we are on; its `alive` says when to leave."""
    base = sys.modules.get("gunicorn.workers.base")
    if base is None:
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name.startswith("handle"):
            candidate = frame.f_locals.get("self")
            if isinstance(candidate, base.Worker):
                return candidate
        frame = frame.f_back
    return None


def gunicorn_response() -> Any | None:
    """Return the gevent worker's own object for the response it is iterating over."""
    frame = server_frame("gunicorn.workers.base_async", "handle_request")
    return None if frame is None else frame.f_locals.get("resp")

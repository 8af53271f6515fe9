"""What the kernel says of a file descriptor at once, where gevent would turn its loop first."""

from __future__ import annotations

import select
import sys
from typing import Any

# Windows has neither.
_POLLIN = getattr(select, "POLLIN", 0)
_POLLRDHUP = getattr(select, "POLLRDHUP", 0)  # Linux; elsewhere a closed socket shows later.


def readable(fd: int, milliseconds: int = 0) -> bool:
    """Tell whether there is something to read, if only the end; True where nobody can tell.

    :param milliseconds: how long to wait for it, in which no other greenlet runs.
    """
    return _polled(fd, _POLLIN, milliseconds, default=True)


def hung_up(fd: int) -> bool:
    """Tell whether the other end has closed, without reading what it may have sent before."""
    return _polled(fd, _POLLRDHUP, 0, default=False)


def unpatched(module: str, name: str) -> Any:
    """Return what gevent, where it is used, put a version of its own in the place of."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return getattr(sys.modules[module], name)
    return monkey.get_original(module, name)


def _polled(fd: int, events: int, milliseconds: int, *, default: bool) -> bool:
    try:
        poll = unpatched("select", "poll")()
    except AttributeError:
        return default  # Windows has none, and eventlet takes it away.
    poll.register(fd, events)
    return bool(poll.poll(milliseconds))

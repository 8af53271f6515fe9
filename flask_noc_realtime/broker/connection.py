"""Connections to Redis that look for what came without a turn of gevent's loop."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ..descriptor import readable

if TYPE_CHECKING:
    from redis.connection import AbstractConnection as _Connection
else:
    _Connection = object


class _Prompt(_Connection):
    def can_read(self, timeout: float = 0) -> bool:
        """Tell whether something came.

        The pool asks before each command. As redis-py asks, all other greenlets that are ready
        run first: a whole herd before its leader's first word to Redis.
        """
        if not timeout and self._quiet():
            return False
        return bool(super().can_read(timeout))

    def linger(self) -> None:
        """Wait for a reply on the spot, for a millisecond at most.

        Otherwise all greenlets that are ready run before it is read.
        """
        sock: Any = self._sock
        if sock is not None and not _held(sock):
            readable(sock.fileno(), 1)

    def _quiet(self) -> bool:
        sock: Any = self._sock
        # TLS may hold what it has deciphered.
        return sock is not None and not readable(sock.fileno()) and not _held(sock)


def _held(sock: Any) -> bool:
    pending = getattr(sock, "pending", None)
    return pending is not None and bool(pending())


@cache
def prompt(kind: type) -> type:
    """Return connections of a *kind* of redis-py's that are prompt."""
    return type(f"Prompt{kind.__name__}", (_Prompt, kind), {})

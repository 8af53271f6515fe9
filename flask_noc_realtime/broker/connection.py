"""Connections to Redis that look for what came without a turn of gevent's loop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..descriptor import readable

if TYPE_CHECKING:
    from redis.connection import AbstractConnection as _Connection
else:
    _Connection = object

_NEAR = 1
"""Milliseconds in which a Redis answers that is worth waiting for on the spot."""

_FAR = 1.0
"""Seconds for which one that did not is not waited for."""


class _Prompt(_Connection):
    far_until = 0.0

    def can_read(self, timeout: float = 0) -> bool:
        """Tell whether something came.

        The pool asks before each command. As redis-py asks, all other greenlets that are ready
        run first: a whole herd before its leader's first word to Redis.
        """
        if not timeout and self._quiet():
            return False
        return bool(super().can_read(timeout))

    def read_response(
        self, disable_decoding: bool = False, *, disconnect_on_error: bool = True, **options: Any
    ) -> Any:
        """Read a reply, or disconnect: with Sentinel, redis-py leaves it to the next command."""
        return super().read_response(
            disable_decoding, disconnect_on_error=disconnect_on_error, **options
        )

    def linger(self) -> None:
        """Wait for a reply on the spot, for a moment at most.

        Otherwise all greenlets that are ready run before it is read.
        """
        now = time.monotonic()
        if now < self.far_until:
            return
        try:
            if self._quiet(_NEAR):
                type(self).far_until = now + _FAR
        except BaseException:
            # The reply would be the next command's.
            self.disconnect()  # type: ignore[no-untyped-call]
            raise

    def _quiet(self, milliseconds: int = 0) -> bool:
        """Tell whether it is open, and nothing comes within so many *milliseconds*."""
        sock: Any = self._sock
        # One that was closed meanwhile has no descriptor, and TLS may hold what it has deciphered.
        return (
            sock is not None
            and sock.fileno() >= 0
            and not _held(sock)
            and not readable(sock.fileno(), milliseconds)
        )


def _held(sock: Any) -> bool:
    pending = getattr(sock, "pending", None)
    return pending is not None and bool(pending())


def prompt(kind: type) -> type:
    """Return connections of a *kind* of redis-py's that are prompt.

    They are another kind for each Redis: how far it is they find out together.
    """
    return type(f"Prompt{kind.__name__}", (_Prompt, kind), {})

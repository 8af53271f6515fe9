"""The app's own Flask-Caching as the place where the bodies of results are kept.

Who may have a result, and until when, is decided elsewhere: what is kept here is found by a
reference that no other execution has, and is sealed.
"""

from __future__ import annotations

import logging
import math
import secrets
from typing import Any

from flask import Flask

_MAGIC = b"noc-stored-1\n"
_PREFIX = "noc-realtime:"
_IN_PROCESS = ("SimpleCache",)
_NONE = ("NullCache",)

_logger = logging.getLogger("flask_noc_realtime")


class Store:
    """Keeps bytes in a backend of Flask-Caching. What fails there is a miss, and logged once.

    :param backend: the backend of a ``flask_caching.Cache``.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        # Flask-Caching unpickles what it finds in Redis, and whoever can write there could run
        # code here.
        self._raw = hasattr(backend, "_write_client") and hasattr(backend, "_read_client")
        self._complained = False

    def put(self, value: bytes, key: bytes, seconds: float) -> bytes | None:
        """Keep *value* in place of what was kept for *key*.

        Return the reference it is found by, or None when it is not kept. A leader that comes
        late puts what is old in the place of what is newer: the latter's reference finds neither.
        """
        token = secrets.token_hex(16).encode()
        name, timeout = _PREFIX + key.hex(), max(1, math.ceil(seconds))
        try:
            if self._raw:
                name = self._backend._get_prefix() + name
                kept = self._backend._write_client.set(name, token + value, ex=timeout)
            else:
                kept = self._backend.set(name, token + value, timeout=timeout)
        except Exception as error:  # A backend of any kind raises errors of any kind.
            self._complain(error)
            return None
        return _MAGIC + token if kept else None

    def get(self, reference: bytes, key: bytes) -> bytes | None:
        """Return what is kept, or None when it is gone."""
        name, token = _PREFIX + key.hex(), reference[len(_MAGIC) :]
        try:
            if self._raw:
                value = self._backend._read_client.get(self._backend._get_prefix() + name)
            else:
                value = self._backend.get(name)
        except Exception as error:  # As above.
            self._complain(error)
            return None
        found = isinstance(value, bytes) and value.startswith(token)
        return value[len(token) :] if found else None

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            _logger.error(
                "Flask-Caching's %s fails (%s: %s). Results are kept without it, or worked out.",
                type(self._backend).__name__,
                type(error).__name__,
                error,
            )


def is_reference(value: bytes) -> bool:
    """Tell a reference from the bytes it may stand for."""
    return value.startswith(_MAGIC)


def store_of(app: Flask, *, shared: bool) -> Store | None:
    """Return the store in the app's Flask-Caching, or None where it has none that fits.

    :param shared: whether other processes must find what is kept.
    """
    caches = list((app.extensions.get("cache") or {}).values())
    if len(caches) != 1:
        return None
    kind = type(caches[0]).__name__
    if kind in _NONE or (shared and kind in _IN_PROCESS):
        return None
    return Store(caches[0])

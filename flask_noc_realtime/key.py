"""Keys: what a result depends on, encoded so that different values never look the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from .errors import ConfigError

_DEPTH = 32
_AS_REPR = (bool, int, float, type(None), Decimal, datetime, date, time, timedelta, UUID)


def digest(parts: Sequence[Any]) -> bytes:
    """Return 16 bytes that stand for *parts*.

    :raises ConfigError: naming the part that has no canonical form.
    """
    return hashlib.blake2b(_join(parts, 0), digest_size=16).digest()


def canonical(value: Any, depth: int = 0) -> bytes:
    """Encode *value* so that no two values of different type or content are encoded alike.

    Every part carries its type and its length: a separator within a value separates nothing.

    :raises ConfigError: for what has no canonical form, such as an object of the app's own.
    """
    kind = type(value)
    if kind is str:
        data = value.encode("utf-8", "surrogatepass")
    elif kind in _AS_REPR:
        data = repr(value).encode()
    elif kind is bytes:
        data = value
    elif depth >= _DEPTH:
        raise ConfigError("The arguments are nested too deeply, or contain themselves.")
    elif kind is tuple or kind is list:
        data = _join(value, depth)
    elif kind is dict:
        pairs = ((canonical(k, depth + 1), canonical(v, depth + 1)) for k, v in value.items())
        data = b"".join(key + item for key, item in sorted(pairs))
    elif kind is set or kind is frozenset:
        data = b"".join(sorted(canonical(item, depth + 1) for item in value))
    elif isinstance(value, Enum):
        data = f"{kind.__module__}.{kind.__qualname__}.{value.name}".encode()
    else:
        raise ConfigError(
            f"A {kind.__name__} has no canonical form that a key could be made of. Pass what "
            "identifies it, such as its id, or give @coalesce a key=function of the arguments."
        )
    return b"%s:%d:%s" % (_tag(kind), len(data), data)


def _join(parts: Iterable[Any], depth: int) -> bytes:
    return b"".join([canonical(part, depth + 1) for part in parts])


def _tag(kind: type) -> bytes:
    return kind.__name__.encode("utf-8", "replace")

"""Weights: about how many bytes a result takes, which bounds how many are kept."""

from __future__ import annotations

import sys
from collections import deque
from itertools import chain, islice
from typing import Any

_SAMPLES = (16, 8, 4, 2, 2, 2)
"""Of how much of a collection is weighed, at each depth: no more than 4096 things in all."""

_GROUPS = (list, tuple, set, frozenset, deque)


def weigh(value: Any, depth: int = 0) -> int:
    """Return about how many bytes *value* takes, with what is in it.

    Of a large collection the first few are weighed and count for all, so that this takes less
    time than making it did.
    """
    size = sys.getsizeof(value, 0)
    if depth == len(_SAMPLES):
        return size
    if not isinstance(value, (dict, *_GROUPS)):
        value = getattr(value, "__dict__", None)
        size += sys.getsizeof(value, 0)
    try:
        if isinstance(value, dict):
            parts = list(chain.from_iterable(islice(value.items(), _SAMPLES[depth])))
            count = 2 * len(value)
        elif isinstance(value, _GROUPS):
            parts, count = list(islice(value, _SAMPLES[depth])), len(value)
        else:
            return size
    except RuntimeError:  # Somebody changes it meanwhile.
        return size
    return size + sum(weigh(part, depth + 1) for part in parts) * count // (len(parts) or 1)

"""Weights: about right, for whatever a function returns, and never slow."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from flask_noc_realtime.weight import weigh

KIB = 1024


def texts(count: int) -> list[str]:
    """Return so many texts of a KiB each."""
    return [f"{number:<{KIB}}" for number in range(count)]


@pytest.mark.parametrize(
    "value",
    [
        bytes(KIB * KIB),
        texts(KIB),
        tuple(texts(KIB)),
        set(texts(KIB)),
        deque(texts(KIB)),
        dict.fromkeys(texts(KIB)),
        dict(enumerate(texts(KIB))),
        [{"rows": texts(32)} for _ in range(32)],
        {"page": SimpleNamespace(rows=[SimpleNamespace(text=text) for text in texts(KIB)])},
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_weight_is_about_the_bytes_it_takes(value: Any) -> None:
    """With what is in it, and in that."""
    assert 0.9 < weigh(value) / KIB**2 < 1.5


def test_what_contains_itself_has_a_weight() -> None:
    """Trees with links to their roots, for example."""
    value: list[Any] = texts(1)
    value.append(value)
    assert KIB < weigh(value) < 10 * KIB


@pytest.mark.parametrize("value", [None, 7, "", [], {}, object(), int, weigh])
def test_what_is_small_weighs_something(value: Any) -> None:
    """So that no number of results is for nothing."""
    assert 0 < weigh(value) < 4 * KIB

"""Things to do later, in slots of time."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")


class Wheel(Generic[T]):
    """A hashed timing wheel (Varghese and Lauck, 1987) without a clock of its own.

    Ten thousand items cost a few dozen slots, and nothing until a slot is due. An item is in a
    slot once. Not thread-safe.

    :param tick: seconds a slot spans; items come due up to that much early.
    """

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._slots: dict[int, dict[T, None]] = {}
        self._order: list[int] = []

    @property
    def next(self) -> float | None:
        """The time at which the earliest slot is due, or None."""
        return self._order[0] * self._tick if self._order else None

    def add(self, due: float, item: T) -> int:
        """Put *item* into the slot of the time *due*; return the slot, for `discard`."""
        slot = int(due // self._tick)
        items = self._slots.get(slot)
        if items is None:
            items = self._slots[slot] = {}
            heapq.heappush(self._order, slot)
        items[item] = None
        return slot

    def discard(self, slot: int, item: T) -> None:
        """Forget *item* if it is still in its slot."""
        items = self._slots.get(slot)
        if items is not None:
            items.pop(item, None)

    def take(self, now: float) -> list[T]:
        """Remove and return what is due at *now*."""
        items: list[T] = []
        while self._order and self._order[0] * self._tick <= now:
            items += self._slots.pop(heapq.heappop(self._order))
        return items

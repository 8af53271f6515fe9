"""Things to do later, in slots of time."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")

_SPARE = 64


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
        while self._order and self._order[0] not in self._slots:
            heapq.heappop(self._order)
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
        if items is None:
            return
        items.pop(item, None)
        if not items:
            del self._slots[slot]
            # Slots of what has left would otherwise stay until they are due, for hours perhaps.
            if len(self._order) > 2 * len(self._slots) + _SPARE:
                self._order = sorted(self._slots)

    def take(self, now: float) -> list[T]:
        """Remove and return what is due at *now*."""
        items: list[T] = []
        while self._order and self._order[0] * self._tick <= now:
            items += self._slots.pop(heapq.heappop(self._order), ())
        return items

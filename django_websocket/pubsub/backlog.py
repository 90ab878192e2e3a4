"""What waits for a slow reader, within a limit of bytes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Generic, TypeVar

from .entries import Position

OVERHEAD = 100  # bytes that a waiting message costs in addition to its own

T = TypeVar("T", bound="str | bytes")


class Backlog(Generic[T]):
    """Items that wait for a slow reader, in order. Over the limit, the oldest are dropped.

    With `latest`, only the newest item of each channel waits.
    """

    __slots__ = ("_count", "_items", "_latest", "_limit", "_size")

    def __init__(self, limit: int, latest: bool) -> None:
        self._limit = limit  # bytes
        self._latest = latest
        self._items: OrderedDict[str | int, tuple[T, int, str, Position | None]] = OrderedDict()  # with costs, channels
        self._size = 0
        self._count = 0  # of all items ever appended

    def __len__(self) -> int:
        return len(self._items)

    def append(self, channel: str, item: T, position: Position | None = None) -> bool:
        """Append an item that came on `channel`, up to `position`; return whether others were dropped to make room."""
        self._count += 1
        key = channel if self._latest else self._count
        if key in self._items:
            self._size -= self._items.pop(key)[1]
        costs = cost(item)
        self._items[key] = item, costs, channel, position
        self._size += costs
        full = self._size > self._limit and len(self._items) > 1
        while self._size > self._limit and len(self._items) > 1:
            self.popleft()
        return full

    def popleft(self) -> tuple[str, T, Position | None]:
        """Remove the oldest item, and return its channel, itself and its position."""
        _, (item, costs, channel, position) = self._items.popitem(last=False)
        self._size -= costs
        return channel, item, position

    def forget_positions(self, channel: str) -> None:
        """Have no item of a channel that waits now bring its position."""
        for key, (item, costs, name, _) in self._items.items():
            if name == channel:
                self._items[key] = item, costs, name, None

    def clear(self) -> None:
        """Drop all items."""
        self._items.clear()
        self._size = 0


def cost(message: str | bytes) -> int:
    """Return the bytes that a message occupies while it waits: four per character in a text with an emoji."""
    return (len(message) if type(message) is bytes or message.isascii() else sys.getsizeof(message)) + OVERHEAD

"""What waits for a slow reader, within a limit of bytes."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from typing import Any, Generic, TypeVar

from django_websocket.transport.counts import counts

from .entries import Position

DROPPED = "dropped_messages"
OVERHEAD = 100  # bytes that a waiting message costs in addition to its own

T = TypeVar("T", bound="str | bytes")
# The channel on which an item came, itself, the position behind it, and the bytes that it costs.
Waiting = tuple[str, T, Position | None, int]


class Backlog(Generic[T]):
    """Items that wait for a slow reader, in order. Over the limit, the oldest are dropped.

    `waiting` is true if there are any. `policy` is the name under which what is dropped counts.
    """

    __slots__ = ("_limit", "_size", "policy", "waiting")

    def __init__(self, limit: int, policy: str) -> None:
        self.policy = policy
        self._limit = limit  # bytes
        self._size = 0
        self.waiting: Any = deque()

    def __len__(self) -> int:
        return len(self.waiting)

    def append(self, one: Waiting[T]) -> bool:
        """Append an item; return whether others were dropped to make room."""
        self.waiting.append(one)
        self._size += one[3]
        return self._size > self._limit and self._drop_oldest()

    def _drop_oldest(self) -> bool:
        full = len(self.waiting) > 1
        while self._size > self._limit and len(self.waiting) > 1:
            self.popleft()
            counts.add(DROPPED, self.policy)
        return full

    def popleft(self) -> Waiting[T]:
        """Remove the oldest item, and return it."""
        oldest: Waiting[T] = self.waiting.popleft()
        self._size -= oldest[3]
        return oldest

    def forget_positions(self, channel: str) -> None:
        """Have no item of a channel that waits now bring its position."""
        for index, (name, item, _, costs) in enumerate(self.waiting):
            if name == channel:
                self.waiting[index] = name, item, None, costs

    def drop(self) -> None:
        """Drop all items for want of room."""
        counts.add(DROPPED, self.policy, by=len(self.waiting))
        self.clear()

    def clear(self) -> None:
        """Remove all items, which nobody needs any more."""
        self.waiting.clear()
        self._size = 0


class Latest(Backlog[T]):
    """A backlog in which only the newest item of each channel waits."""

    __slots__ = ()

    def __init__(self, limit: int, policy: str = "latest") -> None:
        super().__init__(limit, policy)
        self.waiting = OrderedDict()  # by channel

    def append(self, one: Waiting[T]) -> bool:
        """See `Backlog.append`."""
        older = self.waiting.pop(one[0], None)
        if older is not None:
            self._size -= older[3]
            counts.add(DROPPED, self.policy)
        self.waiting[one[0]] = one
        self._size += one[3]
        return self._size > self._limit and self._drop_oldest()

    def popleft(self) -> Waiting[T]:
        """See `Backlog.popleft`."""
        oldest: Waiting[T] = self.waiting.popitem(last=False)[1]
        self._size -= oldest[3]
        return oldest

    def forget_positions(self, channel: str) -> None:
        """See `Backlog.forget_positions`."""
        if channel in self.waiting:
            name, item, _, costs = self.waiting[channel]
            self.waiting[channel] = name, item, None, costs


def cost(message: str | bytes) -> int:
    """Return the bytes that a message occupies while it waits: four per character in a text with an emoji."""
    return (len(message) if type(message) is bytes or message.isascii() else sys.getsizeof(message)) + OVERHEAD

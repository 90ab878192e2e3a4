"""One object of a kind for each event loop: loops share nothing, and each thread may have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import finalize, ref

from gevent.hub import get_hub

__all__ = ["PerLoop"]

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Holds one object for each event loop, which `make` makes, in that loop, when it is first asked for.

        turns_of_loop = PerLoop(Turns).get
        turns_of_loop().spent()

    An object lives as long as its hub, so it must not refer to it. A PerLoop is true when any loop has an object.
    """

    __slots__ = ("_by_hub", "_make")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._by_hub: dict[ref[object], T] = {}  # a WeakKeyDictionary would cost each greenlet that wakes twice as much

    def get(self) -> T:
        """Return the object of the running thread's loop."""
        hub = get_hub()
        found = self._by_hub.get(ref(hub))
        if found is None:
            found = self._by_hub[ref(hub)] = self._make()
            finalize(hub, self._forget, ref(hub)).atexit = False
        return found

    def peek(self) -> T | None:
        """Return the object of the running thread's loop, None if there is none yet."""
        return self._by_hub.get(ref(get_hub()))

    def _forget(self, hub: ref[object]) -> None:
        self._by_hub.pop(hub, None)

    def __bool__(self) -> bool:
        return bool(self._by_hub)

    def clear(self) -> dict[object, T]:
        """Forget the objects of all loops, and return them by their hubs."""
        cleared, self._by_hub = self._by_hub, {}
        return {hub: found for of_hub, found in cleared.items() if (hub := of_hub()) is not None}

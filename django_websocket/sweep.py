"""The open connections of a loop, and the one timer that sees to their deadlines."""

from __future__ import annotations

import weakref
from typing import Protocol

from gevent.hub import get_hub

__all__ = ["TICK", "Sweep", "open_connections", "serves_clients", "sweep_of_loop", "ticks"]

TICK = 0.5  # seconds; the grain of all deadlines here
READ_SIZE = 256 * 1024  # bytes; for one call of recv, so that one client keeps nobody waiting


class Swept(Protocol):
    """Something with deadlines: an open connection."""

    due: int  # the tick at which it is looked at next, kept by `Sweep.look_at`

    def on_due(self) -> None:
        """Look at the deadlines. Called in the hub; must neither wait nor raise."""

    def close(self, code: int = ..., reason: str = ...) -> None:
        """Begin to close."""


class Sweep:
    """Looks at each connection when something of it may be due, which for an idle one is once in a ping's interval.

    `now` counts ticks. They stand still while the process is busy: clients are not blamed for what it did not read.
    """

    def __init__(self) -> None:
        self.now = 0
        self.connections: set[Swept] = set()
        self.buffer = memoryview(bytearray(READ_SIZE))  # for all of them, since each is read in turn
        self._due: dict[int, set[Swept]] = {}
        self._timer = get_hub().loop.timer(TICK, repeat=TICK, ref=False)
        self._timer.start(self._on_tick)

    def look_at(self, connection: Swept, tick: int) -> None:
        """Look at `connection` at `tick`, and not at the one before for which this was asked."""
        self.forget(connection)
        connection.due = tick
        self._due.setdefault(tick, set()).add(connection)

    def forget(self, connection: Swept) -> None:
        """Do not look at `connection` any more."""
        at_tick = self._due.get(connection.due)
        if at_tick is not None:
            at_tick.discard(connection)
            if not at_tick:
                del self._due[connection.due]

    def _on_tick(self) -> None:
        self.now += 1
        for connection in self._due.pop(self.now, ()):
            connection.on_due()


def ticks(seconds: float) -> int:
    """Return how many ticks make `seconds`, at least one."""
    return max(1, round(seconds / TICK))


_sweeps: weakref.WeakKeyDictionary[object, Sweep] = weakref.WeakKeyDictionary()


def serves_clients() -> bool:
    """Whether this process has, or is made for, clients."""
    return bool(_sweeps)


def open_connections() -> set[Swept]:
    """Return the open connections of the running thread's loop."""
    return sweep_of_loop().connections


def sweep_of_loop() -> Sweep:
    """Return the sweep of the running thread's loop."""
    hub = get_hub()
    sweep = _sweeps.get(hub)
    if sweep is None:
        sweep = _sweeps[hub] = Sweep()
    return sweep

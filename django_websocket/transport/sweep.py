"""The open connections of a loop, and what they share: the one timer that sees to all deadlines, and the flush."""

from __future__ import annotations

import time
from typing import Any, Protocol

from gevent import getcurrent
from gevent.hub import get_hub
from greenlet import greenlet

from django_websocket.compat import NothingPending

from .compression import Encoder
from .loops import PerLoop
from .turns import turns_of_loop

__all__ = ["TICK", "Deadline", "Sweep", "open_connections", "serves_clients", "sweep_of_loop", "ticks"]

TICK = 0.5  # seconds; the grain of all deadlines here
MAX_UNSENT = 64  # connections that hold something back before it is sent: the first of many is not answered last
MAX_DELAY = 0.001  # seconds for which something is held back while others answer
READ_SIZE = 256 * 1024  # bytes; for one call of recv, so that one client keeps nobody waiting


class Due(Protocol):
    """Something with deadlines."""

    due: int  # the tick at which it is looked at next, kept by `Sweep.look_at`

    def on_due(self) -> None:
        """Look at the deadlines. Called in the hub; must neither wait nor raise."""


class Swept(Due, Protocol):
    """An open connection."""

    def flush(self) -> None:
        """Send what it holds back. Must neither wait nor raise."""

    def close(self, code: int = ..., reason: str = ...) -> None:
        """Begin to close."""

    def leave_to_parent(self) -> Any:
        """End in a child process, without a word, and return the socket, if there is one; it is the parent's."""


class Sweep:
    """Looks at each connection when something of it may be due, which for an idle one is once in a ping's interval.

    `now` counts ticks. They stand still while the process is busy: clients are not blamed for what it did not read.

    Connections may hold back what they were given to send, until `flush()` is called: before the loop waits. A turn of
    the loop so reads what has come from all clients first, and answers them then. `reading` is true while a view has
    what was just read for it, `overdue` when too much is held back, or for too long. `callbacks.pendingcnt` is how
    many callbacks the loop is about to call. `encoder` compresses for all of them.
    """

    def __init__(self) -> None:
        self.now = 0
        self.connections: set[Swept] = set()
        self.buffer = memoryview(bytearray(READ_SIZE))  # for all of them, since each is read in turn
        self.encoder = Encoder()
        self.reading = False
        self.overdue = False
        self._unsent: list[Swept] = []
        self._unsent_since = 0.0  # seconds, of time.monotonic
        self._due: dict[int, set[Due]] = {}
        self._due_now: list[Due] = []
        self._ticked_at = time.monotonic()
        self.loop = loop = get_hub().loop
        self.callbacks: Any = loop if hasattr(loop, "pendingcnt") else NothingPending()
        # Before a tick the loop looks at all sockets once, and reads what has come. After the process was stopped, or
        # busy, timers are called first: without this, a client whose answer waits to be read would be taken for dead.
        self._look = loop.timer(0, ref=False)
        self._looking = False
        self.turns = turns_of_loop()
        self._timer = loop.timer(TICK, repeat=TICK, ref=False)
        self._timer.start(self._on_timer)

    def look_at(self, swept: Due, tick: int) -> None:
        """Look at `swept` at `tick`, and not at the one before for which this was asked."""
        self.forget(swept)
        swept.due = tick
        self._due.setdefault(tick, set()).add(swept)

    def forget(self, swept: Due) -> None:
        """Do not look at `swept` any more."""
        at_tick = self._due.get(swept.due)
        if at_tick is not None:
            at_tick.discard(swept)
            if not at_tick:
                del self._due[swept.due]

    def flush_later(self, connection: Swept) -> None:
        """Have `connection` flushed before the loop waits."""
        unsent = self._unsent
        if not unsent:
            self._unsent_since = time.monotonic()
            self.loop.run_callback(self.flush)
        elif len(unsent) >= MAX_UNSENT - 1 or time.monotonic() - self._unsent_since > MAX_DELAY:
            self.overdue = True
        unsent.append(connection)

    def flush(self) -> None:
        """Have all that is held back sent."""
        self.overdue = False
        unsent, self._unsent = self._unsent, []
        for connection in unsent:
            connection.flush()

    def _on_timer(self) -> None:
        # One that comes sooner makes up for one that the process was too busy for.
        if not self._looking and time.monotonic() - self._ticked_at > TICK / 2:
            self._looking = True
            self._look.start(self.loop.run_callback, self._on_looked)

    def _on_looked(self) -> None:
        self._looking = False
        self._ticked_at = time.monotonic()
        self._on_tick()

    def _on_tick(self) -> None:
        self.now += 1
        self.encoder.forget()
        due = self._due.pop(self.now, ())
        # They are taken from the end: a view that waits for its client hears first what it waited for in vain.
        self._due_now.extend(sorted(due, key=lambda each: isinstance(each, Deadline)))
        self._look_at_due()

    def _look_at_due(self) -> None:
        """Look at those that are due, in as many turns of the loop as it takes."""
        due = self._due_now
        while due:
            due.pop().on_due()
            if due and self.turns.spent():
                self.turns.postpone(self._look_at_due)
                break


class Deadline:
    """Raises `error` in the running greenlet when `seconds`, and a tick at most, have passed, unless it is closed.

    For the many that are never reached: it costs less than a timer of its own, which gevent.Timeout has.
    """

    __slots__ = ("_error", "_greenlet", "_sweep", "due")

    def __init__(self, seconds: float, error: BaseException) -> None:
        self._error = error
        self._greenlet: greenlet | None = getcurrent()
        self._sweep = sweep = sweep_of_loop()
        self.due = 0
        sweep.look_at(self, sweep.now + ticks(seconds) + 1)
        get_hub().loop.ref()  # the sweep's timer alone does not keep the loop running

    def close(self) -> None:
        """Let the greenlet go on for as long as it takes."""
        if self._greenlet is not None:
            self._greenlet = None
            self._sweep.forget(self)
            get_hub().loop.unref()

    def on_due(self) -> None:
        """Raise the error."""
        waiting = self._greenlet
        if waiting is not None:
            self.close()
            error = self._error
            del self._error  # whose traceback would keep this
            waiting.throw(error)


def ticks(seconds: float) -> int:
    """Return how many ticks make `seconds`, at least one."""
    return max(1, round(seconds / TICK))


_sweeps = PerLoop(Sweep)
sweep_of_loop = _sweeps.get


def serves_clients() -> bool:
    """Whether this process has, or is made for, clients."""
    return bool(_sweeps)


def leave_all_to_parent() -> dict[object, Sweep]:
    """Return the sweeps of all loops by their hubs, which in a child process are the parent's, and forget them here."""
    return _sweeps.clear()


def open_connections() -> set[Swept]:
    """Return the open connections of the running thread's loop."""
    return sweep_of_loop().connections

"""Deadlines of all kinds, for which a loop has one timer: it costs less than a timer each for those never reached."""

from __future__ import annotations

import math
import time
from typing import Protocol

from gevent import getcurrent
from gevent.hub import get_hub
from greenlet import greenlet

from .loops import PerLoop
from .stalls import watch_of_loop
from .turns import turns_of_loop

__all__ = ["TICK", "Deadline", "Due", "Sweep", "sweep_of_loop", "sweeps", "ticks"]

TICK = 0.5  # seconds; the grain of all deadlines here
PERIOD = TICK + 0.001  # of the timer: the clock of libuv has milliseconds, so it may fire up to one too early


class Due(Protocol):
    """Something with deadlines."""

    due: int  # the tick at which the sweep looks at it next; `Sweep.look_at` sets it

    def on_due(self) -> None:
        """Look at the deadlines. Called in the hub; must neither wait nor raise."""


class Sweep:
    """Looks at each thing with deadlines when one may be due; at an idle connection, once in a ping interval.

    `now` counts ticks. They stand still while the process is busy: clients are not blamed for what it did not read.
    From one tick to the next, at least `TICK` passes, whatever the process was doing.
    """

    def __init__(self) -> None:
        self.now = 0
        self._due: dict[int, set[Due]] = {}  # by the tick
        self._due_now: list[Due] = []
        self._loop = loop = get_hub().loop
        # Before a tick, the loop looks at all sockets once and reads what has come. After the process was stopped or
        # busy, timers are called first; without this, a client whose answer waits to be read would be taken for dead.
        self._look = loop.timer(0, ref=False)
        self._looking = False
        self._turns = turns_of_loop()
        self._timer = loop.timer(PERIOD, repeat=PERIOD, ref=False)
        self._expected = time.monotonic() + PERIOD  # when it fires, if nothing holds the loop
        self.watch = watch_of_loop()
        self.watch.harmless(self._timer, self._look)
        self._timer.start(self._on_timer)

    def look_at(self, item: Due, tick: int) -> None:
        """Look at `item` at `tick`, instead of the tick that it waited for until now."""
        if item.due:
            self.forget(item)
        item.due = tick
        self._due.setdefault(tick, set()).add(item)

    def look_after(self, item: Due, seconds: float) -> None:
        """Look at `item` when `seconds` have passed, or up to a tick more; see `look_at`."""
        self.look_at(item, self.now + ticks(seconds) + 1)  # the tick that goes on may end at once

    def forget(self, item: Due) -> None:
        """Stop looking at `item`."""
        at_tick = self._due.get(item.due)
        if at_tick is not None:
            at_tick.discard(item)
            if not at_tick:
                del self._due[item.due]

    def _on_timer(self) -> None:
        if not self._looking:
            self._looking = True
            self.watch.lag = max(0.0, time.monotonic() - self._expected)
            self._look.start(self._loop.run_callback, self._on_looked)

    def _on_looked(self) -> None:
        self._looking = False
        self._on_tick()
        # By itself the timer would keep to its phase, so that the tick behind a late one came too soon.
        self._timer.again(self._on_timer, update=True)
        self._expected = time.monotonic() + PERIOD

    def _on_tick(self) -> None:
        self.now += 1
        due = self._due.pop(self.now, ())
        # They are taken from the end. A view that waits for its client is told first that it waited in vain.
        self._due_now.extend(sorted(due, key=lambda item: isinstance(item, Deadline)))
        self._look_at_due()

    def _look_at_due(self) -> None:
        """Look at those that are due, in as many turns of the loop as it takes."""
        due = self._due_now
        while due:
            item = due.pop()
            if item.due <= self.now:  # it has not got another deadline since it became due
                item.on_due()
            if due and self._turns.spent():
                self._turns.postpone(self._look_at_due)
                break


class Deadline:
    """Raises `error` in the running greenlet when `seconds` have passed, or up to a tick more, unless it is closed."""

    __slots__ = ("_error", "_greenlet", "_sweep", "due")

    def __init__(self, seconds: float, error: BaseException) -> None:
        self._error = error
        self._greenlet: greenlet | None = getcurrent()
        self._sweep = sweep = sweep_of_loop()
        self.due = 0
        sweep.look_after(self, seconds)
        get_hub().loop.ref()  # the sweep's timer alone does not keep the loop running

    def close(self) -> None:
        """Let the greenlet take as long as it likes."""
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
            del self._error  # its traceback would keep this alive
            self._sweep.watch.wake()
            waiting.throw(error)


def ticks(seconds: float) -> int:
    """Return how many ticks it takes for `seconds` to pass, at least one."""
    return max(1, math.ceil(seconds / TICK))


sweeps = PerLoop(Sweep)
sweep_of_loop = sweeps.get

"""Turns of the event loop: work that takes long lets everything else on the loop run in between."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gevent import getcurrent, monkey
from gevent.hub import get_hub

from .loops import PerLoop

__all__ = ["BUDGET", "Turns", "let_others_run", "let_others_run_if_spent", "turns_of_loop"]

BUDGET = 0.005  # seconds; a client notices a delay of tens of milliseconds, and a turn costs about five microseconds


class Turns:
    """The turns of one loop, and the time that long work has in each, in all.

    A turn lasts from one look at all sockets to the next. Work that finds the time of the turn spent puts off what is
    left of it; the loop goes on with what was put off in the same order, in as many turns as it takes. However many
    clients need long work, those that need little are answered in between.
    """

    __slots__ = ("_loop", "_postponed", "_timer", "_turn", "_until")

    def __init__(self) -> None:
        self._loop: Any = get_hub().loop
        self._timer: Any = self._loop.timer(0)  # it fires only after the loop has looked at all sockets
        self._postponed: deque[Callable[[], object]] = deque()
        self._turn = -1
        self._until = 0.0  # seconds, of time.monotonic()

    def spent(self) -> bool:
        """Whether the time of this turn is over; it begins with the first call. Ask after several items, not each."""
        now = time.monotonic()
        if now < self._until:
            return False
        turn: int = self._loop.iteration
        if turn == self._turn and turn >= 0:
            return True
        self._turn = turn
        self._until = now + BUDGET
        return turn < 0  # libuv does not count them

    def postpone(self, call: Callable[[], object]) -> None:
        """Call `call` in the hub, in a later turn; it must neither wait nor raise."""
        self._postponed.append(call)
        if not self._timer.active:
            self._timer.start(self._run)

    def forget(self, call: Callable[[], object]) -> None:
        """Drop a call that was put off."""
        with suppress(ValueError):
            self._postponed.remove(call)

    def _run(self) -> None:
        postponed = self._postponed
        self._timer.stop()
        self.spent()  # begins the time, if that has not begun
        try:
            for _ in range(len(postponed)):  # what these calls put off waits for the next turn
                if not postponed:
                    break
                postponed.popleft()()
                if self.spent():
                    break
        finally:
            if postponed and not self._timer.active:
                self._timer.start(self._run)


turns_of_loop = PerLoop(Turns).get


def let_others_run() -> None:
    """Let the running greenlet wait until the loop has looked at all sockets and timers, and return without delay.

    `gevent.sleep(0)` does less: gevent calls many rounds of callbacks, this greenlet's among them, before the loop
    looks at a socket again.
    """
    turns = turns_of_loop()
    go_on = getcurrent().switch
    turns.postpone(go_on)
    try:
        get_hub().switch()
    except BaseException:  # the greenlet is interrupted
        turns.forget(go_on)
        raise


def let_others_run_if_spent() -> None:
    """Let the running greenlet wait for a later turn, if the time of this one is over."""
    if turns_of_loop().spent():
        let_others_run()


def let_others_run_if_any() -> None:
    """Do the same where gevent has patched the process. Elsewhere, the running thread may have no loop."""
    if monkey.is_module_patched("threading"):
        let_others_run_if_spent()

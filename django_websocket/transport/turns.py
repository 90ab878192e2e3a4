"""Turns of the event loop: how whatever has much to do lets everything else on the loop run in between."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gevent import getcurrent
from gevent.hub import get_hub

from .loops import PerLoop

__all__ = ["BUDGET", "Turns", "let_others_run", "let_others_run_if_spent", "turns_of_loop"]

BUDGET = 0.005  # seconds; a client notices a delay of tens of milliseconds, and a turn costs about five microseconds


class Turns:
    """The turns of one loop, and the time that those who have much to do have in each, all of them together.

    A turn lasts from one look at all sockets to the next. Whoever finds the time of this one spent puts off what it has
    still to do, and it is done in the order in which it was put off, in as many turns as that takes. However many
    clients have much to do, those who have little are answered in between.
    """

    __slots__ = ("_loop", "_postponed", "_timer", "_turn", "_until")

    def __init__(self) -> None:
        self._loop: Any = get_hub().loop
        self._timer: Any = self._loop.timer(0)  # it fires after the loop has looked at all sockets, and not before
        self._postponed: deque[Callable[[], object]] = deque()
        self._turn = -1
        self._until = 0.0  # seconds, of time.monotonic()

    def spent(self) -> bool:
        """Whether the time of this turn is over; it begins with the first who asks. Ask after some items, not each."""
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
        """Have `call` called in the hub in a later turn; it must neither wait nor raise."""
        self._postponed.append(call)
        if not self._timer.active:
            self._timer.start(self._run)

    def forget(self, call: Callable[[], object]) -> None:
        """Call it no more."""
        with suppress(ValueError):
            self._postponed.remove(call)

    def _run(self) -> None:
        postponed = self._postponed
        self._timer.stop()
        self.spent()  # the time begins, if it has not begun yet
        try:
            for _ in range(len(postponed)):  # what these put off has to wait for the next turn
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
    except BaseException:  # somebody interrupts it
        turns.forget(go_on)
        raise


def let_others_run_if_spent() -> None:
    """Let the running greenlet wait for a later turn if the time of this one is over."""
    if turns_of_loop().spent():
        let_others_run()

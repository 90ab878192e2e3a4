"""Turns of the event loop: how whatever has much to do lets everything else on the loop run in between."""

from __future__ import annotations

import time

from gevent.hub import get_hub

__all__ = ["BUDGET", "Budget", "let_others_run"]

BUDGET = 0.005  # seconds; a client notices a delay of tens of milliseconds, and a turn costs about five microseconds


def let_others_run() -> None:
    """Let the running greenlet wait until the loop has looked at all sockets and timers, and return without delay.

    `gevent.sleep(0)` does less: gevent calls many rounds of callbacks, this greenlet's among them, before the loop
    looks at a socket again. A timer fires only after that.
    """
    hub = get_hub()
    timer = hub.loop.timer(0)
    try:
        hub.wait(timer)
    finally:
        timer.close()


class Budget:
    """The time for which one greenlet works before it lets others run. Ask it once for some items, not for each."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = time.monotonic() + BUDGET

    def let_others_run_if_spent(self) -> None:
        """Let others run if the time is over, and begin anew."""
        if time.monotonic() >= self._until:
            let_others_run()
            self._until = time.monotonic() + BUDGET

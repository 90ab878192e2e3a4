"""Greenlets for synchronous code that asynchronous code waits for: lent while there is something to do, then kept."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gevent import getcurrent
from gevent.hub import get_hub
from greenlet import greenlet

from django_websocket.transport.loops import PerLoop
from django_websocket.transport.turns import turns_of_loop

__all__ = ["away", "lending_of_loop"]

LIMIT = int(os.environ.get("ASGI_THREADS", "32"))  # functions that run at once in a process; asgiref's name for it

Job = Callable[[], object]


class Lent(greenlet):
    """A greenlet that does one job after the other. Those that lend it may note something in `notes`."""

    notes: Any = None


class Lending:
    """The greenlets of one loop, of which `LIMIT` work at once. Whoever comes when they do waits, in order."""

    def __init__(self) -> None:
        self._hub: Any = get_hub()
        self._free = LIMIT
        self._idle: list[Lent] = []
        self._queue: deque[Job | Lent] = deque()  # jobs that have not begun, and greenlets that were away
        self._asked = False  # whether the loop will call `_begin`

    def lend(self, job: Job) -> None:
        """Have `job` called: at once if this is called in the hub and nobody waits, else soon."""
        if self._idle and self._free > 0 and not self._queue and getcurrent() is self._hub:
            self._free -= 1
            self._idle.pop().switch(job)
        else:
            self._queue.append(job)
            self._begin_soon()

    def leave(self) -> None:
        """Let others work while the running greenlet waits for something that may take long."""
        self._free += 1
        self._begin_soon()

    def come_back(self) -> None:
        """Go on working, when it is this greenlet's turn."""
        if self._free <= 0 or self._queue:
            current: Any = getcurrent()
            self._queue.append(current)
            self._begin_soon()
            try:
                self._hub.switch()
                return  # the one who woke it has counted it
            except BaseException:  # it is interrupted
                if current in self._queue:
                    self._queue.remove(current)
                    self._free -= 1
                raise
        self._free -= 1

    def _begin_soon(self) -> None:
        if self._queue and self._free > 0 and not self._asked:
            self._asked = True
            self._hub.loop.run_callback(self._begin)

    def _begin(self) -> None:
        """Go on with what is in the queue, as far as there are greenlets. In the hub."""
        self._asked = False
        while self._queue and self._free > 0:
            if turns_of_loop().spent():
                self._asked = True
                turns_of_loop().postpone(self._begin)
                return
            self._start(self._queue.popleft())

    def _start(self, job: Job | Lent) -> None:
        self._free -= 1
        if isinstance(job, Lent):
            job.switch()
        elif self._idle:
            self._idle.pop().switch(job)
        else:
            lent = Lent(self._run, self._hub)
            lent.switch()  # a greenlet keeps what it begins with
            lent.switch(job)

    def _run(self) -> None:
        current: Any = getcurrent()
        switch: Any = greenlet.switch  # the hub's own method would first look for a hook of this greenlet
        while True:
            try:
                job = switch(self._hub)
            except BaseException:  # something of an earlier job's, such as a timeout that it has not ended
                continue
            try:
                job()
            except BaseException:  # a fault of this package
                self._hub.handle_error(current, *sys.exc_info())
            self._free += 1
            if self._queue:
                self._begin_soon()
            self._idle.append(current)
            del job  # which may refer to much


lending_of_loop = PerLoop(Lending).get


@contextmanager
def away() -> Iterator[None]:
    """Let others work during the block, if the running greenlet is lent."""
    if not isinstance(getcurrent(), Lent):
        yield
        return
    lending = lending_of_loop()
    lending.leave()
    try:
        yield
    finally:
        lending.come_back()

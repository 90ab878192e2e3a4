"""How asgiref's bridges between synchronous and asynchronous code run in greenlets.

In a server it must not be imported before gevent has patched the process: asgiref must not be either.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable

from asgiref.sync import SyncToAsync

from django_websocket.asgi.executors import SerialExecutor, call_behind_each

__all__ = ["keep_from_own_thread", "share_with_asgiref"]


class LocalToGreenlet(threading.local):
    """What asgiref keeps for each thread: in which loop `async_to_sync` runs. Without another one, in the shared loop.

    asgiref would make a loop and a thread for each call; and what belongs to a loop, such as the connections of a
    client for HTTP or Redis, could not be used by the next call.
    """

    @property
    def main_event_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of whoever has called this greenlet's function by `sync_to_async`, or the shared loop."""
        from django_websocket.asgi.loop import shared_loop

        loop: asyncio.AbstractEventLoop | None = vars(self).get("loop")
        return shared_loop() if loop is None or loop.is_closed() else loop

    @main_event_loop.setter
    def main_event_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        vars(self)["loop"] = loop

    @property
    def main_event_loop_pid(self) -> int:
        """The process in which that loop runs."""
        return os.getpid()

    @main_event_loop_pid.setter
    def main_event_loop_pid(self, pid: int) -> None:
        """Nothing: a fork leaves no loop behind."""


class LocalToThread(threading.local):
    """What asgiref keeps for each thread, without a loop that this very thread would keep from running."""

    @property
    def main_event_loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop of another thread, whose coroutine has called this thread's function by `sync_to_async`."""
        from django_websocket.asgi.loop import shared_loop

        loop: asyncio.AbstractEventLoop | None = vars(self).get("loop")
        return None if loop is None or loop is shared_loop() else loop

    @main_event_loop.setter
    def main_event_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        vars(self)["loop"] = loop


def keep_from_own_thread() -> None:
    """Have `async_to_sync` run elsewhere than in the shared loop, where waiting would keep that from running.

    For processes that gevent has not patched, such as those of a project's tests.
    """
    SyncToAsync.threadlocal = LocalToThread()


class GivingBack(SerialExecutor):
    """Runs the functions for which nobody else has an executor, and calls `give_back` behind each."""

    def __init__(self, give_back: Callable[[], object]) -> None:
        super().__init__()
        self._give_back = give_back

    def after(self) -> None:
        """See `SerialExecutor.after`."""
        self._give_back()


def share_with_asgiref(after: Callable[[], object]) -> None:
    """Have `async_to_sync` run in the shared loop, and `sync_to_async` in greenlets; `after` is called behind each.

    Only where gevent has patched `threading`.
    """
    call_behind_each(after)
    SyncToAsync.threadlocal = LocalToGreenlet()
    SyncToAsync.single_thread_executor = GivingBack(after)  # type: ignore[assignment]

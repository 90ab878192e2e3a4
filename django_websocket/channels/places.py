"""Where the subscriptions of a coroutine are: on gevent's loop in its own thread, or in a thread for just that."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeVar

import gevent
from gevent import monkey
from gevent.hub import Hub, get_hub

from django_websocket.asgi.loop import HubLoop
from django_websocket.asgi.waiting import in_greenlet

__all__ = ["LoopWaiter", "Place", "place"]

R = TypeVar("R")


class Place:
    """The loop of the running thread, which greenlets and coroutines share."""

    here = True  # whether its functions may be called by the coroutines themselves

    def __init__(self) -> None:
        self.loop: Hub = get_hub()

    async def run(self, function: Callable[..., R], *args: Any) -> R:
        """Return what a function returns that lets its greenlet wait for this loop."""
        return await in_greenlet(function, *args)

    async def do(self, function: Callable[..., R], *args: Any) -> R:
        """Return what a function returns that waits in whichever thread it is called."""
        return await in_greenlet(function, *args)

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function that does not wait, soon or now."""
        function(*args)


class OtherThread(Place):
    """gevent's loop in a thread of its own, for coroutines whose thread may block: gevent has not patched it."""

    here = False

    def __init__(self) -> None:
        self._begun = threading.Event()
        threading.Thread(target=self._run, name="django_websocket channels", daemon=True).start()
        self._begun.wait()

    def _run(self) -> None:
        self.loop = get_hub()
        lasting = self.loop.loop.async_()  # without a watcher, the loop would end
        lasting.start(bool)
        self._begun.set()
        self.loop.switch()

    async def run(self, function: Callable[..., R], *args: Any) -> R:
        """See `Place.run`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()

        def settle(method: Callable[[Any], None], outcome: object) -> None:
            if not future.done():
                method(outcome)

        def run() -> None:
            try:
                result = function(*args)
            except BaseException as error:  # whatever it is, it is for the one who waits
                call = partial(settle, future.set_exception, error)
            else:
                call = partial(settle, future.set_result, result)
            if not loop.is_closed():
                loop.call_soon_threadsafe(call)

        self.loop.loop.run_callback_threadsafe(gevent.spawn, run)
        return await future

    async def do(self, function: Callable[..., R], *args: Any) -> R:
        """See `Place.do`."""
        return await asyncio.get_running_loop().run_in_executor(None, partial(function, *args))

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """See `Place.soon`."""
        self.loop.loop.run_callback_threadsafe(function, *args)


class LoopWaiter:
    """A coroutine that waits, in whichever loop, for somebody in whichever thread."""

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def switch(self, *args: object) -> None:
        """Have it go on. Without effect if it goes on already."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def __await__(self) -> Generator[Any, None, None]:
        return self._future.__await__()


_lock = threading.Lock()
_other_threads: dict[int, Place] = {}  # by process, since a fork leaves them behind


def place() -> Place:
    """Return the place of the running coroutine."""
    if monkey.is_module_patched("threading") and isinstance(asyncio.get_running_loop(), HubLoop):
        return Place()
    found = _other_threads.get(os.getpid())
    if found is None:
        with _lock:
            found = _other_threads.get(os.getpid())
            if found is None:
                found = _other_threads[os.getpid()] = OtherThread()
    return found

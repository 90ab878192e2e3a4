"""How a coroutine waits for what the hub brings it, and for code that lets a greenlet wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import gevent
from gevent.event import Event
from gevent.hub import get_hub

from django_websocket.transport.waiting import Readable, check_timeout

if TYPE_CHECKING:
    from .loop import HubLoop

__all__ = ["Waiter", "from_greenlet", "in_greenlet", "until_ready", "until_set"]

R = TypeVar("R")


class Waiter:
    """Stands where a greenlet waits: to switch to it is to have the coroutine go on."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[None]) -> None:
        self._future = future

    def switch(self, *args: object) -> None:
        """Have it go on, in the loop's next round. Without effect if it goes on already."""
        if not self._future.done():
            self._future.set_result(None)


async def until_ready(readable: Readable, timeout: float | None = None) -> None:
    """Wait until `readable` may be ready. Raises TimeoutError after `timeout` seconds."""
    check_timeout(timeout)
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    waiter = Waiter(future)
    readable.claim(waiter)
    timer = None if timeout is None else loop.call_later(max(0, timeout), waiter.switch)
    try:
        await future
    finally:
        readable.release()
        if timer is not None:
            timer.cancel()
    if timeout is not None and not (readable.ready() or readable.abandoned):
        raise TimeoutError(f"no message came within {timeout} seconds")


async def until_set(event: Any, timeout: float) -> bool:
    """Wait for an event of gevent's, up to `timeout` seconds; return whether it was set."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    waiter = Waiter(future)
    event.rawlink(waiter.switch)
    timer = loop.call_later(timeout, waiter.switch)
    try:
        await future
    finally:
        event.unlink(waiter.switch)
        timer.cancel()
    return bool(event.is_set())


async def in_greenlet(function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """Return what a function returns that lets its greenlet wait. A cancelled call goes on, and its result is lost."""
    future: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def run() -> None:
        try:
            result = function(*args, **kwargs)
        except BaseException as error:  # whatever it is, it is for the one who waits
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)

    gevent.spawn(run)
    return await future


def from_greenlet(loop: HubLoop, coroutine: Coroutine[Any, Any, R]) -> R:
    """Return what a coroutine returns, for which the running greenlet waits. Its loop may be another thread's."""
    if get_hub() is not loop.hub:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()
    task = loop.create_task(coroutine)
    ended = Event()
    task.add_done_callback(lambda task: ended.set())
    try:
        ended.wait()
    except BaseException:
        task.cancel()
        raise
    return task.result()

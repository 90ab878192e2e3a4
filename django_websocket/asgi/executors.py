"""Where synchronous code runs that asynchronous code waits for: greenlets, each of which blocks for itself."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, TypeVar

import gevent
from gevent.lock import BoundedSemaphore

__all__ = ["SerialExecutor", "call_behind_each", "do"]

R = TypeVar("R")

LIMIT = int(os.environ.get("ASGI_THREADS", "32"))  # functions that run at once in a process; asgiref's name for it
permits = BoundedSemaphore(LIMIT)


_behind: Callable[[], object] = bool


def call_behind_each(function: Callable[[], object]) -> None:
    """Have `function` called behind each function that `do` calls."""
    global _behind
    _behind = function


def do(function: Callable[..., R], *args: Any) -> R:
    """Call what an asyncio loop runs in its own executor, whose greenlets stay: they may keep no database."""
    try:
        return function(*args)
    finally:
        _behind()


class SerialExecutor(Executor):
    """Runs functions one after the other, each with `before` and `after` it: to have what it uses, and to give it back.

    asgiref's `sync_to_async` takes it where code must not run in several threads at once.
    """

    def __init__(self, before: Callable[[], object], after: Callable[[], object]) -> None:
        self._before = before
        self._after = after
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._running = False

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Have `fn` called when those are done that came before; never waits."""
        future: Future[R] = Future()
        self._jobs.append((future, partial(fn, *args, **kwargs)))
        if not self._running:
            self._running = True
            gevent.spawn(self._run)
        return future

    def _run(self) -> None:
        try:
            while self._jobs:
                future, job = self._jobs.popleft()
                if future.set_running_or_notify_cancel():
                    with permits:
                        self._do(future, job)
                del future, job
        finally:
            self._running = False

    def _do(self, future: Future[Any], job: Callable[[], Any]) -> None:
        try:
            self._before()
            result = job()
        except BaseException as error:  # whatever it is, it is for the one who waits
            future.set_exception(error)
        else:
            future.set_result(result)
        finally:
            self._after()

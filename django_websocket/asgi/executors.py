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
    """Runs functions one after the other.

    asgiref's `sync_to_async` takes it where code must not run in several threads at once.
    """

    __slots__ = ("_jobs",)

    def __init__(self) -> None:
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] | None = None  # while there are any

    def before(self) -> None:
        """Do what comes before each function: to have what it uses."""

    def after(self) -> None:
        """Do what comes behind each function: to give it back."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Have `fn` called when those are done that came before; never waits."""
        future: Future[R] = Future()
        if self._jobs is None:
            self._jobs = deque()
            gevent.spawn(self._run, self._jobs)
        self._jobs.append((future, partial(fn, *args, **kwargs)))
        return future

    def _run(self, jobs: deque[tuple[Future[Any], Callable[[], Any]]]) -> None:
        try:
            while jobs:
                future, job = jobs.popleft()
                if future.set_running_or_notify_cancel():
                    with permits:
                        self._do(future, job)
                del future, job
        finally:
            self._jobs = None

    def _do(self, future: Future[Any], job: Callable[[], Any]) -> None:
        try:
            self.before()
            result = job()
        except BaseException as error:  # whatever it is, it is for the one who waits
            future.set_exception(error)
        else:
            future.set_result(result)
        finally:
            self.after()

"""Where synchronous code runs that asynchronous code waits for: greenlets, each of which blocks for itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, TypeVar

from .lending import lending_of_loop

__all__ = ["SerialExecutor", "call_behind_each", "do"]

R = TypeVar("R")

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
        job = future, partial(fn, *args, **kwargs)
        if self._jobs is None:
            self._jobs = deque((job,))
            lending_of_loop().lend(self._run)
        else:
            self._jobs.append(job)
        return future

    def _run(self) -> None:
        jobs = self._jobs
        assert jobs is not None
        future, job = jobs.popleft()
        try:
            if future.set_running_or_notify_cancel():
                self._do(future, job)
        finally:
            if jobs:
                lending_of_loop().lend(self._run)  # behind all others that wait
            else:
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

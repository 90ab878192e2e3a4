"""How a test waits: for what must happen, with a deadline, and never for a time to pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import gevent

DEADLINE = 10.0  # seconds within which whatever is waited for must happen

T = TypeVar("T")


def eventually(condition: Callable[[], object], within: float = DEADLINE) -> bool:
    """Block this process until a condition holds that another process brings about; return whether it was in time.

    No loop runs meanwhile: what happens in this process is waited for with `until`.
    """
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def until(condition: Callable[[], T], within: float = DEADLINE) -> T:
    """Let this process's loop run until `condition()` is true, and return what it returned.

    Raises:
        AssertionError: It was not within so many seconds.
    """
    deadline = time.monotonic() + within
    while not (result := condition()):
        assert time.monotonic() < deadline, f"this did not happen within {within} s"
        gevent.sleep(0.001)
    return result


@contextmanager
def at_once() -> Iterator[None]:
    """What happens in the block is done without waiting for anything else to happen."""
    begin = time.monotonic()
    yield
    took = time.monotonic() - begin
    assert took < 2, f"it took {took:.1f} s"

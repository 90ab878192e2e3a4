"""How a test waits: with a deadline, for something to happen, and never just for time to pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import gevent

DEADLINE = 10.0  # seconds within which the awaited event must happen
STARTS = 30.0  # seconds for a worker to start and answer, on a machine that is busy with other tests

T = TypeVar("T")


def eventually(condition: Callable[[], object], within: float = DEADLINE) -> bool:
    """Block until another process has made a condition true; return whether it did so in time.

    This process's loop does not run meanwhile; use `until` to wait for something in this process.
    """
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def until(condition: Callable[[], T], within: float = DEADLINE) -> T:
    """Let this process's loop run until `condition()` is true, and return its result.

    Raises:
        AssertionError: It was not true within that many seconds.
    """
    deadline = time.monotonic() + within
    while not (result := condition()):
        assert time.monotonic() < deadline, f"this did not happen within {within} s"
        gevent.sleep(0.001)
    return result


@contextmanager
def at_once() -> Iterator[None]:
    """Check that the block does not wait for anything."""
    begin = time.monotonic()
    yield
    took = time.monotonic() - begin
    assert took < 2, f"it took {took:.1f} s"

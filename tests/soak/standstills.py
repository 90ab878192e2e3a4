"""Notices when the machine stands still: nobody can answer anybody then, and neither site nor client is to blame."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..history.checker import Fault

STOOD_STILL = "machine stood still"
PAUSE = 0.1  # seconds between two looks at the clock
NOTICEABLE = 1.0  # seconds more than that which a thread that only sleeps has to wait for a processor


@contextmanager
def standstills(faults: list[Fault]) -> Iterator[None]:
    """Add the standstills of the block to `faults`."""
    over = threading.Event()

    def look(begin: float) -> None:
        ending = False
        while not ending:
            ending = over.wait(PAUSE)  # a standstill may last until the end
            now = time.monotonic()
            if now - begin > PAUSE + NOTICEABLE:
                faults.append(Fault(STOOD_STILL, begin, now))
            begin = now

    thread = threading.Thread(target=look, args=[time.monotonic()])
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

"""Notices when the machine stands still: nobody can answer anybody then, and neither site nor client is to blame."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE = 0.1  # seconds between two looks at the clock
NOTICEABLE = 1.0  # seconds more than that which a thread that only sleeps has to wait for a processor


@contextmanager
def standstills(note: Callable[[float, float], object]) -> Iterator[None]:
    """Call `note` with the begin and the end, in seconds of time.monotonic(), of each standstill during the block."""
    over = threading.Event()

    def look(begin: float) -> None:
        ending = False
        while not ending:
            ending = over.wait(PAUSE)  # a standstill may last until the end
            now = time.monotonic()
            if now - begin > PAUSE + NOTICEABLE:
                note(begin, now)
            begin = now

    thread = threading.Thread(target=look, args=[time.monotonic()], name="standstills", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

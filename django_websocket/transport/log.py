"""One line in the log for each connection that was refused or failed; if many failed alike, their number."""

from __future__ import annotations

import codecs
import logging
import time
from collections import Counter, deque

import gevent

from .loops import PerLoop

__all__ = ["printable", "report"]

LINES = 10  # for one cause in a window; further ones are counted
WINDOW = 60.0  # seconds
CAUSES = 100  # distinguished in a window; further ones are counted as one
LENGTH = 300  # characters of text that a client may have made up, before escaping

logger = logging.getLogger("django_websocket")

_counts: Counter[tuple[int | None, str]] = Counter()  # in the present window
_since = 0.0  # when it began, in seconds of time.monotonic()


class Lines:
    """The lines of one loop that wait to be written, in a greenlet of its own: log handlers may block or raise."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, str]] = deque(maxlen=LINES * CAUSES)  # levels and lines
        self.writing = False

    def add(self, level: int, line: str) -> None:
        """Have a line written."""
        self._waiting.append((level, line))
        if not self.writing:
            self.writing = True
            gevent.spawn(self._write)

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()

    def _write(self) -> None:
        try:
            while self._waiting:
                logger.log(*self._waiting.popleft())
        finally:
            self.writing = False


lines_of_loop = PerLoop(Lines).get


def report(who: str, code: int | None, cause: str, detail: str = "", level: int = logging.WARNING) -> None:
    """Log why a connection was refused or failed. Neither waits nor raises, so that the hub may call it too.

    `who` is the client's address and the path of its request, `code` an HTTP status or a close code, None if there is
    neither. `cause` is one of a few fixed texts, by which lines are counted; `detail` may be anything.
    """
    global _counts, _since
    key = (code, cause)
    if key not in _counts and len(_counts) >= CAUSES:
        key = (None, "other causes")
    if _counts and time.monotonic() - _since > WINDOW:  # the loop that would have noticed does not run
        ended, _counts = _counts, Counter()
        gevent.spawn(_sum_up, ended)
    if not _counts:
        _since = time.monotonic()
        gevent.spawn_later(WINDOW, _sum_up, _counts)
    _counts[key] += 1
    if _counts[key] > LINES:
        return
    line = f"{who[:LENGTH]}: {'' if code is None else f'{int(code)} '}{cause}"
    lines_of_loop().add(level, printable(f"{line}: {detail[:LENGTH]}" if detail else line))


def begin_anew() -> None:
    """Forget what was counted, so that each test gets its own lines."""
    global _counts
    _counts.clear()  # the timer of the present window will log nothing,
    _counts = Counter()  # and will not end the next one


def _sum_up(counts: Counter[tuple[int | None, str]]) -> None:
    """End the window of `counts`."""
    global _counts
    if counts is _counts:
        _counts = Counter()
    while counts:  # emptied, so that a second call logs nothing
        (code, cause), count = counts.popitem()
        if count > LINES:
            what = cause if code is None else f"{int(code)} {cause}"
            logger.warning("%d more in %d seconds: %s", count - LINES, WINDOW, printable(what))


ESCAPE = codecs.getencoder("unicode_escape")  # found now: without free descriptors, a process could not import it


def printable(text: str) -> str:
    """Return `text` escaped for the log, where it must not begin a line of its own."""
    return ESCAPE(text)[0].decode("ascii")

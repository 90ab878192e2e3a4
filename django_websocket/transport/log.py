"""One line in the log for each connection that was refused or failed; of many that failed alike, their number."""

from __future__ import annotations

import codecs
import logging
from collections import Counter, deque

import gevent

__all__ = ["printable", "report"]

LINES = 10  # for one cause in a window; further ones are counted
WINDOW = 60.0  # seconds
CAUSES = 100  # that are told apart in a window
LENGTH = 300  # characters of what a client may have made up, before they are escaped

logger = logging.getLogger("django_websocket")

_counts: Counter[tuple[int | None, str]] = Counter()  # in the present window
_waiting: deque[tuple[int, str]] = deque(maxlen=LINES * CAUSES)  # levels and lines
_writing = False


def report(who: str, code: int | None, cause: str, detail: str = "", level: int = logging.WARNING) -> None:
    """Log why a connection was refused or failed, for any greenlet and for the hub. Neither waits nor raises.

    `who` is the client's address and the path of its request, `code` an HTTP status or a close code, None where there
    is neither. `cause` is one of a few sentences, by which lines are counted; `detail` may be anything.
    """
    global _writing
    key = (code, cause)
    if key not in _counts and len(_counts) >= CAUSES:
        key = (None, "other causes")
    if not _counts:
        gevent.spawn_later(WINDOW, _sum_up, _counts)
    _counts[key] += 1
    if _counts[key] > LINES:
        return
    line = f"{who[:LENGTH]}: {'' if code is None else f'{int(code)} '}{cause}"
    _waiting.append((level, printable(f"{line}: {detail[:LENGTH]}" if detail else line)))
    if not _writing:
        _writing = True
        gevent.spawn(_write)


def begin_anew() -> None:
    """Forget what was counted: of tests, each one gets its own lines."""
    global _counts
    _counts.clear()
    _counts = Counter()  # the present window ends without a word, and without an effect on the next one


def _write() -> None:
    """Log what waits. In a greenlet of its own: what handles the records is the project's, and may block or raise."""
    global _writing
    try:
        while _waiting:
            logger.log(*_waiting.popleft())
    finally:
        _writing = False


def _sum_up(counts: Counter[tuple[int | None, str]]) -> None:
    """End the window in which these were counted."""
    global _counts
    if counts is _counts:
        _counts = Counter()
    while counts:  # taken out: it is empty then, should this be called again
        (code, cause), count = counts.popitem()
        if count > LINES:
            what = cause if code is None else f"{int(code)} {cause}"
            logger.warning("%d more in %d seconds: %s", count - LINES, WINDOW, printable(what))


ESCAPE = codecs.getencoder("unicode_escape")  # found now: a process without descriptors could not


def printable(text: str) -> str:
    """Return `text` for the log, in which it may not begin a line of its own."""
    return ESCAPE(text)[0].decode("ascii")

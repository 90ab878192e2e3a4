"""`select()` for greenlets, over WebSockets, subscriptions, sockets and files; the worker replaces `select.select`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gevent import monkey
from gevent.hub import get_hub

from .transport.turns import let_others_run, let_others_run_if_spent
from .transport.waiting import Readable, check_before_taking, check_timeout, readable_with, wait

__all__ = ["select"]

# The standard library's own, which gevent may have replaced. Some systems have none; there, sockets and files cannot be
# waited for.
_poll = monkey.get_original("select", "poll")
POLLIN, POLLPRI, POLLOUT, POLLHUP, POLLNVAL = 1, 2, 4, 16, 32
READ, WRITE = 1, 2  # libev's


def select(
    rlist: Iterable[Any], wlist: Iterable[Any], xlist: Iterable[Any], timeout: float | None = None
) -> tuple[list[Any], list[Any], list[Any]]:
    """Wait until something in the lists is ready, as the standard library's `select.select` does.

    The lists may hold file descriptors and objects with a `fileno()`. A WebSocket is ready when `receive()` would
    return at once, a subscription when `get()` would. `timeout` is in seconds; None waits for ever, 0 only looks.
    Returns three lists of what is ready. Only the calling greenlet waits, and descriptors may be larger than 1023.
    `xlist` is looked at only at the beginning, and not waited for.

    Raises ValueError for a negative descriptor or timeout and for NaN, TypeError for an object without a descriptor,
    and OSError (EBADF) for a descriptor that is closed.
    """
    if timeout is None and type(rlist) is list and not wlist and not xlist:
        found = select_readable(rlist)
        if found is not None:
            return found, [], []
    check_timeout(timeout)
    if timeout is not None and timeout < 0:
        raise ValueError("timeout must be non-negative")
    sources: list[tuple[Any, Readable]] = []
    readers: list[tuple[Any, int]] = []
    for item in rlist:
        source = getattr(item, "readiness", None)
        if source is None:
            fd = _fileno(item)
            source = readable_with(fd)
        if source is None:
            readers.append((item, fd))
        else:
            sources.append((item, source))
    if sources and timeout != 0:
        check_before_taking()
    writers = [(item, _fileno(item)) for item in wlist]
    others = [(item, _fileno(item)) for item in xlist]

    ready = _look(sources, readers, writers, others)
    if any(ready):
        let_others_run_if_spent()
        return ready
    if timeout == 0:
        let_others_run()
        return ready
    if _wait(sources, readers, writers, timeout):
        ready = _look(sources, readers, writers, [])
    return ready


def select_readable(items: list[Any]) -> list[Any] | None:
    """Do what `select` does for objects of this package alone; return None if there is something else among them."""
    sources: list[tuple[Any, Readable]] = []
    for item in items:
        try:
            sources.append((item, item.readiness))
        except AttributeError:
            return None
    if not sources:
        return None
    check_before_taking()
    readable = _ready(sources)
    if readable:
        let_others_run_if_spent()
        return readable
    wait([source for _, source in sources])
    return _ready(sources)


def _ready(sources: list[tuple[Any, Readable]]) -> list[Any]:
    # A view learns from its WebSocket that the client has left, and not from a subscription first.
    readable = [item for item, source in sources if source.ready()]
    return readable or [item for item, source in sources if source.abandoned]


def _fileno(item: Any) -> int:
    fd = item if isinstance(item, int) else _call_fileno(item)
    if fd < 0:
        raise ValueError(f"file descriptor cannot be a negative integer ({fd})")
    return fd


def _call_fileno(item: Any) -> int:
    try:
        fd = item.fileno()
    except AttributeError:
        raise TypeError("argument must be an int, or have a fileno() method.") from None
    if not isinstance(fd, int):
        raise TypeError("fileno() returned a non-integer")
    return fd


def _look(
    sources: list[tuple[Any, Readable]],
    readers: list[tuple[Any, int]],
    writers: list[tuple[Any, int]],
    others: list[tuple[Any, int]],
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return what is ready now."""
    readable = _ready(sources)
    if not (readers or writers or others):
        return readable, [], []
    masks: dict[int, int] = {}
    for pairs, mask in ((readers, POLLIN), (writers, POLLOUT), (others, POLLPRI)):
        for _, fd in pairs:
            masks[fd] = masks.get(fd, 0) | mask
    poller = _poll()
    for fd, mask in masks.items():
        poller.register(fd, mask)
    found: dict[int, int] = dict(poller.poll(0))
    for fd, events in found.items():
        if events & POLLNVAL:
            raise OSError(9, f"Bad file descriptor: {fd}")
    # An error makes reading and writing return at once, a hang-up reading only.
    readable += [item for item, fd in readers if found.get(fd, 0) & ~(POLLOUT | POLLPRI)]
    writable = [item for item, fd in writers if found.get(fd, 0) & ~(POLLIN | POLLPRI | POLLHUP)]
    exceptional = [item for item, fd in others if found.get(fd, 0) & POLLPRI]
    return readable, writable, exceptional


class _Files(Readable):
    """Becomes ready when one of some file descriptors does."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        super().__init__()
        self._found = False

    def ready(self) -> bool:
        return self._found

    def _on_event(self) -> None:
        self._found = True
        self._wake()


def _wait(
    sources: list[tuple[Any, Readable]],
    readers: list[tuple[Any, int]],
    writers: list[tuple[Any, int]],
    timeout: float | None,
) -> bool:
    """Wait until something may be ready; return False after `timeout` seconds."""
    waited_for = [source for _, source in sources]
    if not readers and not writers:
        return wait(waited_for, timeout)
    files = _Files()
    events: dict[int, int] = {}
    for pairs, mask in ((readers, READ), (writers, WRITE)):
        for _, fd in pairs:
            events[fd] = events.get(fd, 0) | mask
    loop = get_hub().loop
    watchers = [loop.io(fd, mask) for fd, mask in events.items()]
    try:
        for watcher in watchers:
            watcher.start(files._on_event)
        return wait([*waited_for, files], timeout, for_message=bool(waited_for), for_files=True)
    finally:
        for watcher in watchers:
            watcher.stop()
            watcher.close()

"""The child of a process that serves clients: the clients stay the parent's, and only the greenlet that forked goes on.

A view, a page or a pool may fork. The child would have a copy of everything: the descriptors of all clients, the event
loop that watches them, and every greenlet that waits in it. It would read what the clients send to its parent, and
close their connections at its own end. So, as with threads, nothing else is left in the child: it has a new loop, and
its copies of the clients' descriptors lead nowhere.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NoReturn

import gevent
from gevent import getcurrent
from gevent.exceptions import LoopExit
from gevent.hub import Hub, get_hub, set_hub  # type: ignore[attr-defined]  # unknown to its types
from greenlet import greenlet

from django_websocket.transport import shared, waiting

__all__ = ["end_child", "in_child", "leave_to_parent"]

Leave = Callable[[], Iterable[Any]]

logger = logging.getLogger("django_websocket")
_leave: list[Leave] = []
_kept: list[object] = []  # the parent's, and not to be freed: a greenlet that is freed runs its `finally` blocks
_in_child = False


def in_child() -> bool:
    """Return whether this is a child of a process that serves clients. It serves none itself."""
    return _in_child


def leave_to_parent(leave: Leave) -> None:
    """Call `leave` in each child; it returns sockets that belong to the parent alone."""
    _leave.append(leave)


def end_child(error: BaseException | None = None) -> NoReturn:
    """End the child when its code has ended, with an error or without, as `multiprocessing` ends its own.

    The callers above belong to the parent: they would answer a client, or close a connection to a database.
    """
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        status = 1
        with suppress(Exception):
            logger.error("A child process ended with an error", exc_info=error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)


class LoopOfParent(Hub):
    """The parent's loop as seen in a child: since it is dead, gevent's locks and events take the new one instead."""

    dead = True
    forked: Any = None

    def handle_error(self, context: object, type: object, value: object, tb: object) -> None:
        """Stop the loop for good, wherever it was when the process forked."""
        while True:
            greenlet.switch(self.forked)

    def switch(self, *args: object) -> NoReturn:
        """Refuse to wait for an event of the parent's loop."""
        raise RuntimeError("The child process cannot wait for this, because it was made before the process forked.")


def _begin_child() -> None:
    global _in_child
    if not shared.serves_clients():
        return  # this is gunicorn's master, for example, whose children are workers
    _in_child = True
    of_parent = shared.leave_all_to_parent()
    socks = [each.leave_to_parent() for _, of_loop in of_parent.values() if of_loop for each in of_loop.connections]
    for leave in _leave:
        socks += leave()
    _kept.append((of_parent, socks))
    waiting.leave_to_parent()
    _disconnect({sock.fileno() for sock in socks if sock is not None} - {-1})
    for hub in of_parent:
        if hub is get_hub():
            _begin_anew(hub)


def _disconnect(descriptors: set[int]) -> None:
    """Make the descriptors lead nowhere. Their numbers stay in use: there are objects that will close them."""
    if descriptors:
        os.close(min(descriptors))  # makes room for one more
        dead = socket.socket()
        for fd in descriptors - {dead.fileno()}:
            os.dup2(dead.fileno(), fd, inheritable=False)
        if dead.fileno() in descriptors:
            dead.detach()
        dead.close()


def _begin_anew(old: Any) -> None:
    """Give the running greenlet a loop in which it is alone."""
    current: Any = getcurrent()
    if current is old:
        return  # the hub runs no user code that could go on
    loop = old.loop
    _kept.append((old, loop))
    if old:  # it waits in the loop that is about to be destroyed, and must not return to it
        old.__class__ = LoopOfParent
        old.forked = current
        old.throw(gevent.GreenletExit())
    loop.destroy()
    set_hub(None)
    new: Any = get_hub()
    chain: list[Any] = [current]  # of greenlets; each goes on when the one before it has ended
    while chain[-1] not in (old, None):
        chain.append(chain[-1].parent)
    if chain[-1] is old:
        guard = greenlet(_guard, old.parent)
        guard.switch(current)
        new.parent = guard
        chain[-2].parent = new


def _guard(forked: Any) -> None:
    """Take the place of the main greenlet, which is the parent's: end the child when it has nothing more to do."""
    error: BaseException | None = None
    try:
        forked.switch()
    except LoopExit as nothing_left:
        error = None if forked.dead else nothing_left
    except BaseException as other:
        error = other
    end_child(error)


os.register_at_fork(after_in_child=_begin_child)

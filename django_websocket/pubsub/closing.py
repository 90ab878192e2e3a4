"""How brokers and their subscribers end: in every thread, and without a word on the connections of a parent process."""

from __future__ import annotations

import os
import threading
from typing import NoReturn

from gevent.hub import get_hub

from django_websocket.exceptions import BrokerError

from .broker import Broker, Subscriber


class Closed(ConnectionError):
    """The broker was closed in this process."""


def refuse(timeout: float) -> NoReturn:
    """Stand in for the function that made connections before the broker was closed."""
    raise Closed("the broker was closed")


def closed_error(what: str) -> BrokerError:
    """Return the error for whoever wants something of `what` after its end."""
    return BrokerError(f"{what} was closed in this process: nothing is published or received through it any more.")


def close(part: Broker | Subscriber) -> None:
    """Close a broker or a subscriber; one without `close()` holds nothing that has to end."""
    closing = getattr(part, "close", None)
    if closing is not None:
        closing()


class InLoop:
    """Something that lives in the loop in which it was made, and may be told from any thread to end."""

    def __init__(self) -> None:
        self._hub = get_hub()
        self._thread = threading.get_native_id()
        self._pid = os.getpid()

    @property
    def alive(self) -> bool:
        """Whether its loop is still there: a thread may have ended."""
        return self._hub.loop is not None

    @property
    def here(self) -> bool:
        """Whether its loop is that of the running thread."""
        return threading.get_native_id() == self._thread

    @property
    def orphaned(self) -> bool:
        """Whether it belongs to the parent process, whose clients and servers must not hear from this one."""
        return os.getpid() != self._pid

    def end(self) -> None:
        """Begin to end, in the thread of its loop. Never waits."""
        if self.orphaned or not self.alive:
            return
        if self.here:
            self._end()
        else:
            self._hub.loop.run_callback_threadsafe(self._end)

    def _end(self) -> None:
        raise NotImplementedError

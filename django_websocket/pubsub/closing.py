"""How brokers and subscribers close: each in the thread of its loop, and never on a parent process's connections."""

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
    """Raise Closed; replaces the function that connects once the broker was closed."""
    raise Closed("the broker was closed")


def closed_error(what: str) -> BrokerError:
    """Return the error for calls after `what` was closed."""
    return BrokerError(f"{what} was closed in this process: nothing is published or received through it any more.")


def close(part: Broker | Subscriber) -> None:
    """Close a broker or a subscriber; one without `close()` has nothing to end."""
    closing = getattr(part, "close", None)
    if closing is not None:
        closing()


class InLoop:
    """An object that belongs to the loop in which it was made, and can be ended from any thread."""

    def __init__(self) -> None:
        self._hub = get_hub()
        self._thread = threading.get_native_id()
        self._pid = os.getpid()

    @property
    def alive(self) -> bool:
        """Whether its loop still exists; it does not once its thread has ended."""
        return self._hub.loop is not None

    @property
    def here(self) -> bool:
        """Whether its loop runs in the current thread."""
        return threading.get_native_id() == self._thread

    @property
    def orphaned(self) -> bool:
        """Whether it was inherited from the parent process, whose connections this process must not use."""
        return os.getpid() != self._pid

    def end(self) -> None:
        """Start ending it, in the thread of its loop. Never waits."""
        if self.orphaned or not self.alive:
            return
        if self.here:
            self._end()
        else:
            self._hub.loop.run_callback_threadsafe(self._end)

    def _end(self) -> None:
        raise NotImplementedError

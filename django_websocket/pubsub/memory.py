"""`memory://`: publish/subscribe within one process, for development, tests and small sites."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

import gevent
from gevent import getcurrent
from gevent.hub import get_hub

from django_websocket.sweep import serves_clients

from .broker import Listener

TESTS = "memory://tests"  # the broker of Django's test environment, where nobody need be told what memory:// is
MAX_PENDING = 256 * 1024  # bytes that a greenlet may publish before it lets the loop deliver them
BATCH_SIZE = 64 * 1024  # bytes that are delivered together, so that clients can read in between
OVERHEAD = 100  # bytes that a message costs beside its own

logger = logging.getLogger("django_websocket")


class MemoryBroker:
    """Hands what is published in a process to the subscribers of the same process, one for each loop."""

    OPTIONS = ()

    def __init__(self, url: str = "memory://") -> None:
        self.observers: list[Callable[[str, bytes], object]] = []  # called with all that is published
        self._subscribers: list[MemorySubscriber] = []
        self._warned = url == TESTS

    def publish(self, channel: str, payload: bytes) -> None:
        """Deliver soon, to each subscriber in the thread of its loop."""
        for observe in self.observers:
            observe(channel, payload)
        for subscriber in self._subscribers:
            subscriber.take(channel, payload)
        if not (self._subscribers or self._warned or serves_clients()):
            self._warned = True
            logger.warning(
                "Something was published to memory://, which does not leave the process, in one that serves no "
                "clients. If your WebSockets are served by another process, set WEBSOCKET_BROKER to a Redis URL."
            )

    def subscriber(self, listener: Listener) -> MemorySubscriber:
        """Return a subscriber for the running loop."""
        subscriber = MemorySubscriber(listener)
        self._subscribers = [*(one for one in self._subscribers if one.alive), subscriber]
        return subscriber


class MemorySubscriber:
    """Brings the listener what was published, in the thread of the loop in which it was made."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._pending: deque[tuple[str, bytes]] = deque()
        self._size = 0  # bytes, about: other threads add to it
        self._hub = get_hub()
        self._thread = threading.get_native_id()
        self._delivering = False

    def subscribe(self, channels: Sequence[str]) -> None:
        """Nothing to do: everything that is published comes here."""

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """Nothing to do; the listener drops what nobody wants."""

    @property
    def alive(self) -> bool:
        """Whether its loop is still there: a thread may have ended."""
        return self._hub.loop is not None

    def take(self, channel: str, payload: bytes) -> None:
        """Take what was published, from any thread."""
        if not self.alive:
            return
        self._pending.append((channel, payload))
        self._size += len(payload) + OVERHEAD
        if threading.get_native_id() != self._thread:
            self._hub.loop.run_callback_threadsafe(self._wake)
            return
        self._wake()
        while self._size > MAX_PENDING and getcurrent() is not self._hub:
            self._wake()
            gevent.sleep(0)

    def _wake(self) -> None:
        if not self._delivering:
            self._delivering = True
            gevent.spawn(self._deliver)

    def _deliver(self) -> None:
        try:
            while self._pending:
                batch = []
                size = 0
                while self._pending and size < BATCH_SIZE:
                    batch.append(self._pending.popleft())
                    size += len(batch[-1][1]) + OVERHEAD
                self._size = max(0, self._size - size) if self._pending else 0
                self._listener.deliver(batch)
                gevent.sleep(0)
        finally:
            self._delivering = False

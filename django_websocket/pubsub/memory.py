"""`memory://`: publish/subscribe within one process, for development, tests and small sites."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

import gevent
from gevent import getcurrent

from django_websocket.transport.shared import serves_clients
from django_websocket.transport.turns import let_others_run

from .broker import Listener
from .closing import InLoop, closed_error

TESTS = "memory://tests"  # the broker in Django's test environment, where the warning about memory:// is not needed
MAX_PENDING = 256 * 1024  # bytes that a greenlet may publish before the loop has to deliver them
BATCH_SIZE = 64 * 1024  # bytes that are delivered together, so that clients can read in between
OVERHEAD = 100  # bytes that a message costs in addition to its own

logger = logging.getLogger("django_websocket")


class MemoryBroker:
    """Delivers messages to the subscribers of the same process; there is one for each loop."""

    OPTIONS = ()

    def __init__(self, url: str = "memory://") -> None:
        self.observers: list[Callable[[str, bytes], object]] = []  # called with every message
        self._subscribers: list[MemorySubscriber] = []
        self._warned = url == TESTS
        self._closed = False

    def publish(self, channel: str, payload: bytes) -> int:
        """Deliver soon, to each subscriber in the thread of its loop; return how many receive the channel.

        Raises BrokerError after `close`.
        """
        subscribers = self._subscribers
        if not subscribers:
            self._to_nobody()
        for observe in self.observers:
            observe(channel, payload)
        for subscriber in subscribers:
            subscriber.take(channel, payload)
        return sum(channel in subscriber.channels for subscriber in subscribers if subscriber.alive)

    def subscriber(self, listener: Listener) -> MemorySubscriber:
        """Return a subscriber for the running loop. Raises BrokerError after `close`."""
        subscriber = MemorySubscriber(self, listener)
        self._subscribers = [*(one for one in self._subscribers if one.alive), subscriber]
        if self._closed:
            self.close()
            raise closed_error("memory://")
        return subscriber

    def close(self) -> None:
        """End the subscribers, each in its own loop; their members are told, and undelivered messages are dropped.

        Publishing later raises BrokerError. May be called twice, and from any thread or greenlet; never waits.
        """
        self._closed = True
        subscribers, self._subscribers = self._subscribers, []
        for subscriber in subscribers:
            subscriber.end()

    def forget(self, subscriber: MemorySubscriber) -> None:
        """Stop delivering to a subscriber."""
        self._subscribers = [one for one in self._subscribers if one is not subscriber]

    def _to_nobody(self) -> None:
        if self._closed:
            raise closed_error("memory://")
        if not (self._warned or serves_clients()):
            self._warned = True
            logger.warning(
                "A message was published to memory://, which does not leave the process, and this process serves no "
                "clients. If your WebSockets are served by another process, set WEBSOCKET_BROKER to a Redis URL."
            )


class MemorySubscriber(InLoop):
    """Delivers messages to its listener, in the thread of the loop in which it was made."""

    def __init__(self, broker: MemoryBroker, listener: Listener) -> None:
        super().__init__()
        self.channels: set[str] = set()  # to which it is subscribed
        self._broker = broker
        self._listener = listener
        self._pending: deque[tuple[str, bytes]] = deque()
        self._size = 0  # in bytes, roughly: other threads add to it
        self._delivering = False
        self._closed = False

    def subscribe(self, channels: Sequence[str]) -> None:
        """Add channels, which `publish` counts: every message comes here. Raises BrokerError after `close`."""
        if self._closed:
            raise closed_error("memory://")
        self.channels.update(channels)

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """Remove channels; the listener drops messages without members."""
        self.channels.difference_update(channels)

    def close(self) -> None:
        """Take no more messages, and drop those that wait."""
        self.end()

    def _end(self) -> None:
        if not self._closed:
            self._closed = True
            self._broker.forget(self)
            self._pending.clear()
            gevent.spawn(self._listener.closed)

    def take(self, channel: str, payload: bytes) -> None:
        """Take a message. May be called from any thread."""
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
            let_others_run()

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
                let_others_run()
        finally:
            self._delivering = False

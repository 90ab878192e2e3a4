"""The interface of brokers, which carry messages between processes, and the form of a message on the wire.

docs/brokers.md specifies each part and has an example of a custom broker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Broker", "Listener", "Receiver", "Subscriber"]

BINARY = b"\xff"  # precedes a binary message: UTF-8 text never contains it


class Listener(Protocol):
    """The recipient of what a subscriber receives: the hub."""

    def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """Take messages that arrived together, as (channel, payload). Called in a greenlet, one call at a time."""

    def lost(self, channels: Sequence[str]) -> None:
        """Learn that `channels` are not received for now. Never waits."""

    def missed(self, channels: Sequence[str]) -> None:
        """Learn that `channels` are received again and messages may have been lost. Called in a greenlet."""

    def closed(self) -> None:
        """Learn that the subscriber was closed and nothing more will come. Called in a greenlet."""


class Subscriber(Protocol):
    """The subscriptions of a loop: one connection for all its clients."""

    def subscribe(self, channels: Sequence[str]) -> None:
        """Begin to receive `channels`; return once the broker has confirmed it. Raises `BrokerError`."""

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """Stop receiving `channels`. Never waits and never raises."""

    def close(self) -> None:
        """End its connections and tell the listener. May be called twice; returns within a few seconds.

        A subscriber without connections may leave this method out.
        """


class Receiver(Protocol):
    """Receives one channel in a thread without a loop; it blocks."""

    def receive(self, timeout: float) -> list[bytes]:
        """Return the next payloads, possibly none. Raises OSError, and TimeoutError after `timeout` seconds."""

    def close(self) -> None:
        """Close the connection."""


class Broker(Protocol):
    """Carries messages between processes; connects when it is first needed.

    Its constructor takes the parts of `WEBSOCKET_BROKER` as keyword arguments: `url`, if there is one, and the options
    that the class lists in `OPTIONS`. Parameters in the query of the URL are options too, as strings. It raises
    ValueError for values that it cannot use.
    """

    def publish(self, channel: str, payload: bytes) -> int | None:
        """Hand `payload` to the broker, at most once, and return when it was taken. Raises `BrokerError`.

        Returns the number of subscribers, over all processes, that it went to; None if the broker cannot tell.

        May be called from any thread or greenlet, in a process with gevent or without.
        """

    def subscriber(self, listener: Listener) -> Subscriber:
        """Return a subscriber for the running loop, in which it calls `listener`."""

    def close(self) -> None:
        """End all connections, including those of its subscribers, and make no new ones. Returns within a few seconds.

        Publishes in progress succeed or raise `BrokerError`; later ones raise it. May be called twice, and from any
        thread or greenlet, but not from a callback of a loop. In a child process, the parent's connections must stay
        usable. A broker without connections may leave this method out.
        """


def to_wire(message: str | bytes) -> bytes:
    """Return `message` as brokers carry it: text as plain UTF-8, which any program can read; binary is marked."""
    return message.encode() if isinstance(message, str) else BINARY + message


def from_wire(payload: bytes) -> str | bytes:
    """Return the message in `payload`. Raises UnicodeDecodeError if it is neither UTF-8 nor marked as binary."""
    return payload[1:] if payload[:1] == BINARY else payload.decode()

"""The interface of brokers, which carry messages between processes, and how a message looks on their wire."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol
from urllib.parse import urlsplit

BINARY = b"\xff"  # stands before binary messages: no UTF-8 text contains it

SCHEMES = {
    "memory": "django_websocket.pubsub.memory.MemoryBroker",
    "redis": "django_websocket.pubsub.redis.RedisBroker",
    "rediss": "django_websocket.pubsub.redis.RedisBroker",
    "unix": "django_websocket.pubsub.redis.RedisBroker",
}


class Listener(Protocol):
    """Whom a subscriber brings what it receives: the hub."""

    def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """Hand out what arrived together, as (channel, payload). Called in a greenlet, one call after the other."""

    def lost(self, channels: Sequence[str]) -> None:
        """Take note that nothing more comes from `channels` for now. Never waits."""

    def missed(self, channels: Sequence[str]) -> None:
        """Take note that `channels` are received again, and that messages may have been lost. Called in a greenlet."""


class Subscriber(Protocol):
    """The one subscriber connection of a process."""

    def subscribe(self, channels: Sequence[str]) -> None:
        """Receive what is published to `channels`; returns when that is in force, or raises `BrokerError`."""

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """Receive it no more. Never waits and never raises."""


class Broker(Protocol):
    """Carries messages. It is made from its URL, and connects when it is first needed."""

    def publish(self, channel: str, payload: bytes) -> None:
        """Hand `payload` to the broker, once: returns when it was taken, else raises `BrokerError`.

        For any thread or greenlet, in a process with gevent or without.
        """

    def subscriber(self, listener: Listener) -> Subscriber:
        """Return the subscriber of this process, which brings what it receives to `listener`."""


def broker_from(url: str) -> Broker:
    """Return the broker that `url` names. Raises ValueError for a scheme that is not known."""
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"WEBSOCKET_BROKER is {url!r}, but the brokers are {known}")
    module, name = SCHEMES[scheme].rsplit(".", 1)
    broker: Broker = getattr(import_module(module), name)(url)
    return broker


def to_wire(message: str | bytes) -> bytes:
    """Return `message` as brokers carry it: text as UTF-8, so that any program can take part, binary marked as such."""
    return message.encode() if isinstance(message, str) else BINARY + message


def from_wire(payload: bytes) -> str | bytes:
    """Return the message that `payload` is. Raises UnicodeDecodeError for what is neither text nor marked as binary."""
    return payload[1:] if payload[:1] == BINARY else payload.decode()

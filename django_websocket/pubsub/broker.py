"""The interface of brokers, which carry messages between processes, and how a message looks on their wire.

docs/brokers.md says what each part owes, with an example.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import parse_qsl

BINARY = b"\xff"  # stands before binary messages: no UTF-8 text contains it

SCHEMES = {
    "memory": "django_websocket.pubsub.memory.MemoryBroker",
    "redis": "django_websocket.pubsub.redis.RedisBroker",
    "rediss": "django_websocket.pubsub.redis.RedisBroker",
    "unix": "django_websocket.pubsub.redis.RedisBroker",
    "redis+sentinel": "django_websocket.pubsub.sentinel.SentinelBroker",
    "rediss+sentinel": "django_websocket.pubsub.sentinel.SentinelBroker",
    "redis+cluster": "django_websocket.pubsub.cluster.ClusterBroker",
    "rediss+cluster": "django_websocket.pubsub.cluster.ClusterBroker",
}
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://[^/?#]*([^?#]*)(?:\?([^#]*))?")


class Listener(Protocol):
    """Whom a subscriber brings what it receives: the hub."""

    def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """Hand out what arrived together, as (channel, payload). Called in a greenlet, one call after the other."""

    def lost(self, channels: Sequence[str]) -> None:
        """Take note that nothing more comes from `channels` for now. Never waits."""

    def missed(self, channels: Sequence[str]) -> None:
        """Take note that `channels` are received again, and that messages may have been lost. Called in a greenlet."""

    def closed(self) -> None:
        """Take note that the subscriber was closed, and brings nothing any more. Called in a greenlet."""


class Subscriber(Protocol):
    """What a loop is subscribed to: one connection for all its clients."""

    def subscribe(self, channels: Sequence[str]) -> None:
        """Receive what is published to `channels`; returns when that is in force, or raises `BrokerError`."""

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """Receive it no more. Never waits and never raises."""

    def close(self) -> None:
        """End what it holds, and tell the listener. May be called twice; returns within a few seconds.

        A subscriber that holds nothing need not have it.
        """


class Receiver(Protocol):
    """What a thread without a loop receives from one channel; it blocks."""

    def receive(self, timeout: float) -> list[bytes]:
        """Return the payloads that come next, none if none came. Raises OSError, TimeoutError after so many seconds."""

    def close(self) -> None:
        """End it."""


class Broker(Protocol):
    """Carries messages; connects when it is first needed.

    It is made with what `WEBSOCKET_BROKER` says, as keyword arguments: `url`, where there is one, and those options
    that the class names in `OPTIONS`. What stood behind the `?` of the URL is an option, too, and a string. It raises
    ValueError for what it cannot use.
    """

    def publish(self, channel: str, payload: bytes) -> int | None:
        """Hand `payload` to the broker, once: returns when it was taken, else raises `BrokerError`.

        Returns how many subscribers it went to, of all processes; None if the broker does not know.

        For any thread or greenlet, in a process with gevent or without.
        """

    def subscriber(self, listener: Listener) -> Subscriber:
        """Return a subscriber for the running loop, in which it brings `listener` what it receives."""

    def close(self) -> None:
        """End every connection, those of its subscribers too, and make no other. Returns within a few seconds.

        Publishes that are under way succeed or raise `BrokerError`; later ones raise it. May be called twice, and from
        any thread or greenlet, but not from a callback of a loop. A child process closes nothing that the parent's
        connections carry. A broker that holds nothing need not have it.
        """


def broker_from(setting: str | Mapping[str, Any]) -> Broker:
    """Return the broker that `WEBSOCKET_BROKER`, a URL or a dict of options, asks for.

    Raises ValueError, which names the mistake, and the names that are known in the place of one that is not; it never
    repeats what could be a password.
    """
    options = {"url": setting} if isinstance(setting, str) else dict(setting)
    kind = _class(options)
    encrypted = "encryption_keys" in options
    keys = options.pop("encryption_keys", None)
    names = ["url", *getattr(kind, "OPTIONS", ())]
    unknown = [name for name in options if name not in names]
    if unknown:
        known = ", ".join(["class", "encryption_keys", *names])
        raise ValueError(f"WEBSOCKET_BROKER has the option {unknown[0]!r}. Those of its broker are {known}.")
    broker: Broker = kind(**options)
    if not encrypted:
        return broker
    try:
        from .encryption import EncryptedBroker
    except ModuleNotFoundError as error:
        raise ValueError(
            "WEBSOCKET_BROKER has encryption_keys, which need the library cryptography: "
            'pip install "django-gevent-websocket[encryption]"'
        ) from error
    return EncryptedBroker(broker, keys)


def _class(options: dict[str, Any]) -> Any:
    """Return the class of the broker, having taken its name and what stands behind the URL's `?` to the options."""
    path = options.pop("class", None)
    known = ", ".join(f"{name}://" for name in SCHEMES)
    if "url" in options:
        url = options["url"]
        match = URL.fullmatch(url) if isinstance(url, str) else None
        if match is None or "@" in f"{match[2]}{match[3]}":  # it may be a piece of a password that stands behind the @
            raise ValueError(
                f"WEBSOCKET_BROKER must be a URL such as redis://:password@localhost:6379/0, or a dict with one as its "
                f"url; the brokers are {known}. In a password, each of / ? # @ % has to be written in its "
                f"percent-encoded form; or give it in a dict, as the option password."
            )
        options["url"] = url.partition("?")[0]
        options.update({**dict(parse_qsl(match[3] or "", keep_blank_values=True)), **options})
        if path is None:
            path = SCHEMES.get(match[1].lower())
            if path is None:
                raise ValueError(
                    f"WEBSOCKET_BROKER is a URL that begins with {match[1]}://, but the brokers are {known}"
                )
    if path is None:
        raise ValueError(f"WEBSOCKET_BROKER is a dict without a url, which would name one of the brokers {known}")
    module, _, name = str(path).rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"The class of WEBSOCKET_BROKER, {path}, cannot be imported: {error}") from error


def to_wire(message: str | bytes) -> bytes:
    """Return `message` as brokers carry it: text as UTF-8, so that any program can take part, binary marked as such."""
    return message.encode() if isinstance(message, str) else BINARY + message


def from_wire(payload: bytes) -> str | bytes:
    """Return the message that `payload` is. Raises UnicodeDecodeError for what is neither text nor marked as binary."""
    return payload[1:] if payload[:1] == BINARY else payload.decode()

"""Publish/subscribe between everything that runs the project: views, tasks, commands, the shell.

    from django_websocket.pubsub import publish
    publish("news", "hello")        # to every client that is subscribed to "news", in every process

Delivery is at most once. The broker is the one that the setting `WEBSOCKET_BROKER` names.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from django_websocket.waiting import close_at_end

from .broker import Broker, broker_from, to_wire

if TYPE_CHECKING:
    from django_websocket.conf import Settings

    from .hub import Forwarding, Hub, Subscription

__all__ = ["publish", "subscribe"]

_brokers: dict[tuple[int, str], Broker] = {}  # by process, since a fork shares nothing, and by URL
_hubs: dict[tuple[int, str], Hub] = {}


def publish(channel: str, message: str | bytes) -> None:
    """Send `message`, text or bytes, to everybody who is subscribed to `channel`; return when the broker has taken it.

    Works in every kind of process, with gevent or without. Raises `BrokerError` if the broker cannot be reached: then
    the message is lost, or it was delivered once; it is never sent twice. Raises ValueError for a message larger than
    `WEBSOCKET_OUTBOX_SIZE`, which no client could be sent.
    """
    _check_channel(channel)
    if not isinstance(message, (str, bytes)):
        raise TypeError(f"A message is a str or bytes, not {type(message).__name__}")
    payload = to_wire(message)
    limit = _settings().limits.outbox_size
    if len(payload) > limit:
        raise ValueError(
            f"The message has {len(payload)} bytes, more than the {limit} of WEBSOCKET_OUTBOX_SIZE that may wait for a "
            f"client. Publish where it can be fetched instead, or raise the setting."
        )
    _broker().publish(channel, payload)


def subscribe(*channels: str) -> Subscription:
    """Subscribe the running view to `channels`; nothing that is published after this returns is missed.

    The subscription ends with `close()`, its `with` block or the view. Raises `BrokerError` if the broker cannot be
    reached.
    """
    from .hub import Subscription

    _check_channels(channels)
    subscription = Subscription(_hub(), channels, _settings().limits.outbox_size)
    close_at_end(subscription)
    return subscription


def forward(channels: Sequence[str], *, for_good: bool = False) -> Forwarding:
    """Have the hub keep what is published to `channels` for a client, to which it is attached then.

    See `WebSocket.subscribe` and, with `for_good`, `WebSocket.listen`.
    """
    from .hub import Forwarding

    _check_channels(channels)
    forwarding = Forwarding(_hub(), channels, _settings().limits.outbox_size)
    if not for_good:
        close_at_end(forwarding)
    return forwarding


def _check_channels(channels: Sequence[str]) -> None:
    if not channels:
        raise TypeError("Name at least one channel to subscribe to")
    for channel in channels:
        _check_channel(channel)


def _check_channel(channel: str) -> None:
    if not isinstance(channel, str) or not channel:
        raise TypeError(f"A channel's name is a str that is not empty, not {channel!r}")
    channel.encode()  # raises UnicodeEncodeError, a ValueError, for what no broker could carry


def _settings() -> Settings:
    from django_websocket import (
        conf,  # not before the project's settings are needed: the rest of this package knows no Django
    )

    return conf.current()


def _broker() -> Broker:
    key = os.getpid(), _settings().broker
    broker = _brokers.get(key)
    if broker is None:
        broker = _brokers[key] = broker_from(key[1])
    return broker


def _hub() -> Hub:
    from .hub import Hub

    key = os.getpid(), _settings().broker
    hub = _hubs.get(key)
    if hub is None:
        hub = _hubs[key] = Hub(_broker())
    return hub

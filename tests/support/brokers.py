"""The broker of the settings in the tests' own process: clients of it, and the check that no connection stays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.http import HttpResponse
from django.test import override_settings
from gevent.hub import get_hub

from django_websocket import conf, pubsub
from django_websocket.pubsub import publish, subscribe
from django_websocket.pubsub.forwarding import Forwarding
from django_websocket.pubsub.roster import PRESENT
from django_websocket.transport.connection import Connection
from django_websocket.websocket import WebSocket

from .waiting import until

CLOSE_WAIT = "08"  # the state of a connection that the other side has ended


@contextmanager
def in_use(setting: str | Mapping[str, Any], **settings: Any) -> Iterator[None]:
    """Set `WEBSOCKET_BROKER`, and afterwards close the broker, to which nobody may be subscribed by then."""
    with override_settings(WEBSOCKET_BROKER=setting, **settings):
        key = conf.current().broker_key
        try:
            yield
        finally:
            hubs = [hub for (_, of, loop), hub in pubsub.process.hubs.items() if (of, loop) == (key, get_hub())]
            if any(hub.presence is not None for hub in hubs):  # the broker is told of those who leave a moment later
                until(lambda: not any(name.startswith(PRESENT) for hub in hubs for name in hub.channels))
            subscribed = [list(hub.channels) for hub in hubs]
            pubsub.process.close_all(key)
            assert not any(subscribed), subscribed


def connections_to(port: int) -> list[str]:
    """Return the states of this process's connections to a local port, as the kernel numbers them."""
    own = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            own.add(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    with open("/proc/self/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return [row[3] for row in rows if row[2].endswith(f":{port:04X}") and f"socket:[{row[9]}]" in own]


def forward(connection: Connection, *channels: str, **options: Any) -> Forwarding:
    """Forward published messages to a client, as a view does."""
    return WebSocket({}, HttpResponse(), lambda subprotocol: connection).subscribe(*channels, **options)


def delivered() -> None:
    """Wait until all published messages have been delivered."""
    with subscribe("the end") as subscription:
        publish("the end", "")
        subscription.get(timeout=10)

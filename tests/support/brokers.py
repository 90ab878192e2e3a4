"""The broker of the settings in the tests' own process, and the check that none of its connections stays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.test import override_settings
from gevent.hub import get_hub

from django_websocket import conf, pubsub

CLOSE_WAIT = "08"  # the state of a connection that the other side has ended


@contextmanager
def in_use(setting: str | Mapping[str, Any], **settings: Any) -> Iterator[None]:
    """Set `WEBSOCKET_BROKER`, and afterwards close the broker, to which nobody may be subscribed by then."""
    with override_settings(WEBSOCKET_BROKER=setting, **settings):
        key = conf.current().broker_key
        try:
            yield
        finally:
            subscribed = [
                list(hub.channels)
                for (_, of, loop), hub in pubsub.process.hubs.items()
                if (of, loop) == (key, get_hub())
            ]
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

"""The brokers and hubs that are open in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from gevent.hub import Hub as Loop
from gevent.hub import get_hub

from .broker import Broker
from .closing import close
from .factory import broker_from

if TYPE_CHECKING:
    from django_websocket.conf import Settings

    from .hub import Hub

RECENT = 30.0  # seconds for which a failure tells how the broker is, if nobody has tried again

brokers: dict[tuple[int, str], Broker] = {}  # by process, since a fork shares nothing, and by setting
hubs: dict[tuple[int, str, Loop], Hub] = {}  # and by loop: each thread has its own


def current_settings() -> Settings:
    """Return the settings for publishing; those of a test keep to the process."""
    from django_websocket import conf  # here, since the rest of this package does not know Django

    return conf.for_publishing()


class NamesBroker(Protocol):
    """What names a broker: the settings, or others for it alone."""

    @property
    def broker(self) -> str | Mapping[str, Any]:
        """A value of `WEBSOCKET_BROKER`."""

    @property
    def broker_key(self) -> str:
        """A key that differs between brokers."""


def current_broker() -> Broker:
    """Return the broker that the settings name, made when it is first needed."""
    return broker_for(current_settings())


def broker_for(settings: NamesBroker) -> Broker:
    """Return the broker that `settings` name, made when it is first needed."""
    key = os.getpid(), settings.broker_key
    broker = brokers.get(key)
    if broker is None:
        broker = brokers.setdefault(key, broker_from(settings.broker))  # several threads may make one
    return broker


def current_hub() -> Hub:
    """Return the hub of the running loop, made when it is first needed."""
    settings = current_settings()
    hub = hub_for(settings)
    hub.rules = settings.rules
    return hub


def hub_for(settings: NamesBroker) -> Hub:
    """Return the hub of the running loop for the broker that `settings` name, made when it is first needed."""
    from .hub import Hub

    key = os.getpid(), settings.broker_key, get_hub()
    hub = hubs.get(key)
    if hub is None:
        for ended in [key for key in list(hubs) if key[2].loop is None]:
            del hubs[ended]
        hub = hubs[key] = Hub(broker_for(settings))
    return hub


def broker_state() -> str:
    """Return how this process and the broker are with each other, without asking it.

    "up" if the running loop receives what is published, "away" if it should and does not, "unused" if it need not.
    """
    hub = hubs.get((os.getpid(), current_settings().broker_key, get_hub()))
    if hub is None:
        return "unused"
    channels = tuple(hub.channels.values())
    if any(channel.away for channel in channels) or time.monotonic() - hub.failed_at < RECENT:
        return "away"
    return "up" if any(channel.joined is None for channel in channels) else "unused"


def close_hub(settings: NamesBroker) -> None:
    """Close the hub of the running loop for a broker, with its subscriptions and its connection."""
    hub = hubs.pop((os.getpid(), settings.broker_key, get_hub()), None)
    if hub is not None:
        hub.close()


def close_all(setting: str | None = None) -> None:
    """Close the brokers of this process and its hubs in all loops; their subscribers are told.

    Given a `setting`, the `broker_key` of settings, close only those that belong to it. A later publish or subscription
    connects anew. May be called from any thread or greenlet, but not from a callback of the loop. Brokers that were
    inherited from a parent process stay open.
    """
    pid = os.getpid()
    # Forget all of them before the first is closed, which may take a while: others get new ones meanwhile.
    ending = [brokers.pop(key) for key in list(brokers) if key[0] == pid and setting in (None, key[1])]
    for hub in [hubs.pop(key) for key in list(hubs) if key[0] == pid and setting in (None, key[1])]:
        if hub.here:
            hub.close()
        else:
            hub.end()
    for broker in ending:
        close(broker)

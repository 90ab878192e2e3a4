"""The broker of the settings in the tests' own process, and what must not stay of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from django.test import override_settings
from gevent.hub import get_hub

from django_websocket import conf, pubsub

from .wire import until


@contextmanager
def in_use(setting: str | Mapping[str, Any], **settings: Any) -> Iterator[None]:
    """Have `WEBSOCKET_BROKER` name a broker, and end its connections afterwards; nobody may be subscribed then."""
    with override_settings(WEBSOCKET_BROKER=setting, **settings):
        key = os.getpid(), conf.current().broker_key
        try:
            yield
        finally:
            hub = pubsub._hubs.pop((*key, get_hub()), None)
            broker = pubsub._brokers.pop(key, None)
            if hub is not None:
                assert hub._channels == {}
                until(lambda: ended(hub._subscriber))
            for pipeline in pipelines(broker):
                disconnect(pipeline)


def disconnect(pipeline: Any) -> None:
    """Close its connections, which the collector must not come upon, and let it make no other."""
    queues = list(pipeline._queues.values())
    until(lambda: not any(queue._running for queue in queues))
    for line in (*pipeline._lines, *(queue._line for queue in queues)):
        if line._link is not None:
            line._link.close()
    pipeline._queues.clear()
    pipeline._connect = refuse


def refuse(timeout: float) -> NoReturn:
    """Stand in for the broker that was in use, for a greenlet of it that comes late."""
    raise ConnectionError("the test is over")


def ended(subscriber: Any) -> bool:
    """End the connections of a subscriber, and say whether it has ended."""
    if hasattr(subscriber, "_subscribers"):  # of a cluster's nodes
        subscriber._look.set()
        return all(map(ended, subscriber._subscribers.values())) and not subscriber._following
    if getattr(subscriber, "_link", None) is not None:
        subscriber._link.hang_up()
    return not getattr(subscriber, "_running", False)


def pipelines(broker: Any) -> list[Any]:
    """What a broker publishes and asks through."""
    broker = getattr(broker, "_broker", broker)  # an encrypted one
    found = [node._pipeline for node in getattr(broker, "_nodes", {}).values()]
    return [*found, *getattr(broker, "_sentinels", ()), *filter(None, [getattr(broker, "_pipeline", None)])]

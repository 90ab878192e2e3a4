"""Telling the receivers of `websocket_disconnected` how a connection ended, and how many messages it carried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from django.db import connections
from django.http import HttpRequest

from django_websocket.signals import send, websocket_disconnected
from django_websocket.transport.connection import Connection
from django_websocket.transport.waiting import unfinished
from django_websocket.websocket import BaseWebSocket


class CountingConnection(Connection):
    """Counts messages, which takes time and so is done only for receivers of the signal."""

    __slots__ = ("received", "sent")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.received = 0
        self.sent = 0
        super().__init__(*args, **kwargs)

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """See `Connection.receive`."""
        message = super().receive(timeout)
        self.received += message is not None
        return message

    def __iter__(self) -> Iterator[str | bytes]:
        for message in super().__iter__():
            self.received += 1
            yield message

    def send(self, message: str | bytes) -> None:
        """See `Connection.send`."""
        super().send(message)
        self.sent += 1


def make_connection(
    view: Callable[..., Any], request: HttpRequest, websocket: BaseWebSocket, *args: Any, **kwargs: Any
) -> Connection:
    """Return a new connection; its end is told to the receivers of `websocket_disconnected`, if there are any."""
    if not websocket_disconnected.has_listeners(view):
        return Connection(*args, **kwargs)
    begin = time.monotonic()
    connection = CountingConnection(*args, **kwargs)

    def tell() -> None:
        try:
            send(
                websocket_disconnected,
                view,
                request=request,
                websocket=websocket,
                code=connection.close_code,
                reason=connection.close_reason,
                duration=time.monotonic() - begin,
                received=connection.received,
                sent=connection.sent,
            )
        finally:
            unfinished.discard(gevent.getcurrent())
            connections.close_all()

    def spawn() -> None:  # in the hub
        unfinished.add(gevent.spawn(tell))

    if connection.connected:
        connection.on_end.append(spawn)
    else:
        spawn()
    return connection

"""Telling the receivers of `websocket_disconnected` how a connection ended, and how many messages it carried."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
from django.db import connections
from django.http import HttpRequest

from django_websocket.signals import send, websocket_disconnected
from django_websocket.transport.connection import Connection
from django_websocket.transport.waiting import unfinished
from django_websocket.websocket import BaseWebSocket


def make_connection(
    view: Callable[..., Any], request: HttpRequest, websocket: BaseWebSocket, *args: Any, **kwargs: Any
) -> Connection:
    """Return a new connection; its end is told to the receivers of `websocket_disconnected`, if there are any."""
    if not websocket_disconnected.has_listeners(view):
        return Connection(*args, **kwargs)
    begin = time.monotonic()
    connection = Connection(*args, **kwargs)

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
                received=connection.taken,
                sent=connection.sent_by_view,
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

"""A new connection, and what is to be told and counted when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
from django.db import connections
from django.http import HttpRequest

from django_websocket.decorators import name_of
from django_websocket.protocol.frames import CloseCode
from django_websocket.signals import send, websocket_disconnected
from django_websocket.transport.connection import Connection
from django_websocket.transport.counts import NO_VIEW, counts
from django_websocket.transport.waiting import unfinished
from django_websocket.websocket import BaseWebSocket

CARRIED = ("received_messages", "sent_messages", "received_bytes", "sent_bytes")  # as `Connection.carried` has them
MAX_LABEL = 100  # characters of the name of a view
FIRST_FREE_CODE = 3000  # close codes from here on are the application's (RFC 6455, section 7.4.2)


def make_connection(
    view: Callable[..., Any], request: HttpRequest, websocket: BaseWebSocket, *args: Any, **kwargs: Any
) -> Connection:
    """Return a new connection; its end is counted, and told to the receivers of `websocket_disconnected`."""
    begin = time.monotonic()
    connection = Connection(*args, **kwargs)
    if counts.wanted:
        connection.call_on_end(Counted(connection, view, begin).ended)
    if websocket_disconnected.has_listeners(view):
        _tell_at_end(connection, view, request, websocket, begin)
    return connection


def label_of(view: Callable[..., Any]) -> str:
    """Return the name under which the connections of a view count; an ASGI application for all paths is one."""
    return name_of(getattr(view, "application", view))[:MAX_LABEL]


def count_handshake(view: Callable[..., Any] | None, status: int, seconds: float) -> None:
    """Count the answer to a handshake; `view` is None if there is no view for its path."""
    counts.add("handshakes", NO_VIEW if view is None else label_of(view), str(status))
    counts.observe("handshake_duration_seconds", seconds)


class Counted:
    """A connection that is counted: at once as open, and what it has carried when it has ended."""

    __slots__ = ("_begin", "_connection", "_label")

    def __init__(self, connection: Connection, view: Callable[..., Any], begin: float) -> None:
        self._connection = connection
        self._label = counts.opened(label_of(view))
        self._begin = begin

    def ended(self) -> None:
        """Count the end. Called in the hub."""
        connection = self._connection
        counts.closed(self._label)
        for name, number in zip(CARRIED, connection.carried, strict=True):
            counts.add(name, by=number)
        code = connection.close_code or CloseCode.ABNORMAL
        # A client could make up a thousand codes.
        known = code < FIRST_FREE_CODE or connection.closed_by != "client"
        counts.add("closes", str(int(code)) if known else f"{code // 1000}xxx", connection.closed_by)
        counts.observe("connection_duration_seconds", time.monotonic() - self._begin)


def _tell_at_end(
    connection: Connection, view: Callable[..., Any], request: HttpRequest, websocket: BaseWebSocket, begin: float
) -> None:
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

    connection.call_on_end(spawn)

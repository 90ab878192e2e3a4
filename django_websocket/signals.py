"""Signals about WebSockets: a client has come, a client has gone.

`sender` is the view, as it stands in the urlconf. Receivers run in a greenlet, where they may use the database; what
they raise is logged, and touches nobody.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from django.db import connections
from django.dispatch import Signal
from django.http import HttpRequest

from .transport.connection import Connection
from .transport.waiting import unfinished
from .websocket import WebSocket

__all__ = ["websocket_connected", "websocket_disconnected"]

logger = logging.getLogger("django_websocket")

websocket_connected = Signal()
"""The handshake was answered with 101. Arguments: `request`, `websocket`. Sent before the view goes on."""

websocket_disconnected = Signal()
"""The connection has ended, for whatever reason.

Arguments: `request`, `websocket`, `code` (a close code; 1006 if the client vanished), `reason`, `duration` (seconds
since the handshake), `received` and `sent` (messages that the view took, and that it sent itself).
"""


def send(signal: Signal, sender: object, **arguments: Any) -> None:
    """Send a signal. What a receiver raises, `sys.exit()` included, is logged and reaches nobody else."""
    try:
        signal.send_robust(sender, **arguments)
    except (Exception, SystemExit, KeyboardInterrupt):  # no timeout of gevent, which may be the view's
        logger.exception("A receiver of a signal ended with an error")


class CountingConnection(Connection):
    """Counts messages, which is worth its time only where somebody listens."""

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
    view: Callable[..., Any], request: HttpRequest, websocket: WebSocket, *args: Any, **kwargs: Any
) -> Connection:
    """Return a new connection, whose end is told to those who listen."""
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

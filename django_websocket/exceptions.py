"""What the package raises. Everything about a connection is a `WebSocketError`, gevent-websocket's own class."""

from __future__ import annotations

from .compat import naming

with naming("connections"):
    from geventwebsocket.exceptions import WebSocketError

__all__ = ["BrokerError", "ConnectionClosed", "HandshakeFailed", "MessagesMissed", "WebSocketError"]


class ConnectionClosed(WebSocketError):  # type: ignore[misc]
    """The connection is closed, so nothing can be sent. A view that lets it pass ends quietly.

    `code` is the close code (RFC 6455, section 7.4; 1006 where the peer vanished), `reason` its text.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(int(code), reason)
        self.code = int(code)
        self.reason = reason

    def __str__(self) -> str:
        return f"The WebSocket is closed ({self.code}{f' {self.reason!r}' if self.reason else ''})"


class HandshakeFailed(WebSocketError):  # type: ignore[misc]
    """The view accepted, but a middleware or an error answered the request otherwise, or it was too late."""


class BrokerError(Exception):
    """The broker that `WEBSOCKET_BROKER` names cannot be reached, or refused; the text says what to do."""


class MessagesMissed(Exception):
    """The broker was away for a while: messages may have been published that this subscription did not get.

    Raised once by `Subscription.get()`, which goes on with the next call.
    """

"""The errors of this package. Those about a connection are subclasses of gevent-websocket's `WebSocketError`."""

from __future__ import annotations

from .compat import naming

with naming("connections"):
    from geventwebsocket.exceptions import WebSocketError

__all__ = ["BrokerError", "ConnectionClosed", "HandshakeFailed", "MessagesMissed", "WebSocketError"]


class ConnectionClosed(WebSocketError):  # type: ignore[misc]
    """The connection is closed, so nothing can be sent. A view that does not catch it ends quietly.

    `code` is the close code (RFC 6455, section 7.4; 1006 if the peer vanished), `reason` its text.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(int(code), reason)
        self.code = int(code)
        self.reason = reason

    def __str__(self) -> str:
        return f"The WebSocket is closed ({self.code}{f' {self.reason!r}' if self.reason else ''})"


class HandshakeFailed(WebSocketError):  # type: ignore[misc]
    """The view accepted, but another response replaced the 101, or the time for the handshake had run out."""


class BrokerError(Exception):
    """The broker that `WEBSOCKET_BROKER` names cannot be reached, or has refused; the text says what to do."""


class MessagesMissed(Exception):
    """The broker was away for a while, and this subscription may have missed messages.

    `Subscription.get()` raises it once; the next call continues.
    """

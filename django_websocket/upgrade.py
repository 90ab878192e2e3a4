"""What passes between a server and the application while a request may become a WebSocket.

The server puts an `Upgrade` into the WSGI environment; whoever answers the request with 101 leaves there who is to have
the socket. What the application returns says nothing: others may have wrapped it on its way.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .connection import Connection

KEY = "django_websocket.upgrade"  # in the WSGI environment


class Taker(Protocol):
    """Who accepted the handshake and waits for the outcome. Exactly one of the two is called, once."""

    def opened(self, sock: socket.socket, early: bytes) -> Connection:
        """Take the socket: the 101 was sent. `early` is what the client sent behind its request."""

    def failed(self, reason: str) -> None:
        """Learn that there will be no connection, and why."""


class Upgrade:
    """The state of one request's upgrade.

    `taker` is set by the application when it accepts, `status` holds the status line that the response began with, and
    `write` is what WSGI's start_response returned: called with `b""` it sends the headers.
    """

    def __init__(self) -> None:
        self.taker: Taker | None = None
        self.status = ""
        self.write: Callable[[bytes], object] = lambda data: None

    @property
    def accepted(self) -> bool:
        """Whether the response is the 101 of the one who accepted."""
        return self.taker is not None and self.status.startswith("101 ")

    def watch(self, start_response: Callable[..., Any]) -> Callable[..., Any]:
        """Return a start_response that takes note of the status and passes everything on."""

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            self.status = status
            self.write = start_response(status, headers, *exc_info)
            return self.write

        return start

    def fail(self, reason: str) -> None:
        """Tell the one who accepted, if anybody did, that there will be no connection."""
        taker, self.taker = self.taker, None
        if taker is not None:
            taker.failed(reason)

    def open(self, sock: socket.socket, early: bytes) -> Connection:
        """Give the socket to the one who accepted, and return the connection."""
        taker, self.taker = self.taker, None
        assert taker is not None
        return taker.opened(sock, early)

"""The handover of a socket from the server to the application, while a request may become a WebSocket.

The server puts an `Upgrade` into the WSGI environment. Whatever accepts the handshake with 101 leaves there a `taker`,
which gets the socket. The object that the application returns is no sign: other software may have wrapped it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from django_websocket.protocol.handshake import TOKEN

if TYPE_CHECKING:
    from django_websocket.transport.connection import Connection

# In the WSGI environment, until the handshake is over.
KEY = "django_websocket.upgrade"
HANDSHAKE_KEY = "django_websocket.handshake"  # what the client asks for
VALUE = re.compile(r"[ \t\x21-\x7e\x80-\xff]*")  # of a header (RFC 9110, section 5.5)


def who(environ: Mapping[str, Any]) -> str:
    """Return the client of a request as the log names it: its address, and the path without the query string."""
    upgrade = environ.get(KEY)
    address = environ.get("REMOTE_ADDR") if upgrade is None else upgrade.address
    return f"{address or 'unix'} {environ.get('PATH_INFO', '')}"


class Unlogged(list[bytes]):
    """The body of an answer that the server's access log leaves out."""


def nobody() -> str:
    """Return the name of no user."""
    return ""


class Notes:
    """What the access log is to know of a handshake, noted by the application.

    `view` is its name. `request` returns the request as long as it exists, else None; `user` returns the name of its
    user if that has been loaded, else "".
    """

    __slots__ = ("request", "user", "view")

    def __init__(self) -> None:
        self.view = ""
        self.request: Callable[[], object] = nobody
        self.user: Callable[[], str] = nobody


class Taker(Protocol):
    """Accepted the handshake and waits for the outcome. Exactly one of the two methods is called, once."""

    def opened(self, sock: socket.socket, early: bytes, head: bytes) -> Connection:
        """Take the socket. `early` is what the client sent behind its request, `head` the 101, to be sent first."""

    def failed(self, reason: str) -> None:
        """Learn that there will be no connection, and why."""


class Upgrade:
    """The state of one request's upgrade.

    `taker` is set by the application when it accepts. `status` is the status line of the response, and `headers` are
    those of the 101. `address` is the client's, for the log. `answered` is true if the server sent the 101 before it
    called the application, so that no header of the response reaches the client; `speaks` then says whether it has
    chosen the package's subprotocol. `recognised` is set by an application that serves WebSockets. `notes` is None
    unless there is an access log.
    """

    def __init__(self, address: str = "", *, answered: bool = False) -> None:
        self.address = address
        self.answered = answered
        self.speaks = not answered
        self.recognised = False
        self.notes: Notes | None = None
        self.taker: Taker | None = None
        self.status = ""
        self.headers: list[tuple[str, str]] = []

    @property
    def accepted(self) -> bool:
        """Whether the response is the 101 that `taker` stands for."""
        return self.taker is not None and self.status.startswith("101 ")

    def watch(self, start_response: Callable[..., Any]) -> Callable[..., Any]:
        """Return a start_response that keeps the 101 back and passes everything else on."""

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            self.status = status
            if self.accepted:
                self.headers = headers
                return no_body
            return start_response(status, headers, *exc_info)

        return start

    def head(self) -> bytes:
        """Return the 101 as it is sent. Raises ValueError for a header that HTTP does not allow, as gunicorn does."""
        for name, value in self.headers:
            if not (TOKEN.fullmatch(name) and VALUE.fullmatch(value)):
                raise ValueError(
                    f"The header {name!r} of the 101 cannot be sent: its name is invalid, or its value has a line "
                    f"break, another control character, or a character that latin-1 does not have."
                )
        lines = [f"HTTP/1.1 {self.status}", *(f"{name}: {value}" for name, value in self.headers), "\r\n"]
        if not VALUE.fullmatch(self.status):
            raise ValueError(f"The status {self.status!r} has a character that HTTP does not allow")
        return "\r\n".join(lines).encode("latin-1")

    def fail(self, reason: str) -> None:
        """Tell the taker, if there is one, that there will be no connection."""
        taker, self.taker = self.taker, None
        if taker is not None:
            taker.failed(reason)

    def open(self, sock: socket.socket, early: bytes, head: bytes = b"") -> Connection:
        """Give the socket to the taker, with the 101 unless it was sent, and return the connection."""
        assert self.taker is not None
        connection = self.taker.opened(sock, early, head)
        self.taker = None
        return connection

    def begun(self, result: Iterable[bytes]) -> Iterable[bytes]:
        """Return a response whose status is known: a generator application calls start_response only when iterated."""
        return result if self.status else Begun(result)


def no_body(data: bytes) -> None:
    """Take the place of WSGI's function that writes a part of the body."""


def finish(result: Iterable[bytes]) -> None:
    """Iterate over the empty body of a 101 and close it, since an application may do its work meanwhile (PEP 3333)."""
    try:
        for _ in result:
            pass
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()


class Begun:
    """A response whose first part was fetched already (PEP 3333 lets an application begin only then)."""

    def __init__(self, result: Iterable[bytes]) -> None:
        self._result = result
        parts = iter(result)
        self._parts = chain((next(parts, b""),), parts)

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        """Close the response."""
        close = getattr(self._result, "close", None)
        if close is not None:
            close()

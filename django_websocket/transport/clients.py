"""The greenlet that serves a client's requests, until the client leaves or its socket is given to a WebSocket."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gevent import Greenlet, getcurrent

from .deadlines import Deadline
from .sockets import ClientSocket
from .waiting import untracked

if TYPE_CHECKING:
    PlainGreenlet = Greenlet[..., None]
else:
    PlainGreenlet = Greenlet  # gevent knows no type arguments


class ClientGreenlet(PlainGreenlet):
    """Serves one client, and holds what the parts of the server that serve it tell each other.

    `accepted` is the socket as it was accepted, and `client` the one in use, which is another one under TLS. `request`
    and `response` are gunicorn's for the request at hand. `deadline` ends the wait for a head. `waits_for_head` is true
    between requests, when the greenlet may be ended without loss. `serves_pages` is true once the client has asked for
    a page, `uses_databases` once the request has connected to a database, and `given_away` once the socket belongs to a
    WebSocket.
    """

    __slots__ = (
        "accepted",
        "client",
        "deadline",
        "given_away",
        "request",
        "response",
        "serves_pages",
        "uses_databases",
        "waits_for_head",
    )

    def __init__(self, serve: Callable[..., None], at: Any, client: ClientSocket, address: Any) -> None:
        with untracked:
            super().__init__(serve, at, client, address)
        self.accepted = client
        self.client: Any = client
        self.request: Any = None
        self.response: Any = None
        self.deadline: Deadline | None = None
        self.waits_for_head = True
        self.serves_pages = False
        self.uses_databases = False
        self.given_away = False

    def limit(self, seconds: float, error: BaseException) -> None:
        """Raise `error` in this greenlet, the running one, when `seconds` have passed, unless `unlimit` is called."""
        self.deadline = Deadline(seconds, error)

    def unlimit(self) -> None:
        """Let this greenlet take as long as it needs."""
        if self.deadline is not None:
            self.deadline.close()

    @property
    def works_for(self) -> tuple[str, str]:
        """See `culprits.Worker`."""
        address = self.args[2]
        return f"{address[0] if address else 'unix'} {getattr(self.request, 'path', '')}", "a page"

    def note_database(self) -> None:
        """Note that the request uses a database."""
        self.uses_databases = True


def current_client() -> ClientGreenlet:
    """Return the running greenlet, which serves a client."""
    current = getcurrent()
    assert isinstance(current, ClientGreenlet)
    return current

"""Taking a socket from a server that thinks of it as a request's, and closes it when the request is over."""

from __future__ import annotations

import _socket
import os
import ssl
from typing import Any


class TLSSocket:
    """A TLS socket that stays open when gunicorn closes it: the state of its encryption cannot be detached."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._hold = sock.makefile("rb", buffering=0)  # a socket closes when its files have
        self.fileno = sock.fileno
        self.recv_into = sock.recv_into
        self.send = sock.send
        self.pending = sock.pending
        self.setblocking = sock.setblocking
        self.shutdown = sock.shutdown
        self._sock = sock

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()
        self._hold.close()


def give_away(sock: Any) -> Any:
    """Return a socket that no longer depends on `sock`, which gunicorn and gevent close when their request is over."""
    if isinstance(sock, ssl.SSLSocket):
        return TLSSocket(sock)
    return _socket.socket(fileno=sock.detach())


def share(sock: Any) -> Any:
    """Return a socket for the same connection as `sock`, for while the owner of `sock` leaves it alone."""
    if isinstance(sock, ssl.SSLSocket):
        return TLSSocket(sock)
    return _socket.socket(sock.family, sock.type, sock.proto, fileno=os.dup(sock.fileno()))

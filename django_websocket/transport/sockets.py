"""A client's socket on its way from the HTTP server, which closes it after the request, to the WebSocket."""

from __future__ import annotations

import _socket
import errno
import os
import socket
import ssl
from contextlib import suppress
from typing import Any

import gevent.socket

GONE = _socket.socket()
GONE.close()


class ClientSocket:
    """A client's socket for gunicorn: the plain one of the system, until a call has to wait or needs more of gevent.

    The request of a handshake has usually arrived when it is read, and the WebSocket sends the answer. So most clients
    never need the two watchers of a gevent socket, and their WebSocket gets the plain socket as it is.
    """

    __slots__ = ("_sock",)

    def __init__(self, sock: _socket.socket) -> None:
        sock.setblocking(False)
        self._sock: _socket.socket | gevent.socket.socket = sock

    def cooperative(self) -> gevent.socket.socket:
        """Make the socket gevent's from now on, and return it. Raises OSError if it was closed or given away."""
        sock = self._sock
        if isinstance(sock, _socket.socket):
            fileno = sock.detach()
            if fileno < 0:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            sock = self._sock = gevent.socket.socket(sock.family, sock.type, sock.proto, fileno)
        return sock

    def give_away(self) -> _socket.socket:
        """Return the plain socket; `close` has no effect from now on."""
        sock, self._sock = self._sock, GONE
        if not isinstance(sock, _socket.socket):
            sock = _socket.socket(sock.family, sock.type, sock.proto, sock.detach())
            sock.setblocking(False)
        return sock

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive up to `size` bytes, and wait for them."""
        try:
            return self._sock.recv(size, flags)
        except BlockingIOError:
            return self.cooperative().recv(size, flags)

    def setblocking(self, flag: bool) -> None:
        """Choose whether calls wait, as they do from the beginning."""
        if not flag or not isinstance(self._sock, _socket.socket):
            self.cooperative().setblocking(flag)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket, unless it was given away."""
        if self._sock.fileno() >= 0:
            hang_up(self._sock)
            self._sock.close()

    def __getattr__(self, name: str) -> Any:
        """Let gevent's socket do everything else."""
        return getattr(self.cooperative(), name)


class TLSSocket:
    """A TLS socket that stays open when gunicorn closes its own: the state of the encryption cannot be detached."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._hold = sock.makefile("rb", buffering=0)  # a socket stays open until its files are closed
        self.fileno = sock.fileno
        self.recv_into = sock.recv_into
        self.send = sock.send
        self.pending = sock.pending
        self.setblocking = sock.setblocking
        self._sock = sock

    def shutdown(self, how: int) -> None:
        """Send the end of the stream, TLS's before TCP's. Does not wait for the client's."""
        hang_up(self._sock)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()
        self._hold.close()


def hang_up(sock: Any) -> None:
    """Send the end of the stream; closing the socket does not, while a child process has a copy."""
    if isinstance(sock, ssl.SSLSocket):
        with suppress(OSError, ValueError):
            sock.setblocking(False)
            sock.unwrap()  # sends close_notify (RFC 8446, section 6.1), and raises instead of waiting for the client's
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


def accept(listening: Any, kind: tuple[int, int, int]) -> tuple[ClientSocket, Any]:
    """Return a new client of a listening socket, with its address; `kind` is that socket's family, type and protocol.

    Raises OSError as accept(2) does.
    """
    fileno, address = listening._accept()
    return ClientSocket(_socket.socket(*kind, fileno)), address


def accept_publicly(listening: Any, kind: tuple[int, int, int]) -> tuple[ClientSocket, Any]:
    """Do what `accept` does by documented names alone, which costs one more socket object for each client."""
    sock, address = listening.accept()
    return ClientSocket(_socket.socket(*kind, sock.detach())), address


if not hasattr(socket.socket, "_accept"):
    accept = accept_publicly


def give_away(sock: Any) -> Any:
    """Return a socket that outlives `sock`, which gunicorn closes after the request."""
    return TLSSocket(sock) if isinstance(sock, ssl.SSLSocket) else sock.give_away()


def share(sock: Any) -> Any:
    """Return another socket for the connection of `sock`, to be used while the owner of `sock` does not use it."""
    if isinstance(sock, ssl.SSLSocket):
        return TLSSocket(sock)
    return _socket.socket(sock.family, sock.type, sock.proto, fileno=os.dup(sock.fileno()))

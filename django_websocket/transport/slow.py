"""What happens to slow clients: how long a head, a body and the taking of an answer may last, and how it ends."""

from __future__ import annotations

import errno
import socket
import ssl
import sys
from typing import Any

from gevent.socket import wait_read

from .clients import current_client
from .deadlines import TICK, Deadline, sweep_of_loop, ticks

BODY_PACE = 500  # bytes a second that the body of a page's request must bring, as Apache's mod_reqtimeout asks for


class ConnectionOver(StopIteration):
    """Leaves gunicorn's loop over the requests of a connection without an error: it ends by a StopIteration."""


class NoFurtherRequest(ConnectionOver):
    """The client sent no further request within `keepalive` seconds."""


class AnswerNotTaken(ConnectionOver):
    """The system ended the connection, because the client took nothing of what was sent to it."""


class WorkerStops(ConnectionOver):
    """The worker stops, and the client has not sent a request."""


class GivenAway(ConnectionOver):
    """The socket belongs to a WebSocket from here on."""


class SlowHead(BaseException):  # gunicorn would take an Exception for one of the application's
    """The head of a request, with the PROXY line and the TLS handshake before it, did not come in time."""

    def __str__(self) -> str:
        return "it did not come in time"


class SlowBody(BaseException):  # Django would answer an Exception as an error of the page
    """The body of a page's request comes too slowly, or not at all."""

    def __str__(self) -> str:
        return "it came too slowly"


class BodySocket:
    """A client's socket while a page reads the body of its request; raises `SlowBody` if too little comes.

    In each `timeout` seconds of waiting, `BODY_PACE` bytes a second must come. The time that the page takes between two
    reads does not count, nor does that for which the process is busy.
    """

    def __init__(self, sock: Any, timeout: float) -> None:
        self._sock = sock
        self._patience = ticks(timeout)
        self._enough = BODY_PACE * timeout
        self._waited = 0  # ticks, since enough came last
        self._came = 0  # bytes, since then

    def recv(self, size: int, *flags: int) -> bytes:
        """Receive, and wait for it as long as the client is given."""
        if self._waited >= self._patience:  # the page reads on after the error
            raise SlowBody
        sweep = sweep_of_loop()
        begin = sweep.now
        deadline = Deadline((self._patience - self._waited) * TICK, SlowBody())
        try:
            data: bytes = self._sock.recv(size, *flags)
        finally:
            deadline.close()
            self._waited += sweep.now - begin
        self._came += len(data)
        if self._came >= self._enough:
            self._waited = self._came = 0
        return data

    def __getattr__(self, name: str) -> Any:
        """Be the client's socket in everything else."""
        return getattr(self._sock, name)


class NextHead:
    """Limits the time for a further request on a connection: `keepalive` until it begins, `timeout` for its head.

    A context manager, which ends the connection quietly when no request begins.
    """

    def __init__(self, keepalive: float, timeout: float) -> None:
        self._keepalive = keepalive
        self._timeout = timeout

    def __enter__(self) -> None:
        current = current_client()
        current.waits_for_head = True
        client, unreader = current.client, current.request.unreader
        buffered = unreader.take_buffered()
        unreader.unread(buffered)
        if not buffered and not (isinstance(client, ssl.SSLSocket) and client.pending()):
            wait_read(client.fileno(), self._keepalive, NoFurtherRequest())
        current.limit(self._timeout, SlowHead())

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if was_given_up(error):
            raise AnswerNotTaken  # of the request before
        # The deadline goes on until the request is handled.


def give_up_after(seconds: float, sock: Any) -> None:
    """Have the system end a TCP connection whose peer takes nothing of what was sent for `seconds`; 0 is no limit.

    gunicorn waits without a limit until its answer is taken.
    """
    if sock.family != socket.AF_UNIX and sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * seconds))


def was_given_up(error: BaseException | None) -> bool:
    """Return whether `error` says that the system ended a connection whose peer took nothing."""
    return isinstance(error, TimeoutError) and error.errno == errno.ETIMEDOUT

"""Accepts clients: a greenlet for each while there is room, and a refusal when there is none."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gevent
from gevent import Greenlet
from gevent.hub import get_hub

from django_websocket.compat import naming

from .clients import ClientGreenlet, current_client
from .connection import WOULD_BLOCK
from .log import report
from .sockets import ClientSocket, accept

with naming("worker"):
    from gunicorn.util import close_graceful

RETRY_AFTER = 5  # seconds
PATIENCE = 1.0  # seconds that clients wait to be accepted while there is no room and no request ends
PAUSE = 0.2  # seconds until the next attempt when the system gives no more descriptors
TURNED_AWAY = 64  # clients, at most, that are being told at a time that there is no room
LINGER = 1.0  # seconds to read what a refused client still sends; without that, it might not see the answer
READ = 1  # libev's

BODY = b"Try again later.\n"
NO_ROOM = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: %d\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (RETRY_AFTER, len(BODY), BODY)
)

Serve = Callable[[Any, ClientSocket, Any], object]  # with the address of the listening socket, the client, its address


class Acceptor:
    """Accepts the clients of all listening sockets of a worker and runs `serve` in a greenlet for each.

    At most `limit` requests at once; open conversations do not count. Further clients wait in the backlog. If no
    request ends for `PATIENCE` seconds, they are answered with 503, or with `tls` closed at once. From each socket, up
    to `batch` clients are accepted in a turn of the loop.
    """

    def __init__(self, sockets: Sequence[socket.socket], serve: Serve, limit: int, batch: int, *, tls: bool) -> None:
        self._serve = serve
        self._limit = limit
        self._batch = batch
        self._tls = tls
        self._turning_away: set[Greenlet[..., Any]] = set()
        self._paused = False
        self._moved_at = time.monotonic()  # when a client was accepted or done last
        self._timer: Any = get_hub().loop.timer(PAUSE)
        self._watchers: list[tuple[Any, Callable[[], None]]] = []
        for sock in sockets:
            sock.setblocking(False)
            callback = partial(self._accept, sock, (sock.family, sock.type, sock.proto), sock.getsockname())
            self._watchers.append((get_hub().loop.io(sock.fileno(), READ), callback))
        self.serving: set[ClientGreenlet] = set()

    def start(self) -> None:
        """Accept clients from now on."""
        self._paused = False
        for watcher, callback in self._watchers:
            watcher.start(callback)

    def close(self) -> None:
        """Stop accepting for good. The sockets are not closed: other processes may listen at them too."""
        self._paused = False
        self._timer.close()
        for watcher, _ in self._watchers:
            watcher.stop()
            watcher.close()
        self._watchers.clear()

    def clients(self) -> list[Any]:
        """Return the sockets of the clients that are being served, or told that there is no room."""
        serving = [sock for greenlet in self.serving for sock in (greenlet.accepted, greenlet.client)]
        return [*serving, *(greenlet.args[0] for greenlet in self._turning_away)]

    def _pause(self, seconds: float) -> None:
        self._paused = True
        for watcher, _ in self._watchers:
            watcher.stop()
        self._timer.close()
        self._timer = get_hub().loop.timer(seconds)
        self._timer.start(self.start)

    # In the hub.
    def _accept(self, listening: socket.socket, kind: tuple[int, int, int], at: Any) -> None:
        for _ in range(self._batch):
            full = len(self.serving) >= self._limit
            if full:
                waited = time.monotonic() - self._moved_at
                if waited < PATIENCE:
                    self._pause(PATIENCE - waited)
                    return
            try:
                client, address = accept(listening, kind)
            except WOULD_BLOCK:
                return
            except ConnectionAbortedError:  # the client has left already
                continue
            except OSError as error:
                report("a client", None, "cannot be accepted", str(error))
                self._pause(PAUSE)
                return
            if full:
                self._turn_away(client, address)
            else:
                greenlet = ClientGreenlet(self._run, at, client, address)
                self.serving.add(greenlet)
                self._moved_at = time.monotonic()
                greenlet.start()

    def _run(self, at: Any, client: ClientSocket, address: Any) -> None:
        try:
            self._serve(at, client, address)
        finally:
            self.serving.discard(current_client())
            self._moved_at = time.monotonic()
            if self._paused:
                self._timer.stop()
                self.start()

    def _turn_away(self, client: ClientSocket, address: Any) -> None:
        report(address[0] if address else "unix", 503, "as many requests as worker_connections allows are in progress")
        if self._tls or len(self._turning_away) >= TURNED_AWAY:
            client.close()
            return
        greenlet = gevent.spawn(say_no_room, client)
        self._turning_away.add(greenlet)
        greenlet.link(self._turning_away.discard)


def say_no_room(client: ClientSocket) -> None:
    """Answer with 503, whatever the client asks for."""
    try:
        client.settimeout(LINGER)
        client.sendall(NO_ROOM)
    except OSError:
        client.close()
    else:
        close_graceful(client, LINGER)

"""Connections in this process, with control over each byte at the client's end."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import select
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any

import gevent
from gevent.hub import get_hub

from django_websocket.protocol.deflate import Agreement
from django_websocket.transport.connection import Connection
from django_websocket.transport.deadlines import sweep_of_loop
from django_websocket.transport.limits import Limits
from django_websocket.transport.rates import Rate
from django_websocket.transport.shared import open_connections
from django_websocket.transport.subprotocol import Greeting

from .frames import PING, Frame, close_frame, frame, parse
from .waiting import until


def descriptors() -> set[str]:
    """Return the open descriptors of this process, as "number -> target".

    Those of earlier tests may be closed at any time: see what a test leaves behind by `descriptors() - before`.
    """
    found = set()
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the directory itself
            found.add(f"{name} -> {os.readlink(f'/dev/fd/{name}')}")
    return found


class Peer:
    """A client on its end of a connected socket.

    `frames` has the whole frames that came, `rest` the bytes behind them; `ended` is true after the end of the stream,
    and `reset` if that was a reset. `pump()`, which the `until_...` methods call, brings them up to date.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.frames: list[Frame] = []
        self.rest = b""
        self.segments: list[bytes] = []  # the result of each recv
        self.ended = False
        self.reset = False

    # --- what it sends -------------------------------------------------------------------------------------------

    def text(self, *messages: str | bytes) -> None:
        """Send messages, all in one segment."""
        self.write(b"".join(map(frame, messages)))

    def ping(self, payload: bytes = b"") -> None:
        self.write(frame(payload, PING))

    def close_frame(self, code: int = 1000, reason: str = "") -> None:
        self.write(close_frame(code, reason))

    def write(self, data: bytes) -> None:
        """Send bytes, and wait whenever the kernel takes none."""
        view = memoryview(data)
        while view:
            view = view[until(functools.partial(self.offer, view)) :]

    def offer(self, data: bytes | memoryview) -> int:
        """Send as much as the kernel takes, and return the number of bytes."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def half_close(self) -> None:
        """Shut down this direction of the connection with a FIN."""
        self.sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Vanish, on TCP with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # --- what it receives ----------------------------------------------------------------------------------------

    def readable(self) -> bool:
        """Whether something has arrived that has not been read yet."""
        return bool(select.select([self.sock], [], [], 0)[0])

    def pump(self, limit: int = 1 << 20) -> bool:
        """Read what has arrived, at most `limit` bytes; return whether anything had, even if only the end."""
        if self.ended:
            return False
        try:
            data = self.sock.recv(limit)
        except BlockingIOError:
            return False
        except (ConnectionResetError, BrokenPipeError):
            self.reset = self.ended = True
            return True
        if not data:
            self.ended = True
            return True
        self.segments.append(data)
        frames, self.rest = parse(self.rest + data)
        self.frames += frames
        return True

    def until_frames(self, count: int) -> list[Frame]:
        """Wait until `count` frames have come in all, and return them."""
        until(lambda: self.pump() and len(self.frames) >= count or len(self.frames) >= count)
        return self.frames

    def until_end(self) -> list[Frame]:
        """Wait until the stream has ended, and return all frames."""
        until(lambda: self.pump() and self.ended or self.ended)
        return self.frames


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a TCP connection, the accepted one first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for sock in (server, client):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server, client


def unix_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets."""
    return socket.socketpair()


def packet_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that preserve boundaries: each `recv` returns the bytes of one `send`."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def own_clock() -> None:
    """Let time pass for this loop's deadlines by calls of `tick()` only, until the end of the test's `Pairs`."""
    sweep = sweep_of_loop()
    until(lambda: not sweep._looking)  # a tick that has begun would start the timer again
    sweep._timer.stop()


def tick() -> None:
    """Let half a second pass for all connections of this loop."""
    sweep = sweep_of_loop()
    sweep._on_tick()
    while sweep._due_now:  # what was put off, since the time of this turn is over
        sweep._look_at_due()


class Pairs:
    """Makes connections and their clients for one test, and checks at the end that nothing of them is left.

    A call returns a `Connection` and its client. The arguments are those of `Connection`; `sockets` makes the two
    sockets; `narrow` asks the kernel for the smallest buffers on the way to the client.
    """

    def __init__(self) -> None:
        self.made: list[tuple[Connection, Peer]] = []
        self.errors: list[tuple[Any, ...]] = []  # exceptions that reached the event loop

    def __call__(
        self,
        *,
        limits: Limits | None = None,
        early: bytes = b"",
        head: bytes = b"",
        discard: bool = False,
        narrow: bool = False,
        agreement: Agreement | None = None,
        greeting: Greeting | None = None,
        rate: Rate | None = None,
        sockets: Callable[[], tuple[socket.socket, socket.socket]] = unix_pair,
    ) -> tuple[Connection, Peer]:
        server, client = sockets()
        if narrow:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            # TCP with a window smaller than a segment waits for its timers
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 if client.family == socket.AF_UNIX else 1 << 17)
        peer = Peer(client)
        connection = Connection(
            server, early, head, limits, discard=discard, agreement=agreement, greeting=greeting, rate=rate
        )
        self.made.append((connection, peer))
        return connection, peer

    def __enter__(self) -> Pairs:
        gevent.sleep(0.001)  # the loop opens its own descriptors when it first runs
        gc.collect()
        gc.freeze()  # so that the collections below, and of the tests to come, look through what is new
        self._before = descriptors()
        self._others = set(open_connections())
        self._hub = get_hub()
        self._handle_error = self._hub.handle_error
        self._hub.handle_error = self._note_error  # type: ignore[method-assign, assignment]
        return self

    def _note_error(self, context: Any, kind: Any, value: Any, traceback: Any) -> None:
        if not isinstance(context, gevent.Greenlet):  # a test may let a greenlet fail
            self.errors.append((context, kind, value))
        self._handle_error(context, kind, value, traceback)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for made, peer in self.made:
                made.drop_input()  # with a full inbox it would not notice the end
                if made._throttle is not None:  # nor before the time of its client has come
                    made._throttle.release()
                peer.sock.close()
            until(lambda: not any(connection.connected for connection, _ in self.made))
            assert open_connections() == self._others, "a connection that has ended is still listed"
            assert not self.errors, f"raised in the event loop: {self.errors}"
            for made, _ in self.made:
                made.close_fileno()  # the end of a view would do this
            self.made.clear()
            gc.collect()
            left = descriptors() - self._before
            assert not left, f"still open: {left}"
        finally:
            self._hub.handle_error = self._handle_error  # type: ignore[method-assign]
            sweep = sweep_of_loop()
            sweep._timer.start(sweep._on_timer)  # it may have its own clock

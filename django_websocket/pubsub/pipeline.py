"""Sends the Redis commands of many greenlets or threads over one connection; simultaneous ones leave in one write.

redis-py only makes the connections. By itself it would use a connection for each command that is in progress.
"""

from __future__ import annotations

import _socket
import os
import socket
import ssl
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import gevent
import gevent.socket
import redis
import redis.connection
from gevent import monkey
from gevent.event import AsyncResult
from gevent.hub import Hub, get_hub
from gevent.socket import wait_read

from django_websocket.compat import verify

try:
    import hiredis
except ImportError:  # the extra "speed"
    hiredis = None  # type: ignore[assignment]

from .closing import InLoop, refuse

verify("redis")

BATCH_SIZE = 1024 * 1024  # bytes of commands in one write, which has at least one command
NOTHING_TO_READ = (BlockingIOError, ssl.SSLWantReadError)

Connect = Callable[[float], redis.Connection]  # takes the seconds in which to connect
if TYPE_CHECKING:
    Result = AsyncResult[Any]
else:
    Result = AsyncResult


def pack(*words: bytes) -> bytes:
    """Return a command in the protocol of Redis (RESP)."""
    return b"*%d\r\n%b" % (len(words), b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words]))


ASKING = pack(b"ASKING")


class Link:
    """A connection made by redis-py, read by hiredis if that is installed."""

    def __init__(self, connection: redis.Connection) -> None:
        self._connection = connection  # kept because it closes the socket when it is collected
        self._pid = os.getpid()
        self._sock: Any = connection._sock
        self._reader: Any = None
        if hiredis is not None:
            self._reader = hiredis.Reader(protocolError=redis.InvalidResponse, replyError=redis.ResponseError)

    @property
    def host(self) -> tuple[str, int]:
        """The name of the server's host, and its port."""
        return self._connection.host, self._connection.port

    def quiet(self) -> bool:
        """Whether nothing has arrived since the last reply, neither data nor the end of the connection."""
        self._sock.settimeout(0)
        try:
            self._sock.recv(1)
        except NOTHING_TO_READ:
            return True
        except OSError:
            return False
        return False

    def send(self, data: bytes, timeout: float | None) -> None:
        """Send commands. Raises OSError, including TimeoutError; some may have been sent then."""
        self._sock.settimeout(timeout)
        self._sock.sendall(data)

    def receive(self, timeout: float) -> list[Any]:
        """Wait for data, and return the replies that it completes: none in the middle of a long reply.

        An error reply is returned as an exception. Raises OSError, and TimeoutError after `timeout` seconds of silence.
        """
        self._sock.settimeout(timeout)
        if self._reader is None:
            try:
                return [self._connection.read_response(disconnect_on_error=False)]
            except redis.ResponseError as error:
                return [error.with_traceback(None)]  # the traceback would keep the connection alive
            except redis.TimeoutError as error:
                raise TimeoutError("timed out") from error
        data = self._sock.recv(65536)
        if not data:
            raise ConnectionError("Redis closed the connection")
        self._reader.feed(data)
        replies = []
        while (reply := self._reader.gets()) is not False:
            replies.append(reply)
        return replies

    def wait(self, timeout: float) -> None:
        """Let the running greenlet, and no more than that, wait for data. Raises TimeoutError after `timeout` seconds.

        Where gevent has not patched the socket, `receive` alone would block the loop.
        """
        if monkey.is_module_patched("socket"):
            return
        if self._reader is None:
            there = self._connection.can_read(0)
        else:
            there = isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0
        if not there:
            wait_read(self._sock.fileno(), timeout, TimeoutError("timed out"))

    def hang_up(self) -> None:
        """Shut the connection down, so that the greenlet that reads it wakes up. Does nothing in a child process."""
        if os.getpid() != self._pid:
            return
        # The socket's own method would, with TLS, destroy the state that the reader is using; and there may be no
        # descriptor left for a duplicate.
        with suppress(OSError):
            sock = _socket.socket(fileno=self._sock.fileno())
            try:
                sock.shutdown(socket.SHUT_RDWR)
            finally:
                sock.detach()

    def close(self) -> None:
        """Close the connection."""
        try:
            self._connection.disconnect()  # type: ignore[no-untyped-call]
        except ValueError:  # its loop ended with its thread, and gevent needs a loop to close a socket
            self._sock.hub = get_hub()
            self._sock.close()


class Call(Result):
    """A command with its result: the reply, or an exception."""

    def __init__(self, command: bytes, replies: int = 1) -> None:
        super().__init__()
        self.command = command
        self.replies = replies  # of which the last one counts
        self.given_up = False  # whether nobody waits for the reply any more


class Line:
    """A connection that is made when needed, and again after a failure."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._link: Link | None = None
        self.closed = False

    def open(self, deadline: float) -> None:
        """Connect if necessary; replace a connection that has ended before a command is sent on it and lost."""
        if self._link is not None and not self._link.quiet():
            self._link.close()
            self._link = None
        if self._link is None:
            self._link = Link(self._connect(remaining(deadline)))

    def exchange(self, calls: Sequence[Call], deadline: float) -> None:
        """Send the commands together, once, and give each call its reply, in order."""
        link, self._link = self._link, None
        assert link is not None
        try:
            link.send(b"".join([call.command for call in calls]), remaining(deadline))
            done = 0
            while done < len(calls):
                for reply in link.receive(remaining(deadline)):
                    call = calls[done]
                    call.replies -= 1
                    if not call.replies:
                        call.set(reply)
                        done += 1
        except BaseException:  # outstanding replies would be taken for those of later commands
            link.close()
            raise
        self._link = link

    def retire(self) -> None:
        """Make no new connection. The present one stays, since it may be in use."""
        self._connect = refuse

    def close(self) -> None:
        """Close the connection for good."""
        self.retire()
        link, self._link = self._link, None
        if link is not None:
            link.close()
        self.closed = True


class Lines:
    """A pool of lines. Each has one user at a time; any thread may close the pool.

    Two threads never get the same line, because `pop` removes it from the list in one step.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._made: list[Line] = []
        self.closed = False
        self.idle: list[Line] = []  # a user pops a line and puts it back

    def new(self) -> Line:
        """Return a new line, for a user who found none idle."""
        line = Line(self._connect)
        self._made.append(line)
        if self.closed:
            line.retire()
        return line

    def put_back(self, line: Line) -> None:
        """Return a line to the pool."""
        self.idle.append(line)
        if self.closed:
            self._close_idle()

    def close(self) -> None:
        """Close the idle lines now, and the others when they are put back. Never waits."""
        self.closed = True  # set first: `put_back` closes a line that comes back after the list was emptied
        for line in tuple(self._made):
            line.retire()
        self._close_idle()

    def _close_idle(self) -> None:
        taken = []
        with suppress(IndexError):
            while True:
                taken.append(self.idle.pop())
        for line in taken:
            line.close()
        self.idle += taken  # a closed line raises Closed for its next user

    @property
    def ended(self) -> bool:
        """Whether no connection is left after `close()`."""
        return all(line.closed for line in tuple(self._made))


class Queue:
    """The calls of a loop's greenlets, made on one line.

    They are made in a greenlet of its own, so that killing one caller does not affect the others.
    """

    def __init__(self, connect: Connect) -> None:
        self.lines = Lines(connect)
        self.lines.put_back(self.lines.new())
        self._calls: deque[Call] = deque()
        self._running = False  # whether that greenlet exists

    def make(self, call: Call, timeout: float) -> None:
        """Queue a call; return when it is done, or after `timeout` seconds."""
        self._calls.append(call)
        if not self._running:
            try:
                line = self.lines.idle.pop()
            except IndexError:  # another thread is closing it
                refuse(timeout)
            self._running = True
            gevent.spawn(self._run, line, timeout)  # starts after all greenlets that are ready now have queued theirs
        try:
            call.wait(timeout)
        finally:
            call.given_up = True

    def _run(self, line: Line, timeout: float) -> None:
        try:
            while self._calls:
                deadline = time.monotonic() + timeout
                calls: Sequence[Call] = self._calls
                try:
                    line.open(deadline)
                    calls = self._take()
                    line.exchange(calls, deadline)
                except Exception as error:
                    error.__traceback__ = None  # it refers to this frame, and that to the calls: a cycle
                    for call in tuple(calls):
                        if not call.ready():
                            call.set(error)
                    if calls is self._calls:
                        self._calls.clear()
        finally:
            self._running = False
            self.lines.put_back(line)

    def _take(self) -> Sequence[Call]:
        """Take calls from the queue, as many as belong in one write."""
        calls: list[Call] = []
        size = 0
        while self._calls and size < BATCH_SIZE:
            call = self._calls.popleft()
            if not call.given_up:
                calls.append(call)
                size += len(call.command)
        return calls


class Pipeline:
    """Makes calls for any greenlet or thread, with gevent or without."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._queues: weakref.WeakKeyDictionary[Hub, Queue] = weakref.WeakKeyDictionary()
        self._lines = Lines(connect)  # for threads without a loop
        self._closed = False
        self._ending: list[Lines] = []

    def call(self, timeout: float, *words: bytes, asking: bool = False) -> Any:
        """Send a command once, and return its reply within `timeout` seconds.

        With `asking`, ASKING goes before it, by which a node of a Cluster takes it for a slot that it is to take over.

        Raises OSError or RedisError; Redis may or may not have carried out the command then.
        """
        call = Call(ASKING + pack(*words), 2) if asking else Call(pack(*words))
        if redis.connection.socket.socket is gevent.socket.socket:  # type: ignore[attr-defined]
            self._queue().make(call, timeout)
        else:
            self._make(call, timeout)
        reply = call.value if call.ready() else TimeoutError()
        if isinstance(reply, TimeoutError):
            raise TimeoutError(f"no reply within {timeout:.2g} seconds") from None
        try:
            if isinstance(reply, Exception):
                raise reply
            return reply
        finally:
            del call, reply  # the exception's traceback would refer to them, and they to the exception

    def _queue(self) -> Queue:
        hub = get_hub()
        queue = self._queues.get(hub)
        if queue is None:
            queue = self._queues[hub] = Queue(self._connect)
            if self._closed:
                queue.lines.close()
        return queue

    def _make(self, call: Call, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        try:
            line = self._lines.idle.pop()
        except IndexError:
            line = self._lines.new()
        try:
            line.open(deadline)
            line.exchange([call], deadline)
        except Exception as error:
            error.__traceback__ = None
            call.set(error)
        finally:
            self._lines.put_back(line)

    def close(self) -> None:
        """Refuse calls from now on, and close each connection as soon as it is idle. Never waits."""
        self._closed = True
        queues, self._queues = self._queues, weakref.WeakKeyDictionary()  # later calls find no open queue
        # keyrefs() lists the loops in one step, even if other threads add some meanwhile.
        hubs = [hub for ref in queues.keyrefs() if (hub := ref()) is not None]
        self._ending += [queues[hub].lines for hub in hubs]
        for lines in (self._lines, *self._ending):
            lines.close()

    @property
    def ended(self) -> bool:
        """Whether no connection is left after `close()`."""
        return self._lines.ended and all(lines.ended for lines in self._ending)


class Ending(Protocol):
    """Something that is being closed."""

    @property
    def ended(self) -> bool:
        """Whether that is done."""


def wait_until_ended(parts: Sequence[Ending], timeout: float) -> None:
    """Wait until all have ended, for at most `timeout` seconds.

    This polls, because they end in several threads, with loops and without, which have no common event. The loop of the
    running thread goes on meanwhile if it has one, whether or not gevent has patched the process.
    """
    deadline = time.monotonic() + timeout
    cooperative = redis.connection.socket.socket is gevent.socket.socket  # type: ignore[attr-defined]
    here = any(isinstance(part, InLoop) and part.here for part in parts)
    pause = gevent.sleep if cooperative or here else time.sleep
    while not all(part.ended for part in parts) and time.monotonic() < deadline:
        pause(0.005)


def remaining(deadline: float) -> float:
    """Return the seconds until a deadline. Raises TimeoutError when it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds

"""Commands for Redis from many greenlets, or threads: what is asked at once leaves in one write, in one connection.

redis-py makes the connections, and would send and read one command after the other, each on a connection of its own.
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
from gevent.event import AsyncResult
from gevent.hub import Hub, get_hub

from django_websocket.compat import verify

try:
    import hiredis
except ImportError:  # the extra "speed"
    hiredis = None  # type: ignore[assignment]

from .closing import refuse

verify("redis")

BATCH_SIZE = 1024 * 1024  # bytes of commands that are sent in one write, or one command
NOTHING_TO_READ = (BlockingIOError, ssl.SSLWantReadError)

Connect = Callable[[float], redis.Connection]  # within so many seconds
if TYPE_CHECKING:
    Result = AsyncResult[Any]
else:
    Result = AsyncResult


def pack(*words: bytes) -> bytes:
    """Return a command as Redis reads it."""
    return b"*%d\r\n%b" % (len(words), b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words]))


class Link:
    """A connection that redis-py has made; hiredis reads it where it is installed."""

    def __init__(self, connection: redis.Connection) -> None:
        self._connection = connection  # which closes the socket when it goes
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
        """Whether nothing has come since the last reply: not the end of the connection either."""
        self._sock.settimeout(0)
        try:
            self._sock.recv(1)
        except NOTHING_TO_READ:
            return True
        except OSError:
            return False
        return False

    def send(self, data: bytes, timeout: float | None) -> None:
        """Send commands. Raises OSError, TimeoutError for one, after which some may have been sent."""
        self._sock.settimeout(timeout)
        self._sock.sendall(data)

    def receive(self, timeout: float) -> list[Any]:
        """Wait for something to come, and return the replies that it completed: none, if a long one goes on.

        One that is an error is an exception among them.

        Raises OSError, or TimeoutError after `timeout` seconds of silence.
        """
        self._sock.settimeout(timeout)
        if self._reader is None:
            try:
                return [self._connection.read_response(disconnect_on_error=False)]
            except redis.ResponseError as error:
                return [error.with_traceback(None)]  # which would keep the connection for as long as the error is kept
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

    def hang_up(self) -> None:
        """Have whoever waits for a reply find that the connection has ended. A child process leaves it alone."""
        if os.getpid() != self._pid:
            return
        # Not by its own method: with TLS, that would take away what the other one is in the middle of. Nor by a copy of
        # the descriptor: there may be none left.
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
        except ValueError:  # the loop ended with its thread, and gevent needs a loop to close a socket
            self._sock.hub = get_hub()
            self._sock.close()


class Call(Result):
    """A command, and the place for its reply, or for the exception that came instead."""

    def __init__(self, command: bytes) -> None:
        super().__init__()
        self.command = command
        self.given_up = False  # nobody waits for the reply any more


class Line:
    """A connection that is made when it is needed, and anew when it has failed."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._link: Link | None = None
        self.closed = False

    def open(self, deadline: float) -> None:
        """See to it that there is a connection. One that ended in silence is replaced before anything is lost."""
        if self._link is not None and not self._link.quiet():
            self._link.close()
            self._link = None
        if self._link is None:
            self._link = Link(self._connect(remaining(deadline)))

    def exchange(self, calls: Sequence[Call], deadline: float) -> None:
        """Send the commands together, once, and give each call its reply, in their order."""
        link, self._link = self._link, None
        assert link is not None
        try:
            link.send(b"".join([call.command for call in calls]), remaining(deadline))
            done = 0
            while done < len(calls):
                for reply in link.receive(remaining(deadline)):
                    calls[done].set(reply)
                    done += 1
        except BaseException:  # whoever interrupts this leaves replies behind that nobody could tell from others
            link.close()
            raise
        self._link = link

    def retire(self) -> None:
        """Make no other connection. The present one stays, since somebody may be using it."""
        self._connect = refuse

    def close(self) -> None:
        """End the connection, and make no other."""
        self.retire()
        link, self._link = self._link, None
        if link is not None:
            link.close()
        self.closed = True


class Lines:
    """Lines that have one user at a time, and that any thread may close.

    Two threads never get the same line, because `pop` takes it out of the list in one step.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._made: list[Line] = []
        self.closed = False
        self.idle: list[Line] = []  # whoever uses a line pops it, and puts it back

    def new(self) -> Line:
        """Return a line for somebody who has found none idle."""
        line = Line(self._connect)
        self._made.append(line)
        if self.closed:
            line.retire()
        return line

    def put_back(self, line: Line) -> None:
        """Let others have the line."""
        self.idle.append(line)
        if self.closed:
            self._close_idle()

    def close(self) -> None:
        """Close the lines that nobody uses, and the others when they are put back. Never waits."""
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
        self.idle += taken  # a closed line tells its next user so

    @property
    def ended(self) -> bool:
        """Whether no connection is left, once they have been closed."""
        return all(line.closed for line in tuple(self._made))


class Queue:
    """The calls of a loop's greenlets, on one line.

    A greenlet of its own makes them: whoever is interrupted while waiting for a reply takes nobody else's along.
    """

    def __init__(self, connect: Connect) -> None:
        self.lines = Lines(connect)
        self.lines.put_back(self.lines.new())
        self._calls: deque[Call] = deque()
        self._running = False  # whether a greenlet makes calls

    def make(self, call: Call, timeout: float) -> None:
        """Have a call made, and return when it is done, or after `timeout` seconds."""
        self._calls.append(call)
        if not self._running:
            try:
                line = self.lines.idle.pop()
            except IndexError:  # another thread closes it at this moment
                refuse(timeout)
            self._running = True
            gevent.spawn(self._run, line, timeout)  # when it runs, all who want something now have said so
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
                    error.__traceback__ = None  # it knows this frame, which knows the calls
                    for call in tuple(calls):
                        if not call.ready():
                            call.set(error)
                    if calls is self._calls:
                        self._calls.clear()
        finally:
            self._running = False
            self.lines.put_back(line)

    def _take(self) -> Sequence[Call]:
        """Take what waits, as much as one write should have."""
        calls: list[Call] = []
        size = 0
        while self._calls and size < BATCH_SIZE:
            call = self._calls.popleft()
            if not call.given_up:
                calls.append(call)
                size += len(call.command)
        return calls


class Pipeline:
    """Takes commands from any greenlet or thread, with gevent or without."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._queues: weakref.WeakKeyDictionary[Hub, Queue] = weakref.WeakKeyDictionary()
        self._lines = Lines(connect)  # of threads without a loop
        self._closed = False
        self._ending: list[Lines] = []

    def call(self, timeout: float, *words: bytes) -> Any:
        """Send a command once, and return its reply within `timeout` seconds.

        Raises OSError or RedisError, after which the command may have been carried out, or not.
        """
        call = Call(pack(*words))
        if redis.connection.socket.socket is gevent.socket.socket:  # type: ignore[attr-defined]
            self._queue().make(call, timeout)
        else:
            self._make(call, timeout)
        reply = call.value if call.ready() else TimeoutError()
        if isinstance(reply, TimeoutError):
            raise TimeoutError(f"no reply within {timeout} seconds") from None
        try:
            if isinstance(reply, Exception):
                raise reply
            return reply
        finally:
            del call, reply  # which the exception's traceback would keep, and they the exception

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
        """Refuse calls from now on, and end the connections, each as soon as nobody uses it. Never waits."""
        self._closed = True
        queues, self._queues = self._queues, weakref.WeakKeyDictionary()  # later calls find none of these queues
        # keyrefs() lists the loops in one step, whatever other threads add.
        hubs = [hub for ref in queues.keyrefs() if (hub := ref()) is not None]
        self._ending += [queues[hub].lines for hub in hubs]
        for lines in (self._lines, *self._ending):
            lines.close()

    @property
    def ended(self) -> bool:
        """Whether no connection is left, once it has been closed."""
        return self._lines.ended and all(lines.ended for lines in self._ending)


class Ending(Protocol):
    """Something that has been told to end."""

    @property
    def ended(self) -> bool:
        """Whether it has."""


def wait_until_ended(parts: Sequence[Ending], timeout: float) -> None:
    """Wait until all have ended, for at most `timeout` seconds.

    They end in several threads, with loops and without, for which there is no common event.
    """
    deadline = time.monotonic() + timeout
    cooperative = redis.connection.socket.socket is gevent.socket.socket  # type: ignore[attr-defined]
    pause = gevent.sleep if cooperative else time.sleep
    while not all(part.ended for part in parts) and time.monotonic() < deadline:
        pause(0.005)


def remaining(deadline: float) -> float:
    """Return the seconds until a deadline. Raises TimeoutError when it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds

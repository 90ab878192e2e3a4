"""One upgraded socket, driven by the hub: what the client sends goes to its inbox, what it is sent leaves its outbox.

A byte comes in at `_on_readable`, a callback of the event loop, and leaves at `_flush`. Greenlets run user code only:
they take messages with `receive()`, add some with `send()`, and are switched to when there is something to take.
Nothing that the loop calls here blocks, raises, or runs user code.
"""

from __future__ import annotations

import logging
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gevent.event import Event as GreenletEvent
from gevent.hub import get_hub

from django_websocket.exceptions import ConnectionClosed
from django_websocket.protocol.deflate import Agreement
from django_websocket.protocol.engine import (
    MAX_MESSAGE_SIZE,
    MAX_QUEUED_BYTES,
    MAX_QUEUED_MESSAGES,
    Close,
    Engine,
    Event,
    Failure,
    Ping,
    Pong,
    Role,
)
from django_websocket.protocol.frames import CloseCode, Opcode, check_close, encode_message

from .log import report
from .outbox import Outbox, Source
from .sweep import TICK, Deadline, sweep_of_loop, ticks
from .turns import let_others_run, let_others_run_if_spent
from .waiting import Readable, wait

MAX_FRAMES = 250  # that are parsed before the time is looked at; with their pongs, about a millisecond
SHORT = 125  # bytes; what is read with so few is no great work, however it is compressed
CROWD = 4  # what has yet to get its turn of the loop when answers are held back for it
LONG = 1024  # characters or bytes; a view that sends more at once is asked for its time
MAX_HELD = 16 * 1024  # bytes that wait to leave with others; joining more saves little
MAX_PONGS = 64  # for pings that came with one read; the newest of more (section 5.5.3)
# Once in so many seconds it is judged whether so many bytes a second have come of a message that has begun: else a
# client could fill a mebibyte of memory and leave it there. That much takes two minutes over the slowest of mobile
# networks, and may take half an hour; half a minute without a network is forgiven.
MESSAGE_PACE = 500
MESSAGE_TIME = 30.0
NOTHING_BEGUN = (0, 0, 0)
PING_PAYLOAD = struct.Struct("!d")  # when it was sent, so that its pong tells the latency
NEVER_USED = Outbox()  # for most: one has almost a KiB
READ, WRITE = 1, 2  # libev's

# BlockingIOError and, under TLS, its two siblings, which are no relatives of it.
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(frozen=True)
class Limits:
    """What one connection may use. Sizes are in bytes, times in seconds; `conf.py` says what each is for.

    These are the defaults of the settings, too.
    """

    max_message_size: int = MAX_MESSAGE_SIZE
    inbox_messages: int = MAX_QUEUED_MESSAGES
    inbox_size: int = MAX_QUEUED_BYTES
    outbox_size: int = 1024 * 1024
    send_buffer_size: int = 64 * 1024
    send_timeout: float = 20.0
    ping_interval: float = 20.0
    ping_timeout: float = 20.0
    close_timeout: float = 5.0


class TakesNothing(BaseException):  # no Exception: a view that waits elsewhere would take it for its own
    """The client has taken nothing of what the view sends, for as long as it may."""


class Connection(Readable):
    """An open WebSocket on `sock`, a connected socket that from now on belongs to the connection.

    `early` is what was received behind the handshake, `head` what is sent before all else. With `discard`, what the
    client sends is read and dropped. `agreement` is what was agreed on about compression, None for none. `who` names
    the client in the log.

    `inbox` holds the messages that wait to be received. `ended` is true when none will follow: the client closed, broke
    the protocol or vanished, or this end closed. `close_code` and `close_reason` then say why.
    """

    __slots__ = (
        "_answer",
        "_blocked",
        "_closing",
        "_deadline",
        "_drained",
        "_engine",
        "_going_on",
        "_heard",
        "_held",
        "_outbox",
        "_part",
        "_pending",
        "_ping_tick",
        "_ping_time",
        "_plain_below",
        "_reader",
        "_refills",
        "_sock",
        "_sweep",
        "_waiting",
        "_writer",
        "agreement",
        "before_taking",
        "close_code",
        "close_reason",
        "discard",
        "due",
        "ended",
        "id",
        "inbox",
        "latency",
        "limits",
        "on_end",
        "who",
    )

    def __init__(
        self,
        sock: socket.socket,
        early: bytes = b"",
        head: bytes = b"",
        limits: Limits | None = None,
        *,
        discard: bool = False,
        agreement: Agreement | None = None,
        who: str = "",
    ) -> None:
        super().__init__()
        self.who = who
        self.id = ""  # by which other processes may name it, once somebody has asked for it
        self.limits = limits = limits or Limits()
        self._sweep = sweep = sweep_of_loop()
        self._engine = Engine(
            Role.SERVER,
            max_message_size=limits.max_message_size,
            max_queued_messages=limits.inbox_messages,
            max_queued_bytes=limits.inbox_size,
            max_frames=MAX_FRAMES,
            agreement=agreement,
            allowance=sweep.encoder.allowance,
        )
        self.inbox = self._engine.messages
        self.discard = discard
        self.agreement = agreement
        self._plain_below = sys.maxsize if agreement is None else agreement.plain_below
        self.before_taking: Callable[[], None] | None = None  # called when a message is asked for; it may raise
        self.ended = False
        self.close_code: int | None = None
        self.close_reason = ""
        self.on_end: list[Callable[[], None]] = []  # called in the hub when the socket is closed
        self._sock: socket.socket | None = sock
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)  # TLS has it
        self._held = head  # and frames that the kernel was not given yet; it would take some, and nothing else waits
        self._outbox = NEVER_USED  # until the kernel does not take something
        self._blocked = False  # the kernel takes no more; the write watcher runs. Else the outbox is empty
        self._going_on = False  # whether the loop will call `_go_on`
        self._refills = 0  # of the inbox
        self._drained: GreenletEvent | None = None  # set when the outbox is small enough for the view to go on
        self._closing = False  # our close frame is in the outbox, or on its way
        self._answer: Close | Failure | None = None  # what the client's end is answered with, once the inbox is empty
        self._heard = sweep.now  # the tick at which the last byte came
        self._ping_tick = -1  # at which the last ping was sent
        self._ping_time = 0.0  # and the time, in seconds of `time.perf_counter`; 0 when it was answered
        self.latency: float | None = None
        self._waiting = (0, 0)  # how far the view had come, while reading pauses, when this was looked at last
        self._part = NOTHING_BEGUN  # the message that had begun when this was looked at: number, bytes, and the tick
        self._deadline = 0  # the tick at which the socket is closed without further ado; 0 is none
        self.due = 0
        sock.setblocking(False)
        loop = get_hub().loop
        self._reader: Any = loop.io(sock.fileno(), READ)
        self._reader.start(self._on_readable)  # once, for good
        self._writer: Any = None
        sweep.connections.add(self)
        sweep.look_at(self, sweep.now + ticks(min(limits.ping_interval, MESSAGE_TIME)))
        if head:  # those of clients that came together leave together, like answers
            sweep.flush_later(self)
            if sweep.overdue:
                sweep.flush()
        if early:
            self._take(early)
        self._read_pending()

    # --- what comes in -------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        engine = self._engine
        if engine.paused:
            self._reader.stop()  # from here TCP holds the client back
            return
        sock = self._sock
        if sock is None:
            return
        sweep = self._sweep
        buffer = sweep.buffer
        try:
            size = sock.recv_into(buffer)
        except WOULD_BLOCK:
            return
        except OSError:
            self._terminate(CloseCode.ABNORMAL)
            return
        if not size:
            self.flush()  # who half-closes still gets it
            if self._answer is not None and (self._outbox or not self._closing):
                self._reader.stop()  # the client half-closed behind its close frame, and waits for ours
            else:
                self._terminate(CloseCode.ABNORMAL)
            return
        self._heard = sweep.now
        if size > SHORT and sweep.turns.spent():
            engine.keep(buffer[:size].tobytes())
            self._go_on_later()
            return
        # Without a name for the bytes: the memory is free, and still in the cache, when the view makes its answer.
        events = engine.receive(buffer[:size].tobytes())
        if events or engine.paused or self.discard or self._signal is not None:
            self._handle(events)
        if self._waiter is not None and (self.inbox or self.ended):
            sweep.reading = True
            self._waiter.switch()  # straight into the view, without a round of the loop
            sweep.reading = False
            if sweep.overdue:
                sweep.flush()
        if self._pending is not None:
            self._read_pending()

    def _read_pending(self) -> None:
        """Go on reading where TLS holds bytes of which the kernel knows nothing any more."""
        if self._pending is not None and self._sock is not None and self._pending():
            get_hub().loop.run_callback(self._on_readable)

    def _take(self, data: bytes) -> None:
        """Parse `data`, or what was left of earlier data, and let the one who waits have the messages."""
        self._handle(self._engine.receive(data))
        if self._waiter is not None and (self.inbox or self.ended):
            self._waiter.switch()

    def _handle(self, events: Sequence[Event], *, busy: bool = False) -> None:
        """Do what asks for more than putting messages into the inbox; `busy` if the view is about to handle one."""
        self._on_events(events, busy)
        engine = self._engine
        full = engine.paused and engine.full
        if self.inbox and self.discard:
            engine.dropping = True  # a few hundred bytes may inflate to a message of the largest size
            self.inbox.clear()
            turns = self._sweep.turns
            while full and not turns.spent():
                self._on_events(engine.receive(b""), busy)
                full = engine.paused and engine.full
                self.inbox.clear()
            full = False
        if engine.paused and not full:
            self._go_on_later()
        if self._signal is not None:
            self._signal.set(self.ready())

    def _on_events(self, events: Sequence[Event], busy: bool) -> None:
        pings = []
        for event in events:
            if isinstance(event, Ping):
                pings.append(event.payload)
            elif self._ping_time and isinstance(event, Pong) and event.payload == PING_PAYLOAD.pack(self._ping_time):
                self.latency = time.perf_counter() - self._ping_time
                self._ping_time = 0.0
        if pings:
            self._send_pongs(pings)
        if events and isinstance(events[-1], (Close, Failure)):  # nothing follows it
            self._on_end_of_client(events[-1], busy)

    def _on_end_of_client(self, event: Close | Failure, busy: bool) -> None:
        self._answer = event
        self.ended = True
        if self.close_code is None:
            self.close_code, self.close_reason = int(event.code), event.reason
            if isinstance(event, Failure):
                report(self.who, event.code, event.reason)
        if self._closing:
            self._finish()
        elif not (self.inbox or busy) or self.discard:
            self._answer_end()
        else:  # the view may still answer the messages that came before
            self._set_deadline()

    def _go_on_later(self) -> None:
        """Go on in a later turn of the loop, when it is this connection's."""
        if not self._going_on:
            self._going_on = True
            self._sweep.turns.postpone(self._go_on)

    def _go_on(self) -> None:
        """Go on with what was received and not parsed, now that others had their turn, or that messages are dropped."""
        self._going_on = False
        if self._engine.paused and self._sock is not None:
            self._take(b"")
            self._read_on()

    def _read_on(self) -> None:
        if self._sock is not None and not self._engine.paused:
            self._heard = self._sweep.now
            self._reader.start(self._on_readable)
            self._read_pending()

    # --- for the view --------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether `receive()` would return at once."""
        return bool(self.inbox) or self.ended

    @property
    def open(self) -> bool:
        """Whether the socket is still there; it may be for a while after the end."""
        return self._sock is not None

    @property
    def closed(self) -> bool:
        """Whether there is nothing more to receive."""
        return self.ended and not self.inbox

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Return the next message, or None when there will be none; see `WebSocket.receive`."""
        if self.before_taking is not None:
            self.before_taking()
        inbox = self.inbox
        while not inbox:
            if self.ended:
                self._acknowledge_end()
                return None
            if timeout is None:
                self._wait()
            elif not wait((self,), timeout):
                raise TimeoutError(f"no message came within {timeout} seconds")
        message = inbox.pop(0)
        if not inbox and (self._engine.paused or self._signal is not None):
            self._emptied(message)
        return message

    def __iter__(self) -> Iterator[str | bytes]:
        """Iterate over the messages; the loop of `receive()` without a call for each message that waits already."""
        inbox = self.inbox
        while True:
            if self.before_taking is not None:
                self.before_taking()
            if inbox:
                message = inbox.pop(0)
                if not inbox and (self._engine.paused or self._signal is not None):
                    self._emptied(message)
                yield message
            elif not self.ended:
                self._wait()
            else:
                self._acknowledge_end()
                return

    def _acknowledge_end(self) -> None:
        """Answer the end now that the view has received everything that came before."""
        if not self._closing:
            self._answer_end()

    def _emptied(self, last: str | bytes) -> None:
        """Go on with what was received while the inbox was full: readiness may not wait for a turn of the loop.

        `last` is the message that was taken, and has not reached the view yet.
        """
        if self._engine.paused and self._sock is not None:
            self._handle(self._engine.receive(b""), busy=True)
            self._read_on()
            self._refills += 1
            try:
                let_others_run_if_spent()
            except BaseException:  # somebody interrupts the view
                self.inbox.insert(0, last)
                raise
        elif self._signal is not None:
            self._signal.set(self.ready())

    def send(self, message: str | bytes) -> None:
        """Send one message; see `WebSocket.send`.

        While more messages wait, in the inbox or of several other clients, it is held: answers to messages that came
        together leave together, as soon as all were read or the view lets the loop run. That takes fewer calls of the
        kernel, and whoever reads the answers, a proxy above all, wakes up for many of them and not for each.
        """
        if self._closing:
            raise ConnectionClosed(self.close_code or CloseCode.ABNORMAL, self.close_reason)
        # For short messages, which are most of them, a comparison takes the place of a call.
        frame = encode_message(message) if len(message) < self._plain_below else self._long_frame(message)
        sweep = self._sweep
        if (self.inbox or (sweep.reading and sweep.callbacks.pendingcnt >= CROWD)) and not self._blocked:
            first = not self._held
            self._held += frame
            if len(self._held) > MAX_HELD:
                self.flush()
            elif first:
                sweep.flush_later(self)
        else:
            self._write(frame)
        if self._blocked and self._outbox.size > self.limits.send_buffer_size:
            self._wait_until_drained()
        elif len(message) >= LONG and sweep.turns.spent():
            let_others_run()  # a client that reads fast enough would never have it wait

    def _long_frame(self, message: str | bytes) -> bytes:
        """Return the frame of a message that may be compressed, once for all clients where that is as good."""
        agreement = self.agreement
        assert agreement is not None
        if len(message) < agreement.threshold and (isinstance(message, bytes) or message.isascii()):
            return encode_message(message)
        if not agreement.is_shared(len(message)):
            return self._engine.send(message)
        if agreement.takeover:
            self._engine.forget_sent()
        return self._sweep.encoder.frame(message, agreement.window_bits, agreement.threshold)

    def drop_input(self) -> None:
        """Read and drop what the client sends from now on."""
        self.discard = True
        self.inbox.clear()
        if self._answer is not None and not self._closing:
            self._answer_end()
        get_hub().loop.run_callback(self._go_on)
        self._changed()

    def push(self, frames: bytes) -> None:
        """Send frames that were encoded for many, compressed only as `agreement` allows; never waits.

        A client too slow for them is closed with 1013.
        """
        if self._closing:
            return
        if self.agreement is not None and self.agreement.takeover:
            self._engine.forget_sent()
        self._write(frames)
        if self._blocked and self._outbox.size > self.limits.outbox_size:
            self._give_up(CloseCode.TRY_AGAIN_LATER, "too slow for what is sent")

    def offer(self, frames: Sequence[bytes], joined: bytes) -> int:
        """Send frames as `push` does, but only as long as the kernel takes them; return how many it has begun.

        `joined` is all of them in one. Under TLS all of them count as begun: what was encrypted must follow.
        """
        if self._closing:
            return len(frames)
        if self._blocked:
            return 0
        if self.agreement is not None and self.agreement.takeover:
            self._engine.forget_sent()
        self._write(joined)
        return self._outbox.withdraw(frames) if self._outbox and self._pending is None else len(frames)

    def take_from(self, source: Source) -> None:
        """Send what `source` returns each time the outbox is empty, until it returns nothing.

        For frames that may still be dropped as long as the client does not read. Only after `offer` has refused some.
        """
        self._outbox.add_source(source)

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Begin the close handshake (RFC 6455, section 7.1.2), or end it if the client began. Does not wait.

        Raises ValueError for a code or a reason that may not be sent, and TypeError for a reason that is no text.
        """
        check_close(code, reason)
        self.discard = True
        self.inbox.clear()
        if self._closing:
            return
        if self._answer is not None:
            self._answer_end()
            return
        self.close_code, self.close_reason = int(code), reason  # a plain number, whatever enum it came from
        self._end(self._engine.close(code, reason))

    # --- what goes out -------------------------------------------------------------------------------------------

    def _write(self, frame: bytes) -> None:
        """Send `frame` behind what waits."""
        if self._blocked:
            self._outbox.append(frame)
            return
        if self._held:
            frame = self._held + frame
            self._held = b""
        sock = self._sock
        assert sock is not None
        try:
            sent = sock.send(frame)
        except WOULD_BLOCK:
            sent = 0
        except OSError:
            self._terminate(CloseCode.ABNORMAL)
            return
        if sent < len(frame):
            self._block(frame, sent)

    def flush(self) -> None:
        """Send what is held."""
        held, self._held = self._held, b""
        if held:
            self._write(held)

    def _block(self, data: bytes | memoryview, sent: int) -> None:
        """Keep what the kernel did not take, in front of the outbox, until it takes more."""
        if self._outbox is NEVER_USED:
            self._outbox = Outbox()
        self._outbox.put_back(data, sent)
        if not self._blocked:
            self._blocked = True
            if self._writer is None:
                assert self._sock is not None
                self._writer = get_hub().loop.io(self._sock.fileno(), WRITE)
            self._writer.start(self._on_writable)

    def _send_pongs(self, payloads: Sequence[bytes]) -> None:
        """Answer pings that came together; where the kernel takes no more, the newest is enough (section 5.5.3)."""
        if self._closing:
            return
        if self._blocked:
            self._outbox.append_pong(self._engine.frame(Opcode.PONG, payloads[-1]))
        else:
            self._write(b"".join([self._engine.frame(Opcode.PONG, payload) for payload in payloads[-MAX_PONGS:]]))

    def _on_writable(self) -> None:
        self._blocked = False
        self._heard = self._sweep.now  # a client that reads is there, even if its pong waits behind much else
        self._flush()
        if not self._blocked and self._writer is not None:
            self._writer.stop()

    def _flush(self) -> None:
        """Give the kernel what it takes of the outbox."""
        sock = self._sock
        outbox = self._outbox
        while sock is not None and (outbox or self._refill()):
            data = outbox.take()
            try:
                sent = sock.send(data)
            except WOULD_BLOCK:
                sent = 0
            except OSError:
                self._terminate(CloseCode.ABNORMAL)
                return
            outbox.taken += sent
            if sent < len(data):
                self._block(data, sent)
                break
        if self._drained is not None and outbox.size <= self.limits.send_buffer_size:
            self._drained.set()
        if not outbox and self._closing:
            self._finish()

    def _refill(self) -> bool:
        """Put what is next of one of the sources into the outbox; return whether there was anything."""
        filled = self._outbox.refill()
        if filled and self.agreement is not None and self.agreement.takeover:
            self._engine.forget_sent()
        return filled

    def _wait_until_drained(self) -> None:
        """Let the view wait until the client has read, so that what it sends does not pile up here."""
        limits = self.limits
        outbox = self._outbox
        while outbox.size > limits.send_buffer_size:
            if self._drained is None:
                self._drained = GreenletEvent()
            self._drained.clear()
            before = outbox.taken
            late = TakesNothing()
            deadline = Deadline(limits.send_timeout, late)
            try:
                self._drained.wait()
            except TakesNothing as error:
                if error is not late:
                    raise
                if outbox.taken - before < limits.send_buffer_size:
                    self._give_up(CloseCode.POLICY_VIOLATION, "does not read")
            finally:
                deadline.close()
                del late  # its traceback has this frame
            if self._closing:
                raise ConnectionClosed(self.close_code or CloseCode.ABNORMAL, self.close_reason)

    # --- the end -------------------------------------------------------------------------------------------------

    def _answer_end(self) -> None:
        """Answer the client's close frame with the same code (section 5.5.1), or its failure with why."""
        assert self._answer is not None
        self._end(self._engine.close(*self._answer))

    def _give_up(self, code: int, reason: str) -> None:
        """Close although the client takes nothing: what it was not sent yet is dropped."""
        if self._closing:
            return
        report(self.who, code, reason, level=logging.INFO if code == CloseCode.INTERNAL_ERROR else logging.WARNING)
        self._outbox.keep_begun()
        self.close(code, reason)

    def _end(self, close_frame: bytes) -> None:
        """Send the last frame, and let the view see the end."""
        self._closing = True
        self.ended = True
        self._set_deadline()
        if self._sock is not None:
            while self._refill():  # what waits was there before the close
                pass
            self._write(close_frame)
        if not self._outbox:
            self._finish()
        if self._engine.paused:  # go on reading, for the client's close frame
            get_hub().loop.run_callback(self._go_on)
        if self._drained is not None:
            self._drained.set()
        self._changed()

    def _finish(self) -> None:
        """Close the socket if both close frames were sent, or see to it that the client reads ours."""
        if self._sock is None or self._outbox or self._answer is None:
            return
        if isinstance(self._answer, Close) or not self._reader.active:
            self._terminate(CloseCode.ABNORMAL)
            return
        # The client may still be sending: a socket closed over unread bytes is reset, and takes our frame with it.
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._terminate(CloseCode.ABNORMAL)

    def _terminate(self, code: int) -> None:
        """Close the socket; `code` counts if nobody gave one before."""
        sock = self._sock
        if sock is None:
            return
        self._sock = None
        self._sweep.connections.discard(self)
        self._sweep.forget(self)
        for watcher in (self._reader, self._writer):
            if watcher is not None:  # before the descriptor, whose number somebody else gets
                watcher.stop()
                watcher.close()
        with suppress(OSError):  # the client may be gone
            sock.shutdown(socket.SHUT_WR)  # which close() does not do while a child process has a copy (section 7.1.1)
        sock.close()
        if self.close_code is None:
            self.close_code = int(code)
            report(self.who, code, "the client vanished", level=logging.INFO)
        self.ended = True
        self._closing = True
        self._held = b""
        self._outbox.clear()
        if self._drained is not None:
            self._drained.set()
        callbacks, self.on_end = self.on_end, []
        for callback in callbacks:
            try:
                callback()
            except Exception as error:  # a fault of this package, of which the others need not know
                report(self.who, None, "its end was not noted", repr(error), logging.ERROR)
        self._changed()

    def leave_to_parent(self) -> socket.socket | None:
        """Be closed in a child process, where nothing may be read or sent; return the socket, which is the parent's."""
        sock, self._sock = self._sock, None
        self.ended = self._closing = True
        self.close_code = self.close_code or CloseCode.ABNORMAL
        self.inbox.clear()
        self.on_end = []  # they would unsubscribe, and tell receivers of signals
        self._held = b""
        return sock

    # --- time ----------------------------------------------------------------------------------------------------

    def _set_deadline(self) -> None:
        self._deadline = self._sweep.now + ticks(self.limits.close_timeout)
        self._sweep.look_at(self, self._deadline)

    def on_due(self) -> None:
        """Look at the deadlines; the sweep calls it."""
        if self._sock is None:
            return
        now = self._sweep.now
        if self._deadline:
            self._on_deadline()
            return
        if self._has_stopped_amid_a_message():
            self._give_up(CloseCode.POLICY_VIOLATION, "its message does not come to an end")
            return
        interval = ticks(self.limits.ping_interval)
        timeout = ticks(self.limits.ping_timeout)
        next_tick = self._heard + interval
        if now >= next_tick:
            if self._engine.paused:  # we do not read, so silence says nothing of the client; but it cannot last
                state = (self._refills, len(self.inbox))
                if state != self._waiting:  # the view takes messages, however slowly
                    self._waiting = state
                    next_tick = now + timeout
                else:
                    self._give_up(CloseCode.POLICY_VIOLATION, "its messages are not received")
                    return
            elif self._ping_tick <= self._heard:
                self._ping_tick = now
                self._ping_time = time.perf_counter()
                self._write(self._engine.frame(Opcode.PING, PING_PAYLOAD.pack(self._ping_time)))
                next_tick = now + timeout
            else:
                self._give_up(CloseCode.INTERNAL_ERROR, "no answer to a ping")
                self._terminate(CloseCode.INTERNAL_ERROR)
                return
        if self._sock is not None:
            self._sweep.look_at(self, min(next_tick, (self._part[2] or now) + ticks(MESSAGE_TIME)))

    def _has_stopped_amid_a_message(self) -> bool:
        """Whether a message that has begun comes too slowly, or not at all."""
        now = self._sweep.now
        number, size = self._engine.unfinished
        last, came, since = self._part
        if number != last or self._engine.paused:  # another one, or none; or it is this end that does not read
            self._part = (number, size, now) if number else NOTHING_BEGUN
        elif number and now - since >= ticks(MESSAGE_TIME):
            if size - came < MESSAGE_PACE * TICK * (now - since):
                return True
            self._part = (number, size, now)
        return False

    def _on_deadline(self) -> None:
        if self._answer is not None and not self._closing:
            self._answer_end()  # the view had its time to answer what came before the close
        else:
            self._terminate(CloseCode.ABNORMAL)

"""One upgraded socket, driven by the event loop.

A byte comes in at `_on_readable`: the engine parses it, and messages go to the inbox. A byte leaves at `send`, `push`
or `_give`, which give a frame to the kernel at once. What the kernel does not take waits in the outbox and leaves at
`_drain_outbox`. Answers may be held first, to leave together (see `shared.py`).

Greenlets run user code only. They take messages with `receive()` and add some with `send()`; the loop switches to one
when there is something for it to take. Nothing that the loop calls here blocks, raises, or runs user code.
"""

from __future__ import annotations

import logging
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from gevent.event import Event as GreenletEvent
from gevent.hub import get_hub

from django_websocket.exceptions import ConnectionClosed
from django_websocket.protocol.deflate import Agreement
from django_websocket.protocol.engine import Close, Engine, Event, Failure, Ping, Pong, Role
from django_websocket.protocol.frames import CloseCode, Opcode, check_close, encode_message

from .deadlines import Deadline, ticks
from .limits import Limits
from .liveness import MESSAGE_TIME, Liveness
from .log import report
from .outbox import WRITE_SIZE, Outbox, Source, Tail
from .rates import Rate, RatedEngine, Throttle
from .shared import CROWD, MAX_HELD, shared_of_loop
from .state import ANSWERING, CLOSED, CLOSING, FOLLOWING, OPEN, State
from .subprotocol import BEAT, HELLO_SIZE, Greeting, control, from_view
from .turns import let_others_run, let_others_run_if_spent
from .waiting import Readable, wait

__all__ = ["WOULD_BLOCK", "Connection"]

MAX_FRAMES = 250  # parsed before the time is looked at; with their pongs, they take about a millisecond
SHORT = 125  # bytes; to parse a read of no more is little work, however well it is compressed
LONG = 1024  # characters or bytes; after each message of this size or more, the view's time is looked at
MAX_PONGS = 64  # for the pings of one read; if there are more, the newest are answered (RFC 6455, section 5.5.3)
UNUSED = Outbox()  # stands in for the outbox, which takes almost a KiB, until there is one: most never need it
READ, WRITE = 1, 2  # libev's

# Under TLS, the two errors of `ssl` say the same as BlockingIOError, and are not subclasses of it.
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class ClientDoesNotRead(BaseException):  # not an Exception, which a view that waits elsewhere might catch
    """The client has not read enough of what the view sends within the time that it has."""


class Connection(Readable):
    """An upgraded socket: `sock`, which is connected, belongs to the connection from now on.

    `early` is what was received behind the handshake, `head` what to send before anything else. With `discard`, what
    the client sends is read and dropped. `agreement` is what was agreed on compression, None for none. `greeting` takes
    the first message of a client that speaks the package's subprotocol; it is None for others. `rate` says how often
    the client may send, None for as often as it likes. `who` names the client in the log.

    `view` is whatever serves the client, and `began` when that was, in seconds of time.monotonic(); both are for those
    who look at connections. `inbox` holds the messages that wait to be received. No more come unless `state` is OPEN;
    `close_code` and `close_reason` then say why.

    `received_bytes` and `sent_bytes` are bytes on the wire, without TLS: all frames with their headers, from behind the
    handshake to the end, as far as they have come from the kernel or gone to it. `received_messages` and
    `sent_messages` are whole messages, without those by which the package's subprotocol itself talks. Of what was
    received, `taken` went to the view; of what was sent, `sent_by_view` came from it, and `forwarded` from the hub.
    """

    __slots__ = (
        "_blocked",
        "_client_end",
        "_direct",
        "_drained",
        "_engine",
        "_going_on",
        "_held",
        "_ignored",
        "_late",
        "_liveness",
        "_outbox",
        "_tail",
        "_pending",
        "_plain_below",
        "_reader",
        "_refills",
        "_shared",
        "_sock",
        "_throttle",
        "_writer",
        "agreement",
        "before_taking",
        "began",
        "close_code",
        "close_reason",
        "closed_by",
        "discard",
        "due",
        "forwarded",
        "greeting",
        "id",
        "inbox",
        "limits",
        "never_waits",
        "on_end",
        "received_bytes",
        "sent_bytes",
        "sent_by_view",
        "state",
        "taken",
        "view",
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
        greeting: Greeting | None = None,
        rate: Rate | None = None,
        who: str = "",
    ) -> None:
        super().__init__()
        self.who = who
        self.view: object = None
        self.began = time.monotonic()
        self.id = ""  # a name for other processes, once somebody has asked for it
        self.state = OPEN  # changed by `_enter` alone
        self.limits = limits = limits or Limits()
        self._shared = shared = shared_of_loop()
        self._throttle = throttle = None if rate is None else Throttle(rate, extra=greeting is not None)
        self._engine = (Engine if throttle is None else partial(RatedEngine, throttle=throttle))(
            Role.SERVER,
            max_message_size=limits.max_message_size,
            max_queued_messages=limits.inbox_messages,
            max_queued_bytes=limits.inbox_size,
            max_frames=MAX_FRAMES,
            agreement=agreement,
            allowance=shared.encoder.allowance,
        )
        self.inbox = self._engine.messages
        self.discard = discard
        self.agreement = agreement
        self._plain_below = sys.maxsize if agreement is None else agreement.plain_below
        self.never_waits = False  # whether whoever sends waits otherwise than in `send` while this is `crowded`
        self.before_taking: Callable[[], None] | None = None  # called when a message is asked for; it may raise
        self.close_code: int | None = None
        self.close_reason = ""
        self.closed_by = ""  # who ended it: "client" or "server"; "nobody" if the client vanished
        self.on_end: tuple[Callable[[], None], ...] = ()  # see `call_on_end`
        self._sock = sock
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)  # only TLS has it
        self._held = head  # frames for the kernel, which would take some; while there are any, the outbox is empty
        self._direct = not head  # whether a frame may go to the kernel: nothing is before it, and the end has not begun
        self._outbox = UNUSED
        self._tail: Tail | None = None  # as long as some of it is not in the outbox
        self._late = 0  # bytes that the kernel will have taken from the outbox when what counts is in front
        self._blocked = False  # the kernel takes no more, and the write watcher runs; if false, the outbox is empty
        self._going_on = False  # whether the loop will call `_go_on`
        self._refills = 0  # of the inbox
        # To count these takes three percent of an echo; FINDINGS.md, section 13, has what else was tried.
        self.received_bytes = len(early)
        self.sent_bytes = -len(head)  # the response is not part of the conversation
        self.taken = self.sent_by_view = self.forwarded = 0  # messages
        self._ignored = 0  # messages that nobody wanted
        self._drained: GreenletEvent | None = None  # set when the outbox is small enough for the view to go on
        self._client_end: Close | Failure | None = None  # the last that the client said
        sweep = shared.sweep
        self._liveness = Liveness(sweep.now)
        self.due = 0
        self.greeting = greeting
        if greeting is not None:
            greeting.next_beat = sweep.now + ticks(limits.ping_interval)
            greeting.discard, self.discard = discard, True  # until it has said hello
            self._engine.limit(max(limits.max_message_size, HELLO_SIZE))
            self._plain_below = 0
            self.on_end = (greeting.over,)
        sock.setblocking(False)
        loop = get_hub().loop
        self._reader: Any = loop.io(sock.fileno(), READ)
        self._reader.start(self._on_readable)
        self._writer: Any = None
        shared.connections.add(self)
        sweep.look_at(self, sweep.now + ticks(min(limits.ping_interval, MESSAGE_TIME)))
        if head:
            shared.send_later(self)
            if shared.overdue:
                shared.send_all()
        if early:
            self._take(early)
        self._read_pending()

    # --- what comes in -------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        engine = self._engine
        if engine.paused:
            self._reader.stop()  # from here TCP holds the client back
            return
        if self.state is CLOSED:
            return
        shared = self._shared
        buffer = shared.buffer
        try:
            size = self._sock.recv_into(buffer)
        except WOULD_BLOCK:
            return
        except OSError:
            self._close_socket()
            return
        if not size:
            self.send_held()  # a client that half-closes still gets it
            if self._client_end is not None and (self._outbox or self.state is ANSWERING):
                self._reader.stop()  # the client half-closed behind its close frame, and waits for ours
            else:
                self._close_socket()
            return
        self.received_bytes += size
        self._liveness.heard = shared.sweep.now
        if size > SHORT and shared.turns.spent():
            engine.keep(buffer[:size].tobytes())
            self._go_on_later()
            return
        # The bytes have no name here, so that their memory is free, and still cached, when the view makes its answer.
        events = engine.receive(buffer[:size].tobytes())
        if events or engine.paused or self.discard or self._signal is not None:
            self._handle(events)
        if self._waiter is not None and (self.inbox or self.state is not OPEN):
            shared.holding = shared.callbacks.pendingcnt >= CROWD
            self._waiter.switch()  # straight into the view, without a round of the loop
            shared.holding = False
            if shared.overdue:
                shared.send_all()
        if self._pending is not None:
            self._read_pending()

    def _read_pending(self) -> None:
        """Go on reading if TLS holds bytes that have left the kernel: no watcher reports them."""
        if self._pending is not None and self.state is not CLOSED and self._pending():
            get_hub().loop.run_callback(self._on_readable)

    def _take(self, data: bytes) -> None:
        """Parse what was left of earlier data, then `data`, and go on with the greenlet that waits for messages."""
        self._handle(self._engine.receive(data))
        if self._waiter is not None and (self.inbox or self.state is not OPEN):
            self._waiter.switch()

    def _handle(self, events: Sequence[Event], *, busy: bool = False) -> None:
        """Act on what the engine has found beside messages; `busy` says that the view is about to get a message."""
        if self.greeting is not None and self.greeting.awaited and self.inbox and self.state is OPEN:
            self.discard = self.greeting.discard
            self._engine.limit(self.limits.max_message_size)
            if not self.greeting.take(self.inbox.pop(0)):
                self._give_up(CloseCode.PROTOCOL_ERROR, "its first message is not a hello")
        self._on_events(events, busy)
        engine = self._engine
        full = engine.paused and engine.full
        if self.inbox and self.discard:
            # A few hundred bytes may inflate to a message of the largest size. With a rate, each has to be counted.
            engine.dropping = self._throttle is None or self._throttle.open
            self._ignore_inbox()
            turns = self._shared.turns
            while full and not turns.spent():
                self._on_events(engine.receive(b""), busy)
                full = engine.paused and engine.full
                self._ignore_inbox()
            full = False
        if engine.paused and not full:
            self._go_on_later()
        if self._signal is not None:
            self._signal.set(self.ready())

    def _ignore_inbox(self) -> None:
        self._ignored += len(self.inbox)
        self.inbox.clear()

    def _on_events(self, events: Sequence[Event], busy: bool) -> None:
        pings = []
        for event in events:
            if isinstance(event, Ping):
                pings.append(event.payload)
            elif isinstance(event, Pong):
                self._liveness.pong(event.payload)
        if pings:
            self._send_pongs(pings)
        if events and isinstance(events[-1], (Close, Failure)):  # nothing follows it
            self._end_by_client(events[-1], busy)

    def _go_on_later(self) -> None:
        """Go on in a later turn of the loop, after those that have waited for longer, or when its rate allows it."""
        if self._throttle is not None and self._throttle.held is not None:
            self._throttle.call_when_allowed(self._go_on)
        elif not self._going_on:
            self._going_on = True
            self._shared.turns.postpone(self._go_on)

    def _go_on(self) -> None:
        """Go on with what was received and not parsed, when others have had their turn or messages are dropped."""
        self._going_on = False
        if self._engine.paused and self.state is not CLOSED:
            self._take(b"")
            self._read_on()

    def _read_on(self) -> None:
        if self.state is not CLOSED and not self._engine.paused:
            self._liveness.heard = self._shared.sweep.now
            self._reader.start(self._on_readable)
            self._read_pending()

    # --- for the view --------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether `receive()` would return at once."""
        return bool(self.inbox) or self.state is not OPEN

    @property
    def at_end(self) -> bool:
        """Whether there is nothing more to receive."""
        return self.state is not OPEN and not self.inbox

    @property
    def connected(self) -> bool:
        """Whether the socket is still there."""
        return self.state is not CLOSED

    @property
    def latency(self) -> float | None:
        """Seconds between the last ping that the client answered and its pong; None until there was one."""
        return self._liveness.latency

    @property
    def received_messages(self) -> int:
        """How many whole messages have come, whether or not anybody has taken them."""
        return self.taken + self._ignored + self._engine.dropped + len(self.inbox)

    @property
    def sent_messages(self) -> int:
        """How many messages were sent: the view's own, and those that the hub forwards."""
        return self.sent_by_view + self.forwarded

    @property
    def carried(self) -> tuple[int, int, int, int]:
        """Messages received and sent, and bytes received and sent: all four, for whoever asks many connections."""
        received = self.taken + self._ignored + self._engine.dropped + len(self.inbox)
        sent_bytes = self.sent_bytes
        return received, self.sent_by_view + self.forwarded, self.received_bytes, sent_bytes if sent_bytes > 0 else 0

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for the client to read."""
        return self._outbox.size + len(self._held)

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Return the next message, or None when there will be none; see `WebSocket.receive`."""
        if self.before_taking is not None:
            self.before_taking()
        inbox = self.inbox
        while not inbox:
            if self.state is not OPEN:
                self._answer_client_end()
                return None
            if timeout is None:
                self._wait()
            elif not wait((self,), timeout):
                raise TimeoutError(f"no message came within {timeout} seconds")
        message = inbox.pop(0)
        if not inbox and (self._engine.paused or self._signal is not None):
            self._emptied(message)
        self.taken += 1
        return message

    def __iter__(self) -> Iterator[str | bytes]:
        """Iterate over the messages, like a loop of `receive()` that saves the call for each message already there."""
        inbox = self.inbox
        while True:
            if self.before_taking is not None:
                self.before_taking()
            while not inbox:
                if self.state is not OPEN:
                    self._answer_client_end()
                    return
                self._wait()
            message = inbox.pop(0)
            if not inbox and (self._engine.paused or self._signal is not None):
                self._emptied(message)
            self.taken += 1
            yield message

    def _emptied(self, last: str | bytes) -> None:
        """Go on at once with what was received while the inbox was full: select() may ask before the loop has a turn.

        `last` is the message that was taken and has not reached the view yet.
        """
        if self._engine.paused and self.state is not CLOSED:
            self._handle(self._engine.receive(b""), busy=True)
            self._read_on()
            self._refills += 1
            try:
                let_others_run_if_spent()
            except BaseException:  # the view is interrupted
                self.inbox.insert(0, last)
                raise
        elif self._signal is not None:
            self._signal.set(self.ready())

    def send(self, message: str | bytes) -> None:
        """Send one message, or hold it to leave with others (see `shared.py`); see `WebSocket.send`."""
        if not self._direct:
            self.check_not_closing()
        size = len(message)
        # Most messages are short: for them, this comparison saves a call.
        frame = encode_message(message) if size < self._plain_below else self._long_frame(message)
        self.sent_by_view += 1
        shared = self._shared
        if (shared.holding or self.inbox) and not self._blocked:
            if self._direct:
                self._direct = False
                shared.send_later(self)
                held = frame
            else:
                held = self._held + frame
            self._held = held
            if len(held) > MAX_HELD:
                self.send_held()
        elif not self._direct:
            self._write(frame)
        else:  # what `_give` does; to call it would take half a percent of the time of an answer
            try:
                sent = self._sock.send(frame)
            except WOULD_BLOCK:
                sent = 0
            except OSError:
                self._close_socket()
                return
            self.sent_bytes += sent
            if sent < len(frame):
                self._keep_unsent(frame, sent)
        if self._blocked and self._outbox.size > self.limits.send_buffer_size:
            self._wait_until_drained()
        elif size >= LONG and shared.turns.spent():
            let_others_run()  # as long as its client reads fast enough, nothing else makes the view wait

    def _long_frame(self, message: str | bytes) -> bytes:
        """Return the frame of a message that may be compressed: once for all clients, if that is as good."""
        message = self.as_sent(message)
        agreement = self.agreement
        if agreement is None:
            return encode_message(message)
        if len(message) < agreement.threshold and (isinstance(message, bytes) or message.isascii()):
            return encode_message(message)
        if not agreement.is_shared(len(message)):
            return self._engine.send(message)
        if agreement.takeover:
            self._engine.forget_sent()
        return self._shared.encoder.frame(message, agreement.window_bits, agreement.threshold)

    def as_sent(self, message: str | bytes) -> str | bytes:
        """Return a message that is for this client alone in the form that it expects."""
        return message if self.greeting is None else from_view(message)

    def check_greeted(self) -> None:
        """Close if the client has not said hello in its time. Raises `ConnectionClosed` if nothing can be sent."""
        if self.greeting is not None and self.greeting.awaited:
            self._give_up(CloseCode.POLICY_VIOLATION, "does not say hello")
        self.check_not_closing()

    def tell(self, **members: Any) -> None:
        """Tell a client that speaks the subprotocol something beside the messages. Never waits."""
        if self.greeting is not None:
            self.push(encode_message(control(**members)))

    def drop_input(self) -> None:
        """Read and drop what the client sends from now on."""
        self.discard = True
        self._ignore_inbox()
        self._answer_client_end()
        get_hub().loop.run_callback(self._go_on)
        self._changed()

    def push(self, frames: bytes, messages: int = 0) -> None:
        """Send frames that were encoded for many clients, compressed only as `agreement` allows. Never waits.

        `messages` is how many messages are in them. A client too slow for them is closed with 1013.
        """
        if not self._direct:
            self._push_behind(frames, messages)
            return
        self.forwarded += messages
        if self.agreement is not None and self.agreement.takeover:
            self._engine.forget_sent()
        try:  # what `_give` does, without the call, as in `send`
            sent = self._sock.send(frames)
        except WOULD_BLOCK:
            sent = 0
        except OSError:
            self._close_socket()
            return
        self.sent_bytes += sent
        if sent < len(frames):
            self._keep_unsent(frames, sent)
            self._judge_pushed(self._waiting)

    def _push_behind(self, frames: bytes, messages: int) -> None:
        """Do what `push` does when something is before the frames, or the end has begun."""
        if self.state is not OPEN and self.state is not ANSWERING:
            return
        self.forwarded += messages
        if self.agreement is not None and self.agreement.takeover:
            self._engine.forget_sent()
        if self._tail is not None:
            self._judge_pushed(self._tail.append(frames))
        else:
            self._write(frames)
            self._judge_pushed(self._waiting)

    def _judge_pushed(self, waiting: int) -> None:
        if waiting > self.limits.outbox_size:
            self._give_up(CloseCode.TRY_AGAIN_LATER, "too slow for what is sent")

    def push_late(self, *frames: bytes, messages: int = 0) -> None:
        """Send frames that do not count as what the client is too slow for. What is pushed later goes behind them."""
        if self.state is not OPEN and self.state is not ANSWERING:
            return
        self.forwarded += messages
        if self.agreement is not None and self.agreement.takeover:
            self._engine.forget_sent()
        if self._tail is not None:
            self._tail.extend(frames)
            return
        tail = Tail()
        tail.extend(frames)
        while tail and not self._blocked and self.connected:
            self._write(tail.take(self._piece))
            self._late = self._outbox.taken + self._outbox.size
        if tail and self._blocked:
            self._tail = tail
            self._outbox.add_source(self._next_of_tail)

    @property
    def _waiting(self) -> int:
        """Bytes in the outbox that count as what the client is too slow for."""
        return self._outbox.size - max(0, self._late - self._outbox.taken)

    @property
    def _piece(self) -> int:
        """How much of the past is in the outbox, where it takes room from what is pushed behind it."""
        return min(WRITE_SIZE, self.limits.outbox_size // 8)

    def _next_of_tail(self) -> bytes:
        """Return what comes next of the past, or behind it."""
        if self._tail is None:
            return b""
        piece = self._tail.take(self._piece)
        self._late = self._outbox.taken + len(piece)
        if not self._tail:
            self._tail = None
        return piece

    def offer(self, frames: Sequence[bytes], joined: bytes) -> int:
        """Send frames as `push` does, but only those that the kernel takes now; return how many it has begun.

        Each is a message; `joined` is all of them in one. Under TLS all count as begun: what was encrypted must follow.
        """
        if self.state is not OPEN and self.state is not ANSWERING:
            return len(frames)
        if self._blocked:
            return 0
        if self.agreement is not None and self.agreement.takeover:
            self._engine.forget_sent()
        self._write(joined)
        begun = self._outbox.withdraw(frames) if self._outbox and self._pending is None else len(frames)
        self.forwarded += begun
        return begun

    def call_on_end(self, call: Callable[[], None]) -> None:
        """Have `call` called, in the hub, when the socket is closed; at once if it is."""
        if self.connected:
            self.on_end += (call,)
        else:
            call()

    def do_not_call_on_end(self, call: Callable[[], None]) -> bool:
        """Undo `call_on_end`. Returns False if the connection would not have called it."""
        others = tuple(each for each in self.on_end if each != call)
        would, self.on_end = others != self.on_end, others
        return would

    def take_from(self, source: Source) -> None:
        """Send what `source` returns each time the outbox is empty, until it returns nothing.

        For frames that may be dropped while the client does not read. Call it only after `offer` has refused some.
        """
        self._outbox.add_source(source)

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Begin the close handshake (RFC 6455, section 7.1.2), or end it if the client began. Does not wait.

        Raises ValueError for a code or a reason that may not be sent, and TypeError for a reason that is not text.
        """
        check_close(code, reason)
        self.discard = True
        self._ignore_inbox()
        self._answer_client_end()
        if self.state is OPEN:
            self.close_code, self.close_reason = int(code), reason  # a plain number, whatever enum it came from
            self.closed_by = "server"
            self._begin_to_close(self._engine.close(code, reason))

    def restart(self, after: float, within: float) -> None:
        """Close with 1012, because the process ends.

        A client that speaks the subprotocol is advised to come back after so many seconds, and at a random moment
        within so many more.
        """
        if self.state is OPEN:
            self.tell(retry={"after": after, "within": within})
        self.close(CloseCode.SERVICE_RESTART, "restart")

    # --- what goes out -------------------------------------------------------------------------------------------

    def _write(self, frame: bytes) -> None:
        """Give `frame` to the kernel, behind what is held, or put it behind what waits in the outbox."""
        if self._blocked:
            self._outbox.append(frame)
            return
        if self._held:
            frame = self._held + frame
            self._held = b""
            self._look_at_way()
        self._give(frame)

    def send_held(self) -> None:
        """Send what is held."""
        held = self._held
        if held:
            self._held = b""
            self._direct = True  # whoever closes sends what is held with the close frame
            self._give(held)

    def _give(self, data: bytes) -> None:
        """Give `data` to the kernel, which has taken all before it, and keep what it does not take."""
        try:
            sent = self._sock.send(data)
        except WOULD_BLOCK:
            sent = 0
        except OSError:
            self._close_socket()
            return
        self.sent_bytes += sent
        if sent < len(data):
            self._keep_unsent(data, sent)

    def _look_at_way(self) -> None:
        """Find out again whether a frame may go straight to the kernel."""
        self._direct = (self.state is OPEN or self.state is ANSWERING) and not (self._blocked or self._held)

    def _keep_unsent(self, data: bytes | memoryview, sent: int) -> None:
        """Put what the kernel did not take in front of the outbox, until it takes more."""
        if self._outbox is UNUSED:
            self._outbox = Outbox()
        self._outbox.put_back(data, sent)
        self._direct = False
        if not self._blocked:
            self._blocked = True
            if self._writer is None:
                self._writer = get_hub().loop.io(self._sock.fileno(), WRITE)
            self._writer.start(self._on_writable)

    def _send_pongs(self, payloads: Sequence[bytes]) -> None:
        """Answer pings that came together; if the kernel takes no more, the newest alone (section 5.5.3)."""
        if self.state is not OPEN and self.state is not ANSWERING:
            return
        if self._blocked:
            self._outbox.append_pong(self._engine.frame(Opcode.PONG, payloads[-1]))
        else:
            self._write(b"".join([self._engine.frame(Opcode.PONG, payload) for payload in payloads[-MAX_PONGS:]]))

    def _on_writable(self) -> None:
        self._blocked = False
        self._liveness.heard = self._shared.sweep.now  # it reads, even if its pong waits behind much else
        self._drain_outbox()
        if not self._blocked and self._writer is not None:
            self._writer.stop()
        self._look_at_way()

    def _drain_outbox(self) -> None:
        """Give the kernel what it takes of the outbox."""
        outbox = self._outbox
        while self.state is not CLOSED and (outbox or self._refill()):
            data = outbox.take()
            try:
                sent = self._sock.send(data)
            except WOULD_BLOCK:
                sent = 0
            except OSError:
                self._close_socket()
                return
            outbox.taken += sent
            self.sent_bytes += sent
            if sent < len(data):
                self._keep_unsent(data, sent)
                break
        if self._drained is not None and outbox.size <= self.limits.send_buffer_size:
            self._drained.set()
        if not outbox:
            self._finish_closing()

    def _refill(self) -> bool:
        """Put into the outbox what one of the sources has next; return whether there was anything."""
        filled = self._outbox.refill()
        if filled and self.agreement is not None and self.agreement.takeover:
            self._engine.forget_sent()
        return filled

    @property
    def blocked(self) -> bool:
        """Whether the client has yet to read something before it can be sent more."""
        return self._blocked

    @property
    def crowded(self) -> bool:
        """Whether so much waits for the client that the view should not send more."""
        return self._blocked and self._outbox.size > self.limits.send_buffer_size

    def until_drained(self) -> tuple[GreenletEvent, int]:
        """Return what is set when the client has read enough or the connection closes, and the bytes taken so far."""
        if self._drained is None:
            self._drained = GreenletEvent()
        self._drained.clear()
        return self._drained, self._outbox.taken

    def judge_reader(self, before: int) -> None:
        """Close if the client has taken little since `before`, a number of bytes, although it had its time."""
        if self._outbox.taken - before < self.limits.send_buffer_size:
            self._give_up(CloseCode.POLICY_VIOLATION, "does not read")

    def check_not_closing(self) -> None:
        """Raise ConnectionClosed if nothing can be sent any more."""
        if self.state is not OPEN and self.state is not ANSWERING:
            raise ConnectionClosed(self.close_code or CloseCode.ABNORMAL, self.close_reason)

    def _wait_until_drained(self) -> None:
        """Let the view wait until the client has read, so that what the view sends does not pile up here."""
        while self.crowded and not self.never_waits:
            drained, before = self.until_drained()
            late = ClientDoesNotRead()
            deadline = Deadline(self.limits.send_timeout, late)
            try:
                drained.wait()
            except ClientDoesNotRead as error:
                if error is not late:
                    raise
                self.judge_reader(before)
            finally:
                deadline.close()
                del late  # its traceback refers to this frame
            self.check_not_closing()

    # --- from one state to the next ------------------------------------------------------------------------------

    def _enter(self, state: State) -> None:
        assert state in FOLLOWING[self.state], f"{self.state} does not become {state}"
        self.state = state
        self._look_at_way()

    def _end_by_client(self, event: Close | Failure, busy: bool) -> None:
        """Enter ANSWERING: the client has closed or broken the protocol, and sends nothing more."""
        self._client_end = event
        if self.state is OPEN:
            self._enter(ANSWERING)
            self.close_code, self.close_reason = int(event.code), event.reason
            self.closed_by = "server" if isinstance(event, Failure) else "client"
            if isinstance(event, Failure):
                report(self.who, event.code, event.reason)
            if not (self.inbox or busy) or self.discard:
                self._answer_client_end()
            else:
                self._look_after_close_timeout()
        else:
            self._finish_closing()

    def _answer_client_end(self) -> None:
        """When ANSWERING: answer the client's close frame with its code (section 5.5.1), or say why it failed."""
        if self.state is ANSWERING:
            assert self._client_end is not None
            self._begin_to_close(self._engine.close(*self._client_end))

    def _begin_to_close(self, close_frame: bytes) -> None:
        """Enter CLOSING: send the last frame, and show the view the end."""
        self._enter(CLOSING)
        if self._throttle is not None:
            self._throttle.release()
        self._look_after_close_timeout()
        while self._refill():  # what the sources have was there before the close
            pass
        self._write(close_frame)
        self._finish_closing()
        if self._engine.paused:  # go on reading, for the client's close frame
            get_hub().loop.run_callback(self._go_on)
        if self._drained is not None:
            self._drained.set()
        self._changed()

    def _finish_closing(self) -> None:
        """Close the socket if both close frames were sent, or make sure that the client can read ours."""
        if self.state is not CLOSING or self._outbox or self._client_end is None:
            return
        if isinstance(self._client_end, Close) or not self._reader.active:
            self._close_socket()
            return
        # The client may still be sending. To close a socket over unread bytes resets it, and our frame would be lost.
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close_socket()

    def _give_up(self, code: int, reason: str) -> None:
        """Close although the client does not read: what waits for it is dropped."""
        if self.state is not OPEN and self.state is not ANSWERING:
            return
        report(self.who, code, reason, level=logging.INFO if code == CloseCode.INTERNAL_ERROR else logging.WARNING)
        self._outbox.keep_begun()
        self._tail = None
        self.close(code, reason)

    def _close_socket(self) -> None:
        """Enter CLOSED, whether or not there was a close handshake; without one, the close code is 1006."""
        if self.state is CLOSED:
            return
        self._enter(CLOSED)
        self._tail = None
        if self._throttle is not None:
            self._throttle.release()
            if self._throttle.dropped:
                report(self.who, None, "messages over its rate were dropped", str(self._throttle.dropped), logging.INFO)
        shared = self._shared
        shared.connections.discard(self)
        shared.received += self.received_messages
        shared.sent += self.sent_messages
        shared.sweep.forget(self)
        for watcher in (self._reader, self._writer):
            if watcher is not None:  # before the descriptor is closed: its number may soon be that of another file
                watcher.stop()
                watcher.close()
        with suppress(OSError):  # the client may be gone
            self._sock.shutdown(socket.SHUT_WR)  # close() does not, while a child process has a copy (section 7.1.1)
        self._sock.close()
        if self.close_code is None:
            self.close_code = int(CloseCode.ABNORMAL)
            self.closed_by = "nobody"
            report(self.who, self.close_code, "the client vanished", level=logging.INFO)
        self._held = b""
        self._outbox.clear()
        self.sent_bytes = max(0, self.sent_bytes)  # the response may not have left either
        if self._drained is not None:
            self._drained.set()
        calls, self.on_end = self.on_end, ()
        for call in calls:
            try:
                call()
            except Exception as error:  # a fault of this package; the others are called all the same
                report(self.who, None, "a callback for its end failed", repr(error), logging.ERROR)
        self._changed()

    def leave_to_parent(self) -> socket.socket:
        """Enter CLOSED in a child process, which may neither read nor send; return the socket, the parent's."""
        self._enter(CLOSED)
        self.close_code = self.close_code or CloseCode.ABNORMAL
        self.inbox.clear()
        self.on_end = ()  # these would unsubscribe, and send signals
        self._held = b""
        return self._sock

    # --- time ----------------------------------------------------------------------------------------------------

    @property
    def _held_by_rate(self) -> bool:
        """Whether nothing is read because of the client's rate, and not because of a view that receives nothing."""
        return self._throttle is not None and self._throttle.held is not None and not self._engine.full

    def _look_after_close_timeout(self) -> None:
        self._shared.sweep.look_after(self, self.limits.close_timeout)

    def on_due(self) -> None:
        """Look at the deadline of the present state; the sweep calls it."""
        if self.state is OPEN:
            self._check_client()
        elif self.state is ANSWERING:
            self._answer_client_end()  # the view has had its time to answer what came before the close
        else:
            self._close_socket()

    def _check_client(self) -> None:
        """Send a ping if the client is silent, and close if it does not answer or its message or view has stopped."""
        sweep = self._shared.sweep
        now = sweep.now
        engine = self._engine
        liveness = self._liveness
        greeting = self.greeting
        if greeting is not None and now >= greeting.next_beat:  # browsers do not show pings to pages
            greeting.next_beat = now + ticks(self.limits.ping_interval)
            if not self._blocked:  # else it has something to read
                self.push(encode_message(BEAT))
                if self.state is not OPEN:
                    return
        if liveness.message_has_stopped(engine.unfinished, now, paused=engine.paused):
            self._give_up(CloseCode.POLICY_VIOLATION, "its message does not come to an end")
            return
        next_tick = liveness.heard + ticks(self.limits.ping_interval)
        if now >= next_tick:
            next_tick = now + ticks(self.limits.ping_timeout)
            if self._held_by_rate:  # as long as it takes; a ping still finds out if the client's end is closed
                self._write(engine.frame(Opcode.PING, liveness.ping(now)))
            elif engine.paused:  # we do not read, so silence says nothing about the client; but this cannot last
                if not liveness.view_has_gone_on((self._refills, len(self.inbox))):
                    self._give_up(CloseCode.POLICY_VIOLATION, "its messages are not received")
                    return
            elif liveness.is_silent_after_a_ping():
                self._give_up(CloseCode.INTERNAL_ERROR, "no answer to a ping")
                self._close_socket()
                return
            else:
                self._write(engine.frame(Opcode.PING, liveness.ping(now)))
        if self.state is OPEN:
            if greeting is not None:
                next_tick = min(next_tick, greeting.next_beat)
            sweep.look_at(self, min(next_tick, liveness.next_look(now)))

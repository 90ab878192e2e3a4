"""Published messages that the hub sends straight to a client, without a greenlet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django_websocket.exceptions import ConnectionClosed
from django_websocket.protocol.frames import CloseCode, encode_message
from django_websocket.transport.connection import Connection
from django_websocket.transport.outbox import WRITE_SIZE
from django_websocket.transport.subprotocol import control

from .backlog import Backlog, Latest, cost
from .entries import NOWHERE
from .hub import NO_STARTS, Hub
from .publication import Publication, Variant, variant_for
from .replay import Wanted, past_of

if TYPE_CHECKING:
    from .presence import Attendance, User

END = ""  # stands for a channel where the end of a subscription waits behind its messages


class Forwarding:
    """Sends what is published to `channels` to a client, unchanged, until `close()`.

    The hub pushes, without a greenlet. Messages that come before `attach()` wait for the connection. Messages of the
    past are read at once, or `later` by `read_past`. A client that is too slow is closed with 1013. One that missed
    messages is sent `on_missed`; if that is None, it is closed with 1012, so that it connects again.
    """

    __slots__ = (
        "__weakref__",
        "_announced",
        "_attendance",
        "_begins",
        "_broker_closed",
        "_closed",
        "_connection",
        "_ends",
        "_failed",
        "_hub",
        "_limit",
        "_missed",
        "_on_missed",
        "_past",
        "_size",
        "_variant",
        "_waiting",
        "channels",
        "wish",
    )

    def __init__(
        self,
        hub: Hub,
        channels: Sequence[str],
        limit: int,
        on_missed: str | bytes | None = None,
        wish: Wanted | None = None,
        *,
        later: bool = False,
    ) -> None:
        self._hub = hub
        self._limit = limit  # bytes that may wait for the connection
        self._on_missed = on_missed
        self._connection: Connection | None = None  # where messages go; None before attach() and after the end
        self._variant: Variant = None
        self._waiting: list[Publication] = []
        self._size = 0  # of `_waiting`, in bytes
        self._missed = False
        self._closed = False
        self._failed = False  # whether the view has
        self._broker_closed = False
        self.channels = channels
        self._attendance: Attendance | None = None
        self._announced = False  # whether the client has been told of the channels
        self._past: Sequence[Publication] | None = ()  # to be sent first; None if not all of it is kept
        self.wish = wish
        # Between them is the past, of channels with history.
        self._begins = self._ends = hub.join(self, channels)
        if wish is not None and not later:
            self.read_past()

    def open_rooms(self, user: User | None) -> None:
        """Prepare to tell who is in the channels, and to have `user` be there, if there is one. Raises BrokerError."""
        from .presence import Attendance, presence_of

        self._attendance = Attendance(presence_of(self._hub), self.channels, user)

    def enter(self, session: str | None, connection: Connection | None = None) -> None:
        """Have the client be where `open_rooms` has said; see `Attendance.enter`. Raises BrokerError."""
        if self._attendance is not None:
            self._attendance.enter(session, connection)

    def update_present(self, present: Mapping[str, Any]) -> None:
        """Change what the others know about the user who is present: a new name, say, or that the user is typing.

        `present` is a dict as `subscribe` takes it, with the same "id". Never waits; the others are told within half a
        second. Does nothing when the subscription has ended. Raises ValueError for another id, and RuntimeError if this
        client is not present.
        """
        if self._closed:
            return
        if self._attendance is None:
            raise RuntimeError("The client is not present: subscribe with a dict as present= first")
        self._attendance.update(present)

    def read_past(self) -> None:
        """Read what is wished of the past. Raises BrokerError."""
        if self.wish is not None:
            try:
                past = past_of(self._hub, self, self._ends, self.wish, self._limit)
                self._past, self._begins, self._ends = past
            except BaseException:
                self.close()
                raise

    @property
    def complete(self) -> bool:
        """Whether all is kept that was wanted of the past. To be asked before `attach`."""
        return self._past is not None

    @property
    def goes_on(self) -> bool:
        """Whether each channel goes on where it was, and needs no snapshot. To be asked before `attach`."""
        return self.wish is not None and self.wish.since.keys() >= {*self.channels} and self.complete

    @property
    def tells_missed(self) -> bool:
        """Whether the client is sent a notice if messages are missing."""
        return self._on_missed is not None

    def begin_anew(self, names: Collection[str]) -> None:
        """See `Resuming.begin_anew`."""
        self._waiting = [part for publication in self._waiting for part in publication.without(names)]
        self._size = sum(cost(message) for publication in self._waiting for message in publication.messages)
        if {*names} >= {*self.channels}:
            self._missed = False

    def __enter__(self) -> Forwarding:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is None:
            self.close()
        else:
            self.fail()

    def fail(self) -> None:
        """Stop forwarding because the view fails: the client may come back."""
        self._announced = False  # for what it misses
        self._failed = True
        self.close()

    @property
    def connection(self) -> Connection | None:
        """The connection to which messages go at present."""
        return self._connection

    def attach(self, connection: Connection, *, has_snapshot: bool = False) -> Forwarding:
        """Forward to `connection` until it ends; return self. Raises `ConnectionClosed` if it has ended already.

        With `has_snapshot`, the client has the present state in place of a past that is not complete.
        """
        if not connection.connected:
            self.fail()
            raise ConnectionClosed(connection.close_code or CloseCode.ABNORMAL, connection.close_reason)
        self._keep_in_order_with_others(connection)
        connection.call_on_end(self.close)
        self._connection = connection
        self._variant = variant_for(connection.agreement)
        waiting, self._waiting = self._waiting, []
        past, self._past = self._past, ()
        incomplete = past is None and not has_snapshot
        if connection.greeting is not None:
            self._variant = self._hub.framed(self._variant)
            self._announce(connection, reset=incomplete and self._on_missed is None)
            incomplete = incomplete and self._on_missed is not None
        if self._attendance is not None:
            self._attendance.attach(connection)
        self._begins = self._ends = NO_STARTS
        self.wish = None
        self._send_past(past or ())
        if self._missed or incomplete:
            self.missed()
        for publication in waiting:
            self.deliver(publication)
        if self._broker_closed:
            self.broker_closed()
        return self

    def _announce(self, connection: Connection, *, reset: bool) -> None:
        """Tell the client the number of each channel, where what it gets begins, and up to where that is the past."""
        channels: dict[str, tuple[int, str | None, str | None]] = {}
        for name in self.channels:
            begin, end = self._begins.get(name, NOWHERE), self._ends.get(name, NOWHERE)
            places = (None, None) if NOWHERE in (begin, end) else (str(begin), str(end))
            channels[name] = self._hub.number(name), *places
        self._announced = True
        assert connection.greeting is not None
        for name in self.channels:
            connection.greeting.positions.pop(name, None)  # it is used: a later subscription begins at its own time
        if reset:
            connection.tell(sub=channels, reset=[name for name in channels if name in self._ends])
        else:
            connection.tell(sub=channels)

    def _send_past(self, past: Sequence[Publication]) -> None:
        """Send the past; what is published later waits behind it."""
        if past and self._connection is not None:
            messages = sum(publication.count for publication in past)
            self._connection.push_late(*[publication.frames(self._variant) for publication in past], messages=messages)

    def _keep_in_order_with_others(self, connection: Connection) -> None:
        """Have the broker's order kept across the channels of all forwardings of a connection."""
        others = [each for each in forwardings_of(connection) if type(each) is Forwarding and each._hub is self._hub]
        if others:
            for forwarding in (*others, self):
                self._hub.keep_in_order(forwarding, forwarding.channels, connection)

    def close(self) -> None:
        """Stop forwarding. May be called twice."""
        connection, self._connection = self._connection, None
        self._closed = True
        self._hub.leave(self, self.channels)
        attendance, self._attendance = self._attendance, None
        if attendance is not None:
            code = None if connection is None else connection.close_code
            attendance.close(CloseCode.INTERNAL_ERROR if code is None and self._failed else code)
        if connection is not None and connection.do_not_call_on_end(self.close) and self._announced:
            kept = {name for other in forwardings_of(connection) if other._announced for name in other.channels}
            if ended := [name for name in self.channels if name not in kept]:
                self._tell_end(connection, ended)

    def _tell_end(self, connection: Connection, ended: Sequence[str]) -> None:
        """Tell the client that it is no longer subscribed to these channels."""
        connection.tell(unsub=ended)

    def client_left(self, code: int, reason: str) -> None:
        """Do nothing: the connection calls `close()`."""

    def deliver(self, publication: Publication) -> None:
        """Send the messages to the client."""
        connection = self._connection
        frames = publication.encoded.get(self._variant)  # they are there for all but the first of many
        if connection is None:
            self._wait(publication)
        elif frames is not None:
            connection.push(frames, publication.count)
        elif publication.late:
            connection.push_late(publication.frames(self._variant), messages=publication.count)
        else:
            connection.push(publication.frames(self._variant), publication.count)

    def _wait(self, publication: Publication) -> None:
        if self._closed:
            return  # closed in the middle of a large fan-out
        self._waiting.append(publication)
        self._size += sum(map(cost, publication.messages))
        if self._size > self._limit and len(self._waiting) > 1:
            self.missed()

    def missed(self) -> None:
        """Send the client the notice, or close it so that it connects again."""
        if self._connection is None:
            self._missed = True
            self._waiting.clear()
            self._size = 0
        elif self._on_missed is None:
            self._connection.close(CloseCode.SERVICE_RESTART, "messages may have been missed")
        else:
            self._connection.push(encode_message(self._connection.as_sent(self._on_missed)), 1)

    def broker_closed(self) -> None:
        """Close the connection, so that the client connects again: it would receive nothing more here."""
        self._broker_closed = True
        if self._connection is not None:
            self._connection.close(CloseCode.SERVICE_RESTART, "the broker was closed")


def forwardings_of(connection: Connection) -> list[Forwarding]:
    """Return the forwardings that end with a connection."""
    owners = [getattr(call, "__self__", None) for call in connection.on_end]
    return [owner for owner in owners if isinstance(owner, Forwarding)]


class LossyForwarding(Forwarding):
    """A forwarding that drops the oldest waiting messages of a slow client instead of closing it.

    With `latest`, only the newest message of each channel waits. A frame that has left in part is always completed.
    """

    __slots__ = ("_backlog",)

    def __init__(
        self,
        hub: Hub,
        channels: Sequence[str],
        limit: int,
        on_missed: str | bytes | None = None,
        wish: Wanted | None = None,
        *,
        later: bool = False,
        latest: bool,
    ) -> None:
        self._backlog: Backlog[bytes] = Latest(limit) if latest else Backlog(limit, "drop_oldest")
        super().__init__(hub, channels, limit, on_missed, wish, later=later)

    def deliver(self, publication: Publication) -> None:
        """Send the messages as far as the client takes them, and keep the rest by the policy."""
        connection = self._connection
        if connection is None:
            self._wait(publication)
            return
        frames = publication.single_frames(self._variant)
        begun = connection.offer(frames, publication.frames(self._variant))
        if begun < len(frames):
            connection.take_from(self._next_frames)
            for channel, frame in list(zip(publication.channels(), frames, strict=False))[begun:]:
                self._backlog.append((channel, frame, None, cost(frame)))

    def _keep_in_order_with_others(self, connection: Connection) -> None:
        """Do nothing: a message that may be dropped, or wait, has no place among those of other forwardings."""

    def _send_past(self, past: Sequence[Publication]) -> None:
        """Send the past as what is published: of it, too, the oldest messages may be dropped."""
        for publication in past:
            self.deliver(publication)

    def _next_frames(self) -> bytes:
        """Return the oldest waiting frames; the connection calls this when it has room."""
        frames = []
        size = 0
        messages = 0
        while self._backlog.waiting and size < WRITE_SIZE:
            channel, frame, _, _ = self._backlog.popleft()
            frames.append(frame)
            size += len(frame)
            messages += channel != END
        if self._connection is not None:
            self._connection.forwarded += messages
        return b"".join(frames)

    def _tell_end(self, connection: Connection, ended: Sequence[str]) -> None:
        """Do so behind what waits, which still leaves."""
        if self._backlog.waiting:
            frame = encode_message(control(unsub=ended))
            self._backlog.append((END, frame, None, cost(frame)))
        else:
            super()._tell_end(connection, ended)

    def missed(self) -> None:
        """Send the notice or close the client, and drop the backlog, which is older than the notice."""
        self._backlog.clear()
        super().missed()

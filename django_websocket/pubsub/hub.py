"""The subscriptions of a process: one subscriber connection for all, and each message handed to whom it concerns."""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import gevent
from gevent.event import AsyncResult

from django_websocket.exceptions import BrokerError, ConnectionClosed, MessagesMissed
from django_websocket.protocol.deflate import Agreement, encode_compressed
from django_websocket.protocol.frames import CloseCode, encode_message
from django_websocket.transport.connection import Connection
from django_websocket.transport.log import report
from django_websocket.transport.outbox import WRITE_SIZE
from django_websocket.transport.shared import shared_of_loop
from django_websocket.transport.turns import let_others_run, let_others_run_if_spent, turns_of_loop
from django_websocket.transport.waiting import Readable, check_before_taking, wait

from .broker import Broker, from_wire
from .closing import InLoop, close

GLANCE = 64  # messages for members, after which the time is looked at
GLANCE_SIZE = 2 * 1024  # bytes that count as one more: a large message may have to be compressed for each
JOIN_TIMEOUT = 6.0  # seconds; longer than a subscriber takes to say that it does not come about
OVERHEAD = 100  # bytes that a waiting message costs beside its own

T = TypeVar("T", bound="str | bytes")
Variant = tuple[int, int] | None  # of compression: window bits and threshold; None is without

_variants: dict[tuple[int, int], tuple[int, int]] = {}


class Publication:
    """Messages of one channel that arrived together; decoded once, and encoded once for all receivers of a kind."""

    def __init__(self, channel: str, payloads: Sequence[bytes]) -> None:
        self.messages: list[str | bytes] = []
        for payload in payloads:
            try:
                self.messages.append(from_wire(payload))
            except UnicodeDecodeError:
                report(
                    f"Channel {channel}",
                    None,
                    "a message was dropped that is neither UTF-8 nor marked as binary by a first byte FF",
                )
        self.channel = channel
        self._single: dict[Variant, list[bytes]] = {}
        self._frames: dict[Variant, bytes] = {}

    def frames(self, variant: Variant) -> bytes:
        """Return the messages as clients get them whose `variant` this is: one encoding for all of them."""
        frames = self._frames.get(variant)
        if frames is None:
            frames = self._frames[variant] = b"".join(self.single_frames(variant))
        return frames

    def single_frames(self, variant: Variant) -> list[bytes]:
        """Return the same, each message by itself."""
        frames = self._single.get(variant)
        if frames is None:
            if variant is None:
                frames = list(map(encode_message, self.messages))
            else:
                allowance = shared_of_loop().encoder.allowance
                frames = [encode_compressed(message, *variant, allowance) for message in self.messages]
            self._single[variant] = frames
        return frames


def variant_for(agreement: Agreement | None) -> Variant:
    """Return which encoding a client gets, one and the same object for all with whom the same was agreed on."""
    return None if agreement is None else _variants.setdefault(v := (agreement.window_bits, agreement.threshold), v)


class Backlog(Generic[T]):
    """What waits for somebody slow; when it becomes too much the oldest goes. `latest` keeps one for each channel."""

    __slots__ = ("_count", "_items", "_latest", "_limit", "_size")

    def __init__(self, limit: int, latest: bool) -> None:
        self._limit = limit  # bytes
        self._latest = latest
        self._items: OrderedDict[str | int, tuple[T, int]] = OrderedDict()  # with what each costs
        self._size = 0
        self._count = 0  # of all that ever waited

    def __len__(self) -> int:
        return len(self._items)

    def append(self, channel: str, item: T) -> bool:
        """Add what has come on a channel; return whether something else had to go, for lack of room."""
        self._count += 1
        key = channel if self._latest else self._count
        if key in self._items:
            self._size -= self._items.pop(key)[1]
        costs = cost(item)
        self._items[key] = item, costs
        self._size += costs
        full = self._size > self._limit and len(self._items) > 1
        while self._size > self._limit and len(self._items) > 1:
            self.popleft()
        return full

    def popleft(self) -> T:
        """Take the oldest."""
        _, (item, costs) = self._items.popitem(last=False)
        self._size -= costs
        return item

    def clear(self) -> None:
        """Drop everything."""
        self._items.clear()
        self._size = 0


def cost(message: str | bytes) -> int:
    """Return the bytes that a message costs while it waits: of a text with one emoji, four for each character."""
    return (len(message) if type(message) is bytes or message.isascii() else sys.getsizeof(message)) + OVERHEAD


class Member(Protocol):
    """Who has joined channels."""

    def deliver(self, publication: Publication) -> None:
        """Take messages; must neither wait nor raise."""

    def missed(self) -> None:
        """Take note that messages may have been lost; must neither wait nor raise."""

    def broker_closed(self) -> None:
        """Take note that no message comes any more; must neither wait nor raise."""


class Channel:
    """Who has joined a channel, in that order, and whether the broker knows."""

    __slots__ = ("joined", "members", "stale")

    def __init__(self) -> None:
        self.members: dict[Member, None] = {}
        self.joined: AsyncResult[None] | None = AsyncResult()  # None while it is received
        self.stale: Collection[Member] = ()  # who was a member when the broker went away

    def received(self) -> None:
        """Let those go on who wait for the channel to be received."""
        joined, self.joined = self.joined, None
        if joined is not None:
            joined.set(None)


class Hub(InLoop):
    """The members of all channels, on one loop; asks the broker for a channel while it has members."""

    def __init__(self, broker: Broker) -> None:
        super().__init__()
        self.channels: dict[str, Channel] = {}  # those that have members
        self._closed = False
        self._subscriber = broker.subscriber(self)

    def join(self, member: Member, names: Sequence[str]) -> None:
        """Have `member` get what is published to the channels; returns when that is in force, or raises BrokerError."""
        if self._closed:
            raise _closed_error()
        new = [name for name in dict.fromkeys(names) if name not in self.channels]
        for name in new:
            self.channels[name] = Channel()
        channels = [self.channels[name] for name in names]
        for channel in channels:
            channel.members[member] = None
        try:
            if new:  # in a greenlet of its own, since whoever joins meanwhile relies on it too
                gevent.spawn(self._ask_for, {name: self.channels[name] for name in new})
            with gevent.Timeout(JOIN_TIMEOUT, BrokerError(f"The broker has been away for {JOIN_TIMEOUT} seconds")):
                for channel in channels:
                    if channel.joined is not None:
                        channel.joined.get()
        except BaseException:
            self.leave(member, names)
            raise

    def _ask_for(self, channels: Mapping[str, Channel]) -> None:
        try:
            self._subscriber.subscribe(list(channels))
        except BrokerError as error:
            failed = [name for name, channel in channels.items() if self.channels.get(name) is channel]
            for name in failed:  # who comes later makes a new attempt
                del self.channels[name]
            if failed:
                self._subscriber.unsubscribe(failed)
            for channel in channels.values():
                if channel.joined is not None:
                    channel.joined.set_exception(error)
        else:
            for channel in channels.values():
                channel.received()

    def leave(self, member: Member, names: Sequence[str]) -> None:
        """Have `member` get nothing more from the channels. Never waits."""
        empty = []
        for name in names:
            channel = self.channels.get(name)
            if channel is not None and member in channel.members:
                del channel.members[member]
                if not channel.members:
                    del self.channels[name]
                    empty.append(name)
        if empty:
            self._subscriber.unsubscribe(empty)

    def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """Hand out messages as they arrived together. Order is kept for each channel."""
        payloads: dict[str, list[bytes]] = {}
        for name, payload in batch:
            payloads.setdefault(name, []).append(payload)
        turns = turns_of_loop()
        handed = 0  # messages, since the time was looked at
        for name, of_channel in payloads.items():
            channel = self.channels.get(name)
            if channel is None:
                continue  # it was left while the message was on its way
            publication = Publication(name, of_channel)
            if not publication.messages:
                continue
            members = tuple(channel.members)
            each = len(of_channel) + sum(map(len, of_channel)) // GLANCE_SIZE
            step = max(1, GLANCE // each)
            for first in range(0, len(members), step):
                for member in members[first : first + step]:
                    try:
                        member.deliver(publication)
                    except Exception as error:
                        _report_failure(error)
                handed += step * each
                if handed >= GLANCE:
                    handed = 0
                    if turns.spent():
                        let_others_run()

    def missed(self, names: Sequence[str]) -> None:
        """Tell who was a member when the broker went away, each once, that messages may have been lost."""
        stale: dict[Member, Channel] = {}
        for channel in [self.channels[name] for name in names if name in self.channels]:
            stale.update(dict.fromkeys(channel.stale, channel))
            channel.stale = ()
            channel.received()
        # Looked up one by one: whoever leaves while others have their turn is not told any more.
        _tell(member.missed for member, channel in stale.items() if member in channel.members)

    def close(self) -> None:
        """End all subscriptions and the subscriber; whoever joins later gets a BrokerError.

        Called in a greenlet of its loop. Returns when the connections have ended, or after a few seconds. May be called
        twice. Without effect in a child process of the one in which it was made, whose clients they are.
        """
        if not self.orphaned:
            close(self._subscriber)
            self.closed()

    def _end(self) -> None:
        gevent.spawn(self.close)

    def closed(self) -> None:
        """Tell the members, each once, that no message comes any more."""
        self._closed = True
        channels = dict(self.channels)
        self.channels.clear()
        for channel in channels.values():
            joined, channel.joined = channel.joined, None
            if joined is not None:
                joined.set_exception(_closed_error())
        members = dict.fromkeys(member for channel in channels.values() for member in channel.members)
        _tell(member.broker_closed for member in members)

    def lost(self, names: Sequence[str]) -> None:
        """Let whoever joins one of the channels from now on wait until the broker is back."""
        for channel in [self.channels[name] for name in names if name in self.channels]:
            if channel.joined is None:
                channel.joined = AsyncResult()
                channel.stale = tuple(channel.members)


def _tell(calls: Iterable[Callable[[], None]]) -> None:
    """Call members, in as many turns of the loop as it takes; one that fails keeps nothing from the others."""
    for call in calls:
        try:
            call()
        except Exception as error:
            _report_failure(error)
        let_others_run_if_spent()


def _report_failure(error: Exception) -> None:
    """Log that one member, for a fault in this package, did not take what all others get."""
    report("publish/subscribe", None, "a subscriber failed", repr(error), logging.ERROR)


def _closed_error() -> BrokerError:
    return BrokerError("The broker was closed in this process: no message comes any more.")


class Forwarding:
    """What is published to `channels` goes to a client, as it is, until `close()`.

    Without a greenlet: the hub pushes. What comes before `attach()` names the connection waits for it. A client too
    slow for it is closed with 1013. One that missed messages is sent `on_missed`, or without that closed with 1012, so
    that it comes again.
    """

    __slots__ = (
        "__weakref__",
        "_broker_closed",
        "_closed",
        "_connection",
        "_hub",
        "_limit",
        "_missed",
        "_on_missed",
        "_size",
        "_variant",
        "_waiting",
        "channels",
    )

    def __init__(self, hub: Hub, channels: Sequence[str], limit: int, on_missed: str | bytes | None = None) -> None:
        self._hub = hub
        self._limit = limit  # bytes that may wait for the connection
        self._on_missed = on_missed
        self._connection: Connection | None = None  # while messages go there
        self._variant: Variant = None
        self._waiting: list[Publication] = []
        self._size = 0  # bytes that wait
        self._missed = False
        self._closed = False
        self._broker_closed = False
        self.channels = channels
        hub.join(self, channels)

    def __enter__(self) -> Forwarding:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def connection(self) -> Connection | None:
        """Where the messages go, while they do."""
        return self._connection

    def attach(self, connection: Connection) -> Forwarding:
        """Begin to forward to `connection`, and end with it; return self. Raises `ConnectionClosed` if it has ended."""
        if not connection.connected:
            self.close()
            raise ConnectionClosed(connection.close_code or CloseCode.ABNORMAL, connection.close_reason)
        connection.on_end.append(self.close)
        self._connection = connection
        self._variant = variant_for(connection.agreement)
        waiting, self._waiting = self._waiting, []
        if self._missed:
            self.missed()
        for publication in waiting:
            self.deliver(publication)
        if self._broker_closed:
            self.broker_closed()
        return self

    def close(self) -> None:
        """End it; without effect if it has ended."""
        connection, self._connection = self._connection, None
        self._closed = True
        self._hub.leave(self, self.channels)
        if connection is not None and self.close in connection.on_end:
            connection.on_end.remove(self.close)

    def client_left(self, code: int, reason: str) -> None:
        """Nothing to do: the connection ends this itself."""

    def deliver(self, publication: Publication) -> None:
        """Send the messages to the client."""
        connection = self._connection
        if connection is None:
            self._wait(publication)
        else:
            connection.push(publication.frames(self._variant))

    def _wait(self, publication: Publication) -> None:
        if self._closed:
            return  # a large fan-out was on its way
        self._waiting.append(publication)
        self._size += sum(map(cost, publication.messages))
        if self._size > self._limit and len(self._waiting) > 1:
            self.missed()

    def missed(self) -> None:
        """Tell the client, or send it away, to come again and begin anew."""
        if self._connection is None:
            self._missed = True
            self._waiting.clear()
            self._size = 0
        elif self._on_missed is None:
            self._connection.close(CloseCode.SERVICE_RESTART, "messages may have been missed")
        else:
            self._connection.push(encode_message(self._on_missed))

    def broker_closed(self) -> None:
        """Close the connection, so that the client comes again: here it would hear nothing any more."""
        self._broker_closed = True
        if self._connection is not None:
            self._connection.close(CloseCode.SERVICE_RESTART, "the broker was closed")


class LossyForwarding(Forwarding):
    """The same for messages that a slow client need not have all: it stays, and the oldest that wait are dropped.

    With `latest`, only the newest of each channel waits. A frame that has left in part is sent whole.
    """

    __slots__ = ("_backlog",)

    def __init__(
        self, hub: Hub, channels: Sequence[str], limit: int, on_missed: str | bytes | None = None, *, latest: bool
    ) -> None:
        self._backlog: Backlog[bytes] = Backlog(limit, latest)
        super().__init__(hub, channels, limit, on_missed)

    def deliver(self, publication: Publication) -> None:
        """Send the messages to the client if it takes them, else keep what the policy says."""
        connection = self._connection
        if connection is None:
            self._wait(publication)
            return
        frames = publication.single_frames(self._variant)
        begun = connection.offer(frames, publication.frames(self._variant))
        if begun < len(frames):
            connection.take_from(self._next_frames)
            for frame in frames[begun:]:
                self._backlog.append(publication.channel, frame)

    def _next_frames(self) -> bytes:
        """Return the oldest that wait, for the connection that takes them."""
        frames = []
        size = 0
        while self._backlog and size < WRITE_SIZE:
            frames.append(self._backlog.popleft())
            size += len(frames[-1])
        return b"".join(frames)

    def missed(self) -> None:
        """Tell the client, or send it away; what it still has to get is in doubt as well, and older than the news."""
        self._backlog.clear()
        super().missed()


class Subscription(Readable):
    """What is published to `channels`, for the view to take; a context manager, and an iterator over the messages.

    For `select()`, it is ready exactly when `get()` would return at once.
    """

    __slots__ = (
        "_broker_closed",
        "_client_left",
        "_closed",
        "_hub",
        "_lossy",
        "_missed",
        "_queue",
        "channels",
    )

    def __init__(self, hub: Hub, channels: Sequence[str], limit: int, on_slow: str = "raise") -> None:
        super().__init__()
        self._hub = hub
        self.channels = channels
        self._queue: Backlog[str | bytes] = Backlog(limit, on_slow == "latest")
        self._lossy = on_slow != "raise"
        self._missed = False
        self._closed = False
        self._broker_closed = False
        self._client_left: tuple[int, str] | None = None  # no exception: its traceback would keep the view, and it this
        hub.join(self, channels)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str | bytes]:
        return iter(self.get, None)

    def get(self, timeout: float | None = None) -> str | bytes | None:
        """Return the next message, `str` or `bytes`; None when the subscription was closed.

        Waits for it, without holding a database connection meanwhile; for at most `timeout` seconds, after which it
        raises TimeoutError. Raises `MessagesMissed` once after the broker was away, or when too many messages had
        piled up here (unless they may be dropped), and goes on with the next call; ConnectionClosed when the client of
        the view has left, for whom it would wait in vain; BrokerError when the broker was closed, and all that
        came before has been taken; RuntimeError inside an `atomic()` block that the view entered.
        """
        check_before_taking()
        while not self.ready():
            if self._client_left is not None:
                raise ConnectionClosed(*self._client_left)
            if not wait((self,), timeout):
                raise TimeoutError(f"no message came within {timeout} seconds")
        try:
            if self._missed:
                self._missed = False
                raise MessagesMissed("Messages may have been missed: fetch the present state from where it is stored.")
            if not self._queue:
                if self._broker_closed:
                    raise _closed_error()
                return None
            return self._queue.popleft()
        finally:
            if self._signal is not None:
                self._signal.set(self.ready() or self.abandoned)

    def ready(self) -> bool:
        """Whether `get()` would return at once."""
        return bool(self._queue) or self._missed or self._closed

    def close(self) -> None:
        """End the subscription; without effect if it has ended."""
        if not self._closed or self._broker_closed:
            self._closed = True
            self._broker_closed = False
            self._queue.clear()
            self._hub.leave(self, self.channels)
            self._changed()
            self.close_fileno()

    def client_left(self, code: int, reason: str) -> None:
        """Let a view that waits here, and not for its client, know that the client has left."""
        self._client_left = code, reason
        self._changed()

    @property
    def abandoned(self) -> bool:
        """Whether the client has left for whose view this is."""
        return self._client_left is not None

    def deliver(self, publication: Publication) -> None:
        """Keep the messages until the view takes them."""
        if self._closed:
            return
        for message in publication.messages:
            if self._queue.append(publication.channel, message) and not self._lossy:
                self._queue.clear()
                self._missed = True
        self._changed()

    def missed(self) -> None:
        """Have the next `get()` raise `MessagesMissed`."""
        self._missed = True
        self._changed()

    def broker_closed(self) -> None:
        """Have each `get()` raise BrokerError, once what waits has been taken."""
        if not self._closed:
            self._closed = True
            self._broker_closed = True
            self._changed()

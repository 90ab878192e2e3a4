"""The members of each channel in a process: one subscriber receives for all of them, and the hub hands out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

import gevent
from gevent.event import AsyncResult

from django_websocket.exceptions import BrokerError
from django_websocket.transport.log import report
from django_websocket.transport.turns import let_others_run, let_others_run_if_spent, turns_of_loop

from .broker import Broker
from .closing import InLoop, close
from .publication import Publication

GLANCE = 64  # deliveries between two looks at the clock
GLANCE_SIZE = 2 * 1024  # bytes that count as one delivery more, since a large message may be compressed for each client
JOIN_TIMEOUT = 6.0  # seconds; must exceed the subscriber's own timeout (5 s), whose error says more


class Member(Protocol):
    """A receiver of published messages; its methods must neither wait nor raise."""

    def deliver(self, publication: Publication) -> None:
        """Take messages."""

    def missed(self) -> None:
        """Learn that messages may have been lost."""

    def broker_closed(self) -> None:
        """Learn that no further messages will come."""


class Channel:
    """The members of a channel, in the order in which they joined, and whether the broker sends its messages yet."""

    __slots__ = ("joined", "members", "stale")

    def __init__(self) -> None:
        self.members: dict[Member, None] = {}
        self.joined: AsyncResult[None] | None = AsyncResult()  # None while the channel is received
        self.stale: Collection[Member] = ()  # those who were members when the broker went away

    def received(self) -> None:
        """Note that the channel is received now, and wake those who wait for that."""
        joined, self.joined = self.joined, None
        if joined is not None:
            joined.set(None)


class Hub(InLoop):
    """The members of all channels on one loop. A channel is subscribed to while it has members."""

    def __init__(self, broker: Broker) -> None:
        super().__init__()
        self.channels: dict[str, Channel] = {}  # with at least one member
        self._closed = False
        self._subscriber = broker.subscriber(self)

    def join(self, member: Member, names: Sequence[str]) -> None:
        """Let `member` receive the channels; return once it does. Raises BrokerError."""
        if self._closed:
            raise closed_error()
        new = [name for name in dict.fromkeys(names) if name not in self.channels]
        for name in new:
            self.channels[name] = Channel()
        channels = [self.channels[name] for name in names]
        for channel in channels:
            channel.members[member] = None
        try:
            if new:  # in a greenlet of its own: others who join meanwhile depend on it, even if this one is killed
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
            for name in failed:  # the next to join makes a new attempt
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
        """Stop delivering the channels to `member`. Never waits."""
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
        """Hand out messages that arrived together. Each channel keeps its order."""
        payloads: dict[str, list[bytes]] = {}
        for name, payload in batch:
            payloads.setdefault(name, []).append(payload)
        turns = turns_of_loop()
        handed = 0  # deliveries since the last look at the clock
        for name, of_channel in payloads.items():
            channel = self.channels.get(name)
            if channel is None:
                continue  # its last member left while the message was on its way
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
        """Tell those who were members when the broker went away, each once, that messages may have been lost."""
        stale: dict[Member, Channel] = {}
        for channel in [self.channels[name] for name in names if name in self.channels]:
            stale.update(dict.fromkeys(channel.stale, channel))
            channel.stale = ()
            channel.received()
        # Checked one by one, because members may leave while others are told.
        _tell(member.missed for member, channel in stale.items() if member in channel.members)

    def close(self) -> None:
        """Close the subscriber and end all memberships; joining later raises BrokerError.

        Must be called in a greenlet of the hub's loop. Returns when the connections have ended, or after a few seconds.
        May be called twice. Does nothing in a child process: the clients are the parent's.
        """
        if not self.orphaned:
            close(self._subscriber)
            self.closed()

    def _end(self) -> None:
        gevent.spawn(self.close)

    def closed(self) -> None:
        """Tell the members, each once, that no further messages will come."""
        self._closed = True
        channels = dict(self.channels)
        self.channels.clear()
        for channel in channels.values():
            joined, channel.joined = channel.joined, None
            if joined is not None:
                joined.set_exception(closed_error())
        members = dict.fromkeys(member for channel in channels.values() for member in channel.members)
        _tell(member.broker_closed for member in members)

    def lost(self, names: Sequence[str]) -> None:
        """Note that the channels are not received: joining one waits until the broker is back."""
        for channel in [self.channels[name] for name in names if name in self.channels]:
            if channel.joined is None:
                channel.joined = AsyncResult()
                channel.stale = tuple(channel.members)


def _tell(calls: Iterable[Callable[[], None]]) -> None:
    """Call members, in as many turns of the loop as it takes. The failure of one does not affect the others."""
    for call in calls:
        try:
            call()
        except Exception as error:
            _report_failure(error)
        let_others_run_if_spent()


def _report_failure(error: Exception) -> None:
    """Log that a member failed, which is a fault of this package."""
    report("publish/subscribe", None, "a subscriber failed", repr(error), logging.ERROR)


def closed_error() -> BrokerError:
    """Return the error for members after the broker was closed."""
    return BrokerError("The broker was closed in this process: no further messages will come.")

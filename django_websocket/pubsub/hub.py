"""The members of each channel in a process: one subscriber receives for all of them, and the hub hands out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import count, groupby
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import gevent
from gevent.event import AsyncResult
from gevent.lock import Semaphore

from django_websocket.exceptions import BrokerError
from django_websocket.transport.counts import counts
from django_websocket.transport.log import report
from django_websocket.transport.turns import let_others_run, let_others_run_if_spent, turns_of_loop

from .broker import Broker
from .catching_up import CatchingUp
from .closing import InLoop, close
from .entries import NO_RULES, NOWHERE, Entry, Position, keeps, no_history
from .following import Arrived, Rings, Track, publication_of
from .publication import Compressed, Framed, Mixture, Publication

if TYPE_CHECKING:
    from .presence import Presence

GLANCE = 64  # deliveries between two looks at the clock
GLANCE_SIZE = 2 * 1024  # bytes that count as one delivery more, since a large message may be compressed for each client
# In seconds. It must exceed the subscriber's own timeout (5 s), whose error says more. What is left of it is for asking
# where a channel with history is.
JOIN_TIMEOUT = 6.0

PIECE = 64 * 1024  # bytes of what comes late that are handed out at once
NO_STARTS: Mapping[str, Position] = MappingProxyType({})  # of members of channels without history: one for all

Positions = Mapping[str, Sequence[Position | None]]  # by channel, of its payloads in a batch


class Target(Protocol):
    """Takes published messages; must not raise, and wait for nothing but its next turn of the loop."""

    def deliver(self, publication: Publication) -> None:
        """Take messages."""


class Member(Target, Protocol):
    """A target that joins channels; its other methods must neither wait nor raise."""

    def missed(self) -> None:
        """Learn that messages may have been lost."""

    def broker_closed(self) -> None:
        """Learn that no further messages will come."""


class Channel:
    """The members of a channel, in the order in which they joined, and whether the broker sends its messages yet."""

    __slots__ = ("joined", "members", "stale", "track")

    def __init__(self, track: Track | None = None) -> None:
        # Each with the recipient of its other channels, whose messages are to stay in order; None if it has no others.
        self.members: dict[Member, object] = {}
        self.joined: AsyncResult[None] | None = AsyncResult()  # None while the channel is received
        self.stale: Collection[Member] = ()  # those who were members when the broker went away
        self.track = track  # of a channel with history

    @property
    def away(self) -> bool:
        """Whether the broker has gone away, and has not come back."""
        return bool(self.stale) or (self.track is not None and self.track.away)

    def received(self) -> None:
        """Note that the channel is received now, and wake those who wait for that."""
        joined, self.joined = self.joined, None
        if joined is not None:
            joined.set(None)


class Recipient:
    """The members of one recipient, by channel: the first one takes the messages for all."""

    def __init__(self, hub: Hub, members: Mapping[str, Member], publications: Mapping[str, Publication]) -> None:
        self._hub = hub
        self._members = members
        self._publications = publications

    def deliver(self, publication: Publication) -> None:
        """Deliver once; if a member has left meanwhile, deliver to each other one what it has joined."""
        channels = self._hub.channels
        joined = {
            name: member
            for name, member in self._members.items()
            if name in channels and member in channels[name].members
        }
        if len(joined) == len(self._members):
            next(iter(joined.values())).deliver(publication)
        else:
            for name, member in joined.items():
                member.deliver(self._publications[name])


class Hub(InLoop):
    """The members of all channels on one loop. A channel is subscribed to while it has members."""

    def __init__(self, broker: Broker) -> None:
        super().__init__()
        self.channels: dict[str, Channel] = {}  # with at least one member
        self.rules = NO_RULES  # which channels have a history
        self.in_turn = Semaphore()  # held while messages of channels with history are handed out
        self.catching_up = CatchingUp(self, broker) if keeps(broker) else None
        self._rings = Rings()
        self.numbers: dict[str, int] = {}  # of channels, for clients that speak the package's subprotocol
        self._new_numbers = count(1)  # one that was used is not given to another channel
        self._framed: dict[Compressed, Framed] = {}
        self._tracks: dict[str, Track] = {}  # of channels with history
        self._closed = False
        self.broker = broker
        self.failed_at = -math.inf  # seconds of time.monotonic, when a channel could not be joined
        self.presence: Presence | None = None  # who is in its channels, once somebody wants to know
        self._subscriber = broker.subscriber(self)

    def join(self, member: Member, names: Sequence[str], *, with_others: bool = False) -> Mapping[str, Position]:
        """Let `member` receive the channels; return once it does. Raises BrokerError.

        It gets the messages of all these channels in the order of the broker; `with_others`, of all that it joins so.
        Such a member stands for many: it stays one after an error, too, until it calls `leave`.

        Returns, for each channel with history, the position behind which it gets all messages.
        """
        if self._closed:
            raise closed_error()
        new = [name for name in dict.fromkeys(names) if name not in self.channels]
        self.channels.update({name: Channel(self._track(name) if self.rules else None) for name in new})
        channels = [self.channels[name] for name in names]
        tracks = {name: self._tracks[name] for name in names if name in self._tracks} if self._tracks else {}
        starts = {name: track.position for name, track in tracks.items()}
        recipient = member if with_others or len(channels) > 1 else None
        for channel in channels:
            channel.members[member] = recipient
        try:
            if new:  # in a greenlet of its own: others who join meanwhile depend on it, even if this one is killed
                gevent.spawn(self._ask_for, {name: self.channels[name] for name in new})
            # Those that fail meanwhile have no `joined` any more, as those that are received.
            joining = [channel.joined for channel in channels if channel.joined is not None]
            with gevent.Timeout(JOIN_TIMEOUT, BrokerError(f"The broker has been away for {JOIN_TIMEOUT:.3g} seconds")):
                for joined in joining:
                    joined.get()
        except BaseException:
            if not with_others:
                self.leave(member, names)
            raise
        if not tracks:
            return NO_STARTS
        return {name: starts[name] or track.first or NOWHERE for name, track in tracks.items()}

    def _track(self, name: str) -> Track | None:
        rule = self.rules.find(name)
        if rule is None:
            return None
        if self.catching_up is None:
            raise BrokerError(no_history(name))
        self.catching_up.watch()
        track = self._tracks[name] = Track(name, rule, self._rings)
        return track

    def _drop(self, name: str) -> None:
        """Forget a channel."""
        self.numbers.pop(name, None)
        track = self.channels.pop(name).track
        if track is not None:
            del self._tracks[name]
            self._rings.forget(track.ring)
            if not self._tracks and self.catching_up is not None:
                self.catching_up.stop()

    def _ask_for(self, channels: Mapping[str, Channel]) -> None:
        try:
            self._subscriber.subscribe(list(channels))
            if self._tracks:
                self._begin_to_follow(channels)
        except Exception as error:
            self.failed_at = time.monotonic()
            here = {name: channel for name, channel in channels.items() if self.channels.get(name) is channel}
            failed = [name for name, channel in here.items() if channel.joined is not None]
            for name in failed:  # the next to join makes a new attempt
                self._drop(name)
            if failed:
                self._subscriber.unsubscribe(failed)
            for channel in channels.values():
                joined, channel.joined = channel.joined, None  # at once: nobody else is to say that it is received
                if joined is not None:
                    joined.set_exception(error)
            if not isinstance(error, BrokerError):
                raise
        else:
            self.failed_at = -math.inf
            for channel in channels.values():
                if channel.track is None or not channel.track.away:
                    channel.received()

    def _begin_to_follow(self, channels: Mapping[str, Channel]) -> None:
        """Ask where channels with history are. Raises BrokerError."""
        followed = [(name, channel) for name, channel in channels.items() if channel.track is not None]
        readers = [gevent.spawn(self._error_of_reading, *each) for each in followed]
        for reader in gevent.joinall(readers):
            if reader.value is not None:
                raise reader.value

    def _error_of_reading(self, name: str, channel: Channel) -> Exception | None:
        assert self.catching_up is not None
        try:
            self.catching_up.read(name, channel)
        except Exception as error:
            return error
        return None

    def leave(self, member: Member, names: Sequence[str]) -> None:
        """Stop delivering the channels to `member`. Never waits."""
        empty = []
        for name in names:
            channel = self.channels.get(name)
            if channel is not None and member in channel.members:
                del channel.members[member]
                if not channel.members:
                    self._drop(name)
                    empty.append(name)
        if empty:
            self._subscriber.unsubscribe(empty)

    def keep_in_order(self, member: Member, names: Sequence[str], recipient: object) -> None:
        """Deliver to all members of one `recipient` in the order of the broker, across their channels."""
        for name in names:
            channel = self.channels.get(name)
            if channel is not None and member in channel.members:
                channel.members[member] = recipient

    def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """Hand out messages that arrived together. Each recipient gets its messages in the order of `batch`."""
        if not counts.wanted:
            self._deliver_any(batch)
            return
        begin = perf_counter()
        self._deliver_any(batch)
        counts.observe("delivery_lag_seconds", perf_counter() - begin)

    def _deliver_any(self, batch: Sequence[tuple[str, bytes]]) -> None:
        tracks = self._tracks
        name = batch[0][0]
        # The messages are nearly always of one channel, and then need not be sorted by channel.
        if name in tracks and (len(batch) == 1 or all(other == name for other, _ in batch)):
            self._deliver_kept(name, [payload for _, payload in batch])
        elif not tracks or tracks.keys().isdisjoint([name for name, _ in batch]):
            self._deliver(batch)
        else:
            with self.in_turn:
                self._deliver(*self._follow(batch))

    def _deliver_kept(self, name: str, payloads: Sequence[bytes]) -> None:
        """Do the same with messages of one channel with history.

        Between two batches others use the processor, and its caches: each line and object here costs twice its time.
        """
        with self.in_turn:
            track = self._tracks.get(name)
            if track is None:
                return  # its last member left while others had their turn
            arrived: list[Arrived] = []
            for payload in payloads:
                one = track.take(payload)
                if one is None:
                    rest = self._arrive(name, payloads[len(arrived) :])
                    arrived += [one for one in rest if one is not None]
                    break
                arrived.append(one)
            if arrived:
                _hand_out_kept(name, arrived, tuple(self.channels[name].members))

    def _arrive(self, name: str, payloads: Sequence[bytes]) -> Sequence[Arrived | None]:
        """Have a channel with history take what has come; see `Track.arrive`."""
        track = self._tracks[name]
        arrived = track.arrive(payloads)
        if track.held is not None and not track.reading and not track.away:
            assert self.catching_up is not None
            self.catching_up.add(name, self.channels[name])
        return arrived

    def _follow(self, batch: Sequence[tuple[str, bytes]]) -> tuple[Sequence[tuple[str, bytes]], Positions]:
        """Return what of `batch` can be handed out now, and the positions of what is kept."""
        arriving: dict[str, list[bytes]] = {}
        for name, payload in batch:
            if name in self._tracks:
                arriving.setdefault(name, []).append(payload)
        arrived = {name: iter(self._arrive(name, payloads)) for name, payloads in arriving.items()}
        found: list[tuple[str, bytes]] = []
        positions: dict[str, list[Position | None]] = {name: [] for name in arriving}
        for name, payload in batch:
            if name not in arrived:
                found.append((name, payload))
            elif (one := next(arrived[name])) is not None:
                found.append((name, one[0]))
                positions[name].append(one[1])
        return found, positions

    def _deliver(self, batch: Sequence[tuple[str, bytes]], positions: Positions | None = None) -> None:
        payloads: dict[str, list[bytes]] = {}
        for name, payload in batch:
            payloads.setdefault(name, []).append(payload)
        publications: dict[str, Publication] = {}
        for name, of_channel in payloads.items():
            if name in self.channels:  # else its last member left while the message was on its way
                publication = Publication(name, of_channel, positions.get(name) if positions else None)
                if publication.messages:
                    publications[name] = publication
        # Whoever joins while these are handed out begins behind them.
        present = {name: tuple(self.channels[name].members) for name in positions or () if name in publications}
        served: dict[str, set[Member]] = {}
        handed = 0  # deliveries since the last look at the clock
        if len(publications) > 1:
            mixtures, served = self._mixtures([name for name, _ in batch if name in publications], publications)
            for mixture, targets in mixtures:
                handed = _hand_out(mixture, targets, handed)
        for name, publication in publications.items():
            channel = self.channels.get(name)
            if channel is not None:
                members: Sequence[Target] = present[name] if name in present else tuple(channel.members)
                if name in served:
                    members = [member for member in members if member not in served[name]]
                handed = _hand_out(publication, members, handed)

    def hand_out(self, name: str, channel: Channel, arrived: Sequence[Arrived]) -> None:
        """Hand out messages of one channel that come late, in pieces; `in_turn` is held."""
        members = tuple(channel.members)  # whoever joins while they are handed out begins behind them
        piece: list[Arrived] = []
        size = 0
        for one in (*arrived, None):
            if piece and (one is None or size > PIECE):
                _hand_out_kept(name, piece, members, late=True)
                let_others_run_if_spent()
                piece, size = [], 0
            if one is not None:
                piece.append(one)
                size += len(one[0])

    def publication(self, name: str, entry: Entry) -> Publication:
        """Return an entry as it is sent to clients, encoded once for all who get it in the same minutes."""
        track = self._tracks.get(name)
        return publication_of(name, entry) if track is None else track.ring.publication(entry)

    def tell_missed(self, name: str, channel: Channel) -> None:
        """Tell all members of a channel that messages are lost, and those who want to know it where it goes on."""
        position = None if channel.track is None else channel.track.position
        counts.add("missed", by=len(channel.members))
        for member in channel.members:
            restart = getattr(member, "restart", None)
            if restart is not None and position is not None:
                restart(name, position)
        _tell(member.missed for member in tuple(channel.members) if member in channel.members)

    def positions(self, names: Iterable[str]) -> dict[str, Position]:
        """Return where channels are: behind what was handed out, if `in_turn` is held."""
        tracks = {name: self._tracks.get(name) for name in names}
        return {name: track and track.position or NOWHERE for name, track in tracks.items()}

    def number(self, name: str) -> int:
        """Return the number by which clients know a channel that has members."""
        if name not in self.numbers:
            self.numbers[name] = next(self._new_numbers)
        return self.numbers[name]

    def framed(self, compressed: Compressed) -> Framed:
        """Return how messages are encoded for clients that know channels by number: the same object for all alike."""
        if compressed not in self._framed:
            self._framed[compressed] = Framed(self.numbers, compressed)
        return self._framed[compressed]

    def renew(self, name: str) -> None:
        """Have the subscriber connect anew where it receives a channel, if it can."""
        renew = getattr(self._subscriber, "renew", None)
        if renew is not None:
            renew(name)

    def _mixtures(
        self, arrived: Sequence[str], publications: Mapping[str, Publication]
    ) -> tuple[list[tuple[Publication, Sequence[Target]]], dict[str, set[Member]]]:
        """Return what recipients of several channels get, where the channels' messages arrived interleaved.

        Also return, by channel, the members that are served thereby.
        """
        if in_rows(arrived, publications):
            return [], {}
        recipients: dict[object, dict[str, Member]] = {}
        for name in publications:
            for member, recipient in self.channels[name].members.items():
                if recipient is not None:
                    recipients.setdefault(recipient, {}).setdefault(name, member)
        mixtures: dict[tuple[str, ...], tuple[Publication, list[Target]] | None] = {}
        served: dict[str, set[Member]] = {}
        for members in recipients.values():
            key = tuple(members)
            if key not in mixtures:
                own = {name: publications[name] for name in key}
                mixtures[key] = None if in_rows(arrived, own) else (Mixture(arrived, own), [])
            found = mixtures[key]
            if found is not None:
                first = members[key[0]]
                single = all(member is first for member in members.values())
                found[1].append(first if single else Recipient(self, members, publications))
                for name, member in members.items():
                    served.setdefault(name, set()).add(member)
        return [found for found in mixtures.values() if found is not None], served

    def missed(self, names: Sequence[str]) -> None:
        """Catch up, or tell those who were members when the broker went away, each once, that messages may be lost."""
        stale: dict[Member, Channel] = {}
        for name, channel in [(name, self.channels[name]) for name in names if name in self.channels]:
            if channel.track is not None and self.catching_up is not None:
                channel.stale = ()
                channel.track.away = False
                self.catching_up.add(name, channel)
                continue
            stale.update(dict.fromkeys(channel.stale, channel))
            channel.stale = ()
            channel.received()
        counts.add("broker_reconnects")
        counts.add("missed", by=len(stale))
        # Checked one by one, because members may leave while others are told.
        _tell(member.missed for member, channel in stale.items() if member in channel.members)

    def refused(self, name: str) -> None:
        """Tell the members of a channel that it is not received any more, although the broker is there."""
        channel = self.channels.get(name)
        if channel is not None:
            channel.received()
            self.tell_missed(name, channel)

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
        for name in channels:
            self._drop(name)
        for channel in channels.values():
            joined, channel.joined = channel.joined, None
            if joined is not None:
                joined.set_exception(closed_error())
        members = dict.fromkeys(member for channel in channels.values() for member in channel.members)
        _tell(member.broker_closed for member in members)
        if self.presence is not None:
            self.presence.end()

    def lost(self, names: Sequence[str]) -> None:
        """Note that the channels are not received: joining one waits until the broker is back."""
        for channel in [self.channels[name] for name in names if name in self.channels]:
            if channel.joined is None:
                channel.joined = AsyncResult()
                channel.stale = tuple(channel.members)
            if channel.track is not None:
                channel.track.away = True
                channel.track.hold()


def in_rows(arrived: Iterable[str], channels: Collection[str]) -> bool:
    """Whether the messages of each of these channels arrived one after the other, none of another between them."""
    rows = [name for name, _ in groupby(name for name in arrived if name in channels)]
    return len(rows) == len(channels)


def _hand_out_kept(name: str, arrived: Iterable[Arrived], members: Sequence[Target], *, late: bool = False) -> None:
    """Deliver messages of one channel with history that were taken together to all members."""
    payloads, positions = zip(*arrived, strict=True)
    publication = Publication(name, payloads, positions, late=late)
    if publication.messages:
        _hand_out(publication, members, 0)


def _hand_out(publication: Publication, targets: Sequence[Target], handed: int) -> int:
    """Deliver to all targets, in as many turns of the loop as it takes; return the deliveries since the last look."""
    turns = turns_of_loop()
    if counts.wanted and not publication.reserved:
        counts.add("delivered", by=publication.count * len(targets))
    each = len(publication.messages) + sum(map(len, publication.messages)) // GLANCE_SIZE
    step = max(1, GLANCE // each)
    for first in range(0, len(targets), step):
        for target in targets[first : first + step]:
            try:
                target.deliver(publication)
            except Exception as error:
                _report_failure(error)
        handed += step * each
        if handed >= GLANCE:
            handed = 0
            if turns.spent():
                let_others_run()
    return handed


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

"""Reads from the broker what a process has missed of channels with history, and what clients who resume have."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import gevent
from gevent.event import AsyncResult, Event

from django_websocket.exceptions import BrokerError
from django_websocket.transport.counts import counts
from django_websocket.transport.log import report

from .entries import READ_SIZE, Entry, KeepingBroker, Position, Rule, Stretch
from .following import Ring, Track

if TYPE_CHECKING:
    from .hub import Channel, Hub

READERS = 64  # channels that are read at once; what they ask for leaves together
CHECK_INTERVAL = 30.0  # seconds between two looks whether each channel has got everything; jittered
PATH_TIMEOUT = 5.0  # seconds for a message that was read to come as well; else the connection delivers nothing
FIRST_DELAY, LONGEST_DELAY = 0.1, 2.0  # seconds between two attempts to read; jittered
REACH_TIMEOUT = 6.0  # seconds to catch up with a client
ATTEMPTS = 3  # to read what a client wants while messages come


class CatchingUp:
    """Brings the channels with history of a hub to where the broker is."""

    def __init__(self, hub: Hub, broker: KeepingBroker) -> None:
        self._hub = hub
        self._broker = broker
        self._waiting: deque[Callable[[], None]] = deque()  # to be called by the readers
        self._readers = 0
        self._watcher: gevent.Greenlet[[], None] | None = None
        self._flights: dict[str, AsyncResult[Stretch]] = {}

    # --- the process ---------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Look from time to time whether the channels have got everything, from now on."""
        if self._watcher is None:
            self._watcher = gevent.spawn(self._watch)

    def stop(self) -> None:
        """Look no more."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.kill(block=False)

    def _watch(self) -> None:
        while True:
            gevent.sleep(CHECK_INTERVAL * random.uniform(0.5, 1.5))
            if not self._waiting:  # else the last look is not over
                for name, channel in self._hub.channels.items():
                    if channel.track is not None:
                        self._put(partial(self._check, name, channel))

    def add(self, name: str, channel: Channel, *, to_be_sure: bool = False) -> None:
        """Read soon what a channel has missed. Never waits.

        `to_be_sure` says that all of it should have come by itself.
        """
        track = channel.track
        assert track is not None
        track.hold()
        if track.reading:
            track.again = True
        else:
            track.reading = True
            self._put(partial(self._try_to_read, name, channel, to_be_sure), first=True)

    def _put(self, job: Callable[[], None], *, first: bool = False) -> None:
        if first:
            self._waiting.appendleft(job)
        else:
            self._waiting.append(job)
        if self._readers < READERS:
            self._readers += 1
            gevent.spawn(self._do_all)

    def _do_all(self) -> None:
        try:
            while self._waiting:
                self._waiting.popleft()()
        finally:
            self._readers -= 1

    def _check(self, name: str, channel: Channel) -> None:
        """Ask whether a channel has got everything, without holding up what comes."""
        track = channel.track
        if track is None or track.position is None or track.held is not None:
            return  # somebody else looks after it
        try:
            stretch = self._broker.read(name, track.rule, 0, track.position.offset, READ_SIZE)
        except BrokerError:
            return
        if track.held is None and self._hub.channels.get(name) is channel and not track.knows(stretch.top):
            self.add(name, channel, to_be_sure=True)

    def _try_to_read(self, name: str, channel: Channel, to_be_sure: bool, delay: float = FIRST_DELAY) -> None:
        """Do what `read` does, and if that fails, do it again later, so that others can be read meanwhile."""
        track = channel.track
        assert track is not None
        try:
            self.read(name, channel, to_be_sure=to_be_sure)
        except Exception as error:
            if track.away or self._hub.channels.get(name) is not channel:
                return  # it is read when it is back
            report(f"Channel {name}", None, "the messages that it has missed cannot be read yet", str(error))
            track.reading = True  # or is about to be
            pause = delay * random.uniform(0.5, 1.5)
            delay = min(2 * delay, LONGEST_DELAY)
            gevent.spawn_later(
                pause, self._put, partial(self._try_to_read, name, channel, to_be_sure, delay), first=True
            )
        else:
            if not track.away and self._hub.channels.get(name) is channel:
                channel.received()

    def read(self, name: str, channel: Channel, *, to_be_sure: bool = False) -> None:
        """Read what a channel has missed, hand it out, and go on with what has come meanwhile. Raises BrokerError."""
        track = channel.track
        assert track is not None
        track.reading = True
        try:
            while self._hub.channels.get(name) is channel:
                track.hold()
                track.again = False
                covered = len(track.held or ())
                since = track.position
                stretch = self._broker.read(name, track.rule, 0, since and since.offset, READ_SIZE)
                self._take(name, channel, stretch, covered, to_be_sure)
                if track.away or (track.held is None and not track.again):
                    break
        finally:
            track.reading = False
        if track.away:
            track.hold()
        else:
            awaited, track.awaited = track.awaited, ()
            for caught_up in awaited:
                caught_up.set()

    def _take(self, name: str, channel: Channel, stretch: Stretch, covered: int, to_be_sure: bool) -> None:
        """Hand out what was read, and what was held meanwhile. Members are told if something is missing for good."""
        track = channel.track
        assert track is not None
        with self._hub.in_turn:
            if self._hub.channels.get(name) is not channel:
                return  # it was dropped while this one waited
            if track.position is None:
                track.begin(stretch.top, stretch.time)
            else:
                entries = stretch.behind(track.position, track.rule)
                if entries is None:
                    counts.add("gaps", "no")
                    report(f"Channel {name}", None, "messages are lost: its history does not reach back far enough")
                    track.restart(stretch.top)
                    self._hub.tell_missed(name, channel)
                elif entries:
                    counts.add("gaps", "yes")
                    if to_be_sure:  # all of them should have come, or be about to
                        track.unseen = entries[-1].tag
                        gevent.spawn_later(PATH_TIMEOUT, self._judge, name, channel, track.unseen)
                    self._hub.hand_out(name, channel, track.take_over(entries, stretch.time))
            if stretch.cut:
                return  # what is held comes behind the rest
            arrived, lost = track.release(covered)
            self._hub.hand_out(name, channel, arrived)
            if lost:
                counts.add("gaps", "no")
                self._hub.tell_missed(name, channel)

    def _judge(self, name: str, channel: Channel, tag: bytes) -> None:
        """Connect anew if an entry that was read has not come."""
        track = channel.track
        if track is not None and track.unseen == tag and self._hub.channels.get(name) is channel:
            report(f"Channel {name}", None, "the broker has kept a message, but not delivered it: reconnecting")
            self._hub.renew(name)

    # --- clients -------------------------------------------------------------------------------------------------

    def behind(self, name: str, end: Position, since: Position) -> Sequence[Entry] | None:
        """Return the entries of a channel behind `since` up to `end`; None if not all of them are there.

        However many ask at once, the broker is asked once. Raises BrokerError.
        """
        return self._entries(
            name, end, lambda ring: ring.between(since, end), lambda stretch, rule: stretch.behind(since, rule)
        )

    def last(self, name: str, end: Position, count: int) -> Sequence[Entry] | None:
        """Return the last `count` entries of a channel up to `end`, or as many as there are; see `behind`."""
        return self._entries(
            name, end, lambda ring: ring.before(end, count), lambda stretch, rule: stretch.last(count, rule)
        )

    def from_time(self, name: str, end: Position, time: int) -> Sequence[Entry] | None:
        """Return the entries of a channel up to `end` for a page that was made at `time`; see `behind`."""
        return self._entries(
            name, end, lambda ring: ring.from_time(end, time), lambda stretch, rule: stretch.from_time(time, rule)
        )

    def _entries(
        self,
        name: str,
        end: Position,
        of_ring: Callable[[Ring], Sequence[Entry] | None],
        of_stretch: Callable[[Stretch, Rule], Sequence[Entry] | None],
    ) -> Sequence[Entry] | None:
        track = self._track(name)
        for _ in range(ATTEMPTS):
            found = None if track is None else of_ring(track.ring)
            if found is not None:
                counts.add("resumes", "whole", "memory")
                return found
            rule = self._hub.rules.find(name)
            if rule is None or (track is not None and track.ring.whole):
                counts.add("resumes", "incomplete", "memory")
                return None  # the ring has all that is kept
            whole = self._whole(name, rule)
            stretch = whole.until(end)
            if stretch is not None:
                found = of_stretch(stretch, rule)
                counts.add("resumes", "incomplete" if found is None else "whole", "broker")
                return found
            if whole.top.offset >= end.offset:  # it is not the stream that this process has followed
                self._catch_up(name)
                break
        counts.add("resumes", "incomplete", "broker")
        return None

    def reach(self, name: str, since: Position) -> bool:
        """Catch up to a position that is ahead of this process; return whether it is one. Raises BrokerError."""
        rule = self._hub.rules.find(name)
        if rule is None:
            return False
        from_there = self._broker.read(name, rule, 0, since.offset - 1, READ_SIZE)
        if not from_there.entries or from_there.entries[0].position != since:
            return False
        self._catch_up(name)
        return True

    def _catch_up(self, name: str) -> None:
        """Wait until a channel is at least where the broker is now. Raises BrokerError."""
        channel = self._hub.channels.get(name)
        if channel is not None and channel.track is not None:
            caught_up = Event()
            channel.track.awaited = [*channel.track.awaited, caught_up]
            self.add(name, channel)
            if not caught_up.wait(REACH_TIMEOUT):
                raise BrokerError(f"The broker has been away for {REACH_TIMEOUT:.3g} seconds")

    def _whole(self, name: str, rule: Rule) -> Stretch:
        """Return all that the broker has of a channel."""
        flight = self._flights.get(name)
        if flight is None:
            flight = self._flights[name] = AsyncResult()
            gevent.spawn(self._fly, name, rule, flight)  # others wait for it, too, even if this greenlet is killed
        stretch = flight.get()
        assert stretch is not None
        return stretch

    def _fly(self, name: str, rule: Rule, flight: AsyncResult[Stretch]) -> None:
        try:
            stretch = self._broker.read(name, rule, rule.messages, size=READ_SIZE)
        except Exception as error:
            flight.set_exception(error)
        else:
            track = self._track(name)
            known = None if track is None or track.position is None else stretch.until(track.position)
            if track is not None and known is not None:
                track.ring.load(known.last(rule.messages, rule), stretch.time)
                track.ring.whole = not stretch.cut
            top, now, entries, cut = stretch
            flight.set(Stretch(top, now, entries, cut or len(entries) >= rule.messages))  # there may be more of them
        finally:
            del self._flights[name]

    def _track(self, name: str) -> Track | None:
        channel = self._hub.channels.get(name)
        return None if channel is None else channel.track

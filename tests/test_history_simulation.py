"""The members of channels with history, over a broker that does everything wrong that a broker may do.

The broker is simulated, so that thousands of interleavings take a second: it takes its time, drops what it has
published, loses its connection, refuses to be read, and begins its channels anew. Each seed is a world of its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import gevent
import pytest

from django_websocket.exceptions import BrokerError, MessagesMissed
from django_websocket.pubsub import catching_up, following
from django_websocket.pubsub.broker import Listener
from django_websocket.pubsub.entries import Entry, Position, Rule, Rules, Stretch, new_tag, position_from
from django_websocket.pubsub.hub import Hub
from django_websocket.pubsub.replay import wanted
from django_websocket.pubsub.subscription import Subscription

from .support.waiting import until

CHANNELS = ["room:a", "room:b"]
SECONDS = 0.5  # at least
LAST = -1  # the message that is published when all is quiet


class World:
    """What may go wrong, by the seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kept = self.random.choice([5, 30, 1000])
        self.ring = self.random.choice([0, 2000, 8 * 1024 * 1024])
        self.held = self.random.choice([500, 3000, 1024 * 1024])
        self.flushes, self.drops, self.fails, self.breaks = (self.random.random() < 0.5 for _ in range(4))
        self.over = False

    def pause(self, longest: float) -> None:
        gevent.sleep(self.random.random() * longest)


class Stream:
    """What a channel has kept."""

    def __init__(self) -> None:
        self.top = Position(0, new_tag())
        self.entries: list[Entry] = []


class SimulatedBroker:
    """Keeps messages, and has one subscriber."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.streams = {name: Stream() for name in CHANNELS}
        self.published: dict[str, list[tuple[Position, int]]] = {name: [] for name in CHANNELS}
        self.only: SimulatedSubscriber | None = None
        self.count = 0

    def publish(self, channel: str, payload: bytes) -> None:
        raise NotImplementedError

    def publish_kept(self, channel: str, payload: bytes, rule: Rule) -> None:
        stream = self.streams[channel]
        entry = Entry(stream.top.offset + 1, new_tag(), stream.top.tag, int(time.time()), payload)
        stream.top = entry.position
        stream.entries = [*stream.entries, entry][-self.world.kept :]
        self.published[channel].append((entry.position, int(payload)))
        if self.only is not None:
            self.only.put(channel, entry.to_wire())

    def read(self, channel: str, rule: Rule, count: int, since: int | None = None, size: int | None = None) -> Stretch:
        world = self.world
        world.pause(0.004)
        if world.fails and not world.over and world.random.random() < 0.1:
            raise BrokerError("it refuses")
        stream = self.streams[channel]
        if since is not None:
            count = stream.top.offset - since
            count = 0 if count > len(stream.entries) else count
        entries = stream.entries[-count:] if count > 0 else []
        cut = since is not None and len(entries) > 20
        if cut:
            entries = entries[:20]
        found = Stretch(entries[-1].position if cut else stream.top, int(time.time()), entries, cut)
        world.pause(0.004)
        return found

    def subscriber(self, listener: Listener) -> SimulatedSubscriber:
        self.only = SimulatedSubscriber(self.world, listener)
        return self.only

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


class SimulatedSubscriber:
    """Delivers in pieces of any size, as long as it is connected."""

    def __init__(self, world: World, listener: Listener) -> None:
        self.world = world
        self.listener = listener
        self.channels: set[str] = set()
        self.arrived: list[tuple[str, bytes]] = []
        self.connected = True
        self.reader = gevent.spawn(self.read)

    def put(self, channel: str, payload: bytes) -> None:
        lost = self.world.drops and not self.world.over and self.world.random.random() < 0.01
        if self.connected and channel in self.channels and not lost:
            self.arrived.append((channel, payload))

    def read(self) -> None:
        while True:
            self.world.pause(0.003)
            if self.arrived and self.connected:
                count = self.world.random.randint(1, len(self.arrived))
                batch, self.arrived = self.arrived[:count], self.arrived[count:]
                self.listener.deliver(batch)

    def subscribe(self, channels: Sequence[str]) -> None:
        self.world.pause(0.004)
        if not self.connected:
            raise BrokerError("it is away")
        self.channels.update(channels)
        self.world.pause(0.002)

    def unsubscribe(self, channels: Sequence[str]) -> None:
        self.channels.difference_update(channels)

    def renew(self, channel: str) -> None:
        gevent.spawn(self.lose_connection)

    def lose_connection(self) -> None:
        if self.connected:
            self.connected = False
            self.arrived = []
            names = list(self.channels)
            self.listener.lost(names)
            self.world.pause(0.02)
            self.connected = True
            self.world.pause(0.003)
            self.listener.missed([name for name in names if name in self.channels])

    def close(self) -> None:
        self.reader.kill()


class Life:
    """Subscribers and publishers in a world, and what each subscriber has found wrong."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.broker = SimulatedBroker(world)
        self.hub = Hub(self.broker)
        self.rule = Rule(world.kept, 3600.0)
        self.hub.rules = Rules({"room:*": self.rule})
        self.wrong: list[str] = []
        self.received = self.told = self.resumed = self.flushed = 0
        self.latest: dict[str, int] = {}

    def publish(self, channel: str) -> None:
        while not self.world.over:
            self.world.pause(0.004)
            for _ in range(self.world.random.randint(1, 4)):
                self.broker.count += 1
                self.broker.publish_kept(channel, b"%d" % self.broker.count, self.rule)

    def trouble(self) -> None:
        while not self.world.over:
            self.world.pause(0.1)
            if self.world.breaks and self.broker.only is not None:
                self.broker.only.lose_connection()
            if self.world.flushes and self.world.random.random() < 0.3:
                self.flushed += 1
                self.broker.streams[self.world.random.choice(CHANNELS)] = Stream()

    def is_quiet(self) -> bool:
        """Whether the hub is where the broker is."""
        tops = {name: stream.top for name, stream in self.broker.streams.items()}
        return {name: channel.track and channel.track.position for name, channel in self.hub.channels.items()} == tops

    def place(self, channel: str, position: Position) -> int | None:
        """Which message of a channel, in the order in which all were published, is before a position."""
        places = [index for index, (each, _) in enumerate(self.broker.published[channel]) if each == position]
        return places[0] if places else None

    def come_and_go(self) -> None:
        """Subscribe again and again, at times where the last subscription was, and look at what comes."""
        channel = self.world.random.choice(CHANNELS)
        since: str | None = None
        last: int | None = None  # the place of the last message
        while not self.world.over:
            wish = wanted(
                (channel,), since, self.world.random.choice([None, 5]) if since is None else None, self.hub.rules
            )
            try:
                subscription = Subscription(self.hub, (channel,), 10**9, "raise", wish)
            except BrokerError:
                self.world.pause(0.004)
                continue
            self.resumed += since is not None
            last = None if since is None else last
            with subscription:
                last, told = self.take(subscription, channel, last)
                since = subscription.position() if self.world.random.random() < 0.7 else None
            if since is not None:
                place = self.place(channel, position_from(since))
                if last is not None and place not in (None, last) and not told:
                    self.wrong.append(f"{channel}: the position is behind {place}, the last message was {last}")
                last = place if told else last
            if self.world.random.random() < 0.3:
                self.world.pause(0.05)

    def take(self, subscription: Subscription, channel: str, last: int | None) -> tuple[int | None, bool]:
        """Take some messages; return the place of the last one, and whether something was said to be missing."""
        told = False
        late = 0  # messages that had come before something was said to be missing
        for _ in range(self.world.random.randint(1, 30)):
            try:
                message = int(subscription.get(timeout=0.05))
            except MessagesMissed:
                self.told += 1
                told = True
                late = len(subscription._queue) + 1
                continue
            except TimeoutError:
                continue
            self.received += 1
            late -= 1
            place = [number for _, number in self.broker.published[channel]].index(message)
            if last is not None and place != last + 1 and not (place > last and late >= 0):
                kind = "is missing" if place > last else "came twice, or late"
                self.wrong.append(f"{channel}: behind {last} came {place}: something {kind}")
            last = place
        return last, told

    def stay(self, channel: str) -> None:
        """Subscribe, and stay to the end."""
        subscription: Subscription | None = None
        while subscription is None:
            try:
                subscription = Subscription(self.hub, (channel,), 10**9)
            except BrokerError:
                self.world.pause(0.01)
        while True:
            try:
                self.latest[channel] = int(subscription.get())
            except MessagesMissed:
                continue

    def interrupt(self) -> None:
        """Have others begin to subscribe, and give up."""
        while not self.world.over:
            self.world.pause(0.02)
            gevent.spawn(self.give_up)

    def give_up(self) -> None:
        channel = self.world.random.choice(CHANNELS)
        wish = wanted((channel,), None, 3, self.hub.rules) if self.world.random.random() < 0.5 else None
        with suppress(gevent.Timeout), gevent.Timeout(self.world.random.random() * 0.01):
            try:
                with Subscription(self.hub, (channel,), 10**9, "raise", wish) as subscription:
                    subscription.get()
            except (BrokerError, MessagesMissed):
                pass


@contextmanager
def running(*functions: Callable[[], None]) -> Iterator[list[gevent.Greenlet[[], None]]]:
    greenlets = [gevent.spawn(function) for function in functions]
    try:
        yield greenlets
    finally:
        gevent.killall(greenlets)


@pytest.mark.parametrize("seed", range(16))
def test_whatever_the_broker_does_nothing_is_missing_in_silence(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(seed)
    for name, value in (
        ("CHECK_INTERVAL", 0.05),
        ("PATH_TIMEOUT", 0.02),
        ("FIRST_DELAY", 0.002),
        ("LONGEST_DELAY", 0.01),
    ):
        monkeypatch.setattr(catching_up, name, value)
    monkeypatch.setattr(following, "RING_SIZE", world.ring)
    monkeypatch.setattr(following, "MAX_HELD", world.held)
    life = Life(world)

    def publishing(channel: str) -> Callable[[], None]:
        return lambda: life.publish(channel)

    def staying(channel: str) -> Callable[[], None]:
        return lambda: life.stay(channel)

    publishers = [publishing(channel) for channel in CHANNELS]
    stayers = [staying(channel) for channel in CHANNELS]
    with running(*publishers, *stayers, *[life.come_and_go] * 12, life.trouble, life.interrupt) as greenlets:
        gevent.sleep(SECONDS)
        until(lambda: life.received > 300 and life.resumed > 20, within=30)
        world.over = True
        until(lambda: sum(not one.dead for one in greenlets) == len(stayers), within=30)
        until(life.is_quiet)  # else the last message of a channel that was just begun anew would count as missed
        for channel in CHANNELS:
            life.broker.publish_kept(channel, b"%d" % LAST, life.rule)
        with suppress(AssertionError):  # the one below says more
            until(lambda: life.latest == dict.fromkeys(CHANNELS, LAST))
        assert [one.exception for one in greenlets if one.exception is not None] == []
        assert life.wrong == []
        assert life.latest == dict.fromkeys(CHANNELS, LAST)
        assert life.told > 0 or life.flushed < 3
    life.hub.close()
    assert not life.hub.channels and life.hub._rings.size == 0

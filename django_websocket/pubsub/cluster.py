"""`redis+cluster://` and `rediss+cluster://`: sharded publish/subscribe through a Redis Cluster.

Each channel belongs to one of 16384 slots, and each slot to a node, until the slot is moved or a replica replaces a
failed node. A subscriber for each node receives the channels in its slots.
"""

from __future__ import annotations

import binascii
import logging
import math
import random
import re
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from typing import Any, Protocol, TypeVar

import gevent
import redis
from gevent.event import Event
from redis.exceptions import AskError, MovedError

from django_websocket.exceptions import BrokerError

from . import enrolling, keeping
from .broker import Listener
from .closing import Closed, InLoop
from .enrolling import LEASES, SILENT, TELLING, arguments_of, event_of, roster_key
from .entries import Rule, Stretch
from .keeping import Script, key_of
from .pipeline import Ending, remaining, wait_until_ended
from .redis import FIRST_DELAY, TIMEOUT, RedisBroker, RedisReceiver, RedisSubscriber, unusable
from .redis_address import Host, RedisAddress
from .roster import Claim, Leases, Roster, RosterEvent, told_on

SLOTS = 16384
CHECK_INTERVAL = 1.0  # seconds between two questions about which node has which slot
NODE_TIMEOUT = 1.0  # seconds that a node has to answer; then another one is asked
ATTEMPTS = 5  # to find the node that has a slot
CLOCKS = 2  # nodes that are asked for the time, one after the other
ASK = re.compile(r"ASK ([0-9]+) (.+):([0-9]+)")
MOVED = re.compile(r"(?:MOVED )?([0-9]+) (.*):([0-9]+)")
NO_HOSTNAME = "?"  # stands for a node that prefers its hostname and was given none

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

logger = logging.getLogger("django_websocket")


class Node(RedisBroker):
    """One node, and the channels in its slots."""

    PUBLISH, SUBSCRIBE, UNSUBSCRIBE, MESSAGE = "SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE", b"smessage"

    def call(self, timeout: float, *words: bytes) -> Any:
        """Return the reply to a command. Raises RedisError or OSError."""
        return self._pipeline.call(timeout, *words)

    def keep_until(self, deadline: float, channel: str, payload: bytes, rule: Rule, tag: str) -> bytes:
        """Keep a message of a slot that is about to come here; return the entry to be published."""
        call = partial(self.call_until, deadline, asking=True)
        try:
            return keeping.keep(call, key_of(self.prefix, channel, tag), payload, rule)
        except (redis.RedisError, OSError) as error:
            raise self.error(error) from error


class AtList(Protocol[R_co]):
    """Does something with the list of a channel at a node, which may be `asking` for it before it owns the slot."""

    def __call__(self, node: Node, /, *, asking: bool) -> R_co: ...


class ClusterBroker:
    """A Redis Cluster. See `RedisAddress` for the URL, which names some of the nodes; they know the others."""

    OPTIONS = [name for name in RedisBroker.OPTIONS if name != "db"]

    def __init__(self, url: str, **options: Any) -> None:
        self._address = address = RedisAddress(url, options)
        login = {name: value for name in ("username", "password") if (value := address.arguments[name])}
        self._options = {**options, **login}
        self._nodes: dict[Host, Node] = {}
        self._asked = deque(random.sample(address.hosts, len(address.hosts)))  # nodes to ask about slots, in this order
        self.slots: list[Host | None] = [None] * SLOTS  # the node of each slot
        self.version = 0  # counts the changes of `slots`; 0 before they are known
        self._learned = 0.0  # when the slots were last asked for, a time of time.monotonic()
        self.doubtful = True  # whether the slots may have changed
        self._closed = False
        self._subscribers: weakref.WeakValueDictionary[int, ClusterSubscriber] = weakref.WeakValueDictionary()

    def publish(self, channel: str, payload: bytes) -> int:
        """Publish once; return the number of subscribers that the channel's node reports. Raises BrokerError."""
        deadline = time.monotonic() + TIMEOUT
        return self._at_owner(channel, deadline, lambda node: node.publish_until(deadline, channel, payload))

    def publish_kept(self, channel: str, payload: bytes, rule: Rule) -> int:
        """Do what `publish` does, and keep the message. Raises BrokerError."""
        deadline, tag = time.monotonic() + TIMEOUT, tags()[self.slot(channel)]

        def publish(node: Node, *, asking: bool) -> int:
            if not asking:
                return node.publish_kept_until(deadline, channel, payload, rule, tag)
            # The list is at the next owner of the slot already, the subscribers are still at the present one.
            return self.publish(channel, node.keep_until(deadline, channel, payload, rule, tag))

        return self._at_list(channel, deadline, publish)

    def read(self, channel: str, rule: Rule, count: int, since: int | None = None, size: int | None = None) -> Stretch:
        """Return what is kept; see `KeepingBroker.read`. Raises BrokerError."""
        deadline, tag = time.monotonic() + TIMEOUT, tags()[self.slot(channel)]

        def read(node: Node, *, asking: bool) -> Stretch:
            return node.read_until(deadline, channel, (rule, count, since, size), tag, asking=asking)

        return self._at_list(channel, deadline, read)

    def change_roster(
        self, channel: str, process: bytes, claims: Sequence[Claim], *, gone: bool = False
    ) -> RosterEvent | None:
        """Take what a process says of users; see `PresenceBroker.change_roster`. Raises BrokerError."""
        deadline, name, key = time.monotonic() + TIMEOUT, told_on(channel), roster_key(channel)
        arguments = arguments_of(process, (self._address.prefix + name).encode(), claims, gone=gone)

        def change(node: Node, *, asking: bool) -> RosterEvent | None:
            tag = tags()[self.slot(name)]
            if not asking:
                return event_of(node.run_until(deadline, TELLING[Node.PUBLISH], key, arguments, tag))
            # The roster is at the next owner of the slot already, the subscribers are still at the present one.
            event = event_of(node.run_until(deadline, SILENT, key, arguments, tag, asking=True))
            if event is not None:
                self.publish(name, event.to_wire())
            return event

        return self._at_list(name, deadline, change)

    def read_roster(self, channel: str, limit: int | None = None, *, prolong: bool = False) -> Roster:
        """Return who is there; see `PresenceBroker.read_roster`. Raises BrokerError."""
        return enrolling.read(partial(self._run, told_on(channel), roster_key(channel)), limit, prolong=prolong)

    def renew_lease(self, process: bytes, seconds: float) -> Leases:
        """Renew a lease; see `PresenceBroker.renew_lease`. Raises BrokerError."""
        return enrolling.renew(partial(self._run, LEASES, LEASES), process, seconds)

    def _run(self, channel: str, key: str, script: Script, *arguments: bytes) -> Any:
        """Return the reply of a script at the node that has a channel, beside which the key is."""
        deadline, tag = time.monotonic() + TIMEOUT, tags()[self.slot(channel)]

        def run(node: Node, *, asking: bool) -> Any:
            return node.run_until(deadline, script, key, arguments, tag, asking=asking)

        return self._at_list(channel, deadline, run)

    def clock(self, timeout: float) -> float:
        """Return the time of one of the nodes, whose clocks may differ a little. Raises BrokerError."""
        deadline = time.monotonic() + timeout
        if not self.version:
            self.learn(deadline)
        for host in (*self._asked,)[:CLOCKS]:
            try:
                return self.node(host).clock(remaining(deadline) / 2)
            except (BrokerError, TimeoutError) as error:
                problem = error
        raise self.error(problem)

    def _at_list(self, channel: str, deadline: float, call: AtList[R]) -> R:
        """Do what `_at_owner` does for what concerns the list of a channel, which a slot that moves takes along."""
        attempts = 0
        while True:
            attempts += 1
            try:
                return self._at_owner(channel, deadline, partial(call, asking=False))
            except BrokerError as error:
                other = asked_elsewhere(error)
                if other is None:
                    raise
            try:
                return call(self.node(other), asking=True)
            except BrokerError as error:
                if not self.moved(error, other) or attempts == ATTEMPTS:
                    raise

    def receiver(self, channel: str) -> RedisReceiver:
        """Return a receiver of one channel for a thread without a loop. Raises BrokerError."""
        return self._at_owner(channel, time.monotonic() + TIMEOUT, lambda node: node.receiver(channel))

    def _at_owner(self, channel: str, deadline: float, call: Callable[[Node], R]) -> R:
        """Call `call` with the node that has a channel, and follow the channel if it moves meanwhile."""
        attempts = 0
        while True:
            attempts += 1
            owner = self.owner(channel, deadline)
            try:
                return call(self.node(owner))
            except BrokerError as error:
                # Only a node that redirects us has certainly not taken the message.
                if asked_elsewhere(error) is not None:
                    raise
                if not self.moved(error, owner) or attempts == ATTEMPTS:
                    self.doubtful = True
                    raise

    def subscriber(self, listener: Listener) -> ClusterSubscriber:
        """Return a subscriber; it connects to the nodes that have its channels.

        Raises BrokerError after `close`.
        """
        subscriber = ClusterSubscriber(self, listener)
        self._subscribers[id(subscriber)] = subscriber
        if self._closed:
            raise self.error(Closed())
        return subscriber

    def close(self) -> None:
        """Close the connections to all nodes, as `RedisBroker.close` does those to one."""
        self._closed = True
        subscribers = [one for ref in self._subscribers.valuerefs() if (one := ref()) is not None]
        for subscriber in subscribers:
            subscriber.end()
        parts: list[Ending] = [*subscribers]
        for node in tuple(self._nodes.values()):
            parts += node.begin_close()
        wait_until_ended(parts, TIMEOUT)

    def node(self, host: Host) -> Node:
        """Return the node at `host`."""
        node = self._nodes.get(host)
        if node is None:
            node = self._nodes[host] = Node(f"{self._address.scheme}://{host}", **self._options)
            if self._closed:
                node.begin_close()
        return node

    def owner(self, channel: str, deadline: float) -> Host:
        """Return the address of a channel's node. Raises BrokerError if it is not known by `deadline`."""
        if not self.version:
            self.learn(deadline)
        elif time.monotonic() - self._learned > (FIRST_DELAY if self.doubtful else CHECK_INTERVAL):
            self.learn(min(deadline, time.monotonic() + NODE_TIMEOUT))
        owner = self.slots[self.slot(channel)]
        if owner is None:
            self.doubtful = True
            raise self.error(redis.RedisError(f"no node has slot {self.slot(channel)} with channel {channel!r}"))
        return owner

    def slot(self, channel: str) -> int:
        """Return the number of a channel's slot."""
        return slot_of((self._address.prefix + channel).encode())

    def learn(self, deadline: float) -> None:
        """Ask the nodes which of them has which slot.

        A node cut off from the cluster returns a stale map, which is used only if there is no other. Raises BrokerError
        if no node answers and none has answered before.
        """
        self._learned = time.monotonic()  # so that other greenlets do not ask at the same time
        answer: tuple[Host, Any] | None = None
        problem: Exception = TimeoutError("no node has answered")
        for host in tuple(self._asked):
            node = self.node(host)
            try:
                state = node.call(min(NODE_TIMEOUT, remaining(deadline)), b"CLUSTER", b"INFO")
                answer = host, node.call(min(NODE_TIMEOUT, remaining(deadline)), b"CLUSTER", b"SLOTS")
                if b"cluster_state:ok" in state:
                    self.doubtful = False
                    break
            except (redis.RedisError, OSError) as error:
                problem = error.with_traceback(None)  # the traceback would refer to this frame, and that to the error
            if self._asked[0] == host:
                self._asked.rotate(-1)  # ask another node first next time
        else:
            if self.version:
                return
        if answer is None:
            raise self.error(problem)
        self._take(*answer)

    def _take(self, host: Host, ranges: Any) -> None:
        """Take the answer of `host` to CLUSTER SLOTS."""
        slots: list[Host | None] = [None] * SLOTS
        owners = [host]
        for first, last, node, *_ in ranges:
            owner = place_of(node, host)
            owners.append(owner)
            slots[first : last + 1] = [owner] * (last + 1 - first)
        if slots != self.slots:
            self.slots = slots
            self.version += 1
            self._asked = deque(dict.fromkeys([*owners, *self._address.hosts]))

    def moved(self, error: BrokerError, host: Host) -> bool:
        """Whether `error`, from the node at `host`, is a redirection to another node; if so, note where the slot is."""
        match = MOVED.fullmatch(str(error.__cause__)) if isinstance(error.__cause__, redis.ResponseError) else None
        if match is None:
            return False
        if match[2] == NO_HOSTNAME:
            self.doubtful = True
            self._learned = -math.inf  # CLUSTER SLOTS has the address, and this node knows it
            self._asked = deque(dict.fromkeys([host, *self._asked]))
            return True
        self.slots[int(match[1])] = Host(match[2] or host.name, int(match[3]))
        self.version += 1
        return True

    def error(self, cause: BaseException) -> BrokerError:
        """Return the error that tells a developer what to do about `cause`."""
        return unusable(f"The Redis Cluster at {self._address.place}", cause)


def asked_elsewhere(error: BrokerError) -> Host | None:
    """Return the node that has a key of a slot that is being moved, if that is what `error` says."""
    cause = error.__cause__
    if not isinstance(cause, redis.ResponseError):
        return None
    text = str(cause)
    if isinstance(cause, AskError) and not isinstance(cause, MovedError):
        text = f"ASK {text.removeprefix('ASK ')}"
    match = ASK.fullmatch(text)
    return None if match is None else Host(match[2], int(match[3]))


def place_of(node: Sequence[Any], asked: Host) -> Host:
    """Return the address of a node in the list of slots that the node at `asked` returned.

    A node without a name has the host of `asked` and a port of its own. A node that lacks its preferred hostname is
    reached at its IP address, which the list has among the metadata.
    """
    name, port, *more = node
    if name == NO_HOSTNAME.encode():
        further = more[1] if len(more) > 1 else []
        name = dict(zip(further[::2], further[1::2], strict=False)).get(b"ip")
    return Host(name.decode() if name else asked.name, port)


def slot_of(key: bytes) -> int:
    """Return the slot of a key: that of its hash tag, the text between its first braces, if there is one."""
    begin = key.find(b"{") + 1
    end = key.find(b"}", begin) if begin else -1
    return binascii.crc_hqx(key[begin:end] if end > begin else key, 0) % SLOTS


@cache
def tags() -> dict[int, str]:
    """Return a short text for each slot of a Cluster; the same in all processes.

    The CRC that makes a slot of a text is linear, so that the sixteen letters from @ to O, which differ in four bits,
    make all slots, each four times.
    """
    texts = ("".join(letters) for letters in product("@ABCDEFGHIJKLMNO", repeat=4))
    return {slot_of(text.encode()): text for text in texts}


class Place:
    """The node from which a channel is received."""

    __slots__ = ("asked", "host", "misplaced", "settling", "slot")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.host: Host | None = None  # None while it is not received
        self.asked: Host | None = None  # the node that was asked and has not answered yet
        self.misplaced = 0.0  # since when another node seems to have the slot; else 0
        self.settling = True  # whether a greenlet is subscribing to it


class ClusterSubscriber(InLoop):
    """The subscribers of the nodes; moves channels along with their slots."""

    def __init__(self, broker: ClusterBroker, listener: Listener) -> None:
        super().__init__()
        self._broker = broker
        self._listener = listener
        self._subscribers: dict[Host, NodeSubscriber] = {}
        self._places: dict[str, Place] = {}  # of the channels to be received
        self._astray = False  # whether some channels may not be received
        self._look = Event()  # set when slots may have moved
        self._following = False
        self._failing = False  # whether that was logged already
        self._closed = False
        self.deliver = listener.deliver
        self.missed = listener.missed

    def renew(self, channel: str) -> None:
        """Connect anew to the node that has a channel. Never waits."""
        place = self._places.get(channel)
        if place is not None and place.host is not None:
            self._subscribers[place.host].renew(channel)

    def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe, and wait for the replies."""
        self._check_open()
        places = {channel: Place(self._broker.slot(channel)) for channel in channels}
        self._places.update(places)
        if not self._following:
            self._following = True
            gevent.spawn(self._follow)
        for error in self._settle(places).values():
            raise error
        self._check_open()

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """Unsubscribe without waiting for the replies."""
        for channel in channels:
            place = self._places.pop(channel, None)
            host = place and (place.host or place.asked)
            if host:
                self._subscribers[host].unsubscribe([channel])

    def lost(self, channels: Sequence[str]) -> None:
        """Note that the connection to a node has ended."""
        self._listener.lost(channels)
        self._look.set()

    def close(self) -> None:
        """Close the connections for good; return when they have ended, or after `TIMEOUT` seconds."""
        self.end()
        wait_until_ended([self], TIMEOUT)

    @property
    def ended(self) -> bool:
        """Whether no connection is left after `close()` or `end()`."""
        if self.orphaned or not self.alive:
            return True
        return self._closed and not self._following and all(one.ended for one in tuple(self._subscribers.values()))

    def closed(self) -> None:
        """Do nothing: the nodes' subscribers are only closed together."""

    def _end(self) -> None:
        if not self._closed:
            self._closed = True
            self._places.clear()
            self._look.set()
            for subscriber in self._subscribers.values():
                subscriber.end()
            gevent.spawn(self._listener.closed)

    def _check_open(self) -> None:
        if self._closed:
            raise self._broker.error(Closed())

    def taken_away(self, host: Host, channel: str) -> None:
        """Note that a node no longer has a channel."""
        place = self._places.get(channel)
        if place is not None and place.host == host:
            place.host = None
            self._broker.doubtful = True
            self._listener.lost([channel])
            self._astray = True
            self._look.set()

    # --- channels and nodes --------------------------------------------------------------------------------------

    def _settle(self, places: Mapping[str, Place]) -> dict[str, BrokerError]:
        """Subscribe to channels at their nodes; return the errors of those that failed."""
        deadline = time.monotonic() + TIMEOUT
        failures: dict[str, BrokerError] = {}
        asked: dict[str, Host] = {}
        try:
            for _ in range(ATTEMPTS):
                groups: dict[Host, list[str]] = {}
                for channel in self._received_nowhere(places):
                    try:
                        owner = self._broker.owner(channel, deadline)
                    except BrokerError as error:
                        failures[channel] = error
                    else:
                        if owner != asked.get(channel):  # otherwise nothing has changed since this node refused
                            asked[channel] = owner
                            groups.setdefault(owner, []).append(channel)
                if not groups:
                    break
                for answer in [gevent.spawn(self._ask, places, *group, deadline) for group in groups.items()]:
                    failures.update(answer.get())
        finally:
            for place in places.values():
                place.settling = False
        moving = self._broker.error(redis.RedisError("the slots are being moved"))
        return {channel: failures.get(channel, moving) for channel in self._received_nowhere(places)}

    def _received_nowhere(self, places: Mapping[str, Place]) -> list[str]:
        return [name for name, place in places.items() if place.host is None and self._places.get(name) is place]

    def _ask(
        self, places: Mapping[str, Place], host: Host, channels: Sequence[str], deadline: float
    ) -> dict[str, BrokerError]:
        """Subscribe to channels at one node; return the errors of those that failed."""
        channels = [channel for channel in channels if self._places.get(channel) is places[channel]]
        if not channels:
            return {}  # they were unsubscribed meanwhile
        subscriber = self._subscribers.get(host)
        if subscriber is None:
            subscriber = self._subscribers[host] = NodeSubscriber(self._broker.node(host), host, self)
            if self._closed:
                subscriber.end()
        for channel in channels:
            places[channel].asked = host
        replies = subscriber.request(channels)
        gevent.wait(replies, max(0, deadline - time.monotonic()))
        failures = {}
        for channel, reply in zip(channels, replies, strict=True):
            place = places[channel]
            place.asked = None
            if self._places.get(channel) is not place:
                continue
            if reply.successful() and subscriber.has(channel):
                place.host = host
                continue
            subscriber.unsubscribe([channel])
            error = reply.exception
            if not isinstance(error, BrokerError):
                error = self._broker.node(host).error(TimeoutError("no reply in time, or the slot has moved"))
            if not self._broker.moved(error, host):
                self._broker.doubtful = True
            failures[channel] = error
        return failures

    def _follow(self) -> None:
        """Check at regular intervals, while there are channels, that each is received from the node of its slot."""
        seen = -1
        while self._places:
            self._look.wait(CHECK_INTERVAL)
            self._look.clear()
            try:
                self._broker.learn(time.monotonic() + TIMEOUT)
                if self._astray or self._broker.version != seen:
                    self._astray = False
                    seen = self._broker.version
                    self._move()
            except BrokerError as error:
                logger.debug("%s", error)
            except Exception:
                logger.exception("Checking the slots of the Redis Cluster failed")
            gevent.sleep(FIRST_DELAY)
        self._following = False

    def _move(self) -> None:
        """Move channels to the nodes that have their slots now."""
        moving = {channel: place for channel, place in self._places.items() if self._must_move(place)}
        if not moving:
            return
        for channel, place in moving.items():
            place.settling = True
            if place.host is not None:
                self._subscribers[place.host].unsubscribe([channel])
                place.host = None
        self._listener.lost(list(moving))
        gevent.spawn(self._moved, moving)

    def _must_move(self, place: Place) -> bool:
        if place.settling or place.host == self._broker.slots[place.slot]:
            place.misplaced = 0.0
            return False
        if place.host is None or not self._subscribers[place.host].connected:
            return True
        # A node that gives up a slot unsubscribes its channels itself; until then, it may still send messages.
        self._astray = True
        place.misplaced = place.misplaced or time.monotonic()
        return time.monotonic() - place.misplaced > CHECK_INTERVAL

    def _moved(self, places: Mapping[str, Place]) -> None:
        try:
            failures = self._settle(places)
        finally:
            self._astray = True  # check again, since slots may have moved meanwhile
        settled = [name for name, place in places.items() if self._places.get(name) is place and name not in failures]
        if settled:
            logger.warning("Channels that are now received from another node of the Redis Cluster: %d", len(settled))
            self._listener.missed(settled)
        if failures and not self._failing:
            logger.error(
                "Channels that are not received from any node: %d. %s", len(failures), next(iter(failures.values()))
            )
        self._failing = bool(failures)


class NodeSubscriber(RedisSubscriber):
    """The connection to one node, which unsubscribes channels itself when their slot moves away."""

    def __init__(self, node: Node, host: Host, cluster: ClusterSubscriber) -> None:
        super().__init__(node, cluster)
        self._host = host
        self._cluster = cluster

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._link is not None

    def has(self, channel: str) -> bool:
        """Whether the node still has a channel that it has confirmed."""
        return channel in self._channels

    def _take(self, reply: Any) -> None:
        expected, channel = self._in_flight[0] if self._in_flight else ("", "")
        if isinstance(reply, list) and reply[0] != b"pong":
            command, name = reply[0].decode().upper(), self._name(reply[1])
            if (command, name) != (expected, channel):
                if command != self._broker.UNSUBSCRIBE:
                    raise ConnectionError(f"it answered {command} to {expected or 'nothing'}")
                self._dismiss(name)
                return
        # An UNSUBSCRIBE that crosses a move of its slot has two answers; this may be the second.
        match = MOVED.fullmatch(str(reply)) if isinstance(reply, redis.ResponseError) else None
        if match and not (channel and int(match[1]) == slot_of((self._broker.prefix + channel).encode())):
            return
        super()._take(reply)

    def _refused(self, channel: str, error: BrokerError) -> None:
        self._dismiss(channel)

    def _dismiss(self, channel: str) -> None:
        self._channels.pop(channel, None)
        self._missed.pop(channel, None)
        self._cluster.taken_away(self._host, channel)

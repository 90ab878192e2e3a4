"""`memory://`: publish/subscribe within one process, for development, tests and small sites."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import islice

import gevent
from gevent import getcurrent

from django_websocket.transport.shared import serves_clients
from django_websocket.transport.turns import let_others_run

from .broker import Listener
from .closing import InLoop, closed_error
from .entries import Entry, Position, Rule, Stretch, new_tag
from .roster import AGAIN, ANYBODY, EMPTY, HERE, LEFT, NOBODY, Claim, Leases, Roster, RosterEvent, told_on

TESTS = "memory://tests"  # the broker in Django's test environment, where the warning about memory:// is not needed
MAX_PENDING = 256 * 1024  # bytes that a greenlet may publish before the loop has to deliver them
BATCH_SIZE = 64 * 1024  # bytes that are delivered together, so that clients can read in between
OVERHEAD = 100  # bytes that a message costs in addition to its own
LOOKED_AT = 2  # channels that a publish looks at, whether what they have kept can be forgotten

logger = logging.getLogger("django_websocket")


class MemoryBroker:
    """Delivers messages to the subscribers of the same process; there is one for each loop."""

    OPTIONS = ()

    def __init__(self, url: str = "memory://") -> None:
        self.observers: list[Callable[[str, bytes], object]] = []  # called with every message
        self._subscribers: list[MemorySubscriber] = []
        self._warned = url == TESTS
        self._test = TestNow() if url == TESTS else None
        self._closed = False
        self._lock = threading.Lock()  # keeps the entries of a channel in order on their way to the subscribers
        self._memories: OrderedDict[str, Memory] = OrderedDict()  # of channels; those looked at go to the end
        self._rosters: dict[str, Enrolled] = {}  # of channels in which somebody is
        self._leases: dict[bytes, float] = {}  # until when each process counts as alive, as time.monotonic() has it

    def publish(self, channel: str, payload: bytes) -> int:
        """Deliver soon, to each subscriber in the thread of its loop; return how many receive the channel.

        Raises BrokerError after `close`.
        """
        subscribers = self._subscribers
        if not subscribers:
            self._to_nobody()
        for observe in self.observers:
            observe(channel, payload)
        for subscriber in subscribers:
            subscriber.take(channel, payload)
        return sum(channel in subscriber.channels for subscriber in subscribers if subscriber.alive)

    def publish_kept(self, channel: str, payload: bytes, rule: Rule) -> int:
        """Do what `publish` does, and keep the message. Raises BrokerError after `close`."""
        subscribers = self._subscribers
        if not subscribers:
            self._to_nobody()
        for observe in self.observers:
            observe(channel, payload)
        with self._lock:  # nothing in it waits, or lets other greenlets run
            entry = self._memory(channel, rule).append(payload).to_wire()
            for subscriber in subscribers:
                subscriber.put(channel, entry)
        for subscriber in subscribers:
            subscriber.deliver_soon()
        return sum(channel in subscriber.channels for subscriber in subscribers if subscriber.alive)

    def read(self, channel: str, rule: Rule, count: int, since: int | None = None, size: int | None = None) -> Stretch:
        """Return what is kept; see `KeepingBroker.read`. Raises BrokerError after `close`.

        It is in memory already, so that `size` makes no difference.
        """
        if self._closed:
            raise closed_error("memory://")
        with self._lock:
            memory = self._memory(channel, rule)
            if since is not None:
                count = memory.top.offset - since
                count = 0 if count > len(memory.entries) else count
            return Stretch(memory.top, int(time.time()), memory.entries[-count:] if count > 0 else [])

    def clock(self, timeout: float) -> float:
        """Return the time of this machine."""
        return time.time()

    def change_roster(
        self, channel: str, process: bytes, claims: Sequence[Claim], *, gone: bool = False
    ) -> RosterEvent | None:
        """Take what a process says of users; see `PresenceBroker.change_roster`. Raises BrokerError after `close`."""
        if self._closed:
            raise closed_error("memory://")
        with self._lock:
            enrolled = self._rosters.setdefault(channel, Enrolled())
            event = enrolled.change(process, claims, gone=gone)
            if not enrolled.users:
                del self._rosters[channel]
            subscribers = self._subscribers
            if event is not None:
                for subscriber in subscribers:
                    subscriber.put(told_on(channel), event.to_wire())
        for subscriber in subscribers if event is not None else ():
            subscriber.deliver_soon()
        return event

    def read_roster(self, channel: str, limit: int | None = None, *, prolong: bool = False) -> Roster:
        """Return who is there; see `PresenceBroker.read_roster`. Raises BrokerError after `close`."""
        if self._closed:
            raise closed_error("memory://")
        with self._lock:
            enrolled = self._rosters.get(channel)
            if enrolled is None:
                return EMPTY
            users = {key: {**enrolled.users[key]} for key in islice(enrolled.users, limit)}
            return Roster(enrolled.number, frozenset(enrolled.processes), len(enrolled.users), users)

    def renew_lease(self, process: bytes, seconds: float) -> Leases:
        """Renew a lease, here that of a loop; see `PresenceBroker.renew_lease`. Raises BrokerError after `close`."""
        if self._closed:
            raise closed_error("memory://")
        with self._lock:
            now = time.monotonic()
            held = self._leases.get(process, now) > now
            if process:
                self._leases[process] = now + seconds
            self._leases = {name: end for name, end in self._leases.items() if end > now}
            return Leases(held, frozenset(self._leases))

    def _memory(self, channel: str, rule: Rule) -> Memory:
        """Return what a channel has kept, and forget what others have that is too old."""
        if self._test is not None and self._test.has_changed():
            self._memories.clear()
        now = time.monotonic()
        memory = self._memories.get(channel)
        if memory is None or memory.end < now:
            memory = self._memories[channel] = Memory()
        memory.rule = rule
        memory.end = now + rule.life
        memory.drop_old()
        # More than are added each time, so that all have their turn.
        for name in [*islice(self._memories, LOOKED_AT)]:
            self._memories[name].drop_old()
            self._memories.move_to_end(name)
            if self._memories[name].end < now:
                del self._memories[name]
        return memory

    def subscriber(self, listener: Listener) -> MemorySubscriber:
        """Return a subscriber for the running loop. Raises BrokerError after `close`."""
        subscriber = MemorySubscriber(self, listener)
        self._subscribers = [*(one for one in self._subscribers if one.alive), subscriber]
        if self._closed:
            self.close()
            raise closed_error("memory://")
        return subscriber

    def close(self) -> None:
        """End the subscribers, each in its own loop; their members are told, and undelivered messages are dropped.

        Publishing later raises BrokerError. May be called twice, and from any thread or greenlet; never waits.
        """
        self._closed = True
        subscribers, self._subscribers = self._subscribers, []
        for subscriber in subscribers:
            subscriber.end()

    def forget(self, subscriber: MemorySubscriber) -> None:
        """Stop delivering to a subscriber."""
        self._subscribers = [one for one in self._subscribers if one is not subscriber]

    def _to_nobody(self) -> None:
        if self._closed:
            raise closed_error("memory://")
        if not (self._warned or serves_clients()):
            self._warned = True
            logger.warning(
                "A message was published to memory://, which does not leave the process, and this process serves no "
                "clients. If your WebSockets are served by another process, set WEBSOCKET_BROKER to a Redis URL."
            )


class TestNow:
    """Which test runs: each is to find the channels empty, as it finds Django's `mail.outbox`."""

    __slots__ = ("_name", "_outbox")
    __test__ = False  # for pytest, which takes it for a class of tests

    def __init__(self) -> None:
        self._outbox: object = None
        self._name = ""

    def has_changed(self) -> bool:
        """Whether another test runs than at the last call."""
        before = self._outbox, self._name
        self._outbox = getattr(sys.modules.get("django.core.mail"), "outbox", None)  # a new list for each TestCase
        self._name = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]  # without the phase of the test
        return self._outbox is not before[0] or self._name != before[1]


class Memory:
    """What a channel has kept."""

    __slots__ = ("end", "entries", "rule", "top")

    def __init__(self) -> None:
        self.top = Position(0, new_tag())
        self.entries: list[Entry] = []  # an empty deque takes ten times the memory
        self.rule = Rule(1, 1.0)
        self.end = 0.0  # when it can be forgotten, as time.monotonic() has it

    def drop_old(self) -> None:
        """Forget the messages that are too old."""
        oldest = self.rule.oldest(time.time())
        old = next((index for index, entry in enumerate(self.entries) if entry.time >= oldest), len(self.entries))
        del self.entries[:old]

    def append(self, payload: bytes) -> Entry:
        """Keep a message."""
        entry = Entry(self.top.offset + 1, new_tag(), self.top.tag, int(time.time()), payload)
        self.entries.append(entry)
        self.top = entry.position
        del self.entries[: -self.rule.messages]
        return entry


class Enrolled:
    """Who is in a channel."""

    __slots__ = ("number", "processes", "users")

    def __init__(self) -> None:
        self.number = 0
        self.processes: set[bytes] = set()
        self.users: dict[bytes, dict[bytes, bytes]] = {}  # the lines of each, by process, the newest last

    def change(self, process: bytes, claims: Sequence[Claim], *, gone: bool) -> RosterEvent | None:
        """Take what a process says of users, as `enrolling.CHANGING` does."""
        news = [one for claim in claims if (one := self._take(process, claim)) is not None]
        if gone:
            self.processes.discard(process)
        if not news:
            return None
        before, self.number = self.number, max(time.time_ns() // 1000, self.number + 1)
        return RosterEvent(self.number, before, process, news)

    def _take(self, process: bytes, claim: Claim) -> tuple[bytes, Claim] | None:
        key, session, info = claim
        lines = self.users.get(key, {})
        last = next(reversed(lines.values()), None)
        if info:
            self.processes.add(process)
            if session == NOBODY:
                first = {} if process in lines else {process: info}
                self.users[key] = {**first, **lines, process: info}  # in its place, or before the others
            else:
                self.users[key] = {**{name: told for name, told in lines.items() if name != process}, process: info}
        elif process not in lines:
            return None
        else:
            self.users[key] = {name: told for name, told in lines.items() if name != process}
        newest = next(reversed(self.users[key].values()), None)
        if newest is None:
            del self.users[key]
            return LEFT, Claim(key)
        if newest != last:
            return HERE, Claim(key, session, newest)
        return None if session in (NOBODY, ANYBODY) else (AGAIN, Claim(key, session))


class MemorySubscriber(InLoop):
    """Delivers messages to its listener, in the thread of the loop in which it was made."""

    def __init__(self, broker: MemoryBroker, listener: Listener) -> None:
        super().__init__()
        self.channels: set[str] = set()  # to which it is subscribed
        self._broker = broker
        self._listener = listener
        self._pending: deque[tuple[str, bytes]] = deque()
        self._size = 0  # in bytes, roughly: other threads add to it
        self._delivering = False
        self._closed = False

    def subscribe(self, channels: Sequence[str]) -> None:
        """Add channels, which `publish` counts: every message comes here. Raises BrokerError after `close`."""
        if self._closed:
            raise closed_error("memory://")
        self.channels.update(channels)

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """Remove channels; the listener drops messages without members."""
        self.channels.difference_update(channels)

    def close(self) -> None:
        """Take no more messages, and drop those that wait."""
        self.end()

    def _end(self) -> None:
        if not self._closed:
            self._closed = True
            self._broker.forget(self)
            self._pending.clear()
            gevent.spawn(self._listener.closed)

    def take(self, channel: str, payload: bytes) -> None:
        """Take a message, and have it delivered. May be called from any thread."""
        self.put(channel, payload)
        self.deliver_soon()

    def put(self, channel: str, payload: bytes) -> None:
        """Take a message. May be called from any thread."""
        if self.alive:
            self._pending.append((channel, payload))
            self._size += len(payload) + OVERHEAD

    def deliver_soon(self) -> None:
        """Have what was taken delivered. In the loop's own thread, this waits if there is too much of it."""
        if not self.alive:
            return
        if threading.get_native_id() != self._thread:
            self._hub.loop.run_callback_threadsafe(self._wake)
            return
        self._wake()
        while self._size > MAX_PENDING and getcurrent() is not self._hub:
            self._wake()
            let_others_run()

    def _wake(self) -> None:
        if not self._delivering:
            self._delivering = True
            gevent.spawn(self._deliver)

    def _deliver(self) -> None:
        try:
            while self._pending:
                batch = []
                size = 0
                while self._pending and size < BATCH_SIZE:
                    batch.append(self._pending.popleft())
                    size += len(batch[-1][1]) + OVERHEAD
                self._size = max(0, self._size - size) if self._pending else 0
                self._listener.deliver(batch)
                let_others_run()
        finally:
            self._delivering = False

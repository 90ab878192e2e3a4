"""`redis://`, `rediss://` and `unix://`: publish/subscribe through Redis.

redis-py makes the connections. A `Pipeline` publishes. The subscriber reads its own connection: through redis-py, that
would cost as much as encoding and sending a message, and redis-py reconnects silently. Here everybody who may have
missed a message is told.
"""

from __future__ import annotations

import logging
import math
import random
import re
import time
import weakref
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import gevent
import redis
from gevent.event import AsyncResult, Event

from django_websocket.exceptions import BrokerError
from django_websocket.transport.turns import let_others_run_if_spent

from . import enrolling, keeping
from .broker import Listener
from .closing import Closed, InLoop, closed_error
from .enrolling import LEASES, TELLING, arguments_of, event_of, roster_key
from .entries import Rule, Stretch
from .keeping import Script, key_of, named
from .pipeline import Ending, Link, Pipeline, pack, remaining, wait_until_ended
from .redis_address import OPTIONS, RedisAddress
from .roster import Claim, Leases, Roster, RosterEvent, told_on

TIMEOUT = 5.0  # seconds for one operation: connecting, publishing, subscribing
PING_INTERVAL = 3.0  # seconds of silence until the subscriber sends a PING, and again for the answer
FIRST_DELAY, LONGEST_DELAY = 0.05, 2.0  # seconds between two attempts to connect; jittered

# By what Redis says in its answer; redis-py leaves out the first word of some.
ADVICE = {
    "^NOAUTH|authentication required|^WRONGPASS|invalid (username-)?password": (
        "Correct the username and password in WEBSOCKET_BROKER."
    ),
    "^NOPERM|no permissions": "Allow this user the command, the channel and the keys in its ACL.",
    "^OOM|used memory > 'maxmemory'": "It is out of memory: raise its maxmemory, or remove data.",
    "^LOADING|loading the dataset": "It can be used as soon as it has loaded its data.",
    "^READONLY|read only replica|^MASTERDOWN": (
        "Name the master in WEBSOCKET_BROKER, or its sentinels (redis+sentinel://), which know the master."
    ),
    "max number of clients": "Raise its maxclients, or close connections of other programs.",
    "^CLUSTERDOWN": "Run CLUSTER INFO and CLUSTER NODES on one of its nodes.",
}

logger = logging.getLogger("django_websocket")


class RedisBroker:
    """Redis at `url`. See `RedisAddress` for its form and the options."""

    OPTIONS = [name for name in OPTIONS if not name.startswith("sentinel_")]
    PUBLISH, SUBSCRIBE, UNSUBSCRIBE, MESSAGE = "PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE", b"message"

    def __init__(self, url: str, **options: Any) -> None:
        self.address = RedisAddress(url, options)
        self.prefix = self.address.prefix
        self.place = self.address.place
        self._pipeline = Pipeline(self.connect)
        self._closed = False
        # valuerefs() lists them in one step, even if other threads add some meanwhile.
        self._subscribers: weakref.WeakValueDictionary[int, RedisSubscriber] = weakref.WeakValueDictionary()

    def publish(self, channel: str, payload: bytes) -> int:
        """Publish once; return the number of subscribers that Redis reports. Raises BrokerError."""
        return self.publish_until(time.monotonic() + TIMEOUT, channel, payload)

    def publish_until(self, deadline: float, channel: str, payload: bytes) -> int:
        """Do the same until `deadline`, a time of time.monotonic()."""
        try:
            return int(self.call_until(deadline, self.PUBLISH.encode(), (self.prefix + channel).encode(), payload))
        except (redis.RedisError, OSError) as error:
            raise self.error(error) from error

    def publish_kept(self, channel: str, payload: bytes, rule: Rule) -> int:
        """Do what `publish` does, and keep the message. Raises BrokerError."""
        return self.publish_kept_until(time.monotonic() + TIMEOUT, channel, payload, rule)

    def publish_kept_until(self, deadline: float, channel: str, payload: bytes, rule: Rule, tag: str = "") -> int:
        """Do the same until `deadline`; see `key_of` for `tag`."""
        call, name = partial(self.call_until, deadline), (self.prefix + channel).encode()
        try:
            return keeping.publish_kept(call, self.PUBLISH, key_of(self.prefix, channel, tag), name, payload, rule)
        except (redis.RedisError, OSError) as error:
            raise self.error(error) from error

    def read(self, channel: str, rule: Rule, count: int, since: int | None = None, size: int | None = None) -> Stretch:
        """Return what is kept; see `KeepingBroker.read`. Raises BrokerError."""
        return self.read_until(time.monotonic() + TIMEOUT, channel, (rule, count, since, size))

    def read_until(
        self, deadline: float, channel: str, what: keeping.What, tag: str = "", *, asking: bool = False
    ) -> Stretch:
        """Do the same until `deadline`; see `key_of` for `tag`, and `call_until` for `asking`."""
        reading = partial(
            keeping.read, partial(self.call_until, deadline, asking=asking), key_of(self.prefix, channel, tag), *what
        )
        try:
            try:
                return reading()
            except (redis.ConnectionError, ConnectionError):  # to read twice does no harm, unlike to publish twice
                return reading()
        except (redis.RedisError, OSError) as error:
            raise self.error(error) from error

    def change_roster(
        self, channel: str, process: bytes, claims: Sequence[Claim], *, gone: bool = False
    ) -> RosterEvent | None:
        """Take what a process says of users; see `PresenceBroker.change_roster`. Raises BrokerError."""
        name = told_on(channel)
        arguments = arguments_of(process, (self.prefix + name).encode(), claims, gone=gone)
        return event_of(
            self.run_until(time.monotonic() + TIMEOUT, TELLING[self.PUBLISH], roster_key(channel), arguments)
        )

    def read_roster(self, channel: str, limit: int | None = None, *, prolong: bool = False) -> Roster:
        """Return who is there; see `PresenceBroker.read_roster`. Raises BrokerError."""
        return enrolling.read(partial(self._run, roster_key(channel)), limit, prolong=prolong)

    def renew_lease(self, process: bytes, seconds: float) -> Leases:
        """Renew a lease; see `PresenceBroker.renew_lease`. Raises BrokerError."""
        return enrolling.renew(partial(self._run, LEASES), process, seconds)

    def _run(self, key: str, script: Script, *arguments: bytes) -> Any:
        return self.run_until(time.monotonic() + TIMEOUT, script, key, arguments)

    def run_until(
        self,
        deadline: float,
        script: Script,
        key: str,
        arguments: Sequence[bytes],
        tag: str = "",
        *,
        asking: bool = False,
    ) -> Any:
        """Return the reply of a script; see `key_of` for `tag`, and `call_until` for `asking`. Raises BrokerError."""
        call = partial(self.call_until, deadline, asking=asking)
        try:
            return script(call, named(self.prefix, key, tag), *arguments)
        except (redis.RedisError, OSError) as error:
            raise self.error(error) from error

    def clock(self, timeout: float) -> float:
        """Return Redis' time; see `KeepingBroker.clock`. Raises BrokerError."""
        try:
            seconds, microseconds = self.call_until(time.monotonic() + timeout, b"TIME")
        except (redis.RedisError, OSError) as error:
            raise self.error(error) from error
        return int(seconds) + int(microseconds) / 1e6

    def call_until(self, deadline: float, *words: bytes, asking: bool = False) -> Any:
        """Return the reply to a command, due at `deadline`, a time of time.monotonic(). Raises RedisError or OSError.

        `asking` says that this node of a Cluster is to take over the slot, and has perhaps not done so yet.
        """
        return self._pipeline.call(remaining(deadline), *words, asking=asking)

    def subscriber(self, listener: Listener) -> RedisSubscriber:
        """Return a subscriber; it connects when it has a channel to subscribe to.

        Raises BrokerError after `close`.
        """
        subscriber = self.new_subscriber(listener)
        self._subscribers[id(subscriber)] = subscriber
        if self._closed:
            raise self.error(Closed())
        return subscriber

    def receiver(self, channel: str) -> RedisReceiver:
        """Return a receiver of one channel for a thread without a loop. Raises BrokerError."""
        try:
            return RedisReceiver(self, channel)
        except (redis.RedisError, OSError) as error:
            raise self.error(error) from error

    def new_subscriber(self, listener: Listener) -> RedisSubscriber:
        """Return a subscriber of the class that suits this broker."""
        return RedisSubscriber(self, listener)

    def close(self) -> None:
        """Close all connections; return when they have ended, or after `TIMEOUT` seconds.

        Publishes in progress may finish until then, or raise BrokerError; later ones raise it at once, and nothing
        connects again. The subscribers end too, and their members are told. May be called twice, and from any thread or
        greenlet, but not from a callback of the loop. In a child process, the parent's connections stay usable.
        """
        wait_until_ended(self.begin_close(), TIMEOUT)

    def begin_close(self) -> list[Ending]:
        """Start closing without waiting, and return the parts that have to end."""
        self._closed = True
        subscribers = [one for ref in self._subscribers.valuerefs() if (one := ref()) is not None]
        for subscriber in subscribers:
            subscriber.end()
        pipelines = self.pipelines()
        for pipeline in pipelines:
            pipeline.close()
        return [*subscribers, *pipelines]

    def pipelines(self) -> list[Pipeline]:
        """Return the pipelines through which this broker talks to Redis."""
        return [self._pipeline]

    def connect(self, timeout: float) -> redis.Connection:
        """Return a new connection whose replies are due within `timeout` seconds. Raises RedisError or OSError."""
        return self.address.connect(timeout)

    def error(self, cause: BaseException) -> BrokerError:
        """Return the error that tells a developer what to do about `cause`."""
        return unusable(f"Redis at {self.place}", cause)


def unusable(what: str, cause: BaseException) -> BrokerError:
    """Return the error that tells a developer what to do about `cause`."""
    if isinstance(cause, Closed):
        return closed_error(what)
    why = str(cause).rstrip(".")
    error = BrokerError(f"{what} cannot be used: {why}. {advice_for(cause)}")
    error.__cause__ = cause
    return error


def advice_for(cause: BaseException) -> str:
    """Return what a developer can do about `cause`."""
    for pattern, advice in ADVICE.items():
        if re.search(pattern, str(cause), re.IGNORECASE):
            return advice
    if isinstance(cause, redis.ResponseError):
        return "It runs, but refused the command: check that WEBSOCKET_BROKER names the right one."
    return "Start it, or correct WEBSOCKET_BROKER."


class RedisReceiver:
    """A connection subscribed to one channel, for a thread without a loop: a subscriber needs one."""

    def __init__(self, broker: RedisBroker, channel: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        self._message = broker.MESSAGE
        self._link = Link(broker.connect(TIMEOUT))
        try:
            command = pack(broker.SUBSCRIBE.encode(), (broker.prefix + channel).encode())
            self._link.send(command, remaining(deadline))
            for reply in self._link.receive(remaining(deadline)):
                if isinstance(reply, Exception):
                    raise reply
        except BaseException:
            self._link.close()
            raise

    def receive(self, timeout: float) -> list[bytes]:
        """Return the next payloads, possibly none. Raises OSError, and TimeoutError after `timeout` seconds."""
        replies = self._link.receive(timeout)
        return [reply[2] for reply in replies if isinstance(reply, list) and reply[0] == self._message]

    def close(self) -> None:
        """Close the connection."""
        self._link.close()


class RedisSubscriber(InLoop):
    """The connection on which a process is subscribed. A greenlet reads it while there are channels."""

    def __init__(self, broker: RedisBroker, listener: Listener) -> None:
        super().__init__()
        self._broker = broker
        self._listener = listener
        self._channels: dict[str, None] = {}  # to be received
        self._pending: dict[str, deque[AsyncResult[None]]] = {}  # callers that wait for replies, in order
        self._link: Link | None = None
        self._commands: deque[bytes] = deque()  # to be sent
        self._in_flight: deque[tuple[str, str]] = deque()  # commands whose replies have not come, with their channels
        self._running = False
        self._lost = False  # the connection, while there are channels, and nothing was received since
        self._writing = False
        self._resubscribing: set[str] = set()  # channels whose replies have not come after an outage
        self._missed: dict[str, None] = {}  # channels whose members have to be told
        self._closed = Event()

    def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe, and wait for the replies."""
        replies = self.request(channels)
        with gevent.Timeout(TIMEOUT, self._broker.error(TimeoutError(f"no reply within {TIMEOUT:.3g} seconds"))):
            for reply in replies:
                reply.get()

    def request(self, channels: Sequence[str]) -> list[AsyncResult[None]]:
        """Send the subscriptions; return a result for each reply."""
        replies = []
        for channel in channels:
            reply: AsyncResult[None] = AsyncResult()
            replies.append(reply)
            if self._closed.is_set():
                reply.set_exception(self._broker.error(Closed()))
                continue
            self._channels[channel] = None
            self._pending.setdefault(channel, deque()).append(reply)
        if self._closed.is_set():
            return replies
        if self._link is not None:
            for channel in channels:
                self._send(self._broker.SUBSCRIBE, channel)
        elif not self._running:
            self._running = True
            gevent.spawn(self._run)
        return replies

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """Unsubscribe without waiting for the replies."""
        for channel in channels:
            self._channels.pop(channel, None)
            self._missed.pop(channel, None)
            if self._link is None:  # nothing was sent, so no reply will come for those who wait
                for reply in self._pending.pop(channel, ()):
                    reply.set_exception(self._broker.error(ConnectionError("not connected")))
            else:
                self._send(self._broker.UNSUBSCRIBE, channel)

    def close(self) -> None:
        """Close the connection for good; return when it has ended, or after `TIMEOUT` seconds."""
        self.end()
        wait_until_ended([self], TIMEOUT)

    def renew(self, channel: str) -> None:
        """Connect anew. Never waits."""
        if self._link is not None:
            self._link.hang_up()

    @property
    def ended(self) -> bool:
        """Whether no connection is left after `close()` or `end()`."""
        return self.orphaned or not self.alive or (self._closed.is_set() and not self._running)

    def _end(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._channels.clear()
            self._missed.clear()
            if self._link is not None:
                self._link.hang_up()
            gevent.spawn(self._listener.closed)

    # --- the connection ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Keep a connection from the first subscription on, until it fails while there are no channels."""
        delay = FIRST_DELAY
        while True:
            connected = math.inf
            try:
                link = self._link = self._connect()
                connected = time.monotonic()
                self._begin(self._lost)
                self._read(link)
            except (redis.RedisError, OSError) as error:
                self._disconnect(error)
                if self._channels and not self._lost:
                    logger.error("%s", self._broker.error(error))
            except Exception as error:
                logger.exception("The subscriber of Redis at %s failed and reconnects", self._broker.place)
                self._disconnect(error)
            self._lost = bool(self._channels)
            if not self._lost:
                self._running = False
                return
            if time.monotonic() - connected > LONGEST_DELAY:
                delay = FIRST_DELAY  # it was a good connection; one that ends at once counts as a failed attempt
            self._closed.wait(delay * random.uniform(0.5, 1.5))
            delay = min(delay * 2, LONGEST_DELAY)

    def _connect(self) -> Link:
        if not self._closed.is_set():
            link = Link(self._broker.connect(TIMEOUT))
            if not self._closed.is_set():
                return link
            link.close()
        raise Closed

    def _begin(self, lost: bool) -> None:
        """Subscribe to all channels on a new connection."""
        channels = list(self._channels)
        if lost:
            self._resubscribing = set(channels)
            self._missed = {channel: None for channel in channels if channel not in self._pending}
        for channel in channels:
            for _ in self._pending.get(channel) or (None,):  # each waiting caller gets a reply of its own
                self._send(self._broker.SUBSCRIBE, channel)

    def _disconnect(self, error: BaseException) -> None:
        """Drop the connection.

        Callers that wait for a reply ask again on the next connection. If this one followed a lost one, or was never
        made, they get the error, and give up their channels.
        """
        link, self._link = self._link, None
        if link is not None:
            link.close()
        self._commands.clear()
        self._in_flight.clear()
        again = link is not None and not self._lost
        if self._closed.is_set():
            error, again = Closed(), False
        pending, self._pending = self._pending, {}
        for channel, replies in pending.items():
            if again and channel in self._channels:
                self._pending[channel] = replies
                continue
            self._channels.pop(channel, None)
            for reply in replies:
                reply.set_exception(self._broker.error(error))
        self._listener.lost([channel for channel in self._channels if channel not in self._pending])

    def _send(self, name: str, channel: str = "") -> None:
        """Queue a command without waiting.

        Each command names one channel: it has exactly one reply, and a refusal affects only that channel.
        """
        self._in_flight.append((name, channel))
        words = (name, self._broker.prefix + channel) if channel else (name,)
        self._commands.append(pack(*[word.encode() for word in words]))
        if not self._writing:
            self._writing = True
            gevent.spawn(self._write)

    def _write(self) -> None:
        try:
            while self._commands and self._link is not None:
                link = self._link
                commands, self._commands = self._commands, deque()
                try:
                    link.send(b"".join(commands), TIMEOUT)
                except OSError as error:
                    logger.debug("Redis at %s did not take a command: %s", self._broker.place, error)
                    link.hang_up()  # Redis would take the next command for the rest of one sent in part
        finally:
            self._writing = False

    def _read(self, link: Link) -> None:
        """Receive until the connection fails.

        Reads do not wait while there is more data, so a fast Redis would keep other greenlets from running.
        """
        asked = False
        while True:
            let_others_run_if_spent()
            try:
                link.wait(PING_INTERVAL)
                replies = link.receive(PING_INTERVAL)
            except TimeoutError:
                if asked:
                    raise ConnectionError(f"no answer to PING within {PING_INTERVAL:.3g} seconds") from None
                asked = True
                self._send("PING")
                continue
            asked = False
            if self._lost:
                self._lost = False
                logger.warning("Redis at %s is back", self._broker.place)
            batch = []
            for reply in replies:
                if isinstance(reply, list) and reply[0] == self._broker.MESSAGE:
                    batch.append((self._name(reply[1]), reply[2]))
                else:
                    self._take(reply)
            if batch:
                self._listener.deliver(batch)

    def _take(self, reply: Any) -> None:
        """Match a reply with the oldest command in flight."""
        command, channel = self._in_flight.popleft()
        if command == self._broker.SUBSCRIBE:
            self._confirm(channel, self._broker.error(reply) if isinstance(reply, Exception) else None)

    def _name(self, channel: bytes) -> str:
        return channel.decode(errors="replace")[len(self._broker.prefix) :]

    def _confirm(self, channel: str, error: BrokerError | None) -> None:
        """Note that a channel is received from now on, or was refused."""
        replies = self._pending.get(channel)
        if replies is not None:
            reply = replies.popleft()
            if error is None:
                reply.set(None)
            else:
                reply.set_exception(error)
            if not replies:
                del self._pending[channel]
        elif error is not None:
            self._refused(channel, error)
        if self._missed:
            self._resubscribing.discard(channel)
            if not self._resubscribing:
                missed, self._missed = self._missed, {}
                self._listener.missed(list(missed))

    def _refused(self, channel: str, error: BrokerError) -> None:
        """Tell the members of a channel that could not be resubscribed."""
        logger.error("Channel %r: %s", channel, error)
        self._listener.lost([channel])
        refused = getattr(self._listener, "refused", None)  # which the hub has
        if refused is None:
            self._listener.missed([channel])
        else:
            refused(channel)

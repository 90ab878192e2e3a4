"""`redis://`, `rediss://` and `unix://`: publish/subscribe through Redis.

Publishing goes through redis-py. The subscriber has a bare connection of its own, which hiredis reads where it is
installed: redis-py's own way to read a subscription would cost as much as encoding and sending a message, and it
reconnects silently, while here everybody who may have missed a message is told.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import gevent
import redis
from gevent.event import AsyncResult
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_websocket.exceptions import BrokerError

from .broker import Listener

try:
    import hiredis
except ImportError:  # the extra "speed"
    hiredis = None  # type: ignore[assignment]

TIMEOUT = 5.0  # seconds for one call of Redis: connecting, publishing, subscribing
PING_INTERVAL = 3.0  # seconds of silence after which the subscriber asks whether Redis is there, and gives it as many
PUBLISHERS = 16  # connections at most on which a process publishes
FIRST_DELAY, LONGEST_DELAY = 0.05, 2.0  # seconds between two attempts to connect; jittered

logger = logging.getLogger("django_websocket")


class RedisBroker:
    """Redis at `url`, in the form that redis-py takes; `?prefix=` is put before the names of channels."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        self.prefix = options.pop("prefix", "")
        self.place = f"{parts.scheme}://{parts.hostname or 'localhost'}:{parts.port or 6379}"
        if parts.scheme == "unix":
            self.place = f"unix://{parts.path}"
        self._pool = redis.BlockingConnectionPool.from_url(
            f"{url.partition('?')[0]}?{urlencode(options)}",
            max_connections=PUBLISHERS,
            timeout=TIMEOUT,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),  # a publish whose reply was lost may have been delivered
            protocol=2,
        )
        self._client = redis.Redis(connection_pool=self._pool)

    def publish(self, channel: str, payload: bytes) -> None:
        """Publish once, and wait for Redis to say so."""
        try:
            self._client.publish(self.prefix + channel, payload)
        except (redis.RedisError, OSError) as error:
            raise self.error(error) from error

    def subscriber(self, listener: Listener) -> RedisSubscriber:
        """Return a subscriber, which connects when it has something to subscribe to."""
        return RedisSubscriber(self, listener)

    def connect(self) -> redis.Connection:
        """Return a connection of its own, outside the pool of those that publish."""
        connection: redis.Connection = self._pool.connection_class(**self._pool.connection_kwargs)
        connection.connect()  # type: ignore[no-untyped-call]
        return connection

    def error(self, cause: BaseException) -> BrokerError:
        """Return the error that tells a developer what to do about `cause`."""
        why = str(cause).rstrip(".")
        return BrokerError(
            f"Redis at {self.place} cannot be used: {why}. Start it, or have WEBSOCKET_BROKER name the right one."
        )


class RedisSubscriber:
    """The one connection on which a process is subscribed; a greenlet reads it while there is a channel to receive."""

    def __init__(self, broker: RedisBroker, listener: Listener) -> None:
        self._broker = broker
        self._listener = listener
        self._channels: dict[str, None] = {}  # that are to be received
        self._pending: dict[str, deque[AsyncResult[None]]] = {}  # who waits for replies, in their order
        self._connection: redis.Connection | None = None
        self._commands: deque[Sequence[str]] = deque()  # that wait to be sent
        self._in_flight: deque[tuple[str, str]] = deque()  # commands without a reply, and their channels
        self._running = False
        self._writing = False
        self._resubscribing: set[str] = set()  # after an outage: channels without a reply
        self._missed: list[str] = []  # and those whose subscribers are to be told

    def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe, and wait for the replies."""
        replies = []
        for channel in channels:
            self._channels[channel] = None
            reply: AsyncResult[None] = AsyncResult()
            self._pending.setdefault(channel, deque()).append(reply)
            replies.append(reply)
        if self._connection is not None:
            for channel in channels:
                self._send("SUBSCRIBE", channel)
        elif not self._running:
            self._running = True
            gevent.spawn(self._run)
        with gevent.Timeout(TIMEOUT, self._broker.error(TimeoutError(f"no reply within {TIMEOUT} seconds"))):
            for reply in replies:
                reply.get()

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """Unsubscribe; the reply does not matter."""
        for channel in channels:
            self._channels.pop(channel, None)
            if self._connection is None:  # nothing was sent for those who wait, so no reply is owed to them
                for reply in self._pending.pop(channel, ()):
                    reply.set_exception(self._broker.error(ConnectionError("not connected")))
            else:
                self._send("UNSUBSCRIBE", channel)

    # --- the connection ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Keep a connection, from the first subscription on, until it fails while there is nothing to receive."""
        delay = FIRST_DELAY
        lost = False
        while True:
            try:
                self._connection = self._broker.connect()
                if lost:
                    logger.warning("Redis at %s is back", self._broker.place)
                delay = FIRST_DELAY
                self._begin(lost)
                self._read(self._connection)
            except (redis.RedisError, OSError) as error:
                self._disconnect(error)
                if self._channels and not lost:
                    logger.error("%s", self._broker.error(error))
            except Exception as error:
                logger.exception("The subscriber of Redis at %s failed, and connects anew", self._broker.place)
                self._disconnect(error)
            lost = bool(self._channels)
            if not lost:
                self._running = False
                return
            gevent.sleep(delay * random.uniform(0.5, 1.5))
            delay = min(delay * 2, LONGEST_DELAY)

    def _begin(self, lost: bool) -> None:
        """Subscribe to everything on a new connection."""
        channels = list(self._channels)
        if lost:
            self._resubscribing = set(channels)
            self._missed = [channel for channel in channels if channel not in self._pending]
        for channel in channels:
            self._send("SUBSCRIBE", channel)

    def _disconnect(self, error: BaseException) -> None:
        """Drop the connection, and tell those who wait for a reply; their channels are not received then."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()  # type: ignore[no-untyped-call]
        self._commands.clear()
        self._in_flight.clear()
        pending, self._pending = self._pending, {}
        for channel, replies in pending.items():
            self._channels.pop(channel, None)
            for reply in replies:
                reply.set_exception(self._broker.error(error))
        self._listener.lost(list(self._channels))

    def _send(self, name: str, channel: str = "") -> None:
        """Send a command without waiting, behind those that are being sent.

        Each concerns one channel, so that each has one reply, and a refusal concerns no other.
        """
        self._in_flight.append((name, channel))
        self._commands.append((name, self._broker.prefix + channel) if channel else (name,))
        if not self._writing:
            self._writing = True
            gevent.spawn(self._write)

    def _write(self) -> None:
        try:
            while self._commands and self._connection is not None:
                commands = [self._commands.popleft() for _ in range(len(self._commands))]
                packed = self._connection.pack_commands(commands)  # type: ignore[no-untyped-call]
                self._connection.send_packed_command(packed, check_health=False)  # type: ignore[no-untyped-call]
        except (redis.RedisError, OSError) as error:
            logger.debug("Redis at %s took no command: %s", self._broker.place, error)  # reading fails too
        finally:
            self._writing = False

    def _read(self, connection: redis.Connection) -> None:
        """Receive until the connection fails."""
        receive = _replies(connection)
        asked = False
        while True:
            try:
                replies = receive()
            except TimeoutError:
                if asked:
                    raise ConnectionError(f"no answer to PING within {PING_INTERVAL} seconds") from None
                asked = True
                self._send("PING")
                continue
            asked = False
            batch = []
            for reply in replies:
                if isinstance(reply, list) and reply[0] == b"message":
                    batch.append((self._name(reply[1]), reply[2]))
                    continue
                command, channel = self._in_flight.popleft()
                if command == "SUBSCRIBE":
                    self._confirm(channel, self._broker.error(reply) if isinstance(reply, Exception) else None)
            if batch:
                self._listener.deliver(batch)

    def _name(self, channel: bytes) -> str:
        return channel.decode(errors="replace")[len(self._broker.prefix) :]

    def _confirm(self, channel: str, error: BrokerError | None) -> None:
        """Note that a channel is received from here on, or was refused."""
        replies = self._pending.get(channel)
        if replies is not None:
            reply = replies.popleft()
            if error is None:
                reply.set(None)
            else:
                reply.set_exception(error)
            if not replies:
                del self._pending[channel]
        elif error is not None:  # after an outage: its members are not to wait in silence
            logger.error("Channel %r: %s", channel, error)
            self._listener.lost([channel])
            self._listener.missed([channel])
        if self._missed:
            self._resubscribing.discard(channel)
            if not self._resubscribing:
                missed, self._missed = self._missed, []
                self._listener.missed(missed)


def _replies(connection: redis.Connection) -> Any:
    """Return a function that waits for replies and returns those that came together; TimeoutError after silence."""
    if hiredis is None:

        def receive_one() -> list[Any]:
            try:
                return [connection.read_response(timeout=PING_INTERVAL, disconnect_on_error=False)]
            except redis.ResponseError as error:
                return [error]
            except redis.TimeoutError as error:
                raise TimeoutError from error

        return receive_one

    sock = connection._sock
    assert sock is not None
    sock.settimeout(PING_INTERVAL)
    reader = hiredis.Reader()

    def receive() -> list[Any]:
        while True:
            data = sock.recv(65536)
            if not data:
                raise ConnectionError("Redis closed the connection")
            reader.feed(data)
            replies = []
            while (reply := reader.gets()) is not False:
                replies.append(reply)
            if replies:
                return replies

    return receive

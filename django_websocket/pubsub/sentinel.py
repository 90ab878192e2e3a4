"""`redis+sentinel://` and `rediss+sentinel://`: a Redis with replicas; sentinels know which one is the master."""

from __future__ import annotations

import logging
import time
import weakref
from collections import deque
from functools import partial
from typing import Any

import gevent
import redis
from redis.exceptions import NoPermissionError

from .broker import Listener
from .pipeline import Link, Pipeline, remaining
from .redis import TIMEOUT, RedisBroker, RedisSubscriber
from .redis_address import OPTIONS, Host

CHECK_INTERVAL = 1.0  # seconds between two questions to the sentinels

logger = logging.getLogger("django_websocket")


class SentinelBroker(RedisBroker):
    """The master of a service. See `RedisAddress` for the URL; the sentinels may have a login of their own.

    A replaced master can keep running for a while, and messages published there reach nobody. So the sentinels are
    asked at regular intervals, not only when a connection fails.
    """

    OPTIONS = list(OPTIONS)

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        ask = partial(self.address.connect, db=0, **self.address.sentinel_login)
        self._sentinels = deque(Pipeline(partial(ask, host=host)) for host in self.address.hosts)
        self._master: Host | None = None
        self._former: list[weakref.ref[Pipeline]] = []  # to former masters, while publishes are in progress there
        self._asked = 0.0  # a time of time.monotonic()

    def call_until(self, deadline: float, *words: bytes, asking: bool = False) -> Any:
        """Return the present master's reply to a command; see `RedisBroker.call_until`."""
        if time.monotonic() - self._asked > CHECK_INTERVAL:
            self._asked = time.monotonic()  # others need not ask meanwhile
            try:
                self.master(TIMEOUT / 2)
            except (redis.RedisError, OSError) as error:
                logger.debug("The master of %s is not known: %s", self.place, error)
        return super().call_until(deadline, *words, asking=asking)

    def new_subscriber(self, listener: Listener) -> RedisSubscriber:
        """Return a subscriber that follows the master."""
        return SentinelSubscriber(self, listener)

    def pipelines(self) -> list[Pipeline]:
        """Return the pipelines to the masters and the sentinels."""
        former = [pipeline for ref in self._former if (pipeline := ref()) is not None]
        return [self._pipeline, *former, *self._sentinels]

    def connect(self, timeout: float) -> redis.Connection:
        """Return a new connection to the master. Raises RedisError or OSError."""
        deadline = time.monotonic() + timeout
        master = self.master(timeout)
        connection = self.address.connect(remaining(deadline), master)
        try:
            connection.send_command("ROLE")  # type: ignore[no-untyped-call]  # the sentinels may not know of a new master yet
            if connection.read_response()[0] != b"master":
                raise redis.ConnectionError(f"{master} is no longer the master")
        except NoPermissionError:
            pass
        except BaseException:
            connection.disconnect()  # type: ignore[no-untyped-call]
            raise
        return connection

    def master(self, timeout: float) -> Host:
        """Return the master's address, from the first sentinel that answers. Raises RedisError or OSError."""
        question = b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self.address.service.encode()
        for sentinel in tuple(self._sentinels):
            try:
                reply = sentinel.call(timeout / len(self._sentinels), *question)
                if reply is None:
                    raise redis.ConnectionError(f"they know no master {self.address.service!r}")
                break
            except (redis.RedisError, OSError) as error:
                problem = error.with_traceback(None)  # the traceback would refer to this frame, and that to the error
                if sentinel is self._sentinels[0]:
                    self._sentinels.rotate(-1)
        else:
            raise redis.ConnectionError(f"the sentinels do not say where it is: {problem}") from problem
        self._asked = time.monotonic()
        master = Host(reply[0].decode(), int(reply[1]))
        if master != self._master:
            if self._master is not None:
                logger.warning("The master of %s is now at %s", self.place, master)
            self._master = master
            former = [ref for ref in self._former if ref() is not None]
            self._former = [*former, weakref.ref(self._pipeline)]
            self._pipeline = Pipeline(self.connect)  # the old one has connections to the former master
            if self._closed:
                self._pipeline.close()
        return master


class SentinelSubscriber(RedisSubscriber):
    """A subscriber that drops its connection when another master takes over."""

    _broker: SentinelBroker

    def _read(self, link: Link) -> None:
        watcher = gevent.spawn(self._watch, link)
        try:
            super()._read(link)
        finally:
            watcher.kill(block=False)

    def _watch(self, link: Link) -> None:
        while True:
            gevent.sleep(CHECK_INTERVAL)
            try:
                master = self._broker.master(TIMEOUT)
            except (redis.RedisError, OSError):
                continue  # the known master may still be alive
            if master != link.host:
                link.hang_up()
                return

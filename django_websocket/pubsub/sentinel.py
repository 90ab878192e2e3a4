"""`redis+sentinel://` and `rediss+sentinel://`: a Redis with replicas, and sentinels who say which is the master."""

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

CHECK_INTERVAL = 1.0  # seconds between two looks at who is the master

logger = logging.getLogger("django_websocket")


class SentinelBroker(RedisBroker):
    """The master of a service. See `RedisAddress` for the URL; the sentinels may want a login of their own.

    A master that was replaced can go on for a while, with nobody to hear what is published there. So the sentinels are
    asked again and again, and not only when a connection fails.
    """

    OPTIONS = list(OPTIONS)

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        ask = partial(self.address.connect, db=0, **self.address.sentinel_login)
        self._sentinels = deque(Pipeline(partial(ask, host=host)) for host in self.address.hosts)
        self._master: Host | None = None
        self._former: list[weakref.ref[Pipeline]] = []  # to former masters; they last while somebody publishes there
        self._asked = 0.0  # when, by the clock of time.monotonic()

    def publish_until(self, deadline: float, channel: str, payload: bytes) -> int:
        """Publish once, and wait until `deadline` for the master to say so."""
        if time.monotonic() - self._asked > CHECK_INTERVAL:
            self._asked = time.monotonic()  # others need not ask meanwhile
            try:
                self.master(TIMEOUT / 2)
            except (redis.RedisError, OSError) as error:
                logger.debug("The master of %s is not known: %s", self.place, error)
        return super().publish_until(deadline, channel, payload)

    def new_subscriber(self, listener: Listener) -> RedisSubscriber:
        """Return a subscriber, which goes over to another master."""
        return SentinelSubscriber(self, listener)

    def pipelines(self) -> list[Pipeline]:
        """Return what this broker asks the sentinels and publishes through."""
        former = [pipeline for ref in self._former if (pipeline := ref()) is not None]
        return [self._pipeline, *former, *self._sentinels]

    def connect(self, timeout: float) -> redis.Connection:
        """Return a new connection to the master. Raises RedisError or OSError."""
        deadline = time.monotonic() + timeout
        master = self.master(timeout)
        connection = self.address.connect(remaining(deadline), master)
        try:
            connection.send_command("ROLE")  # type: ignore[no-untyped-call]  # the sentinels may not know yet
            if connection.read_response()[0] != b"master":
                raise redis.ConnectionError(f"{master} was the master, and is none any more")
        except NoPermissionError:
            pass
        except BaseException:
            connection.disconnect()  # type: ignore[no-untyped-call]
            raise
        return connection

    def master(self, timeout: float) -> Host:
        """Return where the master is; ask the sentinels, one after the other, until one knows."""
        question = b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self.address.service.encode()
        for sentinel in tuple(self._sentinels):
            try:
                reply = sentinel.call(timeout / len(self._sentinels), *question)
                if reply is None:
                    raise redis.ConnectionError(f"they know no master {self.address.service!r}")
                break
            except (redis.RedisError, OSError) as error:
                problem = error.with_traceback(None)  # it would keep this call, which keeps it
                if sentinel is self._sentinels[0]:
                    self._sentinels.rotate(-1)
        else:
            raise redis.ConnectionError(f"the sentinels do not say where it is: {problem}") from problem
        self._asked = time.monotonic()
        master = Host(reply[0].decode(), int(reply[1]))
        if master != self._master:
            if self._master is not None:
                logger.warning("The master of %s is at %s now", self.place, master)
            self._master = master
            former = [ref for ref in self._former if ref() is not None]
            self._former = [*former, weakref.ref(self._pipeline)]
            self._pipeline = Pipeline(self.connect)  # the former one's connections are to the former master
            if self._closed:
                self._pipeline.close()
        return master


class SentinelSubscriber(RedisSubscriber):
    """A subscriber whose connection ends when there is another master."""

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
                continue  # who it was may still be there
            if master != link.host:
                link.hang_up()
                return

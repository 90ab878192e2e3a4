"""What waits for the channels of this process, and for whom."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import msgpack
from gevent.hub import Hub, get_hub

from django_websocket.transport.log import report

if TYPE_CHECKING:
    from .exchange import Exchange

Message = dict[str, Any]


class Waiter(Protocol):
    """Who waits for a message."""

    def switch(self) -> object:
        """Go on soon; without effect if it goes on already."""


def pack(message: Message) -> bytes:
    """Return a message as it travels. Raises TypeError for what cannot, such as datetimes and int keys."""
    if not isinstance(message, dict):
        raise TypeError(f"A message for a channel layer must be a dict, not {type(message).__name__}")
    try:
        payload: bytes = msgpack.packb(message)
        msgpack.unpackb(payload)  # finds keys that are not text, which would fail only where the message is received
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"A message for a channel layer may contain only text, bytes, numbers, booleans and None, in lists and in "
            f"dicts whose keys are text: {error}. Convert other values, for example by isoformat() or str()."
        ) from error
    return payload


def unpack(payload: bytes) -> Message:
    """Return a new message from what `pack` returned."""
    message: Message = msgpack.unpackb(payload)
    return message


class FromThread:
    """Stands for a waiter that belongs to the loop of another thread."""

    __slots__ = ("_loop", "_waiter")

    def __init__(self, waiter: Waiter, loop: Hub) -> None:
        self._waiter = waiter
        self._loop = loop

    def switch(self) -> None:
        """See `Waiter.switch`."""
        if self._loop.loop is not None:
            self._loop.loop.run_callback_threadsafe(self._waiter.switch)


class Mailbox:
    """The messages that wait for one channel.

    Messages keep the form in which they travel until they are taken, so that those of a group need the memory of one.
    `kept` says that whoever takes them will close this; otherwise, it lasts as long as somebody looks.
    """

    __slots__ = (
        "_capacity",
        "_lost",
        "closed",
        "exchange",
        "groups",
        "items",
        "kept",
        "name",
        "own",
        "on_its_way",
        "seen",
        "waiters",
    )

    def __init__(self, exchange: Exchange, name: str, capacity: int) -> None:
        self.exchange = exchange
        self.name = name
        self._capacity = capacity
        self._lost = 0  # messages, since it became full
        self.items: deque[bytes] = deque()
        self.groups: set[str] = set()  # by the broker's channels
        self.own = ""  # the broker's channel for this one alone, if it is a general one
        self.waiters: list[Waiter] = []  # the first is served first
        self.on_its_way = 0  # messages that this process has sent to this channel, and that have not come yet
        self.kept = False
        self.closed = False
        self.seen = time.monotonic()  # when somebody last took a message, or looked for one

    @property
    def idle(self) -> bool:
        """Whether nothing can come but what is sent to this channel alone."""
        return not self.items and self.groups <= {self.own}

    @property
    def full(self) -> bool:
        """Whether no more may be sent to this channel alone."""
        return len(self.items) + self.on_its_way >= self._capacity

    def tell(self, waiter: Waiter) -> None:
        """Have `waiter`, which belongs to the running thread's loop, go on whenever there is something, for good."""
        here = get_hub()
        self.waiters.append(waiter if self.exchange.place.loop is here else FromThread(waiter, here))

    def put(self, payload: bytes) -> None:
        """Keep a message, and have the first who waits go on. The log says when messages find no room."""
        if len(self.items) < self._capacity:
            self.items.append(payload)
        else:
            if not self._lost:
                self._report(
                    "messages are dropped",
                    f"{self._capacity} already wait for its consumer, as many as the capacity of CHANNEL_LAYERS allows",
                )
            self._lost += 1
        self.wake_next()

    def wake_next(self) -> None:
        """Have the first who waits go on."""
        if self.waiters:
            self.waiters[0].switch()

    def take(self) -> Message:
        """Return the oldest message. Raises IndexError if there is none."""
        payload = self.items.popleft()
        if self._lost and not self.items:
            self._tell_lost()
        return unpack(payload)

    def _tell_lost(self) -> None:
        lost, self._lost = self._lost, 0
        self._report("messages were dropped", f"{lost} in all")

    def _report(self, cause: str, detail: str) -> None:
        self.exchange.place.soon(report, f"Channel {self.name}", None, cause, detail)  # it needs a loop that runs

    def wake(self) -> None:
        """Have all who wait go on, since this was closed."""
        for waiter in tuple(self.waiters):
            waiter.switch()

    def close(self) -> None:
        """Leave all groups, and take no more."""
        if self._lost:
            self._tell_lost()
        self.exchange.place.soon(self.exchange.close, self)

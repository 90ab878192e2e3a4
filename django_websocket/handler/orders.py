"""Orders to disconnect: what one process tells all others, and how each carries them out."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable
from typing import NamedTuple

import gevent
from gevent.event import Event
from gevent.hub import get_hub

from django_websocket import conf, pubsub
from django_websocket.exceptions import BrokerError
from django_websocket.protocol.frames import check_close
from django_websocket.pubsub.asking import ANSWERS, answer, ask
from django_websocket.pubsub.hub import Forwarding, Hub, Publication
from django_websocket.transport.connection import Connection
from django_websocket.transport.log import report
from django_websocket.transport.turns import let_others_run_if_spent
from django_websocket.transport.waiting import ViewGreenlet

CHANNEL = pubsub.RESERVED + "disconnect"  # on which processes tell each other whom to disconnect
ORDER_SIZE = 10_000  # characters of an order; a longer one is none
KINDS = {
    "user": 4,
    "session": 1,
    "channel": 1,
    "connection": 1,
}  # whom an order can name, and how many texts that takes

Find = Callable[[tuple[str, ...]], Iterable[Connection]]


class Order(NamedTuple):
    """Whom to disconnect."""

    kind: str  # one of `KINDS`
    name: tuple[str, ...]
    code: int
    reason: str

    def check(self) -> None:
        """Raise TypeError or ValueError for what could not be carried out for everybody alike."""
        if KINDS.get(self.kind) != len(self.name):
            raise ValueError(f"{self.kind!r} and {self.name!r} name nobody")
        for value in self.name:
            if not isinstance(value, str):
                raise TypeError(f"{value!r} is not a text")
            value.encode()  # raises UnicodeEncodeError, a ValueError
        if type(self.code) is not int:
            raise TypeError(f"A close code is an int, not {self.code!r}")
        check_close(self.code, self.reason)

    def text(self, place: str) -> str:
        """Return the message that `order_from` reads; `place` is the channel for answers."""
        text = json.dumps([self.kind, self.name, self.code, self.reason, place])
        if len(text) > ORDER_SIZE:
            raise ValueError("The order is too long: a close frame has room for a reason of 123 bytes")
        return text


def disconnect(order: Order) -> int:
    """Have all processes carry out an order; return how many connections they have closed. Raises BrokerError."""
    order.check()
    order.text("")  # before anybody is asked
    return ask(CHANNEL, order.text)


def order_from(message: str | bytes) -> tuple[Order, str]:
    """Return the order that `message` is, and the channel for the answer.

    Raises ValueError, TypeError or AttributeError if it is none.
    """
    if not isinstance(message, str) or len(message) > ORDER_SIZE:
        raise ValueError
    kind, name, code, reason, place = pubsub.from_json(message)
    order = Order(kind, tuple(name), code, reason)
    order.check()
    if not place.startswith(ANSWERS):
        raise ValueError
    return order, place


class Orders:
    """Carries out, for the connections of one loop, what others tell; listens while there are any."""

    def __init__(self) -> None:
        self._connections: set[Connection] = set()
        self._none_left = Event()
        self._running = False
        self._hub: Hub | None = None
        self.find: dict[str, Find] = {"channel": self._of_channel, "connection": self._of_id}  # by the kind of order

    def add(self, connection: Connection) -> None:
        """Listen as long as `connection` is open."""
        if not connection.connected:
            return
        self._connections.add(connection)
        self._none_left.clear()
        connection.on_end.append(lambda: self._remove(connection))
        if not self._running:
            self._running = True
            gevent.spawn(self._run)

    def _remove(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._none_left.set()

    def _run(self) -> None:
        try:
            while self._connections:
                if self._hub is None:
                    try:
                        hub = pubsub._hub()
                        hub.join(self, [CHANNEL])
                        self._hub = hub
                    except BrokerError as error:
                        report("disconnect()", None, "does not work at present", str(error))
                self._none_left.wait(conf.current().login_check_interval)
        finally:
            self._running = False
            joined, self._hub = self._hub, None
            if joined is not None:
                joined.leave(self, [CHANNEL])

    # What others tell, by the hub of publish/subscribe.

    def deliver(self, publication: Publication) -> None:
        """Disconnect whom another process, or this one, has named, and say how many that were."""
        for message in publication.messages:
            try:
                order, place = order_from(message)
            except (AttributeError, TypeError, ValueError):
                report(f"channel {CHANNEL}", None, "has a message that is not from disconnect()")
                continue
            find = self.find.get(order.kind)
            gevent.spawn(self._carry_out, order, set(find(order.name)) if find else (), place)

    def _carry_out(self, order: Order, connections: Iterable[Connection], place: str) -> None:
        reached = 0
        for connection in connections:
            if connection.close_code is None:
                connection.close(order.code, order.reason)
                reached += 1
                let_others_run_if_spent()
        answer(place, reached)

    def missed(self) -> None:
        """Nothing to do: who was to be disconnected then is still connected, as if nobody had been there to hear it."""

    def broker_closed(self) -> None:
        """Ask the broker that comes after it, the next time."""
        self._hub = None

    def _of_channel(self, name: tuple[str, ...]) -> set[Connection]:
        """Return who is subscribed to a channel, or whose view is."""
        channel = None if self._hub is None else self._hub.channels.get(name[0])
        if channel is None:
            return set()
        found = {member.connection for member in channel.members if isinstance(member, Forwarding)}
        views = tuple(ViewGreenlet.running)  # of all loops
        found |= {view.connection for view in views if view.has_opened_one_of(channel.members)}
        return {connection for connection in found if connection in self._connections}

    def _of_id(self, name: tuple[str, ...]) -> set[Connection]:
        return {connection for connection in self._connections if connection.id == name[0]}


_of_loop: weakref.WeakKeyDictionary[object, Orders] = weakref.WeakKeyDictionary()


def orders() -> Orders:
    """Return those of the running loop."""
    hub = get_hub()
    found = _of_loop.get(hub)
    if found is None:
        found = _of_loop[hub] = Orders()
    return found

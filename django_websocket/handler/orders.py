"""Orders to disconnect clients, which one process sends and all carry out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import NamedTuple

import gevent

from django_websocket.exceptions import BrokerError
from django_websocket.protocol.frames import check_close
from django_websocket.pubsub.asking import ANSWERS, answer, ask
from django_websocket.pubsub.channels import RESERVED
from django_websocket.pubsub.forwarding import Forwarding
from django_websocket.pubsub.hub import Hub
from django_websocket.pubsub.json_text import from_json
from django_websocket.pubsub.process import current_hub
from django_websocket.pubsub.publication import Publication
from django_websocket.transport.connection import Connection
from django_websocket.transport.log import report
from django_websocket.transport.loops import PerLoop
from django_websocket.transport.shared import open_connections
from django_websocket.transport.turns import let_others_run_if_spent
from django_websocket.transport.waiting import ViewGreenlet

from .rounds import Rounds

CHANNEL = RESERVED + "disconnect"  # where processes tell each other whom to disconnect
ORDER_SIZE = 10_000  # characters; a longer message is no order
KINDS = {"user": 4, "session": 1, "channel": 1, "connection": 1}  # of names in an order, with their numbers of texts

Find = Callable[[tuple[str, ...]], Iterable[Connection]]


class Order(NamedTuple):
    """Which clients to disconnect, with which close code and reason."""

    kind: str  # one of `KINDS`
    name: tuple[str, ...]
    code: int
    reason: str

    def check(self) -> None:
        """Raise TypeError or ValueError for an order that a process could not carry out."""
        if KINDS.get(self.kind) != len(self.name):
            raise ValueError(f"{self.kind!r} and {self.name!r} do not say which WebSockets to close")
        for value in self.name:
            if not isinstance(value, str):
                raise TypeError(f"{self.kind}= must be a str, not {value!r}")
            value.encode()  # raises UnicodeEncodeError, a ValueError
        if type(self.code) is not int:
            raise TypeError(f"A close code must be an int, not {self.code!r}")
        check_close(self.code, self.reason)

    def text(self, place: str) -> str:
        """Return the message that `order_from` reads; `place` is the channel for answers."""
        text = json.dumps([self.kind, self.name, self.code, self.reason, place])
        if len(text) > ORDER_SIZE:
            raise ValueError("The arguments of disconnect() are too long: a close reason may have at most 123 bytes")
        return text


def disconnect(order: Order) -> int:
    """Have all processes carry out an order; return how many connections they have closed. Raises BrokerError."""
    order.check()
    order.text("")  # raises before any process is asked
    return ask(CHANNEL, order.text)


def order_from(message: str | bytes) -> tuple[Order, str]:
    """Return the order that `message` is, and the channel for the answer.

    Raises ValueError, TypeError or AttributeError if it is not an order.
    """
    if not isinstance(message, str) or len(message) > ORDER_SIZE:
        raise ValueError
    kind, name, code, reason, place = from_json(message)
    order = Order(kind, tuple(name), code, reason)
    order.check()
    if not place.startswith(ANSWERS):
        raise ValueError
    return order, place


class Orders(Rounds):
    """Carries out orders of any process for the connections of one loop; listens while there are any."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0  # of open connections
        self._on_end = self._one_ended  # one object for all connections
        self._hub: Hub | None = None
        self.find: dict[str, Find] = {"channel": self._of_channel, "connection": self._of_id}  # by the kind of order

    def add(self, connection: Connection) -> None:
        """Listen as long as `connection` is open."""
        if connection.connected:
            self._count += 1
            connection.on_end.append(self._on_end)
            self.changed()

    def _one_ended(self) -> None:
        self._count -= 1
        self.changed()

    def needed(self) -> bool:
        """See `Rounds`."""
        return self._count > 0

    def begin(self) -> None:
        """Listen."""
        self.round()

    def round(self) -> None:
        """Listen again, if the broker could not be reached or was closed."""
        if self._hub is None:
            try:
                hub = current_hub()
                hub.join(self, [CHANNEL])
                self._hub = hub
            except BrokerError as error:
                report("disconnect()", None, "does not work at present", str(error))

    def end(self) -> None:
        """Listen no more."""
        joined, self._hub = self._hub, None
        if joined is not None:
            joined.leave(self, [CHANNEL])

    # --- called by the hub of publish/subscribe ----------------------------------------------------------------

    def deliver(self, publication: Publication) -> None:
        """Carry out the orders of any process, and answer with the number of connections that were closed."""
        for message in publication.messages:
            try:
                order, place = order_from(message)
            except (AttributeError, TypeError, ValueError):
                report(f"channel {CHANNEL}", None, "a message was ignored that is not from disconnect()")
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
        """Nothing to do: an order that was missed has no effect, as if this process had not been there."""

    def broker_closed(self) -> None:
        """Listen at the next broker, from the next round on."""
        self._hub = None

    def _of_channel(self, name: tuple[str, ...]) -> set[Connection]:
        """Return the connections that are subscribed to a channel, themselves or by their views."""
        channel = None if self._hub is None else self._hub.channels.get(name[0])
        if channel is None:
            return set()
        found = {member.connection for member in channel.members if isinstance(member, Forwarding)}
        views = tuple(ViewGreenlet.running)  # of all loops
        found |= {view.connection for view in views if view.has_opened_one_of(channel.members)}
        of_loop = open_connections()
        return {connection for connection in found if connection in of_loop}

    def _of_id(self, name: tuple[str, ...]) -> list[Connection]:
        of_loop = open_connections()
        return [each for each in of_loop if isinstance(each, Connection) and each.id == name[0]]


orders = PerLoop(Orders).get

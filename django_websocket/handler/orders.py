"""What one process asks of all that serve clients: to disconnect some of these, or to tell what these are doing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple
from uuid import uuid4
from weakref import WeakKeyDictionary

import gevent

from django_websocket.exceptions import BrokerError
from django_websocket.protocol.frames import check_close
from django_websocket.pubsub.asking import ANSWERS, Asked, answer, put
from django_websocket.pubsub.channels import RESERVED
from django_websocket.pubsub.forwarding import Forwarding
from django_websocket.pubsub.hub import Hub
from django_websocket.pubsub.process import current_hub
from django_websocket.pubsub.publication import Publication
from django_websocket.transport.connection import Connection
from django_websocket.transport.log import report
from django_websocket.transport.loops import PerLoop
from django_websocket.transport.shared import open_connections
from django_websocket.transport.turns import let_others_run_if_spent
from django_websocket.transport.waiting import ViewGreenlet

from .observing import Observer, politely, summary
from .rounds import Rounds
from .sealing import opened, sealed
from .users import User

CHANNEL = RESERVED + "orders"  # where processes tell each other what to do
ORDER_SIZE = 10_000  # characters; a longer message is no order
LIFE = 30.0  # seconds in which an order is obeyed, by clocks that may differ by as much
CLOCKS = 2.0  # seconds by which the clocks of two machines usually differ at most
# Kinds of names in an order, with their numbers of texts. Some are patterns; the others name exactly one thing. A
# `known` user is one that was recognised, also of a view that goes on after the logout.
PATTERNS = ("path", "view", "channels")
KINDS = {"user": 4, "known": 4, "session": 1, "channel": 1, "connection": 1, **dict.fromkeys(PATTERNS, 1)}
PART = 100  # connections in one part of an answer,
PART_SIZE = 48 * 1024  # unless they take as many characters; on its way it is compressed to about an eighth
PARTS = 4  # of one answer, so that many processes together do not send more than one can take

Which = Mapping[str, tuple[str, ...]]  # connections, by the kind of a name and the name; all must apply
Find = Callable[[tuple[str, ...]], Iterable[Connection]]
NO_ORDER = "a message was ignored that no process of this project has sent: is their SECRET_KEY the same?"
LATE = "an order of another process was ignored because it is too old, or the clocks of the machines differ"
AGAIN = "an order of another process was ignored because it has come again"


def hash_of_session(key: str) -> str:
    """Return what names a session in an order. Its key would let everybody in who can read the order."""
    return hashlib.sha256(key.encode()).hexdigest()


def check_which(which: Which) -> None:
    """Raise TypeError or ValueError unless a process could find such connections."""
    for kind, name in which.items():
        if KINDS.get(kind) != len(name):
            raise ValueError(f"{kind!r} and {name!r} do not say which WebSockets to close")
        for value in name:
            if not isinstance(value, str):
                raise TypeError(f"{kind}= must be a str, not {value!r}")
            value.encode()  # raises UnicodeEncodeError, a ValueError


class Order(NamedTuple):
    """Which clients to disconnect, with which close code and reason."""

    which: Which
    code: int
    reason: str

    def check(self) -> None:
        """Raise TypeError or ValueError for an order that a process could not carry out."""
        if not self.which:
            raise ValueError("An order to disconnect everybody is a mistake")
        check_which(self.which)
        if type(self.code) is not int:
            raise TypeError(f"A close code must be an int, not {self.code!r}")
        check_close(self.code, self.reason)


def disconnect(order: Order) -> int:
    """Have all processes carry out an order; return how many connections they have closed. Raises BrokerError."""
    order.check()
    reached: dict[str, int] = {}

    def take(process: str, answer: int) -> bool:
        new = process not in reached  # whoever can publish may send an answer again, before others have answered
        reached[process] = answer
        return new

    ask("disconnect", [order.which, order.code, order.reason], take)
    return sum(reached.values())


def ask(verb: str, value: Any, take: Callable[[str, Any], object], **options: Any) -> Asked:
    """Ask all processes for something, and have `take` called with the name of each that answers, and the answer.

    `take` returns False if the process has not answered completely. `options` are those of `put`. Raises BrokerError,
    and ValueError if the question is too long.
    """
    if len(question(verb, value, "")) > ORDER_SIZE - len(ANSWERS) - 100:  # before any process is asked
        raise ValueError("The arguments are too long: a close reason may have at most 123 bytes")

    def open_answer(message: str | bytes, place: str) -> bool:
        process, answer = opened(message, place).value
        return take(process, answer) is not False

    return put(CHANNEL, lambda place: question(verb, value, place), open_answer, **options)


def question(verb: str, value: Any, place: str) -> str:
    """Return the message that asks for something; `place` is the channel for answers, a new one for each message."""
    return sealed([verb, value, place], "order")


class Orders(Rounds):
    """Carries out orders of any process for the connections of one loop; listens while there are any.

    An order counts once, for 30 seconds, and not for a process that was not there: whoever can record and publish
    messages may not use it again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._name = uuid4().hex
        self._count = 0  # of open connections
        self._on_end = self._one_ended  # one object for all connections
        self._hub: Hub | None = None
        self._since = 0.0  # when this began to listen, in seconds since the epoch
        self._carried_out: dict[
            str, float
        ] = {}  # the places of orders, with the time until which they could come again
        self._find: dict[str, Find] = {  # by the kind of name
            "channel": self._of_channel,
            "connection": self._of_id,
            "known": self._of_known,
        }
        self._verbs: dict[str, Callable[[Any, str], object]] = {"disconnect": self._disconnect, "list": self._list}
        self._users: Callable[[], Mapping[Connection, User]] = dict  # whose logins are watched
        self._others: WeakKeyDictionary[Connection, User] = WeakKeyDictionary()

    def know(self, users: Callable[[], Mapping[Connection, User]], **find: Find) -> None:
        """Go by what others know of the connections: their users, and more kinds of names."""
        self._users = users
        self._find.update(find)

    def add(self, connection: Connection, user: User | None = None) -> None:
        """Listen as long as `connection` is open. `user` is its user if it goes on after the logout."""
        if connection.connected:
            if user is not None:
                self._others[connection] = user
            self._count += 1
            connection.call_on_end(self._on_end)
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
                self._since = time.time()
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
        """Carry out the orders of any process."""
        for message in publication.messages:
            try:
                verb, value, place = self._accepted(message)
            except (TypeError, ValueError) as refusal:
                report(f"channel {CHANNEL}", None, str(refusal))
                continue
            gevent.spawn(self._obey, verb, value, place)

    def _accepted(self, message: str | bytes) -> tuple[str, Any, str]:
        """Return what is asked for, and where to answer. Raises ValueError for what is not to be obeyed."""
        if len(message) > ORDER_SIZE:
            raise ValueError(NO_ORDER)
        try:
            moment, (verb, value, place) = opened(message, "order")
        except ValueError:
            raise ValueError(NO_ORDER) from None
        if not isinstance(place, str) or not place.startswith(ANSWERS):
            raise ValueError(NO_ORDER)
        now = time.time()
        if abs(now - moment) > LIFE or moment < self._since - CLOCKS:
            raise ValueError(LATE)
        self._carried_out = {known: until for known, until in self._carried_out.items() if until > now}
        if place in self._carried_out:
            raise ValueError(AGAIN)
        self._carried_out[place] = moment + LIFE
        return verb, value, place

    def missed(self) -> None:
        """Nothing to do: an order that was missed has no effect, as if this process had not been there."""

    def broker_closed(self) -> None:
        """Listen at the next broker, from the next round on."""
        self._hub = None

    # --- carrying them out, in a greenlet of its own -----------------------------------------------------------

    def _obey(self, verb: str, value: Any, place: str) -> None:
        try:
            self._verbs[verb](value, place)
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # it may be of another version
            report(f"channel {CHANNEL}", None, "an order of another process could not be carried out", repr(error))

    def _disconnect(self, value: Any, place: str) -> None:
        which, code, reason = value
        order = Order({kind: tuple(name) for kind, name in which.items()}, code, reason)
        order.check()
        reached = 0
        for connection in self._found(order.which):
            if connection.close_code is None:
                connection.close(order.code, order.reason)
                reached += 1
                let_others_run_if_spent()
        self._answer(reached, place)

    def _list(self, value: Any, place: str) -> None:
        """Tell of some connections, the oldest first: at most `most`, and those that began after `after`.

        Without `after` it is the first question, which all processes answer; later ones are to those that it names.
        """
        after = 0.0
        if value["after"] is not None:
            if self._name not in value["after"]:
                return
            after = value["after"][self._name]
        which = {kind: tuple(name) for kind, name in value["which"].items()}
        check_which(which)
        users = {**self._users(), **self._others}
        observer = Observer(users)
        found = [each for each in self._found(which, observer) if each.close_code is None]
        found.sort(key=lambda connection: connection.began)
        rest = [each for each in found if each.began > after][: value["most"]]
        told: dict[str, Any] = {"total": len(found), "summary": None if after else summary(self._all())}
        part: list[dict[str, Any]] = []
        number = size = 0
        for connection in politely(rest):
            part.append(observer.describe(connection))
            after = connection.began
            size += sum(map(len, part[-1]["channels"])) + len(part[-1]["path"]) + 500
            if len(part) == PART or size > PART_SIZE:
                number += 1
                if number == PARTS:
                    break
                self._answer({"part": number, "connections": part, "last": False}, place)
                part, size = [], 0
        more = bool(rest) and connection is not rest[-1]
        self._answer({**told, "part": 0, "connections": part, "last": True, "after": after if more else None}, place)

    def _answer(self, value: Any, place: str) -> None:
        answer(place, sealed([self._name, value], place, compress=True))

    def _all(self) -> list[Connection]:
        return [each for each in open_connections() if isinstance(each, Connection)]

    def _found(self, which: Which, observer: Observer | None = None) -> Collection[Connection]:
        """Return the connections to which all names apply."""
        found = self._all()
        for kind in which.keys() - PATTERNS:
            find = self._find.get(kind)
            some = set(find(which[kind]) if find else ())
            found = [each for each in found if each in some]
        for kind in which.keys() & PATTERNS:
            observer = observer or Observer({})
            wanted = observer.predicate(kind, which[kind][0])
            found = [each for each in politely(found) if wanted(each)]
        return found

    def _of_channel(self, name: tuple[str, ...]) -> set[Connection]:
        """Return the connections that are subscribed to a channel, themselves or by their views."""
        channel = None if self._hub is None else self._hub.channels.get(name[0])
        if channel is None:
            return set()
        found = {member.connection for member in channel.members if isinstance(member, Forwarding)}
        views = tuple(ViewGreenlet.running)  # of all loops
        found |= {view.connection for view in views if view.has_opened_one_of(channel.members)}
        return {connection for connection in found if connection is not None}

    def _of_id(self, name: tuple[str, ...]) -> list[Connection]:
        return [each for each in self._all() if each.id == name[0]]

    def _of_known(self, name: tuple[str, ...]) -> list[Connection]:
        return [each for each, user in {**self._users(), **self._others}.items() if user == name]


orders = PerLoop(Orders).get

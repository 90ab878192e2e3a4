"""Presence: the channels that clients of a process are in, the lease by which it counts as alive, and its clients."""

from __future__ import annotations

import json
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Literal, NamedTuple
from uuid import uuid4
from weakref import WeakKeyDictionary

import gevent
from gevent.lock import Semaphore

from django_websocket.exceptions import BrokerError
from django_websocket.protocol.frames import CloseCode
from django_websocket.transport.connection import Connection
from django_websocket.transport.log import report
from django_websocket.transport.waiting import services

from .broker import Broker
from .enrolment import Guest
from .hub import Hub
from .json_text import as_json, from_json
from .publication import Compressed, variant_for
from .room import GRACE, News, Room, text_of
from .roster import LEASE, LIMIT, NOBODY, PresenceBroker, keeps_rosters, key_of

RENEWAL = 10.0  # seconds between two renewals of the lease; jittered
RETRY = 2.0  # seconds until it is tried again to renew it
CHECKS = 3  # renewals between two looks at each roster
READERS = 16  # rosters that are read at once; what they ask for leaves together
LARGEST_INTEGER = 2**53  # JavaScript has larger ones, but rounds them
MAX_SIZE = 1000  # bytes of what is told of a user
FINAL = (CloseCode.NORMAL, 4401, 4403, 4404)  # after these close codes, clients do not come back

Present = Mapping[str, Any] | Literal["watch"]


class User(NamedTuple):
    """Who is present: the id, and what is told of it, both as JSON."""

    id: str
    info: bytes


def user_from(present: Present | None) -> User | None:
    """Return what a view gives as present=; None for a client that only watches. Raises TypeError or ValueError."""
    if present is None or present == "watch":
        return None
    if not isinstance(present, Mapping):
        raise TypeError(f'present= must be a dict that says who is there, with an "id", or "watch", not {present!r}')
    user_id = as_json(present.get("id"))
    if not isinstance(found := json.loads(user_id), (str, int)) or isinstance(found, bool):
        raise ValueError(
            f'The "id" in present= must be a str or an int, not {present.get("id")!r}: it tells users apart. For '
            f'visitors without an account, make one up and keep it in their session, or use present="watch".'
        )
    if isinstance(found, int) and abs(found) >= LARGEST_INTEGER:
        raise ValueError(f'The "id" in present= is {found}, which browsers would round: use a str')
    info = as_json(dict(present)).encode()
    from_json(info)  # it may be nested too deeply for those who are told
    if len(info) > MAX_SIZE:
        raise ValueError(
            f"The dict in present= has {len(info)} bytes as JSON, more than the {MAX_SIZE} that are allowed. Include "
            f"only what a list shows, such as the id and a name, and have the page fetch the rest."
        )
    return User(user_id, info)


class Presence:
    """The rooms of a hub. Its process counts as alive, by a lease that it renews, while there are any."""

    def __init__(self, hub: Hub, broker: PresenceBroker) -> None:
        self.hub = hub
        self.broker = broker
        self.process = uuid4().hex[:12].encode()
        self.secret: bytes = getattr(broker, "secret", b"")  # of the keys of users
        self.forgives_until = 0.0  # whoever is missing in rosters until then is yet to be put back into them
        self._rooms: dict[str, Room] = {}  # by channel
        self._living: frozenset[bytes] = frozenset()
        self._lease_ends = 0.0  # 0 without one
        self._leasing = Semaphore()  # held while the lease is renewed or given back
        self._stopped = False
        self._renewer: gevent.Greenlet[[], None] | None = None
        self._jobs: deque[Callable[[], None]] = deque()
        self._readers = 0
        self._held: deque[tuple[float, Room, Guest]] = deque()  # with the time until which each guest is held
        self._releaser: gevent.Greenlet[[], None] | None = None
        self._looks = False  # whether the lease is about to be looked at

    # --- rooms ---------------------------------------------------------------------------------------------------

    def open(self, channels: Iterable[str]) -> list[Room]:
        """Return the rooms of channels, whose `close` has to be called. Raises BrokerError."""
        rooms: list[Room] = []
        try:
            for channel in channels:
                room = self._rooms.get(channel)
                if room is None:
                    room = self._rooms[channel] = Room(self, channel)
                room.users += 1
                rooms.append(room)
                self._begin()
                room.open()
        except BaseException:
            for room in rooms:
                room.close()
            raise
        return rooms

    @property
    def members(self) -> int:
        """How many users are in rooms through this process; one who is in two counts twice."""
        return sum(len(room.enrolment) for room in tuple(self._rooms.values()))

    def forget(self, room: Room) -> None:
        """Drop a room; without any, the process is no longer said to be alive."""
        if self._rooms.get(room.channel) is room:
            del self._rooms[room.channel]
        if not self._rooms:
            self._stop_renewing()
            if self._lease_ends:
                gevent.spawn(self._give_back)

    def end(self) -> None:
        """Forget everything: the broker was closed."""
        rooms, self._rooms = self._rooms, {}
        for room in rooms.values():
            room.end()
        self._jobs.clear()
        self._held.clear()
        self._lease_ends = 0.0
        self._stop_renewing()
        if self._releaser is not None:
            self._releaser.kill(block=False)
        services.discard(self)

    def do(self, job: Callable[[], None]) -> None:
        """Have a job done soon that waits for the broker. Never waits."""
        self._jobs.append(job)
        if self._readers < READERS:
            self._readers += 1
            gevent.spawn(self._do_all)

    def _do_all(self) -> None:
        try:
            while self._jobs:
                job = self._jobs.popleft()
                try:
                    job()
                except Exception as error:  # a fault of this package, or of a broker of a site's own
                    report("publish/subscribe", None, "reading who is there failed", repr(error), logging.ERROR)
        finally:
            self._readers -= 1

    # --- clients that may come back ------------------------------------------------------------------------------

    def hold(self, room: Room, guest: Guest) -> None:
        """Let a guest leave in a while, if it does not come back."""
        room.enrolment.hold(guest)
        self._held.append((monotonic() + GRACE, room, guest))
        if self._releaser is None:
            self._releaser = gevent.spawn(self._release)

    def _release(self) -> None:
        try:
            while self._held:
                gevent.sleep(max(0.0, self._held[0][0] - monotonic()))
                while self._held and self._held[0][0] <= monotonic():
                    _, room, guest = self._held.popleft()
                    room.enrolment.leave(guest)
        finally:
            self._releaser = None

    # --- the lease -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Have the process count as alive before it says who is there. Raises BrokerError."""
        self.renew(if_needed=True)
        if (self._renewer is None or self._renewer.dead) and not self._stopped:
            self._renewer = gevent.spawn(self._keep_alive)
            services.add(self)

    def renew(self, *, if_needed: bool = False) -> None:
        """Renew the lease; `if_needed`, only if it ends soon. This tells whether the broker has lost everything.

        Raises BrokerError.
        """
        with self._leasing:
            if if_needed and self._lease_ends > monotonic() + LEASE / 5:
                return
            if self._stopped or not self._rooms:
                self._living = self.broker.renew_lease(b"", 0).living
                return
            had_it, ends = self._lease_ends, monotonic() + LEASE
            held, self._living = self.broker.renew_lease(self.process, LEASE)
            self._lease_ends = ends
        if had_it and not held:
            report(
                "publish/subscribe",
                None,
                "the broker had lost the users who are connected to this process; they are listed there again",
            )
            self.forgives_until = monotonic() + GRACE
            for room in tuple(self._rooms.values()):
                room.read_soon()

    def _give_back(self) -> None:
        with self._leasing:
            if self._lease_ends and not self._rooms:
                self._lease_ends = 0.0
                services.discard(self)
                with suppress(BrokerError):  # then it ends by itself
                    self.broker.renew_lease(self.process, 0)

    def _stop_renewing(self) -> None:
        renewer, self._renewer = self._renewer, None
        if renewer is not None:
            renewer.kill(block=False)

    def _keep_alive(self) -> None:
        looks = 0
        while True:
            gevent.sleep(RENEWAL * random.uniform(0.9, 1.1))
            while not self._is_renewed():
                gevent.sleep(RETRY)
            looks += 1
            for room in tuple(self._rooms.values()):
                room.enrolment.go_on()
                if self._dead(room.processes):
                    self.do(room.remove_dead)
                if looks % CHECKS == 0:
                    self.do(room.check)

    def _is_renewed(self) -> bool:
        try:
            self.renew()
        except BrokerError:
            return False
        except Exception as error:  # a fault of this package, or of a broker of a site's own
            report(
                "publish/subscribe",
                None,
                "this process cannot tell the broker that it is alive",
                repr(error),
                logging.ERROR,
            )
            return False
        return True

    def look_again(self) -> None:
        """Renew the lease soon, since the broker was away. Never waits."""
        if not self._looks:
            self._looks = True
            self.do(self._look)

    def _look(self) -> None:
        self._looks = False
        if self._rooms and self._is_renewed():
            for room in tuple(self._rooms.values()):
                room.enrolment.go_on()

    def dead_of(self, processes: frozenset[bytes]) -> frozenset[bytes]:
        """Return which of these processes are dead. Raises BrokerError."""
        with self._leasing:
            pass  # after an outage, the lease tells whether the broker has lost everything
        if processes - self._living - {self.process}:
            self.renew()  # one of them may be new
        return self._dead(processes)

    def _dead(self, processes: Iterable[bytes]) -> frozenset[bytes]:
        """Return which of these processes are dead by what is known. After a loss, each has its time to come back."""
        if monotonic() < self.forgives_until:
            return frozenset()
        return frozenset(processes) - self._living - {self.process}

    def stop(self) -> None:
        """Let the process be taken for dead when its clients have had their time to come back elsewhere."""
        if not self._stopped:
            self._stopped = True
            self._stop_renewing()
            gevent.spawn(self._stop)

    def _stop(self) -> None:
        try:
            with self._leasing, suppress(BrokerError):
                if self._lease_ends:
                    self.broker.renew_lease(self.process, GRACE)
        finally:
            services.discard(self)


class Attendance:
    """The presence of a client in the channels of one of its subscriptions. It may only watch."""

    __slots__ = ("__weakref__", "_connection", "_guests", "_presence", "_rooms", "_session", "_user", "_variant")

    def __init__(self, presence: Presence, channels: Sequence[str], user: User | None) -> None:
        self._presence = presence
        self._user = user
        self._guests: list[tuple[Room, Guest]] = []
        self._session: str | None = None
        self._connection: Connection | None = None  # that is told who comes and goes
        self._variant: Compressed = None
        self._rooms = presence.open(channels)

    def enter(self, session: str | None, connection: Connection | None = None) -> None:
        """Have the client be there; return when the broker knows that. Raises BrokerError."""
        self._session = session
        secret = self._presence.secret
        if self._user is None:
            return
        for room in tuple(self._rooms):
            if not self._rooms:
                return  # this was closed while the broker was told of another room
            key = NOBODY if session is None else key_of(room.channel, session, secret)
            guest = Guest(key_of(room.channel, self._user.id, secret), key, self._user.info, connection)
            self._guests.append((room, guest))
            room.enrolment.enter(guest)

    def attach(self, connection: Connection) -> None:
        """Tell the client who is there, and who comes and goes, if it understands that."""
        if connection.greeting is not None:
            self._connection = connection
            self._variant = variant_for(connection.agreement)
            for room in self._rooms:
                room.add(self)

    def update(self, present: Present) -> None:
        """Tell something else of the user. Never waits. Raises RuntimeError for a client that only watches."""
        if self._user is None:
            raise RuntimeError("The client only watches who is there: subscribe with a dict as present= instead")
        user = user_from(present)
        if user is None:
            raise TypeError(
                "An update cannot make a client that is present one that only watches: close the subscription instead"
            )
        if user.id != self._user.id:
            raise ValueError(f'An update cannot change the "id" in present= from {self._user.id} to {user.id}')
        self._user = user
        for room, guest in self._guests:
            room.enrolment.update(guest, user.info)

    def close(self, code: int | None) -> None:
        """Leave. Never waits. `code` is why the connection has ended, None if it has not."""
        self._connection = None
        restarts = code == CloseCode.SERVICE_RESTART
        comes_back = code is not None and code not in FINAL and (restarts or self._session is not None)
        rooms, self._rooms = self._rooms, []
        guests, self._guests = self._guests, []
        for room, guest in guests:
            if comes_back:
                self._presence.hold(room, guest)
            else:
                room.enrolment.leave(guest)
        for room in rooms:
            room.remove(self)
            room.close()

    def tell(self, room: Room, news: News) -> bool:
        """Send news, unless the client has yet to read something else: then it gets the whole list when it has."""
        return self._push(news.frames)

    def tell_all(self, room: Room) -> bool:
        """Send the list, unless the client has yet to read something else."""
        return self._push(room.frames_with_all)

    def _push(self, frames: Callable[[Compressed], bytes]) -> bool:
        connection = self._connection
        if connection is None:
            return True
        if connection.blocked:
            return False
        connection.push_late(frames(self._variant))  # nobody is too slow for that
        return True

    def broker_closed(self) -> None:
        """Do nothing: the subscription closes the connection."""


def presence_of(hub: Hub) -> Presence:
    """Return the presence of a hub. Raises BrokerError if its broker keeps no rosters."""
    if hub.presence is None:
        hub.presence = Presence(hub, checked(hub.broker))
    presence: Presence = hub.presence
    return presence


def checked(broker: Broker) -> PresenceBroker:
    """Return the broker. Raises BrokerError if it keeps no rosters."""
    if not keeps_rosters(broker):
        raise BrokerError("The broker of WEBSOCKET_BROKER does not know who is there: use Redis or memory://")
    return broker


# --- for everybody ---------------------------------------------------------------------------------------------------

LEASES_LAST = 5.0  # seconds for which it is not asked again which processes are alive

_living: WeakKeyDictionary[Broker, tuple[float, frozenset[bytes]]] = WeakKeyDictionary()


def users_in(broker: PresenceBroker, channel: str) -> list[Any]:
    """Return what is told of the users in a channel, of `LIMIT` at most. Raises BrokerError."""
    roster = broker.read_roster(channel, LIMIT)
    dead = _dead_of(broker, roster.processes)
    if dead and roster.size > len(roster.users):
        roster = broker.read_roster(channel)
    users = [json.loads(text) for info in roster.without(dead).values() if (text := text_of(info))]
    # While encryption keys change, a user may have two keys here.
    return [*{user["id"]: user for user in users}.values()][:LIMIT]


def count_of(broker: PresenceBroker, channel: str) -> int:
    """Return how many users are in a channel. Raises BrokerError."""
    roster = broker.read_roster(channel, 0)
    dead = _dead_of(broker, roster.processes)
    return len(broker.read_roster(channel).without(dead)) if dead else roster.size


def _dead_of(broker: PresenceBroker, processes: frozenset[bytes]) -> frozenset[bytes]:
    """Return which of these processes, of a roster that was just read, are dead. Raises BrokerError."""
    asked, living = _living.get(broker, (0.0, frozenset()))
    if monotonic() - asked > LEASES_LAST or processes - living:  # one of them may be new
        living = broker.renew_lease(b"", 0).living if processes else living
        _living[broker] = monotonic(), living
    return processes - living

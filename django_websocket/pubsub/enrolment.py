"""The users that a process has in a channel, and how the broker learns of them: soon, together, again if need be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from itertools import islice
from typing import TYPE_CHECKING

import gevent
from gevent.event import AsyncResult, Event

from django_websocket.exceptions import BrokerError
from django_websocket.transport.log import report

from .roster import ANYBODY, NOBODY, Claim, PresenceBroker, Roster, RosterEvent

if TYPE_CHECKING:
    from django_websocket.transport.connection import Connection

BATCH = 100  # claims of which the broker is told in one call, so that its other clients do not wait for long
TIMEOUT = 6.0  # seconds until a client that enters is told that the broker does not answer; a call has 5
PAUSE = 0.1  # seconds between two calls, however often something else is told of those who are there
UNKNOWN = b"?"  # stands for what the broker may or may not know of a user; no information on a user is equal to it


class Guest:
    """A client that is present in a channel: the keys of its user and of its session, and what is told of the user.

    It may be `held` for a while after its `connection` has ended. `entered` is the number of the change by which its
    session has come here, 0 until it has; `moved` that by which it has last come elsewhere.
    """

    __slots__ = ("connection", "entered", "held", "info", "key", "moved", "session")

    def __init__(self, key: bytes, session: bytes, info: bytes, connection: Connection | None = None) -> None:
        self.key = key
        self.session = session
        self.info = info
        self.connection = connection
        self.held = False
        self.entered = 0
        self.moved = 0

    @property
    def is_connected(self) -> bool:
        """Whether its client has not come somewhere else since, as far as can be told."""
        return not self.held and (self.connection is None or self.connection.close_code is None)


class Enrolment:
    """The guests of a channel in this process. The broker is told of what differs from what it knows."""

    def __init__(
        self,
        broker: PresenceBroker,
        channel: str,
        process: bytes,
        take: Callable[[RosterEvent], None],
        empty: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._channel = channel
        self._process = process
        self._take = take  # called with what the broker has told everybody
        self._empty = empty  # called when nothing is left to do
        self._guests: dict[bytes, dict[Guest, None]] = {}  # by user; what is told of the last one counts
        self._sessions: dict[bytes, list[Guest]] = {}  # the guests of each session
        self._stored: dict[bytes, bytes] = {}  # what the broker knows of each user
        self._due: dict[bytes, set[bytes]] = {}  # users of whom it has to be told, and sessions that begin
        self._on_the_way: Collection[bytes] = ()  # users of whom it is being told
        self._results: dict[bytes, AsyncResult[None]] = {}  # for those who wait for that
        self._running = False
        self._hurry = Event()  # set when somebody comes or leaves
        self._closed = False

    def __bool__(self) -> bool:
        """Whether there is a guest, or something that the broker has to be told."""
        return bool(self._guests or self._due or self._running)

    def __len__(self) -> int:
        """How many users are there through this process."""
        return len(self._guests)

    def enter(self, guest: Guest) -> None:
        """Add a guest; return when the broker knows of it. Raises BrokerError; the guest is there all the same then."""
        # Of a client that has another connection, the former one counts no more, whether or not it has ended.
        for other in tuple(self._sessions.get(guest.session, ())):
            if other.key == guest.key and (other.connection is not guest.connection or other.held):
                self._remove(other)
        self._guests.setdefault(guest.key, {})[guest] = None
        if guest.session != NOBODY:
            self._sessions.setdefault(guest.session, []).append(guest)
        result = self._results.setdefault(guest.key, AsyncResult())
        self._hurry.set()
        self._tell(guest.key, ANYBODY if guest.session == NOBODY else guest.session)
        with gevent.Timeout(TIMEOUT, BrokerError(f"The broker has been away for {TIMEOUT:.3g} seconds")):
            result.get()

    def leave(self, guest: Guest) -> None:
        """Remove a guest. Never waits."""
        if self._remove(guest):
            self._hurry.set()
            self._tell(guest.key)

    def _remove(self, guest: Guest) -> bool:
        guests = self._guests.get(guest.key, {})
        if guest not in guests:
            return False
        del guests[guest]
        if not guests:
            del self._guests[guest.key]
        if guest.session != NOBODY:
            self._sessions[guest.session].remove(guest)
            if not self._sessions[guest.session]:
                del self._sessions[guest.session]
        return True

    def hold(self, guest: Guest) -> None:
        """Note that a guest's connection has ended, and that it may come back."""
        guest.held = True
        guest.connection = None
        self._judge(guest)

    def update(self, guest: Guest, info: bytes) -> None:
        """Tell something else of a guest. Never waits."""
        guests = self._guests.get(guest.key, {})
        if guest in guests:
            guest.info = info
            del guests[guest]
            guests[guest] = None
            self._tell(guest.key, ANYBODY)

    def went_elsewhere(self, key: bytes, session: bytes, number: int) -> None:
        """Note that a client has another connection, to another process, by the change with this number."""
        for guest in tuple(self._sessions.get(session, ())):
            if guest.key == key:
                guest.moved = max(guest.moved, number)
                self._judge(guest)

    def _judge(self, guest: Guest) -> None:
        """Remove a guest whose client has come elsewhere after it has come here."""
        if guest.moved > guest.entered and (guest.entered or guest.held):
            self.leave(guest)

    def contradict(self, key: bytes) -> None:
        """Tell the broker again of a user of whom somebody has said that it has left, if it is here."""
        if key in self._guests and key not in self._due and key not in self._on_the_way:
            self._stored[key] = UNKNOWN
            self._tell(key)

    def compare(self, roster: Roster) -> bool:
        """Have the broker told of what it has wrong; return whether it has lost somebody of whom it knew."""
        known = {key: lines[self._process] for key, lines in roster.users.items() if self._process in lines}
        settled = self._stored.keys() - known.keys() - self._due.keys() - {*self._on_the_way}
        lost = any(self._stored[key] != UNKNOWN for key in settled)
        self._stored = known
        for key in known.keys() | self._guests.keys():
            if self._info(key) != known.get(key, b""):
                self._due.setdefault(key, set())
        self.go_on()
        return lost

    def go_on(self) -> None:
        """Tell the broker what it has to be told, if that failed before. Never waits."""
        if self._due and not self._running and not self._closed:
            self._running = True
            gevent.spawn(self._run)

    def close(self) -> None:
        """Tell the broker nothing any more."""
        self._closed = True
        self._hurry.set()
        self._guests.clear()
        self._sessions.clear()
        self._due.clear()

    def _tell(self, key: bytes, session: bytes = NOBODY) -> None:
        self._due.setdefault(key, set()).add(session)
        self.go_on()

    def _info(self, key: bytes) -> bytes:
        """Return what is to be told of a user, b"" if it is not here."""
        guests = self._guests.get(key)
        return next(reversed(guests)).info if guests else b""

    def _run(self) -> None:
        try:
            while self._due and not self._closed:
                self._hurry.clear()
                batch = self._next_batch()
                results = [self._results.pop(key) for key in batch if key in self._results]
                try:
                    self._tell_of(batch)
                except Exception as error:
                    for result in (*results, *self._results.values()):
                        result.set_exception(error)
                    self._results.clear()
                    if not isinstance(error, BrokerError):
                        report(
                            f"Channel {self._channel}",
                            None,
                            "changes of who is there cannot be published",
                            repr(error),
                            logging.ERROR,
                        )
                    break  # until `go_on` is called
                for result in results:
                    result.set(None)
                full = sum(max(1, len(sessions)) for sessions in batch.values()) >= BATCH
                if (self._guests or self._due) and not full:
                    self._hurry.wait(PAUSE)  # unless somebody comes or leaves, or has done so during the call
        finally:
            self._running = False
            self._empty()

    def _next_batch(self) -> dict[bytes, set[bytes]]:
        """Take users of whom the broker is to be told, with sessions that begin, from what is due."""
        batch: dict[bytes, set[bytes]] = {}
        room = BATCH
        for key in [*islice(self._due, BATCH)]:
            sessions = self._due.pop(key)
            batch[key] = {*islice(sessions, room)}
            if rest := sessions - batch[key]:
                self._due[key] = rest  # it may become due again meanwhile, too
            room -= max(1, len(batch[key]))
            if room <= 0:
                break
        return batch

    def _tell_of(self, batch: Mapping[bytes, set[bytes]]) -> None:
        """Tell the broker of users. Raises BrokerError, and they are due again."""
        claims = []
        begun: dict[bytes, set[bytes]] = {}
        for key, sessions in batch.items():
            info = self._info(key)
            begun[key] = {session for session in sessions if info and self._has_begun(session)}
            claims += [Claim(key, session, info) for session in begun[key]]
            if not begun[key] and info != self._stored.get(key, b""):
                claims.append(Claim(key, NOBODY, info))
        if not claims:
            return
        gone = not (self._guests or self._due)
        self._on_the_way = batch.keys()
        try:
            event = self._broker.change_roster(self._channel, self._process, claims, gone=gone)
        except BaseException:
            for key in batch:
                self._stored[key] = UNKNOWN
                self._due.setdefault(key, set()).update(begun[key])
            raise
        finally:
            self._on_the_way = ()
        for key, session, info in claims:
            if info:
                self._stored[key] = info
            else:
                self._stored.pop(key, None)
            for guest in tuple(self._sessions.get(session, ())):
                if guest.key == key and not guest.entered and event is not None:
                    guest.entered = event.number
                    self._judge(guest)
        if event is not None:
            self._take(event)

    def _has_begun(self, session: bytes) -> bool:
        """Whether a session has begun that has not ended since: its client may be somewhere else already."""
        return session == ANYBODY or any(guest.is_connected for guest in self._sessions.get(session, ()))

"""The users that a process has in a channel, and how the broker learns of them: soon, together, again if need be."""

from __future__ import annotations

import logging
from collections.abc import Callable

import gevent
from gevent.event import AsyncResult

from django_websocket.exceptions import BrokerError
from django_websocket.transport.log import report

from .roster import NOBODY, Claim, PresenceBroker, Roster, RosterEvent

BATCH = 100  # users of whom the broker is told in one call, so that its other clients do not wait for long
TIMEOUT = 6.0  # seconds until a client that enters is told that the broker does not answer; a call has 5
UNKNOWN = b"?"  # stands for what the broker may or may not know of a user; no information on a user is equal to it


class Guest:
    """A client that is present in a channel: the keys of its user and of its session, and what is told of the user.

    It may be `held` for a while after its connection has ended. `elsewhere` says that its session has come back.
    """

    __slots__ = ("elsewhere", "held", "info", "key", "session")

    def __init__(self, key: bytes, session: bytes, info: bytes) -> None:
        self.key = key
        self.session = session
        self.info = info
        self.held = False
        self.elsewhere = False


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
        self._guests: dict[bytes, list[Guest]] = {}  # by user; what is told of the last one counts
        self._stored: dict[bytes, bytes] = {}  # what the broker knows of each user
        self._due: dict[bytes, bytes] = {}  # users of whom it has to be told, with the session that has just begun
        self._results: dict[bytes, AsyncResult[None]] = {}  # for those who wait for that
        self._running = False
        self._closed = False

    def __bool__(self) -> bool:
        """Whether there is a guest, or something that the broker has to be told."""
        return bool(self._guests or self._due or self._running)

    def enter(self, guest: Guest) -> None:
        """Add a guest; return when the broker knows of it. Raises BrokerError; the guest is there all the same then."""
        self.went_elsewhere(guest.key, guest.session)
        self._guests.setdefault(guest.key, []).append(guest)
        result = self._results.setdefault(guest.key, AsyncResult())
        self._tell(guest.key, guest.session)
        with gevent.Timeout(TIMEOUT, BrokerError(f"The broker has been away for {TIMEOUT:.3g} seconds")):
            result.get()

    def leave(self, guest: Guest) -> None:
        """Remove a guest. Never waits."""
        guests = self._guests.get(guest.key, [])
        if guest in guests:
            guests.remove(guest)
            if not guests:
                del self._guests[guest.key]
            self._tell(guest.key)

    def update(self, guest: Guest, info: bytes) -> None:
        """Tell something else of a guest. Never waits."""
        guests = self._guests.get(guest.key, [])
        if guest in guests:
            guest.info = info
            guests.remove(guest)
            guests.append(guest)
            self._tell(guest.key)

    def went_elsewhere(self, key: bytes, session: bytes) -> None:
        """Note that a client has another connection now: its former one counts no more when it has ended."""
        for guest in tuple(self._guests.get(key, ())) if session != NOBODY else ():
            if guest.session == session:
                guest.elsewhere = True
                if guest.held:
                    self.leave(guest)

    def compare(self, roster: Roster) -> bool:
        """Have the broker told of what it has wrong; return whether it has lost somebody of whom it knew."""
        known = {key: lines[self._process] for key, lines in roster.users.items() if self._process in lines}
        lost = any(key not in known for key, info in self._stored.items() if info != UNKNOWN and key not in self._due)
        self._stored = known
        for key in known.keys() | self._guests.keys():
            if self._info(key) != known.get(key, b""):
                self._due.setdefault(key, NOBODY)
        self.go_on()
        return lost and not self._running

    def go_on(self) -> None:
        """Tell the broker what it has to be told, if that failed before. Never waits."""
        if self._due and not self._running and not self._closed:
            self._running = True
            gevent.spawn(self._run)

    def close(self) -> None:
        """Tell the broker nothing any more."""
        self._closed = True
        self._guests.clear()
        self._due.clear()

    def _tell(self, key: bytes, session: bytes = NOBODY) -> None:
        if session != NOBODY or key not in self._due:
            self._due[key] = session
        self.go_on()

    def _info(self, key: bytes) -> bytes:
        """Return what is to be told of a user, b"" if it is not here."""
        guests = self._guests.get(key)
        return guests[-1].info if guests else b""

    def _run(self) -> None:
        try:
            while self._due and not self._closed:
                batch = [(key, self._due[key]) for _, key in zip(range(BATCH), self._due, strict=False)]
                results = [self._results.pop(key) for key, _ in batch if key in self._results]
                try:
                    self._tell_of(batch)
                except Exception as error:
                    for result in (*results, *self._results.values()):
                        result.set_exception(error)
                    self._results.clear()
                    if not isinstance(error, BrokerError):
                        report(
                            f"Channel {self._channel}", None, "who is there cannot be told", repr(error), logging.ERROR
                        )
                    break  # until `go_on` is called
                for result in results:
                    result.set(None)
        finally:
            self._running = False
            self._empty()

    def _tell_of(self, batch: list[tuple[bytes, bytes]]) -> None:
        """Tell the broker of users. Raises BrokerError, and they stay due."""
        claims = []
        for key, session in batch:
            del self._due[key]  # it may become due again meanwhile
            info = self._info(key)
            if session != NOBODY or info != self._stored.get(key, b""):
                claims.append(Claim(key, session, info))
        if not claims:
            return
        try:
            event = self._broker.change_roster(self._channel, self._process, claims)
        except BaseException:
            for claim in claims:
                self._stored[claim.key] = UNKNOWN
                self._due.setdefault(claim.key, claim.session)
            raise
        for claim in claims:
            if claim.info:
                self._stored[claim.key] = claim.info
            else:
                self._stored.pop(claim.key, None)
        if event is not None:
            self._take(event)

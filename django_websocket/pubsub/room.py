"""A channel with presence, as one process sees it: its users, the watchers that are told of them, its own guests."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import gevent
from gevent.event import AsyncResult
from gevent.lock import Semaphore

from django_websocket.exceptions import BrokerError
from django_websocket.transport.log import report
from django_websocket.transport.turns import let_others_run_if_spent

from .enrolment import BATCH, Enrolment
from .json_text import from_json
from .publication import Compressed, Publication
from .roster import AGAIN, HERE, LIMIT, Claim, RosterEvent, event_from, told_on

if TYPE_CHECKING:
    from .presence import Presence

INTERVAL = 0.5  # seconds between two pieces of news of a channel, however many come and go
PATIENCE = 1.0  # seconds until a change that was left out counts as lost
GRACE = 15.0  # seconds for a client to come back; and for the processes, after the broker has lost their users
AGAIN_AFTER = 0.2  # seconds until a roster is read once more that is being read
MAX_AHEAD = 1000  # changes behind a gap that are kept


class News:
    """What has changed in a channel, with what is told of each user, as JSON; encoded once for all who get it."""

    def __init__(self, channel: str, joined: Mapping[bytes, str], left: Mapping[bytes, str], count: int) -> None:
        self.joined = joined
        self.left = left
        self.count = count
        self._channel = channel
        self._publication: Publication | None = None

    def frames(self, variant: Compressed) -> bytes:
        """Return the news as clients of a `variant` get them."""
        if self._publication is None:
            ids = (json.dumps(json.loads(text)["id"]) for text in self.left.values())
            self._publication = told(self._channel, self.count, leave=ids, join=islice(self.joined.values(), LIMIT))
        return self._publication.frames(variant)


class Watcher(Protocol):
    """Is told who comes and goes; must neither wait nor raise."""

    def tell(self, room: Room, news: News) -> bool:
        """Take news, or return False: then `tell_all` is called some time later."""

    def tell_all(self, room: Room) -> bool:
        """Take all that is known, or return False."""

    def broker_closed(self) -> None:
        """Learn that nothing more will come."""


class Room:
    """A channel that somebody in this process is in, or watches.

    It follows the roster by its changes, each of which says behind which other one it comes. If one is missing, the
    roster is read.
    """

    def __init__(self, presence: Presence, channel: str) -> None:
        self.channel = channel
        self.name = told_on(channel)
        self.users = 0  # those who will call `close`
        self.processes: set[bytes] = set()  # that may have users there
        self.enrolment = Enrolment(presence.broker, channel, presence.process, self.take, self._close_if_unused)
        self._presence = presence
        self._opened: AsyncResult[None] | None = None
        self._closed = False
        self._number = 0  # of the last change that is known
        self._ahead: dict[int, RosterEvent] = {}  # changes behind a gap, by the one before
        self._held: list[RosterEvent] | None = None  # what comes while the roster is read
        self._reading = Semaphore()
        self._waits = False  # for what is missing
        self._reads_soon = False
        self._forgives_until = 0.0  # whoever is missing in the roster until then is yet to be put back into it
        self._told: dict[bytes, str] = {}  # what was told of each user
        self._new: dict[bytes, str | None] = {}  # what is yet to be told; None of those who have left
        self._everybody: dict[Compressed, bytes] = {}  # the frames with all that was told
        self._watchers: dict[Watcher, None] = {}
        self._behind: set[Watcher] = set()  # those who are to be told everything
        self._teller: gevent.Greenlet[[], None] | None = None

    # --- its users -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Return when it is known who is there. Raises BrokerError."""
        if self._opened is None:
            self._opened = AsyncResult()
            gevent.spawn(self._open, self._opened)  # others depend on it, even if this greenlet is killed
        self._opened.get()

    def _open(self, opened: AsyncResult[None]) -> None:
        try:
            self._presence.hub.join(self, [self.name])
            self.read()
        except Exception as error:
            self._presence.hub.leave(self, [self.name])
            self._opened = None  # the next to open it makes a new attempt
            opened.set_exception(error)
        else:
            opened.set(None)
        if self._closed:
            self._presence.hub.leave(self, [self.name])  # nobody was left to wait for it

    def close(self) -> None:
        """Note that one of those who have opened it needs it no more. Never waits."""
        self.users -= 1
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if not (self.users or self.enrolment or self._closed):
            self.end()
            self._presence.forget(self)

    def end(self) -> None:
        """Follow no more."""
        self._closed = True
        self._presence.hub.leave(self, [self.name])
        self.enrolment.close()
        self._behind.clear()
        if self._teller is not None:
            self._teller.kill(block=False)

    # --- who is there --------------------------------------------------------------------------------------------

    def deliver(self, publication: Publication) -> None:
        """Take changes that the broker has told."""
        for message in publication.messages:
            event = event_from(message.encode()) if isinstance(message, str) else None
            if event is not None:
                self.take(event)

    def missed(self) -> None:
        """Read the roster: changes may be lost, or the roster itself."""
        self._presence.look_again()
        self.read_soon()

    def broker_closed(self) -> None:
        """Tell those who watch that nothing more will come."""
        for watcher in tuple(self._watchers):
            watcher.broker_closed()
        self._presence.end()

    def take(self, event: RosterEvent) -> None:
        """Take a change, which may have come already, or too early."""
        if self._held is not None:
            self._held.append(event)
        elif event.number <= self._number:
            return
        elif event.before == self._number or (event.before == 0 and not any(self._known())):
            self._apply(event)
            while (following := self._ahead.pop(self._number, None)) is not None:
                self._apply(following)
        elif event.before == 0 or len(self._ahead) == MAX_AHEAD:  # somebody was there, by what is known here
            self.read_soon()
        else:
            self._ahead[event.before] = event
            if not self._waits:
                self._waits = True
                gevent.spawn_later(PATIENCE, self._look_at_gap)

    def _apply(self, event: RosterEvent) -> None:
        self._number = event.number
        for kind, (key, session, info) in event.news:
            if kind == HERE and (text := text_of(info)):
                self._new[key] = text
                self.processes.add(event.process)
            elif kind == AGAIN:
                if self._new.get(key, self._told.get(key)) is None:
                    self.read_soon()  # the user was there for the broker, but only in a process that is dead
            else:
                self._new[key] = None
                self.enrolment.contradict(key)
            if event.process != self._presence.process:
                self.enrolment.went_elsewhere(key, session, event.number)
        self._tell_soon()

    def _look_at_gap(self) -> None:
        self._waits = False
        self._ahead = {before: event for before, event in self._ahead.items() if event.number > self._number}
        if self._ahead:
            self.read_soon()

    def _known(self) -> Iterator[bytes]:
        """Yield the users who are there."""
        yield from (key for key in self._told if self._new.get(key, "") is not None)
        yield from (key for key, text in self._new.items() if text is not None and key not in self._told)

    def read_soon(self) -> None:
        """Read the roster. Never waits."""
        if not (self._reads_soon or self._closed):
            self._reads_soon = True
            self._presence.do(self._read_again)

    def _read_again(self) -> None:
        self._reads_soon = False
        if self._held is not None:
            gevent.spawn_later(AGAIN_AFTER, self.read_soon)  # the broker may have been read before what is missing
        elif not self._closed:
            with suppress(BrokerError):  # `check` will find it, or the subscriber, when the broker is back
                self.read()

    def read(self) -> None:
        """Read the roster, and put right what is known here, and there. Raises BrokerError."""
        with self._reading:
            self._read()

    def _read(self) -> None:
        self._held = []
        try:
            roster = self._presence.broker.read_roster(self.channel)
            dead = self._presence.dead_of(roster.processes)
            users = {}
            for key, info in roster.without(dead).items():
                if text := text_of(info):
                    users[key] = text
                let_others_run_if_spent()
            if any(key not in users for key in self._known()):
                self._presence.renew()  # they have left, or the broker has lost everything
        finally:
            held, self._held = self._held, None
        if self.enrolment.compare(roster):
            self._forgives_until = monotonic() + GRACE
        self.processes = set(roster.processes)
        self._number = roster.number
        forgives = max(self._forgives_until, self._presence.forgives_until) - monotonic()
        if forgives <= 0:
            self._new.update((key, None) for key in [*self._known()] if key not in users)
        elif any(key not in users for key in self._known()):
            gevent.spawn_later(forgives + 0.1, self.read_soon)
        self._new.update(users)
        for event in (*self._ahead.values(), *held):
            self.take(event)
        if dead:
            gevent.spawn_later(random.random(), self._presence.do, self._remove_dead_and_read)
        self._tell_soon()

    def check(self) -> None:
        """Ask whether what is known is what the broker knows, and prolong the roster's life."""
        try:
            roster = self._presence.broker.read_roster(self.channel, 0, prolong=True)
        except BrokerError:
            return
        self.processes = set(roster.processes)
        if roster.number not in (self._number, 0) or (roster.number == 0 and any(self._known())):
            gevent.spawn_later(PATIENCE, self._check_again, self._number)  # changes may be on their way

    def _check_again(self, number: int) -> None:
        if self._number == number:
            self.read_soon()

    def _remove_dead_and_read(self) -> None:
        """Remove the dead that were left out here, and read who has come in their place: that is no change there."""
        self.remove_dead()
        self.read_soon()

    def remove_dead(self) -> None:
        """Remove the users of processes that are dead from the roster. Others may do so at the same time."""
        broker = self._presence.broker
        if self._closed:
            return
        try:
            roster = broker.read_roster(self.channel)
            processes = roster.processes
            # Asked behind that: a process that comes back has a lease before it has a line.
            for process in self._presence.dead_of(processes):
                keys = (key for key, lines in roster.users.items() if process in lines)
                while batch := [Claim(key) for key in islice(keys, BATCH)]:
                    event = broker.change_roster(self.channel, process, batch)
                    if event is not None:
                        self.take(event)
                broker.change_roster(self.channel, process, (), gone=True)
                processes -= {process}
        except BrokerError:
            return  # there will be another look
        self.processes = set(processes)

    # --- who is told ---------------------------------------------------------------------------------------------

    def add(self, watcher: Watcher, *, at_once: bool = False) -> None:
        """Tell a watcher everything, and from now on what changes.

        If others are told something soon, it is told with them; if it has to be told `at_once`, it is told then again,
        since what is new now may be undone by then.
        """
        self._watchers[watcher] = None
        is_told = (at_once or not self._new) and watcher.tell_all(self)
        if self._new or not is_told:
            self._behind.add(watcher)
            self._tell_soon()

    def remove(self, watcher: Watcher) -> None:
        """Tell a watcher nothing any more."""
        self._watchers.pop(watcher, None)
        self._behind.discard(watcher)

    @property
    def everybody(self) -> News:
        """All who are there."""
        users = self._told | {key: text for key, text in self._new.items() if text is not None}
        users = {key: text for key, text in users.items() if self._new.get(key, text) is not None}
        return News(self.channel, users, {}, len(users))

    def frames_with_all(self, variant: Compressed) -> bytes:
        """Return all that was told, or the most of it, as clients of a `variant` get it."""
        if variant not in self._everybody:
            publication = told(self.channel, len(self._told), present=islice(self._told.values(), LIMIT))
            self._everybody[variant] = publication.frames(variant)
        return self._everybody[variant]

    def _tell_soon(self) -> None:
        if self._teller is None and not self._closed:
            self._teller = gevent.spawn(self._tell)

    def _tell(self) -> None:
        try:
            while self._new or self._behind:
                self._tell_news()
                for watcher in tuple(self._behind):
                    if self._is_told(watcher, None):
                        self._behind.discard(watcher)
                    let_others_run_if_spent()
                gevent.sleep(INTERVAL)
        finally:
            self._teller = None

    def _tell_news(self) -> None:
        new, self._new = self._new, {}
        joined = {key: text for key, text in new.items() if text is not None and self._told.get(key) != text}
        left = {key: self._told.pop(key) for key, text in new.items() if text is None and key in self._told}
        if not (joined or left):
            return
        was_large = len(self._told) + len(left) > LIMIT
        self._told.update(joined)
        self._everybody.clear()
        if was_large and len(self._told) <= LIMIT:
            self._behind.update(self._watchers)  # pages know only some of those who are there
        news = News(self.channel, joined, left, len(self._told))
        for watcher in [watcher for watcher in self._watchers if watcher not in self._behind]:
            if not self._is_told(watcher, news):
                self._behind.add(watcher)
            let_others_run_if_spent()

    def _is_told(self, watcher: Watcher, news: News | None) -> bool:
        """Tell a watcher news, or everything, and return whether it has taken that."""
        try:
            return watcher.tell_all(self) if news is None else watcher.tell(self, news)
        except Exception as error:  # a fault of this package; the others are told all the same
            report(
                f"Channel {self.channel}",
                None,
                "a subscriber could not be told who is there",
                repr(error),
                logging.ERROR,
            )
            return True


def text_of(info: bytes) -> str | None:
    """Return what is told of a user as text; None for what no version of this package has told."""
    try:
        text = info.decode()
        user = from_json(text)
    except ValueError:
        return None
    return text if isinstance(user, dict) and isinstance(user.get("id"), (str, int)) else None


def told(channel: str, count: int, **members: Iterable[str]) -> Publication:
    """Return what clients are told of a channel: by the name of each member, a list of texts in JSON."""
    name = json.dumps(channel, ensure_ascii=False)
    lists = ((member, ",".join(texts)) for member, texts in members.items())
    parts = [f'"{member}":{{{name}:[{texts}]}}' for member, texts in lists if texts or member == "present"]
    return Publication("", [f'{{{",".join(parts)},"count":{{{name}:{count}}}}}'.encode()])

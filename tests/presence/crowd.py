"""Clients that come to rooms, leave, reload, vanish and come back, and write down what they did and what they saw."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage
from websockets.typing import Subprotocol

from .checker import Gap, Said, Seen, Stay, id_of, text_of

OPENING = 20.0  # seconds; a client may have to wait for a Redis that is away
CLOSING = 3.0  # seconds for the answer to a close frame
TURN = 0.3  # seconds between two looks at what the stage wants
SUBPROTOCOL = Subprotocol("django-websocket.1")
FAILURES = (1002, 1007, 1009)  # close codes of a server that did something wrong
FINAL = (1000, 4401, 4403, 4404)
FAULTS = (OSError, TimeoutError, InvalidHandshake, InvalidMessage, ConnectionClosed, asyncio.TimeoutError)
WATCH = "watch"

# What a client does at the end of a connection: how often; whether it comes back with its session, within how many
# seconds; the others come back as new ones, after a while.
ENDS: Mapping[str, tuple[int, float | None]] = {
    "leaves": (18, None),  # 1000
    "reloads": (40, 3.0),  # 1001
    "vanishes and comes back": (14, 8.0),
    "vanishes": (8, None),
    "is sent away": (8, None),  # its view ends
    "is forbidden": (3, None),  # its view closes with 4403
    "fails": (3, 4.0),  # its view raises
}


@dataclass
class Crowd:
    """What all clients of a stage share."""

    port: int
    seed: int
    rooms: Mapping[str, int]  # with their popularity
    stay: float  # seconds that a connection lasts on average
    away: float  # seconds until a client comes as a new one, at most
    stays: list[Stay] = field(default_factory=list)
    seen: list[Seen | Gap] = field(default_factory=list)
    known: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)  # by observer, room and user
    done: Counter[str] = field(default_factory=Counter)
    closes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unsettled: set[str] = field(default_factory=set)  # who want to be connected, and are not
    emptied: frozenset[str] = frozenset()  # rooms that everybody leaves while it is quiet
    quiet: bool = False  # nobody comes or goes of its own accord
    over: bool = False
    leaving: bool = False  # everybody is to leave, and to stay away
    path: str = ""  # before those of the views
    ends: list[tuple[float, str]] = field(default_factory=list)  # when the server closed or refused, and how

    def say(self, seen: Seen | Gap) -> None:
        """Write down what an observer saw, and what it knows by now."""
        self.seen.append(seen)
        if isinstance(seen, Gap):
            self.known.pop(seen.observer, None)
            return
        rooms = self.known.setdefault(seen.observer, {})
        if seen.everybody is not None:
            rooms[seen.room] = {id_of(member): text_of(member) for member in seen.everybody}
        elif seen.begin is None:
            users = rooms.setdefault(seen.room, {})
            for user in seen.left:
                users.pop(id_of(user), None)
            users.update((id_of(member), text_of(member)) for member in seen.joined)

    def hear(self, observer: str, message: str) -> None:
        """Write down what a message of the subprotocol tells of who is there."""
        told = json.loads(message)
        now = time.monotonic()
        present, leave, join, count = (told.get(name, {}) for name in ("present", "leave", "join", "count"))
        for room in dict.fromkeys([*present, *leave, *join, *count]):
            if room in present:
                number = len(present[room]) if room in leave or room in join else count.get(room)
                self.say(Seen(now, observer, room, present[room], count=number))
            if room not in present or room in leave or room in join:
                left, joined = leave.get(room, ()), join.get(room, ())
                self.say(Seen(now, observer, room, left=left, joined=joined, count=count.get(room)))


class Client:
    """Somebody with a connection, over and over."""

    def __init__(self, crowd: Crowd, name: str) -> None:
        self.crowd = crowd
        self.name = name
        self.random = random.Random(f"{crowd.seed} {name}")
        self.speaks = True

    def open(self, view: str, query: Mapping[str, Any]) -> connect:
        """Connect to a view."""
        return connect(
            f"ws://127.0.0.1:{self.crowd.port}/{self.crowd.path}{view}/?{urlencode(query, doseq=True)}",
            compression=None,
            proxy=None,
            open_timeout=OPENING,
            close_timeout=CLOSING,
            ping_interval=None,
            max_size=None,
            max_queue=None,
            subprotocols=[SUBPROTOCOL] if self.speaks else None,
        )

    async def run(self) -> None:
        """Do what this one does, until the end."""
        raise NotImplementedError

    def note(self, closed: ConnectionClosed) -> int:
        """Write down how the server closed the connection; return the code."""
        code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")
        self.crowd.closes[f"{code} {reason}".strip()] += 1
        self.crowd.ends.append((time.monotonic(), f"closed {code} {reason}".strip()))
        if code in FAILURES:
            self.crowd.wrong.append(f"closed with {code}: {self.name}: {reason}")
        return code


class Tab(Client):
    """A tab of a user's browser, or a plain client of it: it is in some rooms, and sees who is there.

    Args:
        own: Whether this tab tells something else of its user than the other tabs.
        favourites: The rooms where it is, if it does not choose among all.
    """

    def __init__(
        self, crowd: Crowd, name: str, user: int | str, *, speaks: bool, own: bool, favourites: Sequence[str] = ()
    ) -> None:
        super().__init__(crowd, name)
        self.speaks = speaks
        self._favourites = favourites
        self._info: dict[str, Any] = {"id": user, "name": f"user {user}"}
        if own:
            self._info["tab"] = name
        self._own = own
        self._rooms: tuple[str, ...] = ()
        self._session = ""
        self._visits = 0

    async def run(self) -> None:
        crowd = self.crowd
        await asyncio.sleep(self.random.random() * crowd.stay)
        while not crowd.over:
            await self._visit()
            until = time.monotonic() + self.random.uniform(0.2, 1.0) ** 2 * crowd.away
            while not crowd.over and (crowd.quiet or crowd.leaving or time.monotonic() < until):
                await asyncio.sleep(TURN * self.random.random())

    def _choose(self) -> tuple[str, ...]:
        """Return where this client is to be."""
        rooms = {room: weight for room, weight in self.crowd.rooms.items() if room not in self.crowd.emptied}
        if self._favourites:
            found = [room for room in self._favourites if room in rooms]
            return tuple(found)
        count = self.random.choice((1, 1, 2, 3))
        return tuple(dict.fromkeys(self.random.choices([*rooms], [*rooms.values()], k=count)))

    async def _visit(self) -> None:
        """Be in some rooms, over several connections."""
        crowd = self.crowd
        self._visits += 1
        self._session = f"{self.name}.{self._visits}"
        self._rooms = self._choose()
        if not self._rooms:
            return
        back: float | None = 0.0
        crowd.unsettled.add(self.name)
        try:
            while back is not None and not crowd.over:
                crowd.unsettled.add(self.name)
                back = await self._connect()
                if back is not None:
                    await asyncio.sleep(self.random.random() * back)
                while crowd.leaving and not crowd.over:
                    await asyncio.sleep(TURN)
        finally:
            crowd.unsettled.discard(self.name)

    async def _connect(self) -> float | None:
        """Connect, stay for a while, and end that; return within how many seconds to come back, None for never."""
        crowd = self.crowd
        view = self.random.choice(("stays", "stays", "asynchronous", "listens"))
        hasty = self.random.random() < 0.04 and not crowd.quiet
        begin = time.monotonic()
        stay = Stay(
            self._session if self.speaks else f"{self.name}.plain{len(crowd.stays)}",
            json.dumps(self._info["id"]),
            self._rooms,
            begin,
            [Said(begin, begin, text_of(self._info))],
            session=self.speaks,
        )
        crowd.stays.append(stay)
        try:
            websocket = await self.open(view, {"channel": self._rooms, "present": json.dumps(self._info)})
        except FAULTS as refused:
            crowd.done["refused"] += 1
            crowd.ends.append((time.monotonic(), f"refused: {refused}"))
            self._end(stay, time.monotonic(), "refused", "refused")
            return 1.5
        stay.opened = time.monotonic()
        try:
            if self.speaks:
                await websocket.send(json.dumps({"hello": {"session": self._session}}))
            if hasty:
                await asyncio.sleep(self.random.random() * 0.05)
                crowd.done["vanishes at once"] += 1
                self._end(stay, time.monotonic(), "refused", "vanishes at once")
                return 3.0
            return await self._be_there(websocket, stay, view)
        except ConnectionClosed as closed:
            if stay.ended == float("inf"):
                code = self.note(closed)
                self._end(stay, time.monotonic(), self._how(stay, code), f"by the server, {code}")
            crowd.done["is cut off"] += 1
            return 3.0
        finally:
            websocket.transport.abort()
            stay.gone = min(stay.gone, time.monotonic())
            stay.ended = min(stay.ended, stay.gone)
            if stay.how == "there":
                stay.how = "refused"
            crowd.say(Gap(time.monotonic(), self.name))

    def _how(self, stay: Stay, code: int) -> Any:
        if not stay.confirmed:
            return "refused"
        if code in FINAL:
            return "clean"
        if code == 1006:
            return "killed" if stay.session else "gone"
        return "held" if stay.session or code == 1012 else "gone"

    def _end(self, stay: Stay, ended: float, how: Any, why: str) -> None:
        stay.why = why
        stay.ended, stay.gone, stay.how = ended, time.monotonic(), how if stay.confirmed else "refused"

    async def _be_there(self, websocket: ClientConnection, stay: Stay, view: str) -> float | None:
        crowd, choices = self.crowd, self.random
        until: float | None = None  # when to end
        updates = 0.0
        while True:
            now = time.monotonic()
            if crowd.quiet:
                until = None  # stay; drawn anew when it is over, so that not all leave at once then
                if stay.confirmed and crowd.emptied.intersection(self._rooms):
                    return await self._leave(websocket, stay, choices.choice(("leaves", "is sent away")), view)
            elif until is None:
                until = now + choices.expovariate(1 / crowd.stay)
                updates = now + choices.expovariate(1 / crowd.stay) * 2
            time_is_over = until is not None and now > until
            if crowd.over or ((time_is_over or crowd.leaving) and stay.confirmed):
                names = [*ENDS]
                (end,) = choices.choices(names, [ENDS[name][0] for name in names])
                return await self._leave(websocket, stay, "leaves" if crowd.over else end, view)
            if until is not None and now > updates and stay.confirmed and view != "listens" and self._own:
                updates = now + choices.expovariate(1 / crowd.stay) * 2
                await self._update(websocket, stay)
            with suppress(asyncio.TimeoutError):
                self._take(str(await asyncio.wait_for(websocket.recv(), TURN)), stay)

    def _take(self, message: str, stay: Stay) -> None:
        now = time.monotonic()
        if self.speaks and message[0] == "{":
            self.crowd.hear(self.name, message)
            return
        told = json.loads(message[1:] if self.speaks else message)
        if "in" in told:
            stay.entered = now
            stay.said[0] = stay.said[0]._replace(end=now)
            self.crowd.unsettled.discard(self.name)
            self.crowd.done["joins"] += 1
        elif "updated" in told:
            text = text_of(told["updated"])
            stay.said[:] = [said._replace(end=now) if said.info == text else said for said in stay.said]

    async def _update(self, websocket: ClientConnection, stay: Stay) -> None:
        """Tell something else of the user."""
        self._info = {**self._info, "n": self._info.get("n", 0) + 1}
        now = time.monotonic()
        stay.said.append(Said(now, now + CLOSING, text_of(self._info)))
        self.crowd.done["updates"] += 1
        await websocket.send(json.dumps({"update": self._info}))

    async def _leave(self, websocket: ClientConnection, stay: Stay, end: str, view: str) -> float | None:
        """End the connection in one of several ways; return within how many seconds to come back."""
        if view == "listens" and end in ("is sent away", "is forbidden", "fails"):
            end = "leaves"
        self.crowd.done[end] += 1
        begin = time.monotonic()
        if end.startswith("vanishes"):
            websocket.transport.abort()
            self._end(stay, begin, "held" if stay.session else "gone", end)
            return ENDS[end][1]
        if end in ("leaves", "reloads"):
            code = 1000 if end == "leaves" else 1001
            await websocket.close(code)
        else:
            words = {"is sent away": {"leave": 1000}, "is forbidden": {"leave": 4403}, "fails": {"fail": True}}[end]
            code = {"is sent away": 1000, "is forbidden": 4403, "fails": 1011}[end]
            await websocket.send(json.dumps(words))
            with suppress(ConnectionClosed, asyncio.TimeoutError):
                while True:
                    self._take(str(await asyncio.wait_for(websocket.recv(), CLOSING)), stay)
        received = websocket.protocol.close_rcvd
        if received is None:
            how = "held" if stay.session and code not in FINAL else "refused"  # nobody knows what the server has got
        elif received.code == 1012 and code not in FINAL:
            how = "held"
        elif received.code == code:
            how = "clean" if code in FINAL else "held" if stay.session else "gone"
        else:
            how = "refused"  # both have closed at the same time
        self._end(stay, begin, how, end)
        return ENDS[end][1]


class Onlooker(Client):
    """Somebody who only sees who is in some rooms, by the subprotocol or through a view that watches."""

    def __init__(self, crowd: Crowd, name: str, rooms: Sequence[str], *, speaks: bool, busy: float = 0.0) -> None:
        super().__init__(crowd, name)
        self.speaks = speaks
        self._rooms = rooms
        self._busy = busy

    async def run(self) -> None:
        while not self.crowd.over:
            self.crowd.unsettled.add(self.name)
            with suppress(*FAULTS):
                await self._look()
            self.crowd.say(Gap(time.monotonic(), self.name))
            await asyncio.sleep(self.random.random())
            while self.crowd.leaving and not self.crowd.over:
                await asyncio.sleep(TURN)

    async def _look(self) -> None:
        query: dict[str, Any]
        if self.speaks:
            view, query = "stays", {"channel": self._rooms, "present": json.dumps(WATCH)}
        else:
            view, query = "watches", {"channel": self._rooms[0], "busy": self._busy}
        websocket = await self.open(view, query)
        try:
            if self.speaks:
                await websocket.send(json.dumps({"hello": {}}))
            while not self.crowd.over and not self.crowd.leaving:
                with suppress(asyncio.TimeoutError):
                    self._take(str(await asyncio.wait_for(websocket.recv(), TURN)))
                    if len(self.crowd.known.get(self.name, ())) == len(self._rooms):
                        self.crowd.unsettled.discard(self.name)
        except ConnectionClosed as closed:
            self.note(closed)
            raise
        finally:
            websocket.transport.abort()

    def _take(self, message: str) -> None:
        if self.speaks:
            if message[0] == "{":
                self.crowd.hear(self.name, message)
            return
        told = json.loads(message)
        (room,) = self._rooms
        now, name = time.monotonic(), self.name
        if name not in self.crowd.known:
            self.crowd.say(Seen(now, name, room, told["joined"], count=told["count"]))
            if told["left"]:
                self.crowd.wrong.append(f"malformed: {name} was first told that {told['left']} have left")
        else:
            left = [member["id"] for member in told["left"]]
            self.crowd.say(Seen(now, name, room, left=left, joined=told["joined"], count=told["count"]))


def crowd_of(crowd: Crowd, tabs: int, choices: random.Random) -> list[Client]:
    """Return clients: many users with one tab, some with several, some that are plain; and those who only look."""
    clients: list[Client] = []
    rooms = [*crowd.rooms]
    number = 0
    while len(clients) < tabs:
        number += 1
        user: int | str = number if number % 7 else str(number - 1)  # a number and its text are two users
        several = choices.random() < 0.25
        own = choices.random() < 0.5
        favourites = choices.choices(rooms, [*crowd.rooms.values()], k=2) if several else ()
        for tab in range(choices.randint(2, 3) if several else 1):
            name = f"client{number}{'abc'[tab]}"
            speaks = choices.random() < 0.8
            clients.append(Tab(crowd, name, user, speaks=speaks, own=own, favourites=tuple(dict.fromkeys(favourites))))
    for index, room in enumerate(rooms):
        busy = (0.0, 0.4, 1.0)[index % 3]
        clients.append(Onlooker(crowd, f"view of {room}", [room], speaks=False, busy=busy))
    for index in range(0, len(rooms), 3):
        clients.append(Onlooker(crowd, f"onlooker{index}", rooms[index : index + 3], speaks=True))
    return clients

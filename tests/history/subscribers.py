"""Subscribers that come and go, resume where they were, and write down what they are sent."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from .checker import At, Behind, Got, Key, Last, Life, Live, Opened, Quiet, Start, Told

OPENING = 20.0  # seconds; a subscription may have to wait for a Redis that is away
LAST = 50  # messages
VIEWS = ("takes", "takes", "takes", "forwards", "closes", "listens", "asynchronous", "shows")
SPEAKING = ("forwards", "closes", "listens", "asynchronous")  # half of whose clients speak the subprotocol
SUBPROTOCOL = Subprotocol("django-websocket.1")
MISSED = 4410  # a view's own code where it could not begin at a position
FAILURES = (1002, 1007, 1009, 1011)  # close codes of a server that did something wrong


@dataclass
class Crowd:
    """What all subscribers of a stage share."""

    port: int
    seed: int
    stay: float  # seconds that a connection lasts on average
    away: Mapping[str, float]  # seconds that a subscriber of a channel sometimes stays away, by the channel's kind
    lives: list[Life] = field(default_factory=list)
    closes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    connections: int = 0
    refused: int = 0
    ending: asyncio.Event = field(default_factory=asyncio.Event)  # from now on, everybody stays
    over: asyncio.Event = field(default_factory=asyncio.Event)  # nothing more is to come
    leaving: bool = False  # everybody is to leave, and to stay away
    path: str = ""  # before those of the views
    ends: list[tuple[float, str]] = field(default_factory=list)  # when the server closed or refused, and how
    latest: float = 0.0  # when the last message arrived


class Subscriber:
    """Somebody who wants all messages of some channels, over many connections."""

    def __init__(self, crowd: Crowd, name: str, channels: Sequence[str]) -> None:
        self._crowd = crowd
        self.name = name
        self._channels = channels
        self._random = random.Random(f"{crowd.seed} {name}")
        self._places: dict[str, list[str]] = {}  # by channel, positions where this life can go on, the last one last
        self._life = Life("")
        self._lives = 0
        self._view = ""
        self._snapshot = False  # whether the view has not sent the snapshot yet that begins this life
        self._in_snapshot = False
        self._speaks = False  # the subprotocol, so that the hello says where to start
        self._numbers: dict[int, str] = {}  # of channels, in this connection
        self._elsewhere: dict[str, str] = {}  # where channels go on behind a gap of which the view has yet to tell
        self.there_at_the_end = False

    async def run(self) -> None:
        """Come and go until the end."""
        crowd, choices = self._crowd, self._random
        await asyncio.sleep(choices.random() * crowd.stay)
        while not crowd.over.is_set():
            with suppress(OSError, TimeoutError, InvalidHandshake, ConnectionClosed, asyncio.TimeoutError):
                await self._connect()
            while crowd.leaving and not crowd.over.is_set():
                await asyncio.sleep(0.2)
            if crowd.ending.is_set():
                await asyncio.sleep(0.2)
            else:
                kind = self._channels[0].partition(":")[0]
                longest = crowd.away.get(kind, 1.0) if choices.random() < 0.2 else 0.5
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(crowd.ending.wait(), choices.random() * longest)

    # --- where to start ------------------------------------------------------------------------------------------

    def _begin_life(self) -> None:
        self._lives += 1
        self._life = Life(f"{self.name}.{self._lives}")
        self._places = {}
        self._crowd.lives.append(self._life)

    async def _starts(self) -> dict[str, Start]:
        """Return where the next connection starts in each channel."""
        choices = self._random
        if self._places and len(self._places) == len(self._channels) and choices.random() < 0.95:
            back = 1 if choices.random() < 0.8 else choices.randint(1, 20)
            return {channel: Behind(places[-back:][0]) for channel, places in self._places.items()}
        starts: dict[str, Start] = {}
        kind = choices.random()
        if kind < 0.5 or self._view == "shows":
            starts = dict.fromkeys(self._channels, Live())
        elif kind < 0.7:
            starts = dict.fromkeys(self._channels, Last(LAST))
        else:
            for channel in self._channels:
                starts[channel] = await self._ask(channel)
            if choices.random() < 0.5:
                await asyncio.sleep(choices.random() * 3)
        self._begin_life()
        return starts

    async def _ask(self, channel: str) -> Behind:
        """Ask for the position of a channel."""
        begin = time.monotonic()
        async with self._websocket("asks", {"channel": channel}) as websocket:
            position = str(await websocket.recv())
        return Behind(position, (begin, time.monotonic()))

    def _websocket(self, view: str, query: Mapping[str, Any]) -> connect:
        return connect(
            f"ws://127.0.0.1:{self._crowd.port}/{self._crowd.path}{view}/?{urlencode(query, doseq=True)}",
            compression=None,
            proxy=None,
            open_timeout=OPENING,
            close_timeout=1,
            ping_interval=None,
            max_size=None,
            max_queue=None,
            subprotocols=[SUBPROTOCOL] if self._speaks and view != "asks" else None,
        )

    # --- one connection ------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        """Connect, and take what comes until the connection ends, or its time is over."""
        crowd, choices = self._crowd, self._random
        self._view = choices.choice(VIEWS)
        self._speaks = self._view in SPEAKING and choices.random() < 0.5
        starts = await self._starts()
        begin = time.monotonic()
        try:
            websocket = await self._websocket(self._view, self._query(starts))
        except InvalidHandshake as refused:
            crowd.refused += 1
            crowd.ends.append((time.monotonic(), f"refused: {refused}"))
            raise
        crowd.connections += 1
        self._snapshot = self._view == "shows" and not any(isinstance(start, Behind) for start in starts.values())
        opened = Opened(begin, time.monotonic(), starts)
        begun = self._in_snapshot = False
        try:
            if self._snapshot or self._view == "takes":  # the subscription may be younger than the connection
                hello = json.loads(await websocket.recv())
                opened = Opened(begin, hello.get("snapshot", time.monotonic()), starts)
                self._begin(opened)
                begun = True
                self._take(hello)
                self._snapshot = False
            elif self._speaks:
                said = await self._greet(websocket, starts)
                self._begin(Opened(begin, time.monotonic(), starts))
                begun = True
                self._heed(said, starts)
            else:
                self._begin(opened)
                begun = True
            if await self._receive(websocket):
                self._life.events.append(Quiet(time.monotonic()))
                self.there_at_the_end = True
                await websocket.close()
            elif choices.random() < 0.5:
                await websocket.close()
        except ConnectionClosed as closed:
            self._note(closed, begun)
        finally:
            websocket.transport.abort()

    def _begin(self, opened: Opened) -> None:
        """Write down the start of a connection, and forget the positions behind it."""
        self._life.events.append(opened)
        for channel, start in opened.starts.items():
            if isinstance(start, Behind):
                places = self._places.setdefault(channel, [start.position])
                del places[places.index(start.position) + 1 :]

    def _query(self, starts: Mapping[str, Start]) -> Mapping[str, Any]:
        query: dict[str, Any] = {"channel": [*starts]}
        since = {channel: start.position for channel, start in starts.items() if isinstance(start, Behind)}
        if since and not self._speaks:
            alone = len(since) == 1 and self._random.random() < 0.5
            query["since"] = json.dumps(*since.values() if alone else (since,))
        if any(isinstance(start, Last) for start in starts.values()):
            query["last"] = LAST
        return query

    async def _receive(self, websocket: ClientConnection) -> bool:
        """Take messages until it is time to leave; return whether that was the end of all."""
        crowd = self._crowd
        until = time.monotonic() + self._random.expovariate(1 / crowd.stay)
        while not crowd.over.is_set():
            wait = math.inf if crowd.ending.is_set() else until - time.monotonic()
            if wait <= 0 or crowd.leaving:
                return False
            with suppress(asyncio.TimeoutError):
                message = await asyncio.wait_for(websocket.recv(), min(wait, 0.5))
                if self._speaks:
                    self._take_framed(str(message))
                else:
                    self._take(json.loads(message))
        return True

    # --- the subprotocol -----------------------------------------------------------------------------------------

    async def _greet(self, websocket: ClientConnection, starts: Mapping[str, Start]) -> dict[str, Any]:
        """Say hello; return what the server says of the subscription."""
        positions = {channel: start.position for channel, start in starts.items() if isinstance(start, Behind)}
        await websocket.send(json.dumps({"hello": {"positions": positions}}))
        while True:
            said: dict[str, Any] = json.loads(await websocket.recv())
            if "sub" in said:
                return said

    def _heed(self, said: dict[str, Any], starts: Mapping[str, Start]) -> None:
        """Write down where the channels begin."""
        now = time.monotonic()
        self._numbers = {number: channel for channel, (number, *_) in said["sub"].items()}
        begins = {channel: begin for channel, (_, begin, _) in said["sub"].items() if begin is not None}
        if "reset" in said:
            self._tell(now)
            self._at(now, begins)
            return
        wanted = {channel: start.position for channel, start in starts.items() if isinstance(start, Behind)}
        there = {channel: begin for channel, begin in begins.items() if wanted.get(channel, begin) == begin}
        self._at(now, there)
        self._elsewhere = begins if len(there) < len(begins) else {}

    def _take_framed(self, message: str) -> None:
        """Write down a message of the subprotocol."""
        if message[0] == "p":
            number, position, text = message[1:].split(":", 2)
            self._got(time.monotonic(), json.loads(text), self._numbers[int(number)], position or None)
        elif message[0] == "s":
            self._take(json.loads(message[1:]))
            if self._elsewhere:
                self._at(time.monotonic(), self._elsewhere)
                self._elsewhere = {}

    def _take(self, message: dict[str, Any]) -> None:
        """Write down a message."""
        now = time.monotonic()
        if "message" in message:
            self._got(now, json.loads(message["message"]), message["channel"], message["position"])
        elif "c" in message:
            self._got(now, message, message["c"], None)
        elif "at" in message:
            self._at(now, message["at"])
        elif "told" in message:
            self._tell(now)
            if message["told"] is not None:
                self._at(now, message["told"])
        elif message["part"] > 0:
            pass
        elif not self._snapshot:
            self._tell(message["snapshot"])
        self._in_snapshot = message.get("part", 2) < 2

    def _got(self, now: float, message: Mapping[str, Any], channel: str, position: str | None) -> None:
        if self._in_snapshot:
            self._crowd.wrong.append(f"message inside a snapshot: {self._life.name} got {message} in {channel}")
        if message["c"] != channel:
            self._crowd.wrong.append(f"wrong channel: {self._life.name} got {message} in {channel}")
        self._crowd.latest = now
        self._life.events.append(Got(now, channel, Key(message["p"], message["n"]), position))
        if position is not None:
            self._places.setdefault(channel, []).append(position)
            del self._places[channel][:-20]

    def _at(self, now: float, positions: Mapping[str, str]) -> None:
        for channel, position in positions.items():
            self._life.events.append(At(now, channel, position))
            self._places[channel] = [position]

    def _tell(self, now: float) -> None:
        self._life.events.append(Told(now, self._channels))
        self._places = {}

    def _note(self, closed: ConnectionClosed, begun: bool) -> None:
        """Write down how the server closed the connection."""
        code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")
        self._crowd.closes[f"{code} {reason}".strip()] += 1
        self._crowd.ends.append((time.monotonic(), f"closed {code} {reason}".strip()))
        missed = code == 1012 and "missed" in reason and not self._speaks  # else it is told when it comes back
        if begun and (code == MISSED or missed):
            self._tell(time.monotonic())
        elif code in FAILURES:
            self._crowd.wrong.append(f"closed with {code}: {self._life.name}, view {self._view}: {reason}")


def crowd_of(crowd: Crowd, channels: Mapping[str, int], together: Sequence[Sequence[str]]) -> list[Subscriber]:
    """Return subscribers: for each channel as many as it says, and one for each of some channels together."""
    subscribers = []
    for channel, count in channels.items():
        subscribers += [Subscriber(crowd, f"{channel}#{number}", [channel]) for number in range(count)]
    subscribers += [Subscriber(crowd, f"together#{number}", several) for number, several in enumerate(together)]
    return subscribers

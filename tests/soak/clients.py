"""Clients that keep to the protocol: chatty, idle and slow ones, some that add up, members of groups, and listeners."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from ..history.checker import Got, Key, Life, Live, Opened, Quiet, Told
from .checker import Hearing, Said
from .scene import TURN, Scene, Somebody

OPENING = 20.0  # seconds; a view that subscribes may have to wait for a Redis that is away
ANSWER = 15.0  # seconds, after which no answer is expected any more
CLOSING = 5.0  # seconds for the answer to a close frame
ECHOES = ("view", "loop", "selects", "coroutine", "consumer", "async-consumer")
SIZES = (1, 20, 200, 200, 3000, 40_000)  # characters of a message
PIECES, PIECE = 120, 16_000  # of what a view pours
FAILED = "failed"
MISSED = "closed 1012 messages may have been missed"


class Client(Somebody):
    """Somebody with the `websockets` library."""

    view = ""
    stay = 10.0  # seconds that a connection lasts on average
    away = 1.0  # seconds between two connections, at most

    def path(self) -> str:
        """Return the path of the view to which to connect next, with its query."""
        return f"{self.view}/"

    async def visit(self) -> None:
        begin = time.monotonic()
        outcome = "left"
        websocket = None
        try:
            websocket = await connect(
                f"ws://127.0.0.1:{self.scene.port}/{self.path()}",
                compression=self.random.choice(("deflate", None)),
                proxy=None,
                open_timeout=OPENING,
                close_timeout=CLOSING,
                ping_interval=None,
                max_size=None,
            )
            self.begun(begin)
            await self.talk(websocket, time.monotonic() + self.random.expovariate(1 / self.stay))
            await websocket.close()
            received = websocket.protocol.close_rcvd
            # The server may have closed just before, as it does when it restarts.
            if received is None or received.code not in (1000, 1012):
                outcome = outcome_of(received)
        except ConnectionClosed as closed:
            outcome = outcome_of(closed.rcvd)
        except InvalidStatus as refused:
            outcome = f"refused {refused.response.status_code}"
        except (InvalidHandshake, InvalidMessage, OSError, TimeoutError, asyncio.TimeoutError) as error:
            what = "refused: the connection ended" if websocket is None else "no answer"
            outcome = f"{what} ({type(error).__name__}: {error})"
        finally:
            if websocket is not None:
                websocket.transport.abort()
        self.note(begin, outcome)
        self.ended(outcome)
        await self.scene.rest(self.random.random() * self.away)

    def begun(self, asked: float) -> None:
        """Take note of a connection that was asked for at a moment, and has begun now."""

    async def talk(self, websocket: ClientConnection, until: float) -> None:
        """Do what this one does, until some moment or until everybody is to leave."""
        raise NotImplementedError

    def ended(self, outcome: str) -> None:
        """Take note of a connection that has ended."""

    async def ask(self, websocket: ClientConnection, message: str) -> str:
        """Send a message and return the answer."""
        begin = time.monotonic()
        await websocket.send(message)
        try:
            answer = str(await asyncio.wait_for(websocket.recv(), ANSWER))
        except (TimeoutError, asyncio.TimeoutError):
            self.scene.wrong.append(f"no answer: at {begin:.3f}: {self.name}")
            raise
        self.scene.answer(self.name, begin)
        return answer


def outcome_of(received: Any) -> str:
    """Return how the server has closed, by its close frame."""
    return "closed 1006" if received is None else f"closed {received.code} {received.reason}".strip()


class Chatty(Client):
    """It says something and waits for the answer, again and again."""

    pause = 0.5  # seconds between two messages, at most

    def path(self) -> str:
        self.view = self.random.choice(ECHOES)
        return super().path()

    async def talk(self, websocket: ClientConnection, until: float) -> None:
        while self.scene.stays and time.monotonic() < until:
            self.scene.done["echoes"] += 1
            message = f"{self.scene.done['echoes']} ".ljust(self.random.choice(SIZES), "é")
            if await self.ask(websocket, message) != message:
                self.scene.wrong.append(f"wrong echo: at {time.monotonic():.3f}: {self.name}, view {self.view}")
            await self.scene.rest(self.random.random() * self.pause)


class Passing(Chatty):
    """It connects, says something, and leaves."""

    stay = 0.05
    away = 2.0


class Idle(Client):
    """It says nothing, and expects nothing, for long."""

    stay = 120.0
    away = 3.0

    def path(self) -> str:
        self.view = self.random.choice(ECHOES)
        return super().path()

    async def talk(self, websocket: ClientConnection, until: float) -> None:
        while self.scene.stays and time.monotonic() < until:
            with suppress(TimeoutError, asyncio.TimeoutError):
                said = await asyncio.wait_for(websocket.recv(), TURN * 2)
                self.scene.wrong.append(f"not silent: at {time.monotonic():.3f}: {self.name} was sent {said!r:.80}")


class Slow(Client):
    """It takes long to read what a view pours out, and gets all of it."""

    reads_late = True
    view = "pours"
    stay = 1.0
    away = 4.0

    async def talk(self, websocket: ClientConnection, until: float) -> None:
        for number in range(PIECES):
            piece = str(await asyncio.wait_for(websocket.recv(), ANSWER))
            head, _, filling = piece.partition(":")
            if head != f"{number}" or len(filling) != PIECE:
                self.scene.wrong.append(f"wrong piece: at {time.monotonic():.3f}: {self.name} got {head}, not {number}")
            if self.scene.stays:  # otherwise hurry: a close frame comes behind all that is still to be read
                await asyncio.sleep(self.random.random() * 0.05)  # so a ping in between is answered in time
        self.scene.done["poured"] += 1


class Adding(Client):
    """It adds to a tally in the database; what was acknowledged once is in each later sum."""

    stay = 15.0

    def __init__(self, scene: Scene, name: str, view: str) -> None:
        super().__init__(scene, name)
        self.view = view
        self._acknowledged = 0
        self._asked = 0

    def path(self) -> str:
        return f"{self.view}/?{urlencode({'name': self.name})}"

    async def talk(self, websocket: ClientConnection, until: float) -> None:
        self._check(int(await self.ask(websocket, "0")))
        while self.scene.stays and time.monotonic() < until:
            self._asked += 1
            self._check(int(await self.ask(websocket, "1")))
            self.scene.done["additions"] += 1
            await self.scene.rest(self.random.random() * 2)

    def _check(self, count: int) -> None:
        if not self._acknowledged <= count <= self._asked:
            text = f"{self.name} is told {count}; {self._acknowledged} were acknowledged, and {self._asked} asked for"
            self.scene.wrong.append(f"wrong sum: at {time.monotonic():.3f}: {text}")
        self._acknowledged = self._asked = max(count, self._acknowledged)


class Member(Client):
    """It tells a group of Channels something, and hears what all members tell."""

    stay = 15.0

    def __init__(self, scene: Scene, name: str, view: str) -> None:
        super().__init__(scene, name)
        self.view = view
        self._number = 0

    async def talk(self, websocket: ClientConnection, until: float) -> None:
        hearing = Hearing(self.name)
        self.scene.hearings.append(hearing)
        while self.scene.stays and time.monotonic() < until:
            self._number += 1
            begin = time.monotonic()
            heard: bool | None = False
            try:
                await websocket.send(json.dumps([self.name, self._number]))
                heard = await self._hear(websocket, hearing, begin + CLOSING, self._number)
            except ConnectionClosed:
                heard = None
                raise
            finally:
                if heard is not None:  # otherwise nobody knows whether the group was told
                    self.scene.said.append(Said(self.name, self._number, begin, heard))
            await self._hear(websocket, hearing, time.monotonic() + self.random.random() * 2, None)

    async def _hear(
        self, websocket: ClientConnection, hearing: Hearing, until: float, number: int | None
    ) -> bool | None:
        """Hear what is said until a moment, or until the own number comes; None if the broker did not take it."""
        while (left := until - time.monotonic()) > 0 and (number is not None or self.scene.stays):
            with suppress(TimeoutError, asyncio.TimeoutError):
                text = str(await asyncio.wait_for(websocket.recv(), left))
                if text == FAILED:
                    return None
                by, told = json.loads(text)
                self.scene.done["heard in a group"] += 1
                hearing.heard.setdefault(by, []).append(told)
                if [by, told] == [self.name, number]:
                    return True
        return False


class Listener(Client):
    """It listens to a channel without a history, so that each connection is a life of its own."""

    stay = 20.0

    def __init__(self, scene: Scene, name: str, channel: str, lives: list[Life]) -> None:
        super().__init__(scene, name)
        self._channel = channel
        self._lives = lives
        self._life = Life(name)

    def path(self) -> str:
        return f"listens/?{urlencode({'channel': self._channel})}"

    def begun(self, asked: float) -> None:
        self._life = Life(f"{self.name}.{len(self._lives)}")
        self._life.events.append(Opened(asked, time.monotonic(), {self._channel: Live()}))
        self._lives.append(self._life)

    async def talk(self, websocket: ClientConnection, until: float) -> None:
        while self.scene.stays and time.monotonic() < until:
            with suppress(TimeoutError, asyncio.TimeoutError):
                message = json.loads(await asyncio.wait_for(websocket.recv(), TURN * 2))
                self.scene.done["heard by listeners"] += 1
                self._life.events.append(Got(time.monotonic(), self._channel, Key(message["p"], message["n"])))
        if self.scene.over:
            self._life.events.append(Quiet(time.monotonic()))

    def ended(self, outcome: str) -> None:
        if outcome == MISSED:
            self._life.events.append(Told(time.monotonic(), [self._channel]))


def crowd_of(scene: Scene, channels: list[str], lives: list[Life], size: int) -> list[Somebody]:
    """Return clients: `size` of the most frequent kinds, and fewer of the others."""
    few = max(1, size // 2)
    return [
        *(Chatty(scene, f"chatty{number}") for number in range(size)),
        *(Passing(scene, f"passing{number}") for number in range(size)),
        *(Idle(scene, f"idle{number}") for number in range(size)),
        *(Slow(scene, f"slow{number}") for number in range(few)),
        *(Adding(scene, f"adding{number}", ("adds", "adds-in-a-coroutine")[number % 2]) for number in range(few + 1)),
        *(Member(scene, f"member{number}", ("member", "async-member")[number % 2]) for number in range(few + 1)),
        *(Listener(scene, f"listener{number}", channels[number % len(channels)], lives) for number in range(few + 1)),
    ]

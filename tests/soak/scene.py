"""What the clients of the soak share, and what they write down."""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .checker import Hearing, Said, Visit, Waited

TURN = 0.25  # seconds between two looks at what is wanted of everybody


@dataclass
class Scene:
    """The servers as clients see them, what everybody is to do, and what everybody has done."""

    port: int  # of nginx
    direct: int  # of gunicorn
    seed: int = 1
    leaving: bool = False  # everybody is to leave, and to stay away
    over: bool = False
    visits: list[Visit] = field(default_factory=list)
    long_waits: list[Waited] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    hearings: list[Hearing] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    # When answers came, and after how many seconds: millions of them are numbers, not objects.
    answered: array[float] = field(default_factory=lambda: array("d"))
    waited: array[float] = field(default_factory=lambda: array("d"))

    @property
    def stays(self) -> bool:
        """Whether clients may be connected now."""
        return not (self.over or self.leaving)

    def answer(self, client: str, begin: float) -> None:
        """Take note of an answer, which came now."""
        now = time.monotonic()
        self.done["answers"] += 1
        self.answered.append(now)
        self.waited.append(now - begin)
        if now - begin > 1.0:
            self.long_waits.append(Waited(client, begin, now - begin))

    async def rest(self, seconds: float) -> None:
        """Wait for some seconds, or until everybody is to leave."""
        end = time.monotonic() + seconds
        while self.stays and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, TURN))


class Somebody:
    """Somebody who connects again and again."""

    rude = False
    reads_late = False

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene = scene
        self.name = name
        self.random = random.Random(f"{scene.seed} {name}")

    async def run(self) -> None:
        """Connect again and again, until all is over."""
        await self.scene.rest(self.random.random() * 2)
        while not self.scene.over:
            if self.scene.leaving:
                await asyncio.sleep(TURN)
            else:
                await self.visit()

    async def visit(self) -> None:
        """Connect once, and wait for a moment."""
        raise NotImplementedError

    def note(self, begin: float, outcome: str, expected: Sequence[str] = ("left",)) -> None:
        """Take note of a connection that has ended."""
        self.scene.done["connections"] += 1
        now = time.monotonic()
        self.scene.visits.append(Visit(self.name, begin, now, outcome, expected, self.rude, self.reads_late))

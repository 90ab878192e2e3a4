"""The other end of the engine under test: frames made by hand, and the ways in which bytes arrive.

Here and in the tests, sections are those of RFC 6455 unless another document is named.
"""

from __future__ import annotations

import functools
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from django_websocket.protocol.engine import Close, Engine, Event, Failure, Ping, Role

from ..support.frames import PING, build

MASK = bytes.fromhex("37fa213d")  # the mask of the examples in section 5.7


@pytest.fixture(params=Role, ids=lambda role: role.value)
def role(request: pytest.FixtureRequest) -> Role:
    """Which end of the connection the engine under test is: each rule of section 5 binds both."""
    role: Role = request.param
    return role


@pytest.fixture
def make_engine(role: Role) -> Callable[..., Engine]:
    """Makes engines with limits of the test's own."""
    return functools.partial(Engine, role)


@pytest.fixture
def engine(role: Role) -> Engine:
    """An engine with the default limits."""
    return Engine(role)


@pytest.fixture
def frame(role: Role) -> Callable[..., bytes]:
    """Makes frames of the engine's peer, right and wrong ones; by default `masked` is as section 5.1 wants it."""

    def make(
        opcode: int,
        payload: bytes = b"",
        *,
        fin: bool = True,
        rsv: int = 0,
        masked: bool = role is Role.SERVER,
        wrongly_masked: bool = False,
        mask: bytes = MASK,
        size: int | None = None,
        width: int | None = None,
    ) -> bytes:
        masked ^= wrongly_masked
        return build(opcode, payload, fin=fin, rsv=rsv, mask=mask if masked else None, size=size, width=width)

    return make


@pytest.fixture
def tagged() -> Callable[[Sequence[Event]], list[tuple[Any, ...]]]:
    """Puts each event's type in front of its fields: without it, a ping equals a pong with the same payload."""

    def tag(events: Sequence[Event]) -> list[tuple[Any, ...]]:
        return [(type(event), *event) for event in events]

    return tag


@pytest.fixture
def feed(
    make_engine: Callable[..., Engine],
    frame: Callable[..., bytes],
    tagged: Callable[[Sequence[Event]], list[tuple[Any, ...]]],
) -> Callable[..., tuple[list[str | bytes], list[tuple[Any, ...]]]]:
    """Gives a peer's bytes to an engine for each way of arriving, and returns the messages and tagged events of all.

    The bytes must end with a whole frame. A ping follows them, to check that the engine has found the frame's end or,
    where the connection has ended, that it takes nothing any more. `prepare` is called with each engine first;
    `limits` are the engine's.
    """
    behind = frame(PING, b"behind")

    def run(engine: Engine, pieces: Sequence[bytes]) -> tuple[list[str | bytes], list[tuple[Any, ...]]]:
        messages: list[str | bytes] = []
        events: list[Event] = []
        for piece in pieces:
            events.extend(engine.receive(piece))
            while engine.paused:
                assert engine.messages, "paused, and nothing to take"
                messages.extend(engine.messages)
                engine.messages.clear()
                events.extend(engine.receive(b""))
            messages.extend(engine.messages)
            engine.messages.clear()
        if any(isinstance(event, (Close, Failure)) for event in events):
            assert isinstance(events[-1], (Close, Failure)), "the engine read on after the end"
            assert not engine.receive(behind)
        else:
            assert tagged(events[-1:]) == [(Ping, b"behind")]
            events.pop()
        return messages, tagged(events)

    def feed(
        data: bytes, *, prepare: Callable[[Engine], object] = lambda engine: None, **limits: Any
    ) -> tuple[list[str | bytes], list[tuple[Any, ...]]]:
        results = {}
        for how, pieces in {
            "whole": [data, behind],
            "byte by byte": [*(data[at : at + 1] for at in range(len(data))), behind],
            "with bytes behind": [data + behind],
        }.items():
            engine = make_engine(**limits)
            prepare(engine)
            results[how] = run(engine, pieces)
            assert results[how] == results["whole"], f"the result differs when fed {how}"
        return results["whole"]

    return feed


@pytest.fixture
def allocated() -> Iterator[Callable[[], int]]:
    """Returns the most bytes that were allocated at any moment since the test began, or since the last call."""
    tracemalloc.start()

    def peak() -> int:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        return most

    yield peak
    tracemalloc.stop()

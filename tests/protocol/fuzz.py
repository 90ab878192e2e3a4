"""What must hold for any bytes that a peer may send, in either role; test_fuzz.py and scripts/fuzz try to break it.

The engine raises no exception, holds nothing beyond the limits, comes to the same result however the bytes are cut,
and agrees with the `websockets` library. A file of `corpus/` is one case: a byte that says how the stream is fed to
the engine (see `check_input`), then the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django_websocket.protocol.engine import Engine, Event, Role

from .test_engine_against_websockets import LIMIT, Ours, Theirs, compare

MAX_INCOMPLETE = 2 + 8 + 4 + 125  # bytes of a header or control frame that may wait for the rest


class BoundedEngine(Engine):
    """Asserts after each step that no more is held than the limits allow."""

    def receive(self, data: bytes) -> Sequence[Event]:
        given = len(self._data) + len(data)
        events = super().receive(data)
        waiting = sum(
            len(message) if isinstance(message, bytes) else len(message.encode()) for message in self.messages
        )
        assert len(self.messages) <= self.max_queued_messages
        assert waiting <= self.max_queued_bytes + self.max_message_size + self.max_queued_messages * 125
        assert len(self._message or b"") + self._missing <= self.max_message_size
        if self.paused:
            assert self.messages, "paused, and nothing to take"
            assert len(self._data) <= given
        else:
            assert len(self._data) <= MAX_INCOMPLETE
        return events


class Slow(Ours):
    """Takes one message after each piece, whether the queue is full or not, and the others at the end."""

    def receive(self, data: bytes) -> None:
        self.note(self._engine.receive(data))
        if self._engine.messages:
            self.messages.append(self._engine.messages.pop(0))

    def finish(self) -> None:
        while self._engine.messages or self._engine.paused:
            self.receive(b"")


def check(role: Role, pieces: Iterable[bytes], *, max_queued_messages: int = 16, max_queued_bytes: int = LIMIT) -> Ours:
    """Fail unless everything holds for a stream that arrives in these pieces; return what the engine made of it."""
    limits: dict[str, Any] = {"max_queued_messages": max_queued_messages, "max_queued_bytes": max_queued_bytes}
    cut = Ours(role, BoundedEngine(role, max_message_size=LIMIT, **limits))
    slow = Slow(role, BoundedEngine(role, max_message_size=LIMIT, **limits))
    data = b""
    for piece in pieces:
        data += piece
        cut.receive(piece)
        slow.receive(piece)
    slow.finish()
    whole = Ours(role)
    whole.receive(data)
    for how, other in (("in pieces", cut), ("slowly", slow)):
        for name in ("messages", "control", "end", "reason"):
            assert getattr(other, name) == getattr(whole, name), f"{name}, {how} and whole: {data.hex()}"
    theirs = Theirs(role)
    theirs.receive(data)
    compare(whole, theirs, data.hex())
    return cut


def check_input(data: bytes) -> None:
    """Check a case in the form of the corpus.

    The lowest bit of its first byte is the role of this end, 1 for the client; the others are the size of the pieces
    in which the stream arrives, 0 for one piece, and the number of messages that may wait.
    """
    if data:
        role = Role.CLIENT if data[0] & 1 else Role.SERVER
        size = data[0] >> 1
        check(role, pieces(data[1:], size or len(data)), max_queued_messages=size or 1)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))

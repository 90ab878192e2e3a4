"""Text is UTF-8 (RFC 6455, sections 5.6 and 8.1), and the connection fails with the first byte that shows it is not.

The grammar of RFC 3629, section 4, stands below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any
from unittest.mock import ANY

import pytest

from django_websocket.protocol.engine import Engine, Event, Failure, Ping, Role

from ..support.frames import BINARY, CLOSE, CONTINUATION, PING, TEXT

Feed = Callable[..., tuple[list[str | bytes], list[tuple[Any, ...]]]]
Frame = Callable[..., bytes]
Tagged = Callable[[Sequence[Event]], list[tuple[Any, ...]]]

INVALID = [(Failure, 1007, ANY)]

TAIL = range(0x80, 0xC0)
GRAMMAR = [
    [range(0x80)],
    [range(0xC2, 0xE0), TAIL],
    [range(0xE0, 0xE1), range(0xA0, 0xC0), TAIL],
    [range(0xE1, 0xED), TAIL, TAIL],
    [range(0xED, 0xEE), range(0x80, 0xA0), TAIL],
    [range(0xEE, 0xF0), TAIL, TAIL],
    [range(0xF0, 0xF1), range(0x90, 0xC0), TAIL, TAIL],
    [range(0xF1, 0xF4), TAIL, TAIL, TAIL],
    [range(0xF4, 0xF5), range(0x80, 0x90), TAIL, TAIL],
]


def may_begin_text(data: bytes) -> bool:
    """Whether the grammar allows a text to begin with `data`."""
    at = 0
    while at < len(data):
        for form in GRAMMAR:
            piece = data[at : at + len(form)]
            if all(byte in allowed for byte, allowed in zip(piece, form, strict=False)):
                at += len(form)
                break
        else:
            return False
    return True


def may_begin_surrogate(data: bytes) -> bool:
    """Whether `data` is a surrogate's first two bytes: Python's decoder refuses it only at the third."""
    return len(data) == 2 and data[0] == 0xED and 0xA0 <= data[1] < 0xC0


# Every first byte; every second byte behind each that is not ASCII; third and fourth bytes at the grammar's corners.
PREFIXES = [
    b"",
    *(bytes((first,)) for first in range(0x80, 0x100)),
    *map(bytes.fromhex, ["e0a0", "e0bf", "e180", "ed80", "ed9f", "ee80", "efbf", "f090", "f0bf", "f180", "f48f"]),
    *map(bytes.fromhex, ["f09080", "f0bfbf", "f18080", "f48080", "f48fbf"]),
]


@pytest.mark.parametrize("opening", [TEXT, CONTINUATION], ids=["inside a frame", "across fragments"])
def test_text_fails_with_the_first_byte_that_is_wrong(opening: int) -> None:  # section 8.1
    """The engine is a client, so that none of the forty thousand cases need be masked."""
    early, late = [], []
    for prefix in PREFIXES:
        if not may_begin_text(prefix):
            continue
        for byte in range(256):
            data = prefix + bytes((byte,))
            engine = Engine(Role.CLIENT)
            if opening == TEXT:
                events = engine.receive(bytes((TEXT, 100)) + data)
            else:
                assert not engine.receive(bytes((TEXT, len(prefix))) + prefix)
                events = engine.receive(bytes((CONTINUATION, 100, byte)))
            if not events and not may_begin_text(data) and not may_begin_surrogate(data):
                late.append(data)
            if events and may_begin_text(data):
                early.append(data)
    assert late == []
    assert early == []


def test_surrogate_fails_with_its_third_byte_at_the_latest(tagged: Tagged) -> None:  # section 8.1
    for second in range(0xA0, 0xC0):
        for third in range(256):
            data = bytes((TEXT, 100, 0xED, second, third))
            assert tagged(Engine(Role.CLIENT).receive(data)) == INVALID, data.hex()


# Each of these is invalid by itself; the ids say why (RFC 3629, sections 3 and 4).
WRONG = {
    "continuation alone": b"\x80",
    "two continuations": b"\x80\xbf",
    "fe": b"\xfe",
    "ff": b"\xff",
    "overlong slash in 2": b"\xc0\xaf",
    "overlong slash in 3": b"\xe0\x80\xaf",
    "overlong slash in 4": b"\xf0\x80\x80\xaf",
    "overlong nul": b"\xc0\x80",
    "longest overlong in 2": b"\xc1\xbf",
    "longest overlong in 3": b"\xe0\x9f\xbf",
    "longest overlong in 4": b"\xf0\x8f\xbf\xbf",
    "first surrogate": b"\xed\xa0\x80",
    "last surrogate": b"\xed\xbf\xbf",
    "pair of surrogates": b"\xed\xa0\xbd\xed\xb8\x80",
    "beyond 10FFFF": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "latin-1": b"caf\xe9!",
    "code point broken off": b"\xe2\x82 ",
}
wrong = pytest.mark.parametrize("data", WRONG.values(), ids=[f"8.1 {name}" for name in WRONG])


@wrong
def test_text_that_is_not_utf_8_is_1007(frame: Frame, feed: Feed, data: bytes) -> None:
    for before in ("", "\u03ba\u1f79\u03c3\u03bc\u03b5", "x" * 200):
        assert feed(frame(TEXT, before.encode() + data + b"edited")) == ([], INVALID)


@wrong
def test_fragments_that_are_not_utf_8_are_1007(frame: Frame, feed: Feed, data: bytes) -> None:
    for cut in range(len(data) + 1):
        wire = frame(TEXT, b"x" + data[:cut], fin=False) + frame(CONTINUATION, data[cut:] + b"x")
        assert feed(wire) == ([], INVALID)


@wrong
def test_binary_message_may_be_any_bytes(frame: Frame, feed: Feed, data: bytes) -> None:  # section 5.6
    wire = frame(BINARY, data) + frame(BINARY, data[:1], fin=False) + frame(CONTINUATION, data[1:])
    assert feed(wire) == ([data, data], [])


@wrong
def test_close_reason_that_is_not_utf_8_is_1007(frame: Frame, feed: Feed, data: bytes) -> None:
    assert feed(frame(CLOSE, b"\x03\xe8bye " + data)) == ([], INVALID)  # section 5.5.1


@pytest.mark.parametrize("end", [b"\xc3", b"\xe2", b"\xe2\x82", b"\xf0", b"\xf0\x9f", b"\xf0\x9f\x98"], ids=bytes.hex)
class TestCodePointThatIsNotComplete:
    """A message must end with a whole code point, a fragment need not (sections 5.6 and 8.1)."""

    def test_at_the_end_of_a_frame(self, frame: Frame, feed: Feed, end: bytes) -> None:
        for before in (0, 10, 200):
            assert feed(frame(TEXT, b"x" * before + end)) == ([], INVALID)

    def test_at_the_end_of_the_last_fragment(self, frame: Frame, feed: Feed, end: bytes) -> None:
        wire = frame(TEXT, b"x", fin=False) + frame(CONTINUATION, end)
        assert feed(wire) == ([], INVALID)

    def test_before_an_empty_last_fragment(self, frame: Frame, feed: Feed, end: bytes) -> None:
        wire = frame(TEXT, end, fin=False) + frame(CONTINUATION)
        assert feed(wire) == ([], INVALID)

    def test_at_the_end_of_a_close_reason(self, frame: Frame, feed: Feed, end: bytes) -> None:
        assert feed(frame(CLOSE, b"\x03\xe8" + end)) == ([], INVALID)

    def test_is_not_a_failure_before_the_end(self, engine: Engine, frame: Frame, end: bytes) -> None:
        wire = frame(TEXT, end, fin=False) + frame(CONTINUATION, fin=False) + frame(PING)
        assert engine.receive(wire) == [Ping(b"")]


@pytest.mark.parametrize("size", [100, 1000, 1_000_000], ids=lambda size: f"8.1-{size}")
@pytest.mark.parametrize("arrived", [1, 50])
def test_text_fails_before_the_frame_is_whole(
    engine: Engine, frame: Frame, tagged: Tagged, size: int, arrived: int
) -> None:
    wire = frame(TEXT, b"x" * arrived + b"\xff", size=size)
    assert engine.receive(wire[:-1]) == []
    assert tagged(engine.receive(wire[-1:])) == INVALID


def test_text_fails_before_the_message_is_whole(engine: Engine, frame: Frame, tagged: Tagged) -> None:  # section 8.1
    assert engine.receive(frame(TEXT, b"fine", fin=False)) == []
    assert tagged(engine.receive(frame(CONTINUATION, b"\xff", fin=False))) == INVALID


SPLIT = "a\u00e9\u20ac\U0001f600z"


@pytest.mark.parametrize("between", [False, True], ids=["", "with pings between"])
@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_code_points_may_be_split_between_fragments(
    frame: Frame, feed: Feed, pieces: int, between: bool
) -> None:  # section 5.6
    text = SPLIT.encode()
    for cuts in combinations(range(len(text) + 1), pieces - 1):
        parts = [text[start:end] for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True)]
        frames = [frame(CONTINUATION if i else TEXT, part, fin=i == pieces - 1) for i, part in enumerate(parts)]
        messages, events = feed((frame(PING, b"\xff") if between else b"").join(frames))
        assert messages == [SPLIT]
        assert events == ([(Ping, b"\xff")] * (pieces - 1) if between else [])


@pytest.mark.parametrize("padding", ["", "x" * 200], ids=["short", "long"])
def test_code_points_may_be_split_between_segments(
    make_engine: Callable[..., Engine], frame: Frame, padding: str
) -> None:  # section 5.6
    wire = frame(TEXT, (padding + SPLIT).encode())
    for cut in range(len(wire)):
        engine = make_engine()
        assert [*engine.receive(wire[:cut]), *engine.receive(wire[cut:])] == []
        assert list(engine.messages) == [padding + SPLIT]


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "in segments"])
def test_all_of_unicode_is_text(make_engine: Callable[..., Engine], frame: Frame, cut: bool) -> None:  # section 5.6
    """Non-characters and the byte order mark arrive unchanged, too."""
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    wire = frame(TEXT, text.encode())
    engine = make_engine(max_message_size=4 * len(text))  # as Python stores it
    for at in range(0, len(wire), step := 65521 if cut else len(wire)):
        assert engine.receive(wire[at : at + step]) == []
    assert engine.messages.pop(0) == text


@pytest.mark.parametrize("text", ["\ufeffx", "\x00", "\uffff", "\r\n", "x" * 125 + "\u00e9"], ids=ascii)
def test_text_is_not_changed(frame: Frame, feed: Feed, text: str) -> None:  # section 5.6
    assert feed(frame(TEXT, text.encode())) == ([text], [])


def test_each_message_is_validated_on_its_own(frame: Frame, feed: Feed) -> None:  # section 5.6
    first = frame(TEXT, b"\xe2\x82", fin=False) + frame(CONTINUATION, b"\xac")
    assert feed(first * 2 + frame(BINARY, b"\xe2\x82") + frame(TEXT, b"\xac")) == (
        ["\u20ac", "\u20ac", b"\xe2\x82"],
        INVALID,
    )

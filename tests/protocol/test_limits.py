"""How much a peer can make the engine hold and how long it can keep it busy: the limits, and parsing beyond them.

Sections are those of RFC 6455; its section 10.4 asks for limits, and section 7.4.1 has their close code, 1009.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import ANY

import pytest

from django_websocket.protocol.engine import (
    MAX_MESSAGE_SIZE,
    MAX_QUEUED_MESSAGES,
    MAX_SHORT_FRAGMENTS,
    MIN_FRAGMENT_SIZE,
    Close,
    Engine,
    Event,
    Failure,
    Ping,
)

from ..support.frames import BINARY, CLOSE, CONTINUATION, PING, TEXT

Feed = Callable[..., tuple[list[str | bytes], list[tuple[Any, ...]]]]
Frame = Callable[..., bytes]
MakeEngine = Callable[..., Engine]
Tagged = Callable[[Sequence[Event]], list[tuple[Any, ...]]]

TOO_BIG = [(Failure, 1009, ANY)]
KIB, MIB = 1024, 1024 * 1024


# --- the size of a message --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 10, 124, 125, 126, 3000])
class TestMessageSize:
    def test_message_may_be_exactly_as_large_as_the_limit(self, frame: Frame, feed: Feed, limit: int) -> None:
        wire = frame(TEXT, b"x" * limit) + frame(BINARY, b"x" * limit)
        assert feed(wire, max_message_size=limit) == (["x" * limit, b"x" * limit], [])

    def test_message_that_is_larger_is_1009(self, frame: Frame, feed: Feed, limit: int) -> None:
        for opcode in (TEXT, BINARY):
            assert feed(frame(opcode, b"x" * (limit + 1)), max_message_size=limit) == ([], TOO_BIG)

    def test_fragments_may_add_up_to_the_limit(self, frame: Frame, feed: Feed, limit: int) -> None:
        parts = [b"x" * (limit // 3), b"x" * (limit // 3), b"x" * (limit - limit // 3 * 2), b""]
        for opcode, expected in ((TEXT, "x" * limit), (BINARY, b"x" * limit)):
            wire = b"".join(frame(CONTINUATION if i else opcode, part, fin=i == 3) for i, part in enumerate(parts))
            assert feed(wire, max_message_size=limit) == ([expected], [])

    def test_fragments_that_add_up_to_more_are_1009(self, frame: Frame, feed: Feed, limit: int) -> None:
        for opcode in (TEXT, BINARY):
            wire = frame(opcode, b"x" * limit, fin=False) + frame(CONTINUATION, b"x")
            assert feed(wire, max_message_size=limit) == ([], TOO_BIG)

    def test_limit_is_for_each_message(self, frame: Frame, feed: Feed, limit: int) -> None:
        wire = frame(TEXT, b"x" * limit, fin=False) + frame(CONTINUATION)
        wire += frame(BINARY, b"x" * limit, fin=False) + frame(CONTINUATION)
        assert feed(wire, max_message_size=limit) == (["x" * limit, b"x" * limit], [])

    def test_control_frames_do_not_count(self, frame: Frame, feed: Feed, limit: int) -> None:
        ping = frame(PING, bytes(125))
        wire = ping + frame(TEXT, b"x" * limit, fin=False) + ping + frame(CONTINUATION)
        assert feed(wire, max_message_size=limit) == (["x" * limit], [(Ping, bytes(125))] * 2)


def test_text_is_measured_in_bytes(frame: Frame, feed: Feed) -> None:
    assert feed(frame(TEXT, "\u20ac\u20ac".encode()), max_message_size=5) == ([], TOO_BIG)
    assert feed(frame(TEXT, "\u20ac\u20ac".encode()), max_message_size=6) == (["\u20ac\u20ac"], [])


@pytest.mark.parametrize(
    ("character", "bytes_of_each"), [("\u00e9", 1), ("\u20ac", 2), ("\U0001f600", 4)], ids=["Latin", "euro", "emoji"]
)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in fragments"])
@pytest.mark.parametrize("limit", [400, 4000])
def test_text_is_also_measured_as_python_stores_it(
    frame: Frame, feed: Feed, character: str, bytes_of_each: int, whole: bool, limit: int
) -> None:
    """A single wide character makes all characters of a text as wide."""

    def wire(text: str) -> bytes:
        payload = text.encode()
        return frame(TEXT, payload) if whole else frame(TEXT, payload[:9], fin=False) + frame(CONTINUATION, payload[9:])

    fits = "x" * (limit // bytes_of_each - 4) + character
    assert feed(wire(fits), max_message_size=limit) == ([fits], [])
    too_big = "x" * (limit // bytes_of_each) + character
    assert feed(wire(too_big), max_message_size=limit) == ([], TOO_BIG)


def test_queue_of_texts_is_measured_as_python_stores_them(
    make_engine: MakeEngine, frame: Frame, allocated: Callable[[], int]
) -> None:
    engine = make_engine()
    text = frame(TEXT, ("x" * (MIB // 8) + "\U0001f600").encode())
    while not engine.paused:
        assert not engine.receive(text)
    assert len(engine.messages) == 2
    assert allocated() < MIB + 4 * len(text)


def test_unfinished_message_is_reported_until_it_ends(make_engine: MakeEngine, frame: Frame) -> None:
    engine = make_engine()
    assert engine.unfinished == (0, 0)
    for number in (1, 2):
        engine.receive(frame(TEXT, b"x" * 10, fin=False))
        assert engine.unfinished == (number, 10)
        rest = frame(CONTINUATION, b"y" * 200)
        engine.receive(rest[:-100])
        assert engine.unfinished == (number, 110)
        engine.receive(rest[-100:])
        assert engine.unfinished == (0, 0)


def test_limit_is_one_mebibyte_by_default(frame: Frame, feed: Feed, engine: Engine, tagged: Tagged) -> None:
    assert MAX_MESSAGE_SIZE == MIB
    assert not engine.receive(frame(BINARY, bytes(MIB)))
    assert len(engine.messages.pop()) == MIB
    assert tagged(engine.receive(frame(BINARY, size=MIB + 1))) == TOO_BIG


@pytest.mark.parametrize("size", [MIB + 1, 1 << 24, 1 << 32, (1 << 63) - 1], ids=hex)
@pytest.mark.parametrize("fragment", [False, True], ids=["message", "fragment"])
def test_declared_length_that_is_too_big_is_1009_with_its_last_byte(
    engine: Engine, frame: Frame, tagged: Tagged, allocated: Callable[[], int], size: int, fragment: bool
) -> None:
    """The engine waits for neither mask nor payload, and allocates nothing for the declared length."""
    if fragment:
        assert not engine.receive(frame(BINARY, b"x", fin=False))
    head = frame(CONTINUATION if fragment else BINARY, size=size, fin=False)[:10]
    assert not engine.receive(head[:9])
    assert tagged(engine.receive(head[9:])) == TOO_BIG
    assert allocated() < 64 * KIB


def test_length_that_is_too_big_for_a_low_limit_is_1009_at_once(
    make_engine: MakeEngine, frame: Frame, tagged: Tagged
) -> None:
    assert tagged(make_engine(max_message_size=100).receive(frame(TEXT, size=101)[:2])) == TOO_BIG
    assert tagged(make_engine(max_message_size=1000).receive(frame(TEXT, size=1001)[:4])) == TOO_BIG


def test_sum_of_lengths_that_is_too_big_is_1009_with_the_header(
    make_engine: MakeEngine, frame: Frame, tagged: Tagged
) -> None:
    engine = make_engine(max_message_size=1000)
    assert not engine.receive(frame(BINARY, bytes(600), fin=False))
    assert tagged(engine.receive(frame(CONTINUATION, size=401)[:4])) == TOO_BIG


def test_only_what_has_arrived_is_allocated(engine: Engine, frame: Frame, allocated: Callable[[], int]) -> None:
    assert not engine.receive(frame(BINARY, bytes(100), size=MIB))
    assert allocated() < 64 * KIB


def test_message_in_small_pieces_takes_little_more_than_its_size(
    engine: Engine, frame: Frame, allocated: Callable[[], int]
) -> None:
    wire = frame(BINARY, bytes(MIB))
    allocated()
    for at in range(0, len(wire), 4096):
        assert not engine.receive(wire[at : at + 4096])
    assert len(engine.messages[0]) == MIB
    assert allocated() < len(wire) + 2.5 * MIB  # `wire`, the gathered pieces, and the message


def test_nothing_is_kept_of_a_message_that_was_refused(
    engine: Engine, frame: Frame, tagged: Tagged, allocated: Callable[[], int]
) -> None:
    half = frame(BINARY, bytes(MIB // 2), fin=False)
    rest = frame(CONTINUATION, bytes(MIB // 2 + 1))
    before = tracemalloc.get_traced_memory()[0]
    assert not engine.receive(half)
    assert tagged(engine.receive(rest + bytes(MIB))) == TOO_BIG
    assert tracemalloc.get_traced_memory()[0] - before < 64 * KIB


# --- the number of fragments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"x"], ids=["empty", "one byte"])
def test_flood_of_fragments_is_1009(
    make_engine: MakeEngine, frame: Frame, tagged: Tagged, allocated: Callable[[], int], payload: bytes
) -> None:
    """Empty fragments would never reach the limit of size, but reading each of them costs time."""
    allowed = 16 * KIB // MIN_FRAGMENT_SIZE + MAX_SHORT_FRAGMENTS
    piece = frame(CONTINUATION, payload, fin=False)
    for _ in range(2):  # what is allocated once, as by the measurement of coverage, is not this engine's
        engine = make_engine(max_message_size=16 * KIB)
        allocated()
        assert not engine.receive(frame(TEXT, payload, fin=False) + piece * (allowed - 1))
        assert tagged(engine.receive(piece)) == TOO_BIG
    assert allocated() < 64 * KIB


def test_flood_of_fragments_ends_with_the_default_limits(engine: Engine, frame: Frame, tagged: Tagged) -> None:
    flood = frame(CONTINUATION, fin=False) * 1000
    assert not engine.receive(frame(BINARY, fin=False))
    ends = (engine.receive(flood) for _ in range(100))
    assert tagged(next(filter(None, ends))) == TOO_BIG


def test_pings_do_not_count_as_fragments(make_engine: MakeEngine, frame: Frame) -> None:
    engine = make_engine(max_message_size=0)
    pings = frame(PING) * (MAX_SHORT_FRAGMENTS + 1)
    assert engine.receive(frame(TEXT, fin=False) + pings) == [Ping(b"")] * (MAX_SHORT_FRAGMENTS + 1)
    assert not engine.receive(frame(CONTINUATION))
    assert list(engine.messages) == [""]


@pytest.mark.parametrize(
    ("count", "size"),
    [(MAX_SHORT_FRAGMENTS, 0), (MAX_SHORT_FRAGMENTS, 1), (KIB // MIN_FRAGMENT_SIZE, MIN_FRAGMENT_SIZE)],
    ids=["many empty ones", "many of a byte", "short ones up to the size of a message"],
)
def test_fragments_within_the_limits_are_always_accepted(frame: Frame, feed: Feed, count: int, size: int) -> None:
    part = b"x" * size
    wire = frame(TEXT, part, fin=False) + frame(CONTINUATION, part, fin=False) * (count - 2) + frame(CONTINUATION, part)
    assert feed(wire * 2, max_message_size=KIB) == (["x" * size * count] * 2, [])


# --- the queue --------------------------------------------------------------------------------------------------------


def texts(start: int, end: int) -> list[str]:
    return [f"message {number}" for number in range(start, end)]


def wire_of(frame: Frame, messages: Sequence[str]) -> bytes:
    return b"".join(frame(TEXT, message.encode()) for message in messages)


def take(engine: Engine) -> list[str | bytes]:
    """Take all messages from the queue."""
    messages = list(engine.messages)
    engine.messages.clear()
    return messages


def test_parsing_stops_at_sixteen_messages(engine: Engine, frame: Frame) -> None:
    assert MAX_QUEUED_MESSAGES == 16
    assert not engine.receive(wire_of(frame, texts(0, 40)))
    for start in (0, 16):
        assert engine.paused
        assert take(engine) == texts(start, start + 16)
        assert not engine.receive(b"")
    assert not engine.paused
    assert take(engine) == texts(32, 40)
    assert not engine.receive(b"")
    assert take(engine) == []


def test_full_queue_with_nothing_behind_it_does_not_pause(engine: Engine, frame: Frame) -> None:
    engine.receive(wire_of(frame, texts(0, 16)))
    assert not engine.paused
    assert take(engine) == texts(0, 16)


def test_room_for_one_message_lets_in_one_message(engine: Engine, frame: Frame) -> None:
    engine.receive(wire_of(frame, texts(0, 20)))
    for number in range(20):
        assert engine.messages.pop(0) == f"message {number}"
        assert not engine.receive(b"")
        assert engine.paused == (number < 3)
        assert list(engine.messages) == texts(number + 1, min(number + 17, 20))


def test_resuming_a_full_queue_changes_nothing(engine: Engine, frame: Frame) -> None:
    engine.receive(wire_of(frame, texts(0, 20)))
    for _ in range(3):
        assert not engine.receive(b"")
        assert engine.paused
        assert list(engine.messages) == texts(0, 16)


def test_input_that_comes_during_a_pause_waits_its_turn(engine: Engine, frame: Frame) -> None:
    engine.receive(wire_of(frame, texts(0, 17)))
    more = wire_of(frame, texts(17, 20))
    for at in range(len(more)):
        assert not engine.receive(more[at : at + 1])
        assert engine.paused
    assert take(engine) == texts(0, 16)
    assert not engine.receive(b"")
    assert not engine.paused
    assert take(engine) == texts(16, 20)


def test_control_frames_behind_a_full_queue_come_later(engine: Engine, frame: Frame, tagged: Tagged) -> None:
    """Otherwise a pong would answer, and a close overtake, messages that have not been received yet."""
    wire = wire_of(frame, texts(0, 16)) + frame(PING, b"?") + frame(TEXT, b"last") + frame(CLOSE, b"\x03\xe8")
    assert not engine.receive(wire)
    assert engine.paused
    assert take(engine) == texts(0, 16)
    assert tagged(engine.receive(b"")) == [(Ping, b"?"), (Close, 1000, "")]
    assert take(engine) == ["last"]
    assert not engine.paused


def test_violation_behind_a_full_queue_comes_later(engine: Engine, frame: Frame, tagged: Tagged) -> None:
    assert not engine.receive(wire_of(frame, texts(0, 16)) + frame(TEXT, b"\xff") + frame(TEXT, b"never"))
    assert engine.paused
    assert take(engine) == texts(0, 16)
    assert tagged(engine.receive(b"")) == [(Failure, 1007, ANY)]
    assert not engine.paused
    assert take(engine) == []


def test_control_frames_before_the_queue_is_full_come_at_once(engine: Engine, frame: Frame) -> None:
    wire = wire_of(frame, texts(0, 15)) + frame(PING, b"?") + wire_of(frame, texts(15, 20))
    assert engine.receive(wire) == [Ping(b"?")]


@pytest.mark.parametrize("waiting", [15, 16])
def test_fragments_wait_like_messages(engine: Engine, frame: Frame, waiting: int) -> None:
    wire = wire_of(frame, texts(0, waiting)) + frame(TEXT, b"mess", fin=False)
    wire += frame(CONTINUATION, b"age ", fin=False) + frame(CONTINUATION, b"%d" % waiting)
    engine.receive(wire + wire_of(frame, texts(waiting + 1, 20)))
    assert engine.paused
    assert take(engine) == texts(0, 16)
    assert not engine.receive(b"")
    assert take(engine) == texts(16, 20)


def test_frame_that_has_begun_is_finished_although_the_queue_is_full(engine: Engine, frame: Frame) -> None:
    """There was room for its message when it began, so the queue never exceeds its limit."""
    long = frame(BINARY, bytes(1000))
    assert not engine.receive(wire_of(frame, texts(0, 15)) + long[:500])
    assert not engine.paused
    assert not engine.receive(long[500:] + frame(TEXT, b"next"))
    assert engine.paused
    assert take(engine) == [*texts(0, 15), bytes(1000)]


def test_parsing_stops_at_the_limit_of_bytes(make_engine: MakeEngine, frame: Frame) -> None:
    engine = make_engine(max_queued_bytes=1000)
    message = frame(BINARY, bytes(400))
    assert not engine.receive(message * 5 + frame(PING))
    assert engine.paused
    assert [len(message) for message in take(engine)] == [400, 400, 400]
    assert engine.receive(b"") == [Ping(b"")]
    assert not engine.paused
    assert [len(message) for message in take(engine)] == [400, 400]


def test_fragments_count_for_the_limit_of_bytes(make_engine: MakeEngine, frame: Frame) -> None:
    engine = make_engine(max_queued_bytes=1000)
    message = frame(BINARY, bytes(300), fin=False) + frame(CONTINUATION, bytes(300))
    assert not engine.receive(message * 3)
    assert engine.paused
    assert [len(message) for message in take(engine)] == [600, 600]


def test_message_over_the_limit_of_bytes_is_delivered_alone(make_engine: MakeEngine, frame: Frame) -> None:
    engine = make_engine(max_queued_bytes=1000)
    assert not engine.receive(frame(BINARY, bytes(5000)) * 3)
    for paused in (True, True, False):
        assert engine.paused == paused
        assert [len(message) for message in take(engine)] == [5000]
        engine.receive(b"")
    assert take(engine) == []


def test_limit_of_bytes_is_one_mebibyte_by_default(engine: Engine, frame: Frame) -> None:
    wire = frame(BINARY, bytes(MIB // 2))
    assert not engine.receive(wire * 3)
    assert engine.paused
    assert len(take(engine)) == 2
    assert not engine.receive(b"")
    assert len(take(engine)) == 1


@pytest.mark.parametrize(
    "limits", [{}, {"max_queued_messages": 1}, {"max_queued_bytes": 500}, {"max_queued_bytes": 0}], ids=str
)
def test_nothing_is_lost_or_reordered(make_engine: MakeEngine, frame: Frame, limits: dict[str, int]) -> None:
    """A caller that feeds no segment while `paused` is true never has more in the queue than the limits allow."""
    sizes = [0, 1, 124, 125, 126, 200, 3, 70, 300]
    expected, pings = [], []
    wire = b""
    for number in range(300):
        size = sizes[number % len(sizes)]
        payload = b"%d " % number + b"x" * size
        expected.append(payload)
        if number % 5:
            wire += frame(BINARY, payload)
        else:
            wire += frame(BINARY, payload[:size], fin=False) + frame(CONTINUATION, payload[size:])
        if number % 7 == 0:
            pings.append(Ping(b"%d" % number))
            wire += frame(PING, b"%d" % number)
    for segment in (1, 7, 100, 4096, len(wire)):
        engine = make_engine(**limits)
        got: list[str | bytes] = []
        events: list[Event] = []
        for at in range(0, len(wire), segment):
            events += engine.receive(wire[at : at + segment])
            while engine.paused:
                assert 0 < len(engine.messages) <= engine.max_queued_messages
                # Short messages count by number only.
                long = [len(message) for message in engine.messages if len(message) > 125]
                assert sum(long[:-1]) <= engine.max_queued_bytes
                got += take(engine)
                events += engine.receive(b"")
            got += take(engine)
        assert got == expected
        assert events == pings


# --- time -------------------------------------------------------------------------------------------------------------


def tiny_messages(frame: Frame, count: int) -> list[bytes]:
    return [frame(TEXT, b"x") * count]


def pings(frame: Frame, count: int) -> list[bytes]:
    return [frame(PING, b"x") * count]


def tiny_fragments(frame: Frame, count: int) -> list[bytes]:
    return [frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x", fin=False) * count + frame(CONTINUATION)]


def tiny_segments_of_a_message(frame: Frame, count: int) -> list[bytes]:
    wire = frame(TEXT, b"x" * 64 * count)
    return [wire[at : at + 64] for at in range(0, len(wire), 64)]


def segments_of_a_byte(frame: Frame, count: int) -> list[bytes]:
    wire = frame(TEXT, b"x") * (count // 7)
    return [wire[at : at + 1] for at in range(len(wire))]


@pytest.mark.parametrize(
    "pieces", [tiny_messages, pings, tiny_fragments, tiny_segments_of_a_message, segments_of_a_byte]
)
def test_four_times_as_much_takes_about_four_times_as_long(
    make_engine: MakeEngine, frame: Frame, pieces: Callable[[Frame, int], list[bytes]]
) -> None:
    """It would take sixteen times as long if each of the ten thousand looked at all that came before it."""

    def seconds(segments: list[bytes]) -> float:
        engine = make_engine()
        start = time.process_time()
        for segment in segments:
            engine.receive(segment)
            engine.messages.clear()
            while engine.paused:
                engine.receive(b"")
                engine.messages.clear()
        end = time.process_time()
        assert engine.receive(frame(CLOSE)), "the engine had failed"
        return end - start

    few, many = pieces(frame, 2500), pieces(frame, 10000)
    # Running `few` four times takes as long as `many`, so a machine that slows down for a moment slows both alike.
    assert min(seconds(many) / (sum(seconds(few) for _ in range(4)) / 4) for _ in range(5)) < 8


def test_ten_thousand_messages_in_one_piece_cost_one_call_for_sixteen(engine: Engine, frame: Frame) -> None:
    engine.receive(wire_of(frame, texts(0, 10000)))
    for start in range(0, 10000, 16):
        assert engine.paused == (start + 16 < 10000)
        assert take(engine) == texts(start, start + 16)
        engine.receive(b"")
    assert take(engine) == []


def test_frames_are_taken_a_few_at_a_time_so_that_others_get_their_turn(make_engine: MakeEngine, frame: Frame) -> None:
    engine = make_engine(max_frames=10)
    taken = [len(engine.receive(frame(PING, b"?") * 25))]
    while engine.paused:
        assert not engine.full
        taken.append(len(engine.receive(b"")))
    assert taken == [10, 10, 5]


def test_bytes_can_be_kept_for_later_when_there_is_no_time(engine: Engine, frame: Frame) -> None:
    data = wire_of(frame, texts(0, 3))
    engine.receive(data[:1])
    engine.keep(data[1:])
    assert engine.paused and not engine.full
    assert take(engine) == []
    engine.receive(b"")
    assert not engine.paused
    assert take(engine) == texts(0, 3)


def test_nothing_is_kept_after_the_end(engine: Engine, frame: Frame) -> None:
    engine.receive(frame(CLOSE))
    engine.keep(frame(PING))
    assert not engine.paused


def test_queue_is_full_at_its_limit_of_messages_or_of_bytes(make_engine: MakeEngine, frame: Frame) -> None:
    by_number, by_size = make_engine(max_queued_messages=2), make_engine(max_queued_bytes=100)
    assert not by_number.full and not by_size.full
    by_number.receive(frame(BINARY, b"x") * 3)
    by_size.receive(frame(BINARY, b"x" * 200) * 2)
    assert by_number.full and by_size.full

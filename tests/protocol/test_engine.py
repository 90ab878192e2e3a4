"""Messages, control frames and the close handshake, received and sent. Sections are those of RFC 6455."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import ANY

import pytest

from django_websocket.protocol.engine import Close, Engine, Event, Failure, Ping, Pong, Role
from django_websocket.protocol.frames import CloseCode, Opcode

from ..support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT

Feed = Callable[..., tuple[list[str | bytes], list[tuple[Any, ...]]]]
Frame = Callable[..., bytes]
Tagged = Callable[[Sequence[Event]], list[tuple[Any, ...]]]

PROTOCOL_ERROR = [(Failure, 1002, ANY)]

SIZES = [0, 1, 125, 126, 127, 65535, 65536, 100000]  # around the bounds of each form of length (section 5.2)
BYTES = bytes(range(256)) * 391


@pytest.fixture
def other_end(role: Role) -> Engine:
    """The engine that the one under test talks to."""
    return Engine(Role.CLIENT if role is Role.SERVER else Role.SERVER)


# --- messages of one frame --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"5.2-{size}")
class TestSizes:
    def test_text_frame_is_a_str(self, engine: Engine, frame: Frame, feed: Feed, size: int) -> None:  # section 5.6
        text = ("\u00e4" * (size // 2)) + "x" * (size % 2)
        wire = frame(TEXT, text.encode())
        if size < 1000:
            assert feed(wire) == ([text], [])
        else:  # the binary message arrives byte by byte
            assert not engine.receive(wire[:-10])
            assert not engine.receive(wire[-10:])
            assert list(engine.messages) == [text]

    def test_binary_frame_is_bytes(self, frame: Frame, feed: Feed, size: int) -> None:  # section 5.6
        messages, events = feed(frame(BINARY, BYTES[:size]))
        assert messages == [BYTES[:size]]
        assert type(messages[0]) is bytes  # a memoryview would keep everything that was received
        assert events == []

    def test_mask_continues_wherever_the_payload_is_cut(
        self, make_engine: Callable[..., Engine], frame: Frame, size: int
    ) -> None:  # section 5.3
        wire = frame(BINARY, BYTES[:size])
        head = len(wire) - size
        for first, second in itertools.product(range(5), range(5)):
            cuts = (0, head + first, head + first + second, len(wire))
            engine = make_engine()
            for start, end in itertools.pairwise(cuts):
                assert not engine.receive(wire[start:end])
            assert list(engine.messages) == [BYTES[:size]]

    def test_other_end_understands_what_is_sent(
        self, engine: Engine, other_end: Engine, size: int
    ) -> None:  # sections 5.2 and 5.3
        text = "x" * size
        assert not other_end.receive(engine.send(text) + engine.send(BYTES[:size]))
        assert list(other_end.messages) == [text, BYTES[:size]]


@pytest.mark.parametrize("mask", ["00000000", "ffffffff", "00ff00ff", "81828384"])
@pytest.mark.parametrize("size", [3, 300])
def test_any_mask_will_do(feed: Feed, frame: Frame, mask: str, size: int) -> None:  # section 5.3
    assert feed(frame(BINARY, BYTES[:size], mask=bytes.fromhex(mask))) == ([BYTES[:size]], [])


def test_each_frame_has_its_own_mask(feed: Feed, frame: Frame) -> None:  # section 5.3
    masks = [bytes(4), b"abcd", b"\xff\x00\xff\x00"]
    wire = b"".join(frame(TEXT, b"Hello", mask=mask) for mask in masks)
    wire += frame(TEXT, b"Hel", fin=False, mask=masks[1]) + frame(CONTINUATION, b"lo", mask=masks[2])
    assert feed(wire) == (["Hello"] * 4, [])


def test_empty_messages_are_messages(frame: Frame, feed: Feed) -> None:  # section 5.6
    assert feed(frame(TEXT) + frame(BINARY) + frame(TEXT)) == (["", b"", ""], [])


def test_messages_keep_their_order_and_type(frame: Frame, feed: Feed) -> None:  # section 5.4
    wire = b"".join(frame(BINARY if i % 2 else TEXT, b"%d" % i * (i % 5 * 40)) for i in range(50))
    expected = [b"%d" % i * (i % 5 * 40) if i % 2 else f"{i}" * (i % 5 * 40) for i in range(50)]
    assert feed(wire) == (expected, [])


# By the role of the receiving end.
EXAMPLES: dict[Role, list[tuple[str, str | bytes | tuple[Any, ...]]]] = {
    Role.SERVER: [("818537fa213d7f9f4d5158", "Hello"), ("8a8537fa213d7f9f4d5158", (Pong, b"Hello"))],
    Role.CLIENT: [
        ("810548656c6c6f", "Hello"),
        ("010348656c80026c6f", "Hello"),
        ("890548656c6c6f", (Ping, b"Hello")),
        ("827e0100" + "55" * 256, b"U" * 256),
        ("827f0000000000010000" + "55" * 65536, b"U" * 65536),
    ],
}


def test_examples_of_section_5_7(role: Role, feed: Feed) -> None:
    for wire, result in EXAMPLES[role]:
        assert feed(bytes.fromhex(wire)) == (([], [result]) if isinstance(result, tuple) else ([result], []))


# --- fragmentation ----------------------------------------------------------------------------------------------------

FRAGMENTS = {
    "5.4 two": ["Hel", "lo"],
    "5.4 three": ["H", "el", "lo"],
    "5.4 first is empty": ["", "Hello"],
    "5.4 middle is empty": ["Hel", "", "lo"],
    "5.4 last is empty": ["Hello", ""],
    "5.4 all are empty": ["", "", ""],
    "5.4 a byte each": list("Hello, world!"),
    "5.4 long": ["x" * 126, "y" * 200, "z" * 3],
    "5.4 longer": ["x" * 125, "y" * 3000, "z" * 126],
}
fragments = pytest.mark.parametrize("parts", FRAGMENTS.values(), ids=FRAGMENTS)


def fragmented(frame: Frame, opcode: int, parts: Sequence[str], between: bytes = b"") -> bytes:
    """Return the frames of a fragmented message, with others `between` them."""
    last = len(parts) - 1
    return between.join(
        frame(CONTINUATION if i else opcode, part.encode(), fin=i == last) for i, part in enumerate(parts)
    )


@fragments
class TestFragments:
    def test_are_one_text(self, frame: Frame, feed: Feed, parts: list[str]) -> None:
        assert feed(fragmented(frame, TEXT, parts)) == (["".join(parts)], [])

    def test_are_one_binary_message(self, frame: Frame, feed: Feed, parts: list[str]) -> None:
        messages, events = feed(fragmented(frame, BINARY, parts))
        assert messages == ["".join(parts).encode()]
        assert type(messages[0]) is bytes
        assert events == []

    def test_let_control_frames_pass(self, frame: Frame, feed: Feed, parts: list[str]) -> None:
        between = frame(PING, b"are you there") + frame(PONG, b"I am")  # sections 5.4 and 5.5
        messages, events = feed(fragmented(frame, TEXT, parts, between))
        assert messages == ["".join(parts)]
        assert events == [(Ping, b"are you there"), (Pong, b"I am")] * (len(parts) - 1)

    def test_leave_no_trace_in_the_next_message(self, frame: Frame, feed: Feed, parts: list[str]) -> None:
        text = "".join(parts)
        wire = (
            fragmented(frame, TEXT, parts)
            + frame(BINARY, b"whole")
            + fragmented(frame, BINARY, parts)
            + frame(TEXT, b"whole")
            + fragmented(frame, TEXT, parts)
        )
        assert feed(wire) == ([text, b"whole", text.encode(), "whole", text], [])


def test_ping_is_seen_before_the_message_around_it_is_whole(engine: Engine, frame: Frame) -> None:  # section 5.4
    assert engine.receive(frame(TEXT, b"Hel", fin=False) + frame(PING, b"now")) == [Ping(b"now")]
    assert not engine.messages


def test_message_that_is_not_whole_is_not_handed_out(engine: Engine, frame: Frame) -> None:  # section 6.2
    wire = frame(TEXT, b"Hel", fin=False) + frame(CONTINUATION, b"lo" * 100)
    for at in range(len(wire)):
        assert not engine.receive(wire[at : at + 1])
        assert list(engine.messages) == ([] if at + 1 < len(wire) else ["Hel" + "lo" * 100])


@pytest.mark.parametrize("fin", [True, False], ids=["5.4 last", "5.4 not last"])
class TestOrderOfFragments:
    def test_continuation_of_nothing_is_1002(self, frame: Frame, feed: Feed, fin: bool) -> None:
        assert feed(frame(CONTINUATION, b"lo", fin=fin)) == ([], PROTOCOL_ERROR)

    @fragments
    def test_continuation_of_a_message_that_has_ended_is_1002(
        self, frame: Frame, feed: Feed, parts: list[str], fin: bool
    ) -> None:
        wire = fragmented(frame, TEXT, parts) + frame(CONTINUATION, b"lo", fin=fin)
        assert feed(wire) == (["".join(parts)], PROTOCOL_ERROR)

    def test_continuation_of_a_whole_frame_is_1002(self, frame: Frame, feed: Feed, fin: bool) -> None:
        assert feed(frame(TEXT, b"Hel") + frame(CONTINUATION, b"lo", fin=fin)) == (["Hel"], PROTOCOL_ERROR)

    @pytest.mark.parametrize("size", [0, 2, 200])
    def test_message_inside_another_is_1002(self, frame: Frame, feed: Feed, size: int, fin: bool) -> None:
        for first, second in itertools.product([TEXT, BINARY], [TEXT, BINARY]):
            wire = frame(first, b"Hel", fin=False) + frame(second, bytes(size), fin=fin)
            assert feed(wire) == ([], PROTOCOL_ERROR)


# --- what no frame may be ---------------------------------------------------------------------------------------------

# The frames, and how many of their bytes show that they are wrong: no payload need be sent or read.
WRONG: dict[str, tuple[int, list[dict[str, Any]]]] = {
    **{
        f"5.2 reserved bits of opcode {opcode}": (
            2,
            [{"opcode": opcode, "rsv": rsv, "payload": b"x" * 5} for rsv in range(1, 8)],
        )
        for opcode in (TEXT, BINARY, CLOSE, PING, PONG)
    },
    **{
        f"5.2 opcode {opcode} is reserved": (
            2,
            [{"opcode": opcode, "fin": fin, "payload": b"x" * 5} for fin in (True, False)],
        )
        for opcode in (*range(3, 8), *range(11, 16))
    },
    **{
        f"5.1 wrongly masked opcode {opcode}": (
            2,
            [{"opcode": opcode, "wrongly_masked": True, "payload": b"x" * size} for size in sizes],
        )
        for opcode, sizes in (
            (TEXT, (0, 5, 125)),
            (BINARY, (0, 5, 125, 126, 65536)),
            (CLOSE, (0, 5)),
            (PING, (0, 5)),
            (PONG, (0, 5)),
        )
    },
    **{
        f"5.5 control frame {opcode} in fragments": (2, [{"opcode": opcode, "fin": False, "payload": b"\x03\xe8"}])
        for opcode in (CLOSE, PING, PONG)
    },
    **{
        f"5.5 control frame {opcode} that is too long": (
            2,
            [{"opcode": opcode, "payload": b"\x03\xe8" * (size // 2)} for size in (126, 65536)],
        )
        for opcode in (CLOSE, PING, PONG)
    },
    "5.2 two bytes of length for a short payload": (
        4,
        [{"opcode": BINARY, "payload": bytes(size), "width": 2} for size in (0, 1, 125)],
    ),
    "5.2 eight bytes of length for a short payload": (
        10,
        [{"opcode": BINARY, "payload": bytes(size), "width": 8} for size in (0, 1, 125, 126, 65535)],
    ),
    "5.2 highest bit of a length": (
        10,
        [{"opcode": BINARY, "payload": b"x", "size": size} for size in (1 << 63, (1 << 63) + 1, (1 << 64) - 1)],
    ),
}


@pytest.mark.parametrize(("decided", "wrong"), WRONG.values(), ids=WRONG)
class TestWrongFrame:
    def test_is_1002(self, frame: Frame, feed: Feed, decided: int, wrong: list[dict[str, Any]]) -> None:
        for options in wrong:
            assert feed(frame(**options)) == ([], PROTOCOL_ERROR), options

    def test_is_1002_as_soon_as_its_header_says_so(
        self,
        make_engine: Callable[..., Engine],
        frame: Frame,
        tagged: Tagged,
        decided: int,
        wrong: list[dict[str, Any]],
    ) -> None:
        for options in wrong:
            assert tagged(make_engine().receive(frame(**options)[:decided])) == PROTOCOL_ERROR, options

    def test_spoils_the_message_around_it(
        self, frame: Frame, feed: Feed, decided: int, wrong: list[dict[str, Any]]
    ) -> None:
        wire = frame(BINARY, b"first") + frame(BINARY, b"second", fin=False)
        for options in wrong:
            opcode = options["opcode"] if options["opcode"] > BINARY else CONTINUATION
            assert feed(wire + frame(**{**options, "opcode": opcode})) == ([b"first"], PROTOCOL_ERROR), options


# --- pings and pongs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("opcode", "event"), [(PING, Ping), (PONG, Pong)], ids=["5.5.2 ping", "5.5.3 pong"])
@pytest.mark.parametrize("size", [0, 1, 4, 124, 125])
def test_ping_and_pong_carry_up_to_125_bytes(
    frame: Frame, feed: Feed, opcode: int, event: type[Event], size: int
) -> None:
    assert feed(frame(opcode, BYTES[:size])) == ([], [(event, BYTES[:size])])


def test_pings_and_pongs_keep_their_order(frame: Frame, feed: Feed) -> None:  # section 5.5.2
    wire = b"".join(frame(PONG if i % 3 else PING, b"%d" % i) for i in range(30))
    assert feed(wire) == ([], [(Pong if i % 3 else Ping, b"%d" % i) for i in range(30)])


def test_ping_between_messages_is_not_a_message(frame: Frame, feed: Feed) -> None:  # section 5.5.2
    wire = frame(TEXT, b"one") + frame(PING, b"?") + frame(TEXT, b"two")
    assert feed(wire) == (["one", "two"], [(Ping, b"?")])


def test_ping_is_not_an_event_until_it_is_whole(engine: Engine, frame: Frame) -> None:  # section 5.5.2
    wire = frame(PING, b"are you there")
    for cut in range(len(wire)):
        assert not engine.receive(wire[:cut])
        assert engine.receive(wire[cut:]) == [Ping(b"are you there")]


@pytest.mark.parametrize(("opcode", "event"), [(Opcode.PING, Ping), (Opcode.PONG, Pong)])
@pytest.mark.parametrize("payload", [b"", b"\x00\xff", bytes(125)], ids=len)
def test_other_end_understands_pings_and_pongs(
    engine: Engine, other_end: Engine, tagged: Tagged, opcode: Opcode, event: type[Event], payload: bytes
) -> None:  # sections 5.5.2 and 5.5.3
    assert tagged(other_end.receive(engine.frame(opcode, payload))) == [(event, payload)]


# --- close frames -----------------------------------------------------------------------------------------------------


def test_close_without_a_code_is_1005(frame: Frame, feed: Feed) -> None:  # section 7.1.5
    assert feed(frame(CLOSE)) == ([], [(Close, 1005, "")])


@pytest.mark.parametrize("code", [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_close_has_code_and_reason(frame: Frame, feed: Feed, code: int) -> None:  # sections 5.5.1, 7.1.6 and 7.4
    for reason in ("", "bye", "\u00e4\u20ac\U0001f600", "x" * 123):
        assert feed(frame(CLOSE, code.to_bytes(2, "big") + reason.encode())) == ([], [(Close, code, reason)])


@pytest.mark.parametrize(
    "code",
    [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65535],
    ids=lambda code: f"7.4-{code}",
)
def test_close_code_that_may_not_be_sent_is_1002(frame: Frame, feed: Feed, code: int) -> None:
    for reason in (b"", b"bye", b"no utf-8: \xff"):
        assert feed(frame(CLOSE, code.to_bytes(2, "big") + reason)) == ([], PROTOCOL_ERROR)


@pytest.mark.parametrize("byte", [0x00, 0x03, 0xFF])
def test_close_of_one_byte_is_1002(frame: Frame, feed: Feed, byte: int) -> None:  # section 5.5.1
    assert feed(frame(CLOSE, bytes((byte,)))) == ([], PROTOCOL_ERROR)


def test_close_is_not_an_event_until_it_is_whole(engine: Engine, frame: Frame, tagged: Tagged) -> None:  # section 5.5.1
    wire = frame(CLOSE, b"\x03\xe9bye")
    for at in range(len(wire) - 1):
        assert not engine.receive(wire[at : at + 1])
    assert tagged(engine.receive(wire[-1:])) == [(Close, 1001, "bye")]


def test_close_between_fragments_drops_the_message(frame: Frame, feed: Feed) -> None:  # sections 5.4 and 5.5.1
    wire = frame(TEXT, b"one") + frame(TEXT, b"tw", fin=False) + frame(CLOSE, b"\x03\xe8") + frame(CONTINUATION, b"o")
    assert feed(wire) == (["one"], [(Close, 1000, "")])


ENDS = {
    "5.5.1 close": ({"opcode": CLOSE, "payload": b"\x03\xe8bye"}, (Close, 1000, "bye")),
    "5.5.1 close without a code": ({"opcode": CLOSE}, (Close, 1005, "")),
    "7.1.7 bad close": ({"opcode": CLOSE, "payload": b"\x03\xed"}, (Failure, 1002, ANY)),
    "7.1.7 bad header": ({"opcode": TEXT, "rsv": 4}, (Failure, 1002, ANY)),
    "7.1.7 bad text": ({"opcode": TEXT, "payload": b"\xff"}, (Failure, 1007, ANY)),
    "7.1.7 too big": ({"opcode": BINARY, "size": 1 << 62}, (Failure, 1009, ANY)),
}


@pytest.mark.parametrize(("options", "end"), ENDS.values(), ids=ENDS)
class TestEnd:
    """Nothing that the peer sends after its close frame, or after it broke the protocol, counts."""

    def test_keeps_what_came_before(
        self, frame: Frame, feed: Feed, options: dict[str, Any], end: tuple[Any, ...]
    ) -> None:
        before = frame(TEXT, b"one") + frame(PING, b"?") + frame(BINARY, b"two" * 100)
        assert feed(before + frame(**options)) == (["one", b"two" * 100], [(Ping, b"?"), end])

    def test_takes_nothing_that_comes_after(
        self, engine: Engine, frame: Frame, tagged: Tagged, options: dict[str, Any], end: tuple[Any, ...]
    ) -> None:
        rest = frame(TEXT, b"late") + frame(PING) + frame(CLOSE) + frame(BINARY, bytes(70000)) + frame(TEXT, rsv=7)
        assert tagged(engine.receive(frame(TEXT, b"early") + frame(**options) + rest)) == [end]
        for data in (rest, b"", b"\x00", frame(CLOSE, b"\x03\xe8"), b"GET / HTTP/1.1\r\n\r\n"):
            assert list(engine.receive(data)) == []
        assert list(engine.messages) == ["early"]
        assert not engine.paused

    def test_leaves_no_message_half_done(
        self, engine: Engine, frame: Frame, tagged: Tagged, options: dict[str, Any], end: tuple[Any, ...]
    ) -> None:
        if options["opcode"] < CLOSE:
            options = {**options, "opcode": CONTINUATION}
        rest = frame(CONTINUATION, b"o")
        assert tagged(engine.receive(frame(TEXT, b"tw", fin=False) + frame(**options) + rest)) == [end]
        assert not engine.receive(rest)
        assert not engine.messages

    def test_can_be_answered_with_one_close_frame(
        self,
        engine: Engine,
        other_end: Engine,
        frame: Frame,
        tagged: Tagged,
        options: dict[str, Any],
        end: tuple[Any, ...],
    ) -> None:  # sections 5.5.1 and 7.1.7
        [event] = engine.receive(frame(**options))
        assert isinstance(event, (Close, Failure))
        assert tagged(other_end.receive(engine.close(*event))) == [(Close, event.code, event.reason)]
        assert engine.close(*event) == b""


# --- what is sent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 1012, 1013, 3000, 4403, 4999])
def test_other_end_understands_a_close(
    engine: Engine, other_end: Engine, tagged: Tagged, code: int
) -> None:  # section 5.5.1
    assert tagged(other_end.receive(engine.close(code, "so long \u20ac"))) == [(Close, code, "so long \u20ac")]


def test_close_is_1000_by_default(engine: Engine, other_end: Engine, tagged: Tagged) -> None:  # section 7.4.1
    assert tagged(other_end.receive(engine.close())) == [(Close, 1000, "")]


def test_close_1005_has_no_payload(engine: Engine, other_end: Engine, tagged: Tagged) -> None:  # section 7.1.5
    wire = engine.close(CloseCode.NO_STATUS)
    assert wire[1] & 0x7F == 0
    assert tagged(other_end.receive(wire)) == [(Close, 1005, "")]


def test_close_frame_with_a_long_reason_is_still_a_control_frame(
    engine: Engine, other_end: Engine, tagged: Tagged
) -> None:  # section 5.5
    assert tagged(other_end.receive(engine.close(1000, "\u20ac" * 100))) == [(Close, 1000, "\u20ac" * 41)]


def test_close_frame_is_sent_once(engine: Engine) -> None:  # section 5.5.1
    assert engine.close(1001, "bye") != b""
    assert engine.close(1001, "bye") == b""
    assert engine.close() == b""


@pytest.mark.parametrize("code", [0, 999, 1004, 1006, 1015, 2999, 5000])
def test_close_code_that_may_not_be_sent_is_a_value_error(engine: Engine, code: int) -> None:  # section 7.4
    with pytest.raises(ValueError, match=str(code)):
        engine.close(code)
    assert engine.close() != b"", "the close frame counts as sent, but was not"


def test_peer_is_heard_after_our_close(frame: Frame, feed: Feed) -> None:  # sections 1.4 and 5.5.1
    """What it sent before it saw our close frame is still on its way, and its own close frame ends the handshake."""
    wire = frame(TEXT, b"crossed yours") + frame(PING, b"?") + frame(CLOSE, b"\x03\xe8")
    expected = (["crossed yours"], [(Ping, b"?"), (Close, 1000, "")])
    assert feed(wire, prepare=lambda engine: engine.close()) == expected


def test_both_may_close_at_once(engine: Engine, other_end: Engine, tagged: Tagged) -> None:  # section 7.1.5
    ours, theirs = engine.close(1001, "leaving"), other_end.close(1000, "done")
    assert tagged(engine.receive(theirs)) == [(Close, 1000, "done")]
    assert tagged(other_end.receive(ours)) == [(Close, 1001, "leaving")]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_server_masks_nothing(size: int) -> None:  # section 5.1
    engine = Engine(Role.SERVER)
    for data in (engine.send("x" * size), engine.send(b"x" * size), engine.frame(Opcode.TEXT, b"x" * size)):
        assert data[1] < 128
        assert data.endswith(b"x" * size)
    assert engine.close()[1] < 128


def test_client_masks_each_frame_with_fresh_random_bytes(
    monkeypatch: pytest.MonkeyPatch, frame: Frame, role: Role
) -> None:  # sections 5.1, 5.3 and 10.3
    masks = iter([b"1111", b"2222", b"3333", b"4444", b"5555"])

    def urandom(size: int) -> bytes:
        assert size == 4
        return next(masks)

    monkeypatch.setattr(os, "urandom", urandom)
    engine = Engine(Role.CLIENT)
    sent = [engine.send("Hello"), engine.send(b"Hello"), engine.frame(PING, b"?"), engine.frame(PONG), engine.close()]
    assert sent == [
        frame(TEXT, b"Hello", masked=True, mask=b"1111"),
        frame(BINARY, b"Hello", masked=True, mask=b"2222"),
        frame(PING, b"?", masked=True, mask=b"3333"),
        frame(PONG, masked=True, mask=b"4444"),
        frame(CLOSE, b"\x03\xe8", masked=True, mask=b"5555"),
    ]


def test_fragments_can_be_sent(engine: Engine, other_end: Engine) -> None:  # section 5.4
    wire = (
        engine.frame(Opcode.TEXT, b"Hel", fin=False)
        + engine.frame(Opcode.CONTINUATION, b"", fin=False)
        + engine.frame(Opcode.CONTINUATION, b"lo")
    )
    assert not other_end.receive(wire)
    assert list(other_end.messages) == ["Hello"]


def test_text_that_is_not_valid_unicode_is_not_sent(engine: Engine) -> None:  # section 8.1
    with pytest.raises(UnicodeEncodeError):
        engine.send("\ud83d")

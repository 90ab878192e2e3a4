"""Compression of messages: permessage-deflate, negotiated, sent and received, alone and with the `websockets` library.

Sections are those of RFC 7692.
"""

from __future__ import annotations

import os
import random
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    PerMessageDeflate,
)
from websockets.frames import Frame as TheirFrame
from websockets.frames import Opcode as TheirOpcode
from websockets.protocol import OPEN, Protocol, Side

from django_websocket.protocol.deflate import (
    LARGE,
    MAX_FINAL_BLOCKS,
    PIECE,
    Agreement,
    Allowance,
    Compression,
    Deflate,
    encode_compressed,
    negotiate,
)
from django_websocket.protocol.engine import DEFLATE_OVERHEAD, Close, Engine, Failure, Ping, Role
from django_websocket.protocol.handshake import Extension, parse_extensions

from ..support.frames import BINARY, CLOSE, CONTINUATION, PING, TEXT

Feed = Callable[..., tuple[list[str | bytes], list[tuple[Any, ...]]]]
Frame = Callable[..., bytes]
MakeEngine = Callable[..., Engine]

RSV1, RSV2, RSV3 = 4, 2, 1
KIB, MIB = 1024, 1024 * 1024
HELLO = bytes.fromhex("f248cdc9c90700")  # section 7.2.3.1

TAKEOVER = Agreement(takeover=True, peer_takeover=True)
PLAIN = Agreement()
PROTOCOL_ERROR, INVALID, TOO_BIG = ([(Failure, code, ANY)] for code in (1002, 1007, 1009))


def packed(*payloads: bytes, bits: int = 15, flush: int = zlib.Z_SYNC_FLUSH) -> list[bytes]:
    """Compress messages that share a window as section 7.2.1 says, without the code under test."""
    packer = zlib.compressobj(wbits=-bits)
    return [(packer.compress(payload) + packer.flush(flush))[:-4] for payload in payloads]


def finished(payload: bytes) -> bytes:
    """Return a compressed stream that ends with a final block."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(payload) + packer.flush(zlib.Z_FINISH)


def lines(count: int, seed: int = 0) -> list[bytes]:
    """Return similar messages, each with something new in it."""
    rng = random.Random(seed)
    return [b"A message of %d, with %s." % (number, rng.randbytes(150).hex().encode()) * 3 for number in range(count)]


# --- the handshake (section 7.1) --------------------------------------------------------------------------------------

RESET = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
NAME = "permessage-deflate"
WITH_TAKEOVER = Compression(takeover=True)

OFFERS: list[tuple[str, Compression, str | None, Agreement | None]] = [
    ("", Compression(), None, None),
    ("permessage-foo", Compression(), None, None),
    (NAME, Compression(), RESET, PLAIN),
    (NAME, Compression(threshold=5), RESET, Agreement(threshold=5)),
    (NAME, WITH_TAKEOVER, NAME, TAKEOVER),
    # The offers of browsers.
    (f"{NAME}; client_max_window_bits", Compression(), RESET, PLAIN),
    (f"{NAME}; client_max_window_bits", WITH_TAKEOVER, NAME, TAKEOVER),
    (f"{NAME}, {NAME}; client_max_window_bits", WITH_TAKEOVER, NAME, TAKEOVER),
    # 7.1.1.1 and 7.1.1.2
    (
        f"{NAME}; server_no_context_takeover",
        WITH_TAKEOVER,
        f"{NAME}; server_no_context_takeover",
        Agreement(peer_takeover=True),
    ),
    (
        f"{NAME}; client_no_context_takeover",
        WITH_TAKEOVER,
        f"{NAME}; client_no_context_takeover",
        Agreement(takeover=True),
    ),
    (RESET, WITH_TAKEOVER, RESET, PLAIN),
    # 7.1.2.1: the server's window
    (f"{NAME}; server_max_window_bits=10", Compression(), f"{RESET}; server_max_window_bits=10", Agreement(10)),
    (f'{NAME}; server_max_window_bits="10"', Compression(), f"{RESET}; server_max_window_bits=10", Agreement(10)),
    (f"{NAME}; server_max_window_bits=15", Compression(), f"{RESET}; server_max_window_bits=15", PLAIN),
    (
        f"{NAME}; server_max_window_bits=12",
        Compression(window_bits=9),
        f"{RESET}; server_max_window_bits=9",
        Agreement(9),
    ),
    (NAME, Compression(window_bits=9), f"{RESET}; server_max_window_bits=9", Agreement(9)),
    (f"{NAME}; server_max_window_bits=8", Compression(), None, None),
    # 7.1.2.2: the client's window, which the server may limit only if the client offers that
    (f"{NAME}; client_max_window_bits=8", Compression(), f"{RESET}; client_max_window_bits=8", Agreement(15, False, 8)),
    (
        f"{NAME}; client_max_window_bits=11",
        Compression(),
        f"{RESET}; client_max_window_bits=11",
        Agreement(15, False, 11),
    ),
    (
        f"{NAME}; client_max_window_bits",
        Compression(window_bits=9),
        f"{RESET}; server_max_window_bits=9; client_max_window_bits=9",
        Agreement(9, False, 9),
    ),
    # The server takes the first offer that it can meet.
    (
        f"{NAME}; server_max_window_bits=8, foo, {NAME}; server_max_window_bits=9",
        Compression(),
        f"{RESET}; server_max_window_bits=9",
        Agreement(9),
    ),
    (f"{NAME}; server_max_window_bits=11, {NAME}", Compression(), f"{RESET}; server_max_window_bits=11", Agreement(11)),
]

WRONG = [
    "unknown",
    "server_no_context_takeover=1",
    "client_no_context_takeover=15",
    "server_no_context_takeover; server_no_context_takeover",
    "client_max_window_bits=10; client_max_window_bits=10",
    "client_max_window_bits=10; client_max_window_bits",
    "server_max_window_bits",
    *(
        f"{end}_max_window_bits={value}"
        for end in ("server", "client")
        for value in ("7", "16", "09", "0", "1", "x", "100")
    ),
]


@pytest.mark.parametrize(("header", "wanted", "answer", "agreement"), OFFERS)
def test_server_answers_an_offer(
    header: str, wanted: Compression, answer: str | None, agreement: Agreement | None
) -> None:
    assert negotiate(parse_extensions(header), wanted) == (None if answer is None else (answer, agreement))


@pytest.mark.parametrize("parameters", WRONG)
def test_server_declines_a_malformed_offer(parameters: str) -> None:  # section 7.1
    assert negotiate(parse_extensions(f"{NAME}; {parameters}"), Compression()) is None
    assert negotiate(parse_extensions(f"{NAME}; {parameters}, {NAME}"), Compression()) == (RESET, PLAIN)


@pytest.mark.parametrize("takeover", [True, False])
@pytest.mark.parametrize("bits", [9, 12, 15])
@pytest.mark.parametrize("their_reset", [True, False])
@pytest.mark.parametrize("their_bits", [None, 9, 14])
def test_server_agrees_with_websockets(takeover: bool, bits: int, their_reset: bool, their_bits: int | None) -> None:
    wanted = Compression(takeover, bits)

    client = ClientPerMessageDeflateFactory(their_reset, their_reset, their_bits, their_bits or True)
    answer = negotiate([Extension("permessage-deflate", client.get_request_params())], wanted)
    assert answer is not None
    (chosen,) = parse_extensions(answer[0])
    assert agreement_of(client.process_response_params(chosen.parameters, [])) == turned(answer[1])


def agreement_of(theirs: PerMessageDeflate) -> Agreement:
    return Agreement(
        theirs.local_max_window_bits,
        not theirs.local_no_context_takeover,
        theirs.remote_max_window_bits,
        not theirs.remote_no_context_takeover,
    )


def turned(agreement: Agreement) -> Agreement:
    """Return the agreement as the other end sees it."""
    bits, takeover = agreement.window_bits, agreement.takeover
    return Agreement(agreement.peer_window_bits, agreement.peer_takeover, bits, takeover, agreement.threshold)


# --- messages received (section 7.2.2) --------------------------------------------------------------------------------


EXAMPLES = {
    "7.2.3.1": HELLO,
    "7.2.3.3 uncompressed block": bytes.fromhex("000500faff48656c6c6f00"),
    "7.2.3.4 final block": bytes.fromhex("f348cdc9c9070000"),
    "7.2.3.5 two blocks": bytes.fromhex("f24805000000ffffcac9c90700"),
    "uncompressed final block": bytes.fromhex("010500faff48656c6c6f00"),
    "two final blocks": finished(b"Hel") + finished(b"lo") + b"\0",
    "final block and another one": finished(b"Hel") + packed(b"lo")[0],
}


class TestExamples:
    @pytest.mark.parametrize("payload", EXAMPLES.values(), ids=EXAMPLES)
    @pytest.mark.parametrize("agreement", [PLAIN, TAKEOVER], ids=["reset", "takeover"])
    def test_one_frame(self, frame: Frame, feed: Feed, payload: bytes, agreement: Agreement) -> None:
        wire = frame(TEXT, payload, rsv=RSV1) + frame(BINARY, payload, rsv=RSV1)
        assert feed(wire, agreement=agreement) == (["Hello", b"Hello"], [])

    def test_two_frames(self, frame: Frame, feed: Feed) -> None:  # section 7.2.3.1
        wire = frame(TEXT, HELLO[:3], fin=False, rsv=RSV1) + frame(CONTINUATION, HELLO[3:])
        assert feed(wire, agreement=PLAIN) == (["Hello"], [])

    def test_window_is_shared(self, frame: Frame, feed: Feed) -> None:  # section 7.2.3.2
        wire = frame(TEXT, HELLO, rsv=RSV1) + frame(TEXT, bytes.fromhex("f200110000"), rsv=RSV1)
        assert feed(wire, agreement=TAKEOVER) == (["Hello", "Hello"], [])
        assert feed(wire, agreement=PLAIN) == (["Hello"], INVALID)

    def test_nothing_at_all(self, frame: Frame, feed: Feed) -> None:  # section 7.2.3.6
        wire = frame(TEXT, b"\0", rsv=RSV1) + frame(BINARY, b"\0", rsv=RSV1) + frame(TEXT, HELLO, rsv=RSV1)
        assert feed(wire, agreement=TAKEOVER) == (["", b"", "Hello"], [])


class TestFragments:
    def test_control_frames_may_come_between(self, frame: Frame, feed: Feed) -> None:
        payload = packed("Grüße".encode() * 100)[0]
        wire = frame(TEXT, payload[:1], fin=False, rsv=RSV1)
        for at in range(1, len(payload)):
            wire += frame(PING, b"%d" % at) + frame(CONTINUATION, payload[at : at + 1], fin=False)
        wire += frame(PING, b"last") + frame(CONTINUATION) + frame(TEXT, b"plain")
        pings = [(Ping, b"%d" % at) for at in range(1, len(payload))]
        assert feed(wire, agreement=PLAIN) == (["Grüße" * 100, "plain"], [*pings, (Ping, b"last")])

    def test_empty_fragments_may_come_between(self, frame: Frame, feed: Feed) -> None:
        wire = frame(BINARY, fin=False, rsv=RSV1) + frame(CONTINUATION, fin=False) + frame(CONTINUATION, HELLO)
        assert feed(wire * 2, agreement=PLAIN) == ([b"Hello"] * 2, [])

    def test_client_may_close_in_the_middle(self, frame: Frame, feed: Feed) -> None:
        wire = frame(TEXT, HELLO[:3], fin=False, rsv=RSV1) + frame(CLOSE, b"\x03\xe8")
        assert feed(wire, agreement=TAKEOVER) == ([], [(Close, 1000, "")])


class TestWindows:
    @pytest.mark.parametrize("bits", range(9, 16))
    @pytest.mark.parametrize("takeover", [True, False], ids=["takeover", "reset"])
    def test_messages_with_and_without_compression_alternate(
        self, frame: Frame, feed: Feed, bits: int, takeover: bool
    ) -> None:
        messages = lines(8)
        payloads = packed(*messages, bits=bits) if takeover else [packed(text, bits=bits)[0] for text in messages]
        wire = b"".join(frame(BINARY, payload, rsv=RSV1) + frame(TEXT, b"between") for payload in payloads)
        expected = [part for message in messages for part in (message, "between")]
        agreement = Agreement(peer_window_bits=bits, peer_takeover=takeover)
        assert feed(wire, agreement=agreement) == (expected, [])

    @pytest.mark.parametrize("bits", range(9, 15))
    def test_reference_to_bytes_beyond_the_window_is_1007(self, frame: Frame, feed: Feed, bits: int) -> None:
        long = b"begin" + random.Random(1).randbytes(1000 + (1 << bits))
        first, second = packed(long, b"begin")
        wire = frame(BINARY, first, rsv=RSV1) + frame(BINARY, second, rsv=RSV1)
        assert feed(wire, agreement=Agreement(peer_window_bits=15, peer_takeover=True)) == ([long, b"begin"], [])
        assert feed(wire, agreement=Agreement(peer_window_bits=bits, peer_takeover=True)) == ([long], INVALID)


# --- what a peer must not do ------------------------------------------------------------------------------------------


class TestReservedBits:
    """Section 6: RSV1 is set in the first frame of a compressed message, and nowhere else."""

    @pytest.mark.parametrize("opcode", [TEXT, BINARY, CONTINUATION, CLOSE, PING])
    def test_without_agreement(self, frame: Frame, feed: Feed, opcode: int) -> None:
        assert feed(frame(opcode, HELLO, rsv=RSV1)) == ([], PROTOCOL_ERROR)

    @pytest.mark.parametrize("opcode", [3, 7, CLOSE, PING, 10, 11])
    def test_in_a_control_frame(self, frame: Frame, feed: Feed, opcode: int) -> None:
        assert feed(frame(opcode, b"", rsv=RSV1), agreement=PLAIN) == ([], PROTOCOL_ERROR)

    @pytest.mark.parametrize("rsv", [0, RSV1])
    def test_in_a_continuation(self, frame: Frame, feed: Feed, rsv: int) -> None:
        wire = frame(BINARY, HELLO[:3], fin=False, rsv=rsv) + frame(CONTINUATION, HELLO[3:], rsv=RSV1)
        assert feed(wire, agreement=PLAIN) == ([], PROTOCOL_ERROR)

    @pytest.mark.parametrize("rsv", [RSV2, RSV3, RSV1 | RSV2, RSV1 | RSV3, 7])
    @pytest.mark.parametrize("opcode", [TEXT, BINARY, PING])
    def test_rsv2_and_rsv3(self, frame: Frame, feed: Feed, rsv: int, opcode: int) -> None:
        assert feed(frame(opcode, HELLO, rsv=rsv), agreement=PLAIN) == ([], PROTOCOL_ERROR)

    def test_inside_another_message(self, frame: Frame, feed: Feed) -> None:
        wire = frame(TEXT, HELLO[:3], fin=False, rsv=RSV1) + frame(TEXT, HELLO, rsv=RSV1)
        assert feed(wire, agreement=PLAIN) == ([], PROTOCOL_ERROR)

    def test_header_is_enough(self, make_engine: MakeEngine, frame: Frame) -> None:
        (failure,) = make_engine().receive(frame(TEXT, HELLO, rsv=RSV1)[:2])
        assert isinstance(failure, Failure) and failure.code == 1002


BROKEN = {
    "reserved kind of block": b"\x07",
    "lengths that differ": b"\x00\x05\x00\xfa\xfeHello\x00",
    "distance before the beginning": bytes.fromhex("f200110000"),
    "no bytes": b"",
    "not deflate": b"hello, hello",
    "zlib's header": zlib.compress(b"Hello")[:-4],
    "final block without what must follow": finished(b"Hello"),
    "half": packed(b"Hello, Hello, Hello, everybody")[0][:12],
    "half a stored block": b"\x00\x05\x00\xfa\xffHe",
    "half a stored block, final": b"\x01\x05\x00\xfa\xff",
    "half a final block": finished(b"Hello")[:4],
    "half behind a final block": finished(b"Hello") + HELLO[:4],
}


@pytest.mark.parametrize("agreement", [PLAIN, TAKEOVER], ids=["reset", "takeover"])
class TestBrokenData:
    @pytest.mark.parametrize("payload", BROKEN.values(), ids=BROKEN)
    def test_is_1007(self, frame: Frame, feed: Feed, payload: bytes, agreement: Agreement) -> None:
        assert feed(frame(BINARY, payload, rsv=RSV1), agreement=agreement) == ([], INVALID)

    def test_message_that_breaks_off_anywhere_is_1007(self, frame: Frame, feed: Feed, agreement: Agreement) -> None:
        payload = packed(lines(1)[0])[0]
        for size in range(len(payload) - 1):
            assert feed(frame(BINARY, payload[:size], rsv=RSV1), agreement=agreement) == ([], INVALID)

    def test_fails_before_its_end(self, make_engine: MakeEngine, frame: Frame, agreement: Agreement) -> None:
        (failure,) = make_engine(agreement=agreement).receive(frame(BINARY, b"\x07" + bytes(500), rsv=RSV1)[:10])
        assert isinstance(failure, Failure) and failure.code == 1007

    @pytest.mark.parametrize("text", [b"\xff", b"a\xc3", b"\xed\xa0\x80", "ä".encode() * 40 + b"\x80" + b"a" * 100])
    def test_inflated_text_must_be_utf8(
        self, frame: Frame, feed: Feed, agreement: Agreement, text: bytes
    ) -> None:  # RFC 6455, section 8.1
        assert feed(frame(TEXT, packed(text)[0], rsv=RSV1), agreement=agreement) == ([], INVALID)
        assert feed(frame(BINARY, packed(text)[0], rsv=RSV1), agreement=agreement) == ([text], [])

    def test_text_that_is_not_utf8_fails_before_its_end(
        self, make_engine: MakeEngine, frame: Frame, agreement: Agreement
    ) -> None:
        payload = packed(b"a\xff" + os.urandom(100), flush=zlib.Z_FULL_FLUSH)[0]
        (failure,) = make_engine(agreement=agreement).receive(frame(TEXT, payload, rsv=RSV1, fin=False)[:-5])
        assert isinstance(failure, Failure) and failure.code == 1007


# --- limits -----------------------------------------------------------------------------------------------------------


class TestSize:
    @pytest.mark.parametrize("limit", [0, 1, 10, 126, 3000])
    def test_inflated_message_may_be_exactly_as_large_as_the_limit(self, frame: Frame, feed: Feed, limit: int) -> None:
        fits = frame(TEXT, packed(b"x" * limit)[0], rsv=RSV1)
        too_big = frame(TEXT, packed(b"x" * (limit + 1))[0], rsv=RSV1)
        assert feed(fits + too_big, max_message_size=limit, agreement=PLAIN) == (["x" * limit], TOO_BIG)

    def test_sizes_of_inflated_fragments_are_added_up(self, frame: Frame, feed: Feed) -> None:
        payload = packed(b"x" * 5001)[0]
        wire = frame(TEXT, payload[:5], fin=False, rsv=RSV1) + frame(CONTINUATION, payload[5:])
        assert feed(wire, max_message_size=5000, agreement=PLAIN) == ([], TOO_BIG)
        assert feed(wire, max_message_size=5001, agreement=PLAIN) == (["x" * 5001], [])

    def test_first_error_in_a_message_decides_the_close_code(self, frame: Frame, feed: Feed) -> None:
        for payload, events in (
            (b"\xff" + b"x" * 200, INVALID),
            (b"x" * 99 + b"\xff" + b"x" * 100, INVALID),
            (b"x" * 100 + b"\xff", TOO_BIG),
            (b"x" * 99 + "ä".encode(), TOO_BIG),
        ):
            assert feed(frame(TEXT, packed(payload)[0], rsv=RSV1), max_message_size=100, agreement=PLAIN) == (
                [],
                events,
            )

    def test_data_that_cannot_be_compressed_may_be_larger_than_the_limit(self, frame: Frame, feed: Feed) -> None:
        message = random.Random(2).randbytes(3000)
        packer = zlib.compressobj(level=0, wbits=-9, memLevel=1)
        payload = (packer.compress(message) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
        assert len(payload) > 3000
        wire = frame(BINARY, payload[:-1], fin=False, rsv=RSV1) + frame(CONTINUATION, payload[-1:])
        assert feed(wire * 30, max_message_size=3000, agreement=PLAIN) == ([message] * 30, [])

    @pytest.mark.parametrize("fragments", [1, 2, 3])
    def test_bytes_that_inflate_to_nothing_count(self, make_engine: MakeEngine, frame: Frame, fragments: int) -> None:
        limit = 7 * KIB
        room = limit + KIB + DEFLATE_OVERHEAD
        empty = b"\x00\x00\x00\xff\xff"  # a block without content
        for size, fails in ((room, False), (room + 1, True)):
            payload = (empty * (size // 5 + 1))[:size]
            cuts = [size * part // fragments for part in range(fragments + 1)]
            wire = b"".join(
                frame(
                    CONTINUATION if part else BINARY,
                    payload[cuts[part] : cuts[part + 1]],
                    rsv=0 if part else RSV1,
                    fin=False,
                )
                for part in range(fragments)
            )
            engine = make_engine(max_message_size=limit, agreement=PLAIN)
            assert [event.code for event in engine.receive(wire) if isinstance(event, Failure)] == [1009] * fails

    def test_length_is_judged_by_the_header(self, make_engine: MakeEngine, frame: Frame) -> None:
        (failure,) = make_engine(agreement=PLAIN).receive(frame(TEXT, size=1 << 62, rsv=RSV1)[:10])
        assert isinstance(failure, Failure) and failure.code == 1009

    def test_uncompressed_messages_have_the_limit_without_slack(self, frame: Frame, feed: Feed) -> None:
        wire = frame(TEXT, HELLO[:3], fin=False, rsv=RSV1) + frame(CONTINUATION, HELLO[3:]) + frame(TEXT, b"x" * 101)
        assert feed(wire, max_message_size=100, agreement=PLAIN) == (["Hello"], TOO_BIG)


class TestBombs:
    @pytest.mark.parametrize("agreement", [PLAIN, TAKEOVER], ids=["reset", "takeover"])
    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_bomb_is_1009_and_hardly_inflated(
        self,
        make_engine: MakeEngine,
        frame: Frame,
        allocated: Callable[[], int],
        opcode: int,
        agreement: Agreement,
    ) -> None:
        wire = frame(opcode, packed(bytes(100 * MIB))[0], rsv=RSV1)
        assert len(wire) < 128 * KIB
        engine = make_engine(max_message_size=64 * KIB, agreement=agreement)
        allocated()
        begin = allocated()
        (failure,) = engine.receive(wire)
        assert isinstance(failure, Failure) and failure.code == 1009
        assert allocated() - begin < 768 * KIB

    def test_many_bombs_wait_until_there_is_room(
        self, make_engine: MakeEngine, frame: Frame, allocated: Callable[[], int]
    ) -> None:
        wire = frame(BINARY, packed(bytes(MIB))[0], rsv=RSV1) * 60
        engine = make_engine(agreement=PLAIN)
        allocated()
        begin = allocated()
        assert not engine.receive(wire)
        for left in range(60, 0, -1):
            assert engine.paused is (left > 1)
            assert [len(message) for message in engine.messages] == [MIB]
            engine.messages.clear()
            assert not engine.receive(b"")
        assert allocated() - begin < 6 * MIB

    def test_engine_that_drops_messages_does_not_inflate_them(
        self, make_engine: MakeEngine, frame: Frame, allocated: Callable[[], int]
    ) -> None:
        bomb = packed(bytes(MIB))[0]
        engine = make_engine(agreement=TAKEOVER)
        assert not engine.receive(frame(TEXT, packed("ä".encode())[0][:-2], fin=False, rsv=RSV1))
        engine.dropping = True
        allocated()
        begin = allocated()
        assert not engine.receive(frame(CONTINUATION, bomb) + frame(BINARY, bomb, rsv=RSV1) * 99 + frame(BINARY, b"x"))
        assert list(engine.messages) == [b"x"]
        assert allocated() - begin < 512 * KIB
        assert allocated() < begin - 4 * KIB  # without the window that it had

    def test_final_block_does_not_reset_the_limit(self) -> None:
        unpacker = Deflate(PLAIN)
        unpacker.begin()
        assert len(unpacker.inflate(finished(b"x" * 10) + finished(b"x" * 1000), 50)) == 51

    @pytest.mark.parametrize("blocks", [MAX_FINAL_BLOCKS, MAX_FINAL_BLOCKS + 1])
    def test_final_blocks_are_counted(self, frame: Frame, feed: Feed, blocks: int) -> None:
        wire = frame(BINARY, b"\x03\x00" * blocks + HELLO, rsv=RSV1)
        expected = ([b"Hello"] * 2, []) if blocks == MAX_FINAL_BLOCKS else ([], TOO_BIG)
        assert feed(wire * 2, agreement=TAKEOVER) == expected

    @pytest.mark.parametrize("payload", [b"\x03\x00" * 500 * KIB, b"\x00\x00\x00\xff\xff" * 200 * KIB])
    def test_blocks_without_content_cost_little(self, make_engine: MakeEngine, frame: Frame, payload: bytes) -> None:
        engine = make_engine(agreement=PLAIN)
        begin = time.process_time()
        engine.receive(frame(BINARY, payload, rsv=RSV1))
        assert time.process_time() - begin < 1


def test_idle_connection_keeps_no_window(make_engine: MakeEngine, frame: Frame, allocated: Callable[[], int]) -> None:
    wire = frame(BINARY, packed(b"Hello, Hello" * 1000)[0], rsv=RSV1)

    def kept(agreement: Agreement) -> int:
        engines = [make_engine(agreement=agreement) for _ in range(20)]
        for engine in engines:
            engine.receive(wire)
            engine.messages.clear()
            assert len(engine.send("Hello, " * 1000)) < 1000
        allocated()
        return allocated() // len(engines)

    assert kept(PLAIN) < 4 * KIB
    assert kept(TAKEOVER) > 100 * KIB


@pytest.mark.parametrize("end", [(CLOSE, b""), (BINARY, b"\x07")])
def test_connection_that_has_ended_keeps_no_window(
    make_engine: MakeEngine, frame: Frame, allocated: Callable[[], int], end: tuple[int, bytes]
) -> None:
    opcode, payload = end
    wire = frame(BINARY, packed(lines(1)[0])[0], rsv=RSV1) + frame(opcode, payload, rsv=0 if opcode == CLOSE else RSV1)
    assert len(make_engine(agreement=TAKEOVER).receive(wire)) == 1  # coverage takes memory for lines that it sees first
    allocated()
    before = allocated()
    engines = [make_engine(agreement=TAKEOVER) for _ in range(20)]
    for engine in engines:
        assert len(engine.receive(wire)) == 1
        engine.messages.clear()
    allocated()
    assert allocated() - before < len(engines) * 4 * KIB


# --- messages sent (section 7.2.1) ------------------------------------------------------------------------------------


class Theirs:
    """The `websockets` library as the other end of an engine with this `agreement`."""

    def __init__(self, role: Role, agreement: Agreement) -> None:
        self.protocol = Protocol(Side.CLIENT if role is Role.SERVER else Side.SERVER, state=OPEN)
        self.protocol.extensions = [
            PerMessageDeflate(
                not agreement.takeover, not agreement.peer_takeover, agreement.window_bits, agreement.peer_window_bits
            )
        ]

    def receive(self, data: bytes) -> list[str | bytes]:
        """Return the messages in `data`, each of which is one frame."""
        self.protocol.receive_data(data)
        assert self.protocol.parser_exc is None
        messages: list[str | bytes] = []
        for event in self.protocol.events_received():
            assert isinstance(event, TheirFrame) and event.fin
            payload = bytes(event.data)
            messages.append(payload.decode() if event.opcode is TheirOpcode.TEXT else payload)
        return messages


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("takeover", [True, False], ids=["takeover", "reset"])
class TestAgainstWebsockets:
    def test_messages_that_we_send(self, role: Role, bits: int, takeover: bool) -> None:
        agreement = Agreement(bits, takeover, threshold=10)
        ours, theirs = Engine(role, agreement=agreement), Theirs(role, agreement)
        noise = random.Random(3).randbytes(5000)
        for line in lines(20):
            for message in (line, line.decode() * 20, "", "short", "ä" * 9, b"", noise, noise * 2, bytes(70000)):
                assert theirs.receive(ours.send(message)) == [message]

    def test_frames_for_many_may_come_between(self, bits: int, takeover: bool) -> None:
        agreement = Agreement(bits, takeover)
        ours, theirs = Engine(Role.SERVER, agreement=agreement), Theirs(Role.SERVER, agreement)
        for line in lines(10):
            assert theirs.receive(ours.send(line * 4)) == [line * 4]
            for smaller in range(9, bits + 1):
                assert theirs.receive(encode_compressed(line * 5, smaller, 100)) == [line * 5]
            ours.forget_sent()

    def test_messages_that_the_library_sends(self, role: Role, bits: int, takeover: bool) -> None:
        agreement = Agreement(peer_window_bits=bits, peer_takeover=takeover)
        ours, theirs = Engine(role, agreement=agreement), Theirs(role, agreement)
        for line in lines(10):
            for message in (line, b"", b"", line * 30, random.Random(line).randbytes(3000)):
                theirs.protocol.send_binary(message)
                theirs.protocol.send_text(message[:10].hex().encode(), fin=False)
                theirs.protocol.send_continuation(b"and the rest", fin=True)
                for part in theirs.protocol.data_to_send():
                    assert not ours.receive(part)
                assert list(ours.messages) == [message, f"{message[:10].hex()}and the rest"]
                ours.messages.clear()


class TestSending:
    def test_our_engine_understands_its_own_messages(self, make_engine: MakeEngine, role: Role) -> None:
        other = Engine(Role.CLIENT if role is Role.SERVER else Role.SERVER, agreement=TAKEOVER)
        engine = make_engine(agreement=TAKEOVER)
        for line in lines(20):
            assert not other.receive(engine.send(line.decode() * 3))
            assert not engine.receive(other.send(other.messages.pop()))
            assert engine.messages.pop() == line.decode() * 3

    def test_takeover_makes_similar_messages_smaller(self, make_engine: MakeEngine) -> None:
        text = lines(1)[0]
        engine = make_engine(agreement=Agreement(takeover=True, threshold=0))
        first, second = engine.send(text), engine.send(text)
        assert len(second) * 4 < len(first)
        engine.forget_sent()
        assert len(engine.send(text)) == len(first)

    @pytest.mark.parametrize("takeover", [True, False])
    def test_messages_are_compressed_from_the_threshold_on(
        self, make_engine: MakeEngine, role: Role, takeover: bool
    ) -> None:
        engine = make_engine(agreement=Agreement(takeover=takeover, threshold=100))
        for message in ("x" * 99, b"x" * 99, "x", "", "ä" * 49):
            assert engine.send(message)[0] & 0x40 == 0
            assert encode_compressed(message, 15, 100)[0] & 0x40 == 0
        for message in ("x" * 100, b"x" * 100, "ä" * 50, "\U0001f600" * 25):
            assert engine.send(message)[0] & 0x40
            assert encode_compressed(message, 15, 100)[0] & 0x40

    @pytest.mark.parametrize("takeover", [True, False])
    def test_message_that_does_not_shrink_is_sent_uncompressed(self, make_engine: MakeEngine, takeover: bool) -> None:
        noise = random.Random(4).randbytes(2000)
        engine = make_engine(agreement=Agreement(takeover=takeover))
        assert engine.send(noise)[0] == 0x82
        assert encode_compressed(noise, 15, 0)[0] == 0x82
        assert make_engine(agreement=Agreement(takeover=takeover, threshold=0)).send("")[0] == 0x81

    def test_nothing_is_compressed_without_agreement(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        engine.forget_sent()
        assert engine.send("x" * 10000)[0] == 0x81


# --- time for compression ---------------------------------------------------------------------------------------------


class Pieces(Allowance):
    """Has time for `count` pieces of each message, and for no message if that is -1."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._left = 0

    def begin(self, size: int) -> bool:
        self._left = self.count
        return self.count >= 0

    def go_on(self) -> bool:
        self._left -= 1
        return self._left >= 0


KINDS = st.sampled_from(["own", "no time", "given up", "for many"])
CONTENTS = st.tuples(st.sampled_from([40, 150, 3000, 2 * PIECE + 5, LARGE]), st.integers(0, 3), st.booleans())


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(9, 15), takeover=st.booleans(), messages=st.lists(st.tuples(KINDS, CONTENTS, st.integers(9, 15)))
)
def test_messages_compressed_or_not_and_for_one_or_many_may_follow_in_any_order(
    bits: int, takeover: bool, messages: list[tuple[str, tuple[int, int, bool], int]]
) -> None:
    agreement = Agreement(bits, takeover, threshold=100)
    allowance = Pieces(sys.maxsize)
    ours, theirs = Engine(Role.SERVER, agreement=agreement, allowance=allowance), Theirs(Role.SERVER, agreement)
    for kind, (size, seed, is_text), many_bits in messages:
        content = (lines(1, seed)[0] * (size // 100 + 1))[:size]
        message = content.decode() if is_text else content
        allowance.count = {"no time": -1, "given up": 0}.get(kind, sys.maxsize)
        if kind == "for many":
            frame = encode_compressed(message, min(bits, many_bits), 100, allowance)
            ours.forget_sent()
        else:
            frame = ours.send(message)
        in_time = kind == "own" or kind == "for many" or (kind == "given up" and size <= PIECE)
        assert bool(frame[0] & 0x40) is (size >= 100 and in_time)
        assert theirs.receive(frame) == [message]


@pytest.mark.parametrize("takeover", [True, False])
def test_message_is_compressed_piece_by_piece_as_long_as_there_is_time(role: Role, takeover: bool) -> None:
    message = bytes(3 * PIECE)
    allowance = Pieces(1)
    engine = Engine(role, agreement=Agreement(takeover=takeover), allowance=allowance)
    assert engine.send(message)[0] == 0x82
    assert encode_compressed(message, 15, 0, allowance)[0] == 0x82
    allowance.count = 2
    assert engine.send(message)[0] == 0xC2
    assert encode_compressed(message, 15, 0, allowance)[0] == 0xC2


@pytest.mark.parametrize(("threshold", "size"), [(0, 0), (1, 1), (1023, 256), (1024, 256), (1025, 257)])
def test_message_below_some_length_is_never_compressed_whatever_its_characters(threshold: int, size: int) -> None:
    agreement = Agreement(threshold=threshold)
    assert agreement.plain_below == size
    assert Engine(Role.SERVER, agreement=agreement).send("\U0001f600" * max(0, size - 1))[0] & 0x40 == 0


@pytest.mark.parametrize(
    ("agreement", "size"),
    [
        (Agreement(), 0),
        (Agreement(takeover=True), 32768),
        (Agreement(window_bits=9, takeover=True), 1024),
        (Agreement(window_bits=9, takeover=True, threshold=0), 512),
    ],
)
def test_with_a_kept_window_only_messages_that_fill_it_are_compressed_for_many(agreement: Agreement, size: int) -> None:
    assert agreement.is_shared(size)
    assert not size or not agreement.is_shared(size - 1)

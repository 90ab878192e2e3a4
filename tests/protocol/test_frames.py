"""Frames and close payloads as they go onto the wire. Sections are those of RFC 6455."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import pytest

from django_websocket import compat
from django_websocket.protocol import frames
from django_websocket.protocol.frames import (
    CloseCode,
    Opcode,
    check_close,
    encode_close,
    encode_frame,
    encode_message,
    is_close_code,
)

MASK = bytes.fromhex("37fa213d")

# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"),
    [("CONTINUATION", 0), ("TEXT", 1), ("BINARY", 2), ("CLOSE", 8), ("PING", 9), ("PONG", 10)],
)
def test_opcodes_are_those_of_section_5_2(name: str, number: int) -> None:
    assert Opcode[name] == number


def test_there_is_no_other_opcode() -> None:  # section 5.2
    assert [int(opcode) for opcode in Opcode] == [0, 1, 2, 8, 9, 10]


# Section 5.2, payload length: the shortest of the three forms.
LENGTHS = [
    (0, "00"),
    (1, "01"),
    (125, "7d"),
    (126, "7e007e"),
    (127, "7e007f"),
    (255, "7e00ff"),
    (256, "7e0100"),
    (65535, "7effff"),
    (65536, "7f0000000000010000"),
    (100000, "7f00000000000186a0"),
]


@pytest.mark.parametrize(("size", "length"), LENGTHS, ids=[f"5.2-{size}" for size, _ in LENGTHS])
class TestSizes:
    def test_length_has_its_shortest_form(self, size: int, length: str) -> None:
        assert encode_frame(Opcode.BINARY, bytes(size)) == b"\x82" + bytes.fromhex(length) + bytes(size)

    def test_masked_frame_has_mask_bit_and_key_and_masked_payload(self, size: int, length: str) -> None:
        payload = bytes(range(256)) * (size // 256 + 1)
        payload = payload[:size]
        head = bytearray(b"\x82" + bytes.fromhex(length))
        head[1] |= 0x80
        masked = bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload))  # section 5.3
        assert encode_frame(Opcode.BINARY, payload, mask=MASK) == bytes(head) + MASK + masked

    def test_text_message_is_one_unmasked_text_frame(self, size: int, length: str) -> None:
        assert encode_message("x" * size) == b"\x81" + bytes.fromhex(length) + b"x" * size

    def test_binary_message_is_one_unmasked_binary_frame(self, size: int, length: str) -> None:
        assert encode_message(b"x" * size) == b"\x82" + bytes.fromhex(length) + b"x" * size


@pytest.mark.parametrize("opcode", Opcode)
@pytest.mark.parametrize("fin", [True, False])
def test_first_byte_is_fin_and_opcode_and_no_reserved_bit(opcode: Opcode, fin: bool) -> None:  # section 5.2
    assert encode_frame(opcode, b"", fin=fin) == bytes((opcode | 0x80 if fin else opcode, 0))


@pytest.mark.parametrize(
    ("text", "length"),
    [("\u00e9" * 62, "7c"), ("\u00e9" * 63, "7e007e"), ("\U0001f600" * 16384, "7f0000000000010000")],
    ids=["5.2-124-bytes", "5.2-126-bytes", "5.2-65536-bytes"],
)
def test_length_of_text_counts_its_bytes(text: str, length: str) -> None:
    assert encode_message(text) == b"\x81" + bytes.fromhex(length) + text.encode()


def test_text_that_is_not_valid_unicode_is_not_sent() -> None:  # section 8.1: a text frame is UTF-8
    with pytest.raises(UnicodeEncodeError):
        encode_message("\ud800")


@pytest.mark.parametrize(
    ("encoded", "wire"),
    [
        pytest.param(encode_message("Hello"), "810548656c6c6f", id="unmasked text"),
        pytest.param(encode_frame(1, b"Hello", mask=MASK), "818537fa213d7f9f4d5158", id="masked text"),
        pytest.param(encode_frame(1, b"Hel", fin=False), "010348656c", id="first fragment"),
        pytest.param(encode_frame(0, b"lo"), "80026c6f", id="last fragment"),
        pytest.param(encode_frame(9, b"Hello"), "890548656c6c6f", id="ping"),
        pytest.param(encode_frame(10, b"Hello", mask=MASK), "8a8537fa213d7f9f4d5158", id="masked pong"),
        pytest.param(encode_message(bytes(256)), "827e0100" + "00" * 256, id="256 bytes"),
        pytest.param(encode_message(bytes(65536)), "827f0000000000010000" + "00" * 65536, id="64 KiB"),
    ],
)
def test_examples_of_section_5_7(encoded: bytes, wire: str) -> None:
    assert encoded == bytes.fromhex(wire)


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["in C", "in Python"])
def apply_mask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """The C routine that the package prefers, and the Python one that it uses where the other could not be built."""
    if request.param == "in C":
        return frames.apply_mask
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    spec = importlib.util.spec_from_file_location("frames_without_c", frames.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.apply_mask is compat.apply_mask
    routine: Callable[..., bytes] = module.apply_mask
    return routine


def test_mask_is_applied_to_each_byte_in_turn(apply_mask: Callable[..., bytes]) -> None:  # section 5.3
    for size in [*range(70), 125, 126, 127, 65535, 65536, 100000]:
        payload = (bytes(range(256)) * (size // 256 + 1))[:size]
        masked = bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload))
        assert apply_mask(payload, MASK) == masked
        assert apply_mask(memoryview(b"..." + masked)[3:], MASK) == payload


def test_mask_of_zeros_changes_nothing(apply_mask: Callable[..., bytes]) -> None:  # section 5.3: any 32 bits are a key
    assert apply_mask(b"Hello", bytes(4)) == b"Hello"


@pytest.mark.parametrize("mask", [b"", b"abc", b"abcde"])
def test_mask_has_four_bytes(mask: bytes) -> None:  # section 5.2
    with pytest.raises(ValueError):
        encode_frame(Opcode.TEXT, b"Hello", mask=mask)


# --- close frames -----------------------------------------------------------------------------------------------------

# Section 7.4.1, and 1012 to 1014 of the IANA registry; section 7.4.2: anybody may use 3000 to 4999.
VALID = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}


def test_close_codes_are_those_of_section_7_4() -> None:
    assert {code for code in range(65536) if is_close_code(code)} == VALID


@pytest.mark.parametrize("code", [-1, 65536 + 1000])
def test_close_code_has_two_bytes(code: int) -> None:  # section 5.5.1
    assert not is_close_code(code)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("NORMAL", 1000),
        ("GOING_AWAY", 1001),
        ("PROTOCOL_ERROR", 1002),
        ("UNSUPPORTED_DATA", 1003),
        ("NO_STATUS", 1005),
        ("ABNORMAL", 1006),
        ("INVALID_DATA", 1007),
        ("POLICY_VIOLATION", 1008),
        ("MESSAGE_TOO_BIG", 1009),
        ("INTERNAL_ERROR", 1011),
        ("SERVICE_RESTART", 1012),
        ("TRY_AGAIN_LATER", 1013),
    ],
)
def test_names_of_close_codes_are_those_of_section_7_4_1(name: str, code: int) -> None:
    assert CloseCode[name] == code


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1009, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999])
def test_close_payload_is_code_and_reason(code: int) -> None:  # section 5.5.1
    assert encode_close(code, "so \u00e4") == code.to_bytes(2, "big") + b"so \xc3\xa4"
    assert encode_close(code) == code.to_bytes(2, "big")


def test_close_without_a_code_has_no_payload() -> None:  # section 7.1.5
    assert encode_close(CloseCode.NO_STATUS) == b""
    assert encode_close(CloseCode.NO_STATUS, "nowhere to put it") == b""


@pytest.mark.parametrize(
    "code",
    [-1, 0, 1, 999, 1004, 1006, 1015, 1016, 1999, 2000, 2999, 5000, 65535, 65536],
    ids=lambda code: f"7.4-{code}",
)
def test_close_code_that_may_not_be_sent_is_a_value_error(code: int) -> None:
    with pytest.raises(ValueError, match=str(code)):
        encode_close(code)


@pytest.mark.parametrize("character", ["x", "\u00e9", "\u20ac", "\U0001f600"], ids=["1", "2", "3", "4"])
@pytest.mark.parametrize("before", range(5))
def test_close_reason_that_is_too_long_is_cut_between_characters(character: str, before: int) -> None:  # section 5.5
    width = len(character.encode())
    fits = "-" * before + character * ((123 - before) // width)
    assert encode_close(1000, fits) == b"\x03\xe8" + fits.encode()
    assert encode_close(1000, fits + character) == b"\x03\xe8" + fits.encode()
    assert encode_close(1000, fits + character * 200) == b"\x03\xe8" + fits.encode()


@pytest.mark.parametrize(("reason", "error"), [("\ud800", ValueError), (b"bytes", TypeError), (None, TypeError)])
def test_reason_of_a_close_is_text_that_can_be_sent(reason: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_close(1000, reason)
    check_close(1000, "\u20ac" * 41)

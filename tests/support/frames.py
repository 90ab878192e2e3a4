"""Frames on the wire, written and read without the code under test (RFC 6455, section 5.2)."""

from __future__ import annotations

import os
from typing import NamedTuple

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class Frame(NamedTuple):
    """A frame from the server; `rsv` is the number that the three reserved bits make."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0

    @property
    def text(self) -> str:
        assert self.opcode == TEXT, self
        return self.payload.decode()

    @property
    def close(self) -> tuple[int, str]:
        """The code and reason of a close frame."""
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2], "big"), self.payload[2:].decode()


def text(payload: str) -> Frame:
    """Return the frame of a text message from the server."""
    return Frame(TEXT, payload.encode())


def close(code: int, reason: str = "") -> Frame:
    """Return a close frame from the server."""
    return Frame(CLOSE, code.to_bytes(2, "big") + reason.encode())


def frame(payload: str | bytes, opcode: int | None = None, *, fin: bool = True) -> bytes:
    """Return the bytes of a frame as a client sends it."""
    if opcode is None:
        opcode = TEXT if isinstance(payload, str) else BINARY
    return build(opcode, payload.encode() if isinstance(payload, str) else payload, fin=fin, mask=os.urandom(4))


def close_frame(code: int = 1000, reason: str = "") -> bytes:
    """Return the bytes of a close frame as a client sends it."""
    return frame(close(code, reason).payload, CLOSE)


def build(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = None,
    size: int | None = None,
    width: int | None = None,
) -> bytes:
    """Return the bytes of any frame, even of a wrong one.

    `size` is the declared length, by default that of `payload`; `width` is the number of bytes that hold it behind the
    first seven bits (0, 2 or 8), by default as few as possible; `rsv` is the number that the three reserved bits make.
    """
    if size is None:
        size = len(payload)
    if width is None:
        width = 0 if size < 126 else 2 if size < 65536 else 8
    seven_bits = {0: size, 2: 126, 8: 127}[width]
    head = bytes((fin << 7 | rsv << 4 | opcode, (mask is not None) << 7 | seven_bits))
    head += size.to_bytes(8, "big")[8 - width :]
    if mask is None:
        return head + payload
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return head + mask + masked.to_bytes(len(payload), "big")


def first(data: bytes | bytearray) -> tuple[Frame, int] | None:
    """Return the server's frame at the beginning of `data` and its length in bytes, or None if it is incomplete."""
    if len(data) < 2:
        return None
    assert data[1] < 128, "a server masks nothing"
    size, body = data[1], 2
    if size == 126:
        size, body = int.from_bytes(data[2:4], "big"), 4
    elif size == 127:
        size, body = int.from_bytes(data[2:10], "big"), 10
    assert size < 1 << 62, "not a frame: the bytes of two have mixed"
    if len(data) < body or len(data) < body + size:
        return None
    payload = bytes(data[body : body + size])
    return Frame(data[0] & 0x0F, payload, bool(data[0] & 0x80), data[0] >> 4 & 7), body + size


def parse(data: bytes) -> tuple[list[Frame], bytes]:
    """Return the server's whole frames at the beginning of `data`, and the bytes left over."""
    frames = []
    while found := first(data):
        frames.append(found[0])
        data = data[found[1] :]
    return frames, data

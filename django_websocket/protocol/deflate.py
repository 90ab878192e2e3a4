"""Compression of messages: permessage-deflate, its negotiation and its work on a message (RFC 7692).

Sections are those of RFC 7692.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from .frames import Opcode, encode_frame
from .handshake import Extension, Parameters

NAME = "permessage-deflate"
RSV1 = 0x40  # in the first byte of a compressed message (section 6)
TAIL = b"\x00\x00\xff\xff"  # ends flushed data, and is left out on the wire (section 7.2.1)
LAST_BLOCK = b"\x03\x00"  # an empty final block, with which complete data ends (RFC 1951, section 3.2.3)
WINDOW_BITS = 15  # the largest window, and the default (section 7.1.2)
THRESHOLD = 1024  # bytes; compressing shorter messages costs more than it saves
LEVEL = 6
LARGE = 64 * 1024  # bytes; from here, a lower level makes the message 3 % larger, and takes 60 % less time at worst
LEVEL_OF_LARGE = 5
PIECE = 16 * 1024  # bytes; they take zlib two milliseconds at worst, then the allowance is asked again
MAX_FINAL_BLOCKS = 256  # in one message; the data behind each is copied, and needs a new window
PARAMETERS = {
    "server_no_context_takeover",
    "client_no_context_takeover",
    "server_max_window_bits",
    "client_max_window_bits",
}


@dataclass(frozen=True)
class Compression:
    """How this end wants to compress.

    `takeover` keeps a window for each direction from one message to the next: similar messages become smaller, and each
    connection takes some 300 KiB more memory. Fewer `window_bits`, from 15 down to 9, make the windows smaller.
    Messages of fewer than `threshold` bytes are sent as they are.
    """

    takeover: bool = False
    window_bits: int = WINDOW_BITS
    threshold: int = THRESHOLD


@dataclass(frozen=True)
class Agreement:
    """What both ends have agreed on, as seen from one of them: its own direction first, then the other's."""

    window_bits: int = WINDOW_BITS
    takeover: bool = False
    peer_window_bits: int = WINDOW_BITS
    peer_takeover: bool = False
    threshold: int = THRESHOLD

    @property
    def plain_below(self) -> int:
        """The characters or bytes below which no message is compressed: a character has at most four bytes."""
        return (self.threshold + 3) // 4

    def is_shared(self, size: int) -> bool:
        """Whether a message of `size` characters or bytes is compressed by itself, once for many receivers.

        With takeover, only messages that fill the window are: by the time a part of the previous message would help,
        it has left the window.
        """
        return not self.takeover or size >= max(1 << self.window_bits, self.threshold)


# --- the handshake (section 7.1) --------------------------------------------------------------------------------------


def negotiate(offered: Sequence[Extension], wanted: Compression) -> tuple[str, Agreement] | None:
    """Return the server's answer to a client's offers, and the agreement; None to go without compression.

    The first offer that can be met is accepted (section 5.1).
    """
    for name, parameters in offered:
        if name == NAME:
            answer = _answer(parameters, wanted)
            if answer is not None:
                return answer
    return None


def _answer(parameters: Parameters, wanted: Compression) -> tuple[str, Agreement] | None:
    asked = _checked(parameters)
    if asked is None:
        return None
    server_bits = asked.get("server_max_window_bits", WINDOW_BITS)
    client_bits = asked.get("client_max_window_bits", WINDOW_BITS)
    if not server_bits or server_bits < 9:  # zlib has no window of 8 bits
        return None
    takeover = wanted.takeover and "server_no_context_takeover" not in asked
    peer_takeover = wanted.takeover and "client_no_context_takeover" not in asked
    bits = min(server_bits, wanted.window_bits)
    peer_bits = WINDOW_BITS
    answer = [NAME]
    if not takeover:
        answer.append("server_no_context_takeover")
    if not peer_takeover:
        answer.append("client_no_context_takeover")
    if "server_max_window_bits" in asked or bits < WINDOW_BITS:
        answer.append(f"server_max_window_bits={bits}")
    if "client_max_window_bits" in asked:  # section 7.1.2.2: only then may the server ask for less
        peer_bits = min(client_bits or WINDOW_BITS, wanted.window_bits)
        if peer_bits < WINDOW_BITS:
            answer.append(f"client_max_window_bits={peer_bits}")
    return "; ".join(answer), Agreement(bits, takeover, peer_bits, peer_takeover, wanted.threshold)


def _checked(parameters: Parameters) -> dict[str, int | None] | None:
    """Return the parameters of an offer, or None if one is wrong, unknown or repeated (section 7.1)."""
    checked: dict[str, int | None] = {}
    for name, value in parameters:
        if name in checked or name not in PARAMETERS:
            return None
        if value is None:
            if name == "server_max_window_bits":  # section 7.1.2.1: it has a value
                return None
            checked[name] = None
        elif name.endswith("_max_window_bits") and re.fullmatch("[89]|1[0-5]", value):
            checked[name] = int(value)
        else:
            return None
    return checked


# --- messages (section 7.2) -------------------------------------------------------------------------------------------


class Allowance:
    """Says whether there is time to compress a message. This class always says yes; a subclass may look at a clock."""

    __slots__ = ()

    def begin(self, size: int) -> bool:
        """Return whether a message of `size` bytes may be compressed now."""
        return True

    def go_on(self) -> bool:
        """Count the time since the last call, and return whether there is some left."""
        return True


UNLIMITED = Allowance()


def compressor(bits: int, size: int | None = None) -> zlib._Compress:
    """Return a compressor with a window of at most `bits`, or the smaller one that a message of `size` bytes needs."""
    if size is None:
        return zlib.compressobj(LEVEL, zlib.DEFLATED, -bits)
    bits = min(bits, max(9, (size - 1).bit_length()))
    return zlib.compressobj(LEVEL if size < LARGE else LEVEL_OF_LARGE, zlib.DEFLATED, -bits)


def compressed(packer: zlib._Compress, payload: bytes, allowance: Allowance) -> bytes | None:
    """Return the payload of a message, compressed (section 7.2.1).

    Returns None if it does not become shorter, or if `allowance`, which has said that it may begin, has no time to
    finish it. `packer` cannot be used again then: its window has data that the peer will not see.
    """
    parts = [packer.compress(payload[:PIECE])]
    for at in range(PIECE, len(payload), PIECE):
        if not allowance.go_on():
            return None
        parts.append(packer.compress(payload[at : at + PIECE]))
    parts.append(packer.flush(zlib.Z_SYNC_FLUSH))
    allowance.go_on()
    packed = b"".join(parts).removesuffix(TAIL)
    return packed if len(packed) < len(payload) else None


def encode_compressed(message: str | bytes, bits: int, threshold: int, allowance: Allowance = UNLIMITED) -> bytes:
    """Return the frame with which a server sends `message`, compressed by itself if that makes it shorter.

    Without time for that, it is sent as it is (section 6). The frame fits every connection with a window of `bits` or
    more, so that one frame serves many receivers. With takeover, call `Deflate.forget_sent` afterwards: the receiver's
    window has data then that the sender's has not.
    """
    opcode, payload = (Opcode.TEXT, message.encode()) if isinstance(message, str) else (Opcode.BINARY, message)
    size = len(payload)
    if size >= threshold and allowance.begin(size):
        packed = compressed(compressor(bits, size), payload, allowance)
        if packed is not None:
            return encode_frame(opcode | RSV1, packed)
    return encode_frame(opcode, payload)


class TooManyBlocks(Exception):
    """A message has more final blocks than anyone needs: a flood."""


class Deflate:
    """The compression of one connection: the agreement, and the windows while they are needed.

    zlib has memory while a message is compressed or inflated. Only with takeover does it keep that for the next message
    of the same direction.
    """

    __slots__ = ("_allowance", "_blocks", "_packer", "_unpacker", "agreement")

    def __init__(self, agreement: Agreement, allowance: Allowance = UNLIMITED) -> None:
        self.agreement = agreement
        self._allowance = allowance
        self._packer: zlib._Compress | None = None
        self._unpacker: zlib._Decompress | None = None
        self._blocks = 0  # final ones, in the message that is being inflated

    def compress(self, payload: bytes) -> bytes | None:
        """Return a message's payload compressed, or None if that gains nothing or there is no time for it."""
        agreement = self.agreement
        if not self._allowance.begin(len(payload)):
            return None
        if not agreement.takeover:
            return compressed(compressor(agreement.window_bits, len(payload)), payload, self._allowance)
        if self._packer is None:
            self._packer = compressor(agreement.window_bits)
        packed = compressed(self._packer, payload, self._allowance)
        if packed is None:
            self._packer = None
        return packed

    def forget_sent(self) -> None:
        """Go on with an empty window: the peer was sent data that this compressor has not seen."""
        self._packer = None

    def begin(self) -> None:
        """Prepare for a compressed message of the peer."""
        self._blocks = 0
        if self._unpacker is None:
            self._unpacker = zlib.decompressobj(-self.agreement.peer_window_bits)

    def inflate(self, data: bytes, room: int) -> bytes:
        """Inflate `data`, a piece of a compressed message, and stop at `room + 1` bytes, which are too many.

        Raises zlib.error for data that is not deflated, and `TooManyBlocks`. zlib accepts a distance beyond the window
        if it leads to bytes that the same call has inflated.
        """
        assert self._unpacker is not None
        inflated = self._unpacker.decompress(data, room + 1)
        while self._unpacker.eof and len(inflated) <= room:
            # After a final block another stream begins (section 7.2.3.4), with an empty window.
            self._blocks += 1
            if self._blocks > MAX_FINAL_BLOCKS:
                raise TooManyBlocks
            data = self._unpacker.unused_data
            self._unpacker = zlib.decompressobj(-self.agreement.peer_window_bits)
            inflated += self._unpacker.decompress(data, room + 1 - len(inflated))
        return inflated

    def finish(self, room: int) -> bytes:
        """Inflate the rest of a message that has come whole (section 7.2.2); raises as `inflate` does.

        A message that breaks off is an error too: zlib would wait for more, and take it from the next message.
        """
        rest = self.inflate(TAIL, room)
        unpacker = self._unpacker
        assert unpacker is not None
        if self.agreement.peer_takeover:
            unpacker = unpacker.copy()
        else:
            self._unpacker = None
        if unpacker.decompress(LAST_BLOCK, 1) or not unpacker.eof or unpacker.unused_data:
            raise zlib.error("a message breaks off")
        return rest

    def drop(self) -> None:
        """Give back the memory for inflating: no more of what the peer sends will be inflated."""
        self._unpacker = None

"""Compression of messages: permessage-deflate, its negotiation and what it does to a message (RFC 7692).

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
TAIL = b"\x00\x00\xff\xff"  # ends what is flushed, and is left away on the wire (section 7.2.1)
LAST_BLOCK = b"\x03\x00"  # with which a stream ends that is complete up to here (RFC 1951, section 3.2.3)
WINDOW_BITS = 15  # the largest window, and what holds where nothing is said
THRESHOLD = 1024  # bytes; compressing shorter messages costs more than it saves
LEVEL = 6
LARGE = 64 * 1024  # bytes; from here on a lower level makes the message 3 % larger, and takes 60 % less time at worst
LEVEL_OF_LARGE = 5
PIECE = 16 * 1024  # bytes; zlib takes two milliseconds for them at worst, then the allowance is asked again
MAX_FINAL_BLOCKS = 256  # in one message; what follows one is copied, and costs a new window
PARAMETERS = {
    "server_no_context_takeover",
    "client_no_context_takeover",
    "server_max_window_bits",
    "client_max_window_bits",
}


@dataclass(frozen=True)
class Compression:
    """What this end wants of compression.

    `takeover` keeps a window for each direction from one message to the next: similar messages become smaller, for some
    300 KiB of memory for each connection. `window_bits`, 9 to 15, makes the windows smaller. Messages of fewer than
    `threshold` bytes are sent as they are.
    """

    takeover: bool = False
    window_bits: int = WINDOW_BITS
    threshold: int = THRESHOLD


@dataclass(frozen=True)
class Agreement:
    """What both ends agreed on, as seen from one of them: its own direction first, then the other's."""

    window_bits: int = WINDOW_BITS
    takeover: bool = False
    peer_window_bits: int = WINDOW_BITS
    peer_takeover: bool = False
    threshold: int = THRESHOLD

    @property
    def plain_below(self) -> int:
        """How many characters or bytes a message needs before it may be compressed: no character has more than four."""
        return (self.threshold + 3) // 4

    def is_shared(self, size: int) -> bool:
        """Whether a message of so many characters or bytes is to be compressed by itself, once for many receivers.

        With takeover, that holds for messages that fill the window: what stood at the same place of the message before
        is not in it any more.
        """
        return not self.takeover or size >= max(1 << self.window_bits, self.threshold)


# --- the handshake (section 7.1) --------------------------------------------------------------------------------------


def negotiate(offered: Sequence[Extension], wanted: Compression) -> tuple[str, Agreement] | None:
    """Return the server's answer to what a client offered, and what holds then; None to go without compression.

    The first offer that can be met is taken (section 5.1).
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
    """Return the parameters of an offer, None if one is wrong, unknown, or there twice (section 7.1)."""
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
    """Says whether there is time to compress a message. This one always says yes; a subclass may look at a clock."""

    __slots__ = ()

    def begin(self, size: int) -> bool:
        """Return whether a message of `size` bytes may be compressed now."""
        return True

    def go_on(self) -> bool:
        """Count the time since the last call, and return whether there is some left."""
        return True


UNLIMITED = Allowance()


def compressor(bits: int, size: int | None = None) -> zlib._Compress:
    """Return a compressor with a window of at most `bits`; no larger than a single message of `size` bytes needs."""
    if size is None:
        return zlib.compressobj(LEVEL, zlib.DEFLATED, -bits)
    bits = min(bits, max(9, (size - 1).bit_length()))
    return zlib.compressobj(LEVEL if size < LARGE else LEVEL_OF_LARGE, zlib.DEFLATED, -bits)


def compressed(packer: zlib._Compress, payload: bytes, allowance: Allowance) -> bytes | None:
    """Return the payload of a message as it goes on the wire (section 7.2.1).

    Returns None if it does not become shorter, or if `allowance`, which was asked to begin, has no time to finish it.
    `packer` is of no use then: the peer will not see what it has seen.
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

    Without time for that, it goes as it is (section 6). The frame fits each connection with a window of `bits` or more,
    so that one frame serves many receivers. Where windows are kept, `Deflate.forget_sent` must follow: the receiver's
    has then seen what the sender's has not.
    """
    opcode, payload = (Opcode.TEXT, message.encode()) if isinstance(message, str) else (Opcode.BINARY, message)
    size = len(payload)
    if size >= threshold and allowance.begin(size):
        packed = compressed(compressor(bits, size), payload, allowance)
        if packed is not None:
            return encode_frame(opcode | RSV1, packed)
    return encode_frame(opcode, payload)


class TooManyBlocks(Exception):
    """A message has more final blocks than anybody needs: a flood."""


class Deflate:
    """The compression of one connection: what was agreed on, and the windows as long as they are needed.

    zlib's memory is there while a message is compressed or inflated, and from one to the next only in a direction with
    takeover.
    """

    __slots__ = ("_allowance", "_blocks", "_packer", "_unpacker", "agreement")

    def __init__(self, agreement: Agreement, allowance: Allowance = UNLIMITED) -> None:
        self.agreement = agreement
        self._allowance = allowance
        self._packer: zlib._Compress | None = None
        self._unpacker: zlib._Decompress | None = None
        self._blocks = 0  # final ones, in the message that is inflated

    def compress(self, payload: bytes) -> bytes | None:
        """Return a message's payload compressed, None if that is no gain or there is no time for it."""
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
        """Begin with an empty window: the peer was sent something that this compressor has not seen."""
        self._packer = None

    def begin(self) -> None:
        """Make ready for a compressed message of the peer."""
        self._blocks = 0
        if self._unpacker is None:
            self._unpacker = zlib.decompressobj(-self.agreement.peer_window_bits)

    def inflate(self, data: bytes, room: int) -> bytes:
        """Return what `data`, a piece of a compressed message, inflates to; it ends at `room + 1` bytes: too many.

        Raises zlib.error for what is no deflate data, and `TooManyBlocks`. A distance beyond the window is an error
        only where it leads out of what one call inflates: zlib looks up in that what it has not in the window.
        """
        assert self._unpacker is not None
        inflated = self._unpacker.decompress(data, room + 1)
        while self._unpacker.eof and len(inflated) <= room:
            # A final block, which begins another stream (section 7.2.3.4); its sender has begun with an empty window.
            self._blocks += 1
            if self._blocks > MAX_FINAL_BLOCKS:
                raise TooManyBlocks
            data = self._unpacker.unused_data
            self._unpacker = zlib.decompressobj(-self.agreement.peer_window_bits)
            inflated += self._unpacker.decompress(data, room + 1 - len(inflated))
        return inflated

    def finish(self, room: int) -> bytes:
        """Return the rest of a message that has come whole (section 7.2.2), as `inflate` does.

        zlib waits for more where a message breaks off, and would take it from the next one: that is an error too.
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
        """Give back the memory for what the peer sends, of which nothing will be inflated any more."""
        self._unpacker = None

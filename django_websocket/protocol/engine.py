"""One end of an open WebSocket connection: bytes of the peer in, messages and events out (RFC 6455, section 5).

    engine = Engine(Role.SERVER)
    for event in engine.receive(data):   # Ping, Pong, Close or Failure
        ...
    while engine.messages:               # str for text, bytes for binary
        print(engine.messages.pop(0))

Whatever a peer sends, the engine does not raise: a violation is a `Failure`, and everything after it is dropped.
"""

from __future__ import annotations

import codecs
import os
import sys
import zlib
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from .deflate import RSV1, UNLIMITED, Agreement, Allowance, Deflate, TooManyBlocks
from .frames import (
    MAX_CONTROL_PAYLOAD,
    CloseCode,
    Opcode,
    apply_mask,
    encode_close,
    encode_frame,
    encode_message,
    is_close_code,
)

MAX_MESSAGE_SIZE = 1024 * 1024  # bytes
MAX_QUEUED_MESSAGES = 16
MAX_QUEUED_BYTES = 1024 * 1024
MIN_FRAGMENT_SIZE = 16  # bytes on average; a message of many shorter fragments is refused as a flood
MAX_SHORT_FRAGMENTS = 1024  # fragments that a message may have whatever their size
DEFLATE_OVERHEAD = 64 * 1024  # bytes by which a compressed message may exceed its limit, besides a seventh of it
STR_HEAD = sys.getsizeof(chr(0x100)) - 4  # bytes of a `str` besides its characters and the null behind them
NOTHING_BEGUN = (0, 0)
UTF8 = codecs.getincrementaldecoder("utf-8")


class Role(Enum):
    """Which end of the connection the engine is: a client masks its frames, a server does not (section 5.1)."""

    SERVER = "server"
    CLIENT = "client"


class Ping(NamedTuple):
    """The peer asks for a pong with the same payload (section 5.5.2)."""

    payload: bytes


class Pong(NamedTuple):
    """The peer answers a ping, or shows that it is there (section 5.5.3)."""

    payload: bytes


class Close(NamedTuple):
    """The peer's close frame (section 5.5.1); `code` is 1005 where it carries none. Nothing follows it."""

    code: int
    reason: str


class Failure(NamedTuple):
    """The peer broke the protocol: close the connection with `code`, and read nothing more."""

    code: int
    reason: str


Event = Ping | Pong | Close | Failure
NO_EVENTS: Sequence[Event] = ()


class _Violation(Exception):
    """Carries the facts of a `Failure` to `Engine.receive`; never leaves this module."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason


class Engine:
    """The protocol's state for one connection.

    Arguments: the `role` of this end; `max_message_size`, the bytes that one message may have, in all its fragments,
    when it is inflated, and as the `str` that a text becomes; `max_queued_messages` and `max_queued_bytes`, how much
    may wait in `messages` before parsing stops; `max_frames`, how many frames one `receive` parses, not counting short
    whole messages; `agreement`, what both ends agreed on compression (RFC 7692), None for none; `allowance`, which says
    whether there is time for it.

    `messages` holds the complete messages, `str` or `bytes`, oldest first; the user takes them from its front.
    `paused` is true while the engine keeps bytes that it has not parsed. If `messages` is `full`, take some. If it is
    not, there were too many frames for one call, or `keep` was called: let others have their turn. Then call
    `receive(b"")` to go on. A user who respects this holds no more than the limits and what one `receive` was given.
    Set `dropping`, for good, when no more messages are wanted: compressed ones are then not inflated, and only their
    number is known, `dropped`.
    """

    __slots__ = (
        "_begun",
        "_close_sent",
        "_compressed",
        "_data",
        "_deflate",
        "_done",
        "_fin",
        "_fragments",
        "_mask",
        "_mask_bit",
        "_masks",
        "_max_compressed",
        "_max_frames",
        "_message",
        "_missing",
        "_opcode",
        "_queued",
        "_short",
        "_taken",
        "_utf8",
        "dropped",
        "dropping",
        "max_message_size",
        "max_queued_bytes",
        "max_queued_messages",
        "messages",
        "paused",
    )

    def __init__(
        self,
        role: Role,
        *,
        max_message_size: int = MAX_MESSAGE_SIZE,
        max_queued_messages: int = MAX_QUEUED_MESSAGES,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
        max_frames: int = sys.maxsize,
        agreement: Agreement | None = None,
        allowance: Allowance = UNLIMITED,
    ) -> None:
        self.limit(max_message_size)
        self.max_queued_messages = max_queued_messages
        self.max_queued_bytes = max_queued_bytes
        self._max_frames = max_frames
        self.messages: list[str | bytes] = []  # it holds few, and an empty deque would be a dozen times as large
        self.paused = False
        self._masks = role is Role.CLIENT  # whether what this end sends is masked
        self._mask_bit = 0x80 if role is Role.SERVER else 0  # what the second byte of the peer's frames must have
        self._data = b""  # received but not parsed: an incomplete header or control frame; more while paused
        self._queued = 0  # bytes put into `messages` since it was last empty, in messages over 125 bytes
        self._begun = 0  # messages that arrived, or arrive, in pieces
        self._opcode: int | None = None  # of the message that is arriving in pieces
        self._message: bytearray | None = None  # the part of it that has arrived
        self._utf8: codecs.IncrementalDecoder | None = None  # validates it, if it is text
        self._compressed = False  # whether it comes compressed
        self._fragments = 0  # in it so far
        self._taken = 0  # bytes of payload in them, as on the wire
        self._missing = 0  # bytes of payload still to come for the frame being read
        self._mask = b""  # of that frame, rotated to where its payload goes on
        self._fin = True  # whether that frame ends its message
        self._deflate = None if agreement is None else Deflate(agreement, allowance)
        self.dropping = False
        self.dropped = 0
        self._close_sent = False
        self._done = False  # after the peer's close frame, its failure, or the end of its bytes

    @property
    def full(self) -> bool:
        """Whether `messages` holds as much as it may."""
        messages = self.messages
        return len(messages) >= self.max_queued_messages or (bool(messages) and self._queued >= self.max_queued_bytes)

    @property
    def unfinished(self) -> tuple[int, int]:
        """The number of the message that has begun and not ended, and its bytes that have come; zeros without one."""
        return NOTHING_BEGUN if self._opcode is None else (self._begun, self._taken - self._missing)

    # --- what the peer sent -------------------------------------------------------------------------------------

    def keep(self, data: bytes) -> None:
        """Keep bytes of the peer for the next `receive`, when there is no time to parse them now."""
        if not self._done:
            self._data += data
            self.paused = True

    def limit(self, max_message_size: int) -> None:
        """Set how many bytes a message may have that begins later."""
        self.max_message_size = max_message_size
        # Data that cannot be compressed becomes larger: with the poorest parameters of zlib, by a seventh.
        self._max_compressed = max_message_size + max_message_size // 7 + DEFLATE_OVERHEAD
        self._short = min(125, max_message_size // 4)  # no text of so many bytes exceeds the limit as a `str`

    def receive(self, data: bytes) -> Sequence[Event]:
        """Take bytes of the peer, in pieces of any size, and return the events in them.

        Messages go to `messages`. Whatever comes after a `Close` or `Failure` is dropped.
        """
        if self._done:
            return NO_EVENTS
        if self._data:
            data = self._data + data
            self._data = b""
        messages = self.messages
        self.paused = False
        mask_bit = self._mask_bit
        short = self._short
        end = len(data)
        if not messages:
            self._queued = 0
            if mask_bit and end > 6 and self._opcode is None:
                # Most reads bring one short message and nothing else. That need not pay for the loop below.
                first = data[0]
                size = data[1] ^ mask_bit
                if size == end - 6 and size <= short:
                    if first == 0x81:
                        try:
                            messages.append(apply_mask(data[6:], data[2:6]).decode())
                        except UnicodeDecodeError:
                            pass  # and again below
                        else:
                            return NO_EVENTS
                    elif first == 0x82:
                        messages.append(apply_mask(data[6:], data[2:6]))
                        return NO_EVENTS
        events: list[Event] = []
        at = 0
        try:
            head = 6 if mask_bit else 2  # bytes of the header of a short frame
            room = self.max_queued_messages - len(messages)
            frames = self._max_frames
            while at < end:
                if self._missing:
                    at = self._go_on(data, at)
                    room = self.max_queued_messages - len(messages)
                    continue
                if room <= 0 or (self._queued >= self.max_queued_bytes and messages):
                    self.paused = True
                    break
                if self._opcode is None:
                    # The common case: short whole messages. Each takes a few comparisons, and no call.
                    while end - at >= head and room > 0:
                        first = data[at]
                        size = data[at + 1] ^ mask_bit  # 128 or more if the mask bit is wrong
                        body = at + head
                        after = body + size
                        if size > short or (first != 0x81 and first != 0x82) or after > end:
                            break
                        payload = data[body:after]
                        if mask_bit:
                            payload = apply_mask(payload, data[at + 2 : body])
                        messages.append(payload.decode() if first == 0x81 else payload)
                        room -= 1
                        at = after
                    if at == end:
                        return events
                    if room <= 0:
                        continue
                if end - at < 2:
                    break
                if not frames:
                    self.paused = True
                    break
                frames -= 1
                went = self._begin(data, at, end, events)
                if went < 0:
                    break
                at = went
                room = self.max_queued_messages - len(messages)
        except UnicodeDecodeError:
            self._fail(events, CloseCode.INVALID_DATA, "text is not UTF-8")  # section 8.1
        except zlib.error:
            self._fail(events, CloseCode.INVALID_DATA, "a message cannot be inflated")
        except TooManyBlocks:
            self._fail(events, CloseCode.MESSAGE_TOO_BIG, "a message has too many final blocks")
        except _Violation as violation:
            self._fail(events, violation.code, violation.reason)
        if not self._done and at < end:
            self._data = data[at:]
        return events

    def _begin(self, data: bytes, at: int, end: int, events: list[Event]) -> int:
        """Read the header of the frame at `at`, and the frame if it is whole.

        Returns where to go on, or -1 if more bytes are needed. Each rule is applied as soon as its bytes are there: a
        peer need not send a payload to learn that its header is wrong.
        """
        first = data[at]
        size = data[at + 1] ^ self._mask_bit
        opcode = first & 0x0F
        fin = first >= 0x80
        compressed = self._compressed
        if first & 0x70:
            compressed = first & 0x70 == RSV1 and 0 < opcode < 8 and self._deflate is not None  # RFC 7692, section 6
            if not compressed:
                raise _Violation(CloseCode.PROTOCOL_ERROR, "a reserved bit is set")  # section 5.2
        if size > 127:
            raise _Violation(
                CloseCode.PROTOCOL_ERROR, "a frame is not masked" if self._mask_bit else "a frame is masked"
            )  # section 5.1
        if 2 < opcode < 8 or opcode > 10:
            raise _Violation(CloseCode.PROTOCOL_ERROR, f"opcode {opcode} is reserved")  # section 5.2
        if opcode >= 8:  # section 5.5
            if not fin:
                raise _Violation(CloseCode.PROTOCOL_ERROR, "a control frame is fragmented")
            if size > MAX_CONTROL_PAYLOAD:
                raise _Violation(CloseCode.PROTOCOL_ERROR, "a control frame is longer than 125 bytes")
        elif opcode == Opcode.CONTINUATION:  # section 5.4
            if self._opcode is None:
                raise _Violation(CloseCode.PROTOCOL_ERROR, "a continuation frame continues nothing")
        elif self._opcode is not None:
            raise _Violation(CloseCode.PROTOCOL_ERROR, "a message begins inside another")
        body = at + 2
        if size > 125:  # section 5.2, payload length
            shorter, after_length = (126, body + 2) if size == 126 else (65536, body + 8)
            if after_length > end:
                return -1
            size = int.from_bytes(data[body:after_length], "big")
            if size >> 63:
                raise _Violation(CloseCode.PROTOCOL_ERROR, "a length has its highest bit set")
            if size < shorter:
                raise _Violation(CloseCode.PROTOCOL_ERROR, "a length is not in its shortest form")
            body = after_length
        if opcode < 8 and self._taken + size > (self._max_compressed if compressed else self.max_message_size):
            raise self._too_big()
        mask = b""
        if self._mask_bit:
            body += 4
            if body > end:
                return -1
            mask = data[body - 4 : body]
        after = body + size
        if opcode >= 8:
            if after > end:
                return -1
            self._control(opcode, apply_mask(data[body:after], mask) if mask else data[body:after], events)
            return end if self._done else after
        if fin and opcode and after <= end and not compressed:
            payload = apply_mask(memoryview(data)[body:after], mask) if mask else data[body:after]
            if opcode == Opcode.TEXT:
                text = payload.decode()
                if not text.isascii():  # ASCII takes as many bytes as on the wire
                    size = self._size_as_kept(text)
                self.messages.append(text)
            else:
                self.messages.append(payload)
            self._queued += size
            return after
        if opcode:
            self._begun += 1
            self._opcode = opcode
            self._message = bytearray()
            self._utf8 = UTF8() if opcode == Opcode.TEXT else None
            if compressed and self._deflate is not None:
                self._compressed = True
                self._deflate.begin()
        self._fragments += 1
        self._taken += size
        if self._fragments > self.max_message_size // MIN_FRAGMENT_SIZE + MAX_SHORT_FRAGMENTS:
            raise _Violation(CloseCode.MESSAGE_TOO_BIG, "a message has too many fragments")
        self._mask = mask
        self._missing = size
        self._fin = fin
        if fin and not size:
            self._finish()
        return body

    def _go_on(self, data: bytes, at: int) -> int:
        """Take the part of a frame's payload that has come, and return where it ends.

        A frame that comes in pieces is unmasked and validated piece by piece: no byte is looked at twice.
        """
        assert self._message is not None
        piece = data[at : at + self._missing]
        size = len(piece)
        if self._mask_bit:
            piece = apply_mask(piece, self._mask)
            turn = size & 3
            self._mask = self._mask[turn:] + self._mask[:turn]
        if self._compressed:
            piece = self._inflate(piece)
        if self._utf8 is not None:
            self._utf8.decode(piece)
        self._message += piece
        self._missing -= size
        if self._fin and not self._missing:
            self._finish()
        return at + size

    def _inflate(self, piece: bytes | None) -> bytes:
        """Inflate a piece of a compressed message; None stands for its end."""
        assert self._deflate is not None and self._message is not None
        if self.dropping:
            self._deflate.drop()
            return b""
        room = self.max_message_size - len(self._message)
        inflated = self._deflate.finish(room) if piece is None else self._deflate.inflate(piece, room)
        if len(inflated) > room:
            if self._utf8 is not None:
                self._utf8.decode(inflated[:room])  # else it would depend on the pieces which error is found first
            raise self._too_big()
        return inflated

    def _too_big(self) -> _Violation:
        return _Violation(CloseCode.MESSAGE_TOO_BIG, f"a message is larger than {self.max_message_size} bytes")

    def _finish(self) -> None:
        """Hand out the message, whose last fragment is there."""
        message = self._message
        assert message is not None
        if self._compressed:
            rest = self._inflate(None)
            if self.dropping:
                self.dropped += 1
                self._forget()
                return
            message += rest
        whole: str | bytes
        if self._utf8 is None:
            whole = bytes(message)
            size = len(whole)
        else:
            whole = message.decode()
            size = self._size_as_kept(whole)
        self.messages.append(whole)
        self._queued += size
        self._forget()

    def _size_as_kept(self, text: str) -> int:
        """Return the bytes that Python takes for the characters of `text`; raise if they are too many.

        It takes one byte for each character, or two or four for each if any one of them needs so many.
        """
        count = len(text)
        size = count if text.isascii() else (sys.getsizeof(text) - STR_HEAD) // (count + 1) * count
        if size > self.max_message_size:
            raise self._too_big()
        return size

    def _forget(self) -> None:
        self._opcode = self._message = self._utf8 = None
        self._fragments = self._missing = self._taken = 0
        self._compressed = False

    def _control(self, opcode: int, payload: bytes, events: list[Event]) -> None:
        if opcode == Opcode.PING:
            events.append(Ping(payload))
        elif opcode == Opcode.PONG:
            events.append(Pong(payload))
        else:  # sections 5.5.1 and 7.1.5
            code: int = CloseCode.NO_STATUS
            if payload:
                if len(payload) < 2:
                    raise _Violation(CloseCode.PROTOCOL_ERROR, "a close frame has one byte")
                code = int.from_bytes(payload[:2], "big")
                if not is_close_code(code):
                    raise _Violation(CloseCode.PROTOCOL_ERROR, "a close frame has a code that may not be sent")
            events.append(Close(code, payload[2:].decode()))
            self._stop()

    def _fail(self, events: list[Event], code: int, reason: str) -> None:
        events.append(Failure(code, reason))
        self._stop()

    def _stop(self) -> None:
        self._done = True
        self._forget()
        if self._deflate is not None:
            self._deflate.drop()

    # --- what this end sends ------------------------------------------------------------------------------------

    def send(self, message: str | bytes) -> bytes:
        """Return the frame of a whole message: text for `str`, binary for bytes (section 5.6).

        It is compressed if that was agreed on, is worth it, and there is time for it.
        """
        deflate = self._deflate
        if deflate is not None and len(message) * 4 >= deflate.agreement.threshold:  # no character has more bytes
            opcode, payload = (Opcode.TEXT, message.encode()) if isinstance(message, str) else (Opcode.BINARY, message)
            packed = deflate.compress(payload) if len(payload) >= deflate.agreement.threshold else None
            return self.frame(opcode, payload) if packed is None else self.frame(opcode | RSV1, packed)
        if not self._masks:
            return encode_message(message)
        if isinstance(message, str):
            return self.frame(Opcode.TEXT, message.encode())
        return self.frame(Opcode.BINARY, message)

    def forget_sent(self) -> None:
        """Take note that the peer was sent compressed messages that this engine has not made."""
        if self._deflate is not None:
            self._deflate.forget_sent()

    def frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
        """Return a frame of any kind, such as a ping, a pong or a fragment, masked by a client (section 5.2)."""
        return encode_frame(opcode, payload, fin=fin, mask=os.urandom(4) if self._masks else None)

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> bytes:
        """Return the close frame (section 5.5.1), or nothing if it was sent before: each end sends one.

        1005 stands for a frame without a code. Raises ValueError for a code that may not be sent.
        """
        payload = encode_close(code, reason)
        if self._close_sent:
            return b""
        self._close_sent = True
        return self.frame(Opcode.CLOSE, payload)

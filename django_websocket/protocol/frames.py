"""Frames as bytes: opcodes, close codes, and how a message is put on the wire (RFC 6455, sections 5.2 and 7.4)."""

from __future__ import annotations

from enum import IntEnum

from django_websocket.compat import masking

__all__ = [
    "CloseCode",
    "Opcode",
    "apply_mask",
    "check_close",
    "encode_close",
    "encode_frame",
    "encode_message",
    "is_close_code",
]

apply_mask = masking()
MAX_CONTROL_PAYLOAD = 125  # bytes; section 5.5


class Opcode(IntEnum):
    """The kinds of frames (section 5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """Why a connection ended (section 7.4.1 and the IANA registry of close codes)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013


def is_close_code(code: int) -> bool:
    """Whether `code` may stand in a close frame: registered ones without 1004 to 1006 and 1015, and 3000 to 4999."""
    return 3000 <= code <= 4999 or 1000 <= code <= 1003 or 1007 <= code <= 1014


# The first two bytes of short, unfragmented, unmasked frames. To have them ready saves a tenth of the time to encode.
SHORT_TEXT = [bytes((0x80 | Opcode.TEXT, size)) for size in range(126)]
LONG_TEXT = bytes((0x80 | Opcode.TEXT, 126))  # of up to 65,535 bytes
SHORT_BINARY = [bytes((0x80 | Opcode.BINARY, size)) for size in range(126)]


def encode_message(message: str | bytes) -> bytes:
    """Return the frame with which a server sends `message`: text for `str`, binary for bytes."""
    if isinstance(message, str):
        payload = message.encode()
        size = len(payload)
        if size < 126:
            return SHORT_TEXT[size] + payload
        return LONG_TEXT + size.to_bytes(2, "big") + payload if size < 65536 else encode_frame(Opcode.TEXT, payload)
    size = len(message)
    return SHORT_BINARY[size] + message if size < 126 else encode_frame(Opcode.BINARY, message)


def encode_frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes | None = None) -> bytes:
    """Return one frame (section 5.2).

    `fin=False` leaves the message open for continuation frames. A client must give `mask`, four random bytes; a server
    must not (section 5.1).
    """
    first = opcode | 0x80 if fin else opcode
    mask_bit = 0 if mask is None else 0x80
    size = len(payload)
    if size < 126:
        head = bytes((first, mask_bit | size))
    elif size < 65536:
        head = bytes((first, mask_bit | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, mask_bit | 127)) + size.to_bytes(8, "big")
    if mask is None:
        return head + payload
    return head + mask + apply_mask(payload, mask)


def check_close(code: int, reason: str = "") -> None:
    """Raise ValueError for a code that may not be sent; 1005 stands for a close frame without a code, and may.

    Raises ValueError, too, for a reason with half a character (a lone surrogate), and TypeError if it is not text.
    """
    if not isinstance(reason, str):
        raise TypeError(f"The reason of a close must be a str, not {reason!r}")
    reason.encode()  # raises UnicodeEncodeError, a ValueError
    if code != CloseCode.NO_STATUS and not is_close_code(code):
        raise ValueError(
            f"{code} is not a close code that can be sent: use 1000, another registered code, or one from 3000 to 4999"
        )


def encode_close(code: int, reason: str = "") -> bytes:
    """Return the payload of a close frame (section 5.5.1); 1005 stands for one without a code.

    A reason that is too long is cut to the 123 bytes that fit. Raises ValueError for a code that may not be sent.
    """
    check_close(code)
    if code == CloseCode.NO_STATUS:
        return b""
    text = reason.encode()[: MAX_CONTROL_PAYLOAD - 2].decode(errors="ignore").encode()
    return code.to_bytes(2, "big") + text

"""Compression for all clients of a loop: its share of the time, and one encoding of what many clients are sent."""

from __future__ import annotations

import sys
import time

from django_websocket.protocol.deflate import Allowance, encode_compressed

__all__ = ["Encoder", "TimeToCompress"]

# A message of a few KiB may inflate to a mebibyte, and zlib takes a hundred times as long to compress that as to
# inflate it. Beyond this share, messages leave uncompressed: that costs bandwidth, but nobody has to wait.
SHARE = 0.25  # of the loop's time
BURST = 0.12  # seconds that may be used at once after a time of rest; at worst, other clients wait for so long
# Compression begins only when there is time to finish it.
SLOWEST = 60e-9  # seconds for each byte of the slowest data
ENOUGH = 0.08  # seconds; with more, a message of any size may begin, since most take a third of the slowest

KEPT = 4 * 1024 * 1024  # bytes of messages and their frames, in each of two generations
KEPT_MESSAGES = 64  # in each generation; memory that is reused soon is faster


class TimeToCompress(Allowance):
    """The time for compression in one loop: a share of all time, some of which can be saved for a burst."""

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._left = BURST  # seconds; negative when the last piece took longer than was left
        self._at = time.perf_counter()  # seconds of time.perf_counter: the time for which `_left` holds

    def begin(self, size: int) -> bool:
        """Return whether there is time for a message of `size` bytes, and begin to count."""
        now = time.perf_counter()
        left = self._left + (now - self._at) * SHARE
        self._left = left if left < BURST else BURST
        self._at = now
        return left > size * SLOWEST or left > ENOUGH

    def go_on(self) -> bool:
        """Count the time since the last call, and return whether there is some left."""
        now = time.perf_counter()
        self._left -= now - self._at
        self._at = now
        return self._left > 0


class Encoder:
    """Encodes messages for the clients of one loop; what several views send within a second is compressed once.

    `allowance` is the time for all compression in the loop.
    """

    __slots__ = ("_before", "_recent", "_size", "allowance")

    def __init__(self) -> None:
        self.allowance = TimeToCompress()
        # A key is the message, whether it is text, the bits of the window, and the threshold.
        self._recent: dict[tuple[str | bytes, bool, int, int], bytes] = {}
        self._before: dict[tuple[str | bytes, bool, int, int], bytes] = {}
        self._size = 0  # bytes of memory that `_recent` takes

    def frame(self, message: str | bytes, bits: int, threshold: int) -> bytes:
        """Return the frame that `encode_compressed` makes, from memory if another client was sent the same."""
        key = message, isinstance(message, str), bits, threshold
        frame = self._recent.get(key)
        if frame is None:
            frame = self._before.get(key) or encode_compressed(message, bits, threshold, self.allowance)
            cost = sys.getsizeof(message) + len(frame)
            if self._size + cost > KEPT or len(self._recent) >= KEPT_MESSAGES:
                self.forget()
            self._recent[key] = frame
            self._size += cost
        return frame

    def forget(self) -> None:
        """Forget the messages that were not sent since the last call. Called with each tick of the sweep."""
        self._before = self._recent
        self._recent = {}
        self._size = 0

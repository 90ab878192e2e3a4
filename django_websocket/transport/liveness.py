"""Signs of life: when a client was heard last, how it answers pings, and whether the message that it sends goes on."""

from __future__ import annotations

import struct
import time

from .counts import counts
from .deadlines import TICK, ticks

__all__ = ["MESSAGE_PACE", "MESSAGE_TIME", "Liveness"]

# A client could fill a mebibyte of memory with a message that it never ends. So every `MESSAGE_TIME`, at least
# `MESSAGE_PACE` must have come for each second. A mebibyte takes two minutes over the slowest of mobile networks, and
# may take half an hour; half a minute without a network is forgiven.
MESSAGE_PACE = 500  # bytes a second
MESSAGE_TIME = 30.0  # seconds
NOTHING_BEGUN = (0, 0, 0)
PING_PAYLOAD = struct.Struct("!d")  # the time when it was sent, so that the pong tells the latency


class Liveness:
    """The signs of life of one client, in ticks of the sweep.

    `heard` is the tick at which the last byte came, `latency` the seconds from the last ping that was answered to its
    pong.
    """

    __slots__ = ("_message", "_pinged", "_pinged_at", "_progress", "heard", "latency")

    def __init__(self, now: int) -> None:
        self.heard = now
        self.latency: float | None = None
        self._pinged = -1  # the tick of the last ping
        self._pinged_at = 0.0  # seconds of time.perf_counter; 0 once it was answered
        self._progress = (0, 0)
        self._message = NOTHING_BEGUN  # number, bytes that have come, and the tick at which that was so

    def ping(self, now: int) -> bytes:
        """Return the payload of a ping that is sent now."""
        self._pinged = now
        self._pinged_at = time.perf_counter()
        return PING_PAYLOAD.pack(self._pinged_at)

    def pong(self, payload: bytes) -> None:
        """Take note of a pong; one that answers no ping of ours is allowed (RFC 6455, section 5.5.3)."""
        if self._pinged_at and payload == PING_PAYLOAD.pack(self._pinged_at):
            self.latency = time.perf_counter() - self._pinged_at
            counts.observe("ping_rtt_seconds", self.latency)
            self._pinged_at = 0.0

    def is_silent_after_a_ping(self) -> bool:
        """Whether nothing has come since the last ping."""
        return self._pinged > self.heard

    def view_has_gone_on(self, progress: tuple[int, int]) -> bool:
        """Whether the view has taken messages since the last call; `progress` is any two numbers that change then."""
        before, self._progress = self._progress, progress
        return progress != before

    def message_has_stopped(self, unfinished: tuple[int, int], now: int, *, paused: bool) -> bool:
        """Whether the message that has begun comes too slowly; never while reading is `paused` by this end."""
        number, size = unfinished
        last, came, since = self._message
        if number != last or paused:
            self._message = (number, size, now) if number else NOTHING_BEGUN
        elif number and now - since >= ticks(MESSAGE_TIME):
            if size - came < MESSAGE_PACE * TICK * (now - since):
                return True
            self._message = (number, size, now)
        return False

    def next_look(self, now: int) -> int:
        """Return the tick at which to ask for the message again."""
        return (self._message[2] or now) + ticks(MESSAGE_TIME)

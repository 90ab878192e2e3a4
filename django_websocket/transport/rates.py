"""How often a client may send: a bucket of tokens, and what happens to a message for which there is none.

The engine of a client with a rate hands out no more messages than there are tokens. Only whole messages take one, and
pings, pongs and closes do not. Where clients are to wait, one more message is parsed and held, and reading stops behind
it: so a close or a pong that comes before the next message is seen at once, however empty the bucket is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gevent.hub import get_hub

from django_websocket.protocol.engine import NO_EVENTS, Engine, Event
from django_websocket.protocol.frames import CloseCode

from .counts import counts

__all__ = ["OVER", "Rate", "RatedEngine", "Throttle"]

OVER = ("wait", "drop", "close")


@dataclass(frozen=True)
class Rate:
    """So many `messages` in so many `seconds`, and what to do `over` that: "wait", "drop" or "close"."""

    messages: int
    seconds: float
    over: str = "wait"

    def __str__(self) -> str:
        return f"{self.messages} messages in {self.seconds:g} s"


class Throttle:
    """Holds one client to a rate.

    The bucket has room for `rate.messages` tokens, and gets as many in `rate.seconds`. It begins full, and with as many
    `extra` tokens for messages that are the package's own.

    `held` is the message that waits for a token, `dropped` how many were dropped since there was none.
    """

    __slots__ = ("_filled", "_timer", "_tokens", "dropped", "held", "open", "rate")

    def __init__(self, rate: Rate, extra: int = 0) -> None:
        self.rate = rate
        self.held: str | bytes | None = None
        self.dropped = 0
        self.open = False  # whether everything may pass, since nobody receives it any more
        self._tokens = float(rate.messages + extra)
        self._filled = time.monotonic()
        self._timer: Any = None

    def allowed(self) -> int:
        """Return how many messages may pass now."""
        now = time.monotonic()
        rate = self.rate
        if self._tokens < rate.messages:
            self._tokens = min(rate.messages, self._tokens + (now - self._filled) * rate.messages / rate.seconds)
        self._filled = now
        return int(self._tokens)

    def take(self, messages: int) -> None:
        """Let messages pass, as many as were `allowed` at the most."""
        self._tokens -= messages

    def call_when_allowed(self, callback: Callable[[], object]) -> None:
        """Call `callback` in the hub when there is a token for the message that waits; another call replaces it."""
        self.stop()
        seconds = (1 - self._tokens) * self.rate.seconds / self.rate.messages
        # It keeps the loop running: while nothing is read, a view may wait for nothing else.
        self._timer = get_hub().loop.timer(max(seconds, 0.0))
        self._timer.start(callback, update=True)

    def stop(self) -> None:
        """Call nothing any more."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def release(self) -> None:
        """Let everything pass: what comes from now on is dropped by whoever reads it."""
        self.stop()
        self.open = True
        self.held = None


class RatedEngine(Engine):
    """The engine of a client with a rate. While a message is held, it is `paused`, and `receive(b"")` asks again."""

    __slots__ = ("_throttle",)

    def __init__(self, *args: Any, throttle: Throttle, **options: Any) -> None:
        super().__init__(*args, **options)
        self._throttle = throttle

    def receive(self, data: bytes) -> Sequence[Event]:
        """See `Engine.receive`; no more messages are added than the rate allows."""
        throttle = self._throttle
        if throttle.open or self._done:
            return super().receive(data)
        messages = self.messages
        allowed = throttle.allowed()
        if throttle.held is not None:
            if not allowed or self.full:
                self.keep(data)
                return NO_EVENTS
            allowed -= 1
            self._hand_out(throttle)
        before = len(messages)
        most = self.max_queued_messages
        over = throttle.rate.over
        if over != "drop":
            self.max_queued_messages = min(most, before + allowed + 1)
        events = super().receive(data)
        self.max_queued_messages = most
        came = len(messages) - before
        throttle.take(min(came, allowed))
        if came <= allowed:
            return events
        if over == "wait":
            throttle.held = messages.pop()
            self.paused = True
            return events
        del messages[before + allowed :]
        if over == "drop":
            throttle.dropped += came - allowed
            counts.add("dropped_messages", "rate", by=came - allowed)
            return events
        events = [*events]
        self._fail(events, CloseCode.POLICY_VIOLATION, f"more than {throttle.rate}")
        self._data = b""
        self.paused = False
        return events

    def _hand_out(self, throttle: Throttle) -> None:
        """Give the message that was held its token."""
        message = throttle.held
        assert message is not None
        throttle.held = None
        throttle.take(1)
        if not self.messages:  # else it counts among these since it was parsed
            self._queued = self._size_as_kept(message) if isinstance(message, str) else len(message)
        self.messages.append(message)

"""Published messages that a view takes one by one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from django_websocket.exceptions import MessagesMissed
from django_websocket.transport.waiting import check_before_taking

from .backlog import Backlog, Latest, cost
from .entries import Position
from .hub import Hub, closed_error
from .publication import Publication
from .replay import Wanted, past_of
from .source import Source

__all__ = ["Subscription"]


class Subscription(Source):
    """Messages published to `channels`, for a view to take; a context manager, and an iterator over the messages.

    `select()` reports it as readable exactly when `get()` would return at once.
    """

    __slots__ = (
        "_held",
        "_held_size",
        "_hub",
        "_limit",
        "_lossy",
        "_missed",
        "_positions",
        "_queue",
        "_restarts",
        "channels",
    )

    def __init__(
        self, hub: Hub, channels: Sequence[str], limit: int, on_slow: str = "raise", wish: Wanted | None = None
    ) -> None:
        super().__init__()
        self._hub = hub
        self.channels = channels
        self._limit = limit  # bytes
        self._queue: Backlog[str | bytes] = Latest(limit) if on_slow == "latest" else Backlog(limit, on_slow)
        self._lossy = on_slow != "raise"
        self._missed = False
        self._held: list[Publication] | None = None if wish is None else []  # what comes until the past is there
        self._restarts: dict[str, Position] | None = None  # where channels go on behind a gap that `get` will tell of
        self._held_size = 0  # bytes
        starts = hub.join(self, channels)
        self._positions = dict(starts) if starts else None  # behind what `get` has returned
        if wish is not None:
            try:
                self._begin_with_past(wish)
            except BaseException:
                self.close()
                raise

    def _begin_with_past(self, wish: Wanted) -> None:
        past = past_of(self._hub, self, self._positions or {}, wish, math.inf if self._lossy else self._limit)
        held, self._held = self._held or [], None
        self._positions = dict(past.starts)
        if past.publications is None:
            self._missed = True
            self._restarts = self._positions
            self._positions = {name: wish.since.get(name, start) for name, start in self._positions.items()}
        for publication in (*(past.publications or ()), *held):
            self.deliver(publication)

    def begin_anew(self, names: Collection[str]) -> None:
        """See `Resuming.begin_anew`. All channels have a history."""
        self._held = []
        self._held_size = 0
        self._missed = False
        self._restarts = None

    def __iter__(self) -> Iterator[str | bytes]:
        return iter(self.get, None)

    def get(self, timeout: float | None = None) -> str | bytes | Any:
        """Return the next message, `str` or `bytes`; None after `close()`.

        Waits for at most `timeout` seconds, or for as long as it takes, and holds no database connection meanwhile.
        None is typed as `Any`, so code that closes no subscription need not check for it.

        Raises TimeoutError when the time has passed; `MessagesMissed` once after the broker was away, or after too many
        messages had piled up (unless `on_slow` lets them be dropped), and the next call goes on; `ConnectionClosed`
        when it would wait although the view's client has left; `BrokerError` when the broker was closed and all earlier
        messages have been taken; RuntimeError inside an `atomic()` block that the view entered.
        """
        if not self._queue.waiting or self._missed or self._signal is not None:
            found = self.get_with_channel(timeout)
            return None if found is None else found[1]
        check_before_taking()
        return self._take()[1]

    def get_with_channel(self, timeout: float | None = None) -> tuple[str, str | bytes] | None:
        """Return the next message as a pair: its channel, and the message. Otherwise the same as `get`."""
        self._wait_until_ready(timeout, "message")
        try:
            if self._missed:
                self._tell_missed()
            if not self._queue.waiting:
                if self._broker_closed:
                    raise closed_error()
                return None
            return self._take()
        finally:
            self._taken()

    def _take(self) -> tuple[str, str | bytes]:
        channel, message, position, _ = self._queue.popleft()
        if position is not None and self._positions is not None:
            self._positions[channel] = position
        return channel, message

    def _tell_missed(self) -> None:
        self._missed = False
        if self._restarts is not None:
            self._positions = {**(self._positions or {}), **self._restarts}
            self._restarts = None
        raise MessagesMissed("Messages may have been missed: fetch the present state from where it is stored.")

    def position(self, channel: str | None = None) -> str:
        """Return the position in a channel with history after what `get` has returned, to be passed as `since` later.

        The channel need not be named if there is only one. Raises ValueError for a channel without history, or for one
        that is not among those of this subscription, and TypeError if there are several and none is named.
        """
        if channel is None:
            if len(self.channels) > 1:
                raise TypeError("Say which channel's position you want: this subscription has several channels")
            channel = self.channels[0]
        position = (self._positions or {}).get(channel)
        if position is None:
            raise ValueError(f"This subscription has no channel {channel!r} with a history")
        return str(position)

    def ready(self) -> bool:
        """Whether `get()` would return at once."""
        return bool(self._queue.waiting) or self._missed or self._closed

    def _leave(self) -> None:
        self._queue.clear()
        self._hub.leave(self, self.channels)

    def deliver(self, publication: Publication) -> None:
        """Keep the messages until the view takes them."""
        if self._closed:
            return
        if self._held is not None:
            self._held.append(publication)
            self._held_size += sum(map(cost, publication.messages))
            if self._held_size > self._limit:
                self.begin_anew(self.channels)
                self._missed = True
            return
        for one in publication.waiting():
            if self._queue.append(one) and not self._lossy:
                self._queue.drop()
                self._missed = True
        self._changed()

    def restart(self, channel: str, position: Position) -> None:
        """Go on at a position behind a gap, as soon as `get` has told of it."""
        self._queue.forget_positions(channel)
        self._restarts = {**(self._restarts or {}), channel: position}

    def missed(self) -> None:
        """Let the next `get()` raise `MessagesMissed`."""
        self._missed = True
        self._changed()

"""Who joins and leaves a channel, for a view that wants to know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .hub import closed_error
from .presence import Presence
from .room import News, Room
from .source import Source

__all__ = ["Change", "Watch"]


@dataclass(frozen=True)
class Change:
    """Who has joined a channel and who has left it, as given in present=, and how many users are there now.

    `joined` also has the users whose dict in present= has changed.
    """

    joined: list[Any]
    left: list[Any]
    count: int


class Watch(Source):
    """Tells a view who joins and leaves a channel; a context manager, and an iterator over the changes.

    `select()` reports it as readable exactly when `get()` would return at once.
    """

    __slots__ = ("_begun", "_changes", "_count", "_news", "_room", "_taken_users")

    def __init__(self, presence: Presence, channel: str) -> None:
        super().__init__()
        self._taken_users: dict[bytes, str] = {}  # who was there at the last `get`
        self._changes: dict[bytes, str | None] = {}  # what is new since then; None for who has left
        self._count = 0
        self._begun = False  # whether `get` has returned something
        self._news = False
        [self._room] = presence.open([channel])
        self._room.add(self, at_once=True)

    def __iter__(self) -> Iterator[Change]:
        return iter(self.get, None)

    def get(self, timeout: float | None = None) -> Change | Any:
        """Return what has changed since the last call; at first, all who are there. None after `close()`.

        Waits for a change for at most `timeout` seconds, or for as long as it takes, and holds no database connection
        meanwhile. None is typed as `Any`, so code that closes no watch need not check for it.

        Raises TimeoutError when the time has passed, `ConnectionClosed` when it would wait although the view's client
        has left, `BrokerError` when the broker was closed, and RuntimeError inside an `atomic()` block of the view.
        """
        self._wait_until_ready(timeout, "change")
        try:
            if self._news:
                joined = {key: text for key, text in self._changes.items() if text is not None}
                left = [self._taken_users.pop(key) for key, text in self._changes.items() if text is None]
                self._taken_users.update(joined)
                self._begun = True
                self._forget()
                return Change([*map(json.loads, joined.values())], [*map(json.loads, left)], self._count)
            if self._broker_closed:
                raise closed_error()
            return None
        finally:
            self._taken()

    def ready(self) -> bool:
        """Whether `get()` would return at once."""
        return self._news or self._closed

    def _forget(self) -> None:
        self._changes = {}
        self._news = False

    def _leave(self) -> None:
        self._forget()
        self._room.remove(self)
        self._room.close()

    def tell(self, room: Room, news: News) -> bool:
        """Add news to what the view has not taken yet. Never waits."""
        if self._closed:
            return True  # in the middle of a large fan-out
        for key in news.left:
            self._note(key, None)
        for key, text in news.joined.items():
            self._note(key, text)
        self._count = news.count
        self._news = bool(self._changes) or not self._begun
        self._changed()
        return True

    def _note(self, key: bytes, text: str | None) -> None:
        if self._taken_users.get(key) == text:
            self._changes.pop(key, None)
        else:
            self._changes[key] = text

    def tell_all(self, room: Room) -> bool:
        """Note all who are there, and who is not there any more. Never waits."""
        everybody = room.everybody
        for key in self._taken_users.keys() | self._changes.keys():
            if key not in everybody.joined:
                self._note(key, None)
        return self.tell(room, everybody)

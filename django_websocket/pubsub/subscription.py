"""Published messages that a view takes one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django_websocket.exceptions import ConnectionClosed, MessagesMissed
from django_websocket.transport.waiting import (
    Readable,
    check_before_taking,
    close_at_end,
    close_with,
    view_of_helper,
    wait,
)

from .backlog import Backlog
from .hub import Hub, closed_error
from .publication import Publication

__all__ = ["Subscription"]


class Subscription(Readable):
    """Messages published to `channels`, for a view to take; a context manager, and an iterator over the messages.

    `select()` reports it as readable exactly when `get()` would return at once.
    """

    __slots__ = (
        "_broker_closed",
        "_client_left",
        "_closed",
        "_ends_with_client",
        "_hub",
        "_lossy",
        "_missed",
        "_queue",
        "channels",
    )

    def __init__(self, hub: Hub, channels: Sequence[str], limit: int, on_slow: str = "raise") -> None:
        super().__init__()
        self._hub = hub
        self.channels = channels
        self._queue: Backlog[str | bytes] = Backlog(limit, on_slow == "latest")
        self._lossy = on_slow != "raise"
        self._missed = False
        self._closed = False
        self._broker_closed = False
        self._ends_with_client = False
        self._client_left: tuple[int, str] | None = None  # not the exception, whose traceback would keep the view alive
        hub.join(self, channels)

    def end_with_view(self) -> None:
        """Close this when the view ends that runs, or that has started the running greenlet."""
        view = view_of_helper()
        if view is None:
            close_at_end(self)
        else:
            self._ends_with_client = True  # quietly: gevent prints the traceback of an exception in such a greenlet
            close_with(view, self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str | bytes]:
        return iter(self.get, None)

    def get(self, timeout: float | None = None) -> str | bytes | Any:
        """Return the next message, `str` or `bytes`; None after `close()`.

        Waits for at most `timeout` seconds, or for as long as it takes, and holds no database connection meanwhile.
        The type says `Any` in place of None: code that closes no subscription need not look for it.

        Raises TimeoutError when the time has passed; `MessagesMissed` once after the broker was away, or after too many
        messages had piled up (unless `on_slow` lets them be dropped), and the next call goes on; `ConnectionClosed`
        when it would wait although the view's client has left; `BrokerError` when the broker was closed and all earlier
        messages have been taken; RuntimeError inside an `atomic()` block that the view entered.
        """
        found = self.get_with_channel(timeout)
        return None if found is None else found[1]

    def get_with_channel(self, timeout: float | None = None) -> tuple[str, str | bytes] | None:
        """Return the next message as a pair: its channel, and the message. Otherwise the same as `get`."""
        check_before_taking()
        while not self.ready():
            if self._client_left is not None:
                raise ConnectionClosed(*self._client_left)
            if not wait((self,), timeout):
                raise TimeoutError(f"no message came within {timeout} seconds")
        try:
            if self._missed:
                self._missed = False
                raise MessagesMissed("Messages may have been missed: fetch the present state from where it is stored.")
            if not self._queue:
                if self._broker_closed:
                    raise closed_error()
                return None
            return self._queue.popleft()
        finally:
            if self._signal is not None:
                self._signal.set(self.ready() or self.abandoned)

    def ready(self) -> bool:
        """Whether `get()` would return at once."""
        return bool(self._queue) or self._missed or self._closed

    def close(self) -> None:
        """End the subscription. May be called twice."""
        if not self._closed or self._broker_closed:
            self._closed = True
            self._broker_closed = False
            self._queue.clear()
            self._hub.leave(self, self.channels)
            self._changed()
            self.close_fileno()

    def client_left(self, code: int, reason: str) -> None:
        """Wake a view that waits here rather than for its client: the client has left."""
        if self._ends_with_client:
            self.close()
        else:
            self._client_left = code, reason
            self._changed()

    @property
    def abandoned(self) -> bool:
        """Whether the client of the view has left."""
        return self._client_left is not None

    def deliver(self, publication: Publication) -> None:
        """Keep the messages until the view takes them."""
        if self._closed:
            return
        for channel, message in zip(publication.channels(), publication.messages, strict=False):
            if self._queue.append(channel, message) and not self._lossy:
                self._queue.clear()
                self._missed = True
        self._changed()

    def missed(self) -> None:
        """Let the next `get()` raise `MessagesMissed`."""
        self._missed = True
        self._changed()

    def broker_closed(self) -> None:
        """Let `get()` raise BrokerError once the waiting messages have been taken."""
        if not self._closed:
            self._closed = True
            self._broker_closed = True
            self._changed()

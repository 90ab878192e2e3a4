"""What a view takes from the broker piece by piece: how it waits for the next one, and how that ends."""

from __future__ import annotations

from typing import TypeVar

from django_websocket.exceptions import ConnectionClosed
from django_websocket.transport.waiting import (
    Readable,
    check_before_taking,
    close_at_end,
    close_with,
    view_of_helper,
    wait,
)

Own = TypeVar("Own", bound="Source")


class Source(Readable):
    """Something that a view takes piece by piece; a context manager.

    `select()` reports it as readable exactly when there is something to take.
    """

    __slots__ = ("_broker_closed", "_client_left", "_closed", "_ends_with_client", "abandoned")

    def __init__(self) -> None:
        super().__init__()
        self._closed = False
        self._broker_closed = False
        self._ends_with_client = False
        self.abandoned = False  # whether the client of the view has left
        self._client_left: tuple[int, str] | None = None  # not the exception, whose traceback would keep the view alive

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _leave(self) -> None:
        """Stop taking, and forget what waits."""
        raise NotImplementedError

    def close(self) -> None:
        """End it. May be called twice."""
        if not self._closed or self._broker_closed:
            self._closed = True
            self._broker_closed = False
            self._leave()
            self._changed()
            self.close_fileno()

    def end_with_view(self) -> None:
        """Close this when the view ends that runs, or that has started the running greenlet."""
        view = view_of_helper()
        if view is None:
            close_at_end(self)
        else:
            self._ends_with_client = True  # quietly: gevent prints the traceback of an exception in such a greenlet
            close_with(view, self)

    def client_left(self, code: int, reason: str) -> None:
        """Wake a view that waits here rather than for its client: the client has left."""
        if self._ends_with_client:
            self.close()
        else:
            self._client_left = code, reason
            self.abandoned = True
            self._changed()

    def broker_closed(self) -> None:
        """Have the view learn that the broker was closed, once it has taken what waits."""
        if not self._closed:
            self._closed = True
            self._broker_closed = True
            self._changed()

    def _wait_until_ready(self, timeout: float | None, what: str) -> None:
        """Wait until there is something to take. Raises `ConnectionClosed`, and TimeoutError if none of `what` came."""
        check_before_taking()
        while not self.ready():
            if self._client_left is not None:
                raise ConnectionClosed(*self._client_left)
            if not wait((self,), timeout):
                raise TimeoutError(f"no {what} came within {timeout} seconds")

    def _taken(self) -> None:
        """Note that something was taken."""
        if self._signal is not None:
            self._signal.set(self.ready() or self.abandoned)

"""How many connections a user may have in this process: `WEBSOCKET_MAX_CONNECTIONS_PER_USER`.

The answer is given when the view has accepted, since only then it is known for whom: a middleware, a decorator or the
view itself may have set `request.user`. Nothing can happen between the look at the count and its change, so however
many handshakes come at once, no more than the limit are let in.
"""

from __future__ import annotations

from django.apps import apps
from django.http import HttpRequest, HttpResponse

from django_websocket import conf
from django_websocket.transport.log import report

from .upgrade import who
from .users import User, identify

__all__ = ["FULL", "Place", "take_place", "too_many_connections"]

FULL = "its user has as many connections as WEBSOCKET_MAX_CONNECTIONS_PER_USER allows"
RETRY_AFTER = 30  # seconds, as client.js waits at the most: nobody knows when the user closes another page

_taken: dict[User, int] = {}


class Place:
    """One of the connections that a user may have."""

    __slots__ = ("_user",)

    def __init__(self, user: User) -> None:
        _taken[user] = _taken.get(user, 0) + 1
        self._user: User | None = user

    def give_back(self) -> None:
        """Let another connection have it. Has no effect if that was done before; the hub may call it."""
        user, self._user = self._user, None
        if user is not None:
            _taken[user] -= 1
            if not _taken[user]:
                del _taken[user]


def take_place(request: HttpRequest) -> Place | None:
    """Return a place for the user of a request; None if none is needed.

    That is so if no limit is set, and if nobody can say who the user is: it is anonymous, or has no primary key. Loads
    a lazy `request.user` from the database. Raises `Full` if the user has all of them already.
    """
    limit = conf.current().max_connections_per_user
    user = getattr(request, "user", None)
    if limit is None or not getattr(user, "is_authenticated", False) or getattr(user, "pk", None) is None:
        return None
    if not apps.is_installed("django.contrib.auth"):
        return None
    known = identify(user)
    if _taken.get(known, 0) >= limit:
        raise Full(known.key)
    return Place(known)


class Full(Exception):
    """A user has as many connections as the limit allows; the argument is the primary key."""


def too_many_connections(request: HttpRequest, error: Full) -> HttpResponse:
    """Return the answer to a user who has no place left, and log it."""
    report(who(request.META), 429, FULL, f"user {error}")
    response = HttpResponse("Too many connections.\n", "text/plain", 429, headers={"Retry-After": str(RETRY_AFTER)})
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response

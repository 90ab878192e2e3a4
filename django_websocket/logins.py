"""Logging in users whom a token names, and disconnecting users, sessions and others in every process."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from django.http import HttpRequest

from django_websocket.handler import orders
from django_websocket.handler.users import LOGGED_OUT, identify
from django_websocket.pubsub.channels import check_channel

from .websocket import BaseWebSocket

__all__ = ["disconnect", "login"]

NOT_GIVEN: Any = object()


def login(request: HttpRequest, user: Any, *, expires: datetime | float | None = None) -> None:
    """Make `user`, whom a token names, the user of this request and of its WebSocket.

    Sets `request.user` and `request.auser`. The WebSocket is closed with 4401 when the user is deactivated or deleted,
    by `disconnect(user=...)`, and when the token expires: `expires` is a datetime, or seconds since the epoch as the
    `exp` of a JWT (RFC 7519, section 4.1.4). It does not begin a session.

    Call it in a middleware, a decorator, or the view, before the WebSocket is accepted or later. If the client sends a
    newer token, call it again: the new login replaces the former one. A WebSocket whose view has `until_logout=False`
    stays open. Raises ValueError for an anonymous user, one without a primary key, and an `expires` that is NaN.
    """
    if not getattr(user, "is_authenticated", False) or getattr(user, "pk", None) is None:
        raise ValueError(f"{user!r} cannot be logged in: login() needs a user who is stored in the database")
    if isinstance(expires, datetime):
        expires = expires.timestamp()
    end = math.inf if expires is None else float(expires)
    if math.isnan(end):
        raise ValueError("expires is NaN, which is not a time: leave it out if the token does not expire")
    from django_websocket.handler.login_checks import log_in  # it imports models, which must be installed

    async def auser() -> Any:
        return user

    request.user = user
    request.auser = auser
    log_in(request, user, end)


def disconnect(
    *,
    user: Any = NOT_GIVEN,
    session: Any = NOT_GIVEN,
    channel: str = NOT_GIVEN,
    connection: str | BaseWebSocket = NOT_GIVEN,
    code: int = LOGGED_OUT,
    reason: str = "",
) -> int:
    """Close WebSockets in every process, and return their number.

    One argument says which: those of a `user` (an object or its primary key); those of a `session` (an object or its
    session key); those that are subscribed to a `channel`, themselves or by their views; or one `connection` (a
    `WebSocket`, an `AsyncWebSocket`, or its `id`). WebSockets of views with `until_logout=False` belong to no user and
    no session here.

    The clients get the close `code` (1000, another registered one such as 1012, after which pages connect again, or one
    of 3000 to 4999) and a `reason` of up to 123 bytes (RFC 6455, section 7.4).

    Works from anywhere, as `publish` does. Waits for up to one second for the answers of all processes that have
    WebSockets; those of a process that does not answer in time are not counted. Raises `BrokerError` if the broker
    cannot be reached, and ValueError or TypeError for an argument that does not identify any WebSocket, and for a code
    or a reason that cannot be sent.
    """
    given = {"user": user, "session": session, "channel": channel, "connection": connection}
    named = [(kind, whom) for kind, whom in given.items() if whom is not NOT_GIVEN]
    if len(named) != 1:
        raise TypeError("disconnect() takes exactly one of user=, session=, channel= and connection=")
    kind, whom = named[0]
    name: tuple[str, ...]
    if kind == "user":
        if getattr(whom, "pk", whom) is None:
            raise ValueError(f"{whom!r} has no primary key: disconnect() needs a user who is stored in the database")
        name = identify(whom)
    elif kind == "session":
        key = getattr(whom, "session_key", whom)
        if key is not None and not isinstance(key, str):
            raise TypeError(f"session= must be a session or its key, not {whom!r}")
        name = (orders.hash_of_session(key) if key else "",)
    elif kind == "channel":
        check_channel(whom)
        name = (whom,)
    else:
        name = (whom.id if isinstance(whom, BaseWebSocket) else whom,)
    if not name[0]:
        raise ValueError(f"{kind}={whom!r} does not say which WebSockets to close")
    return orders.disconnect(orders.Order({kind: name}, code, reason))

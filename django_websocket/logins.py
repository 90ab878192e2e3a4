"""Disconnecting users, sessions and others, in every process."""

from __future__ import annotations

from typing import Any

from django_websocket.handler import orders
from django_websocket.handler.users import LOGGED_OUT, identify
from django_websocket.pubsub.channels import check_channel

from .websocket import WebSocket

__all__ = ["disconnect"]

NOT_GIVEN: Any = object()


def disconnect(
    *,
    user: Any = NOT_GIVEN,
    session: Any = NOT_GIVEN,
    channel: str = NOT_GIVEN,
    connection: str | WebSocket = NOT_GIVEN,
    code: int = LOGGED_OUT,
    reason: str = "",
) -> int:
    """Close WebSockets in every process, and return their number.

    One argument says which: those of a `user` (an object or its primary key); those of a `session` (an object or its
    session key); those that are subscribed to a `channel`, themselves or by their views; or one `connection` (a
    `WebSocket` or its `id`). WebSockets of views with `until_logout=False` belong to no user and no session here.

    The clients get the close `code` (1000, or 3000 to 4999) and a `reason` of up to 123 bytes (RFC 6455, section 7.4).

    Works from anywhere, as `publish` does. Waits for up to one second for the answers of all processes that have
    WebSockets; those of a process that does not answer in time are not counted. Raises `BrokerError` if the broker
    cannot be reached, and ValueError or TypeError for an argument that cannot name anybody, and for a code or a reason
    that cannot be sent.
    """
    given = {"user": user, "session": session, "channel": channel, "connection": connection}
    named = [(kind, whom) for kind, whom in given.items() if whom is not NOT_GIVEN]
    if len(named) != 1:
        raise TypeError("disconnect() takes one of user=, session=, channel= and connection=")
    kind, whom = named[0]
    name: tuple[str, ...]
    if kind == "user":
        if getattr(whom, "pk", whom) is None:
            raise ValueError(f"{whom!r} has no primary key, so nobody is logged in as this user")
        name = identify(whom)
    elif kind == "session":
        name = (getattr(whom, "session_key", whom),)
    elif kind == "channel":
        check_channel(whom)
        name = (whom,)
    else:
        name = (whom.id if isinstance(whom, WebSocket) else whom,)
    if not name[0]:
        raise ValueError(f"{kind}={whom!r} names nobody")
    return orders.disconnect(orders.Order(kind, name, code, reason))

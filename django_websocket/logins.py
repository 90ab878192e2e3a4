"""Who is logged in, and how they are disconnected."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.db import connections, router
from django.db.models import Model

from django_websocket import conf, pubsub
from django_websocket.handler import orders

from .websocket import WebSocket

__all__ = ["disconnect"]

CODE = 4401
NOT_GIVEN: Any = object()


class User(NamedTuple):
    """Who somebody is: a primary key is one person's in one table of one database, or of one tenant's schema."""

    key: str
    model: str  # its label
    database: str  # its alias
    tenant: str  # "" without tenants


def disconnect(
    *,
    user: Any = NOT_GIVEN,
    session: Any = NOT_GIVEN,
    channel: str = NOT_GIVEN,
    connection: str | WebSocket = NOT_GIVEN,
    code: int = CODE,
    reason: str = "",
) -> int:
    """Close WebSockets in every process, and return how many.

    One argument says which: those of a `user`, an object or its primary key; those of a `session`, an object or its
    session key; those that are subscribed to a `channel`, or whose views are; or one `connection`, a `WebSocket` or its
    `id`. WebSockets of views with `until_logout=False` belong to no user and no session here.

    The clients get the close `code` (1000, or 3000 to 4999) and a `reason` of up to 123 bytes (RFC 6455, section 7.4).

    Works from anywhere, as `publish` does. Waits until all processes have answered that have WebSockets, for up to one
    second; those of one that does not answer in time are not counted. Raises `BrokerError` if the broker cannot be
    reached, and ValueError or TypeError for whom nobody can be, and for a code or a reason that cannot be sent.
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
        pubsub.check_channel(whom)
        name = (whom,)
    else:
        name = (whom.id if isinstance(whom, WebSocket) else whom,)
    if not name[0]:
        raise ValueError(f"{kind}={whom!r} names nobody")
    return orders.disconnect(orders.Order(kind, name, code, reason))


def identify(user: Any) -> User:
    """Return who a user is, an object or a primary key, for the code that runs."""
    model: type[Model] = get_user_model()
    database = router.db_for_write(model)
    if isinstance(user, Model):
        if not isinstance(user, model):
            model = user._meta.concrete_model  # type: ignore[assignment]
            database = router.db_for_write(model)
        if user._state.db not in (None, router.db_for_read(model)):  # it was fetched from another one, on purpose
            database = router.db_for_write(model, instance=user)
        key = user._meta.pk.value_to_string(user)
    else:
        key = getattr(user, "pk", user)
    return User(str(key), str(model._meta.label), database, tenant_of(model, database))


def tenant_of(model: type[Model], database: str) -> str:
    """Return the tenant in whose schema the table of `model` is, as django-tenants and others have it; "" for none."""
    if not conf.current().is_of_tenants(model._meta.app_config):
        return ""
    wrapper = connections[database]
    tenant = getattr(wrapper, "schema_name", None) or getattr(wrapper, "tenant", None)
    return "" if tenant is None else str(tenant)

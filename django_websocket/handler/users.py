"""Which user somebody is, in every process alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import connections, router
from django.db.models import Model
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject, empty

from django_websocket import conf

LOGGED_OUT = 4401  # the close code of a WebSocket whose login has ended


class User(NamedTuple):
    """A user: a primary key belongs to one person in one table of one database, or of one tenant's schema."""

    key: str
    model: str  # its label
    database: str  # its alias
    tenant: str  # "" without tenants


def known_user(request: HttpRequest) -> User | None:
    """Return the user of a request, if it has one that somebody has looked at already."""
    user = vars(request).get("user")
    if isinstance(user, SimpleLazyObject) and user._wrapped is empty:
        return None
    stored = getattr(user, "is_authenticated", False) and getattr(user, "pk", None) is not None
    return identify(user) if stored else None


def named(name: str) -> Any:
    """Return the user with a name or, if there is none, with a primary key; None if there is neither."""
    model = get_user_model()
    for question in ({model.USERNAME_FIELD: name}, {"pk": name}):
        try:
            user = model._default_manager.filter(**question).first()
        except (TypeError, ValueError, ValidationError):  # a name that cannot be a primary key
            continue
        if user is not None:
            return user
    return None


def identify(user: Any) -> User:
    """Return which user `user` is, an object or a primary key, as the running code sees the databases."""
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


def name_if_known(request: Callable[[], Any]) -> str:
    """Return the name of a request's user, "" if nobody has loaded it, nobody is logged in, or the request is gone."""
    found = request()
    user = None if found is None else vars(found).get("user")
    if getattr(user, "_wrapped", None) is empty:
        return ""
    return str(user.get_username()) if getattr(user, "is_authenticated", False) else ""  # type: ignore[union-attr]


def tenant_of(model: type[Model], database: str) -> str:
    """Return the tenant in whose schema the table of `model` is, as django-tenants and others have it; "" for none."""
    if not conf.current().is_of_tenants(model._meta.app_config):
        return ""
    wrapper = connections[database]
    tenant = getattr(wrapper, "schema_name", None) or getattr(wrapper, "tenant", None)
    return "" if tenant is None else str(tenant)

"""System checks: mistakes in the settings, said by `manage.py check` and before a server starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.urls import get_resolver
from django.utils.module_loading import import_string

from . import conf
from .pubsub.broker import broker_from

__all__ = ["check"]


@checks.register("websocket")
def check(**kwargs: Any) -> list[checks.CheckMessage]:
    """Return what is wrong with the project's WebSocket settings."""
    try:
        settings = conf.current()
    except ImproperlyConfigured as error:
        return [checks.Error(str(error), id="websocket.E001")]
    return [*check_urlconf(settings), *check_broker(settings), *check_server(settings), *check_middleware(settings)]


def check_urlconf(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """Look for the module with the WebSocket views."""
    try:
        urlconf = settings.required_urlconf()
    except ImproperlyConfigured as error:
        yield checks.Error(str(error), id="websocket.E002")
        return
    try:
        get_resolver(urlconf).url_patterns  # noqa: B018  # imports it
    except ImproperlyConfigured as error:
        yield checks.Error(f"WEBSOCKET_URLCONF: {error}", id="websocket.E003")
    except ModuleNotFoundError as error:
        if error.name is None or not f"{urlconf}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports something that is not
        yield checks.Error(
            f"WEBSOCKET_URLCONF is {urlconf!r}, but there is no such module.",
            hint=f"Create {urlconf.replace('.', os.sep)}.py with the urlpatterns of your WebSocket views, or correct "
            f"the setting.",
            id="websocket.E003",
        )


def check_broker(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """See that the broker is one that is known."""
    try:
        broker_from(settings.broker)
    except ValueError as error:
        yield checks.Error(str(error), id="websocket.E004")


def check_server(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """See that addresses can be made of WEBSOCKET_SERVER."""
    if settings.parsed_server is None:
        yield checks.Error(
            f"WEBSOCKET_SERVER is {settings.server!r}, of which no address can be made.",
            hint='It may be "" (the page\'s own host), ":8001" (another port of it), "host:port" or '
            '"wss://host/prefix".',
            id="websocket.E005",
        )


def check_middleware(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """Look for middleware that only runs under asyncio, which has no place on the thread of gevent's loop."""
    for path in settings.middleware:
        middleware = import_string(path)
        if not getattr(middleware, "sync_capable", True):
            yield checks.Error(
                f"The middleware {path} is only async, and WebSockets are served by synchronous code.",
                hint="Use one that is sync_capable, or serve WebSockets with settings of their own without it.",
                id="websocket.E006",
            )

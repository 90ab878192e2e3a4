"""The Django application: the template tag, the system checks, and a word where nothing serves WebSockets."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from typing import Any

from django.apps import AppConfig
from django.core.signals import request_started

logger = logging.getLogger("django_websocket")

__all__ = ["WebSocketConfig"]


class WebSocketConfig(AppConfig):
    """`INSTALLED_APPS = [..., "django_websocket"]`."""

    name = "django_websocket"
    verbose_name = "WebSockets"

    def ready(self) -> None:
        """Register the system checks, and look at each request when it begins."""
        from django_websocket import checks  # noqa: F401

        request_started.connect(look_at_request)
        monkey = sys.modules.get("gevent.monkey")
        if monkey is not None and monkey.is_module_patched("threading"):
            import_for_threads()


def import_for_threads() -> None:
    """Import what is otherwise imported when it is first needed, perhaps by several native threads at once.

    Where gevent has patched the standard library, they could wait for each other for ever: the locks of Python's
    imports are gevent's there, which may fail to wake a native thread.
    """
    from . import conf
    from .pubsub import factory, forwarding, hub, presence, replay, subscription, watching  # noqa: F401

    with suppress(Exception):  # the system checks say what is wrong with the settings
        factory.import_for(conf.current().broker)


BEGAN = "django_websocket.began"  # when a request began, in its WSGI environment or ASGI scope
UPGRADE = "django_websocket.upgrade"  # `handler.upgrade.KEY`, which is too dear to import for pages


def look_at_request(environ: dict[str, Any] | None = None, scope: dict[str, Any] | None = None, **kwargs: Any) -> None:
    """Note when a request for a page begins. Servers pass its WSGI environment or its ASGI scope."""
    if environ is not None and "HTTP_UPGRADE" in environ:
        tell_of_missing_server(environ)
    else:
        for place in (environ, scope):
            if place is not None:
                place[BEGAN] = time.monotonic()


def tell_of_missing_server(environ: dict[str, Any]) -> None:
    """Log what to do, if a handshake came to a server that serves pages alone, such as `runserver`."""
    if UPGRADE in environ:
        return
    from .protocol.handshake import is_upgrade
    from .transport.log import printable

    if is_upgrade(environ["HTTP_UPGRADE"]):
        logger.warning(
            "A WebSocket handshake for %s came to a server that serves only pages. In development, use "
            "`manage.py runwebsocket` instead of `runserver`, or set WEBSOCKET_SERVER to the address of the WebSocket "
            "server. In production, have the proxy pass handshakes to a separate gunicorn: "
            "gunicorn -k django_websocket.worker.GeventWebSocketWorker mysite.wsgi:websocket",
            printable(environ.get("PATH_INFO", "")[:300]),
        )

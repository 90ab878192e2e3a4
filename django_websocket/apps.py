"""The Django application: the template tag, the system checks, and a word where nothing serves WebSockets."""

from __future__ import annotations

import logging
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
        """Register the system checks, note when requests begin, and look at what comes to a server of pages."""
        from django_websocket import checks  # noqa: F401
        from django_websocket.addresses import note_begin

        request_started.connect(tell_of_missing_server)
        request_started.connect(note_begin)


UPGRADE = "django_websocket.upgrade"  # `handler.upgrade.KEY`, which is too dear to import for pages


def tell_of_missing_server(environ: dict[str, Any] | None = None, **kwargs: Any) -> None:
    """Log what to do, if a handshake came to a server that serves pages alone, such as `runserver`."""
    if environ is None or "HTTP_UPGRADE" not in environ or UPGRADE in environ:
        return
    from .protocol.handshake import is_upgrade
    from .transport.log import printable

    if is_upgrade(environ["HTTP_UPGRADE"]):
        logger.warning(
            "A WebSocket handshake for %s came to a server that serves pages alone. In development, use "
            "`manage.py runwebsocket` in place of `runserver`, or set WEBSOCKET_SERVER to where WebSockets are served; "
            "in production, have the proxy pass handshakes to a gunicorn of their own: "
            "gunicorn -k django_websocket.worker.GeventWebSocketWorker mysite.wsgi:websocket",
            printable(environ.get("PATH_INFO", "")[:300]),
        )

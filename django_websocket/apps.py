"""The Django application: the template tag, and the system checks."""

from django.apps import AppConfig

__all__ = ["WebSocketConfig"]


class WebSocketConfig(AppConfig):
    """`INSTALLED_APPS = [..., "django_websocket"]`."""

    name = "django_websocket"
    verbose_name = "WebSockets"

    def ready(self) -> None:
        """Register the system checks."""
        from django_websocket import checks  # noqa: F401

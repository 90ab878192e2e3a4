"""ASGI applications below a prefix of `WEBSOCKET_URLCONF`."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_websocket.compat import naming

from .decorators import is_asgi
from .handler.asgi import REST, Application, Mounted
from .handler.recognition import recognised

with naming("application"):
    from django.urls import ResolverMatch, URLPattern
    from django.urls.resolvers import RoutePattern

__all__ = ["mount"]


class Prefix(URLPattern):
    """A pattern that matches whatever begins with its route."""

    def resolve(self, path: str) -> ResolverMatch | None:
        """See Django's; what is behind the route is an argument of the view."""
        found: ResolverMatch | None = super().resolve(path)
        if found is not None:
            matched: Any = self.pattern.match(path)
            found.kwargs[REST] = matched[0]
        return found


def mount(prefix: str, application: Application, *, lifespan: bool = True, **kwargs: Any) -> Prefix:
    """Return a pattern for `WEBSOCKET_URLCONF` that leads every path that begins with `prefix` to an ASGI application.

    It is for applications that do their own routing, such as those of Starlette, FastAPI or Litestar. In their scope,
    `root_path` ends with the prefix; `user`, `session` and `cookies` are Django's. With `lifespan`, the application is
    told when the process begins, before its first client, and when it ends (ASGI, "Lifespan Protocol"). `prefix` and
    `kwargs` are the route and the arguments of Django's `path()`. Raises ImproperlyConfigured for anything but an ASGI
    application.
    """
    if not is_asgi(application):
        raise ImproperlyConfigured(
            f"{application!r} is not an ASGI application, which takes scope, receive and send. For a view, use path()"
        )
    mounted = Mounted(recognised(application), lifespan=lifespan)
    return Prefix(RoutePattern(prefix, is_endpoint=False), mounted, kwargs)

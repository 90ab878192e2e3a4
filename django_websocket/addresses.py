"""The addresses of WebSockets, for pages and scripts that open them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

from django_websocket import conf

__all__ = ["websocket_url"]


def websocket_url(
    viewname: str,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    request: HttpRequest | None = None,
) -> str:
    """Return the absolute ws:// or wss:// address of a view of `WEBSOCKET_URLCONF`, by its name, as `reverse` does.

    `WEBSOCKET_SERVER` says where it is served: "" at the page's own host, ":8001" at another port of it, "host:port",
    or "wss://host/prefix". A scheme or host that it leaves out is taken from `request`; Django validates the host.
    Raises NoReverseMatch for a name or arguments that do not resolve, and ImproperlyConfigured without a request that
    is needed.
    """
    settings = conf.current()
    urlconf = settings.required_urlconf()
    try:
        path = reverse(viewname, urlconf=urlconf, args=args, kwargs=dict(kwargs or {}))
    except NoReverseMatch as error:
        raise NoReverseMatch(
            f"{error} WebSockets are looked for in WEBSOCKET_URLCONF, {urlconf}: give the view that name there; "
            f"for the address of a page, use {{% url %}}."
        ) from error
    server = settings.parsed_server
    if server is None:
        raise ImproperlyConfigured(
            f'WEBSOCKET_SERVER is {settings.server!r}, but no address can be made of it: it may be "", ":8001", '
            f'"host:port" or "wss://host/prefix".'
        )
    scheme = server.scheme or ("wss" if request is not None and request.is_secure() else "ws")
    host = server.host + server.port
    if server.host:
        pass
    elif request is None:
        raise ImproperlyConfigured(
            f"The address of the WebSocket {viewname!r} depends on the page's own host, but there is no request: "
            f"render the template with one, or set WEBSOCKET_SERVER to a whole address such as "
            f'"wss://www.example.com".'
        )
    else:
        own = request.get_host()  # validated against ALLOWED_HOSTS
        host = host_name(own) + server.port if server.port else own
    return f"{scheme}://{host}{server.prefix.rstrip('/')}{path}"


def host_name(host: str) -> str:
    """Return the value of a Host header without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and "]" not in port else host

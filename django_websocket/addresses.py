"""The addresses of WebSockets, for pages and scripts that open them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

from django_websocket import conf
from django_websocket.exceptions import BrokerError

__all__ = ["websocket_url"]

UNKNOWN = "-"  # in place of a time if the broker could not be asked
BEGAN = "django_websocket.began"  # `apps.BEGAN`, which stands on a higher floor
CLOCK_TIMEOUT = 0.2  # seconds for the broker to say its time: a page must not wait for long


def websocket_url(
    viewname: str,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    request: HttpRequest | None = None,
) -> str:
    """Return the absolute ws:// or wss:// address of a view of `WEBSOCKET_URLCONF`, by its name, as `reverse` does.

    `WEBSOCKET_SERVER` says where it is served: "" at the page's own host, ":8001" at another port of it, "host:port",
    or "wss://host/prefix". A scheme or host that it leaves out is taken from `request`; Django validates the host.
    Raises NoReverseMatch for a name or arguments that do not resolve, and ImproperlyConfigured if it needs a request
    and gets none.
    """
    settings = conf.current()
    urlconf = settings.required_urlconf()
    try:
        path = reverse(viewname, urlconf=urlconf, args=args, kwargs=dict(kwargs or {}))
    except NoReverseMatch as error:
        raise NoReverseMatch(
            f"{error} Only WEBSOCKET_URLCONF, {urlconf}, is searched: give the WebSocket view this name there. "
            f"For the address of a page, use {{% url %}}."
        ) from error
    return address_of(path, request)


def address_of(path: str, request: HttpRequest | None) -> str:
    """Return the absolute address of a WebSocket with this path; see `websocket_url` for the rest of it."""
    settings = conf.current()
    server = settings.parsed_server
    if server is None:
        raise ImproperlyConfigured(
            f'WEBSOCKET_SERVER is {settings.server!r}, which is not the address of a server: use "", ":8001", '
            f'"host:port" or "wss://host/prefix".'
        )
    scheme = server.scheme or ("wss" if request is not None and request.is_secure() else "ws")
    host = server.host + server.port
    if server.host:
        pass
    elif request is None:
        raise ImproperlyConfigured(
            f"The address of the WebSocket {path!r} depends on the host of the page, but there is no request: "
            f"render the template with a request, or set WEBSOCKET_SERVER to a full address such as "
            f'"wss://www.example.com".'
        )
    else:
        own = request.get_host()  # validated against ALLOWED_HOSTS
        host = host_name(own) + server.port if server.port else own
    return f"{scheme}://{host}{server.prefix.rstrip('/')}{path}"


def with_time(address: str, request: HttpRequest | None) -> str:
    """Return an address with the time at which the request for its page began, by the broker's clock.

    The page may have read its state at once, so that it needs what was published since. Without a history there is
    nothing to be had, and the address stays as it is.
    """
    if request is None or not conf.current().history:
        return address
    from .transport.subprotocol import SINCE

    environ = getattr(request, "scope", request.META)
    if SINCE not in environ:
        environ[SINCE] = _time_of_request(environ.get(BEGAN, time.monotonic()))
    return f"{address}?{SINCE}={environ[SINCE]}"


def _time_of_request(began: float) -> str:
    from .pubsub.entries import keeps
    from .pubsub.process import current_broker

    broker = current_broker()
    try:
        now = broker.clock(CLOCK_TIMEOUT) if keeps(broker) else 0.0
    except BrokerError:
        return UNKNOWN
    return str(int(now - (time.monotonic() - began)))


def host_name(host: str) -> str:
    """Return the value of a Host header without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and "]" not in port else host

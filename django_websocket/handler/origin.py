"""Which sites' pages may open a WebSocket (RFC 6455, section 10.2): a browser sends the user's cookies for any page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from django.http import HttpRequest

from django_websocket import conf
from django_websocket.transport.log import report

from .upgrade import who

ORIGIN = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")  # RFC 6454, section 6.2
LOOPBACK = frozenset(("localhost", "127.0.0.1", "[::1]"))
DEFAULT_PORTS = {"http": "80", "https": "443"}


def origin_is_allowed(request: HttpRequest, more: Sequence[str] = ()) -> bool:
    """Return whether the page that sent the handshake may connect, and log a refusal.

    Scheme, host and port must be exactly those of the request itself, of `CSRF_TRUSTED_ORIGINS`, of
    `WEBSOCKET_ALLOWED_ORIGINS`, or of `more`; with `DEBUG`, any port of the request's own host will do, and any name of
    this machine if that is one. Programs other than browsers send no origin and may connect. Raises DisallowedHost as
    Django does, which becomes a 400.
    """
    host = request.get_host()
    origin = request.META.get("HTTP_ORIGIN")
    if origin is None:
        return True
    own = f"{request.scheme}://{host}".lower()
    settings = conf.current()
    more = [allowed.lower() for allowed in more]
    lowered = origin.lower()  # those of some extensions have capitals
    if lowered == own or lowered in settings.origins or lowered in more:
        return True
    parts = split(lowered)
    if parts is not None:
        if parts in (split(own), *map(split, settings.origins), *map(split, more)):
            return True
        if settings.debug and (own_parts := split(own)) and same_host(parts[1], own_parts[1]):
            return True
    report(
        who(request.META),
        403,
        "the page is from another site",
        f"{origin}; if it is yours, add it to WEBSOCKET_ALLOWED_ORIGINS (the request's own origin is {own})",
    )
    return False


def same_host(one: str, other: str) -> bool:
    """Whether two names are the same, or both of this machine."""
    return one == other or LOOPBACK.issuperset((one, other))


def split(origin: str) -> tuple[str, str, str] | None:
    """Return scheme, host and port of a web origin, None for anything else."""
    match = ORIGIN.fullmatch(origin)
    if match is None:
        return None
    scheme, host, port = match.groups()
    return scheme, host, port or DEFAULT_PORTS[scheme]

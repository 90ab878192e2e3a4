"""`{% load websockets %}`: the addresses of WebSockets in templates, and the client for pages."""

from __future__ import annotations

import json
from typing import Any

from django import template
from django.template.context import Context
from django.templatetags.static import static
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from django_websocket import addresses

__all__ = ["register", "websocket_client", "websocket_url"]

register = template.Library()


@register.simple_tag(takes_context=True)
def websocket_url(context: Context, viewname: str, *args: Any, **kwargs: Any) -> str:
    """Give a WebSocket's address, as `{% url %}` gives a page's: `{% websocket_url 'chat' room='lobby' %}`.

    On a site that has channels with history, the address includes the time at which the page was made.
    """
    request = _request(context)
    return addresses.with_time(addresses.websocket_url(viewname, args, kwargs, request), request)


@register.simple_tag(takes_context=True)
def websocket_client(context: Context) -> SafeString:
    """Let the page's modules `import { connect } from "django_websocket"`: `{% websocket_client %}`.

    It writes an import map, so the file may have any name that the storage of static files gives it. The map has the
    nonce of Django's Content Security Policy, or of django-csp's, if the page has one.
    """
    nonce = context.get("csp_nonce")
    if nonce is None:
        nonce = getattr(_request(context), "csp_nonce", None)
    attribute = "" if nonce is None else format_html(' nonce="{}"', nonce)
    imports = json.dumps({"imports": {"django_websocket": static("django_websocket/client.js")}})
    return format_html('<script type="importmap"{}>{}</script>', attribute, mark_safe(imports.replace("<", "\\u003c")))


def _request(context: Context) -> Any:
    return context.get("request") or getattr(context, "request", None)  # with the context processor or without

"""`{% load websockets %}`: the addresses of WebSockets in templates."""

from __future__ import annotations

from typing import Any

from django import template
from django.template.context import Context

from django_websocket import addresses

__all__ = ["register", "websocket_url"]

register = template.Library()


@register.simple_tag(takes_context=True)
def websocket_url(context: Context, viewname: str, *args: Any, **kwargs: Any) -> str:
    """Give a WebSocket's address, as `{% url %}` gives a page's: `{% websocket_url 'chat' room='lobby' %}`."""
    request = context.get("request") or getattr(context, "request", None)  # with the context processor or without
    return addresses.websocket_url(viewname, args, kwargs, request)

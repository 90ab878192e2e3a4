"""The WebSocket endpoints (WEBSOCKET_URLCONF)."""

from django.urls import path

from django_websocket.servers.echo import echo
from django_websocket.servers.ping import ping

from .websocket_views import chat

urlpatterns = [
    path("chat/", chat, name="chat"),
    path("echo/", echo, name="echo"),
    path("ping/", ping, name="ping"),
]

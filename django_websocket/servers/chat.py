"""A chat in which everybody reads everything, and misses nothing if its channel has a history."""

from django.http import HttpRequest

from django_websocket.decorators import websocket
from django_websocket.pubsub import publish
from django_websocket.websocket import WebSocket

__all__ = ["chat"]

CHANNEL = "CHAT"


@websocket
def chat(request: HttpRequest, websocket: WebSocket) -> None:
    """Publish what the client sends to all members, itself included, and send it what is published."""
    with websocket.subscribe(CHANNEL):
        for text in websocket:
            publish(CHANNEL, text)

"""Sends back whatever it gets: a view as a loop over the messages."""

from django.http import HttpRequest

from django_websocket.decorators import websocket
from django_websocket.websocket import WebSocket

__all__ = ["echo"]


@websocket
def echo(request: HttpRequest, websocket: WebSocket) -> None:
    """Answer each message with itself: text with text, binary with binary."""
    for message in websocket:
        websocket.send(message)

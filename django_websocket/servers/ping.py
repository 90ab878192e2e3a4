"""Answers "ping" with "pong" and the reverse: a view that is called for each message."""

from django.http import HttpRequest

from django_websocket.decorators import websocket_loop
from django_websocket.websocket import WebSocket

__all__ = ["ping"]

ANSWERS = {"ping": "pong", "pong": "ping"}


@websocket_loop
def ping(request: HttpRequest, websocket: WebSocket) -> None:
    """Answer one message; anything else gets no answer."""
    answer = ANSWERS.get(websocket.receive())  # type: ignore[arg-type]  # bytes and None are no keys
    if answer is not None:
        websocket.send(answer)

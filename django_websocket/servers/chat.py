"""A chat in which everybody reads everything: a view that waits for its client and for a channel, with select()."""

from django.http import HttpRequest

from django_websocket.decorators import websocket
from django_websocket.pubsub import publish, subscribe
from django_websocket.select import select
from django_websocket.websocket import WebSocket

__all__ = ["chat"]

CHANNEL = "CHAT"


@websocket
def chat(request: HttpRequest, websocket: WebSocket) -> None:
    """Publish what the client sends to all members, itself included, and send it what is published."""
    with subscribe(CHANNEL) as messages:
        while not websocket.closed:
            ready, _, _ = select([websocket, messages], [], [])
            if websocket in ready:
                text = websocket.receive()
                if text is not None:
                    publish(CHANNEL, text)
            if messages in ready:
                message = messages.get()
                if message is not None:
                    websocket.send(message)

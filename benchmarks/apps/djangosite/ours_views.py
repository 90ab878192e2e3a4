from django_websocket.decorators import websocket
from django_websocket.pubsub import publish
from django_websocket.servers.chat import chat as chat_select

__all__ = ["chat", "chat_select", "echo"]


@websocket
def echo(request, websocket):
    _ = request.user.is_authenticated  # as every Django server here does before it accepts
    for message in websocket:
        websocket.send(message)


@websocket
def chat(request, websocket):
    _ = request.user.is_authenticated
    with websocket.subscribe("chat"):
        for text in websocket:
            publish("chat", text)

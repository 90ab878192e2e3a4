import struct

from django.conf import settings
from django.contrib.auth.models import User

from django_websocket.decorators import websocket
from django_websocket.pubsub import publish, subscribe
from django_websocket.select import select

CHANNEL = settings.CHANNEL


@websocket
def echo(request, websocket):
    _ = request.user.is_authenticated  # as every Django server here does before it accepts
    for message in websocket:
        websocket.send(message)


@websocket
def lookup(request, websocket):
    _ = request.user.is_authenticated
    while (message := websocket.receive_json()) is not None:
        user = User.objects.get(pk=message["user"])
        websocket.send_json({"from": message["from"], "user": user.pk, "text": message["text"]})


@websocket
def chat(request, websocket):
    _ = request.user.is_authenticated
    with websocket.subscribe(CHANNEL):
        for text in websocket:
            publish(CHANNEL, text)


@websocket
def chat_select(request, websocket):
    _ = request.user.is_authenticated
    with subscribe(CHANNEL) as messages:
        while not websocket.closed:
            ready, _, _ = select([websocket, messages], [], [])
            if websocket in ready:
                text = websocket.receive()
                if text is not None:
                    publish(CHANNEL, text)
            if messages in ready:
                websocket.send(messages.get())


@websocket
def listen(request, websocket):
    _ = request.user.is_authenticated
    return websocket.listen(CHANNEL)


@websocket
def room(request, websocket, number):
    _ = request.user.is_authenticated
    return websocket.listen(f"{CHANNEL}room{number}")


sockets = []


def text_frame(text):
    """Return the frame of a text as a server sends it (RFC 6455, section 5.2)."""
    payload = text.encode()
    size = len(payload)
    head = struct.pack("!BB", 0x81, size) if size < 126 else struct.pack("!BBH", 0x81, 126, size)
    return head + payload


@websocket
def bare_loop(request, websocket):
    """What this process could reach in a fan-out at most: a loop of `send` over its sockets, and nothing else."""
    _ = request.user.is_authenticated
    websocket.accept()
    sock = websocket.connection._sock
    sockets.append(sock)
    try:
        for text in websocket:
            frame = text_frame(text)
            for member in sockets:
                member.send(frame)
    finally:
        sockets.remove(sock)

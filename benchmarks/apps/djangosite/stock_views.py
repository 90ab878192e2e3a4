"""Views for gevent-websocket's own worker, as people write them without us: a loop over the socket, `select`, and a
Redis connection for each client."""

import functools
import json
from select import select

import redis
from django.conf import settings
from django.contrib.auth.models import User
from django.http import HttpResponse, HttpResponseBadRequest

CHANNEL = settings.CHANNEL


def websocket(view):
    @functools.wraps(view)
    def answer(request):
        websocket = request.META.get("wsgi.websocket")
        if websocket is None:
            return HttpResponseBadRequest("This page is a WebSocket.")
        _ = request.user.is_authenticated
        view(request, websocket)
        return HttpResponse()

    return answer


@websocket
def echo(request, websocket):
    while not websocket.closed:
        message = websocket.receive()
        if message is not None:
            websocket.send(message)


@websocket
def lookup(request, websocket):
    while not websocket.closed:
        message = websocket.receive()
        if message is not None:
            message = json.loads(message)
            user = User.objects.get(pk=message["user"])
            answer = {"from": message["from"], "user": user.pk, "text": message["text"]}
            websocket.send(json.dumps(answer, separators=(",", ":")))


@websocket
def chat(request, websocket):
    client = redis.Redis.from_url(settings.REDIS_URL)
    messages = client.pubsub()
    messages.subscribe(CHANNEL)

    def incoming():
        text = websocket.receive()
        if text:
            client.publish(CHANNEL, text)

    def outgoing():
        response = messages.parse_response()
        if response and response[0] == b"message":
            websocket.send(response[2].decode())

    handlers = {websocket.handler.socket.fileno(): incoming, messages.connection._sock.fileno(): outgoing}
    try:
        while not websocket.closed:
            ready, _, _ = select(list(handlers), [], [])
            handlers[ready[0]]()
    finally:
        messages.close()
        client.close()

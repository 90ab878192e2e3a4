"""WebSockets for the torture of channels with history: every way to subscribe, with every way to start.

The query has the channels, and where to start in JSON: `since` a position or positions by channel, or `last` a number.
A client that is told of a gap gets `{"told": ...}`, or is closed with 4410 at the start and 1012 later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import path

from django_websocket.asgi.websocket import AsyncWebSocket
from django_websocket.decorators import websocket
from django_websocket.exceptions import MessagesMissed
from django_websocket.pubsub import position, subscribe
from django_websocket.websocket import WebSocket

TOLD = {"told": None}
MISSED = 4410


def channels_and_start(request: HttpRequest) -> tuple[list[str], dict[str, Any]]:
    """Return what the client wants to be subscribed to, and the options that say where to start."""
    start = {name: json.loads(request.GET[name]) for name in ("since", "last") if name in request.GET}
    return request.GET.getlist("channel"), start


@websocket
def takes(request: HttpRequest, websocket: WebSocket) -> None:
    """Send the view's position, and then each message with the position behind it."""
    channels, start = channels_and_start(request)
    with subscribe(*channels, **start) as messages:

        def positions() -> dict[str, str]:
            return {channel: messages.position(channel) for channel in channels}

        websocket.send_json({"at": positions()})
        while True:
            try:
                found = messages.get_with_channel()
            except MessagesMissed:
                websocket.send_json({"told": positions()})
            else:
                if found is None:
                    return
                channel, message = found
                websocket.send_json({"channel": channel, "message": message, "position": messages.position(channel)})


@websocket
def forwards(request: HttpRequest, websocket: WebSocket) -> None:
    """Have the messages sent to the client, and a message where some may be missing."""
    channels, start = channels_and_start(request)
    with websocket.subscribe(*channels, on_missed=TOLD, **start):
        websocket.receive()


@websocket
def closes(request: HttpRequest, websocket: WebSocket) -> None:
    """Do the same, but close where some may be missing."""
    channels, start = channels_and_start(request)
    try:
        with websocket.subscribe(*channels, **start):
            websocket.receive()
    except MessagesMissed:
        websocket.close(MISSED)


@websocket
def listens(request: HttpRequest, websocket: WebSocket) -> HttpResponse:
    """Let the client listen; the view is over then."""
    channels, start = channels_and_start(request)
    return websocket.listen(*channels, on_missed=TOLD, **start)


@websocket
async def asynchronous(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Have the messages sent to the client by a coroutine."""
    channels, start = channels_and_start(request)
    async with websocket.subscribe(*channels, on_missed=TOLD, **start):
        await websocket.receive()


@websocket
def shows(request: HttpRequest, websocket: WebSocket) -> None:
    """Send a snapshot, which takes a moment, and what was published since it was begun."""
    channels, start = channels_and_start(request)

    def snapshot() -> Iterator[dict[str, float]]:
        begun = time.monotonic()
        for number in range(3):
            time.sleep(0.05)
            yield {"snapshot": begun, "part": number}

    with websocket.subscribe(*channels, snapshot=snapshot, on_missed=TOLD, **start):
        websocket.receive()


@websocket
def asks(request: HttpRequest, websocket: WebSocket) -> None:
    """Send the last position of a channel, and end."""
    websocket.send(position(request.GET["channel"]))


urlpatterns = [
    path(f"{view.__name__}/", view) for view in (takes, forwards, closes, listens, asynchronous, shows, asks)
]

"""Views whose clients are present in a channel and say how that ends, one that watches, and a page that tells of them.

A JSON object in the environment variable TESTSITE_PRESENCE replaces some of the package's times, in seconds.
"""

from __future__ import annotations

import json
import os
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.urls import path

from django_websocket.asgi.websocket import AsyncWebSocket
from django_websocket.decorators import websocket
from django_websocket.exceptions import ConnectionClosed
from django_websocket.pubsub import count, present, watch
from django_websocket.pubsub import presence as of_processes
from django_websocket.pubsub import room as of_channels
from django_websocket.pubsub.forwarding import Forwarding
from django_websocket.websocket import WebSocket

from . import probe

TIMES = json.loads(os.environ.get("TESTSITE_PRESENCE", "{}"))
for module in (of_processes, of_channels):
    for name in TIMES.keys() & vars(module).keys():
        setattr(module, name, TIMES[name])
assert all(hasattr(of_processes, name) for name in TIMES)


class Failure(Exception):
    """What a view raises because its client says so."""


def wish(request: HttpRequest) -> Any:
    """Return what the query has the client be."""
    return json.loads(request.GET["present"])


def taken(message: str | bytes, presence: Forwarding) -> tuple[str, str]:
    """Return the word and what follows it in what the client says; do what it says if no view does that differently."""
    word, _, more = str(message).partition(" ")
    if word == "raise":
        raise Failure
    if word == "update":
        presence.update_present(json.loads(more))
    return word, more


@websocket
def stays(request: HttpRequest, websocket: WebSocket, channel: str) -> None:
    """Have the client be there, and do what it says."""
    presence = websocket.subscribe(channel, present=wish(request))
    for message in websocket:
        word, more = taken(message, presence)
        if word == "return":
            return
        if word == "close":
            websocket.close(int(more))
        if word == "leave":
            presence.close()


@websocket
def stays_in_a_block(request: HttpRequest, websocket: WebSocket, channel: str) -> None:
    """Do the same, in a `with` block."""
    with websocket.subscribe(channel, present=wish(request)) as presence:
        for message in websocket:
            word, more = taken(message, presence)
            if word == "return":
                return
            if word == "close":
                websocket.close(int(more))
            if word == "leave":
                break
    websocket.receive()


@websocket
def listens(request: HttpRequest, websocket: WebSocket, channel: str) -> HttpResponse:
    """Have the client be there for good."""
    return websocket.listen(channel, present=wish(request))


@websocket
async def stays_asynchronously(request: HttpRequest, websocket: AsyncWebSocket, channel: str) -> None:
    """Do what `stays` does, in a coroutine."""
    presence = await websocket.subscribe(channel, present=wish(request))
    async for message in websocket:
        word, more = taken(message, presence)
        if word == "return":
            return
        if word == "close":
            await websocket.close(int(more))
        if word == "leave":
            presence.close()


@websocket
async def stays_in_a_block_asynchronously(request: HttpRequest, websocket: AsyncWebSocket, channel: str) -> None:
    """Do what `stays_in_a_block` does, in a coroutine."""
    async with websocket.subscribe(channel, present=wish(request)) as presence:
        async for message in websocket:
            word, more = taken(message, presence)
            if word == "return":
                return
            if word == "close":
                await websocket.close(int(more))
            if word == "leave":
                break
    await websocket.receive()


@websocket
async def listens_asynchronously(request: HttpRequest, websocket: AsyncWebSocket, channel: str) -> HttpResponseBase:
    """Do what `listens` does, in a coroutine."""
    return await websocket.listen(channel, present=wish(request))


@websocket
def watches(request: HttpRequest, websocket: WebSocket, channel: str) -> None:
    """Tell the client each change."""
    try:
        with watch(channel) as changes:
            for change in changes:
                websocket.send_json([change.joined, change.left, change.count])
    except ConnectionClosed as error:
        probe.note(request, f"closed {error.code}")
        raise


def who(request: HttpRequest, channel: str) -> JsonResponse:
    """Tell who is there."""
    return JsonResponse({"present": present(channel), "count": count(channel), "process": os.getpid()})


pages = [path("<str:channel>/", who)]
urlpatterns = [
    path("sync/stays/<str:channel>/", stays),
    path("sync/stays-in-a-block/<str:channel>/", stays_in_a_block),
    path("sync/listens/<str:channel>/", listens),
    path("async/stays/<str:channel>/", stays_asynchronously),
    path("async/stays-in-a-block/<str:channel>/", stays_in_a_block_asynchronously),
    path("async/listens/<str:channel>/", listens_asynchronously),
    path("watches/<str:channel>/", watches),
]

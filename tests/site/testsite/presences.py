"""WebSockets for the torture of presence: every way to be in channels, or to see who is there.

The query has the channels, and in `present` what is told of the user, as JSON, or "watch". What a client sends is an
object: `update` has something else to be told, `leave` a code by which the view closes, and `fail` has it raise.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

import gevent
from django.http import HttpRequest, HttpResponse
from django.urls import path

from django_websocket.asgi.websocket import AsyncWebSocket
from django_websocket.decorators import websocket
from django_websocket.exceptions import ConnectionClosed
from django_websocket.pubsub import watch
from django_websocket.websocket import WebSocket

from .graces import shorten

shorten()


class Failure(Exception):
    """What a view raises that a client has told to fail."""


class Updating(Protocol):
    """Takes what is to be told of a user."""

    def update_present(self, present: Any) -> None:
        """Tell something else."""


def channels_and_present(request: HttpRequest) -> tuple[list[str], Any]:
    """Return where the client wants to be, and what is told of it."""
    return request.GET.getlist("channel"), json.loads(request.GET["present"])


def heed(message: dict[str, Any], presence: Updating) -> Any:
    """Do what a client says; return the answer."""
    if "fail" in message:
        raise Failure
    presence.update_present(message["update"])
    return {"updated": message["update"]}


@websocket
def stays(request: HttpRequest, websocket: WebSocket) -> None:
    """Be there until the client, or what it says, ends that."""
    channels, present = channels_and_present(request)
    with websocket.subscribe(*channels, present=present) as presence:
        websocket.send_json({"in": channels})
        while (message := websocket.receive_json()) is not None:
            if "leave" in message:
                websocket.close(message["leave"])
                return
            websocket.send_json(heed(message, presence))


@websocket
async def asynchronous(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Do the same in a coroutine."""
    channels, present = channels_and_present(request)
    async with websocket.subscribe(*channels, present=present) as presence:
        await websocket.send_json({"in": channels})
        while (message := await websocket.receive_json()) is not None:
            if "leave" in message:
                await websocket.close(message["leave"])
                return
            await websocket.send_json(heed(message, presence))


@websocket
def listens(request: HttpRequest, websocket: WebSocket) -> HttpResponse:
    """Be there, although the view is over."""
    channels, present = channels_and_present(request)
    response = websocket.listen(*channels, present=present)
    websocket.send_json({"in": channels})
    return response


@websocket
def watches(request: HttpRequest, websocket: WebSocket) -> None:
    """Tell a client what the view is told, which is busy between two changes for some seconds."""
    with watch(request.GET["channel"]) as changes:
        try:
            for change in changes:
                websocket.send_json({"joined": change.joined, "left": change.left, "count": change.count})
                gevent.sleep(float(request.GET["busy"]))
        except ConnectionClosed:
            return


urlpatterns = [path(f"{view.__name__}/", view) for view in (stays, asynchronous, listens, watches)]

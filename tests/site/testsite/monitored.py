"""Views of every kind, for tests that look at what they are doing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from django.http import HttpRequest, HttpResponse
from django.urls import path, re_path

from django_websocket.asgi.websocket import AsyncWebSocket
from django_websocket.decorators import websocket
from django_websocket.pubsub import subscribe
from django_websocket.websocket import WebSocket


def wait_in_a_helper(websocket: WebSocket) -> None:
    """Wait until the client says something."""
    websocket.receive()  # here waits the room


@websocket
def room(request: HttpRequest, websocket: WebSocket, name: str) -> None:
    """Look at the user, subscribe in both ways, greet, and wait."""
    str(request.user)
    with websocket.subscribe(f"room:{name}"), subscribe("news"):
        websocket.send("welcome")
        wait_in_a_helper(websocket)


@websocket(until_logout=False)
def stays(request: HttpRequest, websocket: WebSocket) -> HttpResponse:
    """Stay after the logout, without a greenlet."""
    assert request.user.is_authenticated
    return websocket.listen("news")


@websocket
def anonymous(request: HttpRequest, websocket: WebSocket, channel: str) -> HttpResponse:
    """Have a greenlet no longer."""
    return websocket.listen(channel)


async def rest() -> None:
    """Wait for long."""
    await asyncio.sleep(3600)  # here waits the coroutine


@websocket
async def coroutine(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Wait in another coroutine."""
    await websocket.send("welcome")
    await rest()


class Works(WebsocketConsumer):  # type: ignore[misc]
    """Blocks while it handles a message."""

    groups = ("workers",)

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Work for long."""
        self.send("working")
        time.sleep(3600)  # here waits the consumer


class Idles(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Waits while it handles a message, and waits for none."""

    groups = ("idlers",)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Work for long."""
        await self.send("working")
        await rest()


@websocket
def hangs(request: HttpRequest, websocket: WebSocket) -> None:
    """Keep the whole process waiting when told to."""
    import gevent.monkey

    sleep: Any = gevent.monkey.get_original("time", "sleep")
    websocket.receive()
    websocket.send("hanging")
    sleep(3)


urlpatterns = [
    path("room/<str:name>/", room),
    path("stays/", stays),
    path("listen/<str:channel>/", anonymous),
    path("coroutine/", coroutine),
    path("works/", Works.as_asgi()),
    path("idles/", Idles.as_asgi()),
    path("hangs/", hangs),
    re_path("(?s)^any/.*$", anonymous, {"channel": "any"}),
]

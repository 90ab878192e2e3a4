"""`queries.executes` as an asynchronous view and as consumers, beside the site's other views."""

from __future__ import annotations

from typing import Any

from asgiref.sync import sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from django.http import HttpRequest
from django.urls import path

from django_websocket.asgi.websocket import AsyncWebSocket
from django_websocket.decorators import websocket

from . import websocket_urls
from .queries import execute

KEY = "x"


@websocket
async def executes(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """See `queries.executes`."""
    kept: list[object] = []
    async for text in websocket:
        await websocket.send_json(await sync_to_async(execute)(text, KEY, kept))


class Executes(WebsocketConsumer):  # type: ignore[misc]
    """See `queries.executes`."""

    def connect(self) -> None:
        """Accept."""
        self.kept: list[object] = []
        self.accept()

    def receive(self, text_data: Any = None, bytes_data: Any = None) -> None:
        """Execute it."""
        self.send(str(execute(text_data, KEY, self.kept)))


class AsyncExecutes(AsyncWebsocketConsumer):  # type: ignore[misc]
    """See `queries.executes`."""

    async def connect(self) -> None:
        """Accept."""
        self.kept: list[object] = []
        await self.accept()

    async def receive(self, text_data: Any = None, bytes_data: Any = None) -> None:
        """Execute it."""
        await self.send(str(await sync_to_async(execute)(text_data, KEY, self.kept)))


urlpatterns = [
    *websocket_urls.urlpatterns,
    path("queries/executes-async/", executes),
    path("queries/executes-consumer/", Executes.as_asgi()),
    path("queries/executes-async-consumer/", AsyncExecutes.as_asgi()),
]

"""Consumers for tests without a server, in a urlconf and as an ASGI application."""

from __future__ import annotations

from typing import Any

from asgiref.sync import async_to_sync
from channels.auth import AuthMiddlewareStack
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path


class Room(WebsocketConsumer):  # type: ignore[misc]
    """A chat; the room "count" says who asks and how many notes there are."""

    def connect(self) -> None:
        self.room = self.scope["url_route"]["kwargs"]["room"]
        if self.room == "closed":
            self.close()
            return
        async_to_sync(self.channel_layer.group_add)(self.room, self.channel_name)
        self.accept()

    def receive(self, text_data: str = "", bytes_data: bytes = b"") -> None:
        if self.room == "count":
            self.send(f"{self.scope['user'].username}: {count()}")
        else:
            message = {"type": "say", "text": f"{self.scope['user'].pk}: {text_data}"}
            async_to_sync(self.channel_layer.group_send)(self.room, message)

    def say(self, event: dict[str, Any]) -> None:
        self.send(event["text"])


class AsyncRoom(AsyncWebsocketConsumer):  # type: ignore[misc]
    """The same."""

    async def connect(self) -> None:
        self.room = self.scope["url_route"]["kwargs"]["room"]
        if self.room == "closed":
            await self.close()
            return
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()

    async def receive(self, text_data: str = "", bytes_data: bytes = b"") -> None:
        if self.room == "count":
            await self.send(f"{self.scope['user'].username}: {await database_sync_to_async(count)()}")
        else:
            message = {"type": "say", "text": f"{self.scope['user'].pk}: {text_data}"}
            await self.channel_layer.group_send(self.room, message)

    async def say(self, event: dict[str, Any]) -> None:
        await self.send(event["text"])


def count() -> int:
    """Return the number of notes."""
    from .models import Note

    return Note.objects.count()


urlpatterns = [path("sync/<room>/", Room.as_asgi()), path("async/<room>/", AsyncRoom.as_asgi())]
application = ProtocolTypeRouter({"websocket": AuthMiddlewareStack(URLRouter(list(urlpatterns)))})

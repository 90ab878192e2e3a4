"""Channels as its documentation shows it: consumers behind the origin check, sessions and authentication."""

import json
import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "djangosite.settings")
http = get_asgi_application()  # sets Django up, before Channels is imported

from asgiref.sync import async_to_sync  # noqa: E402
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.generic.websocket import (  # noqa: E402
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    WebsocketConsumer,
)
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.urls import path  # noqa: E402


class Echo(AsyncWebsocketConsumer):
    async def connect(self):
        _ = self.scope["user"].is_authenticated
        await self.accept()

    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data=text_data, bytes_data=bytes_data)


class Lookup(AsyncJsonWebsocketConsumer):
    async def connect(self):
        _ = self.scope["user"].is_authenticated
        await self.accept()

    async def receive_json(self, content):
        user = await User.objects.aget(pk=content["user"])
        await self.send_json({"from": content["from"], "user": user.pk, "text": content["text"]})

    @classmethod
    async def encode_json(cls, content):
        return json.dumps(content, separators=(",", ":"))  # as compact as it came


class Chat(AsyncWebsocketConsumer):
    async def connect(self):
        _ = self.scope["user"].is_authenticated
        await self.channel_layer.group_add("chat", self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        await self.channel_layer.group_discard("chat", self.channel_name)

    async def receive(self, text_data=None, bytes_data=None):
        await self.channel_layer.group_send("chat", {"type": "chat.message", "text": text_data})

    async def chat_message(self, event):
        await self.send(text_data=event["text"])


class CoreChat(Chat):
    channel_layer_alias = "core"


class SyncEcho(WebsocketConsumer):
    def connect(self):
        _ = self.scope["user"].is_authenticated
        self.accept()

    def receive(self, text_data=None, bytes_data=None):
        self.send(text_data=text_data, bytes_data=bytes_data)


class SyncChat(WebsocketConsumer):
    groups = ["chat"]

    def receive(self, text_data=None, bytes_data=None):
        async_to_sync(self.channel_layer.group_send)("chat", {"type": "chat.message", "text": text_data})

    def chat_message(self, event):
        self.send(text_data=event["text"])


routes = [
    path("echo-sync/", SyncEcho.as_asgi()),
    path("chat-sync/", SyncChat.as_asgi()),
    path("echo/", Echo.as_asgi()),
    path("lookup/", Lookup.as_asgi()),
    path("chat/", Chat.as_asgi()),
    path("chat-core/", CoreChat.as_asgi()),
]
application = ProtocolTypeRouter(
    {"http": http, "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(routes)))}
)

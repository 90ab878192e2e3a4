"""Consumers that do what a server has to endure."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import gevent
from asgiref.sync import async_to_sync
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from django.db import transaction
from django.http import HttpRequest, HttpResponseBase
from django.urls import path

from .models import Note

LARGE = "x" * 600_000


def counting(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """Middleware that uses the database."""

    def count(request: HttpRequest) -> HttpResponseBase:
        Note.objects.count()
        return get_response(request)

    return count


def fork() -> int:
    """Fork. gevent's first os.fork() looks at its children only behind it, and would miss the end of a quick one."""
    gevent.get_hub().loop.install_sigchld()
    return os.fork()


def wait_for_end(pid: int) -> None:
    """Wait until gevent has noted the end of a child process."""
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.01)


class Rough(WebsocketConsumer):  # type: ignore[misc]
    """Does what the client asks for."""

    def connect(self) -> None:
        if self.scope["query_string"] == b"atomic":
            with transaction.atomic():
                self.accept()
        else:
            self.accept()

    def receive(self, text_data: str = "", bytes_data: bytes = b"") -> None:
        word, _, argument = text_data.partition(" ")
        getattr(self, word)(argument)

    def echo(self, text: str) -> None:
        self.send(text)

    def endless(self, _: str) -> None:
        while True:
            self.send(LARGE[:1000])

    def save(self, text: str) -> None:
        with transaction.atomic():
            Note.objects.create(text=f"{text} 1")
            for _ in range(20):
                self.send(LARGE)
            Note.objects.create(text=f"{text} 2")
        self.send(str(Note.objects.filter(text__startswith=text).count()))

    def join(self, group: str) -> None:
        async_to_sync(self.channel_layer.group_add)(group, self.channel_name)
        self.send("joined")

    def say(self, group: str) -> None:
        async_to_sync(self.channel_layer.group_send)(group, {"type": "said", "text": "said"})

    def said(self, event: dict[str, Any]) -> None:
        self.send(event["text"])

    def flush(self, _: str) -> None:
        async_to_sync(self.channel_layer.flush)()
        self.send("flushed")

    def time_out(self, _: str) -> None:
        gevent.Timeout(0.05).start()  # and nobody closes it
        self.send("started")

    def fork(self, _: str) -> None:
        if pid := fork():
            wait_for_end(pid)
            self.send("child ended")


class AsyncRough(AsyncWebsocketConsumer):  # type: ignore[misc]
    """The same, as far as a coroutine may do it."""

    async def receive(self, text_data: str = "", bytes_data: bytes = b"") -> None:
        word, _, argument = text_data.partition(" ")
        await getattr(self, word)(argument)

    async def echo(self, text: str) -> None:
        await self.send(text)

    async def endless(self, _: str) -> None:
        while True:
            await self.send(LARGE[:1000])

    async def fork(self, _: str) -> None:
        if pid := fork():
            wait_for_end(pid)
            await self.send("child ended")


urlpatterns = [path("sync/", Rough.as_asgi()), path("async/", AsyncRough.as_asgi())]

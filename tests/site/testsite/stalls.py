"""Views, a page and a consumer that hold the loop; a urlconf of both pages and WebSockets."""

from __future__ import annotations

import os
import re
import time
from typing import Any

from asgiref.sync import sync_to_async
from channels.generic.websocket import WebsocketConsumer
from django.http import HttpRequest, HttpResponse
from django.urls import path
from gevent import monkey

from django_websocket.asgi.websocket import AsyncWebSocket
from django_websocket.decorators import websocket
from django_websocket.websocket import WebSocket

native_sleep = monkey.get_original("time", "sleep")
waitpid = monkey.get_original("os", "waitpid")  # gevent's may miss a child that ends at once
LONG = 0.25  # seconds


def hold(how: str) -> None:
    """Hold the loop for a while, or do something else."""
    if how == "sleep":
        native_sleep(LONG)
    elif how == "compute":
        end = time.thread_time() + LONG  # the machine may have little time for this
        while time.thread_time() < end:
            pass
    elif how == "match":
        re.match("(a+)+$", "a" * 23 + "b")
    elif how == "fork":
        pid = os.fork()
        if not pid:
            os._exit(0)
        waitpid(pid, 0)
    elif how == "pause":
        time.sleep(LONG)  # gevent's, where it has patched the process
    elif how == "for ever":
        while True:
            pass


@websocket
def view(request: HttpRequest, websocket: WebSocket) -> None:
    for how in websocket:
        hold(str(how))
        websocket.send(how)


@websocket
async def coroutine(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    async for how in websocket:
        hold(str(how))
        await websocket.send(how)


@websocket
async def waits_for_others(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    async for how in websocket:
        await sync_to_async(hold)(str(how))
        await websocket.send(how)


class Consumer(WebsocketConsumer):  # type: ignore[misc]
    def receive(self, text_data: Any = None, bytes_data: Any = None) -> None:
        hold(text_data)
        self.send(text_data)


def page(request: HttpRequest, how: str) -> HttpResponse:
    hold(how)
    return HttpResponse()


urlpatterns = [
    path("view/", view),
    path("coroutine/", coroutine),
    path("waits-for-others/", waits_for_others),
    path("consumer/", Consumer.as_asgi()),
    path("page/<str:how>/", page),
]

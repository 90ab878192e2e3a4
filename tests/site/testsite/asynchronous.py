"""Pages and views that run asyncio, in every way that a project may, beside those that know nothing of it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth import get_user_model
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.utils.decorators import async_only_middleware

from django_websocket.decorators import websocket
from django_websocket.websocket import WebSocket

from .models import Note

PAUSE = 0.02  # seconds that asynchronous code waits, while others run


async def count_notes() -> int:
    """Ask the database, which Django does in a thread of its own, between two moments of waiting."""
    await asyncio.sleep(PAUSE)
    count = await Note.objects.acount()
    await asyncio.sleep(PAUSE)
    return count


async def block() -> int:
    """Block in the middle of a coroutine, which asyncio's documentation tells nobody to do."""
    time.sleep(PAUSE)
    return await Note.objects.acount()


WAYS: dict[str, Callable[[], int]] = {
    "asyncio.run": lambda: asyncio.run(count_notes()),
    "async_to_sync": lambda: async_to_sync(count_notes)(),
    "async ORM": lambda: async_to_sync(Note.objects.acount)(),
    "blocking": lambda: asyncio.run(block()),
    "plain": Note.objects.count,
}


@websocket
def counts(request: HttpRequest, websocket: WebSocket) -> None:
    """Count in the way that a message names."""
    for way in websocket:
        websocket.send(str(WAYS[str(way)]()))


def counting_page(request: HttpRequest, way: str) -> HttpResponse:
    """The same as a page."""
    return HttpResponse(str(WAYS[way]()))


async def page(request: HttpRequest) -> JsonResponse:
    """A page that is a coroutine: it has a user, and waits for the database and for time."""
    await asyncio.sleep(PAUSE)
    user = await request.auser()
    count = await sync_to_async(Note.objects.count)()
    users = [found.username async for found in get_user_model().objects.all()]
    return JsonResponse({"user": user.get_username(), "notes": count, "users": len(users)})


@async_only_middleware
def waits(get_response: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> Any:
    """Wait before each response and behind it, as middleware does that asks another service."""

    async def middleware(request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(PAUSE)
        response = await get_response(request)
        await asyncio.sleep(PAUSE)
        response["X-Waited"] = "yes"
        return response

    return middleware


def modules(request: HttpRequest) -> JsonResponse:
    """Which of the package's modules for asynchronous code this process has imported."""
    return JsonResponse([name for name in sys.modules if name.startswith("django_websocket.asgi.")], safe=False)


pages = [path("counts/<str:way>/", counting_page), path("page/", page), path("modules/", modules)]
urlpatterns = [path("counts/", counts)]

"""Views whose clients get the past of a channel, or a snapshot, first: what they want stands in the query, as JSON."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.template import engines
from django.urls import path

from django_websocket.asgi.websocket import AsyncWebSocket
from django_websocket.decorators import websocket
from django_websocket.exceptions import ConnectionClosed, MessagesMissed
from django_websocket.pubsub import history, position, publish
from django_websocket.websocket import WebSocket

from . import probe


def wishes(request: HttpRequest, snapshots: dict[str, Callable[[], Any]]) -> tuple[list[str], dict[str, Any]]:
    """Return the channels besides the first, and the options."""
    options = json.loads(request.GET.get("options", "{}"))
    if "snapshot" in options:
        options["snapshot"] = snapshots[options["snapshot"]]
    return options.pop("and", []), options


def missed(request: HttpRequest) -> HttpResponse:
    """Answer in place of the handshake."""
    probe.note(request, "missed")
    return HttpResponse("load the present state", status=410, content_type="text/plain")


def snapshots(request: HttpRequest, channel: str) -> dict[str, Callable[[], Any]]:
    """Return the functions that may be named."""

    def generator() -> Iterator[Any]:
        yield "one"
        yield b"\xff\0"
        yield {"three": 3}

    def raises() -> Any:
        raise KeyError("the database is away")

    def publishes() -> str:
        publish(channel, "by the snapshot")
        return "state"

    def slow() -> str:
        probe.note(request, "snapshot")
        probe.wait_at_gate(request)
        return "state"

    def slow_generator() -> Iterator[str]:
        yield "part 1"
        slow()
        yield "part 2"

    return {
        "text": lambda: "state",
        "bytes": lambda: b"\xff\0",
        "dict": lambda: {"state": [1, None]},
        "none": lambda: None,
        "generator": generator,
        "raises": raises,
        "publishes": publishes,
        "slow": slow,
        "slow generator": slow_generator,
    }


@websocket
def subscribes(request: HttpRequest, websocket: WebSocket, channel: str) -> HttpResponseBase | None:
    """Subscribe the client, publish what it sends, and unsubscribe it when it says "leave"."""
    more, options = wishes(request, snapshots(request, channel))
    try:
        with websocket.subscribe(channel, *more, **options):
            probe.note(request, "subscribed")
            for message in websocket:
                if message == "leave":
                    break
                publish(channel, message)
        websocket.send("left")
    except MessagesMissed:
        return missed(request)
    except ConnectionClosed:
        probe.note(request, f"closed {websocket.close_code}")
        raise
    return None


@websocket
def listens(request: HttpRequest, websocket: WebSocket, channel: str) -> HttpResponseBase:
    """Subscribe the client for good."""
    more, options = wishes(request, snapshots(request, channel))
    try:
        return websocket.listen(channel, *more, **options)
    except MessagesMissed:
        return missed(request)
    finally:
        probe.note(request, "over")


def asynchronous_snapshots(request: HttpRequest, channel: str) -> dict[str, Callable[[], Any]]:
    """Return the same as coroutine functions; "plain" is not one."""
    plain = snapshots(request, channel)

    def coroutine(name: str) -> Callable[[], Any]:
        async def call() -> Any:
            await asyncio.sleep(0)
            return plain[name]()

        return call

    async def generator() -> AsyncIterator[Any]:
        for item in plain["generator"]():
            await asyncio.sleep(0)
            yield item

    async def slow() -> str:
        probe.note(request, "snapshot")
        while not probe.is_open(request):
            await asyncio.sleep(0.01)
        return "state"

    async def slow_generator() -> AsyncIterator[str]:
        yield "part 1"
        await slow()
        yield "part 2"

    found = {name: coroutine(name) for name in ("text", "bytes", "dict", "none", "raises", "publishes")}
    return {
        **found,
        "plain": plain["text"],
        "plain generator": plain["generator"],
        "generator": generator,
        "slow": slow,
        "slow generator": slow_generator,
    }


@websocket
async def subscribes_asynchronously(
    request: HttpRequest, websocket: AsyncWebSocket, channel: str
) -> HttpResponseBase | None:
    """Do what `subscribes` does, in a coroutine."""
    more, options = wishes(request, asynchronous_snapshots(request, channel))
    try:
        async with websocket.subscribe(channel, *more, **options):
            probe.note(request, "subscribed")
            async for message in websocket:
                if message == "leave":
                    break
                publish(channel, message)
        await websocket.send("left")
    except MessagesMissed:
        return missed(request)
    except ConnectionClosed:
        probe.note(request, f"closed {websocket.close_code}")
        raise
    return None


@websocket
async def listens_asynchronously(request: HttpRequest, websocket: AsyncWebSocket, channel: str) -> HttpResponseBase:
    """Do what `listens` does, in a coroutine."""
    more, options = wishes(request, asynchronous_snapshots(request, channel))
    try:
        return await websocket.listen(channel, *more, **options)
    except MessagesMissed:
        return missed(request)
    finally:
        probe.note(request, "over")


def ends(request: HttpRequest, channel: str) -> JsonResponse:
    """Tell where the channel ends, and what it has kept of text, with positions."""
    kept = [[str(each.message), each.position] for each in history(channel)]
    return JsonResponse({"position": position(channel), "kept": kept})


def publish_numbers(request: HttpRequest, channel: str, first: int, last: int) -> HttpResponse:
    """Publish numbers, each filled up to a size."""
    for number in range(first, last):
        publish(channel, f"{number} ".ljust(int(request.GET.get("size", 0)), "."))
    return HttpResponse("published")


def address(request: HttpRequest) -> HttpResponse:
    """Note the time, wait at the gate if there is a key, and give the address of a WebSocket, twice."""
    if "key" in request.GET:
        probe.note(request, str(time.time()))
        probe.wait_at_gate(request)
    tag = "{% websocket_url 'echo' %}"
    template = engines["django"].from_string("{% load websockets %}" + f"{tag} {tag}")
    return HttpResponse(template.render({}, request), content_type="text/plain")


pages = [
    path("address/", address),
    path("ends/<str:channel>/", ends),
    path("numbers/<str:channel>/<int:first>/<int:last>/", publish_numbers),
]
urlpatterns = [
    path("sync/subscribes/<str:channel>/", subscribes),
    path("sync/listens/<str:channel>/", listens),
    path("async/subscribes/<str:channel>/", subscribes_asynchronously),
    path("async/listens/<str:channel>/", listens_asynchronously),
]

"""The WebSockets for clients that speak the package's subprotocol, beside all others of the site."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, ExitStack
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, URLResolver, include, path

from django_websocket.asgi.websocket import AsyncWebSocket
from django_websocket.decorators import websocket
from django_websocket.websocket import WebSocket

from . import applications, asynchronous, consumers, probe, websocket_urls


@websocket(subprotocols=["v2.example", "v1.example"])
def obeys(request: HttpRequest, websocket: WebSocket) -> None:
    """Do what each message says; a block ends with "leave" or with the view."""
    websocket.accept()
    try:
        with ExitStack() as blocks:
            for message in websocket:
                word, *args = json.loads(message)
                if word == "subscribe":
                    blocks.enter_context(websocket.subscribe(*args[0], **args[1]))
                elif word == "subscribe without a block":
                    websocket.subscribe(*args[0], **args[1])
                elif word == "leave":
                    blocks.close()
                elif word == "send":
                    websocket.send(bytes.fromhex(args[1]) if args[0] == "binary" else args[1])
                elif word == "offered":
                    websocket.send_json(websocket.protocol)
                elif word == "raise":
                    raise ValueError("raised by a view")
                else:
                    break
    finally:
        probe.note(request, f"ended {websocket.close_code}")


@websocket(subprotocols=["v2.example", "v1.example"])
async def obeys_asynchronously(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Do the same in a coroutine."""
    await websocket.accept()
    try:
        async with AsyncExitStack() as blocks:
            async for message in websocket:
                word, *args = json.loads(message)
                if word == "subscribe":
                    await blocks.enter_async_context(websocket.subscribe(*args[0], **args[1]))
                elif word == "subscribe without a block":
                    await websocket.subscribe(*args[0], **args[1])
                elif word == "leave":
                    await blocks.aclose()
                elif word == "send":
                    await websocket.send(bytes.fromhex(args[1]) if args[0] == "binary" else args[1])
                elif word == "offered":
                    await websocket.send_json(websocket.protocol)
                elif word == "raise":
                    raise ValueError("raised by a view")
                else:
                    break
    finally:
        probe.note(request, f"ended {websocket.close_code}")


@websocket(refuse="close", subprotocols=["v1.example"])
def refuses(request: HttpRequest, websocket: WebSocket) -> HttpResponse:
    """Refuse by a close code."""
    return HttpResponse(status=403)


@websocket(receive=False)
def only_sends(request: HttpRequest, websocket: WebSocket, channel: str) -> None:
    """Subscribe the client, whose messages are dropped, until the gate is open."""
    with websocket.subscribe(channel):
        probe.wait_at_gate(request)
        websocket.send("end")


async def tells_its_scope(scope: Any, receive: Any, send: Any) -> None:
    """Tell an application's subprotocols, accept with the last of them, and echo."""
    offered = scope["subprotocols"]
    await receive()
    await send({"type": "websocket.accept", "subprotocol": offered[-1] if offered else None})
    await send({"type": "websocket.send", "text": json.dumps(offered)})
    while (event := await receive())["type"] == "websocket.receive":
        kind = "bytes" if event.get("text") is None else "text"
        await send({"type": "websocket.send", kind: event[kind]})


urlpatterns: list[URLPattern | URLResolver] = [
    path("obeys/sync/", obeys),
    path("obeys/async/", obeys_asynchronously),
    path("echoes/async/", asynchronous.echo),
    path("echoes/application/", applications.pingpong),
    path("echoes/consumer/sync/", consumers.Echo.as_asgi()),
    path("echoes/consumer/async/", consumers.AsyncEcho.as_asgi()),
    path("consumer/sync/", consumers.Sync.as_asgi()),
    path("consumer/async/", consumers.Async.as_asgi()),
    path("tells-its-scope/", tells_its_scope),
    path("refuses/", refuses),
    path("only-sends/<str:channel>/", only_sends),
    path("", include(websocket_urls)),
]

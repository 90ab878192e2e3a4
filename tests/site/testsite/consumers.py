"""Channels' consumers, as projects write them: in WEBSOCKET_URLCONF, and behind the routers of a project's asgi.py.

Most of them take the steps that a test sends: lists of a word and its arguments, see `Steps.take`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testsite.settings")
django.setup()  # for where this is a project's asgi.py

from asgiref.sync import async_to_sync, sync_to_async  # noqa: E402
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.consumer import AsyncConsumer, SyncConsumer  # noqa: E402
from channels.db import database_sync_to_async  # noqa: E402
from channels.exceptions import AcceptConnection, DenyConnection, StopConsumer  # noqa: E402
from channels.generic.websocket import (  # noqa: E402
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)
from channels.layers import get_channel_layer  # noqa: E402
from channels.middleware import BaseMiddleware  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.http import HttpRequest, HttpResponse, QueryDict  # noqa: E402
from django.urls import path  # noqa: E402

from . import probe  # noqa: E402
from .applications import Asked, as_text  # noqa: E402
from .models import Note  # noqa: E402

RAISED = {kind.__name__: kind for kind in (ValueError, AcceptConnection, DenyConnection, StopConsumer)}
STEPS = Sequence[Sequence[Any]]

# --- echoes ----------------------------------------------------------------------------------------------------------


class Echo(WebsocketConsumer):  # type: ignore[misc]
    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.send(text_data=text_data, bytes_data=bytes_data)


class AsyncEcho(AsyncWebsocketConsumer):  # type: ignore[misc]
    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.send(text_data=text_data, bytes_data=bytes_data)


class KeywordEcho(WebsocketConsumer):  # type: ignore[misc]
    def receive(self, *, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.send(text_data=text_data, bytes_data=bytes_data)


class AsyncKeywordEcho(AsyncWebsocketConsumer):  # type: ignore[misc]
    async def receive(self, *, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.send(text_data=text_data, bytes_data=bytes_data)


class JsonEcho(JsonWebsocketConsumer):  # type: ignore[misc]
    def receive_json(self, content: Any, **kwargs: Any) -> None:
        self.send_json({"said": content})


class AsyncJsonEcho(AsyncJsonWebsocketConsumer):  # type: ignore[misc]
    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        await self.send_json({"said": content})


class BareEcho(SyncConsumer):  # type: ignore[misc]
    def websocket_connect(self, event: Any) -> None:
        self.send({"type": "websocket.accept"})

    def websocket_receive(self, event: Any) -> None:
        kind = "bytes" if event.get("text") is None else "text"
        self.send({"type": "websocket.send", kind: event[kind]})

    def websocket_disconnect(self, event: Any) -> None:
        probe.note(Asked(self.scope), str(event["code"]))  # type: ignore[arg-type]
        raise StopConsumer


class AsyncBareEcho(AsyncConsumer):  # type: ignore[misc]
    async def websocket_connect(self, event: Any) -> None:
        await self.send({"type": "websocket.accept"})

    async def websocket_receive(self, event: Any) -> None:
        kind = "bytes" if event.get("text") is None else "text"
        await self.send({"type": "websocket.send", kind: event[kind]})

    async def websocket_disconnect(self, event: Any) -> None:
        probe.note(Asked(self.scope), str(event["code"]))  # type: ignore[arg-type]
        raise StopConsumer


# --- steps -----------------------------------------------------------------------------------------------------------


class Steps:
    """What a consumer does that takes steps, whether it is asynchronous or not."""

    scope: Any
    channel_layer: Any
    channel_name: str
    accept: Callable[..., Any]
    close: Callable[..., Any]
    send: Callable[..., Any]
    background: Callable[[STEPS], Any]
    sleep: Callable[[float], Any]
    hang: Callable[[], Any]
    until: Callable[[threading.Event], Any]
    count: Callable[[], Any]
    call: Callable[..., Any]

    def given(self, name: str) -> Any:
        """Return the steps that the query has for an event, or None."""
        query = QueryDict(self.scope["query_string"])
        return json.loads(query[name]) if name in query else None

    def note(self, text: str) -> None:
        probe.note(Asked(self.scope), text)  # type: ignore[arg-type]

    def take(self, step: Sequence[Any]) -> Any:
        """Take a step; return what is to be awaited, if anything."""
        word, *args = step
        if word in ("accept", "close"):
            options = dict(args[0]) if args else {}
            if "headers" in options:
                options["headers"] = [(name.encode(), value.encode()) for name, value in options["headers"]]
            return getattr(self, word)(**options)
        if word == "send":
            return self.send(text_data=args[0])
        if word == "name":
            return self.send(text_data=self.channel_name)
        if word == "note":
            return self.note(args[0])
        if word == "raise":
            raise RAISED[args[0]](*args[1:])
        if word == "sleep":
            return self.sleep(args[0])
        if word in ("hang", "cling"):
            return self.hang()
        if word == "wait":
            return self.until(probe._gates[args[0]])
        if word == "background":
            return self.background(args[0])
        if word in ("add", "discard"):
            group, channel = [*args, self.channel_name][:2]
            return self.call(getattr(self.channel_layer, f"group_{word}"), group, channel)
        if word in ("group_send", "layer_send"):
            return self.call(getattr(self.channel_layer, word.removeprefix("layer_")), *args)
        if word == "count":
            return self.count()
        if word == "scope":
            return self.send(text_data=json.dumps(self.described(), default=as_text))
        if word == "layer":
            return self.send(text_data=f"{id(self.channel_layer)} {id(get_channel_layer())}")
        raise NotImplementedError(word)

    def described(self) -> dict[str, Any]:
        """Return the scope, and what of it no JSON has."""
        before = self.scope.get("mark")
        self.scope["mark"] = "set before"
        user = self.scope["user"]
        return {
            **{name: value for name, value in self.scope.items() if name not in ("user", "session", "headers")},
            "headers": {name.decode(): value.decode() for name, value in self.scope["headers"]},
            "mark": before,
            "user type": type(user).__name__,
            "username": user.username,
            "authenticated": user.is_authenticated,
            "session keys": sorted(self.scope["session"].keys()),
        }


class Async(Steps, AsyncWebsocketConsumer):  # type: ignore[misc]
    async def connect(self) -> None:
        steps = self.given("connect")
        await self.take_all([["accept"]] if steps is None else steps)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.take_all(json.loads(text_data or "[]"))

    async def disconnect(self, code: int) -> None:
        self.note(f"disconnect {code}")
        await self.take_all(self.given("disconnect") or [])

    async def take_all(self, steps: STEPS) -> None:
        """Take steps, and note what goes wrong unless that was asked for."""
        for step in steps:
            try:
                result = self.take(step)
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                if step[0] in ("raise", "hang"):
                    raise
                self.note(f"{type(error).__name__}: {error}")

    async def background(self, steps: STEPS) -> None:
        self.task = asyncio.create_task(self.take_all(steps))

    async def until(self, gate: threading.Event) -> None:
        while not gate.is_set():
            await asyncio.sleep(0.01)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def hang(self) -> None:
        try:
            await asyncio.sleep(60)
        except BaseException:
            self.note("interrupted")
            raise

    async def call(self, method: Callable[..., Any], *args: Any) -> None:
        await method(*args)

    async def count(self) -> None:
        def count() -> int:
            return Note.objects.count()

        number = await database_sync_to_async(count)() + await Note.objects.acount()
        await self.send(text_data=f"{number} notes")

    async def said(self, event: Any) -> None:
        self.note(f"said {event['text']}")
        await self.send(text_data=event["text"])

    async def chat_message(self, event: Any) -> None:
        await self.send(text_data=f"chat.message {event['text']}")

    async def message(self, event: Any) -> None:
        await self.send(text_data=f"message {event['text']}")

    async def steps(self, event: Any) -> None:
        await self.take_all(event["steps"])

    async def shown(self, event: Any) -> None:
        await self.send(text_data=repr(event["value"]))


class Sync(Steps, WebsocketConsumer):  # type: ignore[misc]
    def connect(self) -> None:
        steps = self.given("connect")
        self.take_all([["accept"]] if steps is None else steps)

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.take_all(json.loads(text_data or "[]"))

    def disconnect(self, code: int) -> None:
        self.note(f"disconnect {code}")
        self.take_all(self.given("disconnect") or [])

    def take_all(self, steps: STEPS) -> None:
        """Take steps, and note what goes wrong unless that was asked for."""
        for step in steps:
            try:
                self.take(step)
            except Exception as error:
                if step[0] in ("raise", "hang"):
                    raise
                self.note(f"{type(error).__name__}: {error}")

    def background(self, steps: STEPS) -> None:
        threading.Thread(target=self.take_all, args=[steps]).start()

    def until(self, gate: threading.Event) -> None:
        gate.wait(probe.WAIT)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def hang(self) -> None:
        try:
            time.sleep(60)
        except BaseException:
            self.note("interrupted")
            raise

    def call(self, method: Callable[..., Any], *args: Any) -> None:
        async_to_sync(method)(*args)

    def count(self) -> None:
        self.send(text_data=f"{Note.objects.count()} notes")

    def said(self, event: Any) -> None:
        self.note(f"said {event['text']}")
        self.send(text_data=event["text"])

    def chat_message(self, event: Any) -> None:
        self.send(text_data=f"chat.message {event['text']}")

    def message(self, event: Any) -> None:
        self.send(text_data=f"message {event['text']}")

    def steps(self, event: Any) -> None:
        self.take_all(event["steps"])

    def shown(self, event: Any) -> None:
        self.send(text_data=repr(event["value"]))


class JsonSteps(Sync, JsonWebsocketConsumer):  # type: ignore[misc]
    """Its `send_json` can be called by a message."""


class AsyncJsonSteps(Async, AsyncJsonWebsocketConsumer):  # type: ignore[misc]
    """Its `send_json` can be called by a message."""


class InGroup(Sync):
    """It joins the group of its URL before `connect`, as a class with `groups` does."""

    def websocket_connect(self, message: Any) -> None:
        self.groups = [self.scope["url_route"]["kwargs"]["group"]]
        super().websocket_connect(message)


class AsyncInGroup(Async):
    """It joins the group of its URL before `connect`, as a class with `groups` does."""

    async def websocket_connect(self, message: Any) -> None:
        self.groups = [self.scope["url_route"]["kwargs"]["group"]]
        await super().websocket_connect(message)


# --- consumers that are called in other ways -------------------------------------------------------------------------


class OwnCall(Sync):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        probe.note(Asked(scope), "called")  # type: ignore[arg-type]
        await super().__call__(scope, receive, send)


class AsyncOwnCall(Async):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        probe.note(Asked(scope), "called")  # type: ignore[arg-type]
        await super().__call__(scope, receive, send)


class OwnDispatch(Sync):
    async def dispatch(self, message: Any) -> None:
        self.note("dispatch")
        await super().dispatch(message)


class AsyncOwnDispatch(Async):
    async def dispatch(self, message: Any) -> None:
        self.note("dispatch")
        await super().dispatch(message)


async def calls(scope: Any, receive: Any, send: Any) -> None:
    await Sync()(scope, receive, send)


async def async_calls(scope: Any, receive: Any, send: Any) -> None:
    await Async()(scope, receive, send)


class Outer:
    """Middleware of the kind that has no base."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        await self.inner({**scope, "middleware": "class"}, receive, send)


def around(inner: Any) -> Any:
    async def middleware(scope: Any, receive: Any, send: Any) -> Any:
        scope = {**scope, "middleware": "function"}
        scope["notes"] = await sync_to_async(Note.objects.count)()
        return await inner(scope, receive, send)

    return middleware


class Based(BaseMiddleware):  # type: ignore[misc]
    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        return await super().__call__({**scope, "middleware": "base"}, receive, send)


def shouting(inner: Any) -> Any:
    """Wrap `send`."""

    async def middleware(scope: Any, receive: Any, send: Any) -> Any:
        async def shout(event: Any) -> None:
            if event["type"] == "websocket.send" and event.get("text") is not None:
                event = {**event, "text": f"{event['text']}!"}
            await send(event)

        return await inner({**scope, "middleware": "send"}, receive, shout)

    return middleware


# --- with other layers, and with bounds ------------------------------------------------------------------------------


def on_layer(alias: str) -> dict[str, Any]:
    """Return both kinds of consumers on another layer, by their paths."""
    kinds = {f"async-{alias}": Async, f"sync-{alias}": Sync}
    return {
        name: type(kind.__name__, (kind,), {"channel_layer_alias": alias}).as_asgi()  # type: ignore[attr-defined]
        for name, kind in kinds.items()
    }


class Floods(WebsocketConsumer):  # type: ignore[misc]
    """It sends more than a client takes that does not read."""

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        probe.note(Asked(self.scope), "begins")  # type: ignore[arg-type]
        for _ in range(500):
            self.send("x" * 100_000)

    def disconnect(self, code: int) -> None:
        probe.note(Asked(self.scope), f"disconnect {code}")  # type: ignore[arg-type]


class AsyncFloods(AsyncWebsocketConsumer):  # type: ignore[misc]
    """It sends more than a client takes that does not read."""

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        probe.note(Asked(self.scope), "begins")  # type: ignore[arg-type]
        for _ in range(500):
            await self.send("x" * 100_000)

    async def disconnect(self, code: int) -> None:
        probe.note(Asked(self.scope), f"disconnect {code}")  # type: ignore[arg-type]


# --- routes ----------------------------------------------------------------------------------------------------------

KINDS: Mapping[str, Any] = {
    "sync": Sync.as_asgi(),
    "async": Async.as_asgi(),
    "sync-json": JsonSteps.as_asgi(),
    "async-json": AsyncJsonSteps.as_asgi(),
    "sync-own-call": OwnCall.as_asgi(),
    "async-own-call": AsyncOwnCall.as_asgi(),
    "sync-own-dispatch": OwnDispatch.as_asgi(),
    "async-own-dispatch": AsyncOwnDispatch.as_asgi(),
    "sync-called": calls,
    "async-called": async_calls,
    "sync-class": Outer(Sync.as_asgi()),
    "async-class": Outer(Async.as_asgi()),
    "sync-function": around(Sync.as_asgi()),
    "async-function": around(Async.as_asgi()),
    "sync-base": Based(Sync.as_asgi()),
    "async-base": Based(Async.as_asgi()),
    "sync-send": shouting(Sync.as_asgi()),
    "async-send": shouting(Async.as_asgi()),
    "sync-floods": Floods.as_asgi(),
    "async-floods": AsyncFloods.as_asgi(),
    **on_layer("core"),
    **on_layer("pubsub"),
    **on_layer("theirs"),
    "echo/sync": Echo.as_asgi(),
    "echo/async": AsyncEcho.as_asgi(),
    "echo/sync-keyword": KeywordEcho.as_asgi(),
    "echo/async-keyword": AsyncKeywordEcho.as_asgi(),
    "echo/sync-bare": BareEcho.as_asgi(),
    "echo/async-bare": AsyncBareEcho.as_asgi(),
    "json/sync": JsonEcho.as_asgi(),
    "json/async": AsyncJsonEcho.as_asgi(),
}

urlpatterns = [
    *(path(f"{name}/", application) for name, application in KINDS.items()),
    path("in-group/sync/<str:group>/", InGroup.as_asgi()),
    path("in-group/async/<str:group>/", AsyncInGroup.as_asgi()),
    path("rooms/<slug:room>/<int:number>/sync/", Sync.as_asgi(), {"default": "of the route"}),
    path("rooms/<slug:room>/<int:number>/async/", Async.as_asgi(), {"default": "of the route"}),
]

nested = URLRouter(
    [
        path("deeper/<int:number>/", URLRouter([path("sync/", Sync.as_asgi()), path("async/", Async.as_asgi())])),
        path("<slug:name>/async/", Outer(Async.as_asgi()), {"default": "of the inner route"}),
    ]
)


# --- pages -----------------------------------------------------------------------------------------------------------


def pages(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Answer for the page /said/, which says something to a group."""

    def middleware(request: HttpRequest) -> HttpResponse:
        if request.path != "/said/":
            return get_response(request)
        group, how = request.GET["group"], request.GET["how"]
        event = {"type": "said", "text": how}
        layer = get_channel_layer()
        if how == "page":
            async_to_sync(layer.group_send)(group, event)
        elif how == "thread":
            thread = threading.Thread(target=lambda: async_to_sync(layer.group_send)(group, event))
            thread.start()
            thread.join()
        else:
            asyncio.run(layer.group_send(group, event))
        return HttpResponse(how)

    return middleware


# --- a project's asgi.py ----------------------------------------------------------------------------------------------

application = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": AuthMiddlewareStack(URLRouter([*urlpatterns, path("nested/<slug:room>/", nested)])),
    }
)

"""ASGI applications, as servers for ASGI take them."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import Any
from urllib.parse import parse_qsl

from django.core.exceptions import PermissionDenied
from django.http import QueryDict
from django.urls import include, path
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount, WebSocketRoute
from starlette.websockets import WebSocket

from django_websocket.routing import mount

from . import probe


class Asked:
    """What the probe knows a request by."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self.GET = QueryDict(scope["query_string"])


async def pingpong(scope: Any, receive: Any, send: Any) -> None:
    """Follow the article that docs/async.md names, but for its text."""
    while True:
        event = await receive()
        if event["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        if event["type"] == "websocket.disconnect":
            probe.note(Asked(scope), f"{event['code']} {event['reason']}".strip())  # type: ignore[arg-type]
            break
        if event["type"] == "websocket.receive":
            kind = "bytes" if event["text"] is None else "text"
            await send({"type": "websocket.send", kind: event[kind]})


async def describe(scope: Any, receive: Any, send: Any) -> None:
    """Tell the scope."""
    await send({"type": "websocket.accept", "subprotocol": dict(parse_qsl(scope["query_string"].decode())).get("sub")})
    await send({"type": "websocket.send", "text": json.dumps(scope, default=as_text)})


def as_text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return str(value)


async def follow(scope: Any, receive: Any, send: Any) -> None:
    """Take the steps that the query lists, and note what they bring."""
    asked: Any = Asked(scope)
    try:
        for step in json.loads(asked.GET["steps"]):
            try:
                await take(step, receive, send, asked)
            except (OSError, RuntimeError, TypeError, ValueError) as error:
                if step == "raise":
                    raise
                probe.note(asked, f"{type(error).__name__}: {error}")
    finally:
        probe.note(asked, "end")


async def take(step: Any, receive: Any, send: Any, asked: Any) -> None:
    """Take one step: send an event, or do what a word says."""
    if step == "receive":
        probe.note(asked, json.dumps(await receive(), default=as_text))
    elif step == "receive in time":
        try:
            probe.note(asked, json.dumps(await asyncio.wait_for(receive(), 0.05), default=as_text))
        except asyncio.TimeoutError:
            probe.note(asked, "nothing")
    elif step == "receive in a task":
        asyncio.ensure_future(take("receive", receive, send, asked))  # noqa: RUF006
        await asyncio.sleep(0.05)
    elif step == "pause":
        await asyncio.sleep(0.1)
    elif step == "receive for ever":
        while True:
            await receive()
    elif step == "raise":
        raise ValueError("raised by an application")
    elif step == "forbid":
        raise PermissionDenied
    else:
        for key in ("bytes", "body"):
            if isinstance(step.get(key), str) and step.get("really") is None:
                step[key] = step[key].encode()
        if "headers" in step:
            step["headers"] = [(name.encode(), value.encode()) for name, value in step["headers"]]
        await send(step)


async def flood(scope: Any, receive: Any, send: Any) -> None:
    """Send more than a client takes that does not read."""
    await send({"type": "websocket.accept"})
    try:
        for _ in range(100):
            await send({"type": "websocket.send", "text": "x" * 1_000_000})
    except OSError as error:
        probe.note(Asked(scope), type(error).__name__)  # type: ignore[arg-type]
        raise


class Callable:
    """An application that is an object."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await pingpong(scope, receive, send)


async def with_more(more: Any, scope: Any, receive: Any, send: Any) -> None:
    await pingpong(scope, receive, send)


@functools.wraps(pingpong)
async def wrapped(*args: Any) -> None:
    await pingpong(*args)


# --- a whole application ---------------------------------------------------------------------------------------------


class lifespan:  # noqa: N801
    """Note the begin and the end of the process."""

    def __init__(self, application: Starlette) -> None:
        pass

    async def __aenter__(self) -> dict[str, Any]:
        print("lifespan: begin", flush=True)
        return {"pool": "of the process"}

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.sleep(0.01)
        print("lifespan: end", flush=True)


async def talk(websocket: WebSocket) -> None:
    """Tell where it is and who asks, and echo."""
    await websocket.accept()
    user = websocket.scope["user"]
    await websocket.send_json(
        {
            "path": websocket.url.path,
            "root_path": websocket.scope["root_path"],
            "name": websocket.path_params["name"],
            "pool": websocket.state.pool,
            "user": user.get_username(),
            "back": websocket.url_for("talk", name="ann").path,
        }
    )
    async for message in websocket.iter_text():
        await websocket.send_text(message)


async def deny(websocket: WebSocket) -> None:
    raise HTTPException(status_code=418, detail="a teapot")


starlette = Starlette(
    routes=[
        WebSocketRoute("/talk/{name}", talk, name="talk"),
        Mount("/deeper", routes=[WebSocketRoute("/deny", deny)]),
    ],
    lifespan=lifespan,
)


async def unaware(scope: Any, receive: Any, send: Any) -> None:
    """Serve WebSockets, and nothing else."""
    if scope["type"] != "websocket":
        raise NotImplementedError(scope["type"])
    await pingpong(scope, receive, send)


async def cannot_begin(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})


urlpatterns = [
    path("pingpong/", pingpong),
    path("object/", Callable()),
    path("partial/", functools.partial(with_more, "more")),
    path("wrapped/", wrapped),
    path("describe/<int:number>/", describe),
    path("follow/", follow),
    path("flood/", flood),
    mount("starlette/", starlette),
    path("tenants/<str:tenant>/", include([mount("starlette/", starlette)])),
    mount("bare/", describe, lifespan=False),
    mount("unaware/", unaware),
    mount("cannot-begin/", cannot_begin),
]

"""The site of the soak: every kind of view, and workers that write down what they hold.

Each worker writes its figures as JSON into a file that has the name of its process, in the directory of the environment
variable TESTSITE_FIGURES. While a file `lull` is there, it collects garbage first, since nobody is connected then.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from asgiref.sync import async_to_sync
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from django.db.models import F
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from greenlet import greenlet

from django_websocket import pubsub
from django_websocket.asgi.websocket import AsyncWebSocket
from django_websocket.decorators import websocket, websocket_loop
from django_websocket.exceptions import BrokerError
from django_websocket.select import select
from django_websocket.signals import websocket_connected
from django_websocket.transport.shared import open_connections
from django_websocket.transport.waiting import ViewGreenlet
from django_websocket.websocket import WebSocket

from . import history, presences
from .models import Tally

PIECE = "x" * 16_000  # in which a view pours
POURED = 120  # pieces
TOLD = 300  # types, of which there are the most objects
LOADING = 1.0  # seconds until the worker has loaded everything

handshakes: Counter[str] = Counter()

# --- echoes ----------------------------------------------------------------------------------------------------------


@websocket
def view(request: HttpRequest, websocket: WebSocket) -> None:
    """Answer each message with itself."""
    for message in websocket:
        websocket.send(message)


@websocket_loop
def loop(request: HttpRequest, websocket: WebSocket) -> None:
    """Answer a message with itself."""
    message = websocket.receive()
    if message is not None:
        websocket.send(message)


@websocket
def selects(request: HttpRequest, websocket: WebSocket) -> None:
    """Answer each message with itself, and wait for a channel meanwhile, to which nobody publishes."""
    with pubsub.subscribe("nothing") as messages:
        while not websocket.closed:
            ready, _, _ = select([websocket, messages], [], [])
            if websocket in ready and (message := websocket.receive()) is not None:
                websocket.send(message)


@websocket
async def coroutine(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Answer each message with itself."""
    async for message in websocket:
        await websocket.send(message)


class Consumer(WebsocketConsumer):  # type: ignore[misc]
    """It answers each message with itself."""

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.send(text_data=text_data, bytes_data=bytes_data)


class AsyncConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """It answers each message with itself."""

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.send(text_data=text_data, bytes_data=bytes_data)


# --- a database ------------------------------------------------------------------------------------------------------


@websocket
def adds(request: HttpRequest, websocket: WebSocket) -> None:
    """Add one to the client's tally for each message, and answer with the sum; `0` only asks."""
    tally, _ = Tally.objects.get_or_create(name=request.GET["name"])
    for message in websocket:
        if message != "0":
            Tally.objects.filter(pk=tally.pk).update(count=F("count") + 1)
        tally.refresh_from_db()
        websocket.send(f"{tally.count}")


@websocket
async def adds_in_a_coroutine(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Do the same."""
    tally, _ = await Tally.objects.aget_or_create(name=request.GET["name"])
    async for message in websocket:
        if message != "0":
            await Tally.objects.filter(pk=tally.pk).aupdate(count=F("count") + 1)
        await tally.arefresh_from_db()
        await websocket.send(f"{tally.count}")


# --- groups of Channels ----------------------------------------------------------------------------------------------

GROUP = "everybody"
FAILED = "failed"  # a client is told that the broker is away


class Member(WebsocketConsumer):  # type: ignore[misc]
    """It is in a group, and tells the group what its client says."""

    groups = [GROUP]

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        try:
            async_to_sync(self.channel_layer.group_send)(GROUP, {"type": "said", "text": text_data})
        except BrokerError:
            self.send(FAILED)

    def said(self, event: Any) -> None:
        self.send(event["text"])


class AsyncMember(AsyncWebsocketConsumer):  # type: ignore[misc]
    """It does the same in coroutines."""

    groups = [GROUP]

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        try:
            await self.channel_layer.group_send(GROUP, {"type": "said", "text": text_data})
        except BrokerError:
            await self.send(FAILED)

    async def said(self, event: Any) -> None:
        await self.send(event["text"])


# --- others ----------------------------------------------------------------------------------------------------------


@websocket
def listens(request: HttpRequest, websocket: WebSocket) -> HttpResponse:
    """Let the client listen to a channel without a history; the view is over then."""
    return websocket.listen(request.GET["channel"])


@websocket
def pours(request: HttpRequest, websocket: WebSocket) -> None:
    """Send more than a system keeps for a client that does not read, as fast as the client reads it."""
    for number in range(POURED):
        websocket.send(f"{number}:{PIECE}")
    websocket.receive()


ECHOES = {
    "view": view,
    "loop": loop,
    "selects": selects,
    "coroutine": coroutine,
    "consumer": Consumer.as_asgi(),
    "async-consumer": AsyncConsumer.as_asgi(),
}
ADDS = {"adds": adds, "adds-in-a-coroutine": adds_in_a_coroutine}
MEMBERS = {"member": Member.as_asgi(), "async-member": AsyncMember.as_asgi()}

urlpatterns = [
    *(path(f"{name}/", kind) for name, kind in {**ECHOES, **ADDS, **MEMBERS}.items()),
    path("listens/", listens),
    path("pours/", pours),
    path("history/", include((history.urlpatterns, "history"))),
    path("presence/", include((presences.urlpatterns, "presence"))),
]

# --- what a worker holds ---------------------------------------------------------------------------------------------


def figures(*, quiet: bool) -> dict[str, Any]:
    """Count what the process holds, beside what it held when it began to count."""
    if quiet:
        gc.collect()
    things = gc.get_objects()
    types = Counter(map(type, things))
    names: Counter[str] = Counter()
    for kind, count in types.items():
        names[f"{kind.__module__}.{kind.__qualname__}"] += count
    return {
        "time": time.monotonic(),
        "quiet": quiet,
        "handshakes": handshakes.total(),
        "connections": len(open_connections()),
        "views": len(ViewGreenlet.running),
        "greenlets": sum(not thing.dead for thing in things if isinstance(thing, greenlet)),
        "channels": sum(len(hub.channels) for hub in pubsub.process.hubs.values()),
        "blocks": sys.getallocatedblocks(),
        "objects": len(things),
        "types": dict(names.most_common(TOLD)) if quiet else {},
    }


def count_handshake(**kwargs: Any) -> None:
    """Take note of a client that has connected."""
    handshakes["taken"] += 1


def tell(directory: Path, seconds: float) -> None:
    """Write the figures down again and again; `seconds` lie between two of them, and less while there is a lull."""
    # What the program itself consists of, some 100,000 objects, would hold up the clients each time it is counted.
    time.sleep(LOADING)
    gc.collect()
    gc.freeze()
    path, lull = directory / f"{os.getpid()}.json", directory / "lull"
    while True:
        quiet = lull.exists()
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(figures(quiet=quiet)))
        unfinished.rename(path)
        end = time.monotonic() + seconds
        while time.monotonic() < end and (quiet or not lull.exists()):
            time.sleep(0.25)
            if quiet:
                break


if "TESTSITE_FIGURES" in os.environ:
    told: dict[str, Any] = json.loads(os.environ["TESTSITE_FIGURES"])
    websocket_connected.connect(count_handshake)
    threading.Thread(target=tell, args=(Path(told["directory"]), told["seconds"]), daemon=True).start()

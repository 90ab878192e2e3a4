"""Pages and views that run asyncio, in every way that a project may, beside those that know nothing of it."""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from asgiref.sync import async_to_sync, markcoroutinefunction, sync_to_async
from django.contrib.auth import get_user_model
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseForbidden, JsonResponse
from django.urls import path
from django.utils import timezone
from django.utils.decorators import async_only_middleware, method_decorator
from django.utils.translation import get_language
from django.views import View

from django_websocket.asgi.websocket import AsyncWebSocket
from django_websocket.decorators import websocket, websocket_loop
from django_websocket.exceptions import WebSocketError
from django_websocket.logins import login
from django_websocket.pubsub import publish
from django_websocket.websocket import WebSocket

from . import probe
from .middleware import current_tenant
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


# --- views that are coroutines ---------------------------------------------------------------------------------------


@websocket
async def knows_by_first_message(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Log in the user whom the first message names, as a token does."""
    login(request, await get_user_model().objects.aget(username=await websocket.receive()))
    user = await request.auser()
    async for message in websocket:
        await websocket.send(f"{user.get_username()}: {message!s}")


@websocket
async def echo(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Send back whatever comes, and note how it ended."""
    try:
        async for message in websocket:
            await websocket.send(message)
    finally:
        probe.note(request, f"{websocket.close_code} {websocket.close_reason}".strip())


@websocket
async def keeps_its_context(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Do the same, with something on the request that has the view's context, as timers and tasks have."""
    request.context = contextvars.copy_context()  # type: ignore[attr-defined]
    async for message in websocket:
        await websocket.send(message)


@websocket_loop
async def loop(request: HttpRequest, websocket: AsyncWebSocket, name: str) -> None:
    """Answer a message; the decorator calls this for each one."""
    await websocket.send(f"{name}: {await websocket.receive()!s}")


@websocket_loop
async def leaves_its_message(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Take nothing."""


class Echo(View):
    """An echo as a class."""

    @method_decorator(websocket)
    async def get(self, request: HttpRequest, websocket: AsyncWebSocket, name: str) -> None:
        async for message in websocket:
            await websocket.send(f"{name}: {message!s}")


async def undecorated(request: HttpRequest) -> None:
    """An echo without a decorator."""
    websocket = request.META["wsgi.websocket"]
    while not websocket.closed:
        message = await websocket.receive()
        if message is not None:
            await websocket.send(message)


@websocket
async def calls(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Call what a message names, and send what came of it."""
    async for command in websocket:
        try:
            result: Any = await CALLS[str(command)](request, websocket)
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        await websocket.send_json(result)


async def receives_within(request: HttpRequest, websocket: AsyncWebSocket) -> str:
    """Try to receive for a moment, then for longer."""
    for timeout in (0, 0.01, -1):
        try:
            await websocket.receive(timeout)
        except TimeoutError:
            continue
        return "no TimeoutError"
    await websocket.send("timed out")
    return str(await websocket.receive(30))


async def receives_nan(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Receive with a timeout that is no number."""
    return await websocket.receive(math.nan)


async def receives_twice(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Receive in two tasks."""
    first = asyncio.ensure_future(websocket.receive())
    await asyncio.sleep(0)
    try:
        return await websocket.receive()
    finally:
        first.cancel()
        await asyncio.wait([first])


async def receives_json(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Receive JSON."""
    return [await websocket.receive_json(), await websocket.receive_json(30)]


async def tells_about_itself(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Tell what the WebSocket and its surroundings are."""
    return {
        "closed": websocket.closed,
        "code": websocket.close_code,
        "reason": websocket.close_reason,
        "id": websocket.id,
        "latency": websocket.latency,
        "path": websocket.path,
        "language": get_language(),
        "zone": timezone.get_current_timezone_name(),
        "tenant": current_tenant.get(),
    }


async def queries_synchronously(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Make a query that blocks."""
    return Note.objects.count()


async def queries(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Make queries in all ways that do not block."""
    await Note.objects.acreate(text="written")
    return [
        await Note.objects.acount(),
        await sync_to_async(Note.objects.count)(),
        await sync_to_async(Note.objects.count, thread_sensitive=False)(),
        len([note async for note in Note.objects.all()]),
    ]


async def counts_notes(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Write and count, in the ways that may share a transaction with others."""
    await Note.objects.acreate(text="written")
    return [
        await Note.objects.acount(),
        await sync_to_async(Note.objects.count)(),
        len([note async for note in Note.objects.all()]),
    ]


async def counts_in_synchronous_code(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Call synchronous code that calls asynchronous code, which calls synchronous code."""

    async def count() -> int:
        return await Note.objects.acount()

    return await sync_to_async(async_to_sync(count))()


async def search_paths(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Ask the database which schema it looks in."""

    def ask() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SHOW search_path")
            return str(cursor.fetchone()[0])

    return [await sync_to_async(ask)(), await sync_to_async(ask)()]


async def in_atomic(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Tell whether a transaction is open."""
    return await sync_to_async(lambda: connection.in_atomic_block)()


async def closes(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Close with a code and a reason, and note what a later call does."""
    await websocket.close(4321, "bye")
    try:
        await websocket.send("too late")
    except WebSocketError as error:
        probe.note(request, type(error).__name__)
    probe.note(request, f"{await websocket.receive()!r} {websocket.close_code} {websocket.close_reason}")
    raise WebSocketError


async def closes_wrongly(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Close with a code that may not be sent."""
    await websocket.close(1006)


async def sends_no_message(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Send an object that is not a message."""
    await websocket.send({"a": 1})  # type: ignore[arg-type]


async def publishes(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Publish, which blocks no other view."""
    return publish(request.GET["channel"], "published")


async def asks_for_user(request: HttpRequest, websocket: AsyncWebSocket) -> Any:
    """Tell the name of the user."""
    return (await request.auser()).get_username()


CALLS: dict[str, Callable[[HttpRequest, AsyncWebSocket], Awaitable[Any]]] = {
    function.__name__: function
    for function in (
        receives_within,
        receives_nan,
        receives_twice,
        receives_json,
        tells_about_itself,
        queries_synchronously,
        queries,
        counts_in_synchronous_code,
        counts_notes,
        search_paths,
        in_atomic,
        closes,
        closes_wrongly,
        sends_no_message,
        publishes,
        asks_for_user,
    )
}


@websocket
async def waits_again_and_again(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Echo, and give up waiting every other moment."""
    timeouts = 0
    while not websocket.closed:
        try:
            message = await asyncio.wait_for(websocket.receive(), 0.0005)
        except asyncio.TimeoutError:
            timeouts += 1
            continue
        if message == "end":
            await websocket.send_json(timeouts)
        elif message is not None:
            await websocket.send(message)


@websocket
async def sends_in_tasks(request: HttpRequest, websocket: AsyncWebSocket, size: int) -> None:
    """Send from several tasks at once, more than the buffers hold."""
    await websocket.receive()

    async def send(task: int) -> None:
        for number in range(20):
            await websocket.send(f"{task} {number} ".ljust(size, "x"))

    await asyncio.gather(*(send(task) for task in range(5)))


@websocket(subprotocols=["v2.example", "v1.example"])
async def subprotocols(request: HttpRequest, websocket: AsyncWebSocket, how: str) -> None:
    """Accept with a subprotocol, a header and a cookie."""
    websocket.response["X-Header"] = "set"
    websocket.response.set_cookie("flavour", "oat")
    await websocket.accept(subprotocol=None if how == "first" else how)
    await websocket.accept()
    await websocket.send("accepted")


def answer(how: str) -> HttpResponse | None:
    """Return a response, or raise."""
    if how == "return":
        return None
    if how == "403":
        return HttpResponseForbidden("no entry")
    if how == "404":
        raise Http404("nobody here")
    if how == "denied":
        raise PermissionDenied
    if how == "exit":
        sys.exit("a view calls sys.exit()")
    if how == "cancel":
        raise asyncio.CancelledError
    raise ValueError("raised by a view")


@websocket
async def refuse(request: HttpRequest, websocket: AsyncWebSocket, how: str) -> HttpResponse | None:
    """Answer before any acceptance."""
    await asyncio.sleep(0)
    return answer(how)


@websocket(refuse="close")
async def refuse_by_closing(request: HttpRequest, websocket: AsyncWebSocket, how: str) -> HttpResponse | None:
    """Refuse by a close frame."""
    return answer(how)


@websocket
async def end(request: HttpRequest, websocket: AsyncWebSocket, how: str) -> HttpResponse | None:
    """End after a message."""
    try:
        await websocket.receive()
        return answer(how)
    finally:
        probe.note(request, "finally")


@websocket
async def busy(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Wait for something else than the client, until cancelled."""
    await websocket.send("busy")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.sleep(0.01)
        probe.note(request, f"cancelled {websocket.close_code}")
        raise
    finally:
        count = await Note.objects.acount()
        probe.note(request, f"finally {count}")


@websocket
async def stubborn(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Wait for something else than the client, even when cancelled."""
    await websocket.send("stubborn")
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            probe.note(request, "cancelled")


@websocket
async def tidies_up(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Wait for the client, and then for something else."""
    try:
        async for _ in websocket:
            pass
    finally:
        await asyncio.sleep(0.05)
        probe.note(request, f"tidy {websocket.close_code}")


@websocket
async def never_accepts(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Take longer than a handshake may."""
    try:
        await asyncio.Event().wait()
    finally:
        probe.note(request, "finally")


@websocket
async def floods(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Send for ever."""
    try:
        while True:
            await websocket.send("x" * 65536)
    except WebSocketError as error:
        probe.note(request, type(error).__name__)
        raise


@websocket(max_message_size=100, origins=["https://partner.example"])
async def small(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Echo small messages to a partner's page."""
    async for message in websocket:
        await websocket.send(message)


@websocket(receive=False)
async def sends_only(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Send, and take nothing."""
    await websocket.send("only this")
    await websocket.receive()
    probe.note(request, "over")


@login_required
@websocket
async def members(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Greet a user who has logged in, and echo."""
    await websocket.send(f"hello {(await request.auser()).get_username()}")
    async for message in websocket:
        await websocket.send(message)


@websocket
async def looks_later(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    """Ask for the user only when a message has come."""
    await websocket.accept()
    async for message in websocket:
        user = await request.auser()
        await websocket.send(f"{message!r} {user.get_username()}")


@websocket
async def loses_patience(request: HttpRequest, websocket: AsyncWebSocket, channel: str) -> None:
    """Subscribe the client for a block, but give up soon."""
    await websocket.accept()

    async def subscribed() -> None:
        async with websocket.subscribe(channel):
            await websocket.receive()

    try:
        await asyncio.wait_for(subscribed(), 0.1)
    except asyncio.TimeoutError:
        await websocket.send("gave up")
    await websocket.receive()


@websocket
async def forward(request: HttpRequest, websocket: AsyncWebSocket, channel: str) -> None:
    """Subscribe the client for a block, and publish what it sends."""
    async with websocket.subscribe(channel):
        probe.note(request, "subscribed")
        async for message in websocket:
            if message == "leave":
                break
            publish(channel, message)
    await websocket.send("left")
    await websocket.receive()


@websocket
async def subscribed(request: HttpRequest, websocket: AsyncWebSocket, channel: str) -> None:
    """Subscribe the client until it says "leave"."""
    forwarding = await websocket.subscribe(channel)
    async for message in websocket:
        if message == "leave":
            forwarding.close()
            await websocket.send("left")


@websocket
async def listen(request: HttpRequest, websocket: AsyncWebSocket, channel: str) -> HttpResponse:
    """Subscribe the client for good, and end."""
    try:
        return await websocket.listen(channel)
    finally:
        probe.note(request, "over")


def observed(request: HttpRequest) -> Any:
    """A function of its own, so that receivers.py can name it as sender."""
    return echo(request)


observed = markcoroutinefunction(observed)


def makes_asynchronous(view: Callable[..., Any]) -> Callable[..., Any]:
    """Make any view a coroutine function, whatever it was."""

    @wraps(view)
    async def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return await sync_to_async(view)(request, *args, **kwargs)

    return wrapper


@makes_asynchronous
@websocket
def misplaced(request: HttpRequest, websocket: WebSocket) -> None:
    """Never run."""
    probe.note(request, "the view runs")


def loops(request: HttpRequest) -> JsonResponse:
    """Tell how many tasks the shared loop has."""
    from django_websocket.asgi.loop import shared_loop

    return JsonResponse(len(asyncio.all_tasks(shared_loop())), safe=False)


pages = [
    path("counts/<str:way>/", counting_page),
    path("page/", page),
    path("modules/", modules),
    path("tasks/", loops),
]
urlpatterns = [
    path("counts/", counts),
    path("echo/", echo),
    path("keeps-its-context/", keeps_its_context),
    path("knows-by-first-message/", knows_by_first_message),
    path("loop/<str:name>/", loop),
    path("leaves-its-message/", leaves_its_message),
    path("class/<str:name>/", Echo.as_view()),
    path("undecorated/", undecorated),  # type: ignore[arg-type] # it returns nothing
    path("calls/", calls),
    path("waits-again-and-again/", waits_again_and_again),
    path("sends-in-tasks/<int:size>/", sends_in_tasks),
    path("subprotocols/<str:how>/", subprotocols),
    path("refuse/<str:how>/", refuse),
    path("refuse-by-closing/<str:how>/", refuse_by_closing),
    path("end/<str:how>/", end),
    path("busy/", busy),
    path("stubborn/", stubborn),
    path("tidies-up/", tidies_up),
    path("never-accepts/", never_accepts),
    path("floods/", floods),
    path("small/", small),
    path("sends-only/", sends_only),
    path("members/", members),
    path("looks-later/", looks_later),
    path("loses-patience/<str:channel>/", loses_patience),
    path("forward/<str:channel>/", forward),
    path("subscribed/<str:channel>/", subscribed),
    path("listen/<str:channel>/", listen),
    path("observed/", observed),
    path("misplaced/", misplaced),
]

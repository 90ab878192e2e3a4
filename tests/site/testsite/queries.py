"""WebSocket views that use databases, and pages that look at what the views hold or end them in the middle."""

from __future__ import annotations

import contextlib
import gc
import socket
import sys
import weakref
from collections.abc import Callable
from select import select as standard_select
from typing import Any

import gevent
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from gevent import Greenlet

from django_websocket.decorators import websocket, websocket_loop
from django_websocket.pubsub import subscribe
from django_websocket.select import select
from django_websocket.websocket import WebSocket

from . import probe
from .models import Note

requests: dict[str, weakref.ref[HttpRequest]] = {}  # by their `key`
greenlets: dict[str, Greenlet[..., object]] = {}  # of views, by the request's `key`


@websocket
def asks(request: HttpRequest, websocket: WebSocket) -> None:
    """Use the ORM before acceptance and for each message."""
    websocket.send(str(Note.objects.count()))
    for _ in websocket:
        websocket.send(str(Note.objects.count()))


@websocket
def wraps(request: HttpRequest, websocket: WebSocket) -> None:
    """Tell by whom queries are seen: a middleware (hooks.py) sees them, too."""

    def see(execute: Any, *args: Any) -> Any:
        request.seen.append("view")  # type: ignore[attr-defined]
        return execute(*args)

    def seen() -> list[str]:
        request.seen = []  # type: ignore[attr-defined]
        Note.objects.count()
        return request.seen  # type: ignore[attr-defined, no-any-return]

    found = {"before": seen()}
    with connection.execute_wrapper(see):
        found["within"] = seen()
        websocket.accept()
        found["accepted"] = seen()
        websocket.receive()
        found["received"] = seen()
    found["after"] = seen()
    websocket.send_json(found)


def execute(text: str | bytes, key: str, kept: list[object]) -> int:
    """Execute something, and return the number of the database session in which that was."""
    if text == "ORM":
        with transaction.atomic():
            Note.objects.create(text=key)
        list(Note.objects.filter(text=key).iterator(chunk_size=2))
        Note.objects.filter(text=key).update(text=key)
        Note.objects.filter(text=key).exists()
    elif text == "iterator":
        notes = Note.objects.iterator(chunk_size=1)
        kept.append((notes, next(notes)))
    elif text == "cursor":
        kept.append(cursor := connection.cursor())
        cursor.execute("SELECT 1")
    elif text == "callproc":
        with connection.cursor() as cursor:
            cursor.callproc("now")
    elif text == "executemany":
        with connection.cursor() as cursor:
            cursor.executemany("SET statement_timeout = %s", [[60000], [50000]])
    elif text == "driver's":
        from psycopg.sql import SQL  # some tests have the site without it

        with connection.cursor() as cursor:
            cursor.execute(SQL("SELECT 1"))
    elif text not in ("", "select"):
        with connection.cursor() as cursor:
            cursor.execute(str(text))
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


@websocket
def executes(request: HttpRequest, websocket: WebSocket) -> None:
    """Execute what comes, and answer with the number of the database session in which that was."""
    kept: list[object] = []  # cursors that stay open
    for text in websocket:
        websocket.send_json(execute(text, request.GET["key"], kept))
        if text == "select":
            ours, theirs = socket.socketpair()
            with ours, theirs:
                select([websocket, ours], [], [])


@websocket
def asks_all(request: HttpRequest, websocket: WebSocket) -> None:
    """Use several databases for each message."""
    for _ in websocket:
        answers = {}
        for alias in connections:
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1")
                answers[alias] = cursor.fetchone()[0]
        websocket.send_json(answers)


@websocket
def sleeps(request: HttpRequest, websocket: WebSocket) -> None:
    """Run a query that takes as long as a test likes."""
    websocket.send("begins")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [request.GET.get("seconds", "60")])


@websocket
def ends(request: HttpRequest, websocket: WebSocket, how: str) -> None:
    """Write in a transaction, and end in the middle of it."""
    greenlets[request.GET["key"]] = gevent.getcurrent()  # type: ignore[assignment]
    Note.objects.count()
    websocket.accept()
    try:
        with transaction.atomic():
            Note.objects.create(text=request.GET["key"])
            websocket.send("written")
            if how == "raise":
                raise ValueError("raised in a transaction")
            if how == "exit":
                sys.exit("in a transaction")
            if how == "send":
                probe.wait_at_gate(request)
                websocket.send("too late")
            with connection.cursor() as cursor, contextlib.suppress(gevent.Timeout):
                if how == "timeout":
                    with gevent.Timeout(0.1):
                        cursor.execute("SELECT pg_sleep(60)")
                cursor.execute("SELECT pg_sleep(60)")
    finally:
        probe.note(request, f"{how}: finally")


@websocket
def listens(request: HttpRequest, websocket: WebSocket) -> HttpResponse:
    """Use the ORM, then end and let the client listen."""
    requests[request.GET["key"]] = weakref.ref(request)
    websocket.accept()
    Note.objects.count()
    return websocket.listen("nobody")


@websocket
def impatient(request: HttpRequest, websocket: WebSocket) -> None:
    """Use the database, but wait for it only for a moment."""
    websocket.accept()
    try:
        with gevent.Timeout(0.1, TimeoutError):
            Note.objects.count()
    except TimeoutError:
        websocket.send("TimeoutError")


@websocket
def tenant(request: HttpRequest, websocket: WebSocket) -> None:
    """Send the schemas that the database searches."""
    websocket.accept()
    if "schema" in request.GET:
        connection.tenant = request.GET["schema"]  # type: ignore[attr-defined]
    while not websocket.closed:
        with connection.cursor() as cursor:
            cursor.execute("SHOW search_path")
            websocket.send(cursor.fetchone()[0])
        websocket.receive()


@websocket
def in_atomic(request: HttpRequest, websocket: WebSocket, what: str) -> None:
    """Wait in a transaction for something that is there already."""
    websocket.accept()
    websocket.send("open")
    with subscribe(request.GET["key"]) as messages:
        probe.wait_at_gate(request)
        try:
            with transaction.atomic():
                if what == "receive":
                    websocket.receive()
                elif what == "receive-within":
                    websocket.receive(timeout=5)
                elif what == "iteration":
                    next(iter(websocket))
                elif what == "get":
                    messages.get()
                elif what == "select":
                    select([websocket], [], [], 5)
                elif what == "look":
                    select([websocket, messages], [], [], 0)
        except RuntimeError as error:
            probe.note(request, f"RuntimeError: {error}")
        else:
            probe.note(request, "fine")


ACCEPTING: dict[str, Callable[[WebSocket], object]] = {
    "accept": WebSocket.accept,
    "send": lambda websocket: websocket.send("x"),
    "receive": WebSocket.receive,
    "iteration": lambda websocket: next(iter(websocket)),
    "select": lambda websocket: select([websocket], [], []),
    "fileno": WebSocket.fileno,
    "socket": lambda websocket: websocket.handler.socket.fileno(),
    "subscribe": lambda websocket: websocket.subscribe("x"),
    "listen": lambda websocket: websocket.listen("x"),
    "close": lambda websocket: websocket.close(4000),
}


@websocket
def accepts_in_atomic(request: HttpRequest, websocket: WebSocket, how: str) -> HttpResponse:
    """Accept in a transaction, in each possible way, and answer with the result."""
    try:
        with transaction.atomic():
            ACCEPTING[how](websocket)
    except RuntimeError as error:
        return HttpResponse(f"RuntimeError: {error}", status=409)
    return HttpResponse("fine", status=409)


@websocket_loop
@transaction.atomic
def loop_in_atomic(request: HttpRequest, websocket: WebSocket) -> None:
    """Handle each message in a transaction of its own."""
    Note.objects.create(text=str(websocket.receive()))
    if websocket.readiness.inbox and request.GET.get("greedy"):
        websocket.receive()
    websocket.send("written")


@websocket
def library_in_atomic(request: HttpRequest, websocket: WebSocket) -> None:
    """Call, in a transaction, a library that waits for its own socket, as database drivers do."""
    websocket.accept()

    def backend() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    ours, theirs = socket.socketpair()
    with ours, theirs, transaction.atomic():
        before = backend()
        gevent.spawn_later(0.05, theirs.send, b"x")
        ready, _, _ = standard_select([ours], [], [])
        websocket.send(f"{len(ready)} {before == backend()}")


@websocket
def without_autocommit(request: HttpRequest, websocket: WebSocket) -> None:
    """Wait with an open transaction that is not an `atomic()` block."""
    websocket.accept()
    try:
        transaction.set_autocommit(False)
        Note.objects.create(text=request.GET["key"])
        websocket.receive()
    except RuntimeError as error:
        probe.note(request, f"RuntimeError: {error}")
    else:
        probe.note(request, "fine")


urlpatterns = [
    path("asks/", asks),
    path("executes/", executes),
    path("asks-all/", asks_all),
    path("wraps/", wraps),
    path("sleeps/", sleeps),
    path("ends/<str:how>/", ends),
    path("listens/", listens),
    path("impatient/", impatient),
    path("tenant/", tenant),
    path("in-atomic/<str:what>/", in_atomic),
    path("accepts-in-atomic/<str:how>/", accepts_in_atomic),
    path("loop-in-atomic/", loop_in_atomic),
    path("library-in-atomic/", library_in_atomic),
    path("without-autocommit/", without_autocommit),
]


def kill(request: HttpRequest, key: str) -> HttpResponse:
    """Kill a view's greenlet, whatever it is doing."""
    greenlets.pop(key).kill(block=False)
    return HttpResponse("killed")


def request_is_alive(request: HttpRequest, key: str) -> JsonResponse:
    """Tell whether a view's request is still in memory."""
    gc.collect()
    return JsonResponse(requests[key]() is not None, safe=False)


def pool(request: HttpRequest) -> JsonResponse:
    """Show the statistics of Django's connection pool."""
    return JsonResponse(connection.pool.get_stats())  # type: ignore[attr-defined]


pages = [
    path("kill/<str:key>/", kill),
    path("request-is-alive/<str:key>/", request_is_alive),
    path("pool/", pool),
]

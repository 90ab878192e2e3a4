"""WebSocket views of every kind."""

from __future__ import annotations

import gc
import os
import socket
import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import gevent
from django.conf import settings
from django.contrib.auth.decorators import login_required, permission_required, user_passes_test
from django.contrib.auth.views import redirect_to_login
from django.contrib.messages import get_messages
from django.contrib.sessions.backends.base import UpdateError
from django.core.exceptions import BadRequest, DisallowedRedirect, PermissionDenied
from django.db import connection, connections, transaction
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseForbidden,
    JsonResponse,
    StreamingHttpResponse,
)
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.utils.translation import get_language
from django.views import View

from django_websocket.decorators import websocket, websocket_loop
from django_websocket.exceptions import MessagesMissed, WebSocketError
from django_websocket.logins import disconnect
from django_websocket.pubsub import publish, subscribe
from django_websocket.select import select
from django_websocket.sessions import update_session
from django_websocket.websocket import WebSocket

from . import children, probe
from .middleware import current_tenant
from .models import Note

# --- conversations ---------------------------------------------------------------------------------------------------


@websocket
def echo(request: HttpRequest, websocket: WebSocket) -> None:
    """Answer each message with itself, and note how it ended."""
    try:
        for message in websocket:
            websocket.send(message)
    finally:
        probe.note(request, f"{websocket.close_code} {websocket.close_reason}".strip())


def observed(request: HttpRequest, how: str) -> HttpResponseBase:
    """End in one of several ways; the decorator is inside, so that receivers.py can name this function as sender."""
    return observed_view(request, how=how)


@websocket
def observed_by_coroutines(request: HttpRequest, websocket: WebSocket) -> None:
    """Echo; the receivers of the signals are coroutines."""
    for message in websocket:
        websocket.send(message)


@websocket
def observed_view(request: HttpRequest, websocket: WebSocket, how: str) -> HttpResponseBase | None:
    if how == "refuse":
        return HttpResponseForbidden("no entry")
    if how == "listen":
        return websocket.listen("nobody")
    if how == "raise":
        websocket.receive()
        raise ValueError("raised in the conversation")
    for message in websocket:
        websocket.send(message)
        websocket.send(message)
    return None


def undecorated(request: HttpRequest) -> None:
    """An echo without a decorator."""
    websocket = request.META["wsgi.websocket"]
    while not websocket.closed:
        message = websocket.receive()
        if message is not None:
            websocket.send(message)


class Echo(View):
    """An echo as a class."""

    answer = "echo: {}"

    @method_decorator(websocket)
    def get(self, request: HttpRequest, websocket: WebSocket, name: str) -> None:
        for message in websocket:
            websocket.send(f"{name}: {message!s}")


class Greeter:
    """A view that is an object; two of them compare equal, although they greet differently."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Greeter)

    def __hash__(self) -> int:
        return hash(Greeter)

    def __call__(self, request: HttpRequest) -> None:
        request.META["wsgi.websocket"].send(self.greeting)


@websocket_loop
def loop(request: HttpRequest, websocket: WebSocket, name: str) -> None:
    """Answer a message; the decorator calls this for each one."""
    websocket.send(f"{name}: {websocket.receive()!s}")


@websocket
def returns_nothing(request: HttpRequest, websocket: WebSocket) -> None:
    """Accept by returning."""
    probe.note(request, "returned")


@websocket
def about(request: HttpRequest, websocket: WebSocket, number: int) -> None:
    """Send what the conversation knows of its request, anew for each message."""
    for _ in websocket:
        match = request.resolver_match
        assert match is not None
        websocket.send_json(
            {
                "user": request.user.get_username(),
                "session": request.session.get("colour"),
                "language": get_language(),
                "tenant": current_tenant.get(),
                "view": match.view_name,
                "kwargs": match.kwargs,
                "page": reverse("page"),
                "path": request.path,
                "secure": request.is_secure(),
                "address": request.META["REMOTE_ADDR"],
                "is_atomic": connection.in_atomic_block,
                "websocket": [websocket.path, websocket.origin, websocket.protocol, websocket.version],
            }
        )


@websocket
def end(request: HttpRequest, websocket: WebSocket, how: str) -> HttpResponseBase | None:
    """Wait for a message, then end."""
    if how.startswith("listen-"):
        websocket.listen(how.removeprefix("listen-"))
        return HttpResponse("too late for that")
    try:
        websocket.receive()
        if how == "raise":
            raise ValueError("raised by a view")
        if how == "exit":
            sys.exit("a view calls sys.exit()")
        if how == "kill":
            raise gevent.GreenletExit
        if how == "404":
            raise Http404("too late for that")
        if how == "403":
            raise PermissionDenied("not any more")
        if how == "400":
            raise BadRequest("no sense")
        if how == "suspicious":
            raise DisallowedRedirect("not there")
        if how == "close":
            websocket.close(4321, "bye")
        if how == "close-and-wait":
            websocket.close(4321, "bye")
            probe.note(request, f"receive() gives {websocket.receive()!r}")
        if how == "response":
            return HttpResponse("too late for that")
        if how.startswith("response-"):
            return HttpResponse(status=int(how.removeprefix("response-")))
        if how == "login":
            return redirect_to_login(request.path)
        if how == "json":
            return JsonResponse({"ok": True})
        if how == "text":
            return "too late for that"  # type: ignore[return-value]
        return None
    finally:
        probe.note(request, "finally")


class RefusesLate(View):
    """A class whose own dispatch makes an answer of what its method raises, as those of REST frameworks do."""

    @method_decorator(websocket)
    def get(self, request: HttpRequest, websocket: WebSocket) -> None:
        websocket.receive()
        raise LookupError

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return super().dispatch(request, *args, **kwargs)
        except LookupError:
            return HttpResponse(status=429)


@websocket_loop
def loop_that_answers(request: HttpRequest, websocket: WebSocket) -> HttpResponseBase:
    """Returns something for each message."""
    message = websocket.receive()
    if message == "go":
        return HttpResponseForbidden()
    websocket.send(message or "")
    return HttpResponse()


@websocket
def receive_within(request: HttpRequest, websocket: WebSocket) -> None:
    """Wait for a message, but only for a while."""
    try:
        websocket.receive(timeout=0.05)
    except TimeoutError:
        websocket.send("TimeoutError")
    websocket.send(websocket.receive(timeout=30) or "")


@websocket
def takes(request: HttpRequest, websocket: WebSocket, how: str) -> None:
    """Take all messages, in one way or another, and answer none."""
    while not websocket.closed:
        if how == "select":
            select([websocket], [], [])
        websocket.receive(timeout=60 if how == "timeout" else None)


@websocket
def send_after_the_end(request: HttpRequest, websocket: WebSocket) -> None:
    """Wait until the client has left, then send."""
    while websocket.receive() is not None:
        pass
    try:
        websocket.send("too late")
    except WebSocketError as error:
        probe.note(request, "WebSocketError")
        raise error
    finally:
        probe.note(request, "finally")


@websocket
def busy(request: HttpRequest, websocket: WebSocket) -> None:
    """Wait for something that has nothing to do with the client."""
    websocket.accept()
    try:
        probe.note(request, "busy")
        probe.wait_at_gate(request)
        websocket.send(f"closed: {websocket.closed}")
        websocket.send(websocket.receive() or "")
    finally:
        probe.note(request, "finally")


def ask_for_all(request: HttpRequest) -> str:
    """Have Django parse everything in a request's head, and so keep the results in memory."""
    return f"{request.GET} {request.COOKIES} {request.headers} {request.get_full_path()}"


@websocket
def heads(request: HttpRequest, websocket: WebSocket) -> None:
    """Wait for messages with the whole parsed head of the request in memory."""
    ask_for_all(request)
    for message in websocket:
        websocket.send(message)


@websocket
def hoards(request: HttpRequest, websocket: WebSocket, channel: str) -> None:
    """Publish incompressible data until the client's outbox is nearly full, then neither receive nor end."""
    ask_for_all(request)
    with websocket.subscribe(channel):
        connection = websocket.connection
        assert connection is not None
        connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # else the system takes megabytes, too
        while connection._outbox.size < 900 * 1024:
            publish(channel, os.urandom(64 * 1024))
            gevent.sleep(0.001)
        while not connection._engine.paused and not connection._engine.unfinished[0]:
            gevent.sleep(0.01)
        probe.note(request, "full")
        while True:
            gevent.sleep(1)


@websocket
def deaf(request: HttpRequest, websocket: WebSocket) -> None:
    """Ignore that the server is shutting down."""
    websocket.accept()
    probe.note(request, "busy")
    while True:
        gevent.sleep(1)


@websocket
def computes(request: HttpRequest, websocket: WebSocket) -> None:
    """Compute without end, so that nothing else in the process runs."""
    websocket.receive()
    while True:
        pass


@websocket
def crowd(request: HttpRequest, websocket: WebSocket, channel: str) -> None:
    """Send from five greenlets at once while messages are published to the client, too."""

    def send(letter: str) -> None:
        for size in range(1, 200):
            websocket.send(letter * size * 200)

    with websocket.subscribe(channel):
        gevent.joinall([gevent.spawn(send, letter) for letter in "abcde"], raise_error=True)
        websocket.send("over")
        websocket.receive()  # the time for its close frame begins once it has read all this


@websocket
def flood(request: HttpRequest, websocket: WebSocket) -> None:
    """Send without end, and note how that fails."""
    try:
        while True:
            websocket.send("x" * 65536)
    except WebSocketError as error:
        probe.note(request, f"{type(error).__name__} {websocket.close_code}")
        raise


@websocket
def answers_at_length(request: HttpRequest, websocket: WebSocket) -> None:
    """Send without end, when asked to, messages that compress well or not at all."""
    message = "x" * 65536 if websocket.receive() == "" else os.urandom(65536)
    while True:
        websocket.send(message)


# --- options ---------------------------------------------------------------------------------------------------------


@websocket(subprotocols=["v2.example", "v1.example"])
def subprotocols(request: HttpRequest, websocket: WebSocket) -> None:
    """Offer two subprotocols."""
    websocket.send(str(websocket.protocol))


@websocket
def chooses(request: HttpRequest, websocket: WebSocket) -> None:
    """Choose a subprotocol in the view."""
    websocket.accept(subprotocol=request.GET["choice"])


@websocket(origins=["https://partner.example"])
def partners(request: HttpRequest, websocket: WebSocket) -> None:
    """Accept clients from the pages of one more site."""
    probe.note(request, "the view runs")
    websocket.send(str(websocket.origin))


@websocket(max_message_size=100)
def small(request: HttpRequest, websocket: WebSocket) -> None:
    """Accept small messages only."""
    for message in websocket:
        websocket.send(str(len(message)))


@websocket(receive=False)
def sends_only(request: HttpRequest, websocket: WebSocket) -> None:
    """Send only; drop what the client sends."""
    websocket.send("ready")
    probe.wait_at_gate(request)
    websocket.send("done")


@websocket(receive=False)
def ignores(request: HttpRequest, websocket: WebSocket) -> None:
    """Drop what the client sends, and ignore that the server is shutting down."""
    deaf(request)


@websocket(compression=False)
def uncompressed(request: HttpRequest, websocket: WebSocket) -> None:
    """An echo that compresses nothing."""
    for message in websocket:
        websocket.send(message)


# --- the handshake ---------------------------------------------------------------------------------------------------


@websocket
def refuse(request: HttpRequest, websocket: WebSocket, how: str) -> HttpResponseBase:
    """Answer before any acceptance."""
    probe.note(request, "the view runs")
    if how == "403":
        return HttpResponseForbidden("no entry")
    if how == "200":
        return HttpResponse("nothing for you")
    if how == "302":
        return redirect("/elsewhere/")
    if how == "at-length":
        return HttpResponseForbidden("no entry\n" * 1_000_000)
    if how == "header":
        return HttpResponseForbidden("no entry", headers={"No Name": "of a header"})
    if how == "404":
        raise Http404("nobody here")
    if how == "exit":
        sys.exit("before acceptance")
    raise ValueError("raised before acceptance")


@websocket
def has_helpers(request: HttpRequest, websocket: WebSocket) -> None:
    """Have greenlets wait for a channel on which nothing is published, each started by the one before."""

    def helper(more: int) -> None:
        if more:
            gevent.spawn(helper, more - 1)
        for _ in subscribe("nobody"):
            pass

    gevent.spawn(helper, 2)
    for message in websocket:
        websocket.send(message)


@websocket(refuse="close")
def refuse_by_closing(request: HttpRequest, websocket: WebSocket, how: str) -> HttpResponseBase | None:
    """Refuse by a close frame, whose code a page can read."""
    request.session["refused"] = how
    if how == "limit":
        return HttpResponse(status=429)
    if how == "login":
        return redirect_to_login(request.path)
    if how == "elsewhere":
        return redirect("https://elsewhere.example/")
    if how == "accept":
        return None
    return refuse(request, how=how)


@user_passes_test(lambda user: user.is_active and user.is_staff)  # as staff_member_required, without the admin
@websocket(refuse="close")
def staff_only(request: HttpRequest, websocket: WebSocket) -> None:
    """Greets the staff."""
    websocket.send("hello")


@permission_required("testsite.add_note")
@websocket(refuse="close")
def writers_only(request: HttpRequest, websocket: WebSocket) -> None:
    """Greets those who may write notes."""
    websocket.send("hello")


@websocket(refuse="http")
def refuse_by_status(request: HttpRequest, websocket: WebSocket, how: str) -> HttpResponseBase | None:
    """Refuse by an HTTP status, whatever the setting says."""
    return refuse(request, how=how)


@login_required
@websocket
def members(request: HttpRequest, websocket: WebSocket) -> None:
    """Greet a user who has logged in, and echo."""
    websocket.send(f"hello {request.user.get_username()}")
    for message in websocket:
        websocket.send(message)


@login_required
@websocket
def members_who_listen(request: HttpRequest, websocket: WebSocket) -> HttpResponseBase:
    """Let users who have logged in listen, without a greenlet."""
    return websocket.listen("members")


@login_required
@websocket(until_logout=False)
def members_who_stay(request: HttpRequest, websocket: WebSocket) -> None:
    """An echo for users who have logged in, which outlives their login."""
    for message in websocket:
        websocket.send(message)


@websocket
def whoever(request: HttpRequest, websocket: WebSocket) -> None:
    """Greet anybody by name, and echo."""
    websocket.send(f"hello {request.user.get_username() or 'stranger'}")
    for message in websocket:
        websocket.send(message)


@websocket
def looks_later(request: HttpRequest, websocket: WebSocket) -> None:
    """Keep the lazy user, and evaluate it only when a message has come."""
    user = request.user
    websocket.accept()
    for message in websocket:
        websocket.send(f"{message!r} {user.get_username()}")


@websocket
def updates_the_session(request: HttpRequest, websocket: WebSocket) -> None:
    """Count messages in the session."""
    for _ in websocket:
        try:
            with update_session(request) as session:
                session["count"] = session.get("count", 0) + 1
        except (RuntimeError, UpdateError) as error:
            websocket.send(f"{type(error).__name__}: {error}")
        else:
            websocket.send_json(dict(request.session))


@websocket
def sets_cookies(request: HttpRequest, websocket: WebSocket) -> None:
    """Start a session, and set a cookie and a header."""
    request.session["colour"] = "blue"
    websocket.response.set_cookie("flavour", "oat")
    websocket.response["X-Greeting"] = "hello"
    for message in websocket:
        websocket.send(message)


@websocket
def sets_a_header(request: HttpRequest, websocket: WebSocket) -> None:
    """Sets the header that the query names."""
    websocket.response[request.GET["name"]] = request.GET["value"]
    try:
        websocket.accept()
    except WebSocketError as error:
        probe.note(request, type(error).__name__)
        raise


@websocket
def accepts(request: HttpRequest, websocket: WebSocket) -> None:
    """Accept explicitly, and note the result."""
    try:
        websocket.accept()
    except Exception as error:
        probe.note(request, "WebSocketError" if isinstance(error, WebSocketError) else repr(error))
        raise
    else:
        probe.note(request, "accepted")
    finally:
        probe.note(request, "finally")


@websocket
def hesitates(request: HttpRequest, websocket: WebSocket) -> None:
    """Neither accept nor answer."""
    try:
        probe.wait_at_gate(request)
    finally:
        probe.note(request, "finally")


@websocket
def takes_its_time(request: HttpRequest, websocket: WebSocket) -> None:
    """Accept late, when the client may have left."""
    gevent.sleep(0.5)


# --- publish/subscribe -----------------------------------------------------------------------------------------------


@websocket
def listen(request: HttpRequest, websocket: WebSocket, channel: str) -> HttpResponseBase:
    """End at once and let the client listen; the query may name further channels and options."""
    query = request.GET
    options: Any = {name: query[name] for name in ("on_slow", "on_missed") if name in query}
    try:
        return websocket.listen(channel, *query.getlist("and"), **options)
    finally:
        probe.note(request, "over")


@websocket
def relay(request: HttpRequest, websocket: WebSocket, channel: str) -> None:
    """Send what is published from the view's own loop."""
    with subscribe(channel) as messages:
        websocket.send("subscribed")
        for message in messages:
            websocket.send(message)


@websocket
def subscribed(request: HttpRequest, websocket: WebSocket, channel: str) -> None:
    """Have what is published sent to the client."""
    with websocket.subscribe(channel):
        websocket.send("subscribed")
        websocket.receive()


@websocket
def tells_its_id(request: HttpRequest, websocket: WebSocket, when: str) -> None:
    """Send the connection's id, looked up before or after acceptance."""
    if when == "after":
        websocket.accept()
    websocket.send(websocket.id)
    for message in websocket:
        websocket.send(message)


@websocket
def ends_itself(request: HttpRequest, websocket: WebSocket) -> None:
    """Disconnect its own client, and check that one client was reached."""
    websocket.accept()
    while not (reached := disconnect(connection=websocket, code=4001, reason="1")):
        gevent.sleep(0.05)  # until the process listens for such orders
    assert reached == 1


@websocket
def forward(request: HttpRequest, websocket: WebSocket, channel: str) -> None:
    """Have what is published sent to the client, and publish what the client sends."""
    with websocket.subscribe(channel):
        probe.note(request, "subscribed")
        for message in websocket:
            publish(channel, message)
    probe.note(request, f"{websocket.close_code}")


@websocket
def selects(request: HttpRequest, websocket: WebSocket, channel: str) -> None:
    """Do the same with select(); first send the worker's process id, and report missed messages."""
    websocket.send(str(os.getpid()))
    with subscribe(channel) as messages:
        websocket.send("subscribed")
        while not websocket.closed:
            ready, _, _ = select([websocket, messages], [], [])
            if websocket in ready:
                text = websocket.receive()
                if text is not None:
                    publish(channel, text)
            if messages in ready:
                try:
                    message = messages.get()
                    if message is not None:
                        websocket.send(message)
                except MessagesMissed:
                    websocket.send("MessagesMissed")


@websocket
def by_number(request: HttpRequest, websocket: WebSocket, channel: str) -> None:
    """Select on the numbers of descriptors, and use the database for each message."""
    Note.objects.count()
    messages = subscribe(channel)
    sources = {websocket.handler.socket.fileno(): websocket.receive, messages.fileno(): messages.get}
    try:
        while not websocket.closed:
            for number in select(list(sources), [], [])[0]:
                message = sources[number]()
                Note.objects.count()
                if message is not None:
                    websocket.send(message)
    finally:
        Note.objects.count()


@websocket
def as_in_2017(request: HttpRequest, websocket: WebSocket, *args: Any, **kwargs: Any) -> None:
    """The chat of version 0.2's page: the standard select() over descriptors, and redis-py's own subscription."""
    from select import select

    import redis

    conn: Any = redis.StrictRedis.from_url(settings.WEBSOCKET_BROKER)  # type: ignore[misc]
    subs = conn.pubsub()
    subs.subscribe("OLD")

    def incoming() -> None:
        data = websocket.receive()
        if data:
            conn.publish("OLD", data)

    def outgoing() -> None:
        msg_type, channel, message = subs.parse_response()
        if msg_type == b"message":
            websocket.send(message.decode())

    sockets = {websocket.handler.socket.fileno(): incoming, subs.connection._sock.fileno(): outgoing}
    while not websocket.closed:
        fd = select(sockets.keys(), [], [])[0][0]
        sockets[fd]()


# --- the database ----------------------------------------------------------------------------------------------------


@websocket
def waits(request: HttpRequest, websocket: WebSocket, how: str) -> None:
    """Use the database before and after acceptance, then wait for a message in one way or another."""
    probe.databases[request.GET["key"]] = connections["default"]
    Note.objects.count()
    websocket.accept()
    with ExitStack() as stack:
        if how in ("get", "select"):
            messages = stack.enter_context(subscribe(request.GET["key"]))
        while not websocket.closed:
            Note.objects.count()
            websocket.send("open" if connection.connection is not None else "closed")
            if how == "receive":
                websocket.receive()
            elif how == "iteration":
                next(iter(websocket), None)
            elif how == "get":
                messages.get()
            elif how == "select":
                select([websocket, messages], [], [])
                while websocket in select([websocket], [], [], 0)[0] and websocket.receive() is not None:
                    pass


@websocket_loop
def waits_in_a_loop(request: HttpRequest, websocket: WebSocket) -> None:
    """Use the database for each message; the decorator waits for them."""
    probe.databases[request.GET["key"]] = connections["default"]
    websocket.receive()
    Note.objects.count()
    websocket.send("open" if connection.connection is not None else "closed")


@websocket
def writes(request: HttpRequest, websocket: WebSocket, how: str) -> HttpResponseBase | None:
    """Write a note, then refuse or accept."""
    Note.objects.create(text=request.GET["key"])
    if how == "raise":
        raise ValueError("after writing")
    if how == "404":
        raise Http404("after writing")
    if how == "response":
        return HttpResponseForbidden("after writing")
    for _ in websocket:
        Note.objects.create(text=request.GET["key"])
        websocket.send("written")
    return None


@websocket
def inside_atomic(request: HttpRequest, websocket: WebSocket, what: str) -> None:
    """Wait for the client inside a transaction."""
    if what != "accept":
        websocket.accept()
    try:
        with transaction.atomic():
            Note.objects.count()
            if what == "accept":
                websocket.accept()
            elif what == "receive":
                websocket.receive()
            elif what == "select":
                select([websocket], [], [])
            elif what == "send":
                websocket.send("sent")
                publish("nobody", "published")
    except RuntimeError as error:
        probe.note(request, f"RuntimeError: {error}")
    else:
        probe.note(request, "fine")


@websocket
def keeps_the_session(request: HttpRequest, websocket: WebSocket) -> None:
    """Change the session before acceptance, then echo."""
    request.session["colour"] = "blue"
    for message in websocket:
        websocket.send(message)


requests: weakref.WeakSet[HttpRequest] = weakref.WeakSet()
databases: weakref.WeakSet[object] = weakref.WeakSet()


@websocket
def counts_requests(request: HttpRequest, websocket: WebSocket) -> None:
    """Count this view's requests and databases that are in memory, with the garbage collector off."""
    gc.disable()
    requests.add(request)
    get_messages(request)
    Note.objects.exists()
    databases.add(connections["default"])
    websocket.send(f"{request.user} {len(requests)} {len(databases)}")
    for _ in websocket:
        pass


kept: dict[str, weakref.WeakSet[object]] = {}


@websocket
def ends(request: HttpRequest, websocket: WebSocket, how: str) -> HttpResponseBase | None:
    """Be ended by an exception, with the garbage collector off, or count what such views left in memory."""
    gc.disable()
    if how == "count":
        if sys.version_info < (3, 11):  # contextlib leaves a cycle when asgiref misses an attribute
            gc.collect()
        websocket.send(str(len(kept[request.GET["of"]])))
        return None
    of_kind = kept.setdefault(how, weakref.WeakSet())
    of_kind.add(gevent.getcurrent())
    websocket.accept()
    of_kind.add(websocket.connection)
    with subscribe(f"nothing:{how}") as messages:
        of_kind.add(messages)
        if how == "selects":
            select([messages], [], [])
        messages.get()
    return None


@websocket
def accepts_again(request: HttpRequest, websocket: WebSocket) -> None:
    """Be interrupted while accepting."""
    gevent.get_hub().loop.run_callback(gevent.getcurrent().throw, InterruptedError())
    try:
        websocket.accept()
    except InterruptedError:
        gevent.sleep(0.1)  # meanwhile the client gets its 101
        websocket.send("interrupted")


@websocket_loop
def leaves_its_message(request: HttpRequest, websocket: WebSocket, how: str) -> None:
    """Take a message at every second call or never."""
    if how == "queries":
        Note.objects.count()
    calls = request.META["calls"] = request.META.get("calls", 0) + 1
    if how == "seldom" and not calls % 2:
        websocket.send(websocket.receive() or "")
        gevent.sleep(0.001)


@websocket
def tidies_up(request: HttpRequest, websocket: WebSocket) -> None:
    """Take a moment to end."""
    try:
        for _ in websocket:
            pass
    finally:
        gevent.sleep(0.1)
        probe.note(request, "tidy")


@websocket
def helpers(request: HttpRequest, websocket: WebSocket, how: str) -> None:
    """An echo that first sends from greenlets of its own, the first of which accepts by sending."""
    Note.objects.count()
    senders = [gevent.spawn(websocket.send, letter) for letter in "abc"]
    if how == "joins":
        gevent.joinall(senders, raise_error=True)
    elif how == "sleeps":
        gevent.sleep(0.3)
    elif how == "sends":
        websocket.send("d")
    for message in websocket:
        websocket.send(message)


@websocket
def answers_before_its_helper(request: HttpRequest, websocket: WebSocket, how: str) -> HttpResponseBase:
    """Refuse, while a greenlet of the view, unaware of that, tries to send."""

    def send() -> None:
        probe.wait_at_gate(request)
        try:
            websocket.send("hello")
        except Exception as error:
            probe.note(request, type(error).__name__)

    def body() -> Iterator[bytes]:
        yield b"no "
        try:
            websocket.accept()
        except Exception as error:
            yield type(error).__name__.encode()

    gevent.spawn(send)
    if how == "raise":
        raise Http404
    if how == "stream":
        return StreamingHttpResponse(body(), status=403)
    return HttpResponseForbidden("no entry")


@websocket
def keeps_a_copy(request: HttpRequest, websocket: WebSocket) -> None:
    """An echo whose connection is also open elsewhere, as in a child process."""
    children.keep_a_copy(request)
    for message in websocket:
        websocket.send(message)


@websocket
def forks(request: HttpRequest, websocket: WebSocket, how: str) -> None:
    """Start a child process, then echo."""
    websocket.accept()
    children.start(request, how)
    for message in websocket:
        websocket.send(message)

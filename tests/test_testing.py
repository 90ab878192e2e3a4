"""`django_websocket.testing`: the client without a server, in tests of each kind that Django knows."""

from __future__ import annotations

import asyncio
import gc
import json
import select as standard
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import gevent
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.contrib import messages
from django.contrib.auth import get_user_model
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.contrib.messages import get_messages
from django.core import mail
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.test import TestCase, TransactionTestCase, override_settings
from django.urls import include, path
from gevent.event import Event
from gevent.hub import get_hub
from testsite.models import Note
from testsite.websocket_urls import urlpatterns as of_the_site

from django_websocket import conf
from django_websocket.asgi.loop import SharedLoop
from django_websocket.decorators import websocket
from django_websocket.exceptions import BrokerError, ConnectionClosed
from django_websocket.handler.conversation import Conversation
from django_websocket.handler.handshake import HandshakeTimeout
from django_websocket.protocol.handshake import HandshakeError
from django_websocket.pubsub import history, memory, publish, subscribe
from django_websocket.select import select
from django_websocket.testing import Client, HandshakeRefused, captured_messages
from django_websocket.transport import log
from django_websocket.transport.shared import open_connections
from django_websocket.transport.waiting import ViewGreenlet
from django_websocket.websocket import WebSocket

from .support.wire import descriptors

pytestmark = pytest.mark.usefixtures("test_runner")


def greenlets() -> set[gevent.Greenlet[..., Any]]:
    """Return the greenlets of this thread that run, except those that count lines of the log or run the shared loop.

    Those of earlier tests may end at any time: see what a test leaves behind by `greenlets() - before`.
    """
    found = [thing for thing in gc.get_objects() if type(thing) in (gevent.Greenlet, Conversation)]
    here = get_hub()
    runs = {thing: getattr(thing, "_run", None) for thing in found if not thing.dead and thing.parent is here}
    others = (log._sum_up, SharedLoop._run)
    return {greenlet for greenlet, run in runs.items() if getattr(run, "__func__", run) not in others}


@pytest.fixture(autouse=True)
def nothing_stays(test_runner: None) -> Iterator[None]:
    """Check after each test that no view, no connection and no descriptor is left, except the loop's own."""
    ended.clear()
    gevent.sleep(0)  # makes the loop and its descriptors
    gc.collect()  # other tests may have left it something
    before, running = descriptors(), greenlets()
    with override_settings(WEBSOCKET_URLCONF=__name__):
        yield
    gevent.idle()  # delivers what was published last
    assert not ViewGreenlet.running
    assert not open_connections()
    assert not greenlets() - running
    assert not descriptors() - before
    assert connections["default"]._thread_sharing_count == 0  # type: ignore[attr-defined]


@pytest.fixture
def client() -> Client:
    return Client()


# --- views in addition to those of the test site ---------------------------------------------------------------------


@websocket
def note(request: HttpRequest, websocket: WebSocket) -> None:
    """Save each message to the database, and answer with the number of rows."""
    for text in websocket:
        Note.objects.create(text=str(text))
        websocket.send(str(Note.objects.count()))


@websocket
def writes_silently(request: HttpRequest, websocket: WebSocket) -> None:
    for text in websocket:
        Note.objects.create(text=str(text))


@websocket
def headers(request: HttpRequest, websocket: WebSocket) -> None:
    """Send what the view sees of the request."""
    websocket.send_json(
        {
            "host": request.get_host(),
            "secure": request.is_secure(),
            "query": request.GET.dict(),
            "agent": request.headers.get("User-Agent"),
            "origin": websocket.origin,
            "compression": request.headers.get("Sec-WebSocket-Extensions"),
        }
    )


@websocket
def fails(request: HttpRequest, websocket: WebSocket) -> None:
    """Send two messages, and raise."""
    for text in websocket:
        websocket.send("one")
        websocket.send("two")
        raise ValueError(f"cannot handle {text!s}")


@login_required
@websocket(refuse="close")
def login_above(request: HttpRequest, websocket: WebSocket) -> None:
    websocket.send("hello")


@websocket(refuse="close")
@login_required
def login_below(request: HttpRequest, websocket: WebSocket) -> HttpResponse:
    websocket.send("hello")
    return websocket.response


@websocket(subprotocols=["bearer"])
def says_its_tokens(request: HttpRequest, websocket: WebSocket) -> None:
    websocket.response.set_cookie("seen", "once")
    websocket.send_json([request.headers.get("Authorization"), websocket.protocol, request.COOKIES.get("seen")])


gate = Event()
ended: list[str] = []


@websocket
def stays(request: HttpRequest, websocket: WebSocket) -> None:
    """Wait for something that never comes, whatever the client does."""
    websocket.send("ready")
    try:
        gate.wait()
    finally:
        ended.append("finally")


@websocket
def says_how_it_ended(request: HttpRequest, websocket: WebSocket) -> None:
    for _ in websocket:
        pass
    ended.append(f"{websocket.close_code} {websocket.close_reason}".strip())


@websocket
def never_idle(request: HttpRequest, websocket: WebSocket) -> None:
    """Poll, and never wait."""
    while not websocket.closed:
        if websocket in select([websocket], [], [], 0)[0]:
            text = websocket.receive()
            if text is not None:
                websocket.send(text)


@websocket
def selects(request: HttpRequest, websocket: WebSocket, channel: str) -> None:
    """Publish what the client sends, and send it what is published."""
    with subscribe(channel) as messages:
        while not websocket.closed:
            ready, _, _ = select([websocket, messages], [], [])
            if websocket in ready:
                text = websocket.receive()
                if text is not None:
                    publish(channel, text)
            if messages in ready:
                websocket.send(messages.get() or "")


@websocket
def standard_select(request: HttpRequest, websocket: WebSocket) -> None:
    while not websocket.closed:
        standard.select([websocket], [], [])


@websocket
def floods(request: HttpRequest, websocket: WebSocket) -> None:
    """Send more than the buffers hold."""
    for number in range(200):
        websocket.send(f"{number}".ljust(65536, "."))


@websocket
def commits(request: HttpRequest, websocket: WebSocket, channel: str) -> None:
    """Publish each message when its row is committed."""
    for text in websocket:
        with transaction.atomic():
            Note.objects.create(text=str(text))
            transaction.on_commit(lambda text=text: publish(channel, text))  # type: ignore[misc]


@websocket
def other_database(request: HttpRequest, websocket: WebSocket) -> None:
    for _ in websocket:
        with connections["other"].cursor() as cursor:
            cursor.execute("SELECT 1")
        websocket.send("asked")


@websocket
def in_a_transaction(request: HttpRequest, websocket: WebSocket, what: str) -> None:
    if what != "accept":
        websocket.accept()
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


@websocket
def never_accepts(request: HttpRequest, websocket: WebSocket) -> None:
    try:
        gate.wait()
    finally:
        ended.append("finally")


@websocket
def leaves_a_message(request: HttpRequest, websocket: WebSocket) -> None:
    websocket.accept()
    messages.info(request, "for the next page")


def not_today(request: HttpRequest) -> HttpResponseBase:
    """Refuse with a text of its own."""
    return HttpResponse("Not today.\n", "text/plain", 403)


def mutilate(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """A middleware that drops a header of the 101."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers.pop("Sec-WebSocket-Accept", None)
        return response

    return middleware


urlpatterns = [
    path("login-above/", login_above),
    path("login-below/", login_below),
    path("says-its-tokens/", says_its_tokens),
    path("note/", note),
    path("writes-silently/", writes_silently),
    path("headers/", headers, name="headers"),
    path("fails/", fails),
    path("stays/", stays),
    path("says-how-it-ended/", says_how_it_ended),
    path("never-idle/", never_idle),
    path("select/<str:channel>/", selects),
    path("standard-select/", standard_select),
    path("floods/", floods),
    path("commits/<str:channel>/", commits),
    path("other-database/", other_database),
    path("in-a-transaction/<str:what>/", in_a_transaction),
    path("never-accepts/", never_accepts),
    path("leaves-a-message/", leaves_a_message),
    path("not-today/", not_today),
    path("", include(of_the_site)),
]


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["hello", "", "é\U0001f600", b"\0\xff", b"", "x" * 1_000_000])
def test_messages_keep_their_type_and_content(client: Client, message: str | bytes) -> None:
    with client.websocket("/echo/") as ws:
        ws.send(message)
        assert ws.receive() == message


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/undecorated/", "hi"), ("/class/ann/", "ann: hi"), ("/loop/ann/", "ann: hi"), ("/never-idle/", "hi")],
)
def test_views_of_each_kind_answer(client: Client, path: str, answer: str) -> None:
    with client.websocket(path) as ws:
        for _ in range(3):
            ws.send("hi")
            assert ws.receive() == answer


def test_json_is_sent_and_received(client: Client) -> None:
    with client.websocket("/echo/") as ws:
        ws.send_json({"to": ["a", None], "text": "é"})
        assert ws.receive_json() == {"to": ["a", None], "text": "é"}


def test_more_than_the_buffers_hold_arrives_whole(client: Client) -> None:
    with client.websocket("/floods/") as ws:
        assert [str(ws.receive())[:3].rstrip(".") for _ in range(200)] == [str(number) for number in range(200)]
        with pytest.raises(ConnectionClosed, match="1000"):
            ws.receive()


def test_objects_that_are_not_messages_are_refused(client: Client) -> None:
    with client.websocket("/echo/") as ws, pytest.raises(TypeError, match="send_json"):
        ws.send({"a": 1})  # type: ignore[arg-type]


def test_send_returns_when_the_view_has_handled_the_message(client: Client, key: str) -> None:
    with client.websocket(f"/echo/?key={key}") as ws, client.websocket(f"/forward/{key}/") as other:
        ws.send("hello")
        assert len(ws._engine.messages) == 1
        publish(key, "to all")
        assert other.receive(timeout=0) == "to all"


def test_receive_can_tell_that_nothing_came_without_waiting(client: Client) -> None:
    with client.websocket("/echo/") as ws:
        begin = time.monotonic()
        with pytest.raises(TimeoutError, match="No message came within 0 seconds"):
            ws.receive(timeout=0)
        assert time.monotonic() - begin < 1


def test_receive_waits_for_a_message_that_needs_time(client: Client) -> None:
    with client.websocket("/receive-within/") as ws:
        assert ws.receive() == "TimeoutError"


def test_nan_as_a_timeout_is_an_error(client: Client) -> None:
    with pytest.raises(ValueError, match="NaN"):
        client.websocket("/echo/", timeout=float("nan"))
    with client.websocket("/echo/") as ws, pytest.raises(ValueError, match="NaN"):
        ws.receive(timeout=float("nan"))


def test_a_timeout_says_where_the_view_waits(client: Client) -> None:
    with client.websocket("/echo/", timeout=0.5) as ws, pytest.raises(TimeoutError) as timeout:
        ws.receive()
    assert "within 0.5 seconds" in str(timeout.value)
    assert "testsite/views.py" in str(timeout.value) and "for message in websocket" in str(timeout.value)
    assert "django_websocket/" not in str(timeout.value)
    with (
        client.websocket("/listen/a/") as ws,
        pytest.raises(TimeoutError, match="The view has returned websocket.listen"),
    ):
        ws.receive(timeout=0)


def test_a_view_that_takes_nothing_is_reported(client: Client) -> None:
    with ExitStack() as stack:
        ws = stack.enter_context(client.websocket("/stays/", timeout=0.2))
        stack.callback(gate.clear)
        stack.callback(gate.set)
        with pytest.raises(TimeoutError, match=r"(?s)did not take the message .* gate\.wait"):
            for _ in range(100):
                ws.send("x" * 500_000)


# --- the handshake ---------------------------------------------------------------------------------------------------


def test_subprotocol_is_negotiated(client: Client) -> None:
    with client.websocket("/subprotocols/", subprotocols=["v1.example", "v2.example"]) as ws:
        assert ws.subprotocol == "v2.example"
        assert ws.receive() == "v1.example, v2.example"
    with client.websocket("/subprotocols/") as ws:
        assert ws.subprotocol is None


def test_request_has_the_given_headers_and_parameters(client: Client) -> None:
    with client.websocket("/headers/") as ws:
        assert ws.receive_json() == {
            "host": "testserver",
            "secure": False,
            "query": {},
            "agent": None,
            "origin": None,
            "compression": None,
        }
    with client.websocket(
        "wss://testserver/headers/?a=1",
        secure=True,
        headers={"User-Agent": "test"},
        origin="https://testserver",
    ) as ws:
        seen = ws.receive_json()
    assert (seen["secure"], seen["query"], seen["agent"]) == (True, {"a": "1"}, "test")
    with Client(headers={"User-Agent": "default"}).websocket("/headers/", query_params={"a": "é"}) as ws:
        seen = ws.receive_json()
    assert (seen["query"], seen["agent"]) == ({"a": "é"}, "default")


def test_response_is_the_101_after_all_middleware(client: Client) -> None:
    with client.websocket("/sets-cookies/") as ws:
        assert ws.response.status_code == 101
        assert ws.response["X-Greeting"] == "hello"
        response: Any = ws.response
        assert response["X-Marked"] == "101"
        assert response.resolver_match.route == "sets-cookies/"
        assert response.wsgi_request.session["colour"] == "blue"
        assert client.cookies["flavour"].value == "oat"
        assert client.session["colour"] == "blue"
    assert json.loads(client.get("/session/?size=large").content) == {"colour": "blue", "size": "large"}


def test_foreign_page_is_refused(client: Client) -> None:
    with pytest.raises(HandshakeRefused, match="This site may not open a WebSocket here") as refused:
        client.websocket("/echo/", origin="https://evil.example")
    assert refused.value.status_code == 403
    with client.websocket("/partners/", origin="https://partner.example") as ws:
        assert ws.receive() == "https://partner.example"


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/refuse/403/", 403, "403 Forbidden"),
        ("/refuse/302/", 302, "302 Found to /elsewhere/"),
        ("/refuse/404/", 404, "404 Not Found"),
        ("/nobody-here/", 404, "404 Not Found"),
        ("/not-today/", 403, "403 Forbidden: Not today."),
        ("/echo/?interfere=replace", 409, "409 Conflict"),
    ],
)
def test_refusal_is_raised_with_the_response(client: Client, path: str, status: int, text: str) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        client.websocket(path)
    assert str(refused.value) == f"The handshake was answered with {text}"
    assert refused.value.status_code == refused.value.response.status_code == status
    assert refused.value.response.client is client
    match = refused.value.response.resolver_match
    assert (match is None) == (path == "/nobody-here/")


@pytest.mark.parametrize("subprotocols", [["a b"], ["a", "a"]])
def test_handshake_that_a_server_would_refuse_is_refused(client: Client, subprotocols: list[str]) -> None:
    with pytest.raises(HandshakeRefused, match="Sec-WebSocket-Protocol must be a list of different tokens") as refused:
        client.websocket("/echo/", subprotocols=subprotocols)
    assert refused.value.status_code == 400


REFUSED = [
    ("/refuse-by-closing/403/", 4403, "Forbidden"),
    ("/refuse-by-closing/404/", 4404, "Not Found"),
    ("/refuse-by-closing/limit/", 4429, "Too Many Requests"),
    ("/refuse-by-closing/login/", 4401, "Log in first"),
    ("/login-above/", 4401, "Log in first"),
    ("/login-below/", 4401, "Log in first"),
]


@pytest.mark.parametrize(("path", "code", "reason"), REFUSED)
def test_refusal_by_closing_is_seen_as_by_a_browser(client: Client, path: str, code: int, reason: str) -> None:
    with client.websocket(path) as ws:
        assert ws.response.status_code == 101
        assert (ws.closed, ws.close_code, ws.close_reason) == (True, code, reason)
        with pytest.raises(ConnectionClosed) as ended:
            ws.receive()
        assert (ended.value.code, ended.value.reason) == (code, reason)
        with pytest.raises(ConnectionClosed):
            ws.send("too late")
    assert ("sessionid" in client.cookies) == path.startswith("/refuse-by")  # what the refusal sets is kept


@override_settings(WEBSOCKET_REFUSE="close")
def test_refusals_by_closing_of_all_views_and_paths_are_seen(client: Client) -> None:
    for where, code in (("/nowhere/", 4404), ("/refuse/403/", 4403), ("/members/", 4401)):
        ws = client.websocket(where)
        assert ws.close_code == code
        ws.close()
    with pytest.raises(HandshakeRefused, match="403"):
        client.websocket("/echo/", origin="https://evil.example")


def test_view_that_raises_before_its_refusal_by_closing_raises_in_the_test(client: Client, key: str) -> None:
    with pytest.raises(ValueError, match="raised before acceptance"):
        client.websocket("/refuse-by-closing/raise/")
    with Client(raise_request_exception=False).websocket("/refuse-by-closing/raise/") as ws:
        assert ws.close_code == 4500


def test_refusal_by_closing_of_a_view_that_had_accepted(client: Client, key: str) -> None:
    """A middleware replaces the 101, and the view learns of it."""
    from testsite import probe

    with override_settings(WEBSOCKET_REFUSE="close"), client.websocket(f"/accepts/?key={key}&interfere=replace") as ws:
        assert ws.close_code == 4409
    assert probe.notes(key, 2) == ["WebSocketError", "finally"]


def test_cookies_subprotocols_and_tokens_travel_in_the_handshake(client: Client) -> None:
    with client.websocket(
        "/says-its-tokens/", subprotocols=["bearer", "a.b-c_d"], headers={"Authorization": "Token 12"}
    ) as ws:
        assert ws.subprotocol == "bearer"
        assert ws.receive_json() == ["Token 12", "bearer, a.b-c_d", None]
        assert ws.response.cookies["seen"].value == "once"
    with client.websocket("/says-its-tokens/", headers={"Authorization": "Bearer 34"}) as ws:
        assert ws.subprotocol is None
        assert ws.receive_json() == ["Bearer 34", None, "once"]


def test_view_whose_101_was_replaced_sees_it(client: Client, key: str) -> None:
    from testsite import probe

    with pytest.raises(HandshakeRefused):
        client.websocket(f"/accepts/?key={key}&interfere=replace")
    assert probe.notes(key, 2) == ["WebSocketError", "finally"]
    with pytest.raises(LookupError, match="raised by a middleware"):
        client.websocket(f"/accepts/?key={key}2&interfere=raise")
    assert probe.notes(f"{key}2", 2) == ["WebSocketError", "finally"]


def test_view_that_raises_before_it_accepts_raises_in_the_test(client: Client) -> None:
    with pytest.raises(ValueError, match="raised before acceptance"):
        client.websocket("/refuse/raise/")
    with pytest.raises(HandshakeRefused, match="500 Internal Server Error"):
        Client(raise_request_exception=False).websocket("/refuse/raise/")


def test_view_that_neither_accepts_nor_answers_is_ended_as_by_a_server(client: Client) -> None:
    with override_settings(WEBSOCKET_HANDSHAKE_TIMEOUT=0.05), pytest.raises(HandshakeTimeout):
        client.websocket("/never-accepts/")
    assert ended.pop() == "finally"


def test_messages_of_a_view_can_be_read_when_it_has_ended(client: Client) -> None:
    with client.websocket("/leaves-a-message/") as ws:
        assert ws.closed
    response: Any = ws.response
    assert [message.message for message in get_messages(response.wsgi_request)] == ["for the next page"]
    assert response.wsgi_request.META["wsgi.websocket"].closed


def test_header_that_middleware_removes_from_the_101_is_missed(client: Client) -> None:
    with (
        override_settings(MIDDLEWARE=[f"{__name__}.mutilate"]),
        pytest.raises(HandshakeError, match="does not match the key"),
    ):
        client.websocket("/says-how-it-ended/")
    assert ended == []


def test_refusal_is_in_the_log_when_the_client_hears_of_it(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(HandshakeRefused, match="403"):
        client.websocket("/echo/", origin="https://evil.example")
    assert "/echo/: 403 the page is from another site: https://evil.example" in caplog.text


class Around:
    """A response in the hands of a library that wraps Django's handler, as Sentry's SDK does."""

    __slots__ = ("response",)

    def __init__(self, response: HttpResponseBase) -> None:
        self.response = response

    def close(self) -> None:
        self.response.close()


def test_response_is_found_inside_what_a_library_puts_around_it(client: Client) -> None:
    handle: Any = WSGIHandler.__call__
    with mock.patch.object(WSGIHandler, "__call__", lambda *args: Around(handle(*args))):
        with client.websocket("/echo/") as ws:
            ws.send("hello")
            assert ws.receive() == "hello"
            assert ws.response.status_code == 101
        with pytest.raises(HandshakeRefused, match="403") as refused:
            client.websocket("/echo/", origin="https://evil.example")
        assert refused.value.response.wsgi_request.path == "/echo/"


def test_ordinary_requests_work_as_with_djangos_client(client: Client) -> None:
    response = client.get("/page/")
    assert (response.status_code, response.content) == (200, b"page /page/")
    assert response.resolver_match.view_name == "page"
    assert client.get("/echo/").content == b"page /echo/"  # the page, not the WebSocket, of that path
    assert client.post("/page/").status_code == 200
    assert Client(enforce_csrf_checks=True).post("/page/").status_code == 403


def test_mistakes_in_the_settings_are_reported(client: Client) -> None:
    with override_settings(WEBSOCKET_URLCONF="nowhere"), pytest.raises(ImproperlyConfigured, match="nowhere"):
        client.websocket("/echo/")


# --- the end ---------------------------------------------------------------------------------------------------------


def test_the_end_of_the_block_closes_and_waits_for_the_view(client: Client) -> None:
    with client.websocket("/says-how-it-ended/"):
        pass
    assert ended.pop() == "1000"


@pytest.mark.parametrize(
    ("code", "reason", "seen"), [(4321, "bye", "4321 bye"), (1001, "", "1001"), (1005, "", "1005"), (1006, "", "1006")]
)
def test_the_view_sees_how_the_client_closes(client: Client, code: int, reason: str, seen: str) -> None:
    with client.websocket("/says-how-it-ended/") as ws:
        ws.close(code, reason)
        assert ended.pop() == seen
        assert ws.closed
        assert ws.close_code == code
        ws.close()  # has no effect
        with pytest.raises(ConnectionClosed):
            ws.send("too late")


def test_a_code_that_cannot_be_sent_is_refused(client: Client) -> None:
    with client.websocket("/echo/") as ws:
        with pytest.raises(ValueError, match="not a close code"):
            ws.close(999)
        ws.send("hello")
        assert ws.receive() == "hello"


def test_the_client_sees_how_the_view_closes(client: Client) -> None:
    with client.websocket("/end/close/") as ws:
        assert not ws.closed
        assert ws.close_code is None
        ws.send("x")
        assert ws.closed
        assert (ws.close_code, ws.close_reason) == (4321, "bye")
        for call in (ws.receive, lambda: ws.send("too late")):
            with pytest.raises(ConnectionClosed) as closed:
                call()
            assert (closed.value.code, closed.value.reason) == (4321, "bye")


def test_closed_is_true_only_when_everything_was_received(client: Client) -> None:
    with client.websocket("/subprotocols/") as ws:
        assert ws.close_code == 1000
        assert not ws.closed
        assert ws.receive() == "None"
        assert ws.closed


def test_limits_of_the_settings_apply(client: Client) -> None:
    with override_settings(WEBSOCKET_MAX_MESSAGE_SIZE=10), client.websocket("/echo/") as ws:
        ws.send("x" * 10)
        assert ws.receive() == "x" * 10
        ws.send("x" * 11)
        assert ws.close_code == 1009


def test_keepalive_is_answered(client: Client) -> None:
    with override_settings(WEBSOCKET_PING_INTERVAL=0.5, WEBSOCKET_PING_TIMEOUT=0.5), client.websocket("/echo/") as ws:
        with pytest.raises(TimeoutError):
            ws.receive(timeout=2.5)
        assert ws.close_code is None


def test_view_that_stays_is_reported_and_ended(client: Client) -> None:
    with pytest.raises(TimeoutError) as timeout, client.websocket("/stays/", timeout=0.1) as ws:
        assert ws.receive() == "ready"
    assert "still running 0.1 seconds after its client had left. The view waits here:" in str(timeout.value)
    assert "gate.wait()" in str(timeout.value)
    assert ended.pop() == "finally"


def test_view_that_stays_does_not_hide_an_error_in_the_block(client: Client) -> None:
    with pytest.raises(KeyError), client.websocket("/stays/", timeout=0.1):
        raise KeyError
    assert ended.pop() == "finally"


# --- exceptions ------------------------------------------------------------------------------------------------------


def test_exception_of_a_view_is_raised_once_and_after_its_messages(client: Client) -> None:
    with client.websocket("/fails/") as ws:
        ws.send("this")
        assert [ws.receive(), ws.receive()] == ["one", "two"]
        with pytest.raises(ValueError, match="cannot handle this"):
            ws.receive()
        with pytest.raises(ConnectionClosed, match="1011"):
            ws.receive()
        assert ws.close_code == 1011


def test_exception_of_a_view_is_raised_by_the_next_call(client: Client) -> None:
    with client.websocket("/fails/") as ws:
        ws.send("this")
        with pytest.raises(ValueError, match="cannot handle this"):
            ws.send("more")
    with pytest.raises(ValueError, match="cannot handle this"), client.websocket("/fails/") as ws:
        ws.send("this")
    with pytest.raises(ValueError, match="cannot handle this") as error, client.websocket("/fails/") as ws:
        ws.send("this")
        assert ws.closed, "the consequence"
    assert isinstance(error.value.__context__, AssertionError)


def test_exceptions_are_not_raised_if_that_is_turned_off() -> None:
    with Client(raise_request_exception=False).websocket("/fails/") as ws:
        ws.send("this")
        assert [ws.receive(), ws.receive()] == ["one", "two"]
        with pytest.raises(ConnectionClosed, match="1011"):
            ws.receive()


def test_exceptions_do_not_reach_the_clients_of_other_views(client: Client) -> None:
    with client.websocket("/echo/") as ws, client.websocket("/fails/") as other:
        other.send("this")
        ws.send("hello")
        assert ws.receive() == "hello"
        with pytest.raises(ValueError):
            other.close()


def test_sys_exit_in_a_view_ends_that_view_only(client: Client) -> None:
    with pytest.raises(SystemExit), client.websocket("/end/exit/") as ws:
        ws.send("x")


# --- publishing ------------------------------------------------------------------------------------------------------


def test_messages_pass_between_the_test_its_views_and_their_clients(client: Client, key: str) -> None:
    with (
        client.websocket(f"/forward/{key}/") as forwarded,
        client.websocket(f"/listen/{key}/") as listening,
        client.websocket(f"/select/{key}/") as selecting,
    ):
        everybody = (forwarded, listening, selecting)
        publish(key, "by the test")
        assert [ws.receive() for ws in everybody] == ["by the test"] * 3
        forwarded.send("by one")
        assert [ws.receive() for ws in everybody] == ["by one"] * 3
        selecting.send("by another")
        assert [ws.receive() for ws in everybody] == ["by another"] * 3
        client.get(f"/publish/{key}/?text=by a page")
        assert [ws.receive() for ws in everybody] == ["by a page"] * 3
        with subscribe(key) as messages:
            publish(key, b"binary")
            assert messages.get(timeout=5) == b"binary"
        assert [ws.receive() for ws in everybody] == [b"binary"] * 3


def test_captured_messages_are_those_of_the_block(client: Client, key: str) -> None:
    publish(key, "before")
    with captured_messages() as messages:
        publish(key, "by the test")
        assert messages == [(key, "by the test")]
        with client.websocket(f"/forward/{key}/") as ws:
            ws.send(b"\xff\0")
            client.get(f"/publish/{key}-2/?text=by a page")
            assert ws.receive() == b"\xff\0"  # capturing does not keep it from arriving
        with captured_messages(f"{key}-2", f"{key}-3") as some:
            for number in range(1, 4):
                publish(f"{key}-{number}", "x")
    publish(key, "after")
    assert some == [(f"{key}-2", "x"), (f"{key}-3", "x")]
    assert messages[:3] == [(key, "by the test"), (key, b"\xff\0"), (f"{key}-2", "by a page")]
    assert len(messages) == 6


def test_no_test_publishes_to_a_real_broker(client: Client, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(django_settings, "WEBSOCKET_BROKER", "redis://127.0.0.1:1", raising=False)
    monkeypatch.setattr(conf, "_current", None)
    monkeypatch.setattr(conf, "_current_in_tests", None)
    assert conf.current().broker == "redis://127.0.0.1:1"
    with client.websocket(f"/listen/{key}/") as ws, captured_messages() as messages:
        publish(key, "in memory")
        assert ws.receive() == "in memory"
    assert messages == [(key, "in memory")]
    with override_settings(WEBSOCKET_BROKER="redis://127.0.0.1:1"):
        with pytest.raises(BrokerError):
            publish(key, "as the test wants it")
        with pytest.raises(ImproperlyConfigured, match="WEBSOCKET_BROKER"):
            client.websocket("/echo/")
        with pytest.raises(ImproperlyConfigured, match="WEBSOCKET_BROKER"), captured_messages():
            pass
        with override_settings(WEBSOCKET_BROKER="memory://other"), captured_messages() as messages:
            publish(key, "x")
        assert messages == [(key, "x")]
        with pytest.raises(BrokerError):
            publish(key, "still")
    publish(key, "in memory again")


def test_publishing_in_a_test_logs_no_warning(
    caplog: pytest.LogCaptureFixture, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "serves_clients", lambda: False)
    memory.MemoryBroker(conf.TEST_BROKER).publish(key, b"nobody is there")
    assert caplog.records == []
    memory.MemoryBroker().publish(key, b"nobody is there")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("runner", ["Django", "pytest"])
def test_each_test_finds_the_channels_without_a_history(key: str, runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def next_test(name: str, phase: str = "call") -> None:
        if runner == "Django":
            monkeypatch.setattr(mail, "outbox", [], raising=False)
        else:
            monkeypatch.setenv("PYTEST_CURRENT_TEST", f"tests/test_chat.py::{name} ({phase})")

    with override_settings(WEBSOCKET_HISTORY={"*": {"messages": 10, "seconds": 60}}):
        next_test("test_one", "setup")
        publish(key, "one")
        if runner == "pytest":
            next_test("test_one", "call")
        publish(key, "two")
        assert [kept.message for kept in history(key)] == ["one", "two"]
        next_test("test_two")
        assert history(key) == []
        publish(key, "three")
        assert [kept.message for kept in history(key)] == ["three"]


def test_threads_have_subscriptions_of_their_own(key: str) -> None:
    """A live server runs its loop in a thread that ends."""
    got: list[Any] = []
    ready = threading.Event()

    def run() -> None:
        with subscribe(key) as messages:
            ready.set()
            got.append(messages.get(timeout=10))
        gevent.idle()  # lets the delivering greenlet end as well
        get_hub().destroy(destroy_loop=True)

    with subscribe(key) as messages:
        for text in ("first", "second"):  # the first thread's loop is gone when the second starts
            ready.clear()
            thread = threading.Thread(target=run)
            thread.start()
            assert ready.wait(10)
            publish(key, text)
            assert messages.get(timeout=10) == text
            thread.join(10)
            assert got.pop() == text
            publish(key, "nobody of that thread")
            assert messages.get(timeout=10) == "nobody of that thread"


# --- what a test cannot do -------------------------------------------------------------------------------------------


def test_standard_select_is_refused_instead_of_waiting_for_ever(client: Client) -> None:
    with (
        pytest.raises(RuntimeError, match=r"Use django_websocket\.select\.select"),
        client.websocket("/standard-select/"),
    ):
        pass


# --- in Django's test cases ------------------------------------------------------------------------------------------


class InATransaction(TestCase):
    client_class = Client
    client: Client
    user: User

    @classmethod
    def setUpTestData(cls) -> None:
        cls.user = get_user_model().objects.create(username="ann")
        Note.objects.create(text="of the class")

    def test_view_and_test_share_a_transaction(self) -> None:
        Note.objects.create(text="of the test")
        with self.client.websocket("/note/") as ws:
            ws.send("of the view")
            self.assertEqual(ws.receive(), "3")
        self.assertEqual(Note.objects.count(), 3)

    def test_rows_of_a_view_are_there_when_send_returns_and_gone_in_the_next_test(self) -> None:
        self.assertEqual(Note.objects.count(), 1)
        with self.client.websocket("/writes-silently/") as ws:
            ws.send("a")
            ws.send("b")
            self.assertEqual(Note.objects.count(), 3)

    def test_view_may_require_a_login(self) -> None:
        with self.assertRaises(HandshakeRefused) as refused:
            self.client.websocket("/members/")
        self.assertRedirects(refused.exception.response, "/login/?next=/members/")
        self.client.force_login(self.user)
        with self.client.websocket("/members/") as ws:
            self.assertEqual(ws.receive(), "hello ann")
        self.client.logout()
        with self.assertRaises(HandshakeRefused):
            self.client.websocket("/members/")

    @override_settings(WEBSOCKET_LOGIN_CHECK_INTERVAL=0.05)
    def test_logout_ends_a_conversation(self) -> None:
        self.client.force_login(self.user)
        with self.client.websocket("/members/") as ws, mock.patch.object(connection, "is_in_memory_db", return_value=0):
            self.assertEqual(ws.receive(), "hello ann")
            with self.assertRaises(TimeoutError):
                ws.receive(timeout=0.2)  # the check of its login must not close the test's connection
            self.client.logout()
            with self.assertRaises(ConnectionClosed):
                ws.receive()
            self.assertEqual(ws.close_code, 4401)

    def test_two_users_can_be_connected_at_once(self) -> None:
        get_user_model().objects.create(username="bob")
        with ExitStack() as stack:
            for name in ("ann", "bob"):
                client = Client()
                client.force_login(get_user_model().objects.get(username=name))
                ws = stack.enter_context(client.websocket("/members/"))
                self.assertEqual(ws.receive(), f"hello {name}")

    def test_refusal_has_the_attributes_of_djangos_test_responses(self) -> None:
        with self.assertRaises(HandshakeRefused) as refused:
            self.client.websocket("/refuse/403/")
        self.assertContains(refused.exception.response, "no entry", status_code=403)
        self.assertEqual(refused.exception.response.request["PATH_INFO"], "/refuse/403/")

    def test_view_cannot_wait_in_its_own_transaction(self) -> None:
        for what in ("receive", "select"):
            with (
                self.assertRaisesMessage(RuntimeError, "A view cannot wait for a message inside a transaction"),
                self.client.websocket(f"/in-a-transaction/{what}/"),
            ):
                pass
        with self.assertRaisesMessage(RuntimeError, "The WebSocket cannot be accepted inside a transaction"):
            self.client.websocket("/in-a-transaction/accept/")
        with self.client.websocket("/in-a-transaction/send/") as ws:
            self.assertEqual(ws.receive(), "sent")

    def test_queries_are_counted(self) -> None:
        with self.client.websocket("/note/") as ws, self.assertNumQueries(2):
            ws.send("a")

    def test_on_commit_works_as_in_djangos_own_tests(self) -> None:
        with captured_messages("notes") as messages, self.client.websocket("/commits/notes/") as ws:
            ws.send("never committed")
            self.assertEqual(messages, [])
            with self.captureOnCommitCallbacks(execute=True):
                ws.send("committed")
            self.assertEqual(messages, [("notes", "committed")])

    def test_the_database_connection_of_the_test_stays(self) -> None:
        before = connection.connection
        with self.client.websocket("/note/") as ws:
            ws.send("a")
            ws.receive()
        self.assertIs(connection.connection, before)
        self.assertTrue(connection.in_atomic_block)
        self.assertFalse(connection.needs_rollback)

    async def test_async_test_is_told_what_to_do(self) -> None:
        with self.assertRaisesMessage(SynchronousOnlyOperation, "a plain `def`"):
            self.client.websocket("/echo/")

    async def test_async_test_may_use_a_synchronous_function(self) -> None:
        def converse() -> None:
            with self.client.websocket("/note/") as ws:
                ws.send("a")
                self.assertEqual(ws.receive(), "2")

        await sync_to_async(converse)()


class WithAtomicRequests(TestCase):
    client_class = Client
    client: Client

    def setUp(self) -> None:
        settings = connection.settings_dict
        self.addCleanup(settings.__setitem__, "ATOMIC_REQUESTS", settings["ATOMIC_REQUESTS"])
        settings["ATOMIC_REQUESTS"] = True

    def test_conversation_is_outside_the_transaction_of_the_request(self) -> None:
        with self.client.websocket("/note/") as ws:
            for number in range(3):
                ws.send("x")
                self.assertEqual(ws.receive(), f"{number + 1}")

    def test_rows_written_before_an_exception_are_rolled_back(self) -> None:
        with self.assertRaisesMessage(ValueError, "after writing"):
            self.client.websocket("/writes/raise/?key=a")
        with self.assertRaises(HandshakeRefused):
            self.client.websocket("/writes/response/?key=b")
        self.assertEqual([note.text for note in Note.objects.all()], ["b"])


class Committing(TransactionTestCase):
    client_class = Client
    client: Client
    databases = {"default"}

    def test_rows_of_a_view_are_committed(self) -> None:
        with self.client.websocket("/note/") as ws:
            ws.send("a")
            self.assertEqual(ws.receive(), "1")
            Note.objects.create(text="b")
            ws.send("c")
            self.assertEqual(ws.receive(), "3")
            self.assertFalse(connection.in_atomic_block)

    def test_a_running_loop_in_the_thread_is_allowed_where_django_allows_it(self) -> None:
        """As under Playwright's synchronous API and pytest-asyncio."""

        async def converse() -> None:
            with self.assertRaises(SynchronousOnlyOperation):
                self.client.websocket("/echo/")
            with (
                mock.patch.dict("os.environ", DJANGO_ALLOW_ASYNC_UNSAFE="true"),
                self.client.websocket("/echo/") as ws,
            ):
                ws.send("a")
                self.assertEqual(ws.receive(), "a")

        asyncio.run(converse())

    def test_on_commit_callbacks_run(self) -> None:
        with captured_messages() as messages, self.client.websocket("/commits/notes/") as ws:
            ws.send("committed")
            self.assertEqual(messages, [("notes", "committed")])

    def test_view_cannot_wait_in_its_own_transaction(self) -> None:
        with (
            self.assertRaisesMessage(RuntimeError, "A view cannot wait for a message inside a transaction"),
            self.client.websocket("/in-a-transaction/receive/"),
        ):
            pass


def test_a_waiting_view_releases_its_database_connection(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default database is in memory, where a connection cannot be closed: use another one."""
    other = {**connections.databases["default"], "NAME": str(tmp_path / "other.sqlite3")}
    monkeypatch.setitem(connections.databases, "other", other)
    try:
        with client.websocket("/other-database/") as ws:
            ws.send("x")
            assert ws.receive() == "asked"
            assert connections["other"].connection is None
            ws.send("x")
            assert ws.receive() == "asked"
    finally:
        del connections["other"]


def test_every_refusal_is_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1, 16):
        with pytest.raises(HandshakeRefused):
            client.websocket("/echo/", origin="https://evil.example")
        gevent.idle()
        assert len(caplog.records) == number

"""What a project may write, in each of its forms, with the annotations that docs/views.md asks for.

Nothing runs it: type checkers read it. A comment that ignores an error asserts that there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from django.contrib.admin.views.decorators import staff_member_required
from django.contrib.auth.decorators import login_required, permission_required
from django.contrib.auth.mixins import LoginRequiredMixin
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseForbidden
from django.test import TestCase
from django.urls import path, re_path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.views import APIView
from typing_extensions import assert_type

from django_websocket.decorators import websocket, websocket_loop
from django_websocket.pubsub import publish, subscribe
from django_websocket.select import select
from django_websocket.testing import Client, ClientWebSocket, HandshakeRefused, WebSocketLiveServerTestCase
from django_websocket.websocket import WebSocket


@websocket
def chat(request: HttpRequest, websocket: WebSocket, room: str) -> None:
    with websocket.subscribe(f"chat:{room}"):
        for text in websocket:
            assert_type(text, str | bytes)
            publish(f"chat:{room}", text)


@login_required
@websocket
def login_above(request: HttpRequest, websocket: WebSocket) -> None:
    websocket.send("hello")


@websocket
@login_required
def login_below(request: HttpRequest, websocket: WebSocket) -> HttpResponse:
    websocket.send("hello")
    return websocket.response


@websocket
def refuses(request: HttpRequest, websocket: WebSocket) -> HttpResponse | None:
    if websocket.origin is None:
        return HttpResponseForbidden()
    websocket.send("hello")
    return None


@login_required
@websocket(receive=False)
def listens(request: HttpRequest, websocket: WebSocket) -> HttpResponse:
    return websocket.listen(f"user:{request.user.pk}")


@permission_required("chat.speak")
@staff_member_required
@never_cache
@csrf_exempt
@websocket(
    origins=["https://partner.example"], subprotocols=["chat.v1"], max_message_size=4096, refuse="close", rate=(5, 1.0)
)
def with_options(request: HttpRequest, websocket: WebSocket, *, kind: str = "a") -> None:
    websocket.send(kind)


@websocket_loop
def ping(request: HttpRequest, websocket: WebSocket) -> None:
    if websocket.receive() == "ping":
        websocket.send("pong")


@login_required
@websocket_loop
def numbered(request: HttpRequest, websocket: WebSocket, number: int) -> None:
    websocket.send(f"{number} {websocket.receive()!r}")


def undecorated(request: HttpRequest) -> HttpResponse:
    client: WebSocket = request.META["wsgi.websocket"]
    client.send("hello")
    return client.response


class Method(LoginRequiredMixin, View):
    @method_decorator(websocket)
    def get(self, request: HttpRequest, websocket: WebSocket) -> None:
        websocket.send("hello")


@method_decorator(login_required, name="dispatch")
class MethodWithOptions(View):
    @method_decorator(websocket(refuse="close"))
    def get(self, request: HttpRequest, websocket: WebSocket, room: str) -> None:
        websocket.send(room)


@api_view(["GET"])
@websocket
def api(request: Request, websocket: WebSocket) -> None:
    websocket.send(str(request.auth))


class Api(APIView):
    @method_decorator(websocket(refuse="close"))
    def get(self, request: Request, websocket: WebSocket) -> None:
        websocket.send(str(request.auth))


@dataclass
class Instance:
    kind: str

    def __call__(self, request: HttpRequest, websocket: WebSocket) -> None:
        websocket.send(self.kind)


@websocket
def two_sources(request: HttpRequest, websocket: WebSocket) -> None:
    with subscribe("news") as messages:
        while not websocket.closed:
            ready, _, _ = select([websocket, messages], [], [], 60)
            if websocket in ready:
                text = websocket.receive()
                assert_type(text, str | bytes | None)
                if text is not None:
                    publish("news", text)
            if messages in ready:
                websocket.send(messages.get())
            if not ready:
                websocket.send("Is anybody there?")


urlpatterns = [
    path("chat/<slug:room>/", chat),
    path("above/", login_above),
    path("below/", login_below),
    path("refuses/", refuses),
    path("listens/", listens),
    path("options/", with_options, {"kind": "b"}),
    path("partial/", partial(with_options, kind="c")),
    re_path("^ping/$", ping),
    path("numbered/<int:number>/", numbered),
    path("undecorated/", undecorated),
    path("method/", Method.as_view()),
    path("method/<slug:room>/", MethodWithOptions.as_view()),
    path("api/", api),
    path("api/class/", Api.as_view()),
    path("instance/", websocket(Instance("a"))),
    path("two/", two_sources),
]


def called(request: HttpRequest, client: WebSocket) -> None:
    """The argument for the WebSocket is gone, and the others are what they were."""
    assert_type(chat(request, "lobby"), HttpResponseBase)
    chat(request, room="lobby")
    with_options(request, kind="d")
    numbered(request, 5)
    chat(request)  # type: ignore[call-arg]
    chat(request, client)  # type: ignore[arg-type]
    numbered(request, number="five")  # type: ignore[arg-type]
    login_above(request, client)  # type: ignore[call-arg]


class ChatTests(TestCase):
    client_class = Client
    client: Client  # pyright: ignore[reportIncompatibleVariableOverride]

    def test_everybody_hears(self) -> None:
        with self.client.websocket("/chat/lobby/", subprotocols=["chat.v1"]) as ws:
            assert_type(ws, ClientWebSocket)
            ws.send("hello")
            self.assertEqual(ws.receive(), "hello")
        with self.assertRaises(HandshakeRefused) as refused:
            self.client.websocket("/refuses/")
        self.assertEqual(refused.exception.status_code, 403)


class LiveTests(WebSocketLiveServerTestCase):
    def test_everybody_hears(self) -> None:
        with self.client.websocket("/chat/lobby/") as ws:
            ws.send("hello")


def test_with_pytest(client: Client) -> None:
    with client.websocket("/chat/lobby/") as ws:
        ws.send("hello")

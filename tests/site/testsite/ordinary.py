"""WebSocket views that do what ordinary views do, under the decorators of ordinary views."""

from __future__ import annotations

from django.http import HttpRequest
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

from django_websocket.decorators import websocket
from django_websocket.websocket import WebSocket

OPTIONS = {"origins": ["https://partner.example"], "subprotocols": ["v1.example"], "max_message_size": 100}


class OnMethod(View):
    """Options for a method."""

    @method_decorator(websocket(**OPTIONS))  # type: ignore[call-overload]
    def get(self, request: HttpRequest, websocket: WebSocket) -> None:
        for message in websocket:
            websocket.send(message)


@method_decorator(websocket(**OPTIONS), name="dispatch")  # type: ignore[call-overload]
class OnDispatch(View):
    """Options for the class."""

    def get(self, request: HttpRequest, websocket: WebSocket) -> None:
        for message in websocket:
            websocket.send(message)


@method_decorator(websocket(**OPTIONS), name="get")  # type: ignore[call-overload]
class OnNamedMethod(OnDispatch):
    """Options for a method, from outside."""

    def get(self, request: HttpRequest, websocket: WebSocket) -> None:
        for message in websocket:
            websocket.send(message)

    dispatch = View.dispatch


urlpatterns = [
    path("options/method/", OnMethod.as_view()),
    path("options/dispatch/", OnDispatch.as_view()),
    path("options/named-method/", OnNamedMethod.as_view()),
]

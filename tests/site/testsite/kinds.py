"""The same view as callables of each kind, with an option by which it is known whether options are seen.

A WEBSOCKET_URLCONF of its own: where one view has no hash, Django reverses no name.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework.authentication import SessionAuthentication
from rest_framework.decorators import api_view, authentication_classes
from rest_framework.request import Request
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from django_websocket.decorators import websocket, websocket_loop
from django_websocket.websocket import WebSocket

small = websocket(max_message_size=5, refuse="close")


@small
def function(request: HttpRequest, websocket: WebSocket, answer: str = "{}") -> None:
    """Echo."""
    for message in websocket:
        websocket.send(answer.format(message))


@functools.wraps(function)
def wrapping(*args: Any, **kwargs: Any) -> Any:
    """As a decorator is written that keeps to the rules."""
    return function(*args, **kwargs)


def without_attributes(*args: Any, **kwargs: Any) -> Any:
    """As one is that only says what it has wrapped."""
    return function(*args, **kwargs)


without_attributes.__wrapped__ = function  # type: ignore[attr-defined]


class Method(View):
    @method_decorator(small)
    def get(self, request: HttpRequest, websocket: WebSocket) -> None:
        function.__wrapped__(request, websocket)  # type: ignore[attr-defined]


@api_view(["GET"])
@authentication_classes([SessionAuthentication])
@small
def api(request: Request, websocket: WebSocket) -> None:
    function.__wrapped__(request, websocket)  # type: ignore[attr-defined]


class Api(APIView):
    authentication_classes = [SessionAuthentication]

    @method_decorator(small)
    def get(self, request: Request, websocket: WebSocket) -> None:
        function.__wrapped__(request, websocket)  # type: ignore[attr-defined]


class Apis(ViewSet):
    authentication_classes = [SessionAuthentication]

    @method_decorator(small)
    def listed(self, request: Request, websocket: WebSocket) -> None:
        function.__wrapped__(request, websocket)  # type: ignore[attr-defined]


@dataclass
class Undecorated:
    """Its instances have no hash, as it compares them by what they hold."""

    answer: str

    def __call__(self, request: HttpRequest, websocket: WebSocket) -> None:
        function.__wrapped__(request, websocket, self.answer)  # type: ignore[attr-defined]


@dataclass
class Instance:
    answer: str

    @method_decorator(small)
    def __call__(self, request: HttpRequest, websocket: WebSocket) -> None:
        function.__wrapped__(request, websocket, self.answer)  # type: ignore[attr-defined]

    @method_decorator(small)
    def bound(self, request: HttpRequest, websocket: WebSocket) -> None:
        function.__wrapped__(request, websocket, self.answer)  # type: ignore[attr-defined]


def answer(request: HttpRequest, websocket: WebSocket, answer: str) -> None:
    websocket.send(answer.format(websocket.receive()))


KINDS: dict[str, Callable[..., Any]] = {
    "function": function,
    "partial": functools.partial(function, answer="{}"),
    "partial-of-partial": functools.partial(functools.partial(function), answer="{}"),
    "wraps": wrapping,
    "wrapped": without_attributes,
    "partial-of-wraps": functools.partial(wrapping, answer="{}"),
    "partial-below": small(functools.partial(function.__wrapped__, answer="{}")),  # type: ignore[attr-defined]
    "class": Method.as_view(),
    "partial-of-class": functools.partial(Method.as_view()),
    "api-view": api,
    "api-class": Api.as_view(),
    "api-set": Apis.as_view({"get": "listed"}),
    "instance": Instance("{}"),
    "instance-below": small(Undecorated("{}")),
    "method-of-instance": Instance("{}").bound,
    "loop": websocket_loop(functools.partial(answer, answer="{}")),
}


urlpatterns: list[URLPattern] = [path(f"{name}/", view) for name, view in KINDS.items()]

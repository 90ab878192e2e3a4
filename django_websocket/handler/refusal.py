"""Refusals of a handshake: by an HTTP status, or by a close code, which a page can read.

A browser tells its pages nothing of the status of a refused handshake. A refusal by closing accepts the WebSocket and
closes it at once, with 4000 plus the status as the code: 4403, 4404, 4429, 4500. A redirect to the login becomes 4401,
since a WebSocket cannot follow it, and 4403 for a user who has logged in.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.contrib.auth import REDIRECT_FIELD_NAME
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseForbidden

from django_websocket import conf
from django_websocket.decorators import Options, options_of
from django_websocket.protocol.handshake import HandshakeError, accept_headers, choose_subprotocol
from django_websocket.transport.connection import Connection
from django_websocket.transport.subprotocol import NAME as SUBPROTOCOL

from .handshake import WebSocketResponse
from .upgrade import HANDSHAKE_KEY, KEY, Upgrade, who

MAX_REASON = 123  # bytes (RFC 6455, section 5.5)
PHRASES = {status.value: status.phrase for status in HTTPStatus}
STATUS = {  # exceptions that Django answers otherwise than with a 500
    Http404: HTTPStatus.NOT_FOUND,
    PermissionDenied: HTTPStatus.FORBIDDEN,
    BadRequest: HTTPStatus.BAD_REQUEST,
    SuspiciousOperation: HTTPStatus.BAD_REQUEST,
}


# --- by status --------------------------------------------------------------------------------------------------------


def refuse(error: HandshakeError, start_response: Callable[..., Any]) -> list[bytes]:
    """Answer a request that never reaches Django."""
    body = f"{error.reason}\n".encode()
    headers = {**error.headers, "Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))}
    start_response(f"{error.status} {PHRASES[error.status]}", list(headers.items()))
    return [body]


def try_again_later() -> HttpResponse:
    """Return the answer to a handshake that cannot be served now."""
    response = HttpResponse("Try again later.\n", status=503, content_type="text/plain", headers={"Retry-After": "5"})
    response._has_been_logged = True  # type: ignore[attr-defined]  # in one line, with the cause
    return response


class ForeignOrigin(HttpResponseForbidden):
    """The answer to the handshake of a page that may not connect."""


@login_not_required  # Django's middleware asks every other view for a login
def refuse_origin(request: HttpRequest) -> HttpResponse:
    """Answer the handshake of a page that may not connect."""
    response = ForeignOrigin("This site may not open a WebSocket here.", content_type="text/plain")
    response._has_been_logged = True  # type: ignore[attr-defined]  # in one line, by origin_is_allowed
    return response


# --- by closing -------------------------------------------------------------------------------------------------------


class Refusal:
    """Takes the socket of a refused client, to close it with a code."""

    def __init__(self, code: int, reason: str, who: str) -> None:
        self._code = code
        self._reason = reason.encode()[:MAX_REASON].decode(errors="ignore")
        self._who = who

    def opened(self, sock: socket.socket, early: bytes, head: bytes) -> Connection:
        """Close with the code; what the client has sent is dropped."""
        connection = Connection(sock, early, head, conf.current().limits, discard=True, who=self._who)
        connection.close(self._code, self._reason)
        return connection

    def failed(self, reason: str) -> None:
        """Nothing to do: the client has left, or gets another answer."""


def refuses_by_closing(request: HttpRequest, response: HttpResponseBase) -> bool:
    """Return whether the client is to be refused by a close code.

    A page of another site and a request with a wrong Host are not: for them nothing is opened.
    """
    if request.META[KEY].answered:
        return True
    if isinstance(response, ForeignOrigin) or response.status_code == HTTPStatus.BAD_REQUEST:
        return False
    return options_for(request).refuses_by_closing()


def options_for(request: HttpRequest) -> Options:
    """Return the options of the view that a request has led to, the defaults if there is none."""
    match = request.resolver_match
    return (options_of(match.func) if match is not None else None) or Options()


def close_at_once(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """Return the 101 that takes the place of `response`, with its cookies; the WebSocket is closed behind it."""
    upgrade: Upgrade = request.META[KEY]
    upgrade.fail(f"The request was answered with {response.status_code}: a middleware replaced the 101")
    upgrade.taker = Refusal(*code_and_reason(request, response), who(request.META))
    asked = request.META[HANDSHAKE_KEY]
    # Browsers fail a connection for which they offered subprotocols and none was chosen, without a word of the code.
    subprotocol = choose_subprotocol(asked.subprotocols, (SUBPROTOCOL, *options_for(request).subprotocols))
    accepted = WebSocketResponse(headers=accept_headers(asked.key, subprotocol))
    accepted.cookies = response.cookies
    accepted._resource_closers = response._resource_closers  # type: ignore[attr-defined]
    return accepted


def code_and_reason(request: HttpRequest, response: HttpResponseBase) -> tuple[int, str]:
    """Return how a WebSocket is closed in place of `response`."""
    if 300 <= response.status_code < 400 and leads_to_login(response.get("Location", "")):
        user = getattr(request, "user", None)
        if user is not None and user.is_authenticated:  # Django asks pages for another login
            return 4000 + HTTPStatus.FORBIDDEN, HTTPStatus.FORBIDDEN.phrase
        return 4000 + HTTPStatus.UNAUTHORIZED, "Log in first"
    return 4000 + response.status_code, response.reason_phrase


def code_and_reason_late(request: HttpRequest, answer: object) -> tuple[int, str] | None:
    """Return how a WebSocket is closed when the view, after it has accepted, returns or raises `answer`.

    None if that refuses nothing: it is a response that says all is well, no response, or an error.
    """
    if isinstance(answer, HttpResponseBase):
        return code_and_reason(request, answer) if answer.status_code >= 300 else None
    for kind, status in STATUS.items():
        if isinstance(answer, kind):
            return 4000 + status, status.phrase
    return None


def leads_to_login(location: str) -> bool:
    """Return whether `location` is where Django sends users to log in and come back."""
    parts = urlsplit(location)
    return REDIRECT_FIELD_NAME in parse_qs(parts.query) or parts.path == conf.current().login_path

"""Refusals that a page can read: a browser tells its pages nothing of the status of a refused handshake.

The WebSocket is accepted and closed at once, with 4000 and the status as the code: 4403, 4404, 4429, 4500. A redirect
to the login is a 4401, since a WebSocket cannot follow it.
"""

from __future__ import annotations

import socket
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from django.contrib.auth import REDIRECT_FIELD_NAME
from django.http import HttpResponseBase

from django_websocket import conf
from django_websocket.transport.connection import Connection

MAX_REASON = 123  # bytes (RFC 6455, section 5.5)


class Refusal:
    """Takes the socket of a client that is to hear why it is refused."""

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


def code_and_reason(response: HttpResponseBase) -> tuple[int, str]:
    """Return how a WebSocket is closed in place of `response`."""
    if 300 <= response.status_code < 400 and leads_to_login(response.get("Location", "")):
        return 4000 + HTTPStatus.UNAUTHORIZED, "Log in first"
    return 4000 + response.status_code, response.reason_phrase


def leads_to_login(location: str) -> bool:
    """Whether `location` is where Django sends users who have to log in, to come back."""
    parts = urlsplit(location)
    return REDIRECT_FIELD_NAME in parse_qs(parts.query) or parts.path == conf.current().login_path

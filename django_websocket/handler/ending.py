"""How a view ends: what its client is told, and the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
from django.core import signals
from django.http import HttpRequest, HttpResponseBase

from django_websocket.decorators import name_of
from django_websocket.exceptions import BrokerError, MessagesMissed, WebSocketError
from django_websocket.protocol.frames import CloseCode
from django_websocket.signals import send
from django_websocket.transport.connection import Connection
from django_websocket.transport.log import printable, report
from django_websocket.websocket import BaseWebSocket

from .handshake import Handshake
from .refusal import code_and_reason_late
from .request import TIED, forget_way_to

REFUSED_LATE = "the view refused a client that it had accepted"
ANSWERED_LATE = "the view returned a response to a client that it had accepted; the response is lost"
REMEDY = (
    "; use websocket.send() or websocket.close(code, reason) and a plain `return`, or return the response before the "
    "first call of send(), receive() or accept()"
)

logger = logging.getLogger("django.request")


def end(
    answer: HttpResponseBase | None,
    handshake: Handshake | None,
    websocket: BaseWebSocket,
    request: HttpRequest,
    view: Callable[..., Any],
) -> None:
    """End after a view has returned: `answer` counts if the view had not accepted.

    `handshake` is None if the view has its connection.
    """
    connection = websocket.connection
    if connection is None:
        assert answer is not None and handshake is not None
        handshake.refuse(answer)
    elif answer is not None:
        returned = f"{name_of(view)} returned {type(answer).__qualname__}"
        refusal = code_and_reason_late(request, answer)
        if refusal is not None:
            report(connection.who, refusal[0], REFUSED_LATE, returned)
            connection.close(*refusal)
            return
        code = None
        if not websocket.listening:
            code = CloseCode.NORMAL
            connection.close()
        report(connection.who, code, ANSWERED_LATE, returned + REMEDY)
    elif not websocket.listening:
        connection.close()


def end_with(error: BaseException, handshake: Handshake | None, websocket: BaseWebSocket, request: HttpRequest) -> None:
    """End after a view has raised, whatever it was: no other client may notice. See `end` for `handshake`."""
    connection = websocket.connection
    if connection is None:
        assert handshake is not None
        if not handshake.refuse_after(error):
            log(error, request)
    elif isinstance(error, WebSocketError):
        connection.close()
    elif isinstance(error, BrokerError):
        report(connection.who, CloseCode.TRY_AGAIN_LATER, str(error), level=logging.ERROR)
        connection.close(CloseCode.TRY_AGAIN_LATER, "try again later")
    elif (refusal := code_and_reason_late(request, error)) is not None:
        report(connection.who, refusal[0], REFUSED_LATE, repr(error))
        connection.close(*refusal)
    elif isinstance(error, gevent.GreenletExit):
        connection.close(CloseCode.SERVICE_RESTART)
    elif isinstance(error, MessagesMissed):
        report(connection.who, CloseCode.SERVICE_RESTART, "messages may have been missed")
        connection.close(CloseCode.SERVICE_RESTART, "messages may have been missed")
    else:
        connection.close(CloseCode.INTERNAL_ERROR, "internal error")
        log(error, request)


def log(error: BaseException, request: HttpRequest) -> None:
    """Log the error of a view as Django does for a page."""
    send(signals.got_request_exception, type(request), request=request)
    logger.error(
        "Error in the WebSocket view of %s",
        printable(request.path),
        exc_info=error,
        extra={"status_code": 500, "request": request},
    )


def follow(connection: Connection, on_end: Callable[[], None], *, ended: bool) -> None:
    """Have `on_end` called when a new connection ends, unless the view has `ended` while the 101 was on its way."""
    if ended:
        connection.close(CloseCode.INTERNAL_ERROR, "internal error")
    else:
        connection.call_on_end(on_end)


def let_go(connection: Connection, on_end: Callable[[], None], websocket: BaseWebSocket) -> None:
    """Undo `follow`: the connection may outlive its view, unless that did not wait for it to the end."""
    connection.do_not_call_on_end(on_end)
    if websocket.connection is None:
        connection.close(CloseCode.INTERNAL_ERROR, "internal error")


def untie(request: HttpRequest) -> None:
    """Undo the circles of a request, so that what ends with its view is freed then, and not by the collector."""
    attributes = vars(request)
    forget_way_to(attributes.get("user"))
    for name in TIED:
        attributes.pop(name, None)
    request.META.pop("wsgi.websocket", None)

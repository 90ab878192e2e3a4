"""The greenlet in which a view talks with its client, at home in the context of the request that began it."""

from __future__ import annotations

import contextvars
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

import gevent
from django.core import signals
from django.http import HttpRequest, HttpResponseBase
from gevent import getcurrent

from django_websocket.compat import naming
from django_websocket.decorators import name_of
from django_websocket.exceptions import BrokerError, MessagesMissed, WebSocketError
from django_websocket.protocol.frames import CloseCode
from django_websocket.protocol.handshake import ClientHandshake
from django_websocket.signals import send
from django_websocket.transport.clients import ClientGreenlet
from django_websocket.transport.connection import Connection
from django_websocket.transport.forking import end_child, in_child
from django_websocket.transport.log import printable, report
from django_websocket.transport.waiting import ViewGreenlet
from django_websocket.websocket import WebSocket

from .databases import Databases
from .handshake import Handshake
from .refusal import code_and_reason_late
from .surroundings import Surroundings

with naming("application"):
    from asgiref.sync import AsyncToSync, _restore_context  # carries over what a plain copy of the context does not
    from django.utils.functional import SimpleLazyObject, empty

NOTHING: dict[str, Any] = {}  # one for all views without keyword arguments
REFUSED_LATE = "the view refused a client that it had accepted"
ANSWERED_LATE = "the view answered a client that it had accepted, and nobody gets the response"
REMEDY = (
    "; tell a client by websocket.send() or websocket.close(code, reason) and end with `return`, or return the "
    "response before the first call of send(), receive() or accept()"
)

logger = logging.getLogger("django.request")


class Conversation(ViewGreenlet):
    """Runs one view, from the start inside the middleware chain, through the handshake, to the end.

    `keeps_request` is set by whoever needs the request when the view has ended.
    """

    __slots__ = (
        "_args",
        "_context",
        "_databases",
        "_handshake",
        "_kwargs",
        "_request",
        "_view",
        "keeps_request",
        "websocket",
    )

    def __init__(
        self,
        request: HttpRequest,
        asked: ClientHandshake,
        view: Callable[..., HttpResponseBase | None],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> None:
        super().__init__()
        self._request = request
        self._view = view
        self._args = args
        self._kwargs = kwargs or NOTHING
        self._handshake = Handshake(request, asked, view)
        self._context = contextvars.copy_context()
        self._databases = Databases()
        self.websocket = WebSocket(request.META, self._handshake.response, self._accept)
        request.META["wsgi.websocket"] = self.websocket
        self.keeps_request = False

    # --- in the greenlet of the chain ----------------------------------------------------------------------------

    def begin(self) -> HttpResponseBase:
        """Start the view and return its answer: its response, the 101 if it accepts, or the exception it raises."""
        self._databases.share()
        chain = getcurrent()
        if self._databases.shared and isinstance(chain, ClientGreenlet):
            chain.uses_databases = True  # the view may connect the chain's
        # The view is not switched to at once: a greenlet that begins deep in the stack is dear to switch to and from.
        return self._handshake.answer_of(self)

    def abort(self, error: Exception, timeout: float) -> None:
        """Raise `error` in the view, and wait up to `timeout` seconds for its end.

        It is an Exception: a pool's queue does not clean up after GreenletExit, a BaseException.
        """
        self.kill(error, block=timeout > 0, timeout=timeout or None)

    def opened(self, sock: socket.socket, early: bytes, head: bytes) -> Connection:
        """Let the view have its connection."""
        connection = self.connection = self._handshake.connect(self.websocket, sock, early, head)
        if self.ready():  # the view has ended while the 101 was on its way
            connection.close(CloseCode.INTERNAL_ERROR, "internal error")
        elif connection.connected:
            connection.on_end.append(self._on_end)
        else:
            self._on_end()
        self._handshake.opened()
        del self._context  # it may refer to much
        return connection

    def _on_end(self) -> None:
        connection = self.connection
        assert connection is not None
        self.client_left(connection.close_code or CloseCode.ABNORMAL, connection.close_reason)

    def failed(self, reason: str) -> None:
        """Let the view know that there will be no connection."""
        self._handshake.failed(reason)

    # --- in the greenlet of the view -----------------------------------------------------------------------------

    def _run(self) -> None:  # gevent's name for what a greenlet does
        ViewGreenlet.running.add(self)
        try:
            _restore_context(self._context)
            AsyncToSync.executors.current = None  # the thread of asynchronous middleware, which waits for this view
            self._databases.adopt()
            try:
                view, args, kwargs = self._view, self._args, self._kwargs
                answer = view(self._request, *args, **kwargs) if args or kwargs else view(self._request)
                if in_child():
                    end_child()
                if answer is None or answer is self._handshake.response:
                    self.websocket.accept()
                    answer = None
            except BaseException as error:
                if in_child():
                    end_child(error)
                self._databases.used = True  # the error may be of one that failed to connect, and was not noted
                self._end_with(error)
            else:
                self._end(answer)
        finally:
            ViewGreenlet.running.discard(self)
            try:
                self._let_go()
                self.close_all()
            finally:
                accepted = self.websocket.connection is not None
                self._watch_databases(False)  # the connection may outlive the view
                self._databases.close(accepted=accepted)
                self._databases.unshare()
                if accepted and not self.keeps_request:  # else the chain, or a test, still needs it
                    untie(self._request)

    def _accept(self, subprotocol: str | None) -> Connection:
        """Have the chain answer with the 101, and wait for the connection; see `WebSocket.accept`."""
        handshake, databases = self._handshake, self._databases
        handshake.check_not_over()
        own = getcurrent() is self  # else another greenlet, which knows none of the databases but the shared ones
        wrappers = databases.here() if own else databases.shared
        databases.check_no_atomic("The WebSocket cannot be accepted", wrappers)
        if not handshake.answered:  # else an earlier call was interrupted, or another greenlet accepts
            context = contextvars.copy_context() if own else self._context
            handshake.accept(self, subprotocol, Surroundings(context, wrappers))
        wrapped = databases.take_execute_wrappers() if own else ()
        try:
            connection = handshake.wait()
        finally:
            for wrapper, of_view in wrapped:
                wrapper.execute_wrappers.extend(of_view)
        if handshake.complete(self.websocket, connection):
            databases.note_transactions()
            if not own:
                self._watch_databases(databases.used)  # the view gives back what it holds when it waits for a message
        if own:
            self._watch_databases(databases.release())
        return connection

    def _end(self, answer: HttpResponseBase | None) -> None:
        """End after the view has returned: `answer` counts if it had not accepted."""
        connection = self.websocket.connection
        if connection is None:
            assert answer is not None
            self._handshake.refuse(answer)
        elif answer is not None:
            self._end_with_answer(answer, connection)
        elif not self.websocket.listening:
            connection.close()

    def _end_with_answer(self, answer: object, connection: Connection) -> None:
        """End after the view has returned something that came too late to be the answer to the handshake."""
        returned = f"{name_of(self._view)} returned {type(answer).__qualname__}"
        refusal = code_and_reason_late(self._request, answer)
        if refusal is not None:
            report(self._handshake.who, refusal[0], REFUSED_LATE, returned)
            connection.close(*refusal)
            return
        code = None
        if not self.websocket.listening:
            code = CloseCode.NORMAL
            connection.close()
        report(self._handshake.who, code, ANSWERED_LATE, returned + REMEDY)

    def _end_with(self, error: BaseException) -> None:
        """End after the view has raised, whatever it was: no other client may notice."""
        connection = self.websocket.connection
        if connection is None:
            if not self._handshake.refuse_after(error):
                self._log(error)
        elif isinstance(error, WebSocketError):
            connection.close()
        elif isinstance(error, BrokerError):
            report(self._handshake.who, CloseCode.TRY_AGAIN_LATER, str(error), level=logging.ERROR)
            connection.close(CloseCode.TRY_AGAIN_LATER, "try again later")
        elif (refusal := code_and_reason_late(self._request, error)) is not None:
            report(self._handshake.who, refusal[0], REFUSED_LATE, repr(error))
            connection.close(*refusal)
        elif isinstance(error, gevent.GreenletExit):
            connection.close(CloseCode.SERVICE_RESTART)
        elif isinstance(error, MessagesMissed):
            report(self._handshake.who, CloseCode.SERVICE_RESTART, "messages may have been missed")
            connection.close(CloseCode.SERVICE_RESTART, "messages may have been missed")
        else:
            connection.close(CloseCode.INTERNAL_ERROR, "internal error")
            self._log(error)

    def _log(self, error: BaseException) -> None:
        send(signals.got_request_exception, type(self), request=self._request)
        logger.error(
            "Error in the WebSocket view of %s",
            printable(self._request.path),
            exc_info=error,
            extra={"status_code": 500, "request": self._request},
        )

    def _let_go(self) -> None:
        """Leave the connection, which may outlive the view."""
        connection = self.connection
        if connection is not None:
            if self._on_end in connection.on_end:
                connection.on_end.remove(self._on_end)
            connection.close_fileno()
            if self.websocket.connection is None:  # the view did not wait for it to the end
                connection.close(CloseCode.INTERNAL_ERROR, "internal error")

    # --- databases while the view waits --------------------------------------------------------------------------

    def note_database(self) -> None:
        """Note that the view uses a database."""
        self._databases.used = True
        self._watch_databases(True)

    def _watch_databases(self, held: bool) -> None:
        """Set what is called before the view waits for a message or takes one, if it holds a database connection."""
        self.before_waiting = self._give_back if held else None
        self.before_taking = self._refuse_in_atomic if held else None
        if self.connection is not None:
            self.connection.before_taking = self.before_taking

    def _refuse_in_atomic(self) -> None:
        """Raise RuntimeError in a transaction, even if the view need not wait: another time it would have to."""
        if self.message_is_there:
            self.message_is_there = False
        elif getcurrent() is self:
            self._databases.check_no_atomic("A view cannot wait for a message")

    def _give_back(self) -> None:
        """Release the databases: a wait of hours may not hold a connection. Raises RuntimeError in a transaction."""
        self._databases.check_no_atomic("A view cannot wait for a message")
        self._watch_databases(self._databases.release())


def untie(request: HttpRequest) -> None:
    """Undo the circles of a request, so that what ends with its view is freed then, and not by the collector."""
    attributes = vars(request)
    user = attributes.get("user")
    if isinstance(user, SimpleLazyObject) and user._wrapped is not empty:
        vars(user)["_setupfunc"] = None  # it refers to the request, and has done its work
    for name in ("auser", "_messages"):
        attributes.pop(name, None)
    request.META.pop("wsgi.websocket", None)

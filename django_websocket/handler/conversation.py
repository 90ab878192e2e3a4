"""The greenlet in which a view talks with its client, at home in the context of the request that began it."""

from __future__ import annotations

import contextvars
import logging
import socket
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from django.http import HttpRequest, HttpResponseBase
from gevent import getcurrent

from django_websocket import conf
from django_websocket.compat import naming
from django_websocket.decorators import name_of
from django_websocket.protocol.frames import CloseCode
from django_websocket.protocol.handshake import ClientHandshake
from django_websocket.transport.clients import ClientGreenlet
from django_websocket.transport.connection import Connection
from django_websocket.transport.forking import end_child, in_child
from django_websocket.transport.waiting import ViewGreenlet
from django_websocket.websocket import WebSocket

from .databases import Databases
from .ending import end, end_with, follow, let_go, untie
from .handshake import Handshake, WebSocketResponse, client_of
from .surroundings import Surroundings

with naming("application"):
    from asgiref.sync import AsyncToSync, _restore_context  # carries over what a plain copy of the context does not

NOTHING: dict[str, Any] = {}  # one for all views without keyword arguments
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
        self._handshake: Handshake | None = Handshake(request, asked, view)  # until the view has its connection
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
        assert self._handshake is not None
        return self._handshake.answer_of(self)

    def abort(self, error: BaseException, timeout: float) -> None:
        """Raise `error` in the view, and wait up to `timeout` seconds for its end.

        It is an Exception: a pool's queue does not clean up after GreenletExit, a BaseException.
        """
        self.kill(error, block=timeout > 0, timeout=timeout or None)

    def opened(self, sock: socket.socket, early: bytes, head: bytes) -> Connection:
        """Let the view have its connection."""
        handshake = self._handshake
        assert handshake is not None
        connection = self.connection = handshake.connect(self.websocket, sock, early, head)
        follow(connection, self._on_end, ended=self.ready())
        handshake.opened()
        del self._context  # it may refer to much
        return connection

    def _on_end(self) -> None:
        connection = self.connection
        assert connection is not None
        self.client_left(connection.close_code or CloseCode.ABNORMAL, connection.close_reason)

    @property
    def works_for(self) -> tuple[str, str]:
        """See `culprits.Worker`."""
        return client_of(self.connection, self._handshake), f"the view {name_of(self._view)}"

    @property
    def frames(self) -> list[FrameType]:
        """Where the view waits: the frames of its calls, the outermost first."""
        return [frame for frame, _ in traceback.walk_stack(self.gr_frame)][::-1] if self.gr_frame else []

    def failed(self, reason: str) -> None:
        """Let the view know that there will be no connection."""
        assert self._handshake is not None
        self._handshake.failed(reason)

    # --- in the greenlet of the view -----------------------------------------------------------------------------

    def _run(self) -> None:  # gevent's name for what a greenlet does
        ViewGreenlet.running.add(self)
        try:
            _restore_context(self._context)
            if getattr(AsyncToSync.executors, "current", None) is not None:
                AsyncToSync.executors.current = None  # the thread of asynchronous middleware, which waits for this view
            self._databases.adopt()
            try:
                view, args, kwargs = self._view, self._args, self._kwargs
                answer = view(self._request, *args, **kwargs) if args or kwargs else view(self._request)
                if in_child():
                    end_child()
                if answer is None or isinstance(answer, WebSocketResponse):
                    self.websocket.accept()
                    answer = None
            except BaseException as error:
                if in_child():
                    end_child(error)
                self._databases.used = True  # the error may be of one that failed to connect, and was not noted
                end_with(error, self._handshake, self.websocket, self._request)
            else:
                end(answer, self._handshake, self.websocket, self._request, self._view)
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
        assert handshake is not None
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
            self._handshake = None
            databases.note_transactions()
            if not own:
                self._watch_databases(databases.used)  # the view gives back what it holds when it waits for a message
        if own:
            self._watch_databases(databases.release())
        return connection

    def _let_go(self) -> None:
        """Leave the connection, which may outlive the view."""
        connection = self.connection
        if connection is not None:
            connection.close_fileno()
            let_go(connection, self._on_end, self.websocket)

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

    def _give_back(self, for_files: bool) -> None:
        """Release the databases, if not at once then soon: a wait of hours may not hold a connection.

        Raises RuntimeError in a transaction.
        """
        self._databases.check_no_atomic("A view cannot wait for a message")
        seconds = conf.current().database_linger
        # A file may be the connection's own.
        if for_files or not seconds or not self._databases.linger(seconds):
            self._watch_databases(self._databases.release())

    def after_waiting(self) -> None:
        """Take back the databases that the view still holds."""
        self._databases.go_on()

"""What happens between a request and its answer: the 101 that opens a WebSocket, or the response that refuses it.

Three take part. The chain of middleware waits in `Handshake.answer_of()` for the answer. The view gives it, by
accepting or otherwise, in whatever runs it. The server then opens the connection, or says why it cannot, and the view
goes on.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, Protocol

from django.apps import apps
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from gevent import GreenletExit, getcurrent
from gevent.hub import get_hub

from django_websocket import conf
from django_websocket.compat import naming
from django_websocket.decorators import Options, options_of
from django_websocket.exceptions import HandshakeFailed, WebSocketError
from django_websocket.protocol.deflate import Agreement, negotiate
from django_websocket.protocol.frames import encode_message
from django_websocket.protocol.handshake import ClientHandshake, accept_headers, choose_subprotocol
from django_websocket.signals import send, websocket_connected
from django_websocket.transport.connection import Connection
from django_websocket.transport.deadlines import Deadline
from django_websocket.transport.log import report
from django_websocket.transport.subprotocol import NAME as SUBPROTOCOL
from django_websocket.transport.subprotocol import Greeting
from django_websocket.websocket import BaseWebSocket

from .admission import FULL, Full, Place, take_place, too_many_connections
from .counting import make_connection
from .orders import orders
from .request import WebSocketRequest
from .surroundings import Surroundings
from .upgrade import KEY, Taker, Upgrade, who

with naming("application"):
    from django.core.handlers.wsgi import LimitedStream

NO_BODY = LimitedStream(BytesIO(), 0)
KILL_TIMEOUT = 1.0  # seconds that a view gets for its `finally` blocks when its time for the handshake is over


class WebSocketResponse(HttpResponse):
    """The 101 that accepts a WebSocket; middleware and decorators see it as any other response."""

    status_code = 101


class HandshakeTimeout(Exception):
    """A view neither accepted nor answered within `WEBSOCKET_HANDSHAKE_TIMEOUT`."""

    def __str__(self) -> str:
        return (
            f"The view neither accepted the WebSocket nor answered within {conf.current().handshake_timeout} seconds; "
            f"call websocket.accept() before the slow part of the view, or raise WEBSOCKET_HANDSHAKE_TIMEOUT."
        )


class Interrupted(Exception):
    """The process ends, and a view that has neither accepted nor answered was cancelled."""

    def __str__(self) -> str:
        return "the process stopped before the view had accepted or answered"


class Runner(Taker, Protocol):
    """Runs a view: a greenlet, or a task of asyncio's."""

    def start(self) -> None:
        """Have the view begin once the running greenlet waits."""

    def abort(self, error: Exception, timeout: float) -> None:
        """Raise `error` in the view, and wait up to `timeout` seconds for its end."""


def client_of(connection: Connection | None, handshake: Handshake | None) -> str:
    """Return the client of a view as the log names it: there is a handshake until there is a connection."""
    found = connection or handshake
    return "" if found is None else found.who


class Handshake:
    """One handshake, from the start of its view to the connection.

    `answered` says whether the chain has, or is about to get, an answer of the view. `over` says that the view cannot
    accept any more. `cancelled` is set by a runner that has cancelled its view. What is in `waiting` is called in the
    hub when there is an `outcome()`.
    """

    __slots__ = (
        "_agreement",
        "_answer",
        "_asked",
        "_chain",
        "_connection",
        "_failure",
        "_greeting",
        "_options",
        "_place",
        "_request",
        "_surroundings",
        "_view",
        "answered",
        "cancelled",
        "over",
        "response",
        "waiting",
        "who",
    )

    def __init__(self, request: HttpRequest, asked: ClientHandshake, view: Callable[..., Any]) -> None:
        self._request = request
        self._asked: ClientHandshake | None = asked  # until the view has its connection
        self._view = view
        self._options = options_of(view) or Options()
        self._chain: Any = None  # the greenlet that waits for the answer
        self._answer: HttpResponseBase | Exception | None = None
        self._agreement: Agreement | None = None
        self._surroundings: Surroundings | None = None  # of the code that accepts, until its login is watched
        self._connection: Connection | None = None
        self._failure: str | None = None  # why there is no connection
        self._place: Place | None = None  # of its user, from the acceptance to the end of the connection
        self._greeting: Greeting | None = None  # of a client that speaks the package's subprotocol
        self.answered = False
        self.cancelled = False
        self.over = False
        self.response = WebSocketResponse()
        self.waiting: list[Callable[[], object]] = []
        self.who = who(request.META)

    # --- for the chain -------------------------------------------------------------------------------------------

    def answer_of(self, runner: Runner) -> HttpResponseBase:
        """Start the view and return its answer: its response, the 101 if it accepts, or the exception it raises."""
        self._chain = getcurrent()
        runner.start()
        late = HandshakeTimeout()
        deadline = Deadline(conf.current().handshake_timeout, late)
        try:
            while self._answer is None:
                get_hub().switch()
        except BaseException as error:
            self._chain = None
            self.over = True
            runner.abort(HandshakeFailed("The request is over"), KILL_TIMEOUT if error is late else 0)
            raise
        finally:
            deadline.close()
            del late  # here and below: the traceback of what is raised has this frame
        answer, self._answer = self._answer, None
        if isinstance(answer, Exception):
            try:
                raise answer
            finally:
                del answer
        return self._admit() if answer is self.response else answer

    def _admit(self) -> HttpResponseBase:
        """Return the 101, or the refusal of a user who has too many connections."""
        try:
            self._place = take_place(self._request)
        except Full as error:
            self.over = True
            self._request.META[KEY].fail(FULL)
            return too_many_connections(self._request, error)
        return self.response

    # --- for the view --------------------------------------------------------------------------------------------

    def check_not_over(self) -> None:
        """Raise HandshakeFailed if it is too late to accept."""
        if self.over:
            raise HandshakeFailed("The request is over, so the WebSocket can no longer be accepted")

    def accept(self, runner: Runner, subprotocol: str | None, surroundings: Surroundings) -> None:
        """Answer with the 101, and leave `runner` to take the socket. The login is watched in `surroundings`."""
        asked = self._asked
        assert asked is not None
        offered = asked.subprotocols
        if subprotocol is None:
            subprotocol = choose_subprotocol(offered, self._options.subprotocols)
        elif subprotocol not in offered or subprotocol == SUBPROTOCOL:
            # Those that it did offer are not named: one may be a token, which does not belong in a log.
            raise ValueError(f"The subprotocol {subprotocol!r} cannot be chosen: the client did not offer it")
        upgrade: Upgrade = self._request.META[KEY]
        response = self.response
        if SUBPROTOCOL in offered and upgrade.speaks:
            self._greeting = Greeting(subprotocol)
            subprotocol = SUBPROTOCOL
        wanted = None if upgrade.answered else self._options.wanted_compression()
        agreed = None if wanted is None else negotiate(asked.extensions, wanted)
        extensions, self._agreement = agreed or (None, None)
        for name, value in accept_headers(asked.key, subprotocol, extensions).items():
            response[name] = value
        upgrade.taker = runner
        self._request._stream = NO_BODY  # type: ignore[assignment]  # gunicorn's would keep all it knows of the request
        self._surroundings = surroundings
        self._answer_chain(response)

    def refuse(self, answer: HttpResponseBase | Exception) -> None:
        """Answer with what the view returned or raised, unless another greenlet of the view has accepted meanwhile."""
        if not self.answered:
            self.over = True
            self._answer_chain(answer)
        elif not self.over:  # else it was refused before the view ended
            report(self.who, None, "the view answered too late", "another of its greenlets had accepted")

    def refuse_after(self, error: BaseException) -> bool:
        """Answer with the error of a view that has no connection. Returns False if the error has to be logged instead.

        A BaseException such as SystemExit is wrapped in a RuntimeError, so that it ends the view and not the server.
        If its runner has cancelled the view, the view is not at fault, and the client may try again.
        """
        if self.over:
            return True
        if not self.answered:
            if self.cancelled and isinstance(error, GreenletExit):
                error = Interrupted()
            elif not isinstance(error, Exception):
                failure = RuntimeError(f"The view ended with {error!r}")
                failure.__cause__ = error
                error = failure
            self.refuse(error)
            return True
        if isinstance(error, Exception) and not isinstance(error, WebSocketError):
            return False  # another greenlet of the view is accepting
        report(self.who, None, "the handshake was not completed", str(error), logging.INFO)
        return True

    def outcome(self) -> Connection | None:
        """Return the connection, None as long as nothing is known. Raises HandshakeFailed if there will be none."""
        if self._connection is None and self._failure is not None:
            raise HandshakeFailed(self._failure)
        return self._connection

    def wait(self) -> Connection:
        """Let the running greenlet wait for the outcome."""
        while (connection := self.outcome()) is None:
            with self.telling(getcurrent().switch):
                get_hub().switch()
        return connection

    @contextmanager
    def telling(self, call: Callable[[], object]) -> Iterator[None]:
        """Have `call` called, in the hub, when the outcome is known within the block."""
        self.waiting.append(call)
        try:
            yield
        finally:  # also when somebody throws an exception into whoever waits
            self.waiting.remove(call)

    def complete(self, websocket: BaseWebSocket, connection: Connection) -> bool:
        """Give the view its connection. Returns False if another greenlet of the view has done so."""
        if self._asked is None:
            return False
        self._asked = None
        websocket.connection = connection
        websocket.forget_response()
        send(websocket_connected, self._view, request=self._request, websocket=websocket)
        return True

    # --- for the server, through the runner ----------------------------------------------------------------------

    def connect(self, websocket: BaseWebSocket, sock: socket.socket, early: bytes, head: bytes) -> Connection:
        """Return the new connection; see `Taker.opened`."""
        limits = self._options.limits()
        greeting = self._greeting
        welcome = b"" if greeting is None else encode_message(greeting.welcome(limits.ping_interval))
        self._connection = connection = make_connection(
            self._view,
            self._request,
            websocket,
            sock,
            early,
            head + welcome,
            limits,
            discard=not self._options.receive,
            agreement=self._agreement,
            greeting=greeting,
            rate=self._options.rate,
            who=self.who,
        )
        connection.sent_bytes += len(welcome)  # a part of the conversation, unlike the rest of the head
        return connection

    def opened(self) -> None:
        """Have the connection end with its login or by an order, and let the view go on."""
        connection, surroundings = self._connection, self._surroundings
        assert connection is not None and surroundings is not None
        self._surroundings = None
        if self._place is not None:
            connection.call_on_end(self._place.give_back)
        connection.view = self._view
        user = None
        if apps.is_installed("django.contrib.auth"):
            if self._options.until_logout:
                from .login_checks import watch  # it imports models, which must be installed

                watch(self._request, connection, surroundings)
            else:
                from .users import known_user

                user = known_user(self._request)
        orders().add(connection, user)
        if isinstance(self._request, WebSocketRequest):
            self._request.forget_unused()
        self._tell_outcome()

    def failed(self, reason: str) -> None:
        """Let the view know that there will be no connection."""
        self._failure = reason
        if self._place is not None:
            self._place.give_back()
        self._tell_outcome()

    # --- inside --------------------------------------------------------------------------------------------------

    def _answer_chain(self, answer: HttpResponseBase | Exception) -> None:
        """Let the chain go on as soon as the view waits or has ended."""
        self._answer = answer
        self.answered = True
        get_hub().loop.run_callback(self._wake_chain)

    def _wake_chain(self) -> None:
        chain, self._chain = self._chain, None
        if chain is not None:  # it still waits
            chain.switch()

    def _tell_outcome(self) -> None:
        get_hub().loop.run_callback(self._wake_waiting)

    def _wake_waiting(self) -> None:
        for go_on in tuple(self.waiting):
            if go_on in self.waiting:  # not if one that was called before has removed it
                go_on()

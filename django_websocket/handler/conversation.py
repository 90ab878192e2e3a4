"""A view and its client: from the start inside the middleware chain, through the handshake, to the end.

The chain waits in `begin()` while the view runs in a greenlet of its own. If the view accepts, the chain goes on with
the 101 and is done with the request; the server then calls `opened()`, and the view goes on.
"""

from __future__ import annotations

import contextvars
import logging
import socket
import weakref
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import gevent
from django.apps import apps
from django.core import signals
from django.db import connections
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse, HttpResponseBase, SimpleCookie
from gevent import getcurrent, monkey
from gevent.hub import get_hub

from django_websocket import conf
from django_websocket.compat import naming
from django_websocket.exceptions import BrokerError, HandshakeFailed, MessagesMissed, WebSocketError
from django_websocket.options import Options, options_of
from django_websocket.protocol.deflate import Agreement, negotiate
from django_websocket.protocol.frames import CloseCode
from django_websocket.protocol.handshake import ClientHandshake, accept_headers, choose_subprotocol
from django_websocket.signals import make_connection, send, websocket_connected
from django_websocket.transport.connection import Connection
from django_websocket.transport.deadlines import Deadline
from django_websocket.transport.forking import end_child, in_child
from django_websocket.transport.log import printable, report
from django_websocket.transport.waiting import ViewGreenlet
from django_websocket.websocket import WebSocket

from .orders import orders
from .surroundings import Surroundings
from .upgrade import KEY, Upgrade, who

with naming("application"):
    from asgiref.sync import _restore_context  # carries over what a plain copy of the context does not
    from django.core.handlers.wsgi import LimitedStream
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.http.response import ResponseHeaders
    from django.utils.functional import SimpleLazyObject, empty

NOTHING: dict[str, Any] = {}  # one for all, where there is nothing
NO_BODY = LimitedStream(BytesIO(), 0)
# Attributes of a database's wrapper that refer to it themselves, and how.
BACK = {
    **dict.fromkeys(("client", "creation", "features", "introspection", "ops", "validation"), "connection"),
    "wrap_database_errors": "wrapper",
}
KILL_TIMEOUT = 1.0  # seconds that a view gets for its `finally` blocks when its time for the handshake is over

# Databases that another thread uses at the same time, so that a transaction may be the other's: those in memory, which
# a test shares with its live server.
used_elsewhere: set[BaseDatabaseWrapper] = set()

logger = logging.getLogger("django.request")


class WebSocketResponse(HttpResponse):
    """The 101 that accepts a WebSocket; middleware and decorators see it as any other response."""

    status_code = 101

    def forget_headers(self) -> None:
        """Let go of what was sent: the conversation keeps the response for as long as the client stays."""
        self.headers = ResponseHeaders({})
        self.cookies = SimpleCookie()


class HandshakeTimeout(Exception):
    """A view neither accepted nor answered within `WEBSOCKET_HANDSHAKE_TIMEOUT`."""

    def __str__(self) -> str:
        return (
            f"The view neither accepted the WebSocket nor answered within {conf.current().handshake_timeout} seconds; "
            f"websocket.accept() before what takes long, or a higher WEBSOCKET_HANDSHAKE_TIMEOUT, helps."
        )


class Conversation(ViewGreenlet):
    """The greenlet of one view, at home in the context of the request that began it."""

    __slots__ = (
        "_agreement",
        "_answer",
        "_answered",
        "_args",
        "_chain",
        "_context",
        "_depths",
        "_failure",
        "_handshake",
        "_kwargs",
        "_options",
        "_over",
        "_request",
        "_response",
        "_shared",
        "_surroundings",
        "_view",
        "_waiting",
        "_who",
        "keeps_request",
        "uses_databases",
        "websocket",
    )

    def __init__(
        self,
        request: HttpRequest,
        handshake: ClientHandshake,
        view: Callable[..., HttpResponseBase | None],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> None:
        super().__init__()
        self._request = request
        self._handshake: ClientHandshake | None = handshake  # until it is answered
        self._view = view
        self._args = args
        self._kwargs = kwargs or NOTHING
        self._who = who(request.META)
        self._options = options_of(view) or Options()
        self._response = WebSocketResponse()
        self.websocket = WebSocket(request.META, self._response, self._accept)
        request.META["wsgi.websocket"] = self.websocket
        self._chain: Any = None  # the greenlet that waits for the answer
        self._answer: HttpResponseBase | Exception | None = None
        self._answered = False
        self._failure: str | None = None  # why there is no connection
        self._waiting: list[Any] = []  # greenlets, for the connection
        self._context = contextvars.copy_context()
        self._shared: Sequence[BaseDatabaseWrapper] = connections.all(initialized_only=True) or ()
        self._surroundings: Surroundings | None = None  # of whoever accepts, until the login is watched
        self._depths = self._depths_now()
        self.uses_databases = bool(self._shared)
        self._agreement: Agreement | None = None
        self.keeps_request = False  # whether somebody else wants it when the view has ended
        self._over = False  # whether the chain has gone on without an answer of the view

    # --- in the greenlet of the chain ----------------------------------------------------------------------------

    def begin(self) -> HttpResponseBase:
        """Start the view and return its answer: its response, the 101 if it accepts, or the exception it raises."""
        for wrapper in self._shared:
            wrapper.inc_thread_sharing()
        self._chain = chain = getcurrent()
        if self._shared:
            chain.uses_databases = True  # type: ignore[attr-defined]  # the view may connect what is the chain's
        self.start()  # not by switching to it: a greenlet that begins deep in the stack is dear to switch to and from
        late = HandshakeTimeout()
        deadline = Deadline(conf.current().handshake_timeout, late)
        try:
            while self._answer is None:
                get_hub().switch()
        except BaseException as error:
            self._chain = None
            self._over = True
            # With an Exception, which GreenletExit is none: what a view may wait in tidies up for no other, such as
            # the queue for a pool's connections.
            self.kill(HandshakeFailed("The request is over"), block=error is late, timeout=KILL_TIMEOUT)
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
        return answer

    def opened(self, sock: socket.socket, early: bytes, head: bytes) -> Connection:
        """Let the view have its connection."""
        options = self._options
        connection = make_connection(
            self._view,
            self._request,
            self.websocket,
            sock,
            early,
            head,
            options.limits(),
            discard=not options.receive,
            agreement=self._agreement,
            who=self._who,
        )
        self.connection = connection
        if self.ready():  # the view has ended while the 101 was on its way
            connection.close(CloseCode.INTERNAL_ERROR, "internal error")
        elif connection.connected:
            connection.on_end.append(self._on_end)
        else:
            self._on_end()
        if options.until_logout and apps.is_installed("django.contrib.auth"):
            from .login_checks import watch  # which could not be imported without the models of django.contrib.auth

            assert self._surroundings is not None
            watch(self._request, connection, self._surroundings)
        orders().add(connection)
        self._surroundings = None
        del self._context  # it may refer to much
        self._go_on()
        return connection

    def _on_end(self) -> None:
        connection = self.connection
        assert connection is not None
        self.client_left(connection.close_code or CloseCode.ABNORMAL, connection.close_reason)

    def failed(self, reason: str) -> None:
        """Let the view know that the handshake came to nothing."""
        self._failure = reason
        self._go_on()

    def _go_on(self) -> None:
        get_hub().loop.run_callback(self._wake)

    def _wake(self) -> None:
        for waiting in tuple(self._waiting):
            if waiting in self._waiting:  # not if another one has taken it away
                waiting.switch()

    # --- in the greenlet of the view -----------------------------------------------------------------------------

    def _run(self) -> None:  # gevent's name for what a greenlet does
        ViewGreenlet.running.add(self)
        try:
            self._adopt_context()
            try:
                view, args, kwargs = self._view, self._args, self._kwargs
                answer = view(self._request, *args, **kwargs) if args or kwargs else view(self._request)
                if in_child():
                    end_child()
                if answer is None or answer is self._response:
                    self.websocket.accept()
                    answer = None
            except BaseException as error:
                if in_child():
                    end_child(error)
                self.uses_databases = True  # it may be about one that could not be prepared, and was not noted
                self._end_with(error)
            else:
                self._end(answer)
        finally:
            ViewGreenlet.running.discard(self)
            try:
                self._let_go()
                self.close_all()
            finally:
                self._close_databases()
                for wrapper in self._shared:
                    wrapper.dec_thread_sharing()
                if self.websocket.connection is not None and not self.keeps_request:  # nor does the chain need it
                    untie(self._request)

    def _adopt_context(self) -> None:
        _restore_context(self._context)
        for wrapper in self._shared:
            connections[wrapper.alias] = wrapper

    def _accept(self, subprotocol: str | None) -> Connection:
        """Have the chain answer with the 101, and wait for the connection; see `WebSocket.accept`."""
        if self._over:
            raise HandshakeFailed("The request is over, so the WebSocket cannot be accepted any more")
        own = getcurrent() is self  # else another greenlet, which knows none of the databases but the shared ones
        databases = self._databases() if own else self._shared
        self._check_no_atomic("The WebSocket cannot be accepted", databases)
        if not self._answered:  # else an earlier call was interrupted, or another greenlet accepts
            self._surroundings = Surroundings(contextvars.copy_context() if own else self._context, databases)
            self._answer_chain(self._acceptance(subprotocol))
        connection = self._connected()
        if self._handshake is not None:  # nobody was quicker
            self._handshake = None
            self.websocket.connection = connection
            self._response.forget_headers()
            send(websocket_connected, self._view, request=self._request, websocket=self.websocket)
            self._depths = self._depths_now()
            if not own:
                self._watch_databases(self.uses_databases)  # it gives back what it holds when it waits for a message
        if own:
            self._release_databases()
        return connection

    def _acceptance(self, subprotocol: str | None) -> HttpResponse:
        """Return the 101."""
        handshake = self._handshake
        assert handshake is not None
        offered = handshake.subprotocols
        if subprotocol is None:
            subprotocol = choose_subprotocol(offered, self._options.subprotocols)
        elif subprotocol not in offered:
            raise ValueError(f"The subprotocol {subprotocol!r} cannot be chosen: the client offered {list(offered)}")
        upgrade: Upgrade = self._request.META[KEY]
        response = self._response
        wanted = None if upgrade.answered else self._options.wanted_compression()
        agreed = None if wanted is None else negotiate(handshake.extensions, wanted)
        extensions, self._agreement = agreed or (None, None)
        for name, value in accept_headers(handshake.key, subprotocol, extensions).items():
            response[name] = value
        upgrade.taker = self
        self._request._stream = NO_BODY  # type: ignore[assignment]  # gunicorn's would keep all it knows of the request
        return response

    def _connected(self) -> Connection:
        """Wait for what comes of the acceptance."""
        while self.connection is None:
            if self._failure is not None:
                raise HandshakeFailed(self._failure)
            current = getcurrent()
            self._waiting.append(current)
            try:
                get_hub().switch()
            finally:  # also when somebody throws an exception into this greenlet
                self._waiting.remove(current)
        return self.connection

    def _answer_chain(self, answer: HttpResponseBase | Exception) -> None:
        """Let the chain go on, as soon as this greenlet waits or has ended."""
        self._answer = answer
        self._answered = True
        get_hub().loop.run_callback(self._wake_chain)

    def _wake_chain(self) -> None:
        chain, self._chain = self._chain, None
        if chain is not None:  # it still waits
            chain.switch()

    def _end(self, answer: HttpResponseBase | None) -> None:
        """The view has returned: `answer` counts if it had not accepted."""
        connection = self.websocket.connection
        if connection is None:
            assert answer is not None
            self._refuse(answer)
        elif not self.websocket.listening:
            connection.close()

    def _refuse(self, answer: HttpResponseBase | Exception) -> None:
        """Have the view's own answer be that of the chain, unless another greenlet has accepted meanwhile."""
        if self._answered:
            report(self._who, None, "the view's answer comes too late", "another greenlet of it has accepted")
        else:
            self._over = True
            self._answer_chain(answer)

    def _end_with(self, error: BaseException) -> None:
        """The view has raised, whatever it was: nobody else is to notice."""
        connection = self.websocket.connection
        if connection is None:
            if self._over:
                pass
            elif self._answered and isinstance(error, Exception) and not isinstance(error, WebSocketError):
                self._log(error)  # while another greenlet accepts
            elif self._answered:  # the chain went on, but the client did not get the 101
                report(self._who, None, "the handshake came to nothing", str(error), logging.INFO)
            elif isinstance(error, Exception):
                self._refuse(error)
            else:
                failure = RuntimeError(f"The view ended with {error!r}")
                failure.__cause__ = error
                self._refuse(failure)
        elif isinstance(error, WebSocketError):
            connection.close()
        elif isinstance(error, BrokerError):
            report(self._who, CloseCode.TRY_AGAIN_LATER, str(error), level=logging.ERROR)
            connection.close(CloseCode.TRY_AGAIN_LATER, "try again later")
        elif isinstance(error, gevent.GreenletExit):
            connection.close(CloseCode.SERVICE_RESTART)
        elif isinstance(error, MessagesMissed):
            report(self._who, CloseCode.SERVICE_RESTART, "messages may have been missed")
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

    # --- databases -----------------------------------------------------------------------------------------------

    def note_database(self) -> None:
        """Take note that the view uses a database."""
        self.uses_databases = True
        self._watch_databases(True)

    def _watch_databases(self, held: bool) -> None:
        """Have this asked before the view waits for a message or takes one, if it holds a database connection."""
        self.before_waiting = self._give_back if held else None
        self.before_taking = self._refuse_in_atomic if held else None
        if self.connection is not None:
            self.connection.before_taking = self.before_taking

    def _refuse_in_atomic(self) -> None:
        """See that the view is in no transaction, also when it need not wait: another time it would have to."""
        if self.message_is_there:
            self.message_is_there = False
        elif getcurrent() is self:
            self._check_no_atomic("A view cannot wait for a message")

    def _give_back(self) -> None:
        """Release the databases: what waits for hours may not hold a connection. Not from inside a transaction."""
        self._check_no_atomic("A view cannot wait for a message")
        self._release_databases()

    def _depths_now(self) -> dict[str, int]:
        """Return how many atomic blocks the chain has entered, by database."""
        return {wrapper.alias: len(wrapper.atomic_blocks) for wrapper in self._shared} or NOTHING

    def _databases(self) -> Sequence[BaseDatabaseWrapper]:
        return connections.all(initialized_only=True) if self.uses_databases else ()

    def _check_no_atomic(self, what: str, databases: Sequence[BaseDatabaseWrapper] | None = None) -> None:
        for wrapper in self._databases() if databases is None else databases:
            if wrapper not in used_elsewhere and (
                len(wrapper.atomic_blocks) > self._depths.get(wrapper.alias, 0) or lacks_autocommit(wrapper)
            ):
                raise RuntimeError(
                    f"{what} inside a transaction, which would stay open for as long as the client does: "
                    f'end the atomic() block of the database "{wrapper.alias}", or what set_autocommit(False) has '
                    f"begun, first."
                )

    def _release_databases(self) -> None:
        held = False
        for wrapper in self._databases():
            if not wrapper.in_atomic_block:
                wrapper.close()
            held = held or wrapper.connection is not None  # a test's, in whose transaction the view runs
        self._watch_databases(held)

    def _close_databases(self) -> None:
        """Give back what the view has used, unless the chain is not done with it."""
        self._watch_databases(False)  # the connection may outlive the view
        accepted = self.websocket.connection is not None
        for wrapper in self._databases():
            own = wrapper not in self._shared
            if (accepted or own) and not wrapper.in_atomic_block:
                wrapper.close()
                if own and monkey.is_module_patched("threading"):  # else it is the thread's
                    untie_database(wrapper)


def untie(request: HttpRequest) -> None:
    """Undo the circles that a request is part of: what ends with its view is freed then, and not by the collector."""
    attributes = vars(request)
    user = attributes.get("user")
    if isinstance(user, SimpleLazyObject) and user._wrapped is not empty:
        vars(user)["_setupfunc"] = None  # it refers to the request, and has done its work
    for name in ("auser", "_messages"):
        attributes.pop(name, None)
    request.META.pop("wsgi.websocket", None)


def untie_database(wrapper: BaseDatabaseWrapper) -> None:
    """Undo the circles of a wrapper whose greenlet ends. Who still has it, such as a pool, can go on using it."""
    attributes = vars(wrapper)
    weak = weakref.proxy(wrapper)
    for name, back in BACK.items():
        helper = attributes.get(name)
        if getattr(helper, back, None) is wrapper:
            setattr(helper, back, weak)


def lacks_autocommit(wrapper: BaseDatabaseWrapper) -> bool:
    """Whether a transaction was begun that is no `atomic()`."""
    if wrapper.in_atomic_block or wrapper.connection is None:
        return False
    return wrapper.settings_dict["AUTOCOMMIT"] and not wrapper.autocommit


def close_databases() -> None:
    """Close what the running greenlet has open, and is not in the middle of, whatever `CONN_MAX_AGE` says."""
    for wrapper in connections.all(initialized_only=True):
        if not wrapper.in_atomic_block:
            wrapper.close()


def databases_are_separate() -> bool:
    """Whether each greenlet has database connections of its own: not if Django was imported before gevent's patches."""
    local: Any = connections._connections  # type: ignore[attr-defined]
    local.of_this_greenlet = True
    try:
        return not gevent.spawn(hasattr, local, "of_this_greenlet").get()
    finally:
        del local.of_this_greenlet


def _note_database(**kwargs: Any) -> None:
    current: Any = getcurrent()
    if isinstance(current, Conversation):
        current.note_database()
    elif hasattr(current, "uses_databases"):
        current.uses_databases = True


connection_created.connect(_note_database)

"""The task in which an `async def` view talks with its client: in the shared asyncio loop, without a greenlet."""

from __future__ import annotations

import asyncio
import contextvars
import socket
from collections.abc import Callable, Coroutine, Sequence
from types import FrameType
from typing import Any, TypeVar

import gevent
from django.http import HttpRequest, HttpResponseBase
from gevent import monkey
from gevent.event import Event

from django_websocket import conf
from django_websocket.asgi.executors import SerialExecutor
from django_websocket.asgi.loop import shared_loop
from django_websocket.asgi.waiting import Waiter, in_greenlet
from django_websocket.asgi.websocket import AsyncWebSocket
from django_websocket.compat import naming
from django_websocket.decorators import name_of
from django_websocket.protocol.handshake import ClientHandshake
from django_websocket.transport.connection import Connection
from django_websocket.transport.forking import end_child, in_child
from django_websocket.transport.waiting import unfinished

from .databases import Databases
from .ending import end, end_with, follow, let_go, untie
from .handshake import Handshake, WebSocketResponse, client_of
from .sharing import keep_from_own_thread
from .surroundings import Surroundings

with naming("asyncio"):
    from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext, _restore_context

R = TypeVar("R")

if not monkey.is_module_patched("threading"):
    keep_from_own_thread()


class OfView(SerialExecutor):
    """Runs the synchronous functions that a view waits for, each with the databases of its request.

    asgiref keeps it for as long as the context of the view has its key. So it refers to nothing else of the view, from
    where something could lead to that context, and have both kept for good.
    """

    __slots__ = ("_databases", "works_for")

    def __init__(self, databases: Databases, works_for: tuple[str, str]) -> None:
        super().__init__()
        self._databases = databases
        self.works_for = works_for  # see `culprits.Worker`

    def before(self) -> None:
        """See `SerialExecutor.before`."""
        self._databases.enter()

    def after(self) -> None:
        """See `SerialExecutor.after`."""
        self._databases.leave()


class CoroutineConversation:
    """Runs one `async def` view, from the start inside the middleware chain, through the handshake, to the end.

    `keeps_request` is set by whoever needs the request when the view has ended.
    """

    __slots__ = (
        "_args",
        "_context",
        "_databases",
        "_ended",
        "_handshake",
        "_kwargs",
        "_loop",
        "_patience",
        "_request",
        "_task",
        "_view",
        "connection",
        "keeps_request",
        "websocket",
    )

    def __init__(
        self,
        request: HttpRequest,
        asked: ClientHandshake,
        view: Callable[..., Coroutine[Any, Any, HttpResponseBase | None]],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> None:
        self._request = request
        self._view = view
        self._args = args
        self._kwargs = kwargs
        self._handshake: Handshake | None = Handshake(request, asked, view)  # until the view has its connection
        self._context = contextvars.copy_context()
        self._databases = Databases()
        self._loop = shared_loop()
        self._task: asyncio.Task[None] | None = None
        self._ended: Event | None = None  # for who waits for the end
        self._patience: asyncio.TimerHandle | None = None  # with a view whose client has left
        self.connection: Connection | None = None
        self.websocket = AsyncWebSocket(request.META, self._handshake.response, self._accept)
        request.META["wsgi.websocket"] = self.websocket
        self.keeps_request = False

    # --- in the greenlet of the chain ----------------------------------------------------------------------------

    def begin(self) -> HttpResponseBase:
        """Start the view and return its answer: its response, the 101 if it accepts, or the exception it raises."""
        self._databases.share()
        assert self._handshake is not None
        return self._handshake.answer_of(self)

    def start(self) -> None:
        """Have the view begin when the loop has its turn."""
        unfinished.add(self)
        self._task = contextvars.Context().run(self._loop.create_task, self._run())

    def abort(self, error: BaseException, timeout: float) -> None:
        """Cancel the view, and wait up to `timeout` seconds for its end."""
        self.cancel()
        if timeout:
            self.join(timeout)

    def opened(self, sock: socket.socket, early: bytes, head: bytes) -> Connection:
        """Let the view have its connection."""
        handshake = self._handshake
        assert handshake is not None
        connection = self.connection = handshake.connect(self.websocket, sock, early, head)
        connection.never_waits = True
        follow(connection, self._on_end, ended=self.ready())
        handshake.opened()
        return connection

    def failed(self, reason: str) -> None:
        """Let the view know that there will be no connection, and cancel it if it goes on all the same."""
        assert self._handshake is not None
        self._handshake.failed(reason)
        self.cancel_later()

    def _on_end(self) -> None:
        self.cancel_later()

    # --- for whoever waits for the end ---------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether the view has ended."""
        return self not in unfinished

    def join(self, timeout: float | None = None) -> None:
        """Let the running greenlet wait for the end of the view, up to `timeout` seconds."""
        if not self.ready():
            if self._ended is None:
                self._ended = Event()
            self._ended.wait(timeout)

    def cancel(self) -> None:
        """Raise CancelledError in the view, if it has not ended."""
        if self._handshake is not None:
            self._handshake.cancelled = True
        if self._task is not None:
            self._loop.call_soon(self._task.cancel)

    def cancel_later(self) -> None:
        """Cancel the view if it does not end within the time for a close handshake."""
        # In an empty context: a timer keeps its context until it would be due, even when it is cancelled, and if the
        # client leaves while the view runs, that would be the view's, with all that it has used.
        seconds = conf.current().limits.close_timeout
        self._patience = self._loop.call_later(seconds, self.cancel, context=contextvars.Context())

    def kill(self, timeout: float) -> None:
        """Cancel the view, and wait up to `timeout` seconds for its end."""
        self.cancel()
        self.join(timeout)

    @property
    def works_for(self) -> tuple[str, str]:
        """See `culprits.Worker`."""
        return client_of(self.connection, self._handshake), f"the view {name_of(self._view)}"

    @property
    def frames(self) -> list[FrameType]:
        """Where the view waits: the frames of its calls, the outermost first."""
        found = []
        awaits: Any = None if self._task is None else self._task.get_coro()
        while (frame := getattr(awaits, "cr_frame", None)) is not None:
            found.append(frame)
            awaits = awaits.cr_await
        return found

    # --- in the loop ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        _restore_context(self._context)
        del self._context  # it may refer to much
        AsyncToSync.executors.current = None  # the thread of asynchronous middleware, which waits for this view
        sensitive = ThreadSensitiveContext()
        SyncToAsync.thread_sensitive_context.set(sensitive)
        SyncToAsync.context_to_thread_executor[sensitive] = OfView(self._databases, self.works_for)
        answer: HttpResponseBase | None = None
        error: BaseException | None = None
        try:
            answer = await self._call()
            if answer is None or isinstance(answer, WebSocketResponse):
                await self.websocket.accept()
                answer = None
        except asyncio.CancelledError:
            error = gevent.GreenletExit()
        except BaseException as raised:  # whatever it is, other clients may not notice
            error = raised
        if in_child():
            end_child(error)
        context = contextvars.copy_context()
        try:
            gevent.spawn(self._finish, context, answer, error)
        finally:
            del error  # its traceback has this frame

    async def _call(self) -> HttpResponseBase | None:
        """Call the view."""
        return await self._view(self._request, *self._args, **self._kwargs)

    async def _accept(self, subprotocol: str | None) -> Connection:
        """Have the chain answer with the 101, and wait for the connection; see `WebSocket.accept`."""
        handshake = self._handshake
        assert handshake is not None
        handshake.check_not_over()
        if not handshake.answered:  # else another task accepts
            handshake.accept(self, subprotocol, Surroundings(contextvars.copy_context(), self._databases.shared))
        while (connection := handshake.outcome()) is None:
            future = self._loop.create_future()
            with handshake.telling(Waiter(future).switch):
                await future
        if self.websocket.connection is None:
            await in_greenlet(self._within, contextvars.copy_context(), handshake.complete, self.websocket, connection)
            self._handshake = None
        return connection

    # --- in a greenlet of its own, where code may block ----------------------------------------------------------

    def _within(self, context: contextvars.Context, function: Callable[..., object], *args: Any) -> None:
        """Call a function in a context, at home there and with the databases of the view."""

        def run() -> None:
            _restore_context(context)
            self.adopt()
            try:
                function(*args)
            finally:
                self.give_back()

        context.run(run)

    @property
    def shares_databases(self) -> bool:
        """Whether there is something to `adopt`."""
        return bool(self._databases.shared)

    def adopt(self) -> None:
        """See `Databases.enter`."""
        self._databases.enter()

    def check_no_atomic(self) -> None:
        """Raise RuntimeError if a database of the chain, which is about to end, is in a transaction of the view's."""
        self._databases.check_no_atomic("The WebSocket cannot be accepted", self._databases.shared)

    def give_back(self) -> bool:
        """Undo `adopt`; see `Databases.leave`."""
        return self._databases.leave()

    def _end(self, answer: HttpResponseBase | None, error: BaseException | None) -> None:
        if error is None:
            end(answer, self._handshake, self.websocket, self._request, self._view)
            return
        try:
            raise error  # receivers of got_request_exception, such as Sentry's, ask which exception is being handled
        except BaseException:
            end_with(error, self._handshake, self.websocket, self._request)
        finally:
            del error  # its traceback has this frame

    def _finish(
        self, context: contextvars.Context, answer: HttpResponseBase | None, error: BaseException | None
    ) -> None:
        try:
            self._within(context, self._end, answer, error)
        finally:
            del error
            unfinished.discard(self)
            self._task = None
            if self._patience is not None:
                self._patience.cancel()  # it would keep all this until it is due
            connection = self.connection
            if connection is not None:
                let_go(connection, self._on_end, self.websocket)
            self.websocket.close_all()
            self._databases.close_kept()
            self._databases.unshare()
            if self.websocket.connection is not None and not self.keeps_request:
                untie(self._request)
            if self._ended is not None:
                self._ended.set()

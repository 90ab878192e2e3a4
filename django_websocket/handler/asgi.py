"""ASGI applications in the place of views: each gets the scope of a handshake, and talks in events.

See the ASGI specification, "HTTP & WebSocket ASGI Message Format" (version 2.5), and its "Lifespan Protocol".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import FrameType
from typing import Any, Protocol
from urllib.parse import quote

from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseForbidden, HttpResponseNotFound

from django_websocket.asgi.belongings import Belonging, owner
from django_websocket.asgi.loop import shared_loop
from django_websocket.asgi.waiting import Waiter
from django_websocket.asgi.websocket import until_drained
from django_websocket.decorators import name_of
from django_websocket.exceptions import WebSocketError
from django_websocket.protocol.frames import CloseCode
from django_websocket.transport.connection import Connection
from django_websocket.transport.log import report
from django_websocket.transport.loops import PerLoop
from django_websocket.transport.subprotocol import of_application
from django_websocket.transport.waiting import Waiter as AnyWaiter
from django_websocket.transport.waiting import services
from django_websocket.websocket import as_payload

from .coroutine import CoroutineConversation
from .upgrade import HANDSHAKE_KEY, KEY

__all__ = ["AsgiConversation", "ClientDisconnected", "Mounted"]

Event = dict[str, Any]
Scope = dict[str, Any]
Application = Callable[[Scope, Callable[[], Awaitable[Event]], Callable[[Event], Awaitable[None]]], Awaitable[None]]

VERSIONS = {"version": "3.0", "spec_version": "2.5"}
REST = "path_remaining"  # of the arguments of a URL: what is behind the prefix of a mounted application
FORGIVEN = 100  # sends to a client that has left; an application that goes on may never stop
NO_ROUTE = "No route found for path"  # as Channels' URLRouter says it, and its users match it
ONE_OF = "websocket.send must have either text or bytes: leave the other out, or set it to None"
VANISHED: Event = {"type": "websocket.disconnect", "code": int(CloseCode.ABNORMAL), "reason": ""}


class ClientDisconnected(WebSocketError, OSError):  # type: ignore[misc]
    """Nothing can be sent any more; an application that lets it pass ends quietly (ASGI: an OSError)."""


class Driving(Protocol):
    """What drives a consumer of Channels, as those see it who look at what it does."""

    @property
    def consumer(self) -> object:
        """The consumer."""

    @property
    def groups(self) -> Iterable[str]:
        """The groups to which it belongs, as far as this package's channel layer has them."""

    @property
    def frames(self) -> list[FrameType]:
        """The frames of a handler that runs in a greenlet, the outermost first."""


class AsgiConversation(CoroutineConversation):
    """Runs one ASGI application for one client, as a view would run.

    An application that is `forgiving` may send to a client that has left, as those of Channels may on other servers.
    `impatient` is true once it has been cancelled: it should have ended. `driving` is what drives a consumer.
    """

    __slots__ = (
        "_belongings",
        "_body",
        "_connected",
        "_denied",
        "_forgiven",
        "_left",
        "_said_close",
        "_undecided",
        "forgiving",
        "impatient",
        "driving",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._connected = False  # whether the application has had websocket.connect
        self._undecided: list[AnyWaiter] = []  # those who receive before the handshake is answered
        self._denied: HttpResponseBase | None = None
        self._body: HttpResponse | None = None  # of a denial whose parts are being sent
        self._said_close = False
        self._left = False  # whether the application has had websocket.disconnect
        self.impatient = False  # whether its client has left, and the application has had its time to end
        self._belongings: list[Belonging] | None = []  # None after the end
        self.forgiving = False
        self.driving: Driving | None = None
        self._forgiven = 0  # sends to a client that has left

    def begin(self) -> HttpResponseBase:
        """Load the user and the session, for which a coroutine could not wait, and start the application."""
        _ = getattr(getattr(self._request, "user", None), "is_authenticated", None)
        return super().begin()

    async def _call(self) -> HttpResponseBase | None:
        owner.set(self)
        try:
            await self._view(scope_of(self._request, self._args, self._kwargs), self.receive, self.send)
        except ValueError as error:
            if self.decided or not str(error).startswith(NO_ROUTE):
                raise
            self._deny(HttpResponseNotFound())
        finally:
            self.driving = None  # or each would keep the other
            belongings, self._belongings = self._belongings, None
            for belonging in belongings or ():
                belonging.close()
        if self._denied is None and self.websocket.connection is None:
            raise RuntimeError(
                f"The ASGI application {name_of(self._view)} has returned without answering the handshake: it must "
                f"send websocket.accept or websocket.close"
            )
        return self._denied

    @property
    def frames(self) -> list[FrameType]:
        """See `CoroutineConversation.frames`; at the end those of a handler that runs in a greenlet of its own."""
        return super().frames if self.driving is None else [*super().frames, *self.driving.frames]

    def own(self, belonging: Belonging) -> bool:
        """See `Owner.own`."""
        if self._belongings is None:
            return False
        self._belongings.append(belonging)
        return True

    def cancel(self) -> None:
        """Raise CancelledError in the application, if it has not ended."""
        self.impatient = True
        super().cancel()

    def know(self, scope: Scope) -> None:
        """Have the connection end with the login that an application's own middleware has found."""
        for name in ("session", "user"):
            if name in scope and scope[name] is not getattr(self._request, name, None):
                setattr(self._request, name, scope[name])

    # --- what the application receives ---------------------------------------------------------------------------

    async def receive(self) -> Event:
        """Return the next event. A call that is cancelled has taken none."""
        while (event := self.taken()) is None:
            if self.impatient:  # it has caught its cancellation
                raise asyncio.CancelledError
            future = self._loop.create_future()
            waiter = Waiter(future)
            self.tell(waiter)
            try:
                await future
            finally:
                self.untell(waiter)
        return event

    def taken(self) -> Event | None:
        """Return the next event; None if there is none yet."""
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        connection = self.websocket.connection
        if connection is not None and connection.inbox:
            self.websocket.received += 1
            message = connection.receive()
            if type(message) is str:
                return {"type": "websocket.receive", "text": message, "bytes": None}
            return {"type": "websocket.receive", "bytes": message, "text": None}
        if self._left:  # an application that goes on without end is cancelled soon
            return None
        if connection is None:
            if self._denied is None:
                return None
            self._left = True
            return VANISHED.copy()
        if not connection.ready():
            return None
        connection.receive()  # answers the client's close frame
        self._left = True
        code, reason = connection.close_code, connection.close_reason
        return {"type": "websocket.disconnect", "code": int(code or CloseCode.ABNORMAL), "reason": reason}

    @property
    def has_event(self) -> bool:
        """Whether `taken` has one."""
        connection = self.websocket.connection
        if connection is not None:
            return not self._left and connection.ready()
        return not self._left and (self._denied is not None or not self._connected)

    @property
    def decided(self) -> bool:
        """Whether the handshake is answered."""
        return self.websocket.connection is not None or self._denied is not None

    def tell(self, waiter: AnyWaiter) -> None:
        """Have `waiter` go on when there is an event, until `untell`. RuntimeError if another task waits already."""
        connection = self.websocket.connection
        if connection is None:
            if waiter not in self._undecided:
                self._undecided.append(waiter)
        elif not self._left:
            connection.claim(waiter)

    def untell(self, waiter: AnyWaiter) -> None:
        """Undo `tell`, which may have been before the acceptance."""
        if waiter in self._undecided:
            self._undecided.remove(waiter)
        connection = self.websocket.connection
        if connection is not None:
            connection.disclaim(waiter)

    # --- what the application sends ------------------------------------------------------------------------------

    async def send(self, event: Event) -> None:
        """Send an event.

        Raises `ClientDisconnected`, an OSError, if the client has left; RuntimeError for an event out of turn,
        ValueError or TypeError for one that is malformed.
        """
        if event["type"] == "websocket.accept":
            if self.decided:
                raise RuntimeError(f"websocket.accept came after {self._border}")
            await self._open(event.get("subprotocol"), event.get("headers") or ())
        else:
            connection = self.put(event)
            if connection is None:  # it may be an application that sends without end
                await asyncio.sleep(0)
            elif connection.crowded:
                try:
                    await until_drained(connection)
                except WebSocketError as error:
                    self.disconnected(error)

    def put(self, event: Event) -> Connection | None:
        """Do what `send` does for any event but an acceptance, without waiting.

        Returns the connection; None if it did not take the event.
        """
        kind = event["type"]
        connection = self.websocket.connection
        if kind == "websocket.send":
            if connection is None or self._said_close:
                if self._left and self.forgiving:
                    return None
                raise RuntimeError(f"websocket.send came {'after' if self.decided else 'before'} {self._border}")
            text = event.get("text")
            message: Any
            if text is not None:
                message = text if type(text) is str else as_text(text)
                if event.get("bytes") is not None:
                    raise ValueError(ONE_OF)
            else:
                message = event.get("bytes")
                if message is None:
                    raise ValueError(ONE_OF)
                message = as_payload(message, True)
            try:
                connection.send(message)
            except WebSocketError as error:
                self.disconnected(error)
                return None
        elif kind == "websocket.close":
            if self._said_close or self._denied is not None:
                if self._left and self.forgiving:
                    return None
                raise RuntimeError(f"websocket.close came after {self._border}")
            if connection is None:
                self._deny(HttpResponseForbidden())
            else:
                connection.close(event.get("code") or CloseCode.NORMAL, event.get("reason") or "")
                self._said_close = True
        elif kind == "websocket.http.response.start":
            if self.decided or self._body is not None:
                raise RuntimeError(f"websocket.http.response.start came after {self._border}")
            self._body = HttpResponse(status=event["status"])
            del self._body["Content-Type"]  # the application says which, if any
            set_headers(self._body, event.get("headers") or ())
        elif kind == "websocket.http.response.body":
            if self._body is None or self._denied is not None:
                raise RuntimeError("websocket.http.response.body came without websocket.http.response.start")
            self._body.write(event.get("body", b""))
            if not event.get("more_body"):
                self._deny(self._body)
        else:
            raise ValueError(
                f"{kind!r} is not an event that can be sent to a WebSocket: use websocket.accept, websocket.send, "
                f"websocket.close, websocket.http.response.start or websocket.http.response.body"
            )
        return connection

    @property
    def _border(self) -> str:
        """The event that an event out of turn came before or after."""
        if self._denied is not None or self._said_close:
            return "websocket.close"
        return "websocket.http.response.start" if self._body is not None else "websocket.accept"

    def disconnected(self, error: WebSocketError) -> None:
        """Tell the application that its client has left, unless that is forgiven."""
        self._forgiven += 1
        if self.impatient or not self.forgiving or self._forgiven > FORGIVEN:
            raise ClientDisconnected(str(error)) from None

    async def _open(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> None:
        set_headers(self.websocket.response, headers)
        offered = self._request.META[HANDSHAKE_KEY].subprotocols
        try:
            await self.websocket.accept(subprotocol if subprotocol in offered else None)
        except WebSocketError as error:
            raise ClientDisconnected(str(error)) from None
        self._decide()

    def _deny(self, response: HttpResponseBase) -> None:
        """Have the client get a response in place of the 101, at once."""
        self._denied = response
        assert self._handshake is not None
        self._handshake.refuse(response)
        self.cancel_later()
        self._decide()

    def _decide(self) -> None:
        """Have those go on who wait for the answer to the handshake."""
        undecided, self._undecided = self._undecided, []
        for waiter in undecided:
            waiter.switch()


def as_text(text: object) -> str:
    """Return the text of an event as a plain `str`. Raises TypeError if it is none."""
    if not isinstance(text, str):
        raise TypeError(
            f"The text of websocket.send must be a str, not {type(text).__name__}: use its key `bytes` for binary data"
        )
    return str.__str__(text)


def set_headers(response: HttpResponseBase, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Give a response the headers of an event."""
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name.lower() == "set-cookie":
            response.cookies.load(value)
        elif name.lower() == "sec-websocket-protocol":
            raise ValueError("Give the subprotocol in the key `subprotocol` of websocket.accept, not in a header")
        elif name.lower() != "content-length":  # which Django knows better
            response[name] = f"{response[name]}, {value}" if name in response else value


def scope_of(request: HttpRequest, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Scope:
    """Return the scope of a handshake (ASGI, "WebSocket Connection Scope"), with what Django knows of it.

    That is `user`, `session` and `cookies`, and `url_route` with the arguments of the URL, as Channels names them.
    """
    meta = request.META
    root_path = meta.get("SCRIPT_NAME", "")
    path = root_path + request.path_info
    arguments = dict(kwargs)
    rest = arguments.pop(REST, None)
    if rest is not None:
        root_path = path[: len(path) - len(rest)].rstrip("/")
    target = meta.get("RAW_URI", "").partition("?")[0]
    upgrade = meta[KEY]
    address, port = upgrade.address or meta.get("REMOTE_ADDR", ""), meta.get("REMOTE_PORT")
    scope: Scope = {
        "type": "websocket",
        "asgi": VERSIONS.copy(),
        "http_version": meta.get("SERVER_PROTOCOL", "HTTP/1.1").partition("/")[2],
        "scheme": "wss" if request.is_secure() else "ws",
        "path": path,
        "raw_path": target.encode("latin-1") if target.startswith("/") else quote(path).encode(),
        "query_string": meta.get("QUERY_STRING", "").encode("latin-1"),
        "root_path": root_path,
        "headers": [
            (name[5:].replace("_", "-").lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in meta.items()
            if name.startswith("HTTP_")
        ],
        # A proxy's word is taken for the address, and it does not tell the port.
        "client": (address, int(port) if port and address == meta.get("REMOTE_ADDR") else 0) if address else None,
        "server": (meta.get("SERVER_NAME", ""), int(meta.get("SERVER_PORT") or 0)),
        "subprotocols": of_application(meta[HANDSHAKE_KEY].subprotocols),
        "extensions": {"websocket.http.response": {}},
        "state": {},
        "cookies": request.COOKIES,
        "url_route": {"args": tuple(args), "kwargs": arguments},
    }
    for name in ("session", "user"):
        if hasattr(request, name):
            scope[name] = getattr(request, name)
    return scope


# --- whole applications -----------------------------------------------------------------------------------------------


class Mounted:
    """An ASGI application that is told of the begin and the end of the process, in each loop that it serves."""

    def __init__(self, application: Application, *, lifespan: bool = True) -> None:
        self.application = application
        self._lifespan_of_loop = PerLoop(lambda: Lifespan(application)).get if lifespan else None

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
    ) -> None:
        """Serve one connection, once the application has begun."""
        if self._lifespan_of_loop is not None:
            lifespan = self._lifespan_of_loop()
            await lifespan.begun()
            scope["state"] = lifespan.state.copy()
        await self.application(scope, receive, send)


class Lifespan:
    """Tells an application that the process serves its first client, and that it ends."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._who = f"ASGI application {name_of(application)}"
        self._loop = shared_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._begun: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None  # which only this keeps alive
        self.state: dict[str, Any] = {}

    async def begun(self) -> None:
        """Wait until the application has begun. Raises RuntimeError if it cannot; the next call asks again."""
        begun = self._begun
        if begun is None:
            begun = self._begun = self._loop.create_future()
            events = self._events = asyncio.Queue()
            events.put_nowait({"type": "lifespan.startup"})
            self._task = self._loop.create_task(self._run(begun, events))
        try:
            await asyncio.shield(begun)
        except RuntimeError:
            self._begun = None
            raise

    async def _run(self, begun: asyncio.Future[None], events: asyncio.Queue[Event]) -> None:
        async def send(event: Event) -> None:
            if begun.done():
                return
            if event["type"] == "lifespan.startup.complete":
                begun.set_result(None)
            elif event["type"] == "lifespan.startup.failed":
                why = event.get("message") or "it gave no reason"
                begun.set_exception(RuntimeError(f"The {self._who} could not start: {why}"))

        services.add(self)
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._application(scope, events.get, send)
        except Exception as error:
            if begun.done():
                report(self._who, None, "its lifespan ended with an error", repr(error))
            else:  # as those do that know of none
                report(self._who, None, "it does not support the lifespan protocol", repr(error), logging.INFO)
        finally:
            services.discard(self)
            if not begun.done():
                begun.set_result(None)

    def stop(self) -> None:
        """Tell the application that the process ends."""
        self._loop.call_soon(self._events.put_nowait, {"type": "lifespan.shutdown"})

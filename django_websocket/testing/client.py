"""A client without a server: the handshake through middleware, urlconf and view, in the test's thread and transaction.

The view runs in a greenlet of the test's own thread, whenever the test waits for it; between the two is a socket pair.
All that a server does with a connection is done here, too, by the same code.
"""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import copy
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, runtime_checkable

import django.test
import gevent
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.signals import got_request_exception, request_finished, request_started
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from gevent import monkey

from django_websocket.compat import naming
from django_websocket.exceptions import ConnectionClosed
from django_websocket.handler.handshake import KILL_TIMEOUT
from django_websocket.handler.upgrade import HANDSHAKE_KEY, KEY, Upgrade
from django_websocket.protocol.engine import Close, Engine, Failure, Ping, Role
from django_websocket.protocol.frames import CloseCode, Opcode
from django_websocket.protocol.handshake import ClientRequest, HandshakeError
from django_websocket.pubsub.broker import from_wire
from django_websocket.pubsub.memory import MemoryBroker
from django_websocket.pubsub.process import current_broker
from django_websocket.select import select
from django_websocket.transport import log
from django_websocket.transport.waiting import check_timeout
from django_websocket.websocket import as_payload
from django_websocket.wsgi import AsgiHandler, WebSocketHandler, asgi_application, check_settings, client_handshake

with naming("application", "testing"):
    from django.core.handlers.wsgi import WSGIRequest
    from django.test.client import ClientHandler

TIMEOUT = 5.0  # seconds; what a test waits for comes at once, or never
IDLE_TIMEOUT = 0.1  # seconds for a view that never waits, such as one that asks again and again
NO_LIMIT = 1 << 62  # a test takes whatever the view sends
RESPONSE = "django_websocket.testing.response"  # in the environment of a handshake, until the client has it
LISTENS = "The view has returned websocket.listen(), so the client gets only what is published to its channels."

# Where a view waits says its own code, not what it waits in.
NOT_THE_VIEW = (str(Path(__file__).parent.parent), str(Path(gevent.__file__).parent))


class HandshakeRefused(Exception):
    """The handshake was answered with an ordinary response.

    `response` is the `HttpResponse`, with all that Django's test client adds to one; `status_code` its status.
    """

    def __init__(self, response: HttpResponseBase) -> None:
        super().__init__(response)
        self.response: Any = response
        self.status_code = response.status_code

    def __str__(self) -> str:
        response = self.response
        text = f"The handshake was answered with {self.status_code} {response.reason_phrase}"
        if "Location" in response:
            text += f" to {response['Location']}"
        elif response.get("Content-Type", "").startswith("text/plain") and not response.streaming:
            text += f": {response.text.strip()}"
        return text


class Client(django.test.Client):
    """Django's test client, which can open WebSockets as well.

    Cookies, logins and default headers hold for both.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.handler = _Handler(self.handler.enforce_csrf_checks)

    def websocket(
        self,
        path: str,
        *,
        subprotocols: Sequence[str] = (),
        origin: str | None = None,
        timeout: float = TIMEOUT,
        secure: bool = False,
        headers: Mapping[str, str] | None = None,
        query_params: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> ClientWebSocket:
        """Open a WebSocket to a view of `WEBSOCKET_URLCONF`; a context manager, which closes it.

        `path` is its path, or a whole address. `subprotocols` are offered to the view. `origin`, such as
        "https://example.com", is the site whose page connects; without it, the client is not a browser. `timeout`, in
        seconds, bounds each wait of this WebSocket. The others are as in `get()` of Django's client.

        Raises `HandshakeRefused` if the handshake is not accepted, and what the view raises before it accepts, unless
        the client was made with `raise_request_exception=False`. A refusal by a close code is seen as in a browser: the
        WebSocket opens, and has ended with its `close_code` and `close_reason`.
        """
        _check_environment()
        check_timeout(timeout)
        log.begin_anew()
        offered = {"Sec-WebSocket-Protocol": ", ".join(subprotocols)} if subprotocols else {}
        handshake = ClientRequest(offered)
        upgrade = Upgrade("127.0.0.1")
        environ: dict[str, Any] = {
            "HTTP_UPGRADE": "websocket",
            "HTTP_CONNECTION": "Upgrade",
            "HTTP_SEC_WEBSOCKET_KEY": handshake.key,
            "HTTP_SEC_WEBSOCKET_VERSION": "13",
            KEY: upgrade,
            **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in offered.items()},
            **({} if origin is None else {"HTTP_ORIGIN": origin}),
            **extra,
        }
        self.extra, self.headers = extra, headers  # for the pages that a refusal leads to
        try:
            response: Any = self.generic(
                "GET", path, secure=secure, headers=headers, query_params=query_params, **environ
            )
            response.resolver_match = response.wsgi_request.resolver_match
            conversation = upgrade.taker
            if not upgrade.accepted:
                _let_happen()  # the line in the log, which a greenlet of its own writes
                raise HandshakeRefused(response)
            subprotocol = handshake.check_response(
                response.status_code, {name.lower(): value for name, value in response.items()}
            )
        except BaseException as error:
            conversation = upgrade.taker
            upgrade.fail(f"The handshake ended with {error!r}")
            if isinstance(conversation, RunningView):
                conversation.join(timeout)
            raise
        # Where the view is refused by a close code, nobody converses.
        conversation = conversation if isinstance(conversation, RunningView) else None
        return ClientWebSocket(self, response, subprotocol, conversation, upgrade, timeout)


@runtime_checkable
class RunningView(Protocol):
    """A view and its client, as a test looks at them: the conversation of a greenlet or of a coroutine.

    `keeps_request` is set by whoever needs the request when the view has ended.
    """

    keeps_request: bool

    def ready(self) -> bool:
        """Whether the view has ended."""

    def join(self, timeout: float | None = None) -> object:
        """Let the running greenlet wait for the end of the view, up to `timeout` seconds."""

    def abort(self, error: BaseException, timeout: float) -> None:
        """Raise `error` in the view, and wait up to `timeout` seconds for its end."""

    @property
    def frames(self) -> list[FrameType]:
        """Where the view waits: the frames of its calls, the outermost first."""


class ClientWebSocket:
    """The client's end of a WebSocket.

    `response` is the 101 that accepted, `subprotocol` the one that was chosen, if any.

    Before each call and attribute returns, everything happens that needs no time: the view handles what it was sent,
    what it publishes reaches other clients, and so on.
    """

    def __init__(
        self,
        client: Client,
        response: HttpResponse,
        subprotocol: str | None,
        conversation: RunningView | None,
        upgrade: Upgrade,
        timeout: float,
    ) -> None:
        self.response = copy.copy(response)  # whose headers the view lets go of
        self.subprotocol = subprotocol
        self._json_encoder = client.json_encoder
        self._request: HttpRequest = response.wsgi_request  # type: ignore[attr-defined]
        self._conversation = conversation
        if conversation is not None:
            conversation.keeps_request = True
        self._timeout = timeout
        self._engine = Engine(
            Role.CLIENT, max_message_size=NO_LIMIT, max_queued_messages=NO_LIMIT, max_queued_bytes=NO_LIMIT
        )
        self._ended = False
        self._close_code: int | None = None
        self._close_reason = ""
        self._error: BaseException | None = None  # what the view has raised, and the test not seen yet
        if client.raise_request_exception:
            got_request_exception.connect(self._on_exception)
        self._sock, theirs = _socket.socketpair()
        self._sock.setblocking(False)
        upgrade.open(theirs, b"")  # type: ignore[arg-type]
        self._let_happen()

    def __enter__(self) -> ClientWebSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as failure:
            # What the view has raised may well be the cause of what failed in the block; a view that stays is not.
            if error is None or (isinstance(error, Exception) and not isinstance(failure, TimeoutError)):
                raise

    # --- messages ------------------------------------------------------------------------------------------------

    def send(self, message: str | bytes) -> None:
        """Send a message, text for `str` and binary for `bytes`; return when the view has handled it, or waits.

        Raises `ConnectionClosed` if the connection has ended, or what the view has raised; TimeoutError if the view
        takes nothing.
        """
        self._let_happen()
        if self._ended:
            self._raise_end()
        self._write(self._engine.send(as_payload(message, None)))
        self._let_happen()

    def send_json(self, value: Any) -> None:
        """Send `value` as JSON, in a text message."""
        self.send(json.dumps(value, cls=self._json_encoder))

    def receive(self, timeout: float | None = None) -> str | bytes:
        """Return the next message, `str` or `bytes`.

        Waits for at most `timeout` seconds, by default those of the WebSocket, and then raises TimeoutError; with 0, it
        does not wait. Raises what the view has raised, and `ConnectionClosed`, with `code` and `reason`, if the
        connection has ended without one.
        """
        if timeout is None:
            timeout = self._timeout
        check_timeout(timeout)
        end = time.monotonic() + timeout
        self._let_happen()
        while not self._engine.messages:
            if self._ended:
                self._raise_end()
            if not select([self._sock], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"No message came within {timeout:g} seconds. {self._where()}")
            self._let_happen()
        return self._engine.messages.pop(0)

    def receive_json(self, timeout: float | None = None) -> Any:
        """Return the next message, decoded from JSON; see `receive`."""
        return json.loads(self.receive(timeout))

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close the connection, and wait for the view to end.

        With the code 1006, the client vanishes without a close frame; with 1005, its close frame has no code. Raises
        what the view has raised, and TimeoutError for a view that does not end, which is then killed. A second call has
        no effect.
        """
        if self._sock.fileno() < 0:
            return
        self._let_happen()
        frame = b"" if code == CloseCode.ABNORMAL or self._ended else self._engine.close(code, reason)
        end = time.monotonic() + self._timeout
        try:
            if code == CloseCode.ABNORMAL:
                self._end(code)
                self._sock.close()
            else:
                self._write(frame)
                while not self._read() and select([self._sock], [], [], max(0.0, end - time.monotonic()))[0]:
                    pass
            if self._conversation is not None:
                self._conversation.join(max(0.0, end - time.monotonic()))
                if not self._conversation.ready():
                    raise TimeoutError(
                        f"The view was still running {self._timeout:g} seconds after its client had left. "
                        f"{self._where()}"
                    )
        finally:
            if self._conversation is not None:
                self._conversation.abort(gevent.GreenletExit(), KILL_TIMEOUT)  # if it has not ended
            self._sock.close()
            self._end(CloseCode.ABNORMAL)
            self._let_happen()
            got_request_exception.disconnect(self._on_exception)
        self._raise_error()

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, and each message that came before was received."""
        self._let_happen()
        return self._ended and not self._engine.messages

    @property
    def close_code(self) -> int | None:
        """The close code that the server gave; 1006 if it gave none, None while the connection is open."""
        self._let_happen()
        return self._close_code

    @property
    def close_reason(self) -> str:
        """The reason that was given with the close code."""
        self._let_happen()
        return self._close_reason

    # --- between the test and the view ---------------------------------------------------------------------------

    def _let_happen(self) -> None:
        """Let everything happen that waits for its turn only, and read what was sent."""
        _let_happen()
        self._read()

    def _read(self) -> bool:
        """Take what has come; return whether nothing more will."""
        while self._sock.fileno() >= 0:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                return False
            except ConnectionError:
                data = b""
            if not data:
                break
            for event in self._engine.receive(data):
                if isinstance(event, Ping):
                    self._write(self._engine.frame(Opcode.PONG, event.payload))
                elif isinstance(event, (Close, Failure)):
                    self._end(event.code, event.reason)
                    self._write(self._engine.close(*event))
        self._end(CloseCode.ABNORMAL)
        return True

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                if not select([], [self._sock], [], self._timeout)[1]:
                    raise TimeoutError(
                        f"The server did not take the message within {self._timeout:g} seconds. {self._where()}"
                    ) from None
            except ConnectionError:
                return  # reading tells why

    def _end(self, code: int, reason: str = "") -> None:
        if not self._ended:
            self._ended = True
            self._close_code, self._close_reason = int(code), reason

    def _on_exception(self, request: HttpRequest, **kwargs: Any) -> None:
        if request is self._request:
            self._error = sys.exc_info()[1]

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _raise_end(self) -> None:
        self._raise_error()
        assert self._close_code is not None
        raise ConnectionClosed(self._close_code, self._close_reason)

    def _where(self) -> str:
        """Say where the view stands."""
        if self._conversation is None or self._conversation.ready():
            return "The view has ended." if self._ended else LISTENS
        stack = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in self._conversation.frames)
        own = [frame for frame in stack if not frame.filename.startswith(NOT_THE_VIEW)]
        return "The view waits here:\n" + "".join(traceback.format_list(own or stack))


@contextlib.contextmanager
def captured_messages(*channels: str) -> Iterator[list[tuple[str, str | bytes]]]:
    """Collect what is published while the block runs, in a list of (channel, message); see `captured_stdout` of Django.

    With `channels`, only what is published there. What was published is there as soon as `publish` has returned.
    """
    messages: list[tuple[str, str | bytes]] = []

    def observe(channel: str, payload: bytes) -> None:
        if not channels or channel in channels:
            messages.append((channel, from_wire(payload)))

    broker = _memory_broker()
    broker.observers.append(observe)
    try:
        yield messages
    finally:
        broker.observers.remove(observe)


def _memory_broker() -> MemoryBroker:
    broker = current_broker()
    if isinstance(broker, MemoryBroker):
        return broker
    raise ImproperlyConfigured(
        "In tests, messages go through the memory of the process. Do not override WEBSOCKET_BROKER; outside a test "
        "runner, call django.test.utils.setup_test_environment() first."
    )


def _check_environment() -> None:
    """Raise for what would block or break in the middle of a test."""
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        if not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):  # by which Django allows the same to its database
            raise SynchronousOnlyOperation(
                "The test client works only in synchronous code: write the test as a plain `def`, or move everything "
                "that uses the WebSocket into a function, and call it with sync_to_async(). If an event loop runs in "
                "the thread of a plain `def`, as under Playwright, set DJANGO_ALLOW_ASYNC_UNSAFE, as for Django's "
                "database."
            )
    if not monkey.is_module_patched("socket"):
        _memory_broker()


def _let_happen() -> None:
    """Let everything happen that waits for its turn only."""
    begin = time.thread_time()
    while gevent.with_timeout(IDLE_TIMEOUT, gevent.idle, timeout_value=False) is False:
        if time.thread_time() - begin > IDLE_TIMEOUT / 2:
            break  # a view that never waits, and not a machine that is busy with something else


# --- the handshake, as a request of Django's client ----------------------------------------------------------------


class _Handler(ClientHandler):
    """Answers handshakes as a server does, and all other requests as Django's test client."""

    _websocket: WebSocketHandler | None = None

    def __call__(self, environ: dict[str, Any]) -> Any:
        upgrade: Upgrade | None = environ.get(KEY)
        if upgrade is None:
            return super().__call__(environ)
        if self._websocket is None:
            asgi = asgi_application()
            check_settings(urlconf=asgi is None)
            self._websocket = _WebSocketHandler() if asgi is None else _AsgiHandler(asgi)
        environ.setdefault("HTTP_HOST", environ["SERVER_NAME"])
        try:
            environ[HANDSHAKE_KEY] = client_handshake(environ)
        except HandshakeError as error:
            response: Any = HttpResponse(error.reason, "text/plain", error.status, headers=error.headers)
            response.wsgi_request = WSGIRequest(environ)
            return response
        # As Django's own does: the connections are the test's.
        request_started.disconnect(close_old_connections)
        request_finished.disconnect(close_old_connections)
        try:
            body: Any = self._websocket(environ, upgrade.watch(lambda *args: lambda data: None))
            body.close()
        finally:
            request_started.connect(close_old_connections)
            request_finished.connect(close_old_connections)
        return environ.pop(RESPONSE)  # `body` may be something around it: Sentry's SDK wraps Django's handler


class _WebSocketHandler(WebSocketHandler):
    """The server's handler, which keeps the request for Django's test client."""

    def get_response(self, request: HttpRequest) -> HttpResponseBase:
        response = super().get_response(request)
        response.wsgi_request = request  # type: ignore[attr-defined]
        request.META[RESPONSE] = response
        return response


class _AsgiHandler(AsgiHandler, _WebSocketHandler):
    """The same for a project whose asgi.py has its WebSockets."""

"""The WebSocket that a view gets, with the methods and attributes of gevent-websocket's, and more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import uuid4

from django_websocket import pubsub

from .protocol.frames import CloseCode, check_close
from .protocol.handshake import tokens
from .pubsub.json_text import as_json, from_json
from .transport.connection import Connection
from .transport.subprotocol import HELLO_TIMEOUT, of_application, time_of_page
from .transport.subprotocol import NAME as SUBPROTOCOL

if TYPE_CHECKING:
    from django.http import HttpResponse

    from .pubsub.forwarding import Forwarding
    from .pubsub.presence import Present
    from .pubsub.replay import OrRefused

__all__ = ["WebSocket"]

Message = str | bytes | bytearray | memoryview
OFFERED = "HTTP_SEC_WEBSOCKET_PROTOCOL"
OnSlow = Literal["close", "drop_oldest", "latest"]


class Handler(NamedTuple):
    """Takes the place of gevent-websocket's request handler: `websocket.handler.socket.fileno()`."""

    socket: WebSocket


class BaseWebSocket:
    """What the WebSockets of synchronous and of asynchronous views have in common."""

    __slots__ = ("__weakref__", "_id", "_new_response", "_response", "connection", "environ", "listening")

    def __init__(self, environ: dict[str, Any], response: HttpResponse) -> None:
        self.environ = environ
        self._response: HttpResponse | None = response
        self._new_response = type(response)
        self.connection: Connection | None = None  # once the handshake is done
        self.listening = False  # whether the connection outlives the view
        self._id = ""  # once somebody has asked for it

    def __repr__(self) -> str:
        state = "handshake" if self.connection is None else "closed" if self.closed else "open"
        return f"<{type(self).__name__} {self.path} {state}>"

    @property
    def response(self) -> HttpResponse:
        """The 101 that accepts; headers and cookies can be set on it until it is sent."""
        if self._response is None:
            self._response = self._new_response()
        return self._response

    def forget_response(self) -> None:
        """Let go of what was sent, for the client may stay long: for whoever opens the connection."""
        self._response = None

    @property
    def id(self) -> str:
        """A name for this connection, unique among all processes and impossible to guess.

        `django_websocket.logins.disconnect(connection=...)` takes it. It can be stored, and may be shown to the client.
        """
        if not self._id:
            # Somebody who looks at all connections may have named this one.
            self._id = (self.connection is not None and self.connection.id) or uuid4().hex
            if self.connection is not None:
                self.connection.id = self._id
        return self._id

    @property
    def closed(self) -> bool:
        """Whether the connection has ended and every message that came before has been received."""
        return self.connection is not None and self.connection.at_end

    @property
    def close_code(self) -> int | None:
        """The close code (RFC 6455, section 7.4): 1006 if the client vanished, None while the connection is open."""
        return None if self.connection is None else self.connection.close_code

    @property
    def close_reason(self) -> str:
        """The reason that was given with the close code."""
        return "" if self.connection is None else self.connection.close_reason

    @property
    def latency(self) -> float | None:
        """Seconds between the last ping that the client answered and its pong; None until there was one.

        A client is sent a ping when nothing came from it for `WEBSOCKET_PING_INTERVAL` seconds.
        """
        return None if self.connection is None else self.connection.latency

    @property
    def origin(self) -> str | None:
        """The `Origin` header: the site whose page opened the connection; None outside browsers."""
        return self.environ.get("HTTP_ORIGIN")

    @property
    def path(self) -> str | None:
        """The path of the request."""
        return self.environ.get("PATH_INFO")

    @property
    def protocol(self) -> str | None:
        """The `Sec-WebSocket-Protocol` header: the subprotocols that the client offered, except the package's own."""
        offered: str | None = self.environ.get(OFFERED)
        if offered is None or SUBPROTOCOL not in offered:
            return offered
        return ", ".join(of_application(tokens(offered))) or None

    @property
    def version(self) -> str | None:
        """The `Sec-WebSocket-Version` header."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_VERSION")

    def _speaks_subprotocol(self) -> bool:
        """Whether the client may yet say where it goes on."""
        if self.connection is not None:
            return self.connection.greeting is not None
        return SUBPROTOCOL in tokens(self.environ.get(OFFERED) or "")

    @property
    def _session(self) -> str | None:
        """The name that the client keeps when it connects again; None if it has said none."""
        greeting = None if self.connection is None else self.connection.greeting
        return None if greeting is None else greeting.session

    def _begins(self) -> bool:
        """Whether what the view subscribes to now is what the client's page is about."""
        greeting = None if self.connection is None else self.connection.greeting
        return greeting is None or greeting.begins

    def _resume(
        self, connection: Connection, forwarding: Forwarding, since: OrRefused, *, begins: bool, has_snapshot: bool
    ) -> None:
        """Read what the client gets of the past, as it or the view wishes.

        Raises `MessagesMissed`, as `subscribe` does, if the client cannot be told otherwise.
        """
        connection.check_greeted()
        greeting = connection.greeting
        positions: Mapping[str, str | None] = {}
        page = None
        if greeting is not None and since is not False:
            positions, page = greeting.positions, time_of_page(self.environ) if begins else None
        pubsub.resume(forwarding, positions, page, has_snapshot=has_snapshot, tells_reset=greeting is not None)


class WebSocket(BaseWebSocket):
    """A client's WebSocket, as a view sees it.

    When the view begins, the handshake has not been answered. The first call that needs the client accepts it:
    receiving, sending, iterating, subscribing, `fileno()`, or `accept()` itself. Until then the view may return an
    `HttpResponse` or raise, and the client gets that instead.

    `environ` is the WSGI environment of the request.
    """

    __slots__ = ("_accept",)

    def __init__(
        self, environ: dict[str, Any], response: HttpResponse, accept: Callable[[str | None], Connection]
    ) -> None:
        super().__init__(environ, response)
        self._accept: Callable[[str | None], Connection] | None = accept

    # --- the handshake -------------------------------------------------------------------------------------------

    def accept(self, subprotocol: str | None = None) -> None:
        """Answer the handshake with 101 and open the connection. Has no effect if that was done before.

        `subprotocol` is one of those that the client offered (RFC 6455, section 1.9); without it, the first of the
        view's `subprotocols` that was offered is taken. Raises `HandshakeFailed` if another response replaced the 101
        or the time for the handshake was over, ValueError for a subprotocol that was not offered, and RuntimeError
        inside an `atomic()` block of the view: its transaction would last for as long as the client stays.
        """
        if self.connection is None:
            accept = self._accept
            assert accept is not None
            self.connection = accept(subprotocol)
            self.connection.id = self._id or self.connection.id
            self._accept = None  # it refers to the conversation, which has this

    def _open(self) -> Connection:
        self.accept()
        assert self.connection is not None
        return self.connection

    # --- messages ------------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Return the client's next message: `str` for text, `bytes` for binary, None when there will be none.

        Waits for it, without holding a database connection meanwhile. Raises TimeoutError when `timeout` seconds have
        passed, ValueError if that is NaN, and RuntimeError if it would wait inside an `atomic()` block of the view.
        """
        return (self.connection or self._open()).receive(timeout)

    def send(self, message: Message, binary: bool | None = None) -> None:
        """Send one message: text for `str`, binary for bytes, or as `binary` says.

        Waits if the client does not read and `WEBSOCKET_SEND_BUFFER_SIZE` is used up. Raises `ConnectionClosed`, a
        `WebSocketError`, when the connection is closed; a view that does not catch it ends quietly.
        """
        if type(message) is not str or binary:
            message = as_payload(message, binary)
        (self.connection or self._open()).send(message)

    def __iter__(self) -> Iterator[str | bytes]:
        """Iterate over the client's messages, until there will be none."""
        return iter(self.connection or self._open())

    def receive_json(self, timeout: float | None = None) -> Any:
        """Return the next message, decoded from JSON; None when there will be none (or the message was `null`).

        Raises ValueError for a message that is not JSON or not usable, and the errors of `receive`. `send_json` can
        send whatever this returns: it has no NaN or Infinity, no half characters (lone surrogates), no number too large
        for a float, and at most 100 levels of lists and objects.
        """
        message = self.receive(timeout)
        return None if message is None else from_json(message)

    def send_json(self, value: Any) -> None:
        """Send `value` as JSON in a text message; dates, decimals and UUIDs as Django's `JsonResponse` writes them.

        Raises TypeError or ValueError for a value that JSON cannot express.
        """
        self.send(as_json(value))

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close the connection with `code` and a `reason` of up to 123 bytes.

        A code of your own is from 3000 to 4999. Those of RFC 6455, section 7.4.1, may be sent as well, except those
        that must not appear in a close frame, such as 1006.

        Does not wait. Returning from the view does the same with 1000. Before acceptance there is nothing to close: a
        plain `close()` leaves the answer to the view; one with a code or a reason accepts first, to be able to send it.
        Raises ValueError for a code or a reason that may not be sent, and TypeError for a reason that is not text.
        """
        check_close(code, reason)  # before anything changes
        if self.connection is not None or code != CloseCode.NORMAL or reason:
            (self.connection or self._open()).close(code, reason)

    # --- several sources -----------------------------------------------------------------------------------------

    @property
    def readiness(self) -> Connection:
        """What `select()` waits for when it is given this WebSocket."""
        return self.connection or self._open()

    def fileno(self) -> int:
        """Return a descriptor, as for `select()`: readable exactly when `receive()` would return at once."""
        return (self.connection or self._open()).fileno()

    def subscribe(
        self,
        *channels: str,
        on_slow: OnSlow = "close",
        on_missed: Any = None,
        since: OrRefused = None,
        last: int | None = None,
        snapshot: Callable[[], Any] | None = None,
        present: Present | None = None,
    ) -> Forwarding:
        """Send this client what is published to `channels`, unchanged, until the returned object is closed.

        It is a context manager. The subscription is in force before the client learns that it is connected: it misses
        nothing that is published later.

        `on_slow` says what happens when the client does not keep up: "close" closes the connection with 1013 when
        `WEBSOCKET_OUTBOX_SIZE` bytes wait for it; "drop_oldest" drops the oldest messages instead, as many as needed;
        "latest" keeps only the newest of each channel once messages have to wait. Messages that the view itself sends
        are never dropped, and do not wait behind those that may be.

        `on_missed` is a message, in any form that `publish` takes, for a client that may have missed others because the
        broker was away; without it, the connection is then closed with 1012. Clients of channels with history miss
        nothing as long as the history reaches back far enough.

        `snapshot` is a function that returns the present state, as a message that `publish` takes, or None; if it is a
        generator, each item is a message. It is called when the subscription is in force; what it returns is sent
        first, then what was published meanwhile, in order.

        From channels with history, the client first gets the `last` messages, or all messages after the position
        `since`: a position that `pubsub.position` or `Subscription.position` has returned, or, for several channels, a
        dict with one for each. If some of them are no longer kept, or they exceed `WEBSOCKET_OUTBOX_SIZE`, it gets the
        snapshot instead; without one, `on_missed`; without that, `MessagesMissed` is raised, and nothing is subscribed.

        A client that speaks the package's subprotocol, as `client.js` does, says itself where it continues, and that
        takes precedence over `since` and `last`. The first time, it gets what was published since its page was made,
        unless the view gives `since` or `last`. If some of that is no longer kept, the client is told, and no exception
        is raised. With `since=False`, it gets only what is published from now on.

        `present` makes the client a member of the channels, whom `pubsub.present` and the other clients see. It is a
        dict with an "id", a str or an int that tells users apart, and whatever else the others are to know about the
        user: at most 1,000 bytes as JSON. `client.js` learns who is there, who joins and who leaves; with "watch" in
        place of a dict, it learns the same without being a member.

        Raises `BrokerError` if the broker cannot be reached, and ValueError for `since` or `last` if a channel has no
        history.
        """
        return self._forward(
            channels, snapshot, on_slow=on_slow, on_missed=on_missed, since=since, last=last, present=present
        )

    def listen(
        self,
        *channels: str,
        on_slow: OnSlow = "close",
        on_missed: Any = None,
        since: OrRefused = None,
        last: int | None = None,
        snapshot: Callable[[], Any] | None = None,
        present: Present | None = None,
    ) -> HttpResponse:
        """Subscribe this client to `channels` for good; return the result from the view, which then ends.

        The connection stays, without a greenlet. What is published goes to the client, and what the client sends is
        dropped. The options are those of `subscribe`.
        """
        self._forward(
            channels,
            snapshot,
            on_slow=on_slow,
            on_missed=on_missed,
            since=since,
            last=last,
            present=present,
            for_good=True,
        )
        self._open().drop_input()
        self.listening = True
        return self.response

    def _forward(self, channels: tuple[str, ...], snapshot: Callable[[], Any] | None, **options: Any) -> Forwarding:
        has_snapshot = snapshot is not None
        later, begins = self._speaks_subprotocol(), self._begins()
        forwarding = pubsub.forward(channels, has_snapshot=has_snapshot, later=later, **options)
        try:
            connection = self.connection or self._open()
            if later:
                if connection.greeting is not None and connection.greeting.known is not None:
                    connection.greeting.known.wait(HELLO_TIMEOUT)
                self._resume(connection, forwarding, options["since"], begins=begins, has_snapshot=has_snapshot)
            forwarding.enter(self._session, connection)
            if snapshot is None or forwarding.goes_on:
                return forwarding.attach(connection)
            for message in pubsub.messages_of(snapshot()):
                self.send(message)
            return forwarding.attach(connection, has_snapshot=True)
        except BaseException:
            forwarding.fail()
            raise

    # --- as gevent-websocket has them ----------------------------------------------------------------------------

    @property
    def handler(self) -> Handler:
        """Make `websocket.handler.socket.fileno()` this WebSocket's `fileno()`."""
        return Handler(self)


def as_payload(message: Message, binary: bool | None) -> str | bytes:
    """Return the payload of a message: `str` for text, `bytes` for binary."""
    if isinstance(message, str):
        # A plain `str`: comparing it must not call the methods of a subclass, such as Django's SafeString.
        return message.encode() if binary else str.__str__(message)
    if not isinstance(message, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"A message must be a str or bytes, not {type(message).__name__}; send_json() sends other values as JSON."
        )
    return bytes(message).decode() if binary is False else bytes(message)

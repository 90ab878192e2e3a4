"""What an asynchronous view holds: the WebSocket, with methods to await."""

from __future__ import annotations

import weakref
from asyncio import get_running_loop
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from django_websocket import pubsub
from django_websocket.protocol.frames import CloseCode, check_close
from django_websocket.pubsub.json_text import as_json, from_json
from django_websocket.transport.connection import Connection
from django_websocket.transport.subprotocol import HELLO_TIMEOUT
from django_websocket.websocket import BaseWebSocket, Message, OnSlow, as_payload

from .waiting import Waiter, in_greenlet, until_ready, until_set

if TYPE_CHECKING:
    from django.http import HttpResponse

    from django_websocket.pubsub.forwarding import Forwarding
    from django_websocket.pubsub.presence import Present
    from django_websocket.pubsub.replay import OrRefused

__all__ = ["AsyncWebSocket"]

Snapshot = Callable[[], Any]  # returns messages, a coroutine that returns them, or a generator of either kind


class AsyncWebSocket(BaseWebSocket):
    """A client's WebSocket, as an `async def` view sees it: what `WebSocket` has, with `await` before what may wait.

    The handshake is not answered yet when the view begins. The first call that needs the client accepts it: receiving,
    sending, iterating, subscribing, or `accept()` itself. Until then the view may return an `HttpResponse` or raise,
    and the client gets that instead.

    Several tasks of the view may send; one at a time may receive.
    """

    __slots__ = ("_accept", "_forwardings", "received")

    def __init__(
        self,
        environ: dict[str, Any],
        response: HttpResponse,
        accept: Callable[[str | None], Awaitable[Connection]],
    ) -> None:
        super().__init__(environ, response)
        self._accept: Callable[[str | None], Awaitable[Connection]] | None = accept
        self._forwardings: weakref.WeakSet[Forwarding] | None = None
        self.received = 0  # messages

    # --- the handshake -------------------------------------------------------------------------------------------

    async def accept(self, subprotocol: str | None = None) -> None:
        """Answer the handshake with 101 and open the connection; see `WebSocket.accept`."""
        if self.connection is None:
            await self._open(subprotocol)

    async def _open(self, subprotocol: str | None = None) -> Connection:
        accept = self._accept
        assert accept is not None
        connection = self.connection = await accept(subprotocol)
        connection.id = self._id or connection.id
        self._accept = None  # it refers to what runs the view, which has this
        return connection

    # --- messages ------------------------------------------------------------------------------------------------

    async def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Return the client's next message: `str` for text, `bytes` for binary, None when there will be none.

        Raises TimeoutError after `timeout` seconds, and ValueError if that is NaN. A call that is cancelled, as by
        `asyncio.wait_for`, has taken no message.
        """
        connection = self.connection or await self._open()
        while not (connection.inbox or connection.ready()):
            if timeout is not None:
                await until_ready(connection, timeout)
                continue
            future = get_running_loop().create_future()  # like `until_ready()`, which takes longer
            connection.claim(Waiter(future))
            try:
                await future
            finally:
                connection.release()
        self.received += 1
        return connection.receive()

    async def send(self, message: Message, binary: bool | None = None) -> None:
        """Send one message: text for `str`, binary for bytes, or as `binary` says.

        Waits if the client does not read and `WEBSOCKET_SEND_BUFFER_SIZE` is used up. Raises `ConnectionClosed`, a
        `WebSocketError`, when the connection is closed; a view that lets it pass ends quietly.
        """
        if type(message) is not str or binary:
            message = as_payload(message, binary)
        connection = self.connection or await self._open()
        connection.send(message)
        if connection.crowded:
            await until_drained(connection)

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        """Iterate over the client's messages, until there will be none."""
        return self

    async def __anext__(self) -> str | bytes:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    async def receive_json(self, timeout: float | None = None) -> Any:
        """Return the next message, decoded from JSON; see `WebSocket.receive_json`."""
        message = await self.receive(timeout)
        return None if message is None else from_json(message)

    async def send_json(self, value: Any) -> None:
        """Send `value` as JSON in a text message; see `WebSocket.send_json`."""
        await self.send(as_json(value))

    # --- the end -------------------------------------------------------------------------------------------------

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close the connection with `code` (1000, or 3000 to 4999 for your own) and a `reason`; see `WebSocket.close`.

        Waits only for the acceptance of the handshake, if there is a code or a reason to send.
        """
        check_close(code, reason)  # before anything changes
        if self.connection is not None or code != CloseCode.NORMAL or reason:
            (self.connection or await self._open()).close(code, reason)

    # --- channels ------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        *channels: str,
        on_slow: OnSlow = "close",
        on_missed: Any = None,
        since: OrRefused = None,
        last: int | None = None,
        snapshot: Snapshot | None = None,
        present: Present | None = None,
    ) -> Subscribing:
        """Send this client what is published to `channels`, unchanged; see `WebSocket.subscribe`.

        `async with websocket.subscribe("news"):` subscribes for a block, and `await websocket.subscribe("news")` until
        the view ends or the returned object is closed. `snapshot` may be a coroutine function or an asynchronous
        generator.
        """
        options = {"on_slow": on_slow, "on_missed": on_missed, "since": since, "last": last, "present": present}
        return Subscribing(self, channels, snapshot, options)

    async def listen(
        self,
        *channels: str,
        on_slow: OnSlow = "close",
        on_missed: Any = None,
        since: OrRefused = None,
        last: int | None = None,
        snapshot: Snapshot | None = None,
        present: Present | None = None,
    ) -> HttpResponse:
        """Subscribe this client to `channels` for good; return the result from the view. See `WebSocket.listen`."""
        options = {"on_slow": on_slow, "on_missed": on_missed, "since": since, "last": last, "present": present}
        await self.forward(channels, snapshot, options, for_good=True)
        connection = self.connection
        assert connection is not None
        connection.drop_input()
        self.listening = True
        return self.response

    async def forward(
        self, channels: tuple[str, ...], snapshot: Snapshot | None, options: dict[str, Any], *, for_good: bool = False
    ) -> Forwarding:
        """Subscribe the client; for the methods above."""
        has_snapshot = snapshot is not None
        later, begins = self._speaks_subprotocol(), self._begins()
        forwarding: Forwarding | None = None
        given_up = False

        def join() -> Forwarding:
            nonlocal forwarding
            forwarding = pubsub.forward(channels, for_good=True, has_snapshot=has_snapshot, later=later, **options)
            if given_up:
                forwarding.fail()
            return forwarding

        try:
            forwarding = await in_greenlet(join)  # the broker may be away
            connection = self.connection or await self._open()
            if later:
                if connection.greeting is not None and connection.greeting.known is not None:
                    await until_set(connection.greeting.known, HELLO_TIMEOUT)
                await in_greenlet(
                    self._resume, connection, forwarding, options["since"], begins=begins, has_snapshot=has_snapshot
                )
            if options["present"] is not None:
                await in_greenlet(forwarding.enter, self._session, connection)
            if snapshot is not None and not forwarding.goes_on:
                await self._send_all(snapshot())
            forwarding.attach(connection, has_snapshot=has_snapshot)
        except BaseException:
            given_up = True  # a call that was cancelled goes on in its greenlet
            if forwarding is not None:
                forwarding.fail()
            raise
        if not for_good:
            if self._forwardings is None:
                self._forwardings = weakref.WeakSet()
            self._forwardings.add(forwarding)
        return forwarding

    async def _send_all(self, snapshot: Any) -> None:
        if isinstance(snapshot, AsyncIterator):
            async for item in snapshot:
                await self._send_all(item)
            return
        if isawaitable(snapshot):
            snapshot = await snapshot
        for message in pubsub.messages_of(snapshot):
            await self.send(message)

    def close_all(self) -> None:
        """End the subscriptions that the view has left open."""
        for forwarding in tuple(self._forwardings or ()):
            forwarding.close()


class Subscribing:
    """A subscription that is about to begin: await it, or begin it with `async with`."""

    __slots__ = ("_channels", "_forwarding", "_options", "_snapshot", "_websocket")

    def __init__(
        self,
        websocket: AsyncWebSocket,
        channels: tuple[str, ...],
        snapshot: Snapshot | None,
        options: dict[str, Any],
    ) -> None:
        self._websocket = websocket
        self._channels = channels
        self._snapshot = snapshot
        self._options = options
        self._forwarding: Forwarding | None = None

    def __await__(self) -> Generator[Any, None, Forwarding]:
        return self._websocket.forward(self._channels, self._snapshot, self._options).__await__()

    async def __aenter__(self) -> Forwarding:
        self._forwarding = await self
        return self._forwarding

    async def __aexit__(self, *exc_info: Any) -> None:
        assert self._forwarding is not None
        self._forwarding.__exit__(*exc_info)


async def until_drained(connection: Connection) -> None:
    """Wait until the client has read. Raises `ConnectionClosed` if it does not."""
    while connection.crowded:
        drained, before = connection.until_drained()
        if not await until_set(drained, connection.limits.send_timeout):
            connection.judge_reader(before)
        connection.check_not_closing()

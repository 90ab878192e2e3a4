"""A client that speaks the package's subprotocol, written from docs/subprotocol.md and not from client.js."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from websockets.exceptions import ConnectionClosed

from .clients import Client
from .fixtures import Connect
from .servers import Server
from .waiting import DEADLINE

NAME = "django-websocket.1"
OFFER = {"Sec-WebSocket-Protocol": NAME}


def hello(positions: Mapping[str, Any] | None = None) -> str:
    """Return the first message of a client."""
    return json.dumps({"hello": {"positions": dict(positions or {})}})


class Received(NamedTuple):
    """A message; `channel` is None if the view itself has sent it, `position` if its channel has no history."""

    data: str | bytes
    channel: str | None = None
    position: str | None = None
    replayed: bool = False


class ResumingClient:
    """Goes on where it was, at first from `positions`, whenever `connect()` is called again.

    `controls` has all control objects that came, `resets` the channels whose messages were lost.
    """

    connection: Client

    def __init__(
        self, opener: Connect, server: Server, path: str, subprotocols: Sequence[str] = (), **options: Any
    ) -> None:
        self.positions: dict[str, str] = dict(options.pop("positions", {}))
        # Options are those of the `websockets` library, which reads all that comes.
        self._open = partial(opener, server, path, **{"max_queue": None, **options})
        self._subprotocols = subprotocols
        self.controls: list[dict[str, Any]] = []
        self.resets: list[str] = []

    def connect(self) -> ResumingClient:
        """Connect, say hello, and wait for the welcome; return self."""
        if "connection" in vars(self):
            self.close()
        self._came: deque[Received] = deque()  # while the client waited for something else
        self._channels: dict[int, tuple[str, str | None]] = {}  # by number: the name, and where the past ends
        self.advice: dict[str, float] | None = None
        self.connection = self._open(subprotocols=[*self._subprotocols, NAME])
        assert self.connection.subprotocol == NAME
        self.send(hello(self.positions))
        self.wait()
        assert "welcome" in self.controls[-1], "the welcome is the first message"
        return self

    def send(self, message: str | bytes) -> None:
        self.connection.send(message)

    def receive(self, timeout: float = DEADLINE) -> Received:
        """Return the next message; raise TimeoutError, or `ConnectionClosed` of the `websockets` library."""
        while not self._came:
            self.wait(timeout)
        return self._came.popleft()

    def subscribed(self, *names: str) -> ResumingClient:
        """Wait until the client is subscribed to channels; return self."""
        while not {name for name, _ in self._channels.values()}.issuperset(names):
            self.wait()
        return self

    def closing(self) -> tuple[int, str]:
        """Receive until the server closes the connection; return its code and reason."""
        with suppress(ConnectionClosed):
            while True:
                self.wait()
        return self.connection.closing()

    def close(self) -> None:
        self.connection.close()

    def wait(self, timeout: float = DEADLINE) -> None:
        """Take whatever the server says next, be it a message or not."""
        self._take(self.connection.recv(timeout))

    def _take(self, message: str | bytes) -> None:
        kind = message[:1]
        if kind in ("s", b"s"):
            self._came.append(Received(message[1:]))
        elif kind in ("p", b"p"):
            self._came.append(self._published(message))
        else:
            assert isinstance(message, str) and kind == "{", message
            self._heed(json.loads(message))

    def _published(self, message: str | bytes) -> Received:
        head = message if isinstance(message, str) else message.decode("latin-1")  # one character for each byte
        number, position, _ = head[1:].split(":", 2)
        data = message[len(number) + len(position) + 3 :]
        name, end = self._channels[int(number)]
        if not position:
            return Received(data, name)
        self.positions[name] = position
        replayed = end is not None and int(position.partition(".")[0]) <= int(end.partition(".")[0])
        return Received(data, name, position, replayed)

    def _heed(self, control: dict[str, Any]) -> None:
        self.controls.append(control)
        for name, (number, begin, end) in control.get("sub", {}).items():
            self._channels[number] = name, end
            self.positions.update({} if begin is None else {name: begin})
        for name in control.get("unsub", ()):
            self.positions.pop(name, None)
        self.advice = control.get("retry", self.advice)
        if "welcome" in control:
            self.protocol, self.beat = control["welcome"]["protocol"], control["welcome"]["beat"]
        self.resets += control.get("reset", ())

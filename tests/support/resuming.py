"""A client that speaks the package's subprotocol, written from docs/subprotocol.md and not from client.js."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
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
    """Goes on where it was whenever `connect()` is called again.

    `positions` has where it would go on; `controls` all control objects that came, those of earlier connections, too;
    `resets` the channels whose messages were lost; `advice` when to come back; `protocol` the application's own.
    """

    def __init__(
        self,
        opener: Connect,
        server: Server,
        path: str,
        subprotocols: Sequence[str] = (),
        positions: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self._opener = opener
        self._server = server
        self.path = path
        self._subprotocols = subprotocols
        self._options = {"max_queue": None, **options}  # of the `websockets` library, which reads all that comes
        self._came: deque[Received] = deque()  # while the client waited for something else
        self._channels: dict[int, tuple[str, str | None]] = {}  # by number: the name, and where the past ends
        self.connection: Client | None = None
        self.positions: dict[str, str] = dict(positions or {})
        self.controls: list[dict[str, Any]] = []
        self.resets: list[str] = []
        self.advice: dict[str, float] | None = None
        self.protocol: str | None = None
        self.beat = 0.0

    def connect(self) -> ResumingClient:
        """Connect, say hello, and wait for the welcome; return self."""
        self.close()
        self._channels.clear()
        self._came.clear()
        self.advice = None
        offered = [*self._subprotocols, NAME]
        self.connection = self._opener(self._server, self.path, subprotocols=offered, **self._options)
        assert self.connection.subprotocol == NAME
        self.send(hello(self.positions))
        self._take(self.connection.recv())
        assert "welcome" in self.controls[-1], "the welcome is the first message"
        return self

    def send(self, message: str | bytes) -> None:
        assert self.connection is not None
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

    def controlled(self, member: str) -> Any:
        """Wait for a control object with this member behind all that have come, and return its value."""
        known = len(self.controls)
        while not any(member in control for control in self.controls[known:]):
            self.wait()
        return self.controls[-1][member]

    def closing(self) -> tuple[int, str]:
        """Receive until the connection is closed; return the server's code and reason, 1006 if it gave none."""
        try:
            while True:
                self.wait()
        except ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()

    def wait(self, timeout: float = DEADLINE) -> None:
        """Take whatever the server says next, be it a message or not."""
        assert self.connection is not None
        self._take(self.connection.recv(timeout))

    def _take(self, message: str | bytes) -> None:
        kind = message[:1] if isinstance(message, str) else message[:1].decode("ascii")
        if kind == "s":
            self._came.append(Received(message[1:]))
        elif kind == "p":
            self._came.append(self._published(message))
        else:
            assert kind == "{" and isinstance(message, str), message
            self._heed(json.loads(message))

    def _published(self, message: str | bytes) -> Received:
        number: str | bytes
        position: str | bytes
        data: str | bytes
        if isinstance(message, str):
            number, position, data = message[1:].split(":", 2)
        else:
            number, position, data = message[1:].split(b":", 2)
            position = position.decode("ascii")
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
            if begin is not None:
                self.positions[name] = begin
        for name in control.get("unsub", ()):
            self.positions.pop(name, None)
        self.advice = control.get("retry", self.advice)
        if "welcome" in control:
            self.protocol, self.beat = control["welcome"]["protocol"], control["welcome"]["beat"]
        self.resets += control.get("reset", ())

"""A server of the package's subprotocol that says what a test tells it to say, for tests of the browser's client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from .browser import DEADLINE
from .resuming import NAME


class ScriptedServer:
    """Welcomes each client; everything else is said by the test, to the client that has come last.

    `hellos` has what each client has said first.
    """

    port: int

    def __init__(self) -> None:
        self.hellos: list[dict[str, Any]] = []
        self._connections: list[ServerConnection] = []
        self._came = threading.Condition()

    @property
    def url(self) -> str:
        """The address for the client."""
        return f"ws://127.0.0.1:{self.port}/"

    @property
    def sessions(self) -> list[str]:
        """The session of each client, in the order in which they came."""
        return [hello["session"] for hello in self.hellos]

    def wait_for_client(self, count: int = 1) -> None:
        """Wait until as many clients have said hello since the server began."""
        with self._came:
            came = self._came.wait_for(lambda: len(self.hellos) >= count, DEADLINE)
            assert came, f"{len(self.hellos)} clients have come"

    def say(self, **control: Any) -> None:
        """Send a control object."""
        self.send(json.dumps(control))

    def send(self, text: str) -> None:
        """Send a text as it is."""
        self._connections[-1].send(text)

    def close(self, code: int = 1012) -> None:
        """Close the connection."""
        self._connections[-1].close(code)

    def converse(self, connection: ServerConnection) -> None:
        """Welcome a client, and drop what it sends after its hello."""
        with suppress(ConnectionClosed):
            hello = json.loads(connection.recv(DEADLINE))["hello"]
            connection.send(json.dumps({"welcome": {"protocol": None, "beat": 25}}))
            with self._came:
                self.hellos.append(hello)
                self._connections.append(connection)
                self._came.notify_all()
            for _ in connection:
                pass


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """Start such a server on a free port."""
    script = ScriptedServer()
    with serve(script.converse, "127.0.0.1", 0, subprotocols=[Subprotocol(NAME)], ping_interval=None) as server:
        script.port = server.socket.getsockname()[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            for connection in script._connections:
                connection.close(1000)
            thread.join(DEADLINE)

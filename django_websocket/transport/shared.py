"""What the connections of one loop share: the list of them, a buffer to read into, the encoder, and when they send.

Answers that leave together
---------------------------

Messages that came together are answered together: that takes fewer calls of the kernel, and the receiver, a proxy above
all, wakes up once for many answers. So a view's message is held back

- while more messages of its client wait in the inbox, or
- while messages of several other clients wait for this turn of the loop: `holding` is true, since the view runs because
  of a message that has just come, and at least `CROWD` others are about to run.

What is held leaves

- in the same call of the kernel as the next message that is not held, or anything else that the connection sends;
- when `MAX_HELD` bytes of one connection are held;
- when `MAX_UNSENT` connections hold something, or one has for `MAX_DELAY`: then `overdue` is true, and everything that
  is held leaves as soon as the view that runs has had its message;
- before the loop waits, at the latest.

The response that accepts the handshake is held in the same way: clients that came together are answered together.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from gevent.hub import get_hub

from django_websocket.compat import NothingPending

from .compression import Encoder
from .deadlines import Sweep, sweep_of_loop, sweeps
from .loops import PerLoop
from .turns import turns_of_loop

__all__ = [
    "CROWD",
    "MAX_HELD",
    "Shared",
    "leave_all_to_parent",
    "open_connections",
    "serves_clients",
    "shared_if_any",
    "shared_of_loop",
]

CROWD = 4  # callbacks, of the loop or of asyncio's, that are about to be called
MAX_HELD = 16 * 1024  # bytes; joining more saves little
MAX_UNSENT = 64  # connections; more, and the first of many would be answered last
MAX_DELAY = 0.001  # seconds
READ_SIZE = 256 * 1024  # bytes for one call of recv, so that one client does not keep the others waiting


class OpenConnection(Protocol):
    """A connection with a socket."""

    def send_held(self) -> None:
        """Send what is held back. Must neither wait nor raise."""

    def close(self, code: int = ..., reason: str = ...) -> None:
        """Begin to close."""

    def restart(self, after: float, within: float) -> None:
        """Begin to close because the process ends; see `Connection.restart`."""

    def leave_to_parent(self) -> Any:
        """End in a child process without a word, and return the socket, which is the parent's."""


class Shared:
    """What the connections of one loop share; see the top of this file for `holding`, `overdue` and what is held.

    `draining` is true once the process has begun to end, and accepts no more clients.
    `connections` are those with a socket, `buffer` is what they are read into, one at a time. `encoder` compresses for
    all of them. `callbacks.pendingcnt` is how many callbacks the loop is about to call. `received` and `sent` count the
    messages of connections that have ended.
    """

    def __init__(self) -> None:
        self.draining = False
        self.connections: set[OpenConnection] = set()
        self.buffer = memoryview(bytearray(READ_SIZE))
        self.encoder = Encoder()
        self.received = 0
        self.sent = 0
        self.turns = turns_of_loop()
        self.sweep = sweep_of_loop()
        self.due = 0
        self.on_due()
        self.holding = False
        self.overdue = False
        self._unsent: list[OpenConnection] = []
        self._unsent_since = 0.0  # seconds of time.monotonic
        self._loop = loop = get_hub().loop
        self.callbacks: Any = loop if hasattr(loop, "pendingcnt") else NothingPending()

    def send_later(self, connection: OpenConnection) -> None:
        """Have `connection` send what it holds, before the loop waits."""
        unsent = self._unsent
        if not unsent:
            self._unsent_since = time.monotonic()
            self._loop.run_callback(self.send_all)
        elif len(unsent) >= MAX_UNSENT - 1 or time.monotonic() - self._unsent_since > MAX_DELAY:
            self.overdue = True
        unsent.append(connection)

    def send_all(self) -> None:
        """Have everything sent that is held."""
        self.overdue = False
        unsent, self._unsent = self._unsent, []
        for connection in unsent:
            connection.send_held()

    def on_due(self) -> None:
        """Let the encoder forget what was sent a while ago, with each tick of the sweep."""
        self.encoder.forget()
        self.sweep.look_at(self, self.sweep.now + 1)


_shared = PerLoop(Shared)
shared_of_loop = _shared.get
shared_if_any = _shared.peek


def serves_clients() -> bool:
    """Whether this process has clients, or is made for some."""
    return bool(sweeps)  # which come first: a handshake has a deadline before it has a connection


def leave_all_to_parent() -> dict[object, tuple[Sweep, Shared | None]]:
    """Forget what each loop has, which in a child process is the parent's, and return it by the hub."""
    shared = _shared.clear()
    return {hub: (sweep, shared.get(hub)) for hub, sweep in sweeps.clear().items()}


def open_connections() -> set[OpenConnection]:
    """Return the connections of the running thread's loop that have a socket."""
    return shared_of_loop().connections

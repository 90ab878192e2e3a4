"""Clients that do not keep to the protocol, and how the server is to end each of them."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ..support.clients import request
from ..support.frames import BINARY, CLOSE, PING, TEXT, build, close_frame, first, frame
from .scene import TURN, Scene, Somebody

# The settings of the site, in seconds: shorter than the defaults, so that each of these ends many times.
PING_INTERVAL, PING_TIMEOUT, SEND_TIMEOUT, CLOSE_TIMEOUT, HANDSHAKE_TIMEOUT = 6.0, 4.0, 5.0, 2.0, 4.0
SLACK = 6.0  # seconds; the sweep's grain, and a busy machine
WITHIN = PING_INTERVAL + PING_TIMEOUT + CLOSE_TIMEOUT + SLACK
UNREAD = 8192  # bytes that the system keeps for a client that does not read
MASK = os.urandom(4)


class Way(NamedTuple):
    """A way to be rude: what is sent after the handshake, what is done then, and how the server may end it."""

    name: str
    data: bytes
    then: str
    expected: Sequence[str]
    path: str = "/view/"
    weight: int = 3


PROTOCOL = ("closed 1002",)
WAYS = (
    Way("unmasked", build(TEXT, b"hello"), "reads", PROTOCOL),
    Way("reserved opcode", build(11, b"", mask=MASK), "reads", PROTOCOL),
    Way("reserved bit", build(TEXT, b"x", rsv=1, mask=MASK), "reads", PROTOCOL),
    Way("fragmented ping", build(PING, b"x", fin=False, mask=MASK), "reads", PROTOCOL),
    Way("close code 1005", close_frame(1005), "reads", PROTOCOL),
    Way("not UTF-8", frame(b"\xff\xfe", TEXT), "reads", ("closed 1007",)),
    Way("too large", build(BINARY, b"", size=1 << 30, mask=MASK), "reads", ("closed 1009",)),
    Way("protocol error in a coroutine", build(TEXT, b"hello"), "reads", PROTOCOL, "/coroutine/"),
    Way("protocol error in a consumer", build(TEXT, b"hello"), "reads", PROTOCOL, "/consumer/"),
    Way("protocol error of a listener", build(TEXT, b"hello"), "reads", PROTOCOL, "/listens/?channel=nothing"),
    Way("half a frame, then a reset", frame("x" * 1000)[:500], "resets", ("vanished",)),
    Way("half a message, then a reset", frame("x" * 9000, fin=False), "resets", ("vanished",)),
    Way("half a frame, then the end", frame("x" * 1000)[:500], "leaves", ("vanished",)),
    Way("messages, then a reset", frame("x" * 2000) * 30, "resets", ("vanished",)),
    Way("a reset in a coroutine", frame("x" * 2000) * 3, "resets", ("vanished",), "/coroutine/"),
    Way("a reset in a consumer", frame("x" * 2000) * 3, "resets", ("vanished",), "/async-consumer/"),
    Way("a reset in a group", frame('["rude", 1]')[:5], "resets", ("vanished",), "/member/"),
    Way("a reset of a listener", b"", "resets", ("vanished",), "/listens/?channel=nothing"),
    Way("half-closed", frame("hello"), "half-closes", ("closed", "ended")),
    Way("never answers a ping", b"", "reads", ("closed 1011",), "/view/", 2),
    # It is sent more than anybody keeps for it, so the close frame behind that may not come through.
    Way("never reads", b"", "does not read", ("closed 1008", "closed 1011", "ended"), "/pours/", 2),
    Way("half a request", b"", "asks for half", ("refused 408",)),
    Way("wrong version", b"", "asks wrongly", ("refused 426",)),
    Way("origin of another site", b"", "asks from elsewhere", ("refused 403",)),
)


class Rude(Somebody):
    """Somebody who is rude in all ways, one after the other."""

    rude = True

    def __init__(self, scene: Scene, name: str, ways: Sequence[Way] = WAYS) -> None:
        super().__init__(scene, name)
        self._ways = ways

    async def visit(self) -> None:
        (way,) = self.random.choices(self._ways, [way.weight for way in self._ways])
        begin = time.monotonic()
        # nginx would wait for the rest of a request by itself.
        port = self.random.choice((self.scene.port, self.scene.direct))
        if way.then == "asks for half":
            port = self.scene.direct
        sock = socket.socket()
        writer = None
        outcome = ""
        try:
            if way.then == "does not read":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNREAD)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=sock, limit=UNREAD)
            outcome = await self._be_rude(way, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            outcome = f"ended by {type(error).__name__}"
        finally:
            if writer is not None:
                writer.transport.abort()
            sock.close()
        if outcome:
            self.scene.done["rude"] += 1
            self.note(begin, f"{outcome} ({way.name})", way.expected)
        await self.scene.rest(self.random.random())

    async def _be_rude(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Be rude in some way, and return how that ended; nothing if everybody is to leave before."""
        headers = {"Sec-WebSocket-Version": "8"} if way.then == "asks wrongly" else {}
        if way.then == "asks from elsewhere":
            headers = {"Origin": "https://elsewhere.example"}
        asked = request(way.path, headers)
        writer.write(asked[: len(asked) // 2] if way.then == "asks for half" else asked)
        head = await self._within(reader.readuntil(b"\r\n\r\n"), WITHIN)
        if head is None:
            return "no answer to the handshake" if self.scene.stays else ""
        status = head.split(b" ")[1].decode()
        if status != "101":
            return f"refused {status}"
        if way.then.startswith("asks"):
            return "accepted"
        writer.write(way.data)
        if way.then == "resets":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return "vanished"
        if way.then == "leaves":
            return "vanished"
        if way.then == "half-closes":
            writer.write_eof()
        if way.then == "does not read":
            await self.scene.rest(SEND_TIMEOUT + CLOSE_TIMEOUT + SLACK)
        return await self._read(reader, writer)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Read until the server closes, without answering any ping; return how it did."""
        received = bytearray()
        end = time.monotonic() + WITHIN
        while (left := end - time.monotonic()) > 0:
            data = await self._within(reader.read(UNREAD), left)
            if data is None:
                break
            if not data:
                return "ended"
            received += data
            while found := first(received):
                got, size = found
                del received[:size]
                if got.opcode == CLOSE:
                    code, reason = got.close
                    with suppress(ConnectionError):
                        writer.write(close_frame(code))
                    return f"closed {code} {reason}".strip()
        return "still open" if self.scene.stays else ""

    async def _within(self, what: Coroutine[Any, Any, bytes], seconds: float) -> bytes | None:
        """Wait for something that is read; return None after some seconds, or when everybody is to leave."""
        task = asyncio.create_task(what)
        end = time.monotonic() + seconds
        try:
            while self.scene.stays and (left := end - time.monotonic()) > 0:
                done, _ = await asyncio.wait([task], timeout=min(left, TURN))
                if done:
                    return task.result()
        finally:
            task.cancel()
        return None

"""A program that floods a server. It is a process of its own, so that the one that measures is not slowed down.

    python -m tests.support.floods PORT REDIS_PORT

Each line of its input has the name of a flood and its duration in seconds. It opens the clients and writes "ready";
after one more line it floods the server, and writes how many bytes it sent and received, and how often it published
or connected.
"""

from __future__ import annotations

import base64
import json
import os
import random
import selectors
import socket
import sys
import time
import zlib
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from .clients import request
from .frames import BINARY, CLOSE, CONTINUATION, PING, TEXT, build

MASK = bytes(4)  # a mask that leaves the payload as it is
BLOCK = 64 * 1024  # about how many bytes a client sends over and over
DEFLATE = "permessage-deflate; client_no_context_takeover"
PIECE = 16 * 1024  # bytes of a published message
PUBLISHES = 500  # sent to Redis at once
CHANNELS = [f"flood-{number:02}" for number in range(30)]


class Figures(NamedTuple):
    """What a flood amounted to."""

    sent: int = 0
    received: int = 0
    times: int = 0  # how often it published or connected


class Client:
    """One client of a flood, which sends a block of bytes over and over and, if `reads`, reads the answers."""

    def __init__(self, port: int, path: str, block: bytes = b"", reads: bool = True, bits: int | None = None) -> None:
        offer = DEFLATE if bits is None else f"{DEFLATE}; server_max_window_bits={bits}"
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.sendall(request(path, {"Sec-WebSocket-Extensions": offer}))
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.sock.recv(1024)
        assert b" 101 " in head, head
        self.sock.setblocking(False)
        self.block = memoryview(block)
        self.at = 0
        self.reads = reads
        self.events = (selectors.EVENT_WRITE if block else 0) | (selectors.EVENT_READ if reads else 0)


def run(clients: list[Client], seconds: float, publish: Callable[[], int] | None = None) -> Figures:
    """Have the clients send and read as fast as they can, and publish meanwhile."""
    sent = received = times = 0
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for client in clients:
            if client.events:
                selector.register(client.sock, client.events, client)
        while time.monotonic() < end:
            if publish is not None:
                times += publish()
            for key, events in selector.select(0.002 if publish else 0.02):
                client = key.data
                try:
                    if events & selectors.EVENT_READ:
                        data = client.sock.recv(1 << 20)
                        received += len(data)
                        if not data:
                            raise ConnectionError
                    if events & selectors.EVENT_WRITE:
                        size = client.sock.send(client.block[client.at :])
                        sent += size
                        client.at = (client.at + size) % len(client.block)
                except BlockingIOError:
                    pass
                except ConnectionError:  # the server closed this client, which ends its part
                    selector.unregister(client.sock)
                    client.sock.close()
    return Figures(sent, received, times)


class Publisher:
    """Publishes so slowly that Redis does not close the worker's connection for falling behind."""

    def __init__(self, port: int, rate: float, at_once: int, message: bytes, channels: list[str]) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        command = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n"
        names = [channels[number % len(channels)].encode() for number in range(at_once)]
        self.commands = b"".join(command % (len(name), name, len(message), message) for name in names)
        self.at_once = at_once
        self.rate = rate
        self.published = 0
        self.begun = 0.0

    def __call__(self) -> int:
        """Publish what is due, and return the number of messages, maybe 0."""
        self.begun = self.begun or time.monotonic()
        if time.monotonic() < self.begun + self.published / self.rate:
            return 0
        self.sock.sendall(self.commands)
        answered = 0
        while answered < self.at_once:
            answered += self.sock.recv(65536).count(b"\n")
        self.published += self.at_once
        return self.at_once


def reconnect(port: int, data: bytes, until: bytes, seconds: float, clients: int = 100) -> Figures:
    """Have clients connect, send `data`, read up to `until` (if empty: to the end), and begin anew, over and over."""
    sent = received = times = 0
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:

        def begin() -> None:
            nonlocal sent
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(data)
            sent += len(data)
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ, bytearray())

        for _ in range(clients):
            begin()
        while time.monotonic() < end:
            for key, _ in selector.select(0.02):
                sock, got = key.fileobj, key.data
                assert isinstance(sock, socket.socket)
                try:
                    piece = sock.recv(65536)
                except ConnectionError:
                    piece = b""
                received += len(piece)
                got += piece
                if not piece or (until and until in got):
                    times += 1
                    selector.unregister(sock)
                    sock.close()
                    begin()
    return Figures(sent, received, times)


# --- what is sent -----------------------------------------------------------------------------------------------------


def repeated(*frames: bytes) -> bytes:
    """Return the frames, repeated until they fill a block."""
    data = b"".join(frames)
    return data * (BLOCK // len(data) + 1)


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """Return a frame with a mask that changes nothing."""
    return build(opcode, payload, fin=fin, rsv=rsv, mask=MASK)


def deflated(data: bytes, level: int = 9) -> bytes:
    """Return a compressed message."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    packed = packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)
    return masked(BINARY if 255 in data else TEXT, packed.removesuffix(b"\0\0\xff\xff"), rsv=4)


def hard_to_compress(size: int) -> bytes:
    """Return `size` bytes that compress well, but that zlib takes very long to compress.

    The long repetitions lie further back than the short matches after which zlib's usual level gives up.
    """
    block = bytes(random.Random(1).choices(b"ab", k=min(size // 8, 16_000)))
    return (block * (size // len(block) + 1))[:size]


HARD = hard_to_compress(1 << 20)
MESSAGES = {
    "texts": repeated(masked(TEXT), masked(TEXT, b"x")),
    "pings": repeated(masked(PING), masked(PING, b"x")),
    "fragments": repeated(masked(TEXT, fin=False), *[masked(CONTINUATION, fin=False)] * 998, masked(CONTINUATION)),
    "bombs": repeated(deflated(b"x" * (1 << 20))),
    "binary": repeated(masked(BINARY)),
    "hard": repeated(deflated(HARD)),
    "hard and short": repeated(deflated(hard_to_compress(PIECE))),
}


# --- the floods -------------------------------------------------------------------------------------------------------

Begun = Callable[[float], Figures]  # floods for a number of seconds
Flood = Callable[[int, int], Begun]  # takes the ports of the server and of Redis; opens the clients


def messages(kind: str, clients: int, *paths: str, reads: bool = True) -> Flood:
    """Return a flood in which clients send one kind of message to some views."""

    def begin(port: int, redis: int) -> Begun:
        opened = [Client(port, paths[number % len(paths)], MESSAGES[kind], reads) for number in range(clients)]
        return lambda seconds: run(opened, seconds)

    return begin


def one_of_each(port: int, redis: int) -> Begun:
    """Return a flood with one client for each view and kind of message."""
    opened = [Client(port, path, MESSAGES[kind]) for kind, paths in VIEWS.items() for path in paths]
    return lambda seconds: run(opened, seconds)


def published(
    path: str, members: int, rate: float, at_once: int, message: bytes, channels: list[str], *, reads: bool = True
) -> Flood:
    """Return a flood of messages published to members with compression windows of all sizes."""

    def begin(port: int, redis: int) -> Begun:
        bits = range(9, 16)
        opened = [Client(port, path, b"", reads, bits[number % len(bits)]) for number in range(members)]
        publisher = Publisher(redis, rate, at_once, message, channels)
        return lambda seconds: run(opened, seconds, publisher)

    return begin


def chat(port: int, redis: int) -> Begun:
    """Have one member of a chat send what is hard to compress to members with windows of all sizes."""
    bits = range(9, 16)
    members = [Client(port, "/selects/flood-d/", b"", True, bits[number % len(bits)]) for number in range(280)]
    sender = Client(port, "/selects/flood-d/", MESSAGES["hard"])
    return lambda seconds: run([*members, sender], seconds)


def connections(data: bytes, until: bytes = b"") -> Flood:
    """Return a flood of a hundred clients that come and go."""
    return lambda port, redis: lambda seconds: reconnect(port, data, until, seconds)


def bodies(port: int, redis: int) -> Begun:
    """Send the bodies of a hundred requests byte by byte."""
    opened = []
    for _ in range(100):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"POST /upload/read/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        opened.append(sock)

    def send(seconds: float) -> Figures:
        end = time.monotonic() + seconds
        for sent in count():
            if time.monotonic() >= end:
                break
            opened[sent % len(opened)].sendall(b"x")
        return Figures(sent)

    return send


RANDOM = b"\xff" + os.urandom(128 * 1024)  # FF marks it as binary
TEXTS = base64.b64encode(os.urandom(PIECE * 3 // 4))  # shrinks by a quarter only
EVERY_CHANNEL = "/listen/flood-00/?on_slow=drop_oldest" + "".join(f"&and={name}" for name in CHANNELS)

VIEWS = {
    "texts": ["/echo/", "/deaf/", "/takes/timeout/", "/takes/select/", "/listen/nobody/", "/ignores/"],
    "pings": ["/echo/", "/deaf/", "/listen/nobody/"],
    "fragments": ["/echo/", "/takes/receive/"],
    "bombs": [
        "/echo/",
        "/takes/receive/",
        "/takes/timeout/",
        "/takes/select/",
        "/deaf/",
        "/ignores/",
        "/listen/nobody/",
    ],
}
FLOODS: dict[str, Flood] = {
    "one client of each kind": one_of_each,
    **{f"{kind} of a hundred clients": messages(kind, 100, *paths) for kind, paths in VIEWS.items()},
    "texts whose answers nobody reads": messages("texts", 100, "/echo/", reads=False),
    "answers to a hundred who read": messages("texts", 100, "/answers-at-length/"),
    "answers to a hundred who do not read": messages("binary", 100, "/answers-at-length/", reads=False),
    "60,000 publishes a second": published(EVERY_CHANNEL, 300, 60_000, PUBLISHES, b"0123456789", CHANNELS),
    "publishes to 280 who listen": published("/listen/flood-a/", 280, 20, 1, TEXTS, ["flood-a"]),
    "publishes to 280 who select": published("/selects/flood-b/", 280, 20, 1, TEXTS, ["flood-b"]),
    "publishes to 280 who do not read": published("/listen/flood-c/", 280, 200, 1, RANDOM, ["flood-c"], reads=False),
    "bombs that one has echoed": messages("bombs", 1, "/echo/"),
    "bombs that a hundred have echoed": messages("bombs", 100, "/echo/"),
    "messages hard to compress that one has echoed": messages("hard", 1, "/echo/"),
    "messages hard to compress that a hundred have echoed": messages("hard", 100, "/echo/"),
    "short messages hard to compress": messages("hard and short", 20, "/echo/"),
    "publishes hard to compress to 280 who listen": published("/listen/flood-e/", 280, 5, 1, HARD, ["flood-e"]),
    "publishes hard to compress to 280 who select": published("/selects/flood-f/", 280, 5, 1, HARD, ["flood-f"]),
    "messages hard to compress in a chat": chat,
    "handshakes": connections(request("/echo/"), b"\r\n\r\n"),
    "close handshakes": connections(request("/echo/") + masked(CLOSE, b"\x03\xe8")),
    "pages": connections(b"GET /page/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
    "slow bodies": bodies,
}


def main() -> None:
    port, redis = map(int, sys.argv[1:])
    for line in sys.stdin:
        name, seconds = json.loads(line)
        begun = FLOODS[name](port, redis)
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps(begun(seconds)), flush=True)
        del begun  # this frees its clients, too


if __name__ == "__main__":
    main()

"""Clients of the servers under test: raw bytes over a socket, HTTP, and the `websockets` library."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from .frames import CLOSE, Frame, first, frame
from .waiting import DEADLINE

# RFC 6455, section 1.3
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


class Response(NamedTuple):
    """The head of an HTTP response, with its body if it has one. The names of headers are in lower case."""

    status: int
    headers: dict[str, str]  # repeated ones joined with commas
    body: bytes
    cookies: dict[str, str]


def request(
    path: str = "/",
    headers: Mapping[str, str | None] | None = None,
    *,
    method: str = "GET",
    version: str = "HTTP/1.1",
    more: str = "",
) -> bytes:
    """Return a handshake: `headers` replace its own, None removes one, and the lines in `more` follow them."""
    all_headers: dict[str, str | None] = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        **(headers or {}),
    }
    lines = [f"{name}: {value}\r\n" for name, value in all_headers.items() if value is not None]
    return f"{method} {path} {version}\r\n{''.join(lines)}{more}\r\n".encode("latin-1")


class RawClient:
    """A TCP connection to a server, for bytes that no library would send. Every wait has a deadline."""

    def __init__(
        self, address: int | str, *, receive_buffer: int | None = None, segment: int | None = None, tls: bool = False
    ) -> None:
        """`address` is a port of 127.0.0.1 or the path of a Unix socket; the other arguments are sizes in bytes.

        With a `segment` as small as on the Internet, the system takes far less from a server for a client that does not
        read than with loopback's 64 KiB.
        """
        self.sock: socket.socket = socket.socket(socket.AF_INET if isinstance(address, int) else socket.AF_UNIX)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if segment is not None:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        self.sock.settimeout(DEADLINE)
        try:
            self.sock.connect(("127.0.0.1", address) if isinstance(address, int) else address)
            if isinstance(address, int):
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls:
                self.sock = unverified().wrap_socket(self.sock)
        except BaseException:
            self.sock.close()
            raise
        self._received = bytearray()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, *data: bytes) -> None:
        """Send everything at once, so that it travels in one segment if it fits."""
        self.sock.sendall(b"".join(data))

    def reset(self) -> None:
        """Vanish as a crashed machine does: with RST, without a close frame."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def open(self, path: str, headers: Mapping[str, str | None] | None = None, behind: bytes = b"") -> Response:
        """Do the handshake, with `behind` in the same segment, and return the 101."""
        self.send(request(path, headers), behind)
        response = self.response()
        assert response.status == 101, response
        return response

    def response(self) -> Response:
        """Receive an HTTP response."""
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        headers: dict[str, str] = {}
        cookies: dict[str, str] = {}
        for line in filter(None, head[1:]):
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip()
            if name == "set-cookie":
                cookie, _, content = value.partition(";")[0].partition("=")
                cookies[cookie] = content
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        body = b""
        if status != 101:
            body = self._take(int(headers["content-length"])) if "content-length" in headers else self.rest()
        return Response(status, headers, body, cookies)

    def frame(self, *, compressed: bool = False) -> Frame:
        """Receive a frame."""
        while (found := first(self._received)) is None:
            self._receive()
        received, size = found
        del self._received[:size]
        assert received.fin and received.rsv == compressed << 2, received
        return received

    def closing(self) -> tuple[int, str]:
        """Receive frames until the server closes; return its code and reason."""
        while (received := self.frame()).opcode != CLOSE:
            pass
        return received.close

    def rest(self) -> bytes:
        """Receive until the server closes the connection."""
        try:
            while data := self.sock.recv(65536):
                self._received += data
        except (ConnectionResetError, BrokenPipeError):
            pass
        data, self._received = bytes(self._received), bytearray()
        return data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._received:
            self._receive()
        return self._take(self._received.index(mark) + len(mark))

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            self._receive()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _receive(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError(f"the server closed the connection after {bytes(self._received)!r}")
        self._received += data


def unverified() -> ssl.SSLContext:
    """Return a context that accepts any certificate, for servers with a self-signed one."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def fetch(port: int, path: str, headers: Mapping[str, str] | None = None) -> Response:
    """GET a page."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2 * DEADLINE)
    try:
        connection.request("GET", path, headers={"Host": "localhost", **(headers or {})})
        response = connection.getresponse()
        cookies = dict(
            cookie.partition(";")[0].partition("=")[::2] for cookie in response.headers.get_all("Set-Cookie", [])
        )
        return Response(
            response.status, {name.lower(): value for name, value in response.getheaders()}, response.read(), cookies
        )
    finally:
        connection.close()


def fetch_json(port: int, path: str) -> Any:
    """GET a page that answers with JSON."""
    response = fetch(port, path)
    assert response.status == 200, response
    return json.loads(response.body)


def notes(port: int, key: str, count: int = 1) -> list[str]:
    """Return what the views of the test site have noted under `key`, once there are `count` notes."""
    found: list[str] = fetch_json(port, f"/notes/{key}/{count}/")
    return found


class Client(ClientConnection):
    """The `websockets` library's client, with a deadline for what it receives."""

    def __enter__(self) -> Client:
        super().__enter__()
        return self

    def recv(self, timeout: float | None = DEADLINE, decode: bool | None = None) -> Any:
        return super().recv(timeout, decode)

    def closing(self) -> tuple[int, str]:
        """Receive until the connection is closed; return the server's code and reason, 1006 if it gave none."""
        try:
            while True:
                self.recv()
        except ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")

    def ask(self, message: str | bytes) -> Any:
        """Send a message and return the next one that comes."""
        self.send(message)
        return self.recv()


@contextmanager
def undisturbed(port: int) -> Iterator[None]:
    """Check that all through the block another client of the server is answered within two seconds."""
    over = threading.Event()
    waits: list[float] = []

    def ask(client: RawClient) -> None:
        last = False
        while not last:
            last = over.wait(0.02)
            begin = time.monotonic()
            client.send(frame("hello"))
            assert client.frame().text == "hello"
            waits.append(time.monotonic() - begin)

    with RawClient(port) as client, ThreadPoolExecutor(1) as thread:
        client.open("/echo/")
        asking = thread.submit(ask, client)
        try:
            yield
        finally:
            over.set()
        asking.result()
    assert max(waits) < 2, f"another client waited for {max(waits):.1f} s"

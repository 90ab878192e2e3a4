"""Every way for a client to reach gunicorn: TCP, Unix socket, IPv6, several binds, TLS, the PROXY protocol."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
import websockets.sync.client
from websockets.exceptions import InvalidStatus, InvalidURI

from .support.clients import Client
from .support.fixtures import STOCK_WORKER, Raw, StartSite
from .support.frames import BINARY, TEXT, close_frame, frame
from .support.processes import worker_of
from .support.servers import WORKER, Server, free_port, gunicorn
from .support.waiting import DEADLINE, eventually

Opened = Callable[..., Client]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Open a WebSocket over a connected socket; `before` is sent ahead of the request, unencrypted."""
    with ExitStack() as stack:

        def open_over(sock: socket.socket, path: str = "/echo/", *, before: bytes = b"", **options: Any) -> Client:
            sock.settimeout(DEADLINE)
            sock.sendall(before)
            client = websockets.sync.client.connect(
                f"ws://localhost{path}",
                sock=sock,
                unix=sock.family == socket.AF_UNIX,
                compression=None,
                max_size=None,
                create_connection=Client,
                **options,
            )
            return stack.enter_context(cast(Client, client))

        yield open_over


def carries_messages(client: Client) -> None:
    """Check that small and large messages come back, and that closing works."""
    for message in ("hello", os.urandom(1_000_000), "x" * 1_000_000):
        client.send(message)
        assert client.recv() == message
    client.close()
    assert client.close_code == 1000


def about(client: Client) -> dict[str, Any]:
    """Ask the view what it knows of its request."""
    client.send("tell me")
    known: dict[str, Any] = json.loads(client.recv())
    return known


def tcp(port: int, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, port), DEADLINE)


def test_messages_pass_over_tcp(site: Server, opened: Opened) -> None:
    carries_messages(opened(tcp(site.port)))


def test_messages_pass_over_a_unix_socket(tmp_path: Path, opened: Opened) -> None:
    path = tmp_path / "websocket.sock"
    with gunicorn(args=["-b", f"unix:{path}"]):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        carries_messages(opened(sock))


def test_several_addresses_can_be_bound_including_ipv6(tmp_path: Path, opened: Opened) -> None:
    port, path = free_port(), tmp_path / "websocket.sock"
    with gunicorn(args=["-b", f"[::1]:{port}", "-b", f"unix:{path}"]) as server:
        unix = socket.socket(socket.AF_UNIX)
        unix.connect(str(path))
        clients = [opened(tcp(server.port)), opened(tcp(port, "::1")), opened(unix)]
        for client in clients:
            carries_messages(client)


def test_messages_pass_over_tls(start_site: StartSite, certificate: tuple[Path, Path], raw: Raw) -> None:
    arguments: list[str | Path] = ["--certfile", certificate[0], "--keyfile", certificate[1]]
    with start_site(args=arguments, probe=b"") as server:
        # Not the library's client: it reads in one thread and writes in another, which OpenSSL does not allow. While
        # the first reads the session tickets that the server sends first, the second may take the handshake for
        # unfinished, and wait instead of sending its request.
        client = raw(server, tls=True)
        client.open("/echo/")
        for message in ("hello", os.urandom(1_000_000), "x" * 1_000_000):
            client.send(frame(message))
            received = client.frame()
            assert (received.text if isinstance(message, str) else received.payload) == message
            assert received.opcode == (TEXT if isinstance(message, str) else BINARY)
        client.send(close_frame(1000))
        assert client.closing()[0] == 1000
        client = raw(server, tls=True)
        client.open("/about/1/", {"Origin": "https://localhost"})
        client.send(frame("tell me"))
        assert json.loads(client.frame().text)["secure"] is True


# --- what a proxy says -----------------------------------------------------------------------------------------------

V1 = b"PROXY TCP4 203.0.113.7 192.0.2.1 5555 443\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack(
    "!H4s4sHH", 12, bytes([203, 0, 113, 7]), bytes([192, 0, 2, 1]), 5555, 443
)


@pytest.mark.parametrize("line", [V1, V2], ids=["version 1", "version 2"])
def test_proxy_protocol_names_the_client(start_site: StartSite, opened: Opened, line: bytes) -> None:
    with start_site(args=["--proxy-protocol", "auto"], probe=b"") as server:
        carries_messages(opened(tcp(server.port), before=line))
        assert about(opened(tcp(server.port), "/about/1/", before=line))["address"] == "203.0.113.7"
        # Such a proxy passes the X-Forwarded-For of its clients on.
        bad = opened(tcp(server.port), before=line, additional_headers={"X-Forwarded-For": "198.51.100.9"})
        bad.socket.sendall(b"\x81\x00")  # not masked
        assert bad.closing()[0] == 1002
        assert eventually(lambda: "203.0.113.7 /echo/: 1002 a frame is not masked\n" in server.log)


@pytest.mark.parametrize("scheme", ["https", "wss"])  # the one of the page, or of the WebSocket, as Traefik has it
@pytest.mark.parametrize("believed", [True, False], ids=["a proxy that is believed", "one that is not"])
def test_only_trusted_proxies_are_believed(start_site: StartSite, opened: Opened, believed: bool, scheme: str) -> None:
    headers = {"X-Forwarded-Proto": scheme, "X-Forwarded-For": "198.51.100.9, 203.0.113.7"}
    allowed = "127.0.0.0/8" if believed else "192.0.2.1"
    with start_site(args=["--forwarded-allow-ips", allowed]) as server:
        origin = "https://localhost" if believed else "http://localhost"
        client = opened(tcp(server.port), additional_headers=headers, origin=origin)
        client.socket.sendall(b"\x81\x00")
        assert client.closing()[0] == 1002
        who = "203.0.113.7" if believed else "127.0.0.1"
        assert eventually(lambda: f"{who} /echo/: 1002 a frame is not masked\n" in server.log)
        client = opened(tcp(server.port), "/about/1/", additional_headers=headers, origin=origin)
        assert about(client)["secure"] is believed


@pytest.mark.parametrize("worker", [WORKER, STOCK_WORKER], ids=["our worker", "the stock worker"])
def test_scheme_of_a_websocket_in_a_header_that_django_believes_means_that_of_its_page(
    start_site: StartSite, opened: Opened, worker: str
) -> None:
    from testsite.settings import MIDDLEWARE

    settings = {
        "SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https"),
        "SECURE_SSL_REDIRECT": True,
        "MIDDLEWARE": ["django.middleware.security.SecurityMiddleware", *MIDDLEWARE],
    }
    args = ["--forwarded-allow-ips", "192.0.2.1"]  # so that Django alone believes it
    with start_site(settings, args=args, worker=worker, probe=b"") as server:
        for said in ("wss", "wss, ws"):
            headers = {"X-Forwarded-Proto": said}
            client = opened(tcp(server.port), "/about/1/", additional_headers=headers, origin="https://localhost")
            assert about(client)["secure"] is True
        for said in ("ws", "wsss", "ws, wss") if worker == WORKER else ():
            # It is redirected to https:, which older versions of the library do not follow.
            with pytest.raises((InvalidURI, InvalidStatus), match="https:|HTTP 301"):
                opened(tcp(server.port), additional_headers={"X-Forwarded-Proto": said})


# --- several gunicorns of one user -----------------------------------------------------------------------------------


def test_gunicorns_with_the_deployed_configuration_do_not_share_a_control_socket(tmp_path: Path) -> None:
    configuration = Path(__file__).resolve().parent.parent / "deploy" / "websocket.conf.py"
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    with ExitStack() as stack:
        for _ in range(2):
            server = gunicorn(args=["-c", configuration], env=environment)
            server.args.remove("--no-control-socket")  # so that only the configuration turns it off
            assert worker_of(stack.enter_context(server))
        assert not list(tmp_path.rglob("*.ctl"))

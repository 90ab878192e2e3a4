"""Compression between real servers and clients: on by default, as the setting says, and never beside the handshake."""

from __future__ import annotations

import random
import socket
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from django_websocket.connection import Connection
from django_websocket.protocol.deflate import Agreement
from django_websocket.pubsub import hub

from .support.clients import fetch, notes
from .support.fixtures import Connect, Raw, StartSite
from .support.frames import BINARY, TEXT, close_frame, frame
from .support.servers import Server
from .support.waiting import until

OFFER = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
RESET = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
TEXTS = [f"{number}: {random.Random(number).randbytes(300).hex()} " * 5 for number in range(5)]
EXTENSIONS = "sec-websocket-extensions"


def packed(payload: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def compressed(payload: bytes, opcode: int = BINARY) -> bytes:
    """The frame of a payload that was compressed, as a client sends it."""
    return frame(payload, opcode | 0x40)


def echoes(client: Any) -> None:
    for text in TEXTS:
        for message in (text, "short", text.encode(), "", text * 20):
            assert client.ask(message) == message


def test_messages_are_compressed_by_default(site: Server, raw: Raw, connect: Connect) -> None:
    echoes(connect(site, "/echo/", compression="deflate"))

    client = raw(site)
    response = client.open("/echo/", OFFER, behind=compressed(packed(b"x" * 9000), TEXT) + frame("short"))
    assert response.headers[EXTENSIONS] == RESET
    received = client.frame(compressed=True)
    assert len(received.payload) < 100
    assert zlib.decompressobj(-15).decompress(received.payload) == b"x" * 9000
    assert client.frame().text == "short"
    client.send(close_frame(1000))
    assert client.closing() == (1000, "")


def test_windows_are_kept_where_the_setting_says_so(start_site: StartSite, raw: Raw, connect: Connect) -> None:
    with start_site({"WEBSOCKET_COMPRESSION": {"takeover": True, "window_bits": 10, "threshold": 0}}) as site:
        response = raw(site).open("/echo/", OFFER)
        assert (
            response.headers[EXTENSIONS] == "permessage-deflate; server_max_window_bits=10; client_max_window_bits=10"
        )
        echoes(connect(site, "/echo/", compression="deflate"))

        client = raw(site)
        client.open("/echo/", OFFER, behind=frame(TEXTS[0][:500]) * 2)
        first, second = (client.frame(compressed=True).payload for _ in range(2))
        assert len(second) * 10 < len(first)


def test_nothing_is_compressed_where_the_setting_or_the_view_says_so(
    start_site: StartSite, site: Server, raw: Raw, connect: Connect
) -> None:
    assert EXTENSIONS not in raw(site).open("/uncompressed/", OFFER).headers
    echoes(connect(site, "/uncompressed/", compression="deflate"))
    with start_site({"WEBSOCKET_COMPRESSION": False}) as off:
        assert EXTENSIONS not in raw(off).open("/echo/", OFFER).headers
        echoes(connect(off, "/echo/", compression="deflate"))


def test_nothing_is_compressed_for_who_does_not_offer_it(site: Server, raw: Raw) -> None:
    assert EXTENSIONS not in raw(site).open("/echo/").headers
    assert EXTENSIONS not in raw(site).open("/echo/", {"Sec-WebSocket-Extensions": "x-webkit-deflate-frame"}).headers


def test_nothing_is_compressed_where_the_server_has_answered_already(
    stock_site: Server, raw: Raw, connect: Connect
) -> None:
    client = raw(stock_site)
    assert EXTENSIONS not in client.open("/echo/", OFFER, behind=frame("x" * 9000)).headers
    assert client.frame().text == "x" * 9000
    echoes(connect(stock_site, "/echo/", compression="deflate"))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (compressed(b"no deflate data"), 1007),
        (compressed(packed(b"\xff"), TEXT), 1007),
        (compressed(packed(bytes(1024 * 1024 + 1))), 1009),
        (compressed(b"", 9), 1002),
    ],
)
def test_client_that_breaks_the_rules_is_closed(site: Server, raw: Raw, data: bytes, code: int) -> None:
    client = raw(site)
    client.open("/echo/", OFFER, behind=data)
    assert client.closing()[0] == code


def test_offer_that_is_none_is_400(site: Server, raw: Raw) -> None:
    client = raw(site)
    client.send(b"GET /echo/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
    client.send(b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
    client.send(b"Sec-WebSocket-Extensions: permessage-deflate; =\r\n\r\n")
    assert client.response().status == 400


@pytest.mark.parametrize("takeover", [True, False], ids=["takeover", "reset"])
def test_published_messages_reach_clients_of_all_kinds(
    start_site: StartSite, connect: Connect, key: str, takeover: bool
) -> None:
    with start_site({"WEBSOCKET_COMPRESSION": {"takeover": takeover}}) as site:
        kinds: list[dict[str, Any]] = [
            {},
            {"compression": "deflate"},
            {"extensions": [ClientPerMessageDeflateFactory(server_max_window_bits=9)]},
            {"extensions": [ClientPerMessageDeflateFactory(server_no_context_takeover=True)]},
        ]
        clients = [connect(site, f"/forward/{key}/?key={key}", **kind) for kind in kinds]
        assert len(notes(site.port, key, len(clients))) == len(clients)
        for client in clients:
            for text in TEXTS:
                client.send(text)
                assert [other.recv() for other in clients] == [text] * len(clients)
        assert fetch(site.port, f"/publish/{key}/?text=news&times=1000").status == 200
        assert [client.recv() for client in clients] == ["news" * 1000] * len(clients)


def test_published_message_is_encoded_once_for_each_kind_of_client(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def noting(name: str, encode: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            calls.append(name)
            return encode(*args)

        return noted

    for name in ("encode_message", "encode_compressed"):
        monkeypatch.setattr(hub, name, noting(name, getattr(hub, name)))
    publication = hub.Publication("news", [TEXTS[0].encode(), b"short"])
    small = Agreement(window_bits=9)
    for _ in range(3):
        for agreement in (None, Agreement(), Agreement(takeover=True), Agreement(peer_window_bits=9), small):
            frames = publication.frames(hub.variant_for(agreement))
            assert frames.endswith(b"\x81\x05short")
            assert (len(frames) < len(TEXTS[0])) is (agreement is not None)
    assert calls == ["encode_message"] * 2 + ["encode_compressed"] * 4


def test_what_is_pushed_stands_between_what_the_view_sends() -> None:
    ours, theirs = socket.socketpair()
    agreement = Agreement(takeover=True)
    connection = Connection(ours, agreement=agreement)
    window = zlib.decompressobj(-15)
    with theirs:
        theirs.setblocking(False)
        for number, text in enumerate(TEXTS):
            if number % 2:
                connection.push(hub.Publication("news", [text.encode()]).frames(hub.variant_for(agreement)))
            else:
                connection.send(text)
            data = theirs.recv(65536)
            assert data[:2] == b"\xc1\x7e"
            assert window.decompress(data[4:] + b"\x00\x00\xff\xff").decode() == text
    until(lambda: not connection.open)


def test_client_of_a_view_that_receives_nothing_cannot_keep_the_server_busy() -> None:
    bomb = compressed(packed(bytes(1024 * 1024)))
    ours, theirs = socket.socketpair()
    connection = Connection(ours, discard=True, agreement=Agreement())
    with theirs:
        theirs.sendall(bomb * 100)
        theirs.sendall(frame(b"alive?", 9))
        theirs.settimeout(0)
        answer = bytearray()

        def answered() -> bool:
            try:
                answer.extend(theirs.recv(100))
            except BlockingIOError:
                return False
            return True

        begin = time.process_time()
        until(answered)
        assert time.process_time() - begin < 1
        assert answer == b"\x8a\x06alive?"
    until(lambda: not connection.open)

"""Compression between real servers and clients: on by default, as the setting says, and only if agreed upon."""

from __future__ import annotations

import gc
import random
import socket
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.utils.safestring import mark_safe
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from django_websocket.protocol.deflate import RSV1, Agreement, encode_compressed
from django_websocket.pubsub import publication as publications
from django_websocket.transport import compression
from django_websocket.transport.compression import BURST, KEPT, SHARE, Encoder, TimeToCompress
from django_websocket.transport.connection import Connection
from django_websocket.transport.shared import shared_of_loop
from django_websocket.websocket import as_payload

from .support.clients import fetch, notes
from .support.fixtures import Connect, Raw, StartSite
from .support.frames import BINARY, TEXT, close_frame, first, frame
from .support.servers import Server
from .support.waiting import eventually, until

OFFER = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
RESET = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
TEXTS = [f"{number}: {random.Random(number).randbytes(300).hex()} " * 5 for number in range(5)]
EXTENSIONS = "sec-websocket-extensions"


def packed(payload: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def compressed(payload: bytes, opcode: int = BINARY) -> bytes:
    """Return the frame in which a client sends a compressed payload."""
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


def test_nothing_is_compressed_for_a_client_that_does_not_offer_it(site: Server, raw: Raw) -> None:
    assert EXTENSIONS not in raw(site).open("/echo/").headers
    assert EXTENSIONS not in raw(site).open("/echo/", {"Sec-WebSocket-Extensions": "x-webkit-deflate-frame"}).headers


def test_nothing_is_compressed_under_the_stock_worker(stock_site: Server, raw: Raw, connect: Connect) -> None:
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
def test_client_that_breaks_the_rules_is_disconnected(site: Server, raw: Raw, data: bytes, code: int) -> None:
    client = raw(site)
    client.open("/echo/", OFFER, behind=data)
    assert client.closing()[0] == code


def test_malformed_offer_is_400(site: Server, raw: Raw) -> None:
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


def noting(name: str, encode: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """Wrap a function so that each call notes its name."""

    def noted(*args: Any) -> Any:
        calls.append(name)
        return encode(*args)

    return noted


def test_published_message_is_encoded_once_for_each_kind_of_client(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("encode_message", "encode_compressed"):
        monkeypatch.setattr(publications, name, noting(name, getattr(publications, name), calls))
    publication = publications.Publication("news", [TEXTS[0].encode(), b"short"])
    small = Agreement(window_bits=9)
    for _ in range(3):
        for agreement in (None, Agreement(), Agreement(takeover=True), Agreement(peer_window_bits=9), small):
            frames = publication.frames(publications.variant_for(agreement))
            assert frames.endswith(b"\x81\x05short")
            assert (len(frames) < len(TEXTS[0])) is (agreement is not None)
    assert calls == ["encode_message"] * 2 + ["encode_compressed"] * 4


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each message that is encoded for several receivers."""
    calls: list[str] = []
    monkeypatch.setattr(compression, "encode_compressed", noting("encoded", encode_compressed, calls))
    return calls


class Receiver:
    """The other end of a connection, with the compression window that was agreed upon."""

    def __init__(self, agreement: Agreement | None) -> None:
        ours, self.sock = socket.socketpair()
        self.sock.setblocking(False)
        self.connection = Connection(ours, agreement=agreement)
        self.agreement = agreement
        self._window: Any = None

    def gets(self, message: str | bytes, *, compressed: bool) -> None:
        """Have `message` sent, and check what arrives."""
        self.connection.send(message)
        found = first(self.sock.recv(1 << 20))
        assert found is not None
        received = found[0]
        payload = received.payload
        assert bool(received.rsv) is compressed
        if compressed:
            assert self.agreement is not None
            if self._window is None or not self.agreement.takeover:
                self._window = zlib.decompressobj(-self.agreement.window_bits)
            payload = self._window.decompress(payload + b"\x00\x00\xff\xff")
        assert (payload.decode() if received.opcode == TEXT else payload) == message


@pytest.fixture
def receivers() -> Iterator[Callable[..., list[Receiver]]]:
    """Makes receivers with the given agreements."""
    made: list[Receiver] = []
    allowance = shared_of_loop().encoder.allowance
    until(lambda: allowance.begin(10 * 1024 * 1024))  # another test may have used up the time

    def make(*agreements: Agreement | None) -> list[Receiver]:
        new = [Receiver(agreement) for agreement in agreements]
        made.extend(new)
        return new

    yield make
    for receiver in made:
        receiver.sock.close()
    until(lambda: not any(receiver.connection.connected for receiver in made))


@pytest.mark.parametrize("size", [2000, 50_000])
def test_equal_messages_of_several_views_are_compressed_once_for_each_window(
    receivers: Callable[..., list[Receiver]], calls: list[str], size: int
) -> None:
    agreements = [Agreement(), Agreement(window_bits=9), Agreement(takeover=True), Agreement(threshold=100_000), None]
    for receiver in receivers(*agreements * 3):
        agreement = receiver.agreement
        compressed = agreement is not None and size >= agreement.threshold
        receiver.gets("".join(["x"] * size), compressed=compressed)  # equal, but not the same object
        receiver.gets(b"".join([b"x"] * size), compressed=compressed)
    assert len(calls) == 4


def test_short_messages_and_those_for_a_kept_window_are_encoded_for_one_receiver(
    receivers: Callable[..., list[Receiver]], calls: list[str]
) -> None:
    reset, takeover = receivers(Agreement(), Agreement(takeover=True))
    short: list[str | bytes] = ["x" * 1023, b"x" * 1023, "x", b""]
    for message in short:
        reset.gets(message, compressed=False)
    fitting: list[str | bytes] = ["x" * 32_767, b"x" * 2000, "ä" * 2000]
    for message in fitting:
        takeover.gets(message, compressed=True)
    assert not calls


def test_rendered_template_is_sent_as_plain_text() -> None:
    assert type(as_payload(mark_safe("<p>"), None)) is str
    assert as_payload(mark_safe("<p>"), None) == "<p>"


def test_a_limited_number_of_messages_is_kept_for_other_receivers_for_a_while(calls: list[str]) -> None:
    encoder = Encoder()
    message = "x" * 2000
    encoder.frame(message, 15, 1024)
    for _ in range(3):  # a message that is still being sent stays
        encoder.forget()
        encoder.frame(message, 15, 1024)
    assert len(calls) == 1
    encoder.forget()
    encoder.forget()
    encoder.frame(message, 15, 1024)
    assert len(calls) == 2

    gc.collect()
    tracemalloc.start()
    try:
        for number in range(20):
            encoder.frame(random.Random(number).randbytes(1 << 20), 15, 1024)
        assert KEPT < tracemalloc.get_traced_memory()[0] < 2 * KEPT
    finally:
        tracemalloc.stop()
    encoder.frame(message, 15, 1024)
    assert len(calls) == 23


def test_messages_that_nobody_sends_any_more_are_forgotten(
    receivers: Callable[..., list[Receiver]], calls: list[str]
) -> None:
    (receiver,) = receivers(Agreement())
    receiver.gets("x" * 2000, compressed=True)
    encoder = receiver.connection._shared.encoder
    assert encoder._recent or encoder._before
    until(lambda: not (encoder._recent or encoder._before))


def test_compression_takes_a_share_of_the_time() -> None:
    allowance = TimeToCompress()
    begin = time.perf_counter()
    assert allowance.begin(10 * 1024 * 1024)
    while allowance.go_on():
        pass
    assert BURST <= time.perf_counter() - begin < 2 * BURST
    assert not allowance.begin(1024 * 1024)
    assert eventually(lambda: allowance.begin(1024))
    assert eventually(lambda: allowance.begin(1024 * 1024))

    text = random.Random(1).randbytes(20_000).hex()
    took = 0.0
    compressed_ones = messages = 0
    begin = time.perf_counter()
    while (now := time.perf_counter()) < begin + 1:
        frame = encode_compressed(text, 15, 0, allowance)
        messages += 1
        if frame[0] & RSV1:
            compressed_ones += 1
            took += time.perf_counter() - now
    assert 0 < compressed_ones < messages
    assert took < BURST + SHARE + 0.1


def test_messages_leave_uncompressed_when_there_is_no_time(receivers: Callable[..., list[Receiver]]) -> None:
    both = receivers(Agreement(), Agreement(takeover=True))
    allowance = shared_of_loop().encoder.allowance
    allowance.begin(1)
    end = time.perf_counter() + BURST + 0.1  # beyond what is left, so that it takes a while until there is time again
    while time.perf_counter() < end:
        allowance.go_on()
    for receiver in both:
        receiver.gets(TEXTS[0], compressed=False)
    publication = publications.Publication("news", [TEXTS[0].encode()])
    assert publication.frames(publications.variant_for(Agreement()))[0] & RSV1 == 0
    until(lambda: allowance.begin(1024 * 1024))
    for receiver in both:
        receiver.gets(TEXTS[1], compressed=True)


def test_pushed_messages_may_come_between_those_that_the_view_sends() -> None:
    ours, theirs = socket.socketpair()
    agreement = Agreement(takeover=True)
    connection = Connection(ours, agreement=agreement)
    window = zlib.decompressobj(-15)
    with theirs:
        theirs.setblocking(False)
        for number, text in enumerate(TEXTS):
            if number % 2:
                connection.push(
                    publications.Publication("news", [text.encode()]).frames(publications.variant_for(agreement))
                )
            else:
                connection.send(text)
            data = theirs.recv(65536)
            assert data[:2] == b"\xc1\x7e"
            assert window.decompress(data[4:] + b"\x00\x00\xff\xff").decode() == text
    until(lambda: not connection.connected)


def test_bombs_for_a_view_that_does_not_receive_cannot_keep_the_server_busy() -> None:
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
    until(lambda: not connection.connected)

"""Frames that were made to do harm, sent to a running server; test_threats.py has the list of all threats."""

from __future__ import annotations

import contextlib
import select
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from .support.clients import RawClient, fetch, notes, undisturbed
from .support.fixtures import Raw, StartSite
from .support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, close_frame, frame
from .support.processes import descriptors, forget_peak, memory, peak_memory, worker_of
from .support.servers import NOT_MEASURED, Server
from .support.waiting import DEADLINE, at_once, eventually

MIB = 1024 * 1024
OFFER = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
RSV1, RSV2, RSV3 = 0x40, 0x20, 0x10


@pytest.fixture(scope="module")
def server(start_site: StartSite) -> Iterator[Server]:
    """The test site, in a process whose memory and time are measured."""
    with start_site(env=NOT_MEASURED) as server:
        with RawClient(server.port) as client:  # the first message loads modules, which must not be counted
            client.open("/echo/", OFFER, behind=frame(packed(bytes(MIB)), BINARY | RSV1))
            client.frame(compressed=True)
        yield server


@contextlib.contextmanager
def at_most(server: Server, mebibytes: float) -> Iterator[None]:
    """Check that the block never takes more than that much memory, and leaves no descriptor open."""
    worker = worker_of(server)
    begin, files = memory(worker), descriptors(worker)
    forget_peak(worker)
    yield
    took = (peak_memory(worker) - begin) / 1024
    assert took <= mebibytes, f"{took:.1f} MiB"
    assert eventually(lambda: descriptors(worker) <= files), "descriptors are left"


def connected(
    server: Server, stack: ExitStack, count: int, path: str, receive_buffer: int = 4096, **options: Any
) -> list[RawClient]:
    """Connect `count` clients to a view; they leave with the stack at the latest."""
    clients = [stack.enter_context(RawClient(server.port, receive_buffer=receive_buffer)) for _ in range(count)]
    for client in clients:
        client.open(path, **options)
    return clients


def answer(server: Server) -> None:
    """Wait until the server has read what other clients have sent so far."""
    with RawClient(server.port) as client:
        client.open("/echo/", behind=frame("hello"))
        assert client.frame().text == "hello"


def pour(clients: Sequence[RawClient], data: bytes, size: int) -> list[bytes]:
    """Send `data` repeatedly while anything is taken, to each client `size` bytes at most.

    Nothing is received meanwhile. Returns the unsent rest of the last repetition for each client.
    """
    sent = {client.sock: 0 for client in clients}
    going_on = set(sent)
    for sock in sent:
        sock.setblocking(False)
    while ready := select.select([], list(going_on), [], 0.3)[1]:
        for sock in ready:
            try:
                sent[sock] += sock.send(memoryview(data)[sent[sock] % len(data) :])
            except (ConnectionResetError, BrokenPipeError):
                going_on.remove(sock)
            else:
                if sent[sock] >= size:
                    going_on.remove(sock)
    for sock in sent:
        sock.settimeout(DEADLINE)
    return [data[count % len(data) :] if count % len(data) else b"" for count in sent.values()]


def packed(payload: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def head(first: int, size: int) -> bytes:
    """The header of a frame that declares a length of `size` in eight bytes."""
    return bytes([first, 0xFF]) + size.to_bytes(8, "big") + b"mask"


# --- what breaks the protocol ----------------------------------------------------------------------------------------

BROKEN = {
    "not masked": (b"\x81\x05hello", 1002),
    "not masked, empty": (b"\x81\x00", 1002),
    "first reserved bit": (frame(b"x", BINARY | RSV1), 1002),  # compression was not negotiated
    "second reserved bit": (frame(b"x", BINARY | RSV2), 1002),
    "third reserved bit": (frame(b"x", BINARY | RSV3), 1002),
    "reserved bit of a ping": (frame(b"x", PING | RSV1), 1002),
    **{f"opcode {opcode}": (frame(b"x", opcode), 1002) for opcode in (3, 7, 11, 15)},
    "fragmented ping": (frame(b"x", PING, fin=False), 1002),
    "fragmented close": (frame(b"", CLOSE, fin=False), 1002),
    "ping of 126 bytes": (frame(b"x" * 126, PING), 1002),
    "close of 126 bytes": (frame(b"\x03\xe8" + b"x" * 124, CLOSE), 1002),
    "continuation of nothing": (frame(b"x", CONTINUATION), 1002),
    "message in a message": (frame("a", fin=False) + frame("b"), 1002),
    "continuation of what has ended": (frame("a") + frame(b"b", CONTINUATION), 1002),
    "length in more bytes than it needs": (head(0x82, 5) + b"hello", 1002),
    "length with its highest bit": (head(0x82, 1 << 63), 1002),
    "length of all bits": (head(0x82, (1 << 64) - 1), 1002),
    "length of 2 to the 62": (head(0x82, 1 << 62), 1009),
    "length that is one too large": (head(0x82, MIB + 1), 1009),
    "length that is too large in its sum": (frame("a", fin=False) + head(0x80, MIB), 1009),
    "overlong UTF-8": (frame(b"\xc0\xaf", TEXT), 1007),
    "surrogate": (frame(b"\xed\xa0\x80", TEXT), 1007),
    "beyond Unicode": (frame(b"\xf4\x90\x80\x80", TEXT), 1007),
    "character that breaks off": (frame(b"x\xe2\x82", TEXT), 1007),
    "wrong byte at the beginning of much": (head(0x81, MIB) + bytes([0xFF ^ b"mask"[0]]), 1007),
    "wrong byte in a later fragment": (frame("a", fin=False) + frame(b"\xff", CONTINUATION, fin=False), 1007),
    "close of one byte": (frame(b"\x03", CLOSE), 1002),
    **{
        f"close {code}": (close_frame(code), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    },
    "close without UTF-8": (frame(b"\x03\xe8\xff", CLOSE), 1007),
}


@pytest.mark.parametrize("path", ["/echo/", "/selects/x/", "/listen/x/", "/sends-only/"])
def test_broken_frame_ends_the_connection_at_once_with_its_code(server: Server, raw: Raw, path: str, key: str) -> None:
    with at_most(server, 4), undisturbed(server.port):
        for name, (data, code) in BROKEN.items():
            for number, message in enumerate((data, frame("first") + data, data + frame("behind") * 9)):
                client = raw(server)
                with at_once():
                    client.open(path + f"?key={key}", behind=message)
                    assert client.closing()[0] == code, f"{name}, {number}"
                    assert client.rest() == b""
                client.sock.close()
        fetch(server.port, f"/gate/{key}/")


def test_close_frame_is_answered_once_and_nothing_after_it_counts(server: Server, raw: Raw, key: str) -> None:
    client = raw(server)
    behind = (close_frame(3001, "again"), frame("too late"), frame(b"?", PING), b"\xff" * 1000)
    client.open(f"/echo/?key={key}", behind=frame("one") + close_frame(3000, "first") + b"".join(behind))
    assert client.rest() == b"\x81\x03one\x88\x07\x0b\xb8first"
    assert notes(server.port, key) == ["3000 first"]


@pytest.mark.parametrize("chatter", [b"", frame("chatter"), frame(b"?", PING), b"\0" * 1000])
def test_client_that_never_answers_a_close_is_disconnected(server: Server, raw: Raw, chatter: bytes) -> None:
    """Whatever it sends meanwhile, it has only `WEBSOCKET_CLOSE_TIMEOUT`, here a second."""
    client = raw(server)
    client.open("/end/close/", behind=frame("go"))
    assert client.closing() == (4321, "bye")
    begin = time.monotonic()
    client.sock.settimeout(0.05)
    ended = False
    while not ended:
        assert time.monotonic() - begin < 3
        try:
            client.send(chatter)
            ended = client.sock.recv(1000) == b""
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            ended = True


@pytest.mark.parametrize("begin", [frame("x" * 1000)[:500], frame("x", fin=False), frame("x" * 1000)[:1]])
def test_member_with_half_a_frame_gets_published_messages_like_the_others(
    server: Server, raw: Raw, key: str, begin: bytes
) -> None:
    members = [raw(server) for _ in range(8)]
    for number, member in enumerate(members):
        member.open(f"/{('selects', 'forward', 'listen', 'by-number')[number % 4]}/{key}/?key={key}")
        if number % 4 == 0:
            member.frame()
            assert member.frame().text == "subscribed"
    for member in members[:4]:
        member.send(begin)
    with undisturbed(server.port):
        for number in range(20):
            with at_once():
                assert fetch(server.port, f"/publish/{key}/?text={number}").status == 200
                assert [member.frame().text for member in members] == [f"{number}"] * 8


# --- what takes memory -----------------------------------------------------------------------------------------------


def test_declared_length_takes_no_memory(server: Server) -> None:
    with at_most(server, 16), undisturbed(server.port), ExitStack() as stack:
        clients = connected(server, stack, 200, "/echo/")
        for number, client in enumerate(clients):
            client.send(head(0x81 + number % 2, MIB), b"mask" * 10)  # declares the most that is allowed
        answer(server)
        for client in clients:
            client.sock.setblocking(False)
            with pytest.raises(BlockingIOError):  # none was refused
                client.sock.recv(1)


@pytest.mark.parametrize("path", ["/echo/", "/listen/x/"])
@pytest.mark.parametrize("fragment", [b"", b"x"], ids=["empty", "one byte"])
def test_message_of_endless_fragments_is_refused(server: Server, path: str, fragment: bytes) -> None:
    with at_most(server, 8), undisturbed(server.port), ExitStack() as stack:
        clients = connected(server, stack, 5, path, behind=frame("", fin=False))
        pour(clients, frame(fragment, CONTINUATION, fin=False) * 10_000, 8 * MIB)
        assert [client.closing()[0] for client in clients] == [1009] * 5


def test_unfinished_messages_take_only_the_memory_of_what_has_arrived(server: Server) -> None:
    """An object for each of the fifty thousand fragments would take three times as much."""
    with at_most(server, 20), undisturbed(server.port), ExitStack() as stack:
        clients = connected(server, stack, 10, "/echo/", behind=frame("begin", fin=False))
        for client in clients:
            client.send(frame(b"x" * 20, CONTINUATION, fin=False) * 50_000, frame(b"?", PING))
        assert [client.frame() for client in clients] == [Frame(PONG, b"?")] * 10


def test_text_in_small_pieces_is_validated_once(server: Server, raw: Raw) -> None:
    """Validating all of it again with each piece would take minutes."""
    client = raw(server)
    client.open("/echo/", behind=frame("begin", fin=False))
    with undisturbed(server.port):
        begin = time.monotonic()
        client.send(frame("€".encode() * 6, CONTINUATION, fin=False) * 50_000, frame(b"", CONTINUATION))
        assert client.frame().text == "begin" + "€" * 300_000
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("data", [frame(b"x" * 500_000), frame(b"x") * 1000], ids=["large", "small"])
def test_view_that_does_not_receive_keeps_an_inbox_and_no_more(server: Server, key: str, data: bytes) -> None:
    with at_most(server, 30), undisturbed(server.port), ExitStack() as stack:
        pour(connected(server, stack, 10, f"/busy/?key={key}"), data, 16 * MIB)
        fetch(server.port, f"/gate/{key}/")


def test_pongs_for_a_client_that_does_not_read_do_not_pile_up(server: Server) -> None:
    with at_most(server, 8), undisturbed(server.port), ExitStack() as stack:
        clients = connected(server, stack, 5, "/echo/")
        missing = pour(clients, frame(b"x" * 125, PING) * 100, 16 * MIB)
        for client, rest in zip(clients, missing, strict=True):
            client.send(rest, frame("end"))
            while (received := client.frame()).opcode == PONG:
                assert received.payload == b"x" * 125
            assert received.text == "end"


@pytest.mark.alone
@pytest.mark.parametrize("opcode", [PING, PONG], ids=["pings", "pongs"])
def test_flood_of_empty_control_frames_disturbs_nobody(server: Server, opcode: int) -> None:
    with at_most(server, 8), undisturbed(server.port), ExitStack() as stack:
        pour(connected(server, stack, 5, "/echo/"), frame(b"", opcode) * 10_000, 2 * MIB)


# --- compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/echo/", "/selects/x/"])
def test_message_that_would_inflate_beyond_the_limit_is_refused_in_time(server: Server, path: str) -> None:
    bomb = packed(bytes(64 * MIB))
    with at_most(server, 5 * 3), undisturbed(server.port), ExitStack() as stack:
        clients = connected(server, stack, 5, path, headers=OFFER, behind=frame(bomb, BINARY | RSV1))
        assert [client.closing()[0] for client in clients] == [1009] * 5
        # The same bomb in fragments that are harmless one by one.
        begin = frame(bomb[:100], BINARY | RSV1, fin=False)
        clients = connected(server, stack, 5, path, headers=OFFER, behind=begin)
        for client in clients:
            client.send(*(frame(bomb[at : at + 100], CONTINUATION, fin=False) for at in range(100, 5000, 100)))
        assert [client.closing()[0] for client in clients] == [1009] * 5


@pytest.mark.alone
@pytest.mark.parametrize("path", ["/echo/", "/listen/x/", "/selects/x/"])
def test_messages_that_inflate_to_the_limit_disturb_nobody(server: Server, path: str) -> None:
    with at_most(server, 5 * 5), undisturbed(server.port), ExitStack() as stack:
        clients = connected(server, stack, 5, path, headers=OFFER)
        pour(clients, frame(packed(bytes(MIB)), BINARY | RSV1), MIB // 2)


def test_idle_clients_keep_nothing_of_compression(server: Server) -> None:
    text = frame(packed(b"some text " * 1000), TEXT | RSV1)
    with ExitStack() as stack:
        before = memory(worker_of(server))
        clients = connected(server, stack, 300, "/echo/", headers=OFFER, behind=text)
        for client in clients:
            assert len(client.frame(compressed=True).payload) < 100
        assert (memory(worker_of(server)) - before) / 300 < 40  # KiB; one window and its tables alone take 300


# --- many writers ----------------------------------------------------------------------------------------------------


def test_frames_of_several_writers_to_one_client_never_mix(server: Server, key: str) -> None:
    """The view's greenlets, published messages and pongs all have to wait, since the client reads slowly."""
    with ExitStack() as stack:
        # With a window smaller than a segment, TCP would wait for its timers each time, 20 s and more in all.
        (client,) = connected(server, stack, 1, f"/crowd/{key}/", receive_buffer=1 << 17)
        sizes: dict[str, list[int]] = {}
        pongs = 0
        while True:
            received = client.frame()
            if received.opcode == PONG:
                assert received.payload == b"y" * 100
                pongs += 1
                continue
            if received.text == "over":
                break
            (letter,) = set(received.text)
            sizes.setdefault(letter, []).append(len(received.payload))
            if len(received.payload) % 2000 == 0:
                client.send(frame(b"y" * 100, PING))
                assert fetch(server.port, f"/publish/{key}/?text=z&times=3000").status == 200
        published = sizes.pop("z")
        assert sizes == {letter: [size * 200 for size in range(1, 200)] for letter in "abcde"}
        assert published == [3000] * len(published)
        assert pongs and len(published) > 50


def test_many_clients_whose_messages_inflate_to_the_limit_disturb_nobody(server: Server) -> None:
    with undisturbed(server.port), ExitStack() as stack:
        clients = connected(server, stack, 30, "/echo/", headers=OFFER)
        pour(clients, frame(packed(bytes(MIB)), BINARY | RSV1) * 20, 64 * 1024)
        answer(server)


@pytest.mark.parametrize("opcode", [PING, PONG], ids=["pings", "pongs"])
def test_many_floods_of_control_frames_disturb_nobody(server: Server, opcode: int) -> None:
    with undisturbed(server.port), ExitStack() as stack:
        pour(connected(server, stack, 50, "/echo/"), frame(b"", opcode) * 10_000, MIB // 2)
        answer(server)

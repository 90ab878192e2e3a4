"""The engine beside that of the `websockets` library: the same bytes give the same messages and close code.

The streams are random, but the same each time. `difference` lists where the two may differ.
Sections are those of RFC 6455.
"""

from __future__ import annotations

import codecs
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame as TheirFrame
from websockets.frames import Opcode as TheirOpcode
from websockets.http11 import Request
from websockets.protocol import OPEN, Protocol, Side
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from django_websocket.protocol.engine import Close, Engine, Event, Failure, Ping, Role
from django_websocket.protocol.frames import CloseCode, encode_close, encode_frame
from django_websocket.protocol.handshake import ClientRequest, accept_headers, check_request, choose_subprotocol

from ..support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT

Frame = Callable[..., bytes]

LIMIT = 4096  # bytes of a message
SIZES = [0, 1, 2, 5, 60, 124, 125, 126, 127, 200, 1000, 3000]
CLOSE_CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1011, 1012, 1014, 3000, 4999]
LETTERS = "abc \u00e4\u20ac\U0001f600\ufeff\x00"


class Ours:
    """What the engine makes of a stream."""

    def __init__(self, role: Role, engine: Engine | None = None) -> None:
        self._engine = engine or Engine(role, max_message_size=LIMIT)
        self.messages: list[str | bytes] = []
        self.control: list[tuple[int, bytes]] = []  # opcodes and payloads of pings and pongs
        self.end: tuple[Any, ...] | None = None  # the peer's close code and reason, or the code of a failure alone
        self.reason = ""  # of the failure

    def receive(self, data: bytes) -> None:
        while True:
            self.note(self._engine.receive(data))
            self.messages += self._engine.messages
            self._engine.messages.clear()
            if not self._engine.paused:
                return
            data = b""

    def note(self, events: Sequence[Event]) -> None:
        for event in events:
            assert self.end is None, "an event after the end"
            if isinstance(event, Close):
                self.end = tuple(event)
            elif isinstance(event, Failure):
                self.end, self.reason = (event.code,), event.reason
            else:
                self.control.append((PING if isinstance(event, Ping) else PONG, event.payload))


def kept(text: str) -> int:
    """Return how many bytes Python uses for a text's characters (PEP 393)."""
    widest = ord(max(text, default=" "))
    return len(text) * (1 if widest < 0x100 else 2 if widest < 0x10000 else 4)


class Theirs:
    """What the library makes of a stream. It yields frames; this class makes messages of them and validates text."""

    def __init__(self, role: Role) -> None:
        self._protocol = Protocol(Side.SERVER if role is Role.SERVER else Side.CLIENT, state=OPEN, max_size=LIMIT)
        self.messages: list[str | bytes] = []
        self.control: list[tuple[int, bytes]] = []
        self.end: tuple[Any, ...] | None = None
        self.frames = 0
        self.between_fragments = False
        self.error: Exception | None = None
        self._message = bytearray()
        self._utf8: codecs.IncrementalDecoder | None = None

    def receive(self, data: bytes) -> None:
        if self.end is not None:
            return
        protocol = self._protocol
        protocol.receive_data(data)
        for frame in protocol.events_received():
            assert isinstance(frame, TheirFrame)
            self.frames += 1
            try:
                self._take(frame)
            except UnicodeDecodeError:
                self.end = (1007,)
            if self.end is not None:
                return
        self.between_fragments = protocol.current_size is not None
        self.error = protocol.parser_exc
        if self.error is not None:
            assert protocol.close_sent is not None
            self.end = (int(protocol.close_sent.code),)
        elif protocol.close_rcvd is not None:
            self.end = (int(protocol.close_rcvd.code), protocol.close_rcvd.reason)

    def _take(self, frame: TheirFrame) -> None:
        if frame.opcode in (PING, PONG):
            self.control.append((int(frame.opcode), bytes(frame.data)))
        if frame.opcode in (TEXT, BINARY):
            self._message.clear()
            self._utf8 = codecs.getincrementaldecoder("utf-8")() if frame.opcode == TEXT else None
        if frame.opcode in (CONTINUATION, TEXT, BINARY):
            self._message += frame.data
            if self._utf8 is not None:
                self._utf8.decode(bytes(frame.data), frame.fin)
            if frame.fin:
                message = bytes(self._message) if self._utf8 is None else self._message.decode()
                if isinstance(message, str) and kept(message) > LIMIT:  # only the engine has this rule
                    self.end = (1009,)
                else:
                    self.messages.append(message)

    def close_between_fragments(self) -> tuple[Any, ...] | None:
        """Return the peer's close frame, if the library refused it because of its place between fragments."""
        close = self._protocol.close_rcvd
        if self.between_fragments and close is not None and not isinstance(self.error, UnicodeDecodeError):
            return (int(close.code), close.reason)
        return None

    def finish_frame(self) -> None:
        """Fill the frame that has begun with zeros: the library judges a frame only when it is whole."""
        frames = self.frames
        for _ in range(LIMIT + 14):
            if self.end is not None or self.frames > frames:
                return
            self.receive(b"\0")
        raise AssertionError("the library waits for more than a frame can have")


def takes_a_length_that_is_too_long(ours: Ours, theirs: Theirs) -> bool:
    """Whether the engine stopped at a length that is not in its shortest form (section 5.2) and the library did not.

    In a control frame the longer forms stand for a payload that is too long (section 5.5).
    """
    went_on = len(theirs.control) > len(ours.control) or theirs.end not in [(1002,), (1009,)]
    return ours.end == (1002,) and (
        "shortest form" in ours.reason or "longer than 125 bytes" in ours.reason and went_on
    )


def difference(ours: Ours, theirs: Theirs) -> str | None:
    """Why the two may end differently, or None if they may not."""
    if ours.end == (1002,) and theirs.end == (1009,):
        # The library looks at the length first: before the length's highest bit (5.2), the reserved bits (5.2), and the
        # question whether such a frame may come here at all (5.4, 5.5).
        return "a wrong frame that is too large as well is 1009 for the library"
    if ours.end == (1002,) and "close frame has a code" in ours.reason and isinstance(theirs.error, UnicodeDecodeError):
        return "7.4 and 8.1: where a close frame's code and reason are both wrong, the library reads the reason first"
    if theirs.end == (1002,) and ours.end is not None and ours.end == theirs.close_between_fragments():
        return "5.4: a close frame between fragments is refused by the library"
    return None


def compare(ours: Ours, theirs: Theirs, case: str) -> str | None:
    """Fail unless both made the same of one stream or differ in a way that is allowed; return that way, or None."""
    if ours.end is not None and theirs.end is None and "shortest form" not in ours.reason:
        theirs.finish_frame()  # the engine does not wait for its end
    if takes_a_length_that_is_too_long(ours, theirs):
        assert ours.messages == theirs.messages[: len(ours.messages)], case
        assert ours.control == theirs.control[: len(ours.control)], case
        return "5.2: a length that is not in its shortest form is taken by the library"
    if "too many fragments" in ours.reason:
        assert ours.messages == theirs.messages[: len(ours.messages)], case
        assert ours.control == theirs.control[: len(ours.control)], case
        return "the library has no limit on the fragments of a message"
    reason = None
    if ours.end != theirs.end:
        reason = difference(ours, theirs)
        assert reason is not None, f"{ours.end} {ours.reason!r}, they {theirs.end} {theirs.error!r}, {case}"
    assert ours.messages == theirs.messages, case
    assert ours.control == theirs.control, case
    return reason


# --- streams ----------------------------------------------------------------------------------------------------------


class Stream:
    """Random valid frames of a peer, and the messages and events that they must give."""

    def __init__(self, rng: random.Random, frame: Frame) -> None:
        self.frames: list[bytes] = []
        self.messages: list[str | bytes] = []
        self.control: list[tuple[int, bytes]] = []
        self.end: tuple[Any, ...] | None = None
        self._rng = rng
        self._frame = frame
        for _ in range(rng.randrange(1, 8)):
            self._add_message()
            self._add_control()
        if rng.random() < 0.5:
            code, reason = rng.choice(CLOSE_CODES), rng.choice(["", "bye", "\u20ac" * 41])
            self.end = (code, reason) if rng.random() < 0.8 else (1005, "")
            self._add(CLOSE, code.to_bytes(2, "big") + reason.encode() if self.end[0] != 1005 else b"")

    def _add(self, opcode: int, payload: bytes, fin: bool = True) -> None:
        self.frames.append(self._frame(opcode, payload, fin=fin, mask=self._rng.randbytes(4)))

    def _add_message(self) -> None:
        rng = self._rng
        size = rng.choice(SIZES)
        message: str | bytes = rng.randbytes(size)
        if rng.random() < 0.6:
            message = "".join(rng.choice(LETTERS) for _ in range(size // 3))
        self.messages.append(message)
        data = message.encode() if isinstance(message, str) else message
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice([0, 0, 1, 2, 5])))
        for i, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(data)], strict=True)):
            if i:
                self._add_control()
            opcode = CONTINUATION if i else TEXT if isinstance(message, str) else BINARY
            self._add(opcode, data[start:end], fin=i == len(cuts))

    def _add_control(self) -> None:
        rng = self._rng
        if rng.random() < 0.2:
            opcode, payload = rng.choice([PING, PONG]), rng.randbytes(rng.choice([0, 1, 4, 125]))
            self.control.append((opcode, payload))
            self._add(opcode, payload)


def mutated(rng: random.Random, frame: Frame, frames: Sequence[bytes]) -> bytes:
    """Return a stream in which something is wrong, mostly with a header."""
    frames = list(frames)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(frames))
        victim = bytearray(frames[at])
        kind = rng.randrange(10)
        if kind < 4 and victim:  # a bit flips, in the header or anywhere
            place = rng.randrange(min(len(victim), rng.choice([1, 2, 4, 14, 5000])))
            victim[place] ^= 1 << rng.randrange(8)
        elif kind == 4:  # bytes are missing
            start = rng.randrange(len(victim) + 1)
            del victim[start : start + rng.choice([1, 2, 4])]
        elif kind == 5:  # bytes are too many
            start = rng.randrange(len(victim) + 1)
            victim[start:start] = rng.randbytes(rng.choice([1, 2, 4]))
        elif kind == 6:  # frames are swapped
            other = rng.randrange(len(frames))
            frames[at], frames[other] = frames[other], frames[at]
            continue
        elif kind == 7:  # a frame is missing
            victim.clear()
        else:  # a frame is inserted that is never allowed, or not here
            victim += rng.choice(
                [
                    frame(rng.randrange(16), rng.randbytes(rng.choice([0, 2, 125, 126])), fin=rng.random() < 0.7),
                    frame(BINARY, rng.randbytes(rng.choice([LIMIT, LIMIT + 1]))),
                    frame(TEXT, size=rng.choice([LIMIT + 1, 65535])),
                    frame(BINARY, size=rng.choice([1 << 16, 1 << 32, (1 << 63) - 1])),
                    frame(CONTINUATION, rng.randbytes(LIMIT - 500), fin=rng.random() < 0.5),
                    frame(BINARY, size=rng.choice([1, 126, LIMIT + 1, 1 << 32, 1 << 63]), width=8),
                    frame(BINARY, rng.randbytes(100), width=2),
                    frame(TEXT, rng.choice(["caf\xe9", "\xed\xa0\x80", "\xe2\x82"]).encode("latin-1")),
                    frame(CLOSE, rng.randrange(5100).to_bytes(2, "big") + b"bye"),
                    frame(CLOSE, rng.choice([b"\x03", b"\x03\xe8\xff", b"\x03\xe8"])),
                ]
            )
        frames[at] = bytes(victim)
    return b"".join(frames)


def pieces(rng: random.Random, data: bytes) -> Iterator[bytes]:
    """Return the bytes as they may arrive: in segments of different sizes, or all of one size."""
    longest = rng.choice([1, 2, 10, 100, 1000, 100000])
    while data:
        size = rng.randrange(1, longest + 1)
        yield data[:size]
        data = data[size:]


# --- both engines -----------------------------------------------------------------------------------------------------


def test_valid_streams_give_the_same_messages(role: Role, frame: Frame) -> None:
    """They are also the messages that the streams were made of."""
    for seed in range(150):
        rng = random.Random(seed)
        stream = Stream(rng, frame)
        ours, theirs = Ours(role), Theirs(role)
        for piece in pieces(rng, b"".join(stream.frames)):
            ours.receive(piece)
            theirs.receive(piece)
        for one in (ours, theirs):
            assert one.messages == stream.messages, f"{type(one).__name__}, seed {seed}"
            assert one.control == stream.control, f"{type(one).__name__}, seed {seed}"
            assert one.end == stream.end, f"{type(one).__name__}, seed {seed}"


def test_mutated_streams_end_with_the_same_code(role: Role, frame: Frame) -> None:
    ends: Counter[tuple[Any, ...] | None] = Counter()
    differences: Counter[str] = Counter()
    seeds = 600
    for seed in range(seeds):
        rng = random.Random(seed)
        data = mutated(rng, frame, Stream(rng, frame).frames)
        ours, theirs = Ours(role), Theirs(role)
        for piece in pieces(rng, data):
            ours.receive(piece)
        theirs.receive(data)
        ends[ours.end if ours.end is None or len(ours.end) == 1 else ("close",)] += 1
        reason = compare(ours, theirs, f"seed {seed}: {data.hex()}")
        if reason is not None:
            differences[reason] += 1
    # Each outcome was seen often enough to mean something, and differences are the exception.
    assert min(ends[end] for end in [None, ("close",), (1002,), (1007,), (1009,)]) >= 10, ends
    assert sum(differences.values()) < seeds / 10, differences


# --- sending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", TheirOpcode)
def test_frames_are_encoded_alike(opcode: TheirOpcode) -> None:  # section 5.2
    sizes = [0, 1, 125, 126, 127, 65535, 65536, 100000] if opcode < CLOSE else [0, 1, 125]
    for fin, size in itertools.product([True, False] if opcode < CLOSE else [True], sizes):
        payload = (bytes(range(256)) * 400)[:size]
        assert encode_frame(opcode, payload, fin=fin) == TheirFrame(opcode, payload, fin).serialize(mask=False)


@pytest.mark.parametrize("code", CLOSE_CODES)
def test_close_payloads_are_encoded_alike(code: int) -> None:  # section 5.5.1
    protocol = Protocol(Side.SERVER, state=OPEN)
    protocol.send_close(code, "bye \u20ac")
    assert protocol.data_to_send() == [encode_frame(CLOSE, encode_close(code, "bye \u20ac"))]


def test_the_library_understands_what_is_sent(role: Role) -> None:  # section 5
    rng = random.Random(role.value)
    engine, theirs = Engine(role), Theirs(Role.CLIENT if role is Role.SERVER else Role.SERVER)
    messages: list[str | bytes] = []
    for size in SIZES:
        messages += ["\u20ac" * (size // 3), rng.randbytes(size)]
        theirs.receive(engine.send(messages[-2]) + engine.send(messages[-1]))
    theirs.receive(engine.frame(PING, b"?") + engine.frame(PONG, b"!"))
    theirs.receive(engine.frame(TEXT, b"\xe2\x82", fin=False) + engine.frame(CONTINUATION, b"\xac"))
    assert theirs.end is None
    theirs.receive(engine.close(CloseCode.SERVICE_RESTART, "back soon"))
    assert theirs.messages == [*messages, "\u20ac"]
    assert theirs.control == [(PING, b"?"), (PONG, b"!")]
    assert theirs.end == (1012, "back soon")


# --- the handshake ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subprotocols", [None, ["chat"], ["mqtt", "chat"]])
def test_handshake_of_the_librarys_client_is_answered_as_it_wants(subprotocols: list[Any] | None) -> None:  # section 4
    client = ClientProtocol(parse_uri("ws://example.com:8001/chat/?room=1"), subprotocols=subprotocols)
    client.send_request(client.connect())
    [data] = client.data_to_send()
    line, *lines = data.decode().rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    method, _, http_version = line.split(" ")
    handshake = check_request(method, http_version, headers)
    assert list(handshake.subprotocols) == (subprotocols or [])
    chosen = choose_subprotocol(handshake.subprotocols, ["chat"])
    answer = "".join(f"{name}: {value}\r\n" for name, value in accept_headers(handshake.key, chosen).items())
    client.receive_data(f"HTTP/1.1 101 Switching Protocols\r\n{answer}\r\n".encode())
    assert client.handshake_exc is None
    assert client.state is OPEN
    assert client.subprotocol == ("chat" if subprotocols else None)


@pytest.mark.parametrize("offered", [{}, {"Sec-WebSocket-Protocol": "mqtt, chat"}], ids=["", "subprotocols"])
def test_handshake_of_our_client_is_answered_by_the_librarys_server(offered: dict[str, str]) -> None:  # section 4
    client = ClientRequest(offered)
    server = ServerProtocol(subprotocols=["chat"] if offered else None)  # type: ignore[list-item]
    asked = {
        "Host": "example.com",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": client.key,
        "Sec-WebSocket-Version": "13",
        **offered,
    }
    lines = ["GET /chat/ HTTP/1.1", *(f"{name}: {value}" for name, value in asked.items()), "", ""]
    server.receive_data("\r\n".join(lines).encode())
    [request] = server.events_received()
    assert isinstance(request, Request)
    response = server.accept(request)
    assert response.status_code == 101
    headers = {name.lower(): value for name, value in response.headers.raw_items()}
    assert client.check_response(response.status_code, headers) == ("chat" if offered else None)
    assert headers["sec-websocket-accept"] == accept_headers(client.key)["Sec-WebSocket-Accept"]


def test_library_has_no_limit_on_fragments(role: Role, frame: Frame) -> None:
    data = frame(BINARY, b"", fin=False) + frame(CONTINUATION, b"", fin=False) * 2000
    ours, theirs = Ours(role), Theirs(role)
    ours.receive(data)
    theirs.receive(data)
    assert compare(ours, theirs, "2,001 fragments") == "the library has no limit on the fragments of a message"

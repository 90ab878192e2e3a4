"""Streams that nobody has thought of: random bytes, random frames, and valid streams that are then damaged.

`fuzz.py` checks what must hold for each of them. With CI in the environment the streams are the same each time.
Sections are those of RFC 6455.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from django_websocket.protocol.engine import Engine, Role

from ..support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from .fuzz import BoundedEngine, check, check_input, pieces
from .test_engine_against_websockets import LIMIT, Ours

CORPUS = sorted(Path(__file__).with_name("corpus").iterdir())
OPCODES = [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG]

pytestmark = pytest.mark.timeout(400)  # Hypothesis needs time to find the shortest stream that fails
both_roles = pytest.mark.parametrize("role", Role, ids=lambda role: role.value)


def examples(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return settings(max_examples=count, deadline=None, database=None, derandomize=bool(os.environ.get("CI")))


# --- streams ----------------------------------------------------------------------------------------------------------

masks = st.sampled_from([bytes(4), b"\x37\xfa\x21\x3d"]) | st.binary(min_size=4, max_size=4)
texts = st.text(max_size=40).map(str.encode)
payloads = texts | st.binary(max_size=140) | st.integers(0, LIMIT + 1).map(bytes)
close_payloads = st.builds(
    lambda code, reason: code.to_bytes(2, "big") + reason, st.integers(990, 1020) | st.integers(0, 65535), texts
)
sizes = st.sampled_from([0, 1, 125, 126, 127, LIMIT, LIMIT + 1, 65535, 65536, 1 << 32, (1 << 63) - 1, 1 << 63])


@st.composite
def right_frames(draw: st.DrawFn, role: Role) -> bytes:
    """A frame that is right in itself, if perhaps not in its place."""
    opcode = draw(st.sampled_from(OPCODES))
    fin = opcode >= CLOSE or draw(st.booleans())
    payload = draw(close_payloads | st.just(b"") if opcode == CLOSE else payloads)
    return encode(opcode, payload[:125] if opcode >= CLOSE else payload, fin=fin, mask=draw(masks), role=role)


@st.composite
def any_frames(draw: st.DrawFn, role: Role) -> bytes:
    """A frame in which anything may be wrong."""
    payload = draw(payloads)
    return encode(
        draw(st.integers(0, 15)),
        payload,
        fin=draw(st.booleans()),
        rsv=draw(st.sampled_from([0, 0, 0, 1, 2, 4, 7])),
        size=draw(st.just(len(payload)) | sizes),
        width=draw(st.sampled_from([None, None, 2, 8])),
        mask=draw(masks),
        role=draw(st.sampled_from([role, role, *Role])),
    )


def encode(
    opcode: int,
    payload: bytes,
    *,
    fin: bool,
    mask: bytes,
    role: Role,
    rsv: int = 0,
    size: int | None = None,
    width: int | None = None,
) -> bytes:
    """Encode a frame for this end; it declares the length `size` in `width` bytes (0, 2 or 8; section 5.2)."""
    if size is None:
        size = len(payload)
    if width is None or size >= 1 << 16:
        width = 0 if size < 126 else 2 if size < 1 << 16 else 8
    masked = role is Role.SERVER
    head = bytes((fin << 7 | rsv << 4 | opcode, masked << 7 | {0: size, 2: 126, 8: 127}[width]))
    head += size.to_bytes(8, "big")[8 - width :]
    if not masked:
        return head + payload
    return head + mask + bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))


@st.composite
def conversations(draw: st.DrawFn, role: Role) -> bytes:
    """Messages, some in fragments, with control frames in between, and maybe a close, all of them valid."""
    stream = b""
    for opcode, parts in draw(
        st.lists(st.tuples(st.sampled_from([TEXT, BINARY]), st.lists(payloads, min_size=1, max_size=4)), max_size=6)
    ):
        if opcode == TEXT:
            data = draw(st.text(max_size=200)).encode()
            cuts = sorted(draw(st.integers(0, len(data))) for _ in parts[1:])
            parts = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        for at, part in enumerate(parts):
            last = at == len(parts) - 1
            stream += encode(CONTINUATION if at else opcode, part[:900], fin=last, mask=draw(masks), role=role)
            if draw(st.integers(0, 3)) == 0:
                kind, payload = draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=125))
                stream += encode(kind, payload, fin=True, mask=draw(masks), role=role)
    if draw(st.booleans()):
        stream += encode(CLOSE, b"\x03\xe8bye", fin=True, mask=draw(masks), role=role)
    return stream


@st.composite
def mutated(draw: st.DrawFn, role: Role) -> bytes:
    """A conversation in which bits are flipped and bytes are missing or added."""
    stream = bytearray(draw(conversations(role)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(stream)))
        kind = draw(st.integers(0, 3))
        if kind < 2 and at < len(stream):
            stream[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 2:
            del stream[at : at + draw(st.integers(1, 8))]
        else:
            stream[at:at] = draw(st.binary(min_size=1, max_size=8) | any_frames(role))
    return bytes(stream)


@st.composite
def bursts(draw: st.DrawFn, role: Role) -> bytes:
    """Short messages, more than the queue takes, with a ping here and there."""
    short = st.tuples(st.sampled_from([TEXT, TEXT, BINARY, PING]), st.text("ab\u20ac", max_size=3).map(str.encode))
    frames = draw(st.lists(short, min_size=4, max_size=40))
    return b"".join(encode(opcode, payload, fin=True, mask=bytes(4), role=role) for opcode, payload in frames)


def streams(role: Role) -> st.SearchStrategy[bytes]:
    frames = st.lists(right_frames(role) | any_frames(role), min_size=1, max_size=8).map(b"".join)
    return st.binary(max_size=300) | frames | bursts(role) | conversations(role) | mutated(role)


@st.composite
def segments(draw: st.DrawFn, role: Role) -> list[bytes]:
    """A stream as it may arrive."""
    data = draw(streams(role))
    if draw(st.booleans()):
        return list(pieces(data, draw(st.integers(1, 20))))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


# --- what must hold for them ------------------------------------------------------------------------------------------


@both_roles
def test_any_stream_in_any_segments(role: Role) -> None:
    """Nothing is raised or held beyond the limits, and the result is the library's, however the stream is cut."""

    @examples(400)
    @given(segments(role), st.integers(1, 16), st.sampled_from([1, 200, LIMIT]))
    def run(segments: list[bytes], max_queued_messages: int, max_queued_bytes: int) -> None:
        check(role, segments, max_queued_messages=max_queued_messages, max_queued_bytes=max_queued_bytes)

    run()


@both_roles
def test_valid_conversation_is_taken_whole(role: Role) -> None:
    @examples(100)
    @given(conversations(role), st.integers(1, 5000))
    def run(data: bytes, size: int) -> None:
        made = check(role, pieces(data, size))
        assert made.end in (None, (1000, "bye")), made.reason

    run()


@both_roles
def test_what_one_end_sends_the_other_receives(role: Role) -> None:
    @examples(100)
    @given(st.lists(st.text(max_size=200) | st.binary(max_size=200)), st.integers(1, 300))
    def run(messages: list[str | bytes], size: int) -> None:
        engine = Engine(Role.CLIENT if role is Role.SERVER else Role.SERVER)
        data = b"".join(map(engine.send, messages)) + engine.close(3000, "bye")
        made = check(role, pieces(data, size))
        assert (made.messages, made.control, made.end) == (messages, [], (3000, "bye"))

    run()


@both_roles
def test_nothing_is_allocated_for_what_has_not_come(role: Role) -> None:  # section 10.4
    @examples(100)
    @given(st.lists(any_frames(role), min_size=1, max_size=8).map(b"".join), st.integers(1, 5000))
    @example(encode(BINARY, b"", size=(1 << 63) - 1, fin=True, mask=bytes(4), role=role), 1)
    def run(data: bytes, size: int) -> None:
        engine = BoundedEngine(role, max_message_size=LIMIT)
        arriving = list(pieces(data, size))
        tracemalloc.start()
        try:
            for piece in arriving:
                engine.receive(piece)
                engine.messages.clear()
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert most < 4 * (LIMIT + size) + 64 * 1024

    run()


@both_roles
def test_nothing_is_taken_after_the_end(role: Role) -> None:  # sections 5.5.1 and 7.1.7
    @examples(100)
    @given(streams(role), st.binary(max_size=50))
    def run(data: bytes, more: bytes) -> None:
        engine = Engine(role, max_message_size=LIMIT)
        made = Ours(role, engine)
        made.receive(data)
        if made.end is not None:
            assert not engine.receive(more) and not engine.messages and not engine.paused

    run()


@pytest.mark.parametrize("case", CORPUS, ids=lambda path: path.name)
def test_corpus(case: Path) -> None:
    check_input(case.read_bytes())

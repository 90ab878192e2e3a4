"""What one connection counts of messages and bytes, beside what its client has sent and got."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from django.test import override_settings

from django_websocket.protocol.deflate import Agreement
from django_websocket.protocol.engine import Engine, Role
from django_websocket.pubsub import publish
from django_websocket.transport.connection import Connection
from django_websocket.transport.limits import Limits
from django_websocket.transport.subprotocol import Greeting

from .support.brokers import delivered, forward
from .support.frames import PING, TEXT, build, close_frame, frame
from .support.waiting import until
from .support.wire import Pairs, Peer

LIMIT = 100_000


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    with Pairs() as pairs:
        yield pairs


@pytest.fixture(autouse=True)
def memory(key: str) -> Iterator[None]:
    with override_settings(WEBSOCKET_BROKER=f"memory://{key}", WEBSOCKET_OUTBOX_SIZE=LIMIT):
        yield


def received(connection: Connection) -> tuple[int, int]:
    return connection.received_messages, connection.received_bytes


def size_of(peer: Peer) -> int:
    """Bytes that have come to the client."""
    return sum(map(len, peer.segments))


def text_frame(text: str) -> bytes:
    """The bytes of a text message from the server."""
    return build(TEXT, text.encode())


def texts(peer: Peer) -> int:
    """Messages that have come to the client."""
    return sum(frame.opcode == TEXT for frame in peer.frames)


@pytest.mark.parametrize("iterates", [False, True])
def test_messages_count_once_whether_they_wait_or_were_taken(pairs: Pairs, iterates: bool) -> None:
    sent = [frame("one"), frame(b"two" * 1000), frame("thr", TEXT, fin=False) + frame("ee", 0)]
    connection, peer = pairs(early=b"".join(sent[:1]))
    peer.write(b"".join(sent[1:]))
    until(lambda: connection.received_bytes == len(b"".join(sent)))
    assert (connection.received_messages, connection.taken) == (3, 0)
    if iterates:
        messages = iter(connection)
        assert [next(messages) for _ in sent] == ["one", b"two" * 1000, "three"]
    else:
        assert [connection.receive() for _ in sent] == ["one", b"two" * 1000, "three"]
    assert (connection.received_messages, connection.taken) == (3, 3)


def test_control_frames_count_as_bytes_alone(pairs: Pairs) -> None:
    connection, peer = pairs()
    ping, end = frame(b"are you there?", PING), close_frame(1000)
    peer.write(ping + end)
    until(lambda: peer.pump() or peer.ended)
    peer.until_end()
    assert received(connection) == (0, len(ping + end))
    assert (connection.sent_messages, connection.sent_bytes) == (0, size_of(peer))


@pytest.mark.parametrize("compressed", [False, True])
def test_messages_that_nobody_wants_count_as_received(pairs: Pairs, compressed: bool) -> None:
    agreement = Agreement(threshold=1) if compressed else None
    client = Engine(Role.CLIENT, agreement=agreement)
    sent = [client.send("x" * 300) for _ in range(40)]  # more than an inbox holds
    connection, peer = pairs(discard=True, agreement=agreement)
    for one in sent:
        peer.write(one)
        gevent.sleep(0)  # else they come together
    until(lambda: received(connection) == (40, len(b"".join(sent))))
    assert connection.taken == 0


def test_messages_that_wait_when_the_view_closes_count_as_received(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.text("a", "b", "c")
    until(lambda: len(connection.inbox) == 3)
    assert connection.receive() == "a"
    connection.close()
    assert (connection.received_messages, connection.taken) == (3, 1)


def test_what_the_view_sends_and_what_is_published_count_as_sent(pairs: Pairs) -> None:
    connection, peer = pairs()
    with forward(connection, "news"):
        connection.send("by the view")
        connection.send("long " * 5_000)
        for number in range(5):
            publish("news", f"news {number}")
        delivered()
    peer.until_frames(7)
    assert (connection.sent_by_view, connection.forwarded, connection.sent_messages) == (2, 5, 7)
    assert size_of(peer) == connection.sent_bytes


def test_the_response_that_accepts_is_not_counted(pairs: Pairs) -> None:
    head = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
    connection, peer = pairs(head=head)
    connection.send("hello")
    gevent.sleep(0)
    until(lambda: peer.pump() and size_of(peer) == len(head) + len(text_frame("hello")))
    assert connection.sent_bytes == len(text_frame("hello"))
    other, client = pairs(head=head)
    client.abort()
    other.close()
    until(lambda: not other.connected)
    assert other.sent_bytes >= 0


def test_only_bytes_that_the_kernel_has_taken_count_as_sent(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True, limits=Limits(send_buffer_size=1 << 20))
    connection.send("x" * 500_000)
    assert 0 < connection.sent_bytes < 500_000
    assert connection.sent_bytes + connection.unsent_bytes == len(text_frame("x" * 500_000))
    until(lambda: peer.pump() and len(peer.frames) == 1)
    assert (connection.sent_bytes, connection.unsent_bytes) == (size_of(peer), 0)


@pytest.mark.parametrize("on_slow", ["drop_oldest", "latest"])
def test_messages_that_are_dropped_do_not_count_as_sent(pairs: Pairs, on_slow: Any) -> None:
    connection, peer = pairs(narrow=True, limits=Limits(outbox_size=LIMIT))
    with forward(connection, "news", on_slow=on_slow):
        for number in range(100):
            publish("news", f"{number} ".ljust(2000, "."))
        delivered()
        until(lambda: peer.pump() and peer.frames and peer.frames[-1].text.startswith("99 "))
        assert connection.sent_messages == texts(peer) < 100
        assert connection.sent_bytes == size_of(peer)


def test_what_the_subprotocol_says_by_itself_counts_as_bytes_alone(pairs: Pairs) -> None:
    connection, peer = pairs(greeting=Greeting())
    hello = frame('{"hello": {}}')
    peer.write(hello)
    until(lambda: connection.received_bytes == len(hello))
    with forward(connection, "news"):
        publish("news", "published")
        delivered()
    connection.send("by the view")
    peer.until_frames(4)  # the messages, and that a subscription begins and ends
    assert (connection.received_messages, connection.sent_messages) == (0, 2)
    assert connection.sent_bytes == size_of(peer)

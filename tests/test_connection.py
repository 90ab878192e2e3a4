"""One connection over a real socket: what it receives and sends, in which order, and how it ends."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import patch

import gevent
import pytest

from django_websocket.exceptions import ConnectionClosed, WebSocketError
from django_websocket.protocol.frames import CloseCode, encode_message
from django_websocket.transport.connection import Connection
from django_websocket.transport.deadlines import TICK, sweep_of_loop
from django_websocket.transport.limits import Limits
from django_websocket.transport.liveness import MESSAGE_PACE, MESSAGE_TIME
from django_websocket.transport.shared import CROWD, MAX_DELAY, MAX_HELD, open_connections
from django_websocket.transport.state import OPEN

from .support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, close, close_frame, frame, text
from .support.waiting import until
from .support.wire import Pairs, Peer, own_clock, packet_pair, tcp_pair, tick, unix_pair

ROOMY = Limits(send_buffer_size=1 << 30, outbox_size=1 << 30)


def echo(connection: Connection) -> None:
    """Answer each message with itself, as a view."""
    while (message := connection.receive()) is not None:
        connection.send(message)


def time_out() -> None:
    """Let a close timeout of half a second pass: what is left of the tick that goes on, and a whole one."""
    tick()
    tick()


def received(connection: Connection) -> list[str | bytes]:
    """Receive everything up to the end."""
    return list(iter(connection.receive, None))


def send_each(peer: Peer, messages: Iterable[str | bytes]) -> None:
    """Send messages, each in a segment of its own."""
    for message in messages:
        peer.text(message)


def send_until_closed(connection: Connection) -> None:
    """Send more than the kernel takes, until the connection ends."""
    with pytest.raises(ConnectionClosed):
        connection.send("x" * 10_000_000)


def fill(connection: Connection, size: int = 400_000) -> list[Frame]:
    """Push frames, which the client does not read, until the kernel takes no more; return them."""
    frames: list[Frame] = []
    while not connection._outbox.size:
        frames.append(text(f"{len(frames)}" + "." * size))
        connection.push(encode_message(frames[-1].payload.decode()))
    return frames


# --- messages ---------------------------------------------------------------------------------------------------


def test_messages_of_one_segment_are_all_received_with_their_types(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.text("a", b"b", "", b"", "\u00e9\U0001f600", "x" * 70_000)
    assert [connection.receive() for _ in range(6)] == ["a", b"b", "", b"", "\u00e9\U0001f600", "x" * 70_000]


def test_a_message_may_come_byte_by_byte(pairs: Pairs) -> None:
    connection, peer = pairs()
    view = gevent.spawn(connection.receive)
    for byte in frame("hello"):
        peer.write(bytes((byte,)))
        gevent.sleep(0)
    assert view.get(timeout=5) == "hello"


def test_bytes_behind_the_handshake_belong_to_the_connection(pairs: Pairs) -> None:
    early = frame("first") + frame("second") + frame("third")[:-2]
    connection, peer = pairs(early=early)
    assert [connection.receive(), connection.receive()] == ["first", "second"]


def test_a_frame_may_begin_behind_the_handshake_and_end_later(pairs: Pairs) -> None:
    whole = frame("split")
    connection, peer = pairs(early=whole[:4])
    peer.write(whole[4:])
    assert connection.receive() == "split"


def test_a_whole_conversation_may_come_with_the_handshake(pairs: Pairs) -> None:
    connection, peer = pairs(early=frame("only") + close_frame(1001))
    assert not connection.at_end
    assert connection.receive() == "only"
    connection.send("answer")
    assert connection.receive() is None
    assert peer.until_end() == [text("answer"), close(1001)]


@pytest.mark.parametrize("limits", [Limits(inbox_messages=2), Limits(inbox_size=3000)], ids=["by messages", "by bytes"])
def test_a_full_inbox_holds_the_client_back_until_it_drains(pairs: Pairs, limits: Limits) -> None:
    connection, peer = pairs(limits=limits)
    messages = [f"{number:04}" + "." * 1000 for number in range(2000)]
    writer = gevent.spawn(send_each, peer, messages)
    sent = -1

    def stuck() -> bool:  # nothing more is read although the loop runs
        nonlocal sent
        before, sent = sent, connection._engine.paused and bool(connection.inbox)
        return before is True and sent is True and not connection._reader.active

    until(stuck)
    assert not writer.ready()
    assert len(connection.inbox) <= 3
    assert [connection.receive() for _ in messages] == messages
    writer.get(timeout=5)


def test_more_messages_of_one_segment_than_the_inbox_holds_are_received_in_order(pairs: Pairs) -> None:
    connection, peer = pairs(limits=Limits(inbox_messages=4))
    messages = [str(number) for number in range(1000)]
    peer.text(*messages)
    assert [connection.receive() for _ in messages] == messages


def test_a_paused_connection_reads_on_for_the_close_frame(pairs: Pairs) -> None:
    connection, peer = pairs(limits=Limits(inbox_messages=4))
    messages = [str(number) for number in range(10)]
    peer.write(b"".join(map(frame, messages)) + close_frame(1001, "bye"))
    assert received(connection) == messages
    assert (connection.close_code, connection.close_reason) == (1001, "bye")
    assert peer.until_end() == [close(1001, "bye")]


def test_one_chatty_client_does_not_starve_another(pairs: Pairs) -> None:
    chatty, chatty_peer = pairs()
    quiet, quiet_peer = pairs()
    seen = []

    def count(connection: Connection, name: str) -> None:
        while connection.receive() is not None:
            seen.append(name)

    for connection, name in ((chatty, "chatty"), (quiet, "quiet")):
        gevent.spawn(count, connection, name)
    chatty_peer.write(frame("x") * 20_000)
    quiet_peer.text("x")
    until(lambda: len(seen) == 20_001)
    assert seen.index("quiet") < 10_000


def test_an_echo_in_little_pieces_loses_nothing(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True)
    view = gevent.spawn(echo, connection)
    messages = [random.randbytes(random.choice((0, 1, 100, 5000, 70_000))) for _ in range(60)]
    writer = gevent.spawn(send_each, peer, messages)
    assert peer.until_frames(60) == [Frame(BINARY, message) for message in messages]
    writer.get(timeout=5)
    peer.close_frame()
    view.get(timeout=5)


# --- control frames ---------------------------------------------------------------------------------------------


def test_a_ping_is_answered_while_nobody_receives(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.text("waits")
    peer.ping(b"are you there?")
    peer.ping()
    assert peer.until_frames(2) == [Frame(PONG, b"are you there?"), Frame(PONG, b"")]
    assert connection.receive() == "waits"


def test_a_ping_between_the_fragments_of_a_message_is_answered(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.write(frame(b"a", TEXT, fin=False))
    peer.ping(b"!")
    assert peer.until_frames(1) == [Frame(PONG, b"!")]
    peer.write(frame(b"b", CONTINUATION))
    assert connection.receive() == "ab"


def test_a_ping_does_not_wake_the_receiver(pairs: Pairs) -> None:
    connection, peer = pairs()
    view = gevent.spawn(connection.receive)
    for _ in range(3):
        peer.ping()
    peer.until_frames(3)
    assert not view.ready()
    peer.text("now")
    assert view.get(timeout=5) == "now"


def test_only_the_newest_of_the_pongs_that_the_kernel_does_not_take_waits(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True)
    filling = fill(connection)
    for number in range(500):
        peer.ping(b"%d" % number)
    peer.text("behind the pings")
    assert connection.receive() == "behind the pings"
    expected = [*filling, Frame(PONG, b"499")]
    assert peer.until_frames(len(expected)) == expected
    peer.text("and")
    assert connection.receive() == "and"
    connection.send("nothing more")
    expected.append(text("nothing more"))
    assert peer.until_frames(len(expected)) == expected


def tiny_tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return a TCP connection whose window is smaller than a segment, so that the kernel takes parts of frames."""
    with socket.socket() as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        return server, socket.socket(fileno=client.detach())


def test_a_client_that_pings_without_reading_gets_whole_pongs_later(pairs: Pairs) -> None:
    """If the kernel has taken part of a pong, the rest must still be sent."""
    for _ in range(10):
        connection, peer = pairs(sockets=tiny_tcp_pair)
        for first in range(0, 800, 20):
            pings = (b"%03d" % number + b"." * random.randrange(50, 120) for number in range(first, first + 20))
            peer.write(b"".join(frame(payload, PING) for payload in pings))
            gevent.sleep(0.001)
        until(lambda peer=peer: peer.pump() and peer.frames and peer.frames[-1].payload[:3] == b"799")  # type: ignore[misc]
        assert {frame.opcode for frame in peer.frames} == {PONG}
        numbers = [int(frame.payload[:3]) for frame in peer.frames]
        assert numbers == sorted(set(numbers))
        assert all(not frame.payload[3:].strip(b".") for frame in peer.frames)


# --- the outbox -------------------------------------------------------------------------------------------------


def test_answers_to_messages_of_one_segment_leave_in_one_segment(pairs: Pairs) -> None:
    connection, peer = pairs(sockets=packet_pair)
    gevent.spawn(echo, connection)
    gevent.sleep(0)
    peer.text("a", "b", "c")
    assert peer.until_frames(3) == [text("a"), text("b"), text("c")]
    assert len(peer.segments) == 1


def test_a_queued_answer_leaves_as_soon_as_the_view_lets_the_loop_run(pairs: Pairs) -> None:
    connection, peer = pairs()
    go_on = gevent.event.Event()

    def view() -> None:
        connection.receive()
        connection.send("first answer")
        go_on.wait()  # the second message is in the inbox
        connection.receive()
        connection.send("second answer")

    running = gevent.spawn(view)
    gevent.sleep(0)
    peer.text("a", "b")
    assert peer.until_frames(1) == [text("first answer")]
    go_on.set()
    assert peer.until_frames(2) == [text("first answer"), text("second answer")]
    running.get(timeout=5)


def answer_in_turn(pairs: Pairs, clients: int, messages: list[str], **options: Any) -> tuple[list[Peer], list[int]]:
    """Have many clients' messages come in the same turn of the loop, and the view of each answer with `messages`.

    Returns the clients and, for each view in the order in which they ran, how many clients had an answer before it.
    """
    made = [pairs(**options) for _ in range(clients)]
    peers = [peer for _, peer in made]
    answered_before = []

    def view(connection: Connection) -> None:
        assert connection.receive() == "question"
        answered_before.append(sum(peer.readable() for peer in peers))
        for message in messages:
            connection.send(message)

    views = [gevent.spawn(view, connection) for connection, _ in made]
    gevent.sleep(0)
    for peer in peers:
        peer.text("question")
    with patch("django_websocket.transport.shared.MAX_DELAY", 60.0):  # however busy this machine is
        gevent.joinall(views, timeout=5, raise_error=True)
    return peers, answered_before


def test_answers_to_clients_whose_messages_came_together_leave_when_all_were_read(pairs: Pairs) -> None:
    peers, answered_before = answer_in_turn(pairs, CROWD + 3, ["one", "two"], sockets=packet_pair)
    assert answered_before == [0, 0, 0, *range(CROWD)]  # for the last ones, too few others wait
    for peer in peers:
        assert peer.until_frames(2) == [text("one"), text("two")]
    assert sorted(len(peer.segments) for peer in peers) == [1] * 3 + [2] * CROWD


def test_the_first_of_many_clients_whose_messages_came_together_is_not_answered_last(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_websocket.transport.shared.MAX_UNSENT", 5)
    peers, answered_before = answer_in_turn(pairs, 5 + 2 + CROWD, ["answer"])
    assert answered_before == [0] * 5 + [5] * 2 + [*range(5, 5 + CROWD)]
    for peer in peers:
        assert peer.until_frames(1) == [text("answer")]


def test_an_answer_does_not_wait_while_other_views_compute(pairs: Pairs) -> None:
    made = [pairs() for _ in range(CROWD + 6)]
    answered_before = []

    def view(connection: Connection) -> None:
        connection.receive()
        answered_before.append(sum(peer.readable() for _, peer in made))
        time.sleep(MAX_DELAY * 1.5)
        connection.send("answer")

    views = [gevent.spawn(view, connection) for connection, _ in made]
    gevent.sleep(0)
    for _, peer in made:
        peer.text("question")
    gevent.joinall(views, timeout=5, raise_error=True)
    assert answered_before[:6] == [0, 0, 2, 2, 4, 4]  # the second is sent 1.5 MAX_DELAY after the first


def test_a_message_of_a_view_that_its_client_did_not_wake_is_sent_at_once(pairs: Pairs) -> None:
    made = [pairs() for _ in range(CROWD + 2)]
    answered: list[bool] = []

    def read(peer: Peer) -> None:
        if not answered:  # the first of many in this turn
            connection, of_connection = made[0]
            connection.send("news")
            answered.append(of_connection.readable())

    watchers = [gevent.get_hub().loop.io(peer.sock.fileno(), 2) for _, peer in made]
    for watcher, (_, peer) in zip(watchers, made, strict=True):
        watcher.start(read, peer)
    until(lambda: answered)
    for watcher in watchers:
        watcher.stop()
        watcher.close()
    assert answered == [True]


def test_an_answer_is_sent_at_once_if_no_other_client_waits(pairs: Pairs) -> None:
    connection, peer = pairs()

    def view() -> bool:
        connection.receive()
        connection.send("answer")
        return peer.readable()

    running = gevent.spawn(view)
    gevent.sleep(0)
    peer.text("question")
    assert running.get(timeout=5)


def test_a_limited_amount_is_held_back_for_other_clients(pairs: Pairs) -> None:
    messages = ["." * 1000] * 40
    peers, answered_before = answer_in_turn(pairs, CROWD + 2, messages, sockets=packet_pair)
    assert answered_before == [*range(CROWD + 2)]
    for peer in peers:
        assert peer.until_frames(40) == [text(messages[0])] * 40
        assert max(map(len, peer.segments)) < MAX_HELD + 2000


def test_an_answer_that_was_held_back_for_a_client_that_vanished_is_dropped(pairs: Pairs) -> None:
    made = [pairs() for _ in range(CROWD + 1)]

    def view(connection: Connection, peer: Peer) -> None:
        connection.receive()
        connection.send("answer")
        if not peer.readable():  # held back
            peer.abort()
            connection._close_socket()

    views = [gevent.spawn(view, *pair) for pair in made]
    gevent.sleep(0)
    for _, peer in made:
        peer.text("question")
    gevent.joinall(views, timeout=5, raise_error=True)
    gevent.sleep(0.01)
    assert sorted(connection.connected for connection, _ in made) == [False] + [True] * CROWD


@pytest.mark.parametrize("then", ["nothing", "a send", "a push", "a close", "an early ping", "an early close"])
def test_the_head_is_sent_before_anything_else(pairs: Pairs, then: str) -> None:
    early = {"an early ping": frame(b".", PING), "an early close": close_frame(1001)}.get(then, b"")
    connection, peer = pairs(head=encode_message("head"), early=early)
    if then == "a send":
        connection.send("greeting")
    elif then == "a push":
        connection.push(encode_message("greeting"))
    elif then == "a close":
        connection.close(1001)
    follows = {"a send": text("greeting"), "a push": text("greeting"), "an early ping": Frame(PONG, b".")}
    expected = [text("head"), *([follows[then]] if then in follows else [close(1001)] if "close" in then else [])]
    assert peer.until_frames(len(expected)) == expected
    assert len(peer.segments) == 1


def test_the_heads_of_clients_that_came_together_leave_together(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_websocket.transport.shared.MAX_DELAY", 60.0)
    monkeypatch.setattr("django_websocket.transport.shared.MAX_UNSENT", 5)
    peers: list[Peer] = []
    answered_before = []
    for _ in range(7):
        answered_before.append(sum(peer.readable() for peer in peers))
        peers.append(pairs(head=encode_message("head"))[1])
    assert answered_before == [0] * 5 + [5, 5]  # the first is not answered last
    gevent.sleep(0)
    assert all(peer.readable() for peer in peers)


def test_a_head_does_not_wait_while_other_heads_are_made(pairs: Pairs) -> None:
    _, first = pairs(head=encode_message("head"))
    time.sleep(MAX_DELAY * 1.5)
    assert not first.readable()
    _, second = pairs(head=encode_message("head"))
    assert first.readable()
    assert second.readable()


def test_a_client_that_left_before_its_head_has_vanished(pairs: Pairs) -> None:
    connection, peer = pairs(head=encode_message("head"), sockets=tcp_pair)
    peer.abort()
    gevent.sleep(0.01)
    assert connection.receive() is None
    assert (connection.connected, connection.close_code) == (False, CloseCode.ABNORMAL)


@pytest.mark.parametrize("held", ["a head", "an answer"])
def test_output_that_was_held_back_reaches_a_client_that_half_closes(pairs: Pairs, held: str) -> None:
    connection, peer = pairs(head=encode_message("held") if held == "a head" else b"")

    def view() -> None:
        connection.receive()
        connection.send("held")
        connection._on_readable()  # the end comes before the flush

    if held == "a head":
        peer.half_close()
        connection._on_readable()
    else:
        running = gevent.spawn(view)
        gevent.sleep(0)
        peer.text("one", "two")
        peer.half_close()
        running.get(timeout=5)
    assert peer.until_end() == [text("held")]


def test_a_head_waits_until_there_is_room_for_it(pairs: Pairs) -> None:
    head = "head" * 100_000
    connection, peer = pairs(head=encode_message(head), narrow=True)
    gevent.sleep(0)
    connection.push(encode_message("news"))
    assert peer.until_frames(2) == [text(head), text("news")]


@pytest.mark.parametrize("waits", ["a push", "a close", "a push and a close"])
def test_nothing_overtakes_a_queued_answer(pairs: Pairs, waits: str) -> None:
    connection, peer = pairs()

    def view() -> None:
        connection.receive()
        connection.send("answer")
        assert not peer.readable(), "the answer is not held back"
        if "push" in waits:
            connection.push(encode_message("push"))
        if "close" in waits:
            connection.close(1000)

    gevent.spawn(view)
    gevent.sleep(0)
    peer.text("a", "b")
    expected = [text("answer")]
    if "push" in waits:
        expected.append(text("push"))
    if "close" in waits:
        expected.append(close(1000))
    assert peer.until_frames(len(expected)) == expected


def test_sends_and_pushes_keep_their_order_when_the_kernel_takes_nothing(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True, limits=ROOMY)
    expected = fill(connection)
    for number in range(100):
        expected.append(text(f"{number}" + "." * random.choice((0, 5, 200, 3000))))
        message = expected[-1].payload.decode()
        if number % 3:
            connection.send(message)
        else:
            connection.push(encode_message(message))
    connection.close(4000, "done")
    expected.append(close(4000, "done"))
    assert peer.until_frames(len(expected)) == expected


@pytest.mark.parametrize("size", [500, 400_000])
def test_a_waiting_pong_leaves_before_a_message_that_is_sent_after_it(pairs: Pairs, size: int) -> None:
    connection, peer = pairs(narrow=True, limits=ROOMY)
    filling = fill(connection, size)
    peer.ping(b"1")
    peer.text("behind the ping")
    connection.receive()
    connection.send("after the ping")
    expected = [*filling, Frame(PONG, b"1"), text("after the ping")]
    assert peer.until_frames(len(expected)) == expected


@pytest.mark.parametrize("frames", [1, 3])
def test_what_comes_late_does_not_count_as_what_the_client_is_too_slow_for(pairs: Pairs, frames: int) -> None:
    connection, peer = pairs(narrow=True, limits=Limits(outbox_size=20_000))
    late, frame = encode_message("x" * 300_000), encode_message("y" * 4_000)
    connection.push_late(*[late] * frames)
    for _ in range(4):
        connection.push(frame)
    assert connection.close_code is None
    found = peer.until_frames(frames + 4)
    assert [len(each.payload) for each in found] == [300_000] * frames + [4_000] * 4
    connection.push_late(late)
    for _ in range(6):
        connection.push(frame)
    assert connection.close_code == CloseCode.TRY_AGAIN_LATER


@pytest.mark.parametrize("size", [500, 400_000])
def test_nothing_follows_the_close_frame(pairs: Pairs, size: int) -> None:
    connection, peer = pairs(narrow=True)
    filling = fill(connection, size)
    peer.ping(b"1")
    peer.text("behind the ping")
    connection.receive()
    connection.close(1000)
    peer.ping(b"2")
    peer.close_frame(1000)
    assert peer.until_end() == [*filling, Frame(PONG, b"1"), close(1000)]


def test_a_queued_answer_leaves_before_a_pong_that_was_asked_for_later(pairs: Pairs) -> None:
    connection, peer = pairs()
    asked = gevent.event.Event()

    def view() -> None:
        connection.receive()
        connection.send("answer")
        asked.set()
        gevent.sleep(0)

    gevent.spawn(view)
    gevent.sleep(0)
    peer.text("a", "b")
    until(asked.is_set)
    peer.ping(b"1")
    assert peer.until_frames(2) == [text("answer"), Frame(PONG, b"1")]


@pytest.mark.parametrize("sockets", [unix_pair, tcp_pair], ids=["unix", "tcp"])
def test_frames_of_many_senders_never_mix(
    pairs: Pairs, sockets: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    connection, peer = pairs(narrow=True, limits=Limits(outbox_size=1 << 30), sockets=sockets)
    rng = random.Random(7)

    def sender(name: str) -> None:
        for number in range(40):
            message = f"{name}{number:03}" + name * rng.choice((0, 3, 130, 5000, 70_000))
            if name in "pq":
                connection.push(encode_message(message))
            else:
                connection.send(message)
            gevent.sleep(0)

    def ping() -> None:
        for number in range(50):
            peer.ping(b"%d" % number)
            gevent.sleep(0.001)

    senders = [gevent.spawn(sender, name) for name in "abcpq"]
    pinger = gevent.spawn(ping)
    texts: list[str] = []

    def read() -> bool:
        peer.pump(3001)
        texts[:] = [frame.payload.decode() for frame in peer.frames if frame.opcode == TEXT]
        return len(texts) == 200

    until(read, 30)
    for name in "abcpq":
        own = [message for message in texts if message[0] == name]
        assert [int(message[1:4]) for message in own] == list(range(40))
        assert all(message[4:].strip(name) == "" for message in own)
    pongs = [int(frame.payload) for frame in peer.frames if frame.opcode == PONG]
    assert pongs == sorted(set(pongs))
    gevent.joinall(senders, timeout=5, raise_error=True)
    pinger.get(timeout=5)


def test_send_waits_for_a_client_that_does_not_read_and_goes_on_when_it_does(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True, limits=Limits(send_buffer_size=10_000))
    sent = []

    def view() -> None:
        for number in range(200):
            connection.send(f"{number:03}" + "." * 1000)
            sent.append(number)

    running = gevent.spawn(view)
    until(lambda: connection._drained is not None and not connection._drained.is_set())
    assert 0 < len(sent) < 100
    assert connection._outbox.size < 10_000 + 2000
    frames = peer.until_frames(200)
    assert [int(frame.payload[:3]) for frame in frames] == list(range(200))
    running.get(timeout=5)


def test_send_to_a_client_that_never_reads_closes_with_1008(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True, limits=Limits(send_buffer_size=10_000, send_timeout=0.1))
    view = gevent.spawn(connection.send, "x" * 100_000)
    with pytest.raises(ConnectionClosed) as closed:
        view.get(timeout=5)
    assert closed.value.code == connection.close_code == 1008
    assert connection.at_end
    frames = peer.until_frames(2)
    assert frames[0] == text("x" * 100_000)  # this frame had begun, and is finished before the close frame
    assert frames[1].payload[:2] == (1008).to_bytes(2, "big")


def test_every_waiting_sender_learns_that_the_connection_has_ended(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True, limits=Limits(send_buffer_size=1000))
    views = [gevent.spawn(connection.send, "x" * 100_000) for _ in range(3)]
    until(lambda: connection._drained is not None)
    peer.sock.close()
    for view in views:
        with pytest.raises(ConnectionClosed) as closed:
            view.get(timeout=5)
        assert closed.value.code == 1006


def test_a_push_over_the_limit_closes_with_1013_without_waiting(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True, limits=Limits(outbox_size=100_000))
    other, other_peer = pairs()
    ended = []
    connection.call_on_end(lambda: ended.append(1))
    frame = encode_message("x" * 30_000)
    pushed = 0
    while connection.close_code is None:
        connection.push(frame)
        other.push(encode_message("y"))
        pushed += 1
        assert pushed < 100
    connection.push(frame)  # without effect
    assert connection.close_code == 1013
    assert connection.receive() is None
    frames = peer.until_frames(1)
    peer.close_frame(1013)
    frames = peer.until_end()
    assert frames[-1].opcode == CLOSE and frames[-1].payload[:2] == (1013).to_bytes(2, "big")
    assert set(frames[:-1]) == {text("x" * 30_000)}
    assert len(frames) < pushed
    assert other_peer.until_frames(pushed) == [text("y")] * pushed
    assert ended == [1]


def test_the_outbox_of_a_client_that_was_given_up_is_not_kept(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True, limits=Limits(outbox_size=500_000))
    for _ in range(10):
        connection.push(encode_message("x" * 100_000))
    assert connection.close_code == 1013
    assert connection._outbox.size < 200_000


# --- the end ----------------------------------------------------------------------------------------------------


def test_the_server_closes(pairs: Pairs) -> None:
    connection, peer = pairs()
    view = gevent.spawn(connection.receive)
    gevent.sleep(0)
    connection.close(4001, "go")
    assert view.get(timeout=5) is None
    assert connection.at_end
    assert (connection.close_code, connection.close_reason) == (4001, "go")
    assert peer.until_frames(1) == [close(4001, "go")]
    assert connection.connected and not peer.pump()  # until the client has answered
    peer.close_frame(4001)
    assert peer.until_end() == [close(4001, "go")]
    until(lambda: not connection.connected)
    assert connection.close_code == 4001


def test_the_client_closes(pairs: Pairs) -> None:
    connection, peer = pairs()
    view = gevent.spawn(connection.receive)
    peer.close_frame(3333, "bye")
    assert view.get(timeout=5) is None
    assert (connection.close_code, connection.close_reason) == (3333, "bye")
    assert peer.until_end() == [close(3333, "bye")]
    assert not connection.connected and not peer.reset
    assert connection.receive() is None


def test_the_client_closes_while_nobody_receives(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.close_frame(1000)
    assert peer.until_end() == [close(1000)]
    assert connection.at_end


def test_a_close_frame_without_a_code_is_answered_with_another(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.write(frame(b"", CLOSE))
    assert peer.until_end() == [Frame(CLOSE, b"")]
    assert connection.close_code == 1005


def test_both_close_at_the_same_time(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.close_frame(1001)
    connection.close(1000)
    assert peer.until_end() == [close(1000)]
    assert connection.close_code == 1000
    assert not connection.connected


def test_a_close_that_is_never_answered_ends_the_connection(pairs: Pairs) -> None:
    connection, peer = pairs(limits=Limits(close_timeout=1))
    own_clock()
    connection.close(1000)
    for _ in range(2):  # the first tick may come at once
        tick()
        gevent.sleep(0.001)  # sleep(0) would not let the loop look at its sockets
        assert connection.connected
    tick()
    assert peer.until_end() == [close(1000)]
    assert not connection.connected


def test_a_close_frame_that_the_kernel_never_takes_ends_the_connection(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True, limits=Limits(close_timeout=0.5))
    own_clock()
    fill(connection)
    connection.close(1000)
    time_out()
    assert not connection.connected


def test_a_client_that_answers_a_close_with_chatter_is_let_go(pairs: Pairs) -> None:
    connection, peer = pairs(limits=Limits(close_timeout=0.5))
    own_clock()
    connection.close(1000)
    peer.text(*["never read"] * 1000)
    peer.until_frames(1)
    time_out()
    peer.until_end()
    assert not connection.connected


def test_close_is_answered_behind_messages_that_are_dropped(pairs: Pairs) -> None:
    connection, peer = pairs(limits=Limits(inbox_messages=2))
    peer.write(b"".join(map(frame, map(str, range(50)))))
    until(lambda: connection.inbox)
    connection.close(1000)
    assert connection.receive() is None
    peer.close_frame(1000)
    assert peer.until_end() == [close(1000)]


@pytest.mark.parametrize("sockets", [unix_pair, tcp_pair], ids=["unix", "tcp"])
@pytest.mark.parametrize("size", [10, 3_000_000])
def test_data_after_the_clients_close_frame_is_ignored(
    pairs: Pairs, sockets: Callable[[], tuple[socket.socket, socket.socket]], size: int
) -> None:
    connection, peer = pairs(sockets=sockets)
    data = close_frame(1000) + frame("late") * (size // 10) + frame(b"", PING)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while data:  # send as much as possible
            data = data[peer.offer(data) :]
            if connection.state is not OPEN:
                break
            gevent.sleep(0)
    assert peer.until_end() == [close(1000)]
    assert connection.receive() is None


def test_a_message_and_a_close_in_one_segment(pairs: Pairs) -> None:
    connection, peer = pairs()
    view = gevent.spawn(connection.receive)
    gevent.sleep(0)
    peer.write(frame("last") + frame("words") + close_frame(1001, "bye"))
    assert view.get(timeout=5) == "last"
    assert not connection.at_end
    connection.send("LAST")
    assert connection.receive() == "words"
    assert connection.at_end
    connection.send("WORDS")
    assert not peer.until_frames(2)[2:]
    assert connection.receive() is None
    assert peer.until_end() == [text("LAST"), text("WORDS"), close(1001, "bye")]
    with pytest.raises(WebSocketError):
        connection.send("too late")


def test_a_message_and_a_close_that_are_answered_by_a_close(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.write(frame("last") + close_frame(1001))
    assert connection.receive() == "last"
    connection.close()
    assert peer.until_end() == [close(1001)]


def test_a_clients_close_is_answered_although_the_view_does_not_take_the_last_message(pairs: Pairs) -> None:
    connection, peer = pairs(limits=Limits(close_timeout=0.5))
    own_clock()
    peer.write(frame("last") + close_frame(1000))
    until(lambda: connection.state is not OPEN)
    assert not peer.pump()
    time_out()
    assert peer.until_end() == [close(1000)]


def test_a_message_before_the_close_is_not_lost_to_a_view_that_receives_late(pairs: Pairs) -> None:
    connection, peer = pairs(limits=Limits(close_timeout=0.5))
    own_clock()
    peer.write(frame("last") + close_frame(1000))
    until(lambda: connection.state is not OPEN)
    time_out()
    peer.until_end()
    assert connection.receive() == "last"
    assert connection.receive() is None


@pytest.mark.parametrize("sockets", [unix_pair, tcp_pair], ids=["unix", "tcp"])
@pytest.mark.parametrize(
    "bad, code",
    [
        (b"\x83\x80\0\0\0\0", 1002),  # a reserved opcode
        (b"\x81\x01a", 1002),  # not masked
        (b"\xf1\x80\0\0\0\0", 1002),  # reserved bits
        (b"\x81\x82\0\0\0\0\xc3\x28", 1007),  # not UTF-8
        (b"\x82\xff\0\0\0\0\x7f\xff\xff\xff\0\0\0\0", 1009),  # 2 GiB
        (b"\x88\x82\0\0\0\0\x03\xed", 1002),  # the close code 1005
    ],
)
def test_bad_data_after_a_good_message(
    pairs: Pairs, bad: bytes, code: int, sockets: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    connection, peer = pairs(sockets=sockets)
    view = gevent.spawn(echo, connection)
    peer.write(frame("good") + bad)
    frames = peer.until_frames(2)
    assert frames[0] == text("good")
    assert frames[1].opcode == CLOSE and frames[1].payload[:2] == code.to_bytes(2, "big")
    view.get(timeout=5)
    assert connection.close_code == code
    peer.half_close()
    assert peer.until_end() == frames and not peer.reset


def test_bad_data_is_refused_while_nobody_receives(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.write(b"\x81\x01a")
    assert peer.until_frames(1)[0].payload[:2] == (1002).to_bytes(2, "big")
    assert connection.at_end


def test_a_client_that_keeps_sending_after_its_failure_still_reads_why(pairs: Pairs) -> None:
    connection, peer = pairs(sockets=tcp_pair, limits=Limits(close_timeout=0.5))
    own_clock()
    whole = frame("x" * 60_000)
    peer.write(b"\x81\x01a" + whole * 20)
    for _ in range(20):
        peer.write(whole)
    assert peer.until_end()[0].payload[:2] == (1002).to_bytes(2, "big")
    assert not peer.reset
    assert connection.connected  # until the client has closed, too
    time_out()
    assert not connection.connected


def test_a_message_over_the_limit_is_refused_by_its_header(pairs: Pairs) -> None:
    connection, peer = pairs(limits=Limits(max_message_size=1000))
    peer.write(frame("x" * 1000))
    assert connection.receive() == "x" * 1000
    peer.write(frame("x" * 1001)[:8])
    assert peer.until_frames(1)[0].payload[:2] == (1009).to_bytes(2, "big")


def test_a_half_closed_connection_has_ended(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.text("before")
    peer.half_close()
    assert peer.until_end() == []
    assert received(connection) == ["before"]
    assert connection.close_code == 1006


def test_a_client_may_half_close_after_its_close_frame(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.close_frame(1000)
    peer.half_close()
    assert peer.until_end() == [close(1000)]
    assert connection.close_code == 1000


def test_the_last_message_of_a_client_that_half_closes_after_its_close_frame_is_answered(pairs: Pairs) -> None:
    connection, peer = pairs(sockets=tcp_pair)
    peer.write(frame("last") + close_frame(1000))
    peer.half_close()
    until(lambda: connection.state is not OPEN)
    gevent.sleep(0)
    assert connection.receive() == "last"
    connection.send("answer")
    assert connection.receive() is None
    assert peer.until_end() == [text("answer"), close(1000)]


@pytest.mark.parametrize("state", ["idle", "in a frame", "received", "sending", "closing", "corked", "paused"])
def test_a_reset_ends_the_connection(pairs: Pairs, state: str) -> None:
    limits = Limits(send_buffer_size=1000, inbox_messages=1)
    connection, peer = pairs(sockets=tcp_pair, narrow=state == "sending", limits=limits)
    own_clock()
    view: gevent.Greenlet[..., Any] | None = None
    if state == "in a frame":
        peer.write(frame(b"", PING) + frame("half a frame")[:7])
        peer.until_frames(1)
    elif state == "received":
        view = gevent.spawn(received, connection)
        gevent.sleep(0)
    elif state == "sending":
        view = gevent.spawn(send_until_closed, connection)
        until(lambda: connection._drained is not None)
    elif state == "closing":
        connection.close(1000)
    elif state == "corked":
        peer.text("a")
        until(lambda: connection.inbox)
        connection.send("answer")
    elif state == "paused":
        peer.text("a", "b", "c")
        until(lambda: connection._engine.paused)
    peer.abort()
    if state == "paused":
        assert received(connection) == ["a", "b", "c"]
    until(lambda: not connection.connected)
    if view is not None:
        view.get(timeout=5)
    assert connection.close_code == (1000 if state == "closing" else 1006)
    with pytest.raises(ConnectionClosed):
        connection.send("nobody")
    connection.push(encode_message("nobody"))
    connection.close()
    tick()


def test_messages_that_came_before_the_client_vanished_are_received(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.text("a", "b")
    peer.sock.close()
    until(lambda: not connection.connected)
    assert not connection.at_end
    assert received(connection) == ["a", "b"]
    assert connection.at_end


def test_sending_to_a_client_that_has_vanished_soon_raises(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.sock.close()
    with pytest.raises(ConnectionClosed) as closed:
        for _ in range(3):
            connection.send("x")
    assert closed.value.code == 1006
    assert "1006" in str(closed.value)


def test_an_invalid_close_code_is_the_callers_error(pairs: Pairs) -> None:
    connection, peer = pairs()
    for code in (0, 999, 1005, 1006, 1015, 2000, 5000):
        with contextlib.suppress(ValueError):
            connection.close(code)
            assert code == 1005  # 1005 means a frame without a code
            break
        assert not connection.at_end and connection.close_code is None


def test_closing_again_has_no_effect(pairs: Pairs) -> None:
    connection, peer = pairs()
    connection.close(4000)
    connection.close(4001)
    peer.close_frame()
    assert peer.until_end() == [close(4000)]
    connection.close(4002)
    assert connection.close_code == 4000


def test_a_long_reason_is_cut_to_what_fits(pairs: Pairs) -> None:
    connection, peer = pairs()
    connection.close(1000, "\u20ac" * 100)
    assert peer.until_frames(1) == [close(1000, "\u20ac" * 41)]


def test_a_message_that_is_sent_before_the_close_arrives_before_it(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True, limits=Limits(send_buffer_size=1 << 20))
    connection.send("x" * 500_000)
    connection.close(1000)
    assert peer.until_frames(2) == [text("x" * 500_000), close(1000)]


def test_callbacks_for_the_end_are_called_once_and_not_before_it(pairs: Pairs) -> None:
    connection, peer = pairs()
    ended = []
    connection.call_on_end(lambda: ended.append(connection.connected))
    connection.close()
    peer.until_frames(1)
    assert ended == []
    peer.close_frame()
    peer.until_end()
    assert ended == [False]


def test_open_connections_are_those_with_a_socket(pairs: Pairs) -> None:
    one, one_peer = pairs()
    two, _ = pairs()
    assert {one, two} <= open_connections()
    one_peer.close_frame()
    one_peer.until_end()
    assert one not in open_connections() and two in open_connections()


def test_the_number_of_a_closed_descriptor_may_be_reused_at_once(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True)
    fill(connection)  # both watchers run
    number = connection._sock.fileno()
    peer.sock.close()
    until(lambda: not connection.connected)
    left, right = socket.socketpair()
    with left, right:
        assert number in (left.fileno(), right.fileno())
        left.send(b"x")
        right.send(b"y")
        gevent.sleep(0.01)
        assert (left.recv(5), right.recv(5)) == (b"y", b"x")


# --- receiving and dropping -------------------------------------------------------------------------------------


def test_discarded_input_is_read_and_dropped_while_control_frames_work(pairs: Pairs) -> None:
    connection, peer = pairs(discard=True, limits=Limits(inbox_messages=2, inbox_size=1000))
    for _ in range(200):
        peer.text(*["x" * 1000] * 20)
    peer.ping(b"1")
    assert peer.until_frames(1) == [Frame(PONG, b"1")]
    assert not connection.inbox
    connection.send("still here")
    assert peer.until_frames(2)[1:] == [text("still here")]
    peer.text("x")
    peer.close_frame(1001)
    assert peer.until_end()[2:] == [close(1001)]


def test_a_ping_among_discarded_messages_beyond_the_inbox_is_answered(pairs: Pairs) -> None:
    connection, peer = pairs(discard=True, limits=Limits(inbox_messages=2))
    peer.write(frame("x") * 9 + frame(b"1", PING) + frame("x") * 9)
    peer.write(close_frame(1000))
    assert peer.until_end() == [Frame(PONG, b"1"), close(1000)]
    assert connection.receive() is None


def test_bad_data_is_refused_although_input_is_discarded(pairs: Pairs) -> None:
    connection, peer = pairs(discard=True)
    peer.write(frame("x") + b"\x81\x01a")
    assert peer.until_frames(1)[0].payload[:2] == (1002).to_bytes(2, "big")


def test_input_can_be_dropped_from_any_time_on(pairs: Pairs) -> None:
    connection, peer = pairs(limits=Limits(inbox_messages=2))
    peer.text(*map(str, range(50)))
    until(lambda: connection.inbox)
    connection.drop_input()
    peer.ping(b"1")
    assert peer.until_frames(1) == [Frame(PONG, b"1")]
    assert not connection.inbox


def test_the_close_behind_dropped_input_is_answered_at_once(pairs: Pairs) -> None:
    connection, peer = pairs()
    peer.write(frame("x") + close_frame(1000))
    until(lambda: connection.state is not OPEN)
    connection.drop_input()
    until(lambda: peer.pump() or peer.ended, 2)  # well before close_timeout ends
    assert peer.until_end() == [close(1000)]
    assert connection.close_code == 1000


# --- waiting ----------------------------------------------------------------------------------------------------


def test_a_second_receiver_gets_an_error_and_the_first_its_message(pairs: Pairs) -> None:
    connection, peer = pairs()
    first = gevent.spawn(connection.receive)
    gevent.sleep(0)
    for timeout in (None, 5):
        second = gevent.spawn(connection.receive, timeout)
        with pytest.raises(RuntimeError, match="(?i)another greenlet"):
            second.get(timeout=5)
    assert not first.ready()
    peer.text("for the first")
    assert first.get(timeout=5) == "for the first"
    third = gevent.spawn(connection.receive)
    gevent.sleep(0)
    peer.text("for the third")
    assert third.get(timeout=5) == "for the third"


def test_receive_gives_up_after_its_timeout_and_loses_nothing(pairs: Pairs) -> None:
    connection, peer = pairs()
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError):
            connection.receive(timeout=timeout)
    peer.text("a", "b")
    assert connection.receive(timeout=5) == "a"
    assert connection.receive(timeout=0) == "b"
    peer.close_frame()
    assert connection.receive(timeout=5) is None
    assert connection.receive(timeout=0) is None


def test_half_a_message_does_not_end_the_wait(pairs: Pairs) -> None:
    connection, peer = pairs()
    whole = frame("whole")
    peer.write(whole[:5])
    with pytest.raises(TimeoutError):
        connection.receive(timeout=0.05)
    peer.write(whole[5:])
    assert connection.receive(timeout=5) == "whole"


def test_a_timeout_of_the_user_ends_the_wait_and_loses_nothing(pairs: Pairs) -> None:
    connection, peer = pairs()
    for timeout in (None, 5):
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            connection.receive(timeout)
        with gevent.Timeout(0.01, False):  # type: ignore[arg-type]
            connection.receive(timeout)
    view = gevent.spawn(connection.receive)
    gevent.sleep(0)
    view.kill()
    peer.text("not lost")
    assert connection.receive() == "not lost"


def test_an_exception_thrown_when_the_message_has_come_causes_no_wrong_switch(pairs: Pairs) -> None:
    connection, peer = pairs()
    got: list[str | bytes | None] = []

    def view() -> None:
        while not got or got[-1] != "end":
            try:
                with gevent.Timeout(random.choice((0.0001, 0.001, 0.002))):
                    got.append(connection.receive(random.choice((None, 0.0005, 0.002))))
            except (gevent.Timeout, TimeoutError):
                gevent.sleep(0)

    running = gevent.spawn(view)
    for number in range(300):
        peer.text(str(number))
        gevent.sleep(random.choice((0, 0.0005, 0.001)))
    peer.text("end")
    running.get(timeout=10)
    assert got == [*map(str, range(300)), "end"]
    assert pairs.errors == []


def test_the_end_wakes_the_receiver_whatever_causes_it(pairs: Pairs) -> None:
    ends: tuple[Callable[[Connection, Peer], object], ...] = (
        lambda connection, peer: connection.close(),
        lambda connection, peer: peer.close_frame(),
        lambda connection, peer: peer.sock.close(),
        lambda connection, peer: peer.write(b"\x81\x01a"),
    )
    for end in ends:
        connection, peer = pairs()
        view = gevent.spawn(connection.receive)
        gevent.sleep(0)
        end(connection, peer)
        assert view.get(timeout=5) is None


# --- time -------------------------------------------------------------------------------------------------------

QUICK = Limits(ping_interval=1, ping_timeout=1, close_timeout=0.5, inbox_messages=4)  # pings have two ticks each


def test_a_silent_client_is_sent_a_ping_and_closed_with_1011_if_it_does_not_answer(pairs: Pairs) -> None:
    connection, peer = pairs(limits=QUICK)
    own_clock()
    view = gevent.spawn(connection.receive)
    gevent.sleep(0)
    tick()
    assert not peer.pump()
    tick()
    assert peer.until_frames(1)[0].opcode == PING
    tick()
    assert connection.close_code is None
    tick()
    assert view.get(timeout=5) is None
    assert connection.close_code == 1011
    assert not connection.connected  # a dead client does not answer a close frame


def ticks_until_closed(connection: Connection, peer: Peer, begun: bytes, piece: bytes, at_most: int) -> int:
    """Begin a message, and in each tick send a piece more and a pong; return the number of ticks, up to `at_most`."""
    peer.write(begun)
    until(lambda: connection._engine.unfinished[0])
    for number in range(at_most):
        if connection.state is not OPEN:
            return number
        before = connection._engine.unfinished
        peer.write(piece + frame(b"?", PONG))
        while connection._engine.unfinished == before if piece else connection._liveness.heard < sweep_of_loop().now:
            gevent.sleep(0.001)
        tick()
    return at_most


@pytest.mark.parametrize("discard", [False, True], ids=["received", "dropped"])
@pytest.mark.parametrize("interval", [20.0, 1000.0])
@pytest.mark.parametrize("piece", [b"", frame(b"x" * 200, CONTINUATION, fin=False)], ids=["nothing", "a little"])
def test_message_that_never_ends_is_closed_with_1008(
    pairs: Pairs, piece: bytes, interval: float, discard: bool
) -> None:
    connection, peer = pairs(limits=Limits(ping_interval=interval), discard=discard)
    own_clock()
    seconds = ticks_until_closed(connection, peer, frame("x" * 1000, fin=False), piece, 400) * TICK
    assert MESSAGE_TIME < seconds < 3 * MESSAGE_TIME
    assert (connection.close_code, connection.close_reason) == (1008, "its message does not come to an end")
    assert peer.until_frames(1)[-1].close[0] == 1008


def test_slow_but_steady_upload_is_received(pairs: Pairs) -> None:
    connection, peer = pairs()
    own_clock()
    size = int(MESSAGE_PACE * TICK) + 1
    ticks_until_closed(connection, peer, frame("begin", fin=False), frame(b"x" * size, CONTINUATION, fin=False), 400)
    peer.write(frame(b"", CONTINUATION))
    assert connection.receive(timeout=5) == "begin" + "x" * size * 400


@pytest.mark.parametrize("what", ["pong", "message", "ping", "half a frame"])
def test_any_byte_is_a_sign_of_life(pairs: Pairs, what: str) -> None:
    connection, peer = pairs(limits=QUICK)
    own_clock()
    whole = frame("." * 100)
    for number in range(10):
        tick()
        tick()
        if what == "pong":
            peer.write(frame(b"", PONG) + frame("x"))
        elif what == "message":
            peer.text("x")
        elif what == "ping":
            peer.ping()
            peer.text("x")
        else:
            peer.write(whole[number : number + 1])
            until(lambda: connection._liveness.heard == sweep_of_loop().now)
            continue
        assert connection.receive(timeout=5) == "x"
    assert connection.close_code is None


def test_a_dead_client_whose_buffers_are_full_is_let_go(pairs: Pairs) -> None:
    connection, peer = pairs(narrow=True, limits=QUICK)
    own_clock()
    fill(connection)
    for _ in range(4):
        tick()
    assert connection.close_code == 1011
    assert not connection.connected


def test_keepalive_does_not_judge_a_client_while_its_input_is_not_read(pairs: Pairs) -> None:
    connection, peer = pairs(limits=QUICK)
    own_clock()
    peer.text(*map(str, range(10)))
    until(lambda: connection._engine.paused)
    for _ in range(3):
        tick()
    assert [connection.receive(timeout=5) for _ in range(10)] == [str(number) for number in range(10)]
    tick()
    gevent.sleep(0)
    assert connection.close_code is None


def test_an_inbox_that_stays_full_closes_with_1008(pairs: Pairs) -> None:
    connection, peer = pairs(limits=QUICK)
    own_clock()
    peer.text(*map(str, range(10)))
    until(lambda: connection._engine.paused)
    for _ in range(20):
        tick()
    assert connection.close_code == 1008
    assert peer.until_end()[-1].payload[:2] == (1008).to_bytes(2, "big")


def test_a_view_that_receives_slowly_is_not_taken_for_one_that_does_not_receive(pairs: Pairs) -> None:
    connection, peer = pairs(limits=QUICK)
    own_clock()
    peer.text(*map(str, range(10)))
    until(lambda: connection._engine.paused)
    got = []
    for _ in range(10):
        got.append(connection.receive(timeout=5))
        gevent.sleep(0)
        if connection._engine.paused:
            tick()
            tick()
        assert connection.close_code is None, f"closed after {len(got)} messages"
    assert got == [str(number) for number in range(10)]


def test_latency_is_the_time_that_a_ping_took(pairs: Pairs) -> None:
    connection, peer = pairs(limits=QUICK)
    own_clock()
    peer.write(frame(bytes(8), PONG) + frame("w"))  # answers a ping that was never sent
    assert connection.receive(timeout=5) == "w"
    assert connection.latency is None
    tick()
    tick()
    (ping,) = peer.until_frames(1)
    peer.write(frame(b"unasked", PONG))
    until(lambda: connection._liveness.heard == sweep_of_loop().now)
    peer.write(frame(b"unasked", PONG) + frame("x"))
    assert connection.receive(timeout=5) == "x"
    assert connection.latency is None
    gevent.sleep(0.05)
    peer.write(frame(ping.payload, PONG) + frame("y"))
    assert connection.receive(timeout=5) == "y"
    latency = connection.latency
    assert latency is not None
    assert 0.05 <= latency < 5
    peer.write(frame(ping.payload, PONG) + frame("z"))  # the same pong once more
    assert connection.receive(timeout=5) == "z"
    assert connection.latency == latency


def test_the_sweep_forgets_connections_that_have_ended(pairs: Pairs) -> None:
    sweep = sweep_of_loop()
    before = sum(map(len, sweep._due.values()))
    made = [pairs() for _ in range(5)]
    for _, peer in made:
        peer.write(close_frame(1000))
    until(lambda: not any(connection.connected for connection, _ in made))
    assert sum(map(len, sweep._due.values())) == before


def test_the_sweep_watches_over_all_connections(pairs: Pairs) -> None:
    made = [pairs(limits=Limits(ping_interval=0.5)) for _ in range(5)]
    for _, peer in made:
        assert peer.until_frames(1)[0].opcode == PING


# --- TLS --------------------------------------------------------------------------------------------------------


def tls_context(purpose: int) -> ssl.SSLContext:
    """Return a context that encrypts without certificates, which TLS allowed before version 1.3."""
    context = ssl.SSLContext(purpose)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES128-SHA:@SECLEVEL=0")
    return context


def tls_pair() -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    server, client = socket.socketpair()
    accepted = []
    thread = threading.Thread(
        target=lambda: accepted.append(tls_context(ssl.PROTOCOL_TLS_SERVER).wrap_socket(server, server_side=True))
    )
    thread.start()
    encrypted = tls_context(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(client)
    thread.join()
    return accepted[0], encrypted


class TLSPeer(Peer):
    def offer(self, data: bytes | memoryview) -> int:
        try:
            return self.sock.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def pump(self, limit: int = 1 << 20) -> bool:
        try:
            return super().pump(limit)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except ssl.SSLEOFError:
            self.ended = True
            return True


def test_everything_arrives_through_tls(pairs: Pairs) -> None:
    server, client = tls_pair()
    connection, _ = pairs(sockets=lambda: (server, client), narrow=True, limits=Limits(inbox_messages=4))
    peer = TLSPeer(client)
    view = gevent.spawn(echo, connection)
    messages = [str(number) + "." * random.choice((0, 100, 20_000, 200_000)) for number in range(40)]
    writer = gevent.spawn(send_each, peer, messages)
    assert peer.until_frames(40) == list(map(text, messages))
    writer.get(timeout=5)
    peer.text(*map(str, range(100)))
    assert peer.until_frames(140)[40:] == [text(str(number)) for number in range(100)]
    peer.close_frame(1000)
    assert peer.until_end()[140:] == [close(1000)]
    view.get(timeout=5)


def test_a_frame_that_tls_could_not_send_is_sent_before_anything_else(pairs: Pairs) -> None:
    """OpenSSL has encrypted it already, and skips as many bytes of whatever is sent next."""
    server, client = tls_pair()
    connection, _ = pairs(sockets=lambda: (server, client), narrow=True)
    peer = TLSPeer(client)
    expected: list[Frame] = []
    while not connection._blocked:
        expected.append(text(f"news {len(expected)}".ljust(60, ".")))
        frame = encode_message(expected[-1].payload.decode())
        assert connection.offer([frame], frame) == 1
    assert connection.offer([frame], frame) == 0
    expected.append(text("." * 150))
    connection.send("." * 150)
    assert peer.until_frames(len(expected)) == expected


def test_a_failure_is_reported_through_tls(pairs: Pairs) -> None:
    server, client = tls_pair()
    connection, _ = pairs(sockets=lambda: (server, client))
    peer = TLSPeer(client)
    peer.write(b"\x81\x01a")
    assert peer.until_frames(1)[0].payload[:2] == (1002).to_bytes(2, "big")
    assert connection.close_code == CloseCode.PROTOCOL_ERROR
    peer.text("still sending")
    client.close()
    until(lambda: not connection.connected)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_close_behind_a_full_inbox_waits_for_the_answer_to_the_last_message(pairs: Pairs, count: int) -> None:
    """The inbox holds two messages, so the close frame is parsed when the view has taken the last of them."""
    connection, peer = pairs(limits=Limits(inbox_messages=2))

    def echo() -> None:
        for message in connection:
            connection.send(message)

    view = gevent.spawn(echo)
    peer.write(b"".join([frame(str(number)) for number in range(count)] + [close_frame()]))
    view.get(timeout=5)
    received = peer.until_end()
    assert [frame.payload for frame in received[:-1]] == [str(number).encode() for number in range(count)]
    assert received[-1].opcode == CLOSE


def test_a_callback_for_the_end_that_fails_does_not_keep_the_others_from_being_called(
    pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    connection, peer = pairs()
    told: list[str] = []

    def fail() -> None:
        raise ValueError("this one is broken")

    for call in (lambda: told.append("one"), fail, lambda: told.append("two")):
        connection.call_on_end(call)
    peer.sock.close()
    assert connection.receive() is None
    assert told == ["one", "two"]
    until(lambda: "a callback for its end failed: ValueError" in caplog.text)

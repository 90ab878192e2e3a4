"""Clients and views that fall behind: which messages are dropped, and that nobody else has to wait."""

from __future__ import annotations

import gc
import resource
import selectors
import socket
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest
import redis as redis_py
from django.test import override_settings

from django_websocket import pubsub
from django_websocket.exceptions import MessagesMissed
from django_websocket.protocol.deflate import Agreement
from django_websocket.protocol.engine import Engine, Role
from django_websocket.pubsub import publish, subscribe
from django_websocket.transport.connection import Connection
from django_websocket.transport.limits import Limits
from django_websocket.transport.state import OPEN

from .support.brokers import delivered, forward
from .support.clients import RawClient
from .support.fixtures import StartSite
from .support.frames import CLOSE, PONG, TEXT, Frame, close, text
from .support.servers import Server
from .support.waiting import until
from .support.wire import Pairs, Peer, packet_pair

LOSSY = ["drop_oldest", "latest"]
LIMIT = 100_000


@pytest.fixture(autouse=True)
def memory(key: str, pairs: Pairs) -> Iterator[None]:
    with override_settings(WEBSOCKET_BROKER=f"memory://{key}", WEBSOCKET_OUTBOX_SIZE=LIMIT):
        yield


def numbered(count: int, size: int = 2000, channel: str = "news") -> list[str]:
    """Publish `count` messages, each with its number; return them."""
    messages = [f"{channel} {number} ".ljust(size, ".") for number in range(count)]
    for message in messages:
        publish(channel, message)
    delivered()
    return messages


def stuck(pairs: Pairs, **options: Any) -> tuple[Connection, Peer]:
    """A client that reads only when its peer is pumped, with a kernel buffer of just a few KiB."""
    return pairs(narrow=True, limits=Limits(outbox_size=LIMIT), **options)


def texts(frames: Sequence[Frame]) -> list[str]:
    return [frame.payload.decode() for frame in frames if frame.opcode == TEXT]


# --- a client that does not read --------------------------------------------------------------------------------


def test_a_slow_client_without_a_policy_is_closed(pairs: Pairs) -> None:
    for options in ({}, {"on_slow": "close"}):
        connection, _ = stuck(pairs)
        forward(connection, "news", **options)
        numbered(100)
        assert (connection.close_code, connection.close_reason) == (1013, "too slow for what is sent")


@pytest.mark.parametrize("on_slow", LOSSY)
def test_nothing_follows_the_close_frame_although_news_wait_and_an_answer_was_held_back(
    pairs: Pairs, on_slow: Any
) -> None:
    connection, peer = stuck(pairs)
    forward(connection, "news", on_slow=on_slow)
    for _ in range(1000):
        if connection._blocked and not connection._outbox:  # the kernel took nothing of the last message
            break
        numbered(1, size=60)
    else:
        pytest.fail("the kernel takes everything")

    def view() -> None:
        connection.receive()
        connection.send("answer")
        connection.close(1000)

    gevent.spawn(view)
    gevent.sleep(0)
    peer.text("one", "another")
    until(lambda: connection.state is not OPEN)
    peer.close_frame(1000)
    frames = peer.until_end()
    assert frames[-1] == close(1000)
    assert text("answer") in frames


def test_drop_oldest_keeps_the_newest_messages_that_fit(pairs: Pairs) -> None:
    connection, peer = stuck(pairs)
    with forward(connection, "news", on_slow="drop_oldest"):
        messages = numbered(500)
        publish("news", "the end")
        got = texts(peer.until_frames(1)) and until_text(peer, "the end")
    assert connection.close_code is None
    first = next(number for number, message in enumerate(got) if message != messages[number])  # not in the kernel
    assert got[first:-1] == messages[-(len(got) - first - 1) :]
    assert LIMIT * 0.8 < sum(map(len, got[first:])) <= LIMIT


def until_text(peer: Peer, last: str) -> list[str]:
    """Let the client read until a text arrives; return all texts."""
    until(lambda: peer.pump() and last in texts(peer.frames[-50:]) or last in texts(peer.frames[-50:]))
    return texts(peer.frames)


def test_latest_keeps_the_newest_of_each_channel(pairs: Pairs) -> None:
    connection, peer = stuck(pairs)
    with forward(connection, "a", "b", "c", on_slow="latest"):
        numbered(20, channel="a")
        for number in range(100):
            for channel in "bca":
                publish(channel, f"{channel} {number}")
        delivered()
        publish("b", "b end")
        delivered()
        publish("a", "a end")
        delivered()
        got = until_text(peer, "a end")
    assert connection.close_code is None
    assert got[-3:] == ["c 99", "b end", "a end"]  # in the order of their arrival
    assert all(message.startswith("a ") and len(message) == 2000 for message in got[:-3])
    assert len(got) < 10  # the kernel had taken the first ones


def test_latest_keeps_the_newest_of_messages_that_came_together(pairs: Pairs) -> None:
    connection, peer = stuck(pairs)
    with forward(connection, "news", on_slow="latest"):
        for message in [f"{number:03}" * 500 for number in range(40)]:
            publish("news", message)
        delivered()
        assert until_text(peer, "039" * 500)[-2] < "010"


@pytest.mark.parametrize("on_slow", LOSSY)
def test_a_client_that_keeps_up_gets_everything_in_the_same_batches(pairs: Pairs, on_slow: Any) -> None:
    connection, peer = pairs(sockets=packet_pair)
    with forward(connection, "news", "weather", on_slow=on_slow):
        for _ in range(50):
            for message in ("a", "b", "c"):
                publish("news", message)
            publish("weather", "sun")
            delivered()
            peer.pump()
            peer.pump()
    assert peer.until_frames(200) == [text("a"), text("b"), text("c"), text("sun")] * 50
    assert len(peer.segments) == 100


@pytest.mark.parametrize("on_slow", LOSSY)
def test_frames_stay_whole_and_the_newest_arrives_however_the_client_reads(pairs: Pairs, on_slow: Any) -> None:
    connection, peer = stuck(pairs)
    with forward(connection, "news", on_slow=on_slow):
        last = -1
        for number in range(300):
            publish("news", f"{number:05}" * (number * 7 % 9000))
            delivered()
            if number % 3:
                peer.pump(1 + number * 37 % 3000)
        publish("news", "the end")
        for message in until_text(peer, "the end")[:-1]:
            if message:
                assert message == message[:5] * (len(message) // 5)
                assert int(message[:5]) > last
                last = int(message[:5])
    assert connection.close_code is None


@pytest.mark.parametrize("on_slow", LOSSY)
def test_messages_of_the_view_and_control_frames_are_never_dropped(pairs: Pairs, on_slow: Any) -> None:
    connection, peer = stuck(pairs)
    with forward(connection, "news", on_slow=on_slow):
        numbered(20)
        for number in range(100):
            connection.send(f"own {number}")
            publish("news", f"{number:05}" * 1000)
        peer.ping(b"here?")
        until(lambda: connection._outbox._pong_last)
        delivered()
        connection.send("own 100")
        numbered(100)
        publish("news", "the end")
        delivered()
        got = until_text(peer, "the end")
    assert [message for message in got if message[:3] == "own"] == [f"own {number}" for number in range(101)]
    assert Frame(PONG, b"here?") in peer.frames
    assert connection.close_code is None


def test_messages_of_the_view_overtake_those_that_may_be_dropped(pairs: Pairs) -> None:
    connection, peer = stuck(pairs)
    with forward(connection, "news", on_slow="drop_oldest"):
        numbered(100)
        connection.send("own")
        assert "own" in texts(peer.until_frames(10))


@pytest.mark.parametrize("on_slow", LOSSY)
@pytest.mark.parametrize("end", ["close", "leave"])
def test_waiting_messages_leave_before_the_close_frame_or_after_the_block(pairs: Pairs, on_slow: Any, end: str) -> None:
    connection, peer = stuck(pairs)
    with forward(connection, "news", on_slow=on_slow):
        numbered(30)
        publish("news", "final score")
        delivered()
        if end == "close":
            connection.close(1000)
    publish("news", "too late")
    delivered()
    if end == "leave":
        connection.close(1000)
    until(lambda: peer.pump() and peer.frames and peer.frames[-1].opcode == CLOSE)
    assert peer.frames[-2:] == [text("final score"), close(1000)]


@pytest.mark.parametrize("on_slow", LOSSY)
def test_subscriptions_of_one_client_take_turns(pairs: Pairs, on_slow: Any) -> None:
    connection, peer = stuck(pairs)
    with forward(connection, "news", on_slow=on_slow), forward(connection, "weather", on_slow="drop_oldest"):
        for channel in ("news", "weather"):
            numbered(200, channel=channel)
        publish("news", "the last news")
        publish("weather", "the last weather")
        delivered()
        news = until_text(peer, "the last news")
        assert len([message for message in news if message.startswith("weather")]) < 50
        until_text(peer, "the last weather")
        numbered(3)
    for _ in range(20):  # the client reads a little, and gets stuck again
        with forward(connection, "news", on_slow=on_slow):
            numbered(20)
            peer.pump(3000)
    assert len(connection._outbox._sources) <= 21


@pytest.mark.parametrize("on_slow", LOSSY)
def test_getting_stuck_repeatedly_costs_nothing(pairs: Pairs, on_slow: Any) -> None:
    connection, peer = stuck(pairs)
    with forward(connection, "news", on_slow=on_slow):
        for _ in range(100):
            numbered(5)
            until(lambda: peer.pump(2000))
        assert len(connection._outbox._sources) <= 1
        publish("news", "the end")
        until_text(peer, "the end")
        until(lambda: not connection._outbox._sources)


@pytest.mark.parametrize("on_slow", LOSSY)
@pytest.mark.parametrize("how", ["vanishes", "is given up"])
def test_nothing_is_kept_for_a_client_that_never_reads_again(pairs: Pairs, on_slow: Any, how: str) -> None:
    connection, peer = stuck(pairs)
    forwarding = forward(connection, "news", on_slow=on_slow)
    numbered(100)
    gone = weakref.ref(forwarding)
    del forwarding
    if how == "vanishes":
        peer.sock.close()
        until(lambda: not connection.connected)
    else:
        connection._give_up(1011, "no answer to a ping")
        connection._close_socket()
    gc.collect()
    assert gone() is None
    assert pubsub.process.current_hub().channels == {}


@pytest.mark.parametrize("on_slow", LOSSY)
def test_compressed_messages_that_waited_can_be_inflated(pairs: Pairs, on_slow: Any) -> None:
    agreement = Agreement(takeover=True, peer_takeover=True)
    connection, peer = stuck(pairs, agreement=agreement)
    client = Engine(Role.CLIENT, agreement=agreement, max_queued_messages=10_000)
    received = bytearray()

    def all_read() -> bool:
        try:
            received.extend(peer.sock.recv(65536))
        except BlockingIOError:
            return False
        return b"the end" in received

    with forward(connection, "news", on_slow=on_slow):
        for number in range(50):
            connection.send(f"own {number} " * 200)
            numbered(3, size=3000)
        publish("news", "the end")
        until(all_read)
        assert client.receive(bytes(received)) == []
        messages = list(client.messages)
        assert [message for message in messages if message[:3] == "own"] == [f"own {n} " * 200 for n in range(50)]
        assert messages[-1] == "the end"


# --- a view that does not take its messages ---------------------------------------------------------------------


def test_a_subscription_may_drop_the_oldest(pairs: Pairs) -> None:
    with subscribe("news", on_slow="drop_oldest") as subscription:
        messages = numbered(500)
        got: list[Any] = [subscription.get(timeout=5)]
        while subscription.ready():
            got.append(subscription.get())
        assert got == messages[-len(got) :]
        assert LIMIT * 0.8 < sum(map(len, got)) <= LIMIT


def test_a_subscription_may_keep_the_latest_of_each_channel(pairs: Pairs) -> None:
    with subscribe("a", "b", on_slow="latest") as subscription:
        fd = subscription.fileno()
        for number in range(3):
            for channel in ("b", "a", "b"):
                publish(channel, f"{channel} {number}")
        delivered()
        assert {subscription.get(timeout=5), subscription.get(timeout=5)} == {"a 2", "b 2"}
        assert not subscription.ready()
        assert fd == subscription.fileno()
        publish("a", "a 3")
        assert subscription.get(timeout=5) == "a 3"


def test_a_subscription_raises_without_a_policy(pairs: Pairs) -> None:
    policies: tuple[dict[str, Any], ...] = ({}, {"on_slow": "raise"})
    for options in policies:
        with subscribe("news", **options) as subscription:
            messages = numbered(500)
            with pytest.raises(MessagesMissed):
                subscription.get()
            assert subscription.get(timeout=5) in messages


@pytest.mark.parametrize("on_slow", ["raise", *LOSSY])
def test_a_message_of_the_largest_size_reaches_a_subscription(pairs: Pairs, on_slow: Any) -> None:
    with subscribe("news", on_slow=on_slow) as subscription:
        for _ in range(3):
            publish("news", "x" * LIMIT)
            assert subscription.get(timeout=5) == "x" * LIMIT


@pytest.mark.alone
@pytest.mark.parametrize("on_slow", ["close", *LOSSY])
def test_a_message_of_the_largest_size_reaches_a_client(pairs: Pairs, on_slow: Any) -> None:
    connection, peer = pairs(limits=Limits(outbox_size=LIMIT))
    with forward(connection, "news", on_slow=on_slow):
        for number in range(3):
            publish("news", "x" * LIMIT)
            assert texts(peer.until_frames(number + 1))[number] == "x" * LIMIT


@pytest.mark.parametrize("on_slow", ["", None, "drop", "newest", True])
def test_the_error_for_an_unknown_policy_lists_the_known_ones(pairs: Pairs, on_slow: Any) -> None:
    connection, _ = pairs()
    with pytest.raises(ValueError, match="'close', 'drop_oldest', 'latest'"):
        forward(connection, "news", on_slow=on_slow)
    with pytest.raises(ValueError, match="'raise', 'drop_oldest', 'latest'"):
        subscribe("news", on_slow=on_slow)
    assert pubsub.process.current_hub().channels == {}


# --- the other clients ------------------------------------------------------------------------------------------


CLIENTS, ROUNDS = 500, 120
FLOOD = "x" * 64 * 1024


@pytest.mark.alone
@pytest.mark.parametrize("on_slow", ["close", *LOSSY])
def test_one_stuck_client_among_five_hundred_delays_nobody_and_its_messages_do_not_pile_up(
    start_site: StartSite, redis_url: str, key: str, on_slow: str
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with (
        start_site({"WEBSOCKET_BROKER": redis_url}, env={"COVERAGE_PROCESS_CONFIG": ""}) as server,
        redis_py.Redis.from_url(redis_url) as publisher,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(RawClient(server.port)) for _ in range(CLIENTS - 1)]
        for client in clients:
            client.open(f"/listen/{key}/")
        latencies(publisher, key, clients)  # warms everything up
        alone = latencies(publisher, key, clients)
        used = memory_of(server)
        one = stack.enter_context(RawClient(server.port, receive_buffer=4096))
        one.open(f"/listen/{key}/?and=flood-{key}&on_slow={on_slow}")
        beside = latencies(publisher, key, clients)
        grown = memory_of(server) - used
        again = latencies(publisher, key, clients)
        # The flood was 15 MiB, 64 KiB in each round; a third of it is twice what the kernel may buffer.
        assert grown < 5 * 1024, f"{grown} KiB"
        assert percentile(beside) < 2 * max(percentile(alone), percentile(again)) + 0.01
        if on_slow == "close":
            assert "1013 too slow for what is sent" in server.log
        else:
            publisher.publish(key, "the end")
            while one.frame() != Frame(TEXT, b"the end"):
                pass


def latencies(publisher: Any, key: str, clients: Sequence[RawClient]) -> list[float]:
    """Publish one message after another to all clients, with a flood beside them; return each delay in seconds."""
    taken = []
    with selectors.DefaultSelector() as selector:
        for client in clients:
            client.sock.setblocking(False)
            selector.register(client.sock, selectors.EVENT_READ)
        for number in range(ROUNDS):
            missing = {client.sock for client in clients}
            message = f"{number:04}"
            begun = time.perf_counter()
            publisher.publish(f"flood-{key}", FLOOD)
            publisher.publish(key, message)
            while missing:
                ready = selector.select(10)
                assert ready, "a client got nothing"
                now = time.perf_counter()
                for selected, _ in ready:
                    sock = selected.fileobj
                    assert isinstance(sock, socket.socket)
                    if sock.recv(100)[-4:] == message.encode():
                        missing.discard(sock)
                        taken.append(now - begun)
    return taken


def percentile(values: Sequence[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]


def memory_of(server: Server) -> int:
    """Resident memory of the worker in KiB."""
    (worker,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    lines = Path(f"/proc/{worker}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

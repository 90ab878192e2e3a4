"""Clients that are sent the past of a channel, or a snapshot, before what is published live."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import gevent.socket
import pytest
import redis.connection
from django.http import HttpResponse
from gevent.event import Event

from django_websocket import pubsub
from django_websocket.exceptions import ConnectionClosed, MessagesMissed
from django_websocket.protocol.deflate import Agreement
from django_websocket.protocol.engine import Engine, Role
from django_websocket.pubsub import position, publish
from django_websocket.transport.connection import Connection
from django_websocket.transport.limits import Limits
from django_websocket.websocket import WebSocket

from .support.brokers import delivered, forward, in_use
from .support.frames import BINARY, CLOSE, TEXT, Frame, close, text
from .support.waiting import until
from .support.wire import Pairs, Peer

LIMIT = 100_000
HISTORY = {"kept:*": {"messages": 10, "seconds": 3600}, "long:*": {"messages": 1000, "seconds": 3600}}


@pytest.fixture(params=["memory", "redis"])
def broker(request: pytest.FixtureRequest, key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A broker with channels of which no other test knows."""
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)  # as in a patched worker
    url = f"{request.getfixturevalue('redis_url')}?prefix={key}:" if request.param == "redis" else f"memory://{key}"
    request.getfixturevalue("pairs")  # after the shared server, whose descriptors it must not count
    with in_use(url, WEBSOCKET_HISTORY=HISTORY, WEBSOCKET_OUTBOX_SIZE=LIMIT):
        yield


@pytest.fixture
def memory(key: str, pairs: Pairs) -> Iterator[None]:
    with in_use(f"memory://{key}", WEBSOCKET_HISTORY=HISTORY, WEBSOCKET_OUTBOX_SIZE=LIMIT):
        yield


def stuck(pairs: Pairs, **options: Any) -> tuple[Connection, Peer]:
    """A client that reads only when its peer is pumped, with a kernel buffer of just a few KiB."""
    return pairs(narrow=True, limits=Limits(outbox_size=LIMIT), **options)


def numbered(channel: str, *numbers: int, size: int = 0) -> list[str]:
    """Publish a message for each number, filled up to a size; return them."""
    messages = [f"{number} ".ljust(size, ".") for number in numbers]
    for message in messages:
        publish(channel, message)
    return messages


def received(peer: Peer, last: str) -> list[str]:
    """Let the client read until a certain text arrives; return all texts."""

    def came() -> bool:
        peer.pump()
        return bool(peer.frames) and (text(last) in peer.frames or peer.frames[-1].opcode == CLOSE)

    until(came)
    assert peer.frames[-1].opcode != CLOSE, peer.frames[-1]
    return [frame.payload.decode() for frame in peer.frames if frame.opcode == TEXT]


def nobody_is_subscribed() -> bool:
    return not pubsub.process.current_hub().channels


# --- the past --------------------------------------------------------------------------------------------------------


def test_the_past_comes_first_and_bare(broker: None, pairs: Pairs) -> None:
    begin = position("kept:a")
    messages: list[Any] = ["1:2:", "", "a\nb\u2028", b"", b"\xff\xfe1:", b"\xfe", "\U0001f600"]
    for message in messages:
        publish("kept:a", message)
    expected = [text(m) if isinstance(m, str) else Frame(BINARY, m) for m in messages]
    wishes: list[dict[str, Any]] = [{"since": begin}, {"since": {"kept:a": begin}}, {"last": 7}, {"last": 100}]
    clients = [pairs() for _ in wishes]
    with ExitStack() as stack:
        for (connection, _), options in zip(clients, wishes, strict=True):
            stack.enter_context(forward(connection, "kept:a", **options))
        publish("kept:a", "live")
        for _, peer in clients:
            assert peer.until_frames(8) == [*expected, text("live")]


def test_nothing_comes_if_nothing_was_missed(broker: None, pairs: Pairs) -> None:
    numbered("kept:a", 1, 2)
    empty, some = pairs(), pairs()
    with (
        forward(empty[0], "kept:new", since=position("kept:new"), on_missed="missed", snapshot=lambda: "state"),
        forward(some[0], "kept:a", since=position("kept:a"), on_missed="missed", snapshot=lambda: "state"),
    ):
        publish("kept:new", "live")
        publish("kept:a", "live")
        assert [peer.until_frames(1) for _, peer in (empty, some)] == [[text("live")], [text("live")]]


def test_each_channel_has_its_past(broker: None, pairs: Pairs) -> None:
    since = {channel: position(channel) for channel in ("kept:a", "kept:b")}
    expected = numbered("kept:a", 0, 1, 2), numbered("kept:b", 3, 4, 5)
    connection, peer = pairs()
    with forward(connection, "kept:a", "kept:b", since=since):
        publish("kept:b", "live")
        texts = received(peer, "live")
        assert [[each for each in texts if each in messages] for messages in expected] == [*expected]
        assert len(texts) == 7 and texts[-1] == "live"


def test_what_is_published_during_a_replay_follows_it(broker: None, pairs: Pairs) -> None:
    begin = position("long:a")
    expected = numbered("long:a", *range(100))

    def publish_all() -> None:
        for number in range(100, 400):
            expected.extend(numbered("long:a", number))
            gevent.sleep(0)

    publisher = gevent.spawn(publish_all)
    clients = [pairs() for _ in range(10)]
    with ExitStack() as stack:
        for connection, _ in clients:
            gevent.sleep(0.002)
            stack.enter_context(forward(connection, "long:a", since=begin))
        publisher.get(timeout=10)
        publish("long:a", "the end")
        for _, peer in clients:
            assert received(peer, "the end") == [*expected, "the end"]


def test_a_compressed_past_can_be_inflated(memory: None, pairs: Pairs) -> None:
    begin = position("long:a")
    expected = numbered("long:a", *range(30), size=1000)
    agreement = Agreement(takeover=True, peer_takeover=True)
    connection, peer = stuck(pairs, agreement=agreement)
    client = Engine(Role.CLIENT, agreement=agreement, max_queued_messages=1000)
    received = bytearray()

    def all_read() -> bool:
        try:
            received.extend(peer.sock.recv(65536))
        except BlockingIOError:
            return False
        return b"the end" in received

    with forward(connection, "long:a", since=begin):
        connection.send("own " * 300)
        publish("long:a", "x" * 1000)
        publish("long:a", "the end")
        until(all_read)
    assert client.receive(bytes(received)) == []
    assert sorted(client.messages) == sorted([*expected, "own " * 300, "x" * 1000, "the end"])
    assert [message for message in client.messages if message in expected] == expected


# --- a past with a gap -----------------------------------------------------------------------------------------------


def gaps() -> list[Callable[[], Any]]:
    """Return functions that make a position of "long:a" from which not everything can be replayed."""

    def too_large() -> str:
        since = position("long:a")
        numbered("long:a", *range(120), size=1000)
        return since

    def trimmed() -> str:
        since = position("long:a")
        for number in range(1001):
            publish("long:a", str(number))
        return since

    def ahead() -> str:
        return position("long:a").replace("0.", "1.")

    return [too_large, trimmed, ahead, lambda: "", lambda: "x.y", lambda: 5, lambda: b"1.x"]


@pytest.mark.parametrize("number", range(7))
def test_a_gap_is_told_in_the_way_that_the_view_has_chosen(memory: None, pairs: Pairs, number: int) -> None:
    since = gaps()[number]()
    connection, peer = pairs()
    with pytest.raises(MessagesMissed):
        forward(connection, "long:a", since=since)
    assert nobody_is_subscribed()
    connection.send("still open")

    with forward(connection, "long:a", since=since, on_missed={"missed": True}):
        publish("long:a", "live 1")
        assert received(peer, "live 1") == ["still open", '{"missed":true}', "live 1"]
    with forward(connection, "long:a", since=since, snapshot=lambda: "state", on_missed="missed"):
        publish("long:a", "live 2")
        assert received(peer, "live 2")[3:] == ["state", "live 2"]
    assert connection.close_code is None


def test_a_gap_on_redis_is_told_as_well(broker: None, pairs: Pairs) -> None:
    since = position("kept:a")
    numbered("kept:a", *range(11))
    connection, peer = pairs()
    with pytest.raises(MessagesMissed):
        forward(connection, "kept:a", since=since)
    assert nobody_is_subscribed()
    with forward(connection, "kept:a", since=since, on_missed="missed"):
        publish("kept:a", "live 1")
        assert received(peer, "live 1") == ["missed", "live 1"]
    with forward(connection, "kept:a", since=since, snapshot=lambda: "state"):
        publish("kept:a", "live 2")
        assert received(peer, "live 2") == ["missed", "live 1", "state", "live 2"]


@pytest.mark.parametrize("other", [{"kept:b": "5.x"}, {"kept:b": None}, {}], ids=["unknown", "None", "not there"])
def test_a_gap_of_one_channel_is_a_gap(memory: None, pairs: Pairs, other: dict[str, Any]) -> None:
    since = {"kept:a": position("kept:a"), **other}
    numbered("kept:a", 1, 2)
    connection, _ = pairs()
    with pytest.raises(MessagesMissed):
        forward(connection, "kept:a", "kept:b", since=since)
    assert nobody_is_subscribed()
    with forward(connection, "kept:a", "kept:b", since=since, snapshot=lambda: "state"):
        pass


def test_several_pasts_together_are_no_larger_than_one_may_be(memory: None, pairs: Pairs) -> None:
    since = {channel: position(channel) for channel in ("long:a", "long:b")}
    for channel in since:
        numbered(channel, *range(60), size=1000)
    connection, peer = pairs()
    with forward(connection, "long:a", "long:b", since=since, on_missed="missed"):
        publish("long:a", "live")
        assert received(peer, "live") == ["missed", "live"]


# --- mistakes of the view --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "options", "kind", "word"),
    [
        (["kept:a"], {"since": "1.x", "last": 5}, TypeError, "last"),
        (["kept:a"], {"last": 5, "snapshot": str}, TypeError, "snapshot"),
        (["kept:a", "kept:b"], {"since": "1.x"}, TypeError, "dict"),
        (["plain"], {"since": "1.x"}, ValueError, "WEBSOCKET_HISTORY"),
        (["plain"], {"last": 5}, ValueError, "WEBSOCKET_HISTORY"),
        (["kept:a", "plain"], {"last": 5}, ValueError, "WEBSOCKET_HISTORY"),
        (["plain"], {"since": "1.x", "snapshot": str}, ValueError, "WEBSOCKET_HISTORY"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("method", ["subscribe", "listen"])
def test_a_mistake_is_named_and_does_not_accept(
    memory: None, method: str, channels: list[str], options: Any, kind: type[Exception], word: str
) -> None:
    def accept(subprotocol: str | None) -> Connection:
        raise AssertionError("it accepts")

    websocket = WebSocket({}, HttpResponse(), accept)
    with pytest.raises(kind, match=word) as raised:
        getattr(websocket, method)(*channels, **options)
    assert type(raised.value) is kind
    assert nobody_is_subscribed()


# --- snapshots -------------------------------------------------------------------------------------------------------


def generator() -> Iterator[Any]:
    yield "a"
    yield b"\xff"
    yield {"b": 1}


SNAPSHOTS: list[tuple[Callable[[], Any], list[Frame]]] = [
    (lambda: "state", [text("state")]),
    (lambda: "", [text("")]),
    (lambda: b"\xff\0", [Frame(BINARY, b"\xff\0")]),
    (lambda: {"count": 1}, [text('{"count":1}')]),
    (lambda: [1, "two"], [text('[1,"two"]')]),
    (lambda: 0, [text("0")]),
    (lambda: None, []),
    (generator, [text("a"), Frame(BINARY, b"\xff"), text('{"b":1}')]),
    (lambda: (str(number) for number in range(500)), [text(str(number)) for number in range(500)]),
]


@pytest.mark.parametrize("channel", ["kept:a", "plain"])
@pytest.mark.parametrize("number", range(len(SNAPSHOTS)))
def test_a_snapshot_is_a_message_or_several(memory: None, pairs: Pairs, number: int, channel: str) -> None:
    snapshot, frames = SNAPSHOTS[number]
    connection, peer = pairs()
    with forward(connection, channel, snapshot=snapshot):
        publish(channel, "live")
        assert peer.until_frames(len(frames) + 1) == [*frames, text("live")]


@pytest.mark.parametrize("channel", ["kept:a", "plain"])
def test_what_is_published_during_a_snapshot_follows_it(broker: None, pairs: Pairs, channel: str) -> None:
    def snapshot() -> str:
        for number in range(5):
            publish(channel, str(number))
            delivered()
        return "state"

    def in_parts() -> Iterator[str]:
        for number in range(5):
            publish(channel, str(number))
            delivered()
            yield f"part {number}"

    for function, parts in ((snapshot, ["state"]), (in_parts, [f"part {number}" for number in range(5)])):
        connection, peer = pairs()
        with forward(connection, channel, snapshot=function):
            publish(channel, "live")
            assert received(peer, "live") == [*parts, "0", "1", "2", "3", "4", "live"]


@pytest.mark.parametrize("channel", ["long:a", "plain"])
def test_a_snapshot_and_what_follows_make_the_whole(broker: None, pairs: Pairs, channel: str) -> None:
    """A counter that others raise all the time, and a view that takes its time to read it."""
    state = 0
    stop = False

    def raise_it() -> None:
        nonlocal state
        while not stop:
            state += 1
            publish(channel, str(state))
            gevent.sleep(0.0005)

    def snapshot() -> str:
        gevent.sleep(0.005)
        found = state
        gevent.sleep(0.005)
        return f"state {found}"

    publisher = gevent.spawn(raise_it)
    try:
        for _ in range(10):
            connection, peer = pairs()
            with forward(connection, channel, snapshot=snapshot):
                last = state + 5
                texts = received(peer, str(last))
            number = int(texts[0].removeprefix("state "))
            numbers = [*map(int, texts[1:])]
            assert numbers == [*range(numbers[0], numbers[-1] + 1)]
            assert numbers[0] <= number + 1 <= last
    finally:
        stop = True
        publisher.get(timeout=10)
        delivered()


@pytest.mark.parametrize("channel", ["kept:a", "plain"])
@pytest.mark.parametrize("when", ["at once", "after a message"])
def test_nothing_is_subscribed_if_a_snapshot_raises(memory: None, pairs: Pairs, channel: str, when: str) -> None:
    def fails() -> Any:
        publish(channel, "meanwhile")
        raise KeyError("the database is away")

    def fails_later() -> Iterator[str]:
        yield "part"
        publish(channel, "meanwhile")
        raise KeyError("the database is away")

    connection, peer = pairs()
    with pytest.raises(KeyError, match="the database is away"):
        forward(connection, channel, snapshot=fails if when == "at once" else fails_later)
    assert nobody_is_subscribed()
    publish(channel, "nobody listens")
    delivered()
    connection.send("still open")
    assert "nobody listens" not in received(peer, "still open")
    with forward(connection, channel, snapshot=lambda: "state"):
        publish(channel, "live")
        assert received(peer, "live")[-2:] == ["state", "live"]


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, float("nan"), {"a": object()}], ids=lambda value: type(value).__name__
)
def test_a_snapshot_that_is_no_message_is_an_error_of_the_view(memory: None, pairs: Pairs, value: Any) -> None:
    connection, _ = pairs()
    with pytest.raises((TypeError, ValueError)):
        forward(connection, "kept:a", snapshot=lambda: value)
    assert nobody_is_subscribed()
    assert connection.close_code is None


@pytest.mark.parametrize("channel", ["kept:a", "plain"])
@pytest.mark.parametrize("on_missed", ["missed", None])
def test_too_much_during_a_snapshot_is_as_if_messages_were_missed(
    memory: None, pairs: Pairs, channel: str, on_missed: str | None
) -> None:
    def snapshot() -> str:
        numbered(channel, *range(150), size=1000)
        delivered()
        return "state"

    connection, peer = pairs()
    try:
        forwarding = forward(connection, channel, snapshot=snapshot, on_missed=on_missed)
    except (ConnectionClosed, MessagesMissed):
        assert on_missed is None
    else:
        with forwarding:
            if on_missed is not None:
                publish(channel, "live")
                texts = received(peer, "live")
                assert "missed" in texts
                assert texts[-1] == "live"
                assert connection.close_code is None
    if on_missed is None:
        until(lambda: peer.pump() and peer.frames and peer.frames[-1].opcode == CLOSE)
        assert peer.frames[-1].close[0] == 1012


@pytest.mark.parametrize("channel", ["kept:a", "plain"])
def test_a_client_may_leave_during_a_snapshot(memory: None, pairs: Pairs, channel: str) -> None:
    connection, peer = pairs()

    def leaves() -> str:
        peer.sock.close()
        until(lambda: not connection.connected)
        publish(channel, "nobody is there")
        return "state"

    with pytest.raises(ConnectionClosed):
        forward(connection, channel, snapshot=leaves)
    assert nobody_is_subscribed()


def test_a_view_that_is_killed_during_a_snapshot_leaves_nothing_behind(memory: None, pairs: Pairs) -> None:
    connection, _ = pairs()
    entered = Event()

    def snapshot() -> None:
        entered.set()
        Event().wait()

    view = gevent.spawn(forward, connection, "kept:a", snapshot=snapshot)
    assert entered.wait(10)
    numbered("kept:a", 1, 2)
    view.kill()
    delivered()
    assert nobody_is_subscribed()


def test_a_snapshot_larger_than_the_outbox_waits_for_the_client(memory: None, pairs: Pairs) -> None:
    """It is what the view sends, and a view may wait."""

    def snapshot() -> Iterator[str]:
        for number in range(30):
            yield f"{number} ".ljust(10_000, ".")

    connection, peer = stuck(pairs)
    view = gevent.spawn(forward, connection, "kept:a", snapshot=snapshot)

    def came() -> bool:
        peer.pump()
        return len(peer.frames) >= 30

    until(came)
    with view.get(timeout=10):
        publish("kept:a", "live")
        texts = received(peer, "live")
    assert [each.split(" ")[0] for each in texts] == [*map(str, range(30)), "live"]


# --- clients that read slowly ----------------------------------------------------------------------------------------


def test_a_client_is_not_too_slow_for_being_given_its_past(broker: None, pairs: Pairs) -> None:
    begin = position("long:a")
    past = numbered("long:a", *range(90), size=1000)
    connection, peer = stuck(pairs)
    with forward(connection, "long:a", since=begin):
        live = numbered("long:a", *range(90, 170), size=1000)
        delivered()
        assert connection.close_code is None
        publish("long:a", "the end")
        assert received(peer, "the end") == [*past, *live, "the end"]
        assert connection.close_code is None
        for number in range(20):  # from then on it is a client like others
            publish("long:a", f"later {number}")
        assert received(peer, "later 19")[-20:] == [f"later {number}" for number in range(20)]


def test_a_client_that_reads_a_little_gets_everything_in_order(memory: None, pairs: Pairs) -> None:
    begin = position("long:a")
    expected = numbered("long:a", *range(90), size=1000)
    connection, peer = stuck(pairs)
    with forward(connection, "long:a", since=begin):
        for number in range(90, 300):
            expected += numbered("long:a", number, size=number * 7 % 1500)
            delivered()
            peer.pump(1 + number * 37 % 3000)
        publish("long:a", "the end")
        assert received(peer, "the end") == [*expected, "the end"]
    assert connection.close_code is None


def test_a_client_that_reads_nothing_is_closed_for_what_is_live(memory: None, pairs: Pairs) -> None:
    begin = position("long:a")
    numbered("long:a", *range(90), size=1000)
    connection, _ = stuck(pairs)
    with forward(connection, "long:a", since=begin):
        assert connection.connected
        numbered("long:a", *range(300), size=1000)
        delivered()
    assert (connection.close_code, connection.close_reason) == (1013, "too slow for what is sent")


@pytest.mark.parametrize("on_slow", ["drop_oldest", "latest"])
def test_a_client_that_may_lose_messages_gets_the_newest(memory: None, pairs: Pairs, on_slow: str) -> None:
    begin = position("long:a")
    expected = numbered("long:a", *range(90), size=1000)
    connection, peer = stuck(pairs)
    with forward(connection, "long:a", since=begin, on_slow=on_slow):
        expected += numbered("long:a", *range(90, 200), size=1000)
        publish("long:a", "the end")
        delivered()
        texts = received(peer, "the end")
        numbers = [expected.index(each) for each in texts[:-1]]
        assert numbers == sorted({*numbers})
        assert (numbers[-1] == 199) or on_slow == "latest"
    assert connection.close_code is None


@pytest.mark.parametrize("on_slow", ["close", "drop_oldest", "latest"])
def test_a_client_that_reads_gets_its_whole_past(memory: None, pairs: Pairs, on_slow: str) -> None:
    begin = position("kept:a")
    expected = numbered("kept:a", *range(10))
    connection, peer = pairs()
    with forward(connection, "kept:a", since=begin, on_slow=on_slow):
        publish("kept:a", "live")
        texts = received(peer, "live")
        assert texts == [*expected, "live"] or on_slow == "latest" and texts[-2:] == [expected[-1], "live"]


def test_a_replay_may_be_ended_amid_it(memory: None, pairs: Pairs) -> None:
    begin = position("long:a")
    expected = numbered("long:a", *range(90), size=1000)
    connection, peer = stuck(pairs)
    forwarding = forward(connection, "long:a", since=begin)
    forwarding.close()
    forwarding.close()
    numbered("long:a", 90)
    delivered()
    gevent.spawn(connection.send, "own")
    texts = received(peer, "own")
    assert "90 " not in texts
    texts.remove("own")
    assert texts == expected[: len(texts)]
    assert nobody_is_subscribed()


def test_a_waiting_past_leaves_before_the_close_frame(memory: None, pairs: Pairs) -> None:
    begin = position("long:a")
    expected = numbered("long:a", *range(90), size=1000)
    connection, peer = stuck(pairs)
    with forward(connection, "long:a", since=begin):
        connection.close(1000)
    until(lambda: peer.pump() and peer.frames and peer.frames[-1].opcode == CLOSE)
    assert peer.frames == [*map(text, expected), close(1000)]


@pytest.mark.parametrize("on_slow", ["close", "drop_oldest", "latest"])
def test_nothing_is_kept_for_a_client_that_leaves_amid_its_past(memory: None, pairs: Pairs, on_slow: str) -> None:
    begin = position("long:a")
    numbered("long:a", *range(90), size=1000)
    connection, peer = stuck(pairs)
    forwarding = forward(connection, "long:a", since=begin, on_slow=on_slow)
    numbered("long:a", *range(10), size=1000)
    delivered()
    gone = weakref.ref(forwarding)
    del forwarding
    peer.sock.close()
    until(lambda: not connection.connected)
    gc.collect()
    assert gone() is None
    assert nobody_is_subscribed()

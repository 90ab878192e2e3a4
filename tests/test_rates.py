"""`@websocket(rate=...)`: how often a client may send, and what happens to what is too much."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import gevent
import pytest
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

from django_websocket.asgi.websocket import AsyncWebSocket
from django_websocket.decorators import websocket
from django_websocket.exceptions import ConnectionClosed
from django_websocket.protocol.deflate import Compression, negotiate
from django_websocket.protocol.engine import Close, Engine, Event, Failure, Ping, Role
from django_websocket.protocol.handshake import Extension
from django_websocket.pubsub import publish
from django_websocket.select import select
from django_websocket.testing import Client
from django_websocket.transport import rates
from django_websocket.transport.counts import counts
from django_websocket.transport.limits import Limits
from django_websocket.transport.rates import Rate, RatedEngine, Throttle
from django_websocket.transport.state import OPEN
from django_websocket.transport.subprotocol import Greeting
from django_websocket.websocket import WebSocket

from .support.frames import CONTINUATION, PING, TEXT, close, close_frame, frame
from .support.waiting import at_once, until
from .support.wire import Pairs, own_clock, tcp_pair, tick

QUICK = Limits(ping_interval=1, ping_timeout=1, close_timeout=0.5, inbox_messages=4)  # pings have two ticks each
LONG = Rate(2, 1000.0)  # no test waits for a token of this one


class Clock:
    """The time of the throttles in a test, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with patch.object(rates, "time", clock):
        yield clock


class Rated:
    """An engine with a rate, and what came out of it."""

    def __init__(self, rate: Rate, **options: Any) -> None:
        self.throttle = Throttle(rate)
        self.engine = RatedEngine(Role.SERVER, throttle=self.throttle, **options)
        self.events: list[Event] = []

    def feed(self, data: bytes = b"", *, singly: bool = False) -> list[str | bytes]:
        """Return the messages that come out for these bytes, and take them."""
        for piece in [data[at : at + 1] for at in range(len(data))] if singly else [data]:
            self.events += self.engine.receive(piece)
        taken = self.engine.messages[:]
        self.engine.messages.clear()
        return taken


def numbers(*values: int) -> bytes:
    return b"".join(frame(str(value)) for value in values)


# --- the bucket -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("singly", [False, True], ids=["whole", "byte by byte"])
def test_bucket_allows_a_burst_and_then_so_many_in_the_long_run(clock: Clock, singly: bool) -> None:
    rated = Rated(Rate(3, 1.5))
    assert rated.feed(numbers(*range(8)), singly=singly) == ["0", "1", "2"]
    for now, expected in ((0.25, []), (0.5, ["3"]), (1.6, ["4", "5"]), (100.0, ["6", "7"])):
        clock.now = 1000 + now
        assert rated.feed() == expected
    assert not rated.engine.paused


def test_bucket_never_holds_more_than_its_messages(clock: Clock) -> None:
    rated = Rated(Rate(3, 1.5))
    assert rated.feed(numbers(0)) == ["0"]
    clock.now += 1_000_000
    assert rated.feed(numbers(*range(8))) == ["0", "1", "2"]


def test_nothing_is_lost_or_reordered_and_nothing_comes_too_soon(clock: Clock) -> None:
    rated = Rated(Rate(5, 1.0))
    got = rated.feed(numbers(*range(40)))
    for _ in range(710):
        clock.now += 0.01
        got += rated.feed()
        assert len(got) <= 5 + (clock.now - 1000) * 5 + 1e-6
    assert got == [str(number) for number in range(40)]


@pytest.mark.parametrize("singly", [False, True], ids=["whole", "byte by byte"])
def test_control_frames_take_no_token_and_wait_for_none(clock: Clock, singly: bool) -> None:
    rated = Rated(Rate(1, 10.0))
    pings = frame(b"", PING) * 5
    assert rated.feed(pings + frame("x") + pings + close_frame(1001), singly=singly) == ["x"]
    assert rated.events == [Ping(b"")] * 10 + [Close(1001, "")]


@pytest.mark.parametrize("singly", [False, True], ids=["whole", "byte by byte"])
def test_close_behind_a_message_that_waits_comes_after_it(clock: Clock, singly: bool) -> None:
    rated = Rated(Rate(1, 10.0))
    assert rated.feed(numbers(0, 1) + close_frame(1001) + b"more", singly=singly) == ["0"]
    assert not rated.events
    clock.now += 10
    assert rated.feed() == ["1"]
    assert rated.events == [Close(1001, "")]


@pytest.mark.parametrize("singly", [False, True], ids=["whole", "byte by byte"])
def test_message_in_fragments_is_one_message(clock: Clock, singly: bool) -> None:
    rated = Rated(Rate(2, 10.0))
    parts = frame("a", TEXT, fin=False) + frame("b", CONTINUATION, fin=False) + frame("c", CONTINUATION)
    assert rated.feed(parts * 3, singly=singly) == ["abc", "abc"]
    clock.now += 5
    assert rated.feed() == ["abc"]


@pytest.mark.parametrize("singly", [False, True], ids=["whole", "byte by byte"])
def test_what_is_too_much_is_dropped_and_counted(clock: Clock, singly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rated = Rated(Rate(2, 10.0, "drop"))
    monkeypatch.setattr(counts, "wanted", True)
    monkeypatch.setattr(counts, "totals", {})
    assert rated.feed(numbers(*range(10)) + frame(b"", PING), singly=singly) == ["0", "1"]
    assert rated.throttle.dropped == counts.totals["dropped_messages"]["rate",] == 8
    assert rated.events == [Ping(b"")]
    clock.now += 5
    assert rated.feed(numbers(10, 11), singly=singly) == ["10"]


@pytest.mark.parametrize("singly", [False, True], ids=["whole", "byte by byte"])
def test_who_sends_too_much_is_closed_behind_what_is_allowed(clock: Clock, singly: bool) -> None:
    rated = Rated(Rate(2, 10.0, "close"))
    assert rated.feed(numbers(*range(10)) + close_frame(), singly=singly) == ["0", "1"]
    assert rated.events == [Failure(1008, "more than 2 messages in 10 s")]
    assert rated.throttle.dropped == 0
    assert rated.feed(numbers(1)) == []


def test_inbox_holds_no_more_than_without_a_rate(clock: Clock) -> None:
    rated = Rated(Rate(100, 1.0), max_queued_messages=4, max_queued_bytes=1000)
    rated.engine.receive(numbers(*range(9)))
    assert rated.engine.messages == ["0", "1", "2", "3"] and rated.engine.full
    assert [rated.feed(), rated.feed(), rated.feed()] == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8"]]


def test_message_that_waited_counts_among_the_bytes_of_the_inbox(clock: Clock) -> None:
    rated = Rated(Rate(1, 1.0), max_queued_bytes=1000)
    message = "x" * 400
    large = frame(message)
    assert rated.feed(large * 2) == [message]
    clock.now += 1
    rated.engine.receive(large)  # hands out the second, and holds this one
    assert rated.engine.messages == [message] and not rated.engine.full
    clock.now += 1
    rated.engine.receive(large)
    assert rated.engine.messages == [message] * 2 and rated.engine.full
    clock.now += 1
    assert [rated.feed(), rated.feed()] == [[message] * 2, [message]]


@pytest.mark.parametrize("seed", range(100))
def test_client_that_waits_gets_through_what_it_would_without_a_rate(clock: Clock, seed: int) -> None:
    chance = random.Random(seed)
    parts = [
        frame("text"),
        frame("x" * 200),
        frame(b"\0" * 70_000),
        frame(b"", PING),
        frame("a", TEXT, fin=False) + frame(b"between", PING) + frame("b", CONTINUATION),
    ]
    wire = b"".join(chance.choices(parts, weights=(8, 2, 1, 3, 2), k=chance.randint(1, 60)))
    wire += chance.choice([b"", close_frame(), b"\x81\x01 not masked"])
    plain = Engine(Role.SERVER, max_queued_messages=1000, max_queued_bytes=1 << 30)
    events, messages = [*plain.receive(wire)], plain.messages
    rate = Rate(chance.choice([1, 2, 5, 20]), chance.choice([0.1, 1.0, 10.0]))
    rated = Rated(rate, max_queued_messages=chance.choice([1, 4, 16]), max_frames=chance.choice([3, 250]))
    engine, got, begin = rated.engine, list[str | bytes](), clock.now
    while wire or engine.paused or engine.messages:
        size = 0 if engine.paused else chance.choice([1, 20, 500, 100_000])
        rated.events += engine.receive(wire[:size])
        wire = wire[size:]
        if engine.messages and (engine.full or chance.random() < 0.7):
            got.append(engine.messages.pop(0))
        assert len(got) + len(engine.messages) <= rate.messages * (1 + (clock.now - begin) / rate.seconds) + 1e-6
        clock.now += chance.random() * rate.seconds / rate.messages / 3
    assert (rated.events, got) == (events, messages)


# --- connections ------------------------------------------------------------------------------------------------------


def test_client_waits_and_gets_everything_through_in_its_time(pairs: Pairs) -> None:
    connection, peer = pairs(rate=Rate(2, 0.1))
    begin = time.monotonic()
    peer.write(numbers(*range(8)) + close_frame())
    got = []
    while (message := connection.receive()) is not None:
        got.append(message)
        assert len(got) <= 2 + (time.monotonic() - begin) * 20 + 1e-6
    assert got == [str(number) for number in range(8)]
    assert peer.until_end() == [close(1000)]


def test_select_wakes_for_a_message_that_waited(pairs: Pairs) -> None:
    connection, peer = pairs(rate=Rate(1, 0.05))
    peer.text("0", "1", "2")
    connection.fileno()
    for expected in "012":
        assert select([connection], [], [], 5)[0] == [connection]
        assert connection.receive() == expected


def test_reading_stops_while_a_message_waits(pairs: Pairs) -> None:
    connection, peer = pairs(rate=LONG, sockets=tcp_pair)
    peer.text("0", "1", "2")
    assert [connection.receive(), connection.receive()] == ["0", "1"]
    taken = 0

    def more() -> bool:
        nonlocal taken
        size = peer.offer(frame("x" * 1000) * 100)
        taken += size
        return not size

    for _ in range(20):
        until(more)
        gevent.sleep(0.001)
    assert not connection.inbox and len(connection._engine._data) < 300_000


def test_neither_silence_nor_the_wait_is_judged_and_the_client_still_hears_pings(pairs: Pairs) -> None:
    connection, peer = pairs(rate=LONG, limits=QUICK)
    own_clock()
    view = gevent.spawn(list, connection)
    peer.text(*"0123456789")
    until(lambda: connection._engine.paused)
    for _ in range(40):
        tick()
    assert connection.state is OPEN
    pings = peer.until_frames(5)
    assert {ping.opcode for ping in pings} == {PING}
    view.kill()


def test_view_that_receives_nothing_is_judged_as_without_a_rate(pairs: Pairs) -> None:
    connection, peer = pairs(rate=Rate(1000, 1.0), limits=QUICK)
    own_clock()
    peer.text(*"0123456789")
    until(lambda: connection._engine.paused)
    for _ in range(10):
        tick()
    assert peer.until_frames(1)[-1].close == (1008, "its messages are not received")


def test_full_inbox_is_judged_although_a_message_waits_for_its_token(pairs: Pairs) -> None:
    connection, peer = pairs(rate=Rate(1, 1000.0), limits=Limits(ping_interval=1, ping_timeout=1, inbox_size=1000))
    own_clock()
    peer.text("x" * 600, "x" * 600)
    until(lambda: connection._engine.paused)
    for _ in range(10):
        tick()
    assert peer.until_frames(1)[-1].close == (1008, "its messages are not received")


def test_client_that_has_gone_is_noticed_although_it_is_not_read(pairs: Pairs) -> None:
    connection, peer = pairs(rate=LONG, limits=QUICK, sockets=tcp_pair)
    own_clock()
    peer.text("0", "1", "2", "3")
    until(lambda: connection._engine.paused)
    gevent.sleep(0)
    peer.abort()
    for _ in range(20):
        tick()
    assert not connection.connected
    assert [connection.receive(), connection.receive(), connection.receive()] == ["0", "1", None]


def test_close_of_the_view_does_not_wait_for_tokens(pairs: Pairs) -> None:
    connection, peer = pairs(rate=LONG)
    peer.text("0", "1", "2", "3")
    until(lambda: connection._engine.paused)
    connection.close(4000)
    peer.close_frame(4000)
    assert peer.until_end() == [close(4000)]
    until(lambda: not connection.connected)


@pytest.mark.parametrize("compressed", [False, True])
def test_client_without_a_receiver_is_held_to_its_rate(pairs: Pairs, compressed: bool) -> None:
    agreed = negotiate([Extension("permessage-deflate", [])], Compression(threshold=0)) if compressed else None
    connection, peer = pairs(rate=LONG, discard=True, agreement=None if agreed is None else agreed[1])
    sent = frame("x" * 1000) if agreed is None else Engine(Role.CLIENT, agreement=agreed[1]).send("x" * 1000)
    assert (len(sent) > 1000) is not compressed
    peer.write(sent * 2 + frame(b"", PING))
    assert peer.until_frames(1)[0].opcode == 10
    assert not connection._engine.paused
    peer.write(sent * 100)
    until(lambda: connection._engine.paused)
    with at_once():
        gevent.sleep(0.02)  # nothing turns in circles meanwhile
    assert connection.state is OPEN and not connection.inbox


def test_waiting_takes_no_time_of_the_process(pairs: Pairs) -> None:
    connection, peer = pairs(rate=LONG)
    peer.text(*"0123456789")
    until(lambda: connection._engine.paused)
    loop = connection._loop.loop
    before = loop.iteration
    gevent.sleep(0.05)
    assert loop.iteration - before < 10


def test_client_that_sends_too_much_is_closed_when_the_view_has_had_the_others(pairs: Pairs) -> None:
    connection, peer = pairs(rate=Rate(2, 10.0, "close"))
    peer.text(*"0123")
    assert [connection.receive(), connection.receive(), connection.receive()] == ["0", "1", None]
    assert peer.until_frames(1)[0].close == (1008, "more than 2 messages in 10 s")
    assert (connection.close_code, connection.close_reason) == (1008, "more than 2 messages in 10 s")


def test_log_says_at_the_end_how_many_were_dropped(pairs: Pairs, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "django_websocket")
    connection, peer = pairs(rate=Rate(2, 10.0, "drop"))
    peer.write(numbers(*range(9)) + close_frame())
    assert list(connection) == ["0", "1"]
    peer.until_end()
    until(lambda: "messages over its rate were dropped: 7" in caplog.text)


def test_hello_of_the_subprotocol_does_not_count(pairs: Pairs) -> None:
    connection, peer = pairs(rate=LONG, greeting=Greeting())
    peer.text('{"hello": {}}', "0", "1", "2")
    assert [connection.receive(), connection.receive()] == ["0", "1"]
    until(lambda: connection._engine.paused)


def test_client_without_a_rate_has_the_plain_engine(pairs: Pairs) -> None:
    connection, _ = pairs()
    assert type(connection._engine) is Engine and connection._throttle is None


# --- views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate",
    [
        5,
        (5,),
        (5, 1.0, 1),
        "51",
        (0, 1.0),
        (5, 0),
        (5, -1.0),
        (5, float("inf")),
        (5, float("nan")),
        (1.5, 1),
        (True, 1),
    ],
)
def test_rate_that_makes_no_sense_is_refused_with_an_example(rate: Any) -> None:
    with pytest.raises(ValueError, match=r"rate is .*both above 0: rate=\(5, 1.0\)"):
        websocket(rate=rate)


def test_over_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="""over is 'block', but must be "wait", "drop" or "close\""""):
        websocket(rate=(5, 1.0), over="block")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"give one too, such as rate=\(5, 1.0\)"):
        websocket(over="drop")


@websocket(rate=(2, 0.1))
def waits(request: HttpRequest, websocket: WebSocket) -> None:
    for message in websocket:
        websocket.send(message)


@websocket(rate=(2, 0.1))
async def waits_async(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    async for message in websocket:
        await websocket.send(message)


@websocket(rate=(2, 1000), over="drop")
def drops(request: HttpRequest, websocket: WebSocket) -> None:
    for message in websocket:
        websocket.send(message)


@websocket(rate=(2, 1000.0), over="close")
def listens(request: HttpRequest, websocket: WebSocket) -> HttpResponse:
    return websocket.listen("rates")


urlpatterns = [
    path("waits/", waits),
    path("waits-async/", waits_async),
    path("drops/", drops),
    path("listens/", listens),
]


@pytest.fixture
def client(test_runner: None) -> Iterator[Client]:
    with override_settings(WEBSOCKET_URLCONF=__name__):
        yield Client()


@pytest.mark.parametrize("address", ["/waits/", "/waits-async/"])
def test_view_of_each_kind_gets_all_messages_at_the_rate(client: Client, address: str) -> None:
    with client.websocket(address) as ws:
        begin = time.monotonic()
        for number in range(6):
            ws.send(str(number))
        assert [ws.receive() for _ in range(6)] == list("012345")
        assert time.monotonic() - begin > 0.2 - 0.02


def test_view_does_not_get_what_is_dropped(client: Client) -> None:
    with client.websocket("/drops/") as ws:
        for number in range(6):
            ws.send(str(number))
        assert [ws.receive(), ws.receive()] == ["0", "1"]
        with pytest.raises(TimeoutError):
            ws.receive(timeout=0)


def test_client_that_only_listens_is_closed_if_it_sends_too_much(client: Client) -> None:
    with client.websocket("/listens/") as ws:
        ws.send("0")
        ws.send("1")
        publish("rates", "news")
        assert ws.receive() == "news"
        ws.send("2")
        with pytest.raises(ConnectionClosed, match="1008"):
            ws.receive()

"""Clients that say where they go on, in this process: what is between joining, the hello, the past and the present."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from django.http import HttpResponse

from django_websocket.exceptions import BrokerError
from django_websocket.protocol.frames import CloseCode
from django_websocket.pubsub import position, publish
from django_websocket.pubsub.entries import MARGIN, Entry, Position, Rule, Stretch
from django_websocket.pubsub.following import Ring, Rings
from django_websocket.pubsub.forwarding import Forwarding
from django_websocket.pubsub.process import current_hub
from django_websocket.transport.connection import Connection
from django_websocket.transport.limits import Limits
from django_websocket.transport.subprotocol import HELLO_SIZE, NAME, SINCE, Greeting
from django_websocket.websocket import WebSocket

from .support.brokers import delivered, in_use
from .support.frames import CLOSE, PONG, TEXT, Frame, frame
from .support.waiting import until
from .support.wire import Pairs, Peer

HISTORY = {
    "kept:*": {"messages": 5, "seconds": 3600},
    "one:*": {"messages": 1, "seconds": 3600},
    "brief:*": {"messages": 100, "seconds": 1},
}


@pytest.fixture(autouse=True)
def memory(key: str, pairs: Pairs) -> Iterator[None]:
    with in_use(f"memory://{key}", WEBSOCKET_HISTORY=HISTORY):
        yield


class Client:
    """A client that speaks the subprotocol, and its view's WebSocket."""

    def __init__(self, pairs: Pairs, since: object = None, **options: Any) -> None:
        self.connection: Connection
        self.peer: Peer
        self.connection, self.peer = pairs(greeting=Greeting(), **options)
        environ = {"QUERY_STRING": "" if since is None else f"{SINCE}={since}", "HTTP_SEC_WEBSOCKET_PROTOCOL": NAME}
        self.websocket = WebSocket(environ, HttpResponse(), lambda subprotocol: self.connection)
        self.websocket.accept()

    def hello(self, **positions: str | None) -> Client:
        """Say hello; in the names of channels, _ stands for a colon."""
        named = {name.replace("_", ":"): position for name, position in positions.items()}
        self.peer.text(json.dumps({"hello": {"positions": named}}))
        greeting = self.connection.greeting
        assert greeting is not None
        until(lambda: not greeting.awaited)
        return self

    def subscribe(self, *channels: str, **options: Any) -> Forwarding:
        return self.websocket.subscribe(*channels, **options)

    def leave(self) -> None:
        """Vanish."""
        self.peer.sock.close()
        until(lambda: not self.connection.connected)

    def got(self) -> list[Any]:
        """Return what has come: messages, with positions left out, and what control says."""
        delivered()
        self.websocket.send("the end")
        until(lambda: [self.peer.pump()] and Frame(TEXT, b"sthe end") in self.peer.frames)
        found: list[Any] = []
        for received in self.peer.frames:
            text = received.payload.decode()
            if text.startswith("{"):
                found.append(json.loads(text))
            elif text != "sthe end":
                found.append(text if text[0] == "s" else text.split(":", 2)[2])
        self.peer.frames.clear()
        return found


def names(control: dict[str, Any]) -> dict[str, list[str]]:
    """Return what control says without numbers and positions."""
    return {member: list(value) for member, value in control.items()}


def now() -> int:
    return int(time.time())


# --- what the client is told exactly once ----------------------------------------------------------------------------


def test_position_is_not_used_up_by_a_subscription_that_fails(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = position("kept:a")
    publish("kept:a", "missed")
    client = Client(pairs).hello(kept_a=begin)
    catching_up = current_hub().catching_up
    assert catching_up is not None

    def is_away(*args: Any) -> Any:
        raise BrokerError("away")

    with monkeypatch.context() as patch:
        patch.setattr(catching_up, "behind", is_away)
        with pytest.raises(BrokerError):
            client.subscribe("kept:a")

    def fails() -> str:
        raise KeyError("the database is away")

    publish("kept:b", "of b")
    with pytest.raises(KeyError):
        client.subscribe("kept:a", "kept:b", snapshot=fails)
    with client.subscribe("kept:a"):
        assert client.got()[1:] == ["missed"]


def test_position_is_used_once(pairs: Pairs) -> None:
    begin = position("kept:a")
    publish("kept:a", "missed")
    client = Client(pairs).hello(kept_a=begin)
    with client.subscribe("kept:a"):
        assert client.got()[1:] == ["missed"]
    with client.subscribe("kept:a"):
        assert [names(control) for control in client.got()] == [{"unsub": ["kept:a"]}, {"sub": ["kept:a"]}]


@pytest.mark.parametrize("channels", [["kept:a", "kept:b"], ["kept:a", "plain"], ["plain"]])
def test_snapshot_is_sent_unless_each_channel_goes_on(pairs: Pairs, channels: list[str]) -> None:
    begin = position("kept:a")
    publish("kept:a", "in the snapshot")
    client = Client(pairs).hello(kept_a=begin, plain="1.AAAAAAAAAAA")
    with client.subscribe(*channels, snapshot=lambda: "state"):
        publish(channels[-1], "live")
        state, control, *messages = client.got()
    assert (state, names(control), messages) == ("sstate", {"sub": channels}, ["live"])


def test_snapshot_is_left_out_if_each_channel_goes_on(pairs: Pairs) -> None:
    begins = {"kept_a": position("kept:a"), "kept_b": position("kept:b")}
    publish("kept:b", "missed")
    client = Client(pairs).hello(**begins)
    with client.subscribe("kept:a", "kept:b", snapshot=lambda: "state"):
        assert client.got()[1:] == ["missed"]


def test_messages_of_channels_without_history_survive_a_reset_of_others(pairs: Pairs) -> None:
    client = Client(pairs)
    subscribing = gevent.spawn(client.subscribe, "kept:a", "plain", "other")
    until(lambda: "plain" in current_hub().channels)
    publish("plain", "while it waits for the hello")
    publish("kept:a", "of a")
    publish("other", "of the other")
    gevent.sleep(0.01)  # the messages are delivered
    client.hello(kept_a="7.AAAAAAAAAAA")
    with subscribing.get(timeout=10):
        control, *messages = client.got()
    assert control["reset"] == ["kept:a"]
    assert messages == ["while it waits for the hello", "of the other"]


def test_channel_that_another_subscription_has_is_not_unsubscribed(pairs: Pairs) -> None:
    client = Client(pairs).hello()
    first = client.subscribe("kept:a", "kept:b")
    with client.subscribe("kept:a"):
        client.got()
        first.close()
        assert client.got() == [{"unsub": ["kept:b"]}]


def test_slow_client_is_told_of_the_end_behind_what_it_gets(pairs: Pairs) -> None:
    client = Client(pairs, narrow=True).hello()
    with client.subscribe("plain", on_slow="drop_oldest"):
        for number in range(50):
            publish("plain", f"{number} ".ljust(10_000))
        gevent.sleep(0.01)
    told = Frame(TEXT, b'{"unsub":["plain"]}')
    until(lambda: [client.peer.pump()] and told in client.peer.frames)
    assert client.peer.frames[-1] == told and len(client.peer.frames) > 10


# --- a page and its time ---------------------------------------------------------------------------------------------


def test_first_message_of_a_channel_is_no_reset(pairs: Pairs) -> None:
    for channel in ("kept:new", "one:new"):
        client = Client(pairs, since=now())
        subscribing = gevent.spawn(client.subscribe, channel)
        until(lambda channel=channel: channel in current_hub().channels)  # type: ignore[misc]
        publish(channel, "first")
        client.hello()
        with subscribing.get(timeout=10):
            control, *messages = client.got()
        assert names(control) == {"sub": [channel]}
        assert messages == ["first"]


def test_channel_that_the_page_has_not_had_gets_what_came_since_the_page_was_made(pairs: Pairs) -> None:
    begin = position("kept:a")
    publish("kept:a", "of a")
    publish("kept:b", "of b")
    client = Client(pairs, since=now()).hello(kept_a=begin)
    with client.subscribe("kept:a"), client.subscribe("kept:b"):
        assert [each for each in client.got() if isinstance(each, str)] == ["of a", "of b"]


def test_channel_that_the_page_has_had_does_not_begin_anew(pairs: Pairs) -> None:
    publish("kept:a", "had")
    client = Client(pairs, since=now()).hello(kept_a=None)
    with client.subscribe("kept:a"):
        assert client.got()[1:] == []


def test_time_of_the_page_is_of_no_use_later(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("kept:a", "long ago")
    client = Client(pairs, since=now()).hello()
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 60)
    monkeypatch.setattr("django_websocket.transport.subprotocol.time", later)
    with client.subscribe("kept:a"):
        assert client.got()[1:] == []


RULE = Rule(10, 100.0)


def row(*times: int) -> list[Entry]:
    """Return entries from these times on, with numbers from 5 on."""
    return [Entry(number, b"%d" % number, b"%d" % (number - 1), each, b"") for number, each in enumerate(times, 5)]


@pytest.mark.parametrize("of", ["stretch", "ring"])
@pytest.mark.parametrize(
    ("times", "begin", "expected"),
    [
        ([980, 1000, 1010], 1005, 2),  # from the margin on
        ([980, 990, 1010], 1005, 1),
        ([980, 990, 991], 1005, 0),
        ([980, 1000, 988, 989, 1010], 1005, 4),  # a clock that was set back leaves no hole
        ([1004, 1005, 1006], 1005, 3),  # of the margin, what is kept
        ([1005, 1006], 1005, None),  # one before them may have come in the same second
        ([1006, 1007], 1005, None),
        ([], 1005, []),
        ([1010], 900, None),  # longer ago than anything is kept
    ],
)
def test_entries_of_a_page(
    of: str, times: list[int], begin: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = row(*times)
    end = entries[-1].position if entries else Position(0, b"0")
    if of == "stretch":
        found = Stretch(end, 1010, entries, cut=bool(entries)).from_time(begin, RULE)
    else:
        monkeypatch.setattr("django_websocket.pubsub.following.time", SimpleNamespace(monotonic=lambda: 50.0))
        ring = Ring("kept:a", RULE, Rings())
        ring.load(entries, 1010.0)
        ring.whole = not entries
        found = ring.from_time(end, begin)
    assert (found if not isinstance(expected, int) else len(found or ())) == expected
    assert MARGIN == 5


# --- the hello -------------------------------------------------------------------------------------------------------


def test_hello_may_be_larger_than_messages(pairs: Pairs) -> None:
    client = Client(pairs, limits=Limits(max_message_size=100))
    client.hello(**{f"kept_{number}": "1.AAAAAAAAAAA" for number in range(900)})
    client.peer.text("x" * 101)
    [*_, last] = client.peer.until_end()
    assert last.opcode == CLOSE and last.close[0] == CloseCode.MESSAGE_TOO_BIG


@pytest.mark.parametrize("size", [HELLO_SIZE, HELLO_SIZE + 1])
def test_hello_has_a_limit(pairs: Pairs, size: int) -> None:
    client = Client(pairs)
    client.peer.text('{"hello": {}}'.ljust(size))
    greeting = client.connection.greeting
    assert greeting is not None
    until(lambda: not greeting.awaited or client.connection.close_code)
    assert client.connection.close_code == (None if size == HELLO_SIZE else CloseCode.PROTOCOL_ERROR)


def test_what_cannot_be_a_position_is_not_kept(pairs: Pairs) -> None:
    client = Client(pairs)
    client.hello(kept_a="1." + "A" * 10_000, kept_b=7)  # type: ignore[arg-type]
    greeting = client.connection.greeting
    assert greeting is not None and greeting.positions == {"kept:a": "", "kept:b": ""}
    with client.subscribe("kept:a"):
        assert client.got()[0]["reset"] == ["kept:a"]


def test_heart_does_not_beat_while_the_client_reads(pairs: Pairs) -> None:
    limits = Limits(ping_interval=0.5, outbox_size=1000, send_timeout=30.0)
    client = Client(pairs, limits=limits, narrow=True).hello()
    sending = gevent.spawn(client.websocket.send, "x" * 300_000)
    end = time.monotonic() + 2  # several beats
    while client.connection.state.name == "OPEN" and (time.monotonic() < end or not sending.dead):
        gevent.sleep(0.02)
        client.peer.write(frame(b"", PONG))  # it is there
        if time.monotonic() > end:
            client.peer.pump()
        else:
            client.peer.pump(1000)
    sending.get(timeout=10)
    assert client.connection.close_code is None

"""The subprotocol of docs/subprotocol.md, as a client of real servers sees it that was written from there."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import quote

import pytest
import redis as redis_py
from cryptography.fernet import Fernet
from websockets.exceptions import ConnectionClosed

from . import test_replay_views
from .support.clients import RawClient, fetch, fetch_json, notes
from .support.fixtures import Connect, Raw, StartSite
from .support.frames import BINARY, CLOSE, PING, Frame, close, close_frame, frame, text
from .support.processes import worker_of
from .support.resuming import NAME, OFFER, Received, ResumingClient, hello
from .support.servers import NOT_MEASURED, Server, redis_server
from .support.waiting import at_once, eventually
from .test_replay_views import position

LIMIT = 50_000
HISTORY = {
    "kept:*": {"messages": 10, "seconds": 3600},
    "long:*": {"messages": 1000, "seconds": 3600},
}
SETTINGS = {
    "WEBSOCKET_URLCONF": "testsite.resuming",
    "WEBSOCKET_HISTORY": HISTORY,
    "WEBSOCKET_OUTBOX_SIZE": LIMIT,
}
SINCE = "django-websocket-since"
WELCOME = text('{"welcome":{"protocol":null,"beat":20.0}}')


@pytest.fixture(scope="module")
def in_memory(start_site: StartSite) -> Iterator[Server]:
    """A site whose channels have a history."""
    with start_site(SETTINGS) as server:
        yield server
        check_log(server)


@pytest.fixture(scope="module")
def in_redis(start_site: StartSite, redis_url: str) -> Iterator[Server]:
    """The same with Redis."""
    with start_site({**SETTINGS, "WEBSOCKET_BROKER": redis_url}) as server:
        yield server
        check_log(server)


def check_log(server: Server) -> None:
    """Check that nothing has failed but what was to fail."""
    assert server.log.count("Error: ") == server.log.count("ValueError: raised by a view"), server.log[-8000:]


@pytest.fixture(scope="module", params=["memory", "redis"])
def server(request: pytest.FixtureRequest) -> Server:
    """The site with either broker."""
    server: Server = request.getfixturevalue(f"in_{request.param}")
    return server


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Whether the view is a function or a coroutine function."""
    return str(request.param)


@pytest.fixture(params=["subscribes", "listens"])
def method(request: pytest.FixtureRequest) -> str:
    """What the view does with the channel."""
    return str(request.param)


class Resuming(Protocol):
    """Makes a client that has not connected yet."""

    def __call__(
        self, server: Server, path: str, subprotocols: Sequence[str] = (), **options: Any
    ) -> ResumingClient: ...


@pytest.fixture
def resuming(connect: Connect) -> Resuming:
    """Makes clients that speak the subprotocol, and are closed after the test."""

    def make(server: Server, path: str, subprotocols: Sequence[str] = (), **options: Any) -> ResumingClient:
        return ResumingClient(connect, server, path, subprotocols, **options)

    return make


def address(
    kind: str, method: str, channel: str, key: str, options: Mapping[str, Any] | None = None, made: object = None
) -> str:
    """Return the path of a view of pasts.py, with the options for its subscription; `made` says when the page was."""
    path = f"/pasts/{kind}/{method}/{quote(channel)}/?key={key}&options={quote(json.dumps(options or {}))}"
    return path if made is None else f"{path}&{SINCE}={quote(str(made))}"


neighbours: dict[str, RawClient] = {}  # by the channel that they are subscribed to


def publish(server: Server, channel: str, message: str) -> None:
    """Publish by a page, and wait until the server has the message."""
    test_replay_views.publish(server, channel, message)
    arrived(channel, message)


def publish_numbers(server: Server, channel: str, first: int, last: int, size: int = 0) -> list[str]:
    """Publish numbers by a page, wait until the server has them, and return the messages."""
    messages = test_replay_views.publish_numbers(server, channel, first, last, size)
    if messages:
        arrived(channel, messages[-1])
    return messages


def arrived(channel: str, message: str) -> None:
    """Wait until a message is at hand in the server: Redis may have told the publisher first that it has it."""
    if channel in neighbours:
        while neighbours[channel].frame() != text(message):
            pass


def taken(client: ResumingClient, count: int) -> list[tuple[str | bytes, bool]]:
    """Return the next messages, and whether each was published before the connection."""
    return [(message.data, message.replayed) for message in (client.receive() for _ in range(count))]


def order(client: ResumingClient, *words: Any) -> None:
    """Have `obeys` do something."""
    client.send(json.dumps(words))


def said(client: ResumingClient, what: str = "!") -> None:
    """Check that nothing comes before what the view is told to send now."""
    order(client, "send", "text", what)
    assert client.receive() == Received(what)


def controlled(client: ResumingClient, member: str) -> Any:
    """Wait for a control object with this member behind all that have come, and return its value."""
    known = len(client.controls)
    while not any(member in control for control in client.controls[known:]):
        client.wait()
    return client.controls[-1][member]


def old(*messages: str | bytes) -> list[tuple[str | bytes, bool]]:
    return [(message, True) for message in messages]


def new(*messages: str | bytes) -> list[tuple[str | bytes, bool]]:
    return [(message, False) for message in messages]


def opened(raw: Raw, server: Server, path: str, behind: bytes = b"") -> RawClient:
    client = raw(server)
    response = client.open(path, OFFER, behind)
    assert response.headers["sec-websocket-protocol"] == NAME
    return client


def now() -> int:
    """The time by the clock of both brokers, which run on this machine."""
    return int(time.time())


# --- agreeing --------------------------------------------------------------------------------------------------------

ECHOES = {
    "sync": "/echo/",
    "async": "/echoes/async/",
    "application": "/echoes/application/",
    "sync consumer": "/echoes/consumer/sync/",
    "async consumer": "/echoes/consumer/async/",
}


@pytest.fixture(params=list(ECHOES))
def echo(request: pytest.FixtureRequest) -> str:
    """The path of an echo of some kind."""
    return ECHOES[request.param]


@pytest.mark.parametrize("offered", [NAME, f"v1.example, {NAME}", f"{NAME},v1.example", f"a,b , {NAME},c"])
def test_name_is_chosen_wherever_it_is_offered(in_memory: Server, raw: Raw, echo: str, offered: str) -> None:
    client = raw(in_memory)
    response = client.open(echo, {"Sec-WebSocket-Protocol": offered})
    assert response.headers["sec-websocket-protocol"] == NAME
    assert client.frame() == WELCOME


@pytest.mark.parametrize("offered", [NAME, f"v1.example, {NAME}"])
def test_name_is_chosen_for_a_refusal_by_a_close_code(in_memory: Server, raw: Raw, offered: str) -> None:
    client = raw(in_memory)
    response = client.open("/refuses/", {"Sec-WebSocket-Protocol": offered}, behind=frame(hello()))
    assert response.headers["sec-websocket-protocol"] == NAME
    assert client.closing()[0] == 4403


@pytest.mark.parametrize(
    "offered", ["django-websocket.2", "django-websocket.10", "Django-WebSocket.1", "x.django-websocket.1"]
)
def test_a_name_that_only_resembles_it_is_not_chosen(in_memory: Server, raw: Raw, offered: str) -> None:
    client = raw(in_memory)
    response = client.open("/echo/", {"Sec-WebSocket-Protocol": offered}, behind=frame("plain"))
    assert "sec-websocket-protocol" not in response.headers
    assert client.frame() == text("plain")


def test_welcome_names_the_subprotocol_of_the_application(in_memory: Server, resuming: Resuming, kind: str) -> None:
    for offered, chosen in (
        (["v1.example"], "v1.example"),
        (["v1.example", "v2.example"], "v2.example"),
        (["v3.example"], None),
        ([], None),
    ):
        client = resuming(in_memory, f"/obeys/{kind}/", offered).connect()
        assert client.protocol == chosen
        assert client.beat == 20


@pytest.mark.parametrize("offered", [[], ["v1.example"], ["v2.example", "v1.example"]])
def test_welcome_names_the_subprotocol_that_an_application_chooses(
    in_memory: Server, resuming: Resuming, offered: list[str]
) -> None:
    client = resuming(in_memory, "/tells-its-scope/", offered).connect()
    assert client.protocol == (offered[-1] if offered else None)
    assert json.loads(client.receive().data) == offered


@pytest.mark.parametrize("offered", [[], ["v1.example"], ["v2.example", "v1.example"]])
def test_welcome_names_the_subprotocol_that_a_consumer_chooses(
    in_memory: Server, resuming: Resuming, offered: list[str], kind: str
) -> None:
    steps = json.dumps([["accept", {"subprotocol": offered[-1]}] if offered else ["accept"]])
    client = resuming(in_memory, f"/consumer/{kind}/?connect={quote(steps)}", offered).connect()
    assert client.protocol == (offered[-1] if offered else None)
    client.send('[["send", "hello"]]')
    assert client.receive() == Received("hello")


@pytest.mark.parametrize("offered", [[], ["v1.example"], ["v2.example", "other"]])
def test_view_does_not_see_the_name_among_those_that_were_offered(
    in_memory: Server, resuming: Resuming, kind: str, offered: list[str]
) -> None:
    client = resuming(in_memory, f"/obeys/{kind}/", offered).connect()
    order(client, "offered")
    assert json.loads(client.receive().data) == (", ".join(offered) or None)


def test_plain_clients_get_plain_messages_on_the_same_channel(
    server: Server, resuming: Resuming, raw: Raw, key: str, kind: str, method: str
) -> None:
    for channel in (f"kept:{key}", f"plain:{key}"):
        path = address(kind, method, channel, key)
        client = resuming(server, path).connect().subscribed(channel)
        plain = raw(server)
        assert "sec-websocket-protocol" not in plain.open(path).headers
        publish(server, channel, "both")
        publish(server, channel, "s {}")
        assert [plain.frame(), plain.frame()] == [text("both"), text("s {}")]
        assert taken(client, 2) == new("both", "s {}")


# --- the first messages ----------------------------------------------------------------------------------------------

SAID: list[str | bytes] = [
    "text",
    "",
    "s",
    "p1::",
    "{}",
    hello(),
    "\u00e9\0\n",
    b"",
    b"binary",
    b"\xff\0s",
    hello().encode(),
    "x" * 30_000,
]
FRAMES = b"".join(map(frame, SAID))
ANSWERS = [text(f"s{message}") if isinstance(message, str) else Frame(BINARY, b"s" + message) for message in SAID]


def test_later_messages_reach_the_view_unchanged(in_memory: Server, resuming: Resuming, echo: str) -> None:
    client = resuming(in_memory, echo).connect()
    for message in SAID:
        client.send(message)
        assert client.receive() == Received(message)


def test_messages_may_come_with_the_hello_and_with_the_handshake(in_memory: Server, raw: Raw, echo: str) -> None:
    client = opened(raw, in_memory, echo, frame(hello()) + FRAMES)
    assert [client.frame() for _ in range(len(ANSWERS) + 1)] == [WELCOME, *ANSWERS]


def test_messages_may_come_with_the_hello_behind_the_welcome(in_memory: Server, raw: Raw, echo: str) -> None:
    client = opened(raw, in_memory, echo)
    assert client.frame() == WELCOME
    client.send(frame(hello()), FRAMES)
    assert [client.frame() for _ in ANSWERS] == ANSWERS


def test_hello_may_come_byte_by_byte(in_memory: Server, raw: Raw, echo: str) -> None:
    client = opened(raw, in_memory, echo)
    assert client.frame() == WELCOME
    for byte in frame(hello()) + frame("text") + frame("more"):
        client.send(bytes((byte,)))
    assert [client.frame(), client.frame()] == [text("stext"), text("smore")]


def test_hello_may_come_in_fragments_with_a_ping_between(in_memory: Server, raw: Raw, echo: str) -> None:
    message = hello({"x": "y"})
    client = opened(raw, in_memory, echo)
    client.send(frame(message[:5], fin=False), frame(b"?", PING), frame(message[5:].encode(), 0), frame("text"))
    assert {client.frame() for _ in range(3)} == {WELCOME, Frame(10, b"?"), text("stext")}


@pytest.mark.parametrize("messages", [[], ["one"], ["one", b"two"]])
def test_client_may_close_in_the_segment_of_its_hello(
    in_memory: Server, raw: Raw, echo: str, messages: list[str | bytes]
) -> None:
    client = opened(raw, in_memory, echo, b"".join(map(frame, [hello(), *messages])) + close_frame(1000))
    answers = [text("sone"), Frame(BINARY, b"stwo")][: len(messages)]
    assert [client.frame() for _ in range(len(messages) + 2)] == [WELCOME, *answers, close(1000)]


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/class/ann/", "ann: text"),
        ("/loop/ann/", "ann: text"),
        ("/undecorated/", "text"),
        ("/selects/{}/", "text"),
        ("/by-number/{}/", "text"),
        ("/forward/{}/", "text"),
    ],
)
def test_views_that_receive_in_other_ways_do_not_get_the_hello(
    in_memory: Server, resuming: Resuming, raw: Raw, key: str, path: str, answer: str
) -> None:
    client = resuming(in_memory, path.format(key)).connect()
    if path.startswith("/selects"):
        assert client.receive().data.isdigit()
        assert client.receive() == Received("subscribed")
    client.send("text")
    if path.startswith("/by-number"):
        assert client.receive() == Received("text")
        publish(in_memory, key, "text")
    assert client.receive().data == answer
    early = opened(raw, in_memory, path.format(key), frame(hello()) + frame("text"))
    received = early.frame()
    while not received.text.endswith(answer):
        received = early.frame()


def test_client_may_close_without_a_hello(in_memory: Server, raw: Raw, key: str, kind: str, method: str) -> None:
    logged = in_memory.log.count("hello")
    client = opened(raw, in_memory, address(kind, method, f"kept:{key}", key), close_frame(1000))
    assert [client.frame(), client.frame()] == [WELCOME, close(1000)]
    assert notes(in_memory.port, key) in (["closed 1000"], ["over"])
    assert in_memory.log.count("hello") == logged, "the client has done nothing wrong"


def test_view_that_drops_what_is_received_hears_the_hello(server: Server, resuming: Resuming, key: str) -> None:
    channel = f"kept:{key}"
    client = resuming(server, f"/only-sends/{channel}/?key={key}").connect().subscribed(channel)
    client.send("dropped")
    publish(server, channel, "1")
    assert taken(client, 1) == new("1")
    client.close()
    publish(server, channel, "2")
    client.connect()
    assert taken(client, 1) == old("2")
    fetch(server.port, f"/gate/{key}/")
    assert client.receive() == Received("end")


def test_messages_of_the_view_have_their_kind(in_memory: Server, raw: Raw, kind: str) -> None:
    client = opened(raw, in_memory, f"/obeys/{kind}/", frame(hello()))
    for how, what in (("text", "\u00e9"), ("text", ""), ("binary", "ff00"), ("binary", "")):
        client.send(frame(json.dumps(["send", how, what])))
    assert [client.frame() for _ in range(5)] == [
        *(WELCOME, text("s\u00e9"), text("s"), Frame(BINARY, b"s\xff\0"), Frame(BINARY, b"s")),
    ]


def test_published_messages_stand_behind_number_and_position(
    server: Server, raw: Raw, key: str, kind: str, method: str
) -> None:
    kept, plain = f"kept:{key}", f"plain:{key}"
    client = opened(raw, server, address(kind, method, kept, key, {"and": [plain]}), frame(hello()))
    assert client.frame() == WELCOME
    begin = position(server, kept)
    sub = json.loads(client.frame().text)
    number, other = sub["sub"][kept][0], sub["sub"][plain][0]
    assert number != other
    assert sub == {"sub": {kept: [number, begin, begin], plain: [other, None, None]}}
    for message in ("", "a:b"):
        publish(server, kept, message)
        assert client.frame() == text(f"p{number}:{position(server, kept)}:{message}")
        publish(server, plain, message)
        assert client.frame() == text(f"p{other}::{message}")


NO_HELLO: dict[str, str | bytes] = {
    "text": "hello",
    "empty": "",
    "empty binary": b"",
    "binary": b"\xff\0",
    "a binary hello": hello().encode(),
    "another object": '{"goodbye": {}}',
    "a list": '["hello"]',
    "a string": '"hello"',
    "a number": "1",
    "hello is null": '{"hello": null}',
    "hello is a list": '{"hello": []}',
    "hello is a text": '{"hello": "positions"}',
    "positions are a list": '{"hello": {"positions": []}}',
    "positions are pairs": '{"hello": {"positions": [["a", "b"]]}}',
    "positions are a text": '{"hello": {"positions": "1.AAAAAAAAAAA"}}',
    "positions are null": '{"hello": {"positions": null}}',
    "too many positions": hello({str(number): "1.AAAAAAAAAAA" for number in range(1001)}),
    "lists in lists": '{"hello": {"positions": ' + "[" * 100_000,
    "objects in objects": '{"hello": ' * 100_000,
    "too many digits": '{"hello": ' + "9" * 100_000 + "}",
    "long text": "x" * 900_000,
    "half a hello": hello()[:-1],
    "more than a hello": hello() + "}",
}


@pytest.mark.parametrize("name", NO_HELLO)
def test_client_whose_first_message_is_no_hello_is_closed(
    in_memory: Server, raw: Raw, key: str, kind: str, name: str
) -> None:
    method = "listens" if len(name) % 2 else "subscribes"
    path = address(kind, method, f"kept:{key}", key)
    client = opened(raw, in_memory, path, frame(NO_HELLO[name]) + frame("nobody reads this"))
    assert client.frame() == WELCOME
    assert client.frame().close[0] == 1002
    client.send(close_frame(1002))
    assert client.rest() == b""
    assert notes(in_memory.port, key)[0] in ("closed 1002", "over")
    assert fetch_json(in_memory.port, f"/pasts/ends/{quote(f'kept:{key}')}/")["kept"] == []


def test_log_has_one_line_about_a_client_that_does_not_say_hello(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site(SETTINGS) as server:
        for number, path in enumerate(ECHOES.values(), 1):
            client = opened(raw, server, path, frame("secret of the client"))
            assert client.closing()[0] == 1002
            client.send(close_frame(1002))
            assert eventually(lambda number=number: server.log.count(" 1002 ") >= number)  # type: ignore[misc]
        lines = [line for line in server.log.splitlines() if "hello" in line or "1002" in line]
        assert len([line for line in lines if "note" not in line]) == len(ECHOES)
        assert all("1002" in line for line in lines)
        assert "secret" not in server.log
        assert "Traceback" not in server.log


def test_client_that_says_nothing_is_closed(in_memory: Server, raw: Raw, key: str) -> None:
    paths = {
        address(kind, method, f"kept:{key}", f"{key}-{kind}-{method}"): f"{key}-{kind}-{method}"
        for kind in ("sync", "async")
        for method in ("subscribes", "listens")
    }
    begin = time.monotonic()
    clients = [opened(raw, in_memory, path) for path in paths]
    for client in clients:
        client.sock.settimeout(60)
        assert client.frame() == WELCOME
        assert client.frame().close[0] == 1008
        client.send(close_frame(1008))
        assert client.rest() == b""
    assert time.monotonic() - begin > 9
    for noted in paths.values():
        assert notes(in_memory.port, noted)[0] in ("closed 1008", "over")
    lines = [line for line in in_memory.log.splitlines() if " 1008 " in line]
    assert len(lines) == len(paths)


def test_thousand_positions_may_be_named(server: Server, resuming: Resuming, key: str, kind: str) -> None:
    channel = f"kept:{key}"
    begin = position(server, channel)
    publish(server, channel, "missed")
    positions = {f"kept:{number}": "1.AAAAAAAAAAA" for number in range(999)}
    client = resuming(server, address(kind, "subscribes", channel, key), positions={**positions, channel: begin})
    assert taken(client.connect(), 1) == old("missed")


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["alone", "beside another"])
def beside(request: pytest.FixtureRequest, server: Server, raw: Raw, key: str) -> Iterator[None]:
    """Nobody else is subscribed, so that the broker is asked for the past, or somebody is, so that it is at hand."""
    if request.param != "alone":
        for channel in (f"kept:{key}", f"long:{key}"):
            neighbours[channel] = raw(server)
            neighbours[channel].open(address("sync", "listens", channel, ""))
    yield
    neighbours.clear()


@pytest.mark.usefixtures("beside")
def test_client_goes_on_where_it_was(server: Server, resuming: Resuming, key: str, kind: str, method: str) -> None:
    channel = f"long:{key}"
    client = resuming(server, address(kind, method, channel, key)).connect().subscribed(channel)
    first = 0
    for _ in range(3):
        live = publish_numbers(server, channel, first, first + 3)
        assert taken(client, 3) == new(*live)
        client.close()
        missed = publish_numbers(server, channel, first + 3, first + 8)
        client.connect().subscribed(channel)
        live = publish_numbers(server, channel, first + 8, first + 10)
        assert taken(client, 7) == old(*missed) + new(*live)
        client.connect().subscribed(channel)
        first += 10
    assert client.resets == []
    assert client.positions == {channel: position(server, channel)}


def test_channel_may_have_any_name(server: Server, resuming: Resuming, key: str, kind: str) -> None:
    channel = f'kept:\u00e9\u20ac "{key}'
    client = resuming(server, address(kind, "subscribes", channel, key)).connect().subscribed(channel)
    client.send("live")
    assert client.receive()[:2] == ("live", channel)
    client.close()
    publish(server, channel, "missed")
    assert taken(client.connect(), 1) == old("missed")


def test_client_that_got_nothing_yet_goes_on_from_the_subscription(
    server: Server, resuming: Resuming, key: str, kind: str, method: str
) -> None:
    channel = f"kept:{key}"
    publish(server, channel, "before")
    client = resuming(server, address(kind, method, channel, key)).connect().subscribed(channel)
    client.close()
    publish(server, channel, "missed")
    assert taken(client.connect(), 1) == old("missed")


def test_client_that_vanishes_in_the_middle_of_its_past_goes_on_from_there(
    server: Server, resuming: Resuming, key: str, kind: str
) -> None:
    channel = f"long:{key}"
    client = resuming(server, address(kind, "subscribes", channel, key)).connect().subscribed(channel)
    expected = publish_numbers(server, channel, 0, 20)
    client.close()
    got = []
    client.positions = {channel: client.controls[-1]["sub"][channel][1]}
    for _ in range(10):
        client.connect()
        got += taken(client, 2)
        client.connection.socket.shutdown(socket.SHUT_RDWR)
    assert got == old(*expected)


def test_binary_messages_are_replayed(server: Server, resuming: Resuming, key: str, kind: str) -> None:
    channel = f"kept:{key}"
    path = address(kind, "subscribes", channel, key)
    client = resuming(server, path).connect().subscribed(channel)
    client.close()
    other = resuming(server, path).connect().subscribed(channel)
    messages: list[str | bytes] = [b"\xff\0:", "text", b"", "", b"p1::"]
    for message in messages:
        other.send(message)
    assert taken(other, 5) == new(*messages)
    assert taken(client.connect(), 5) == old(*messages)
    other.send(b"live")
    assert taken(client, 1) == new(b"live")


def test_several_channels_of_which_some_have_a_history(
    server: Server, resuming: Resuming, key: str, kind: str, method: str
) -> None:
    names = [f"kept:{key}", f"plain:{key}", f"long:{key}"]
    client = resuming(server, address(kind, method, names[0], key, {"and": names[1:]})).connect().subscribed(*names)
    for name in names:
        publish(server, name, f"live {name}")
    assert [client.receive() for _ in names] == [
        Received(f"live {name}", name, client.positions.get(name)) for name in names
    ]
    assert list(client.positions) == [names[0], names[2]]
    client.close()
    for name in names * 2:
        publish(server, name, f"missed {name}")
    client.connect()
    missed = [client.receive() for _ in range(4)]
    assert all(message.replayed for message in missed)
    assert sorted(str(message.data) for message in missed) == sorted([f"missed {names[0]}", f"missed {names[2]}"] * 2)
    for name in names:
        publish(server, name, "live again")
    assert [(message.channel, message.replayed) for message in (client.receive() for _ in names)] == [
        (name, False) for name in names
    ]
    assert client.resets == []


def test_channels_of_several_subscriptions_keep_their_order(
    server: Server, resuming: Resuming, key: str, kind: str
) -> None:
    names = [f"kept:{key}", f"plain:{key}", f"long:{key}"]
    client = resuming(server, f"/obeys/{kind}/").connect()
    for name in names:
        order(client, "subscribe", [name], {})
    client.subscribed(*names)
    for number in range(5):
        for name in names:
            publish(server, name, str(number))
    got = [client.receive() for _ in range(15)]
    assert [(message.channel, message.data) for message in got] == [
        (name, str(number)) for number in range(5) for name in names
    ]


@pytest.mark.parametrize("on_slow", ["close", "drop_oldest", "latest"])
def test_client_goes_on_whatever_becomes_of_slow_ones(
    server: Server, resuming: Resuming, key: str, kind: str, method: str, on_slow: str
) -> None:
    channel = f"kept:{key}"
    client = resuming(server, address(kind, method, channel, key, {"on_slow": on_slow})).connect().subscribed(channel)
    publish(server, channel, "live")
    assert taken(client, 1) == new("live")
    client.close()
    missed = publish_numbers(server, channel, 0, 3)
    client.connect().subscribed(channel)
    publish(server, channel, "live")
    assert taken(client, 4) == old(*missed) + new("live")


def test_what_is_published_before_the_hello_comes_behind_the_past(
    server: Server, resuming: Resuming, raw: Raw, key: str, kind: str, method: str
) -> None:
    channel = f"kept:{key}"
    begin = position(server, channel)
    publish(server, channel, "missed")
    client = opened(raw, server, address(kind, method, channel, key))
    assert client.frame() == WELCOME
    publish(server, channel, "live")
    client.send(frame(hello({channel: begin})))
    number, first, last = json.loads(client.frame().text)["sub"][channel]
    assert (first, int(last.partition(".")[0])) == (begin, 1)
    assert client.frame() == text(f"p{number}:{last}:missed")
    assert client.frame() == text(f"p{number}:{position(server, channel)}:live")


def test_what_is_published_during_a_snapshot_is_live(
    server: Server, resuming: Resuming, key: str, kind: str, method: str
) -> None:
    for channel in (f"kept:{key}", f"plain:{key}"):
        path = address(kind, method, channel, f"{key}-{channel}", {"snapshot": "slow"})
        client = resuming(server, path).connect()
        assert notes(server.port, f"{key}-{channel}")[0] == "snapshot"
        numbers = publish_numbers(server, channel, 0, 5)
        fetch(server.port, f"/gate/{key}-{channel}/")
        assert client.receive() == Received("state")
        assert taken(client, 5) == new(*numbers)
        client.close()
        publish(server, channel, "missed")
        if channel.startswith("kept"):
            assert taken(client.connect(), 1) == old("missed")


# --- gaps ------------------------------------------------------------------------------------------------------------

UNKNOWN = [
    *["", "1", "1.", ".AAAAAAAAAAA", "1.AAAAAAAAAAA", "0.AAAAAAAAAAA", "-1.AAAAAAAAAAA", "99999999999.AAAAAAAAAAA"],
    *["9" * 5000 + ".AAAAAAAAAAA", "1.AAAAAAAAAAA.2", "\u0661.AAAAAAAAAAA", "\ud800", "x" * 10_000, " 1.AAAAAAAAAAA\n"],
]


@pytest.mark.usefixtures("beside")
def test_client_is_told_that_its_position_is_not_kept_any_more(
    server: Server, resuming: Resuming, key: str, kind: str, method: str
) -> None:
    channel = f"kept:{key}"
    client = resuming(server, address(kind, method, channel, key)).connect().subscribed(channel)
    client.close()
    publish_numbers(server, channel, 0, 11)
    client.connect().subscribed(channel)
    publish(server, channel, "live")
    assert taken(client, 1) == new("live")
    assert client.resets == [channel]
    assert client.controls[-1]["sub"][channel][1] == client.controls[-1]["sub"][channel][2]
    client.close()
    publish(server, channel, "missed")
    assert taken(client.connect(), 1) == old("missed")
    assert client.resets == [channel]


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("gap", ["trimmed", "too large"])
def test_snapshot_or_notice_of_the_view_comes_in_place_of_a_reset(
    server: Server, resuming: Resuming, key: str, kind: str, method: str, gap: str
) -> None:
    channel = f"kept:{key}"
    begin = position(server, channel)
    publish_numbers(server, channel, 0, 11 if gap == "trimmed" else 9, size=0 if gap == "trimmed" else 8000)
    cases: list[tuple[dict[str, Any], list[str | bytes]]] = [
        ({"snapshot": "text"}, ["state"]),
        ({"on_missed": {"missed": 1}}, ['{"missed":1}']),
        ({"snapshot": "text", "on_missed": "missed"}, ["state"]),
        ({"snapshot": "generator"}, ["one", b"\xff\0", '{"three":3}']),
        ({"snapshot": "none"}, []),
    ]
    for options, expected in cases:
        path = address(kind, method, channel, key, options)
        client = resuming(server, path, positions={channel: begin}).connect()
        assert [client.receive() for _ in expected] == [Received(message) for message in expected]
        client.subscribed(channel)
        publish(server, channel, "live")
        assert taken(client, 1) == new("live")
        assert client.resets == []
        client.close()


def test_past_without_a_gap_replaces_the_snapshot(
    server: Server, resuming: Resuming, key: str, kind: str, method: str
) -> None:
    channel = f"kept:{key}"
    path = address(kind, method, channel, key, {"snapshot": "text"})
    client = resuming(server, path).connect()
    assert client.receive() == Received("state")
    client.subscribed(channel).close()
    publish(server, channel, "missed")
    assert taken(client.connect(), 1) == old("missed")
    client.close()
    client.connect().subscribed(channel)
    publish(server, channel, "live")
    assert taken(client, 1) == new("live")


def test_position_that_nobody_has_given_out_is_reset(
    server: Server, resuming: Resuming, key: str, kind: str, method: str
) -> None:
    channel = f"kept:{key}"
    publish_numbers(server, channel, 0, 3)
    for place in UNKNOWN:
        client = resuming(server, address(kind, method, channel, key), positions={channel: place})
        client.connect().subscribed(channel)
        publish(server, channel, "live")
        assert taken(client, 1) == new("live"), place
        assert client.resets == [channel], place
        client.close()


def test_position_that_is_no_text_is_reset(
    server: Server, resuming: Resuming, raw: Raw, key: str, kind: str, method: str
) -> None:
    channel = f"kept:{key}"
    publish_numbers(server, channel, 0, 3)
    places: list[Any] = [1, 1.5, True, [], {}, [position(server, channel)]]
    for place in places:
        client = opened(raw, server, address(kind, method, channel, key), frame(hello({channel: place})))
        assert client.frame() == WELCOME
        assert json.loads(client.frame().text).get("reset") == [channel], place


def test_position_of_another_channel_is_reset(
    server: Server, resuming: Resuming, key: str, kind: str, method: str
) -> None:
    channel, other = f"kept:{key}", f"kept:{key}-2"
    for each in (channel, other):
        publish_numbers(server, each, 0, 3)
    place = position(server, other)
    publish_numbers(server, channel, 3, 6)
    client = resuming(server, address(kind, method, channel, key), positions={channel: place})
    client.connect().subscribed(channel)
    publish(server, channel, "live")
    assert taken(client, 1) == new("live")
    assert client.resets == [channel]


def test_position_in_a_channel_without_history_is_not_used(
    server: Server, resuming: Resuming, key: str, kind: str, method: str
) -> None:
    channel = f"plain:{key}"
    client = resuming(server, address(kind, method, channel, key), positions={channel: "1.AAAAAAAAAAA"})
    client.connect().subscribed(channel)
    publish(server, channel, "live")
    assert client.receive() == Received("live", channel)
    assert client.resets == []


def test_gap_in_one_of_several_channels_gives_nothing_of_any(
    server: Server, resuming: Resuming, key: str, kind: str, method: str
) -> None:
    """A client is never given part of the past as if it were all of it."""
    channel, other = f"kept:{key}", f"long:{key}"
    client = resuming(server, address(kind, method, channel, key, {"and": [other]})).connect()
    client.subscribed(channel, other).close()
    publish_numbers(server, channel, 0, 11)
    publish_numbers(server, other, 0, 11)
    client.connect().subscribed(channel, other)
    publish(server, other, "live")
    assert taken(client, 1) == new("live")
    assert set(client.resets) == {channel, other}


# --- what goes before what -------------------------------------------------------------------------------------------


def test_position_is_used_for_one_subscription(server: Server, resuming: Resuming, key: str, kind: str) -> None:
    channel = f"kept:{key}"
    client = resuming(server, f"/obeys/{kind}/").connect()
    order(client, "subscribe", [channel], {})
    client.subscribed(channel).close()
    publish(server, channel, "missed")
    client.connect()
    order(client, "subscribe", [channel], {})
    assert taken(client, 1) == old("missed")
    order(client, "leave")
    assert controlled(client, "unsub") == [channel]
    publish(server, channel, "between the two")
    order(client, "subscribe", [channel], {})
    controlled(client, "sub")
    publish(server, channel, "live")
    assert taken(client, 1) == new("live")
    assert client.resets == []


def test_position_waits_for_the_subscription_that_it_is_for(
    server: Server, resuming: Resuming, key: str, kind: str
) -> None:
    channels = [f"kept:{key}", f"long:{key}"]
    client = resuming(server, f"/obeys/{kind}/", positions={each: position(server, each) for each in channels})
    for channel in channels:
        publish(server, channel, f"missed of {channel}")
    client.connect()
    said(client)
    for channel in reversed(channels):
        order(client, "subscribe", [channel], {})
        assert taken(client, 1) == old(f"missed of {channel}")
        said(client)


@pytest.mark.usefixtures("beside")
def test_hello_goes_before_what_the_view_wishes(
    server: Server, resuming: Resuming, key: str, kind: str, method: str
) -> None:
    channel = f"kept:{key}"
    begin = position(server, channel)
    numbers = publish_numbers(server, channel, 0, 2)
    middle = position(server, channel)
    numbers += publish_numbers(server, channel, 2, 5)
    cases: list[tuple[dict[str, Any], int]] = [
        ({"last": 1}, 3),
        ({"last": 4}, 3),
        ({"since": begin}, 3),
        ({"since": "unknown"}, 3),
    ]
    for options, count in cases:
        path = address(kind, method, channel, key, options)
        client = resuming(server, path, positions={channel: middle}).connect()
        assert taken(client, count) == old(*numbers[-count:])
        client.subscribed(channel)
        if method == "subscribes":
            client.send("leave")
            assert client.receive() == Received("left")
        assert client.resets == []


def test_view_may_wish_what_the_client_does_not_name(
    server: Server, resuming: Resuming, key: str, kind: str, method: str
) -> None:
    for wish, count in (("last", 2), ("since", 5), ("since of the channel", 5)):
        channel = f"kept:{key}-{wish}"
        begin = position(server, channel)
        numbers = publish_numbers(server, channel, 0, 5)
        since: dict[str, Any] = {"since": begin, "since of the channel": {channel: begin}}
        options = {"since": since[wish]} if wish in since else {"last": 2}
        client = resuming(server, address(kind, method, channel, key, options)).connect()
        assert taken(client, count) == old(*numbers[-count:])
        client.close()
        publish(server, channel, "missed")
        client.connect().subscribed(channel)
        publish(server, channel, "live")
        assert taken(client, 2) == old("missed") + new("live")
        assert client.resets == []


def test_client_is_told_if_what_the_view_wishes_is_not_kept(
    server: Server, resuming: Resuming, key: str, kind: str, method: str
) -> None:
    channel = f"kept:{key}"
    client = resuming(server, address(kind, method, channel, key, {"since": "unknown"})).connect().subscribed(channel)
    publish(server, channel, "live")
    assert taken(client, 1) == new("live")
    assert client.resets == [channel]


@pytest.mark.parametrize("place", ["known", "unknown"])
def test_view_may_refuse_to_go_on(
    server: Server, resuming: Resuming, key: str, kind: str, method: str, place: str
) -> None:
    channel = f"kept:{key}"
    begin = position(server, channel)
    publish(server, channel, "missed")
    path = address(kind, method, channel, key, {"since": False}, now())
    client = resuming(server, path, positions={channel: begin if place == "known" else "unknown"})
    for _ in range(2):
        client.connect().subscribed(channel)
        publish(server, channel, "live")
        assert taken(client, 1) == new("live")
        client.close()
        publish(server, channel, "missed")
    assert client.resets == []


# --- unsub -----------------------------------------------------------------------------------------------------------


def test_client_forgets_a_channel_after_a_block_that_ends_normally(
    server: Server, resuming: Resuming, key: str, kind: str
) -> None:
    channels = [f"kept:{key}", f"plain:{key}"]
    client = resuming(server, f"/obeys/{kind}/").connect()
    order(client, "subscribe", channels, {})
    client.subscribed(*channels)
    order(client, "leave")
    assert sorted(controlled(client, "unsub")) == channels
    assert client.positions == {}
    publish(server, channels[0], "nobody hears this")
    said(client)


@pytest.mark.parametrize("how", ["subscribe", "subscribe without a block"])
def test_client_goes_on_after_a_view_that_has_failed(
    in_memory: Server, resuming: Resuming, key: str, kind: str, how: str
) -> None:
    channel = f"kept:{key}"
    client = resuming(in_memory, f"/obeys/{kind}/").connect()
    order(client, how, [channel], {})
    client.subscribed(channel)
    order(client, "raise")
    assert client.closing()[0] == 1011
    assert not any("unsub" in control for control in client.controls)
    publish(in_memory, channel, "missed")
    client.connect()
    order(client, how, [channel], {})
    assert taken(client, 1) == old("missed")
    assert client.resets == []


def test_client_stays_subscribed_while_another_block_has_the_channel(
    server: Server, resuming: Resuming, key: str, kind: str
) -> None:
    channel = f"kept:{key}"
    client = resuming(server, f"/obeys/{kind}/").connect()
    order(client, "subscribe without a block", [channel], {})
    client.subscribed(channel)
    order(client, "subscribe", [channel, f"kept:{key}-2"], {})
    client.subscribed(f"kept:{key}-2")
    order(client, "leave")
    said(client)
    assert channel in client.positions
    client.close()
    publish(server, channel, "missed")
    client.connect()
    order(client, "subscribe", [channel], {})
    assert taken(client, 1) == old("missed")


def test_nothing_of_a_channel_follows_its_unsub(start_site: StartSite, raw: Raw, key: str) -> None:
    channel, count = f"long:{key}", 300
    with start_site({**SETTINGS, "WEBSOCKET_OUTBOX_SIZE": 4 * 1024 * 1024}) as server:
        publish_numbers(server, channel, 0, count, size=3000)
        for kind in ("sync", "async"):
            client = raw(server, receive_buffer=2048, segment=536)
            orders = [["subscribe", [channel], {"last": count}], ["leave"], ["send", "text", "left"]]
            client.open(f"/obeys/{kind}/", OFFER, frame(hello()) + b"".join(frame(json.dumps(each)) for each in orders))
            received = [client.frame().text]
            while not ("sleft" in received and any(each.startswith('{"unsub') for each in received)):
                received.append(client.frame().text)
            client.send(frame(json.dumps(["send", "text", "the end"])))
            while received[-1] != "sthe end":
                received.append(client.frame().text)
            client.send(close_frame())
            kinds = [each[:6] if each[0] == "{" else each[0] for each in received]
            assert kinds.count("p") == count
            assert "p" not in kinds[kinds.index('{"unsu') :]


# --- control ---------------------------------------------------------------------------------------------------------


def test_server_shows_that_it_is_there_whatever_the_client_does(
    start_site: StartSite, resuming: Resuming, raw: Raw, key: str
) -> None:
    interval = 0.4
    with start_site({**SETTINGS, "WEBSOCKET_PING_INTERVAL": interval}) as server:
        plain = raw(server)
        plain.open("/echo/")
        begin = time.monotonic()
        clients = [resuming(server, path).connect() for path in ECHOES.values()]
        silent = [
            resuming(server, address(kind, "listens", f"kept:{key}", key)).connect() for kind in ("sync", "async")
        ]
        while any(client.controls.count({}) < 3 for client in clients):
            for client in clients:
                client.send("x")
                assert client.receive() == Received("x")
            assert time.monotonic() - begin < 60, "the server's heart does not beat"
        assert time.monotonic() - begin > 2 * interval
        for client in silent:
            while client.controls.count({}) < 3:
                client.wait()
        assert all(client.beat == interval for client in clients + silent)
        plain.send(frame("to the plain client"))
        while (received := plain.frame()).opcode == PING:
            pass
        assert received == text("to the plain client")
        plain.send(close_frame())


def test_client_is_told_when_to_come_back_after_a_restart(
    start_site: StartSite, resuming: Resuming, raw: Raw, key: str
) -> None:
    channel = f"kept:{key}"
    with start_site({**SETTINGS, "WEBSOCKET_CLOSE_TIMEOUT": 5.0}) as server:
        follows = [
            address(kind, method, channel, "") for kind in ("sync", "async") for method in ("subscribes", "listens")
        ]
        paths = [*follows, *ECHOES.values()]
        clients = [resuming(server, path).connect() for path in paths]
        for client in clients[: len(follows)]:
            client.subscribed(channel)
        plain = [raw(server) for _ in paths]
        for each, path in zip(plain, paths, strict=True):
            each.open(path)
        assert eventually(lambda: fetch_json(server.port, "/census/")["open connections"] == 2 * len(paths))
        server.send_signal(signal.SIGTERM)
        for client in clients:
            assert client.closing() == (1012, "restart")
            assert client.advice is not None
            assert client.advice.keys() == {"after", "within"}
            assert all(value > 0 for value in client.advice.values())
            assert not any("unsub" in control for control in client.controls)
        for each in plain:
            received = each.frame()
            assert (received.opcode, received.close) == (CLOSE, (1012, "restart"))
            each.send(close_frame(1012))
        server.wait()


# --- compression -----------------------------------------------------------------------------------------------------


def test_large_messages_arrive_whatever_was_agreed_on_compression(
    server: Server, resuming: Resuming, connect: Connect, key: str, kind: str
) -> None:
    channel = f"long:{key}"
    path = address(kind, "subscribes", channel, key)
    clients = [resuming(server, path, compression=how).connect().subscribed(channel) for how in ("deflate", None) * 2]
    plain = [connect(server, path, compression=how) for how in ("deflate", None) * 2]
    texts = ["short", "", "compressible " * 1500, os.urandom(10_000).hex(), "\u00e9\u20ac" * 4000]
    messages: list[str | bytes] = [*texts, b"", b"\0" * 20_000, os.urandom(20_000), texts[2]]
    for message in messages:
        clients[0].send(message)
        for client in clients:
            assert client.receive()[:2] == (message, channel)
        for other in plain:
            assert other.recv() == message
    for client in clients[1:3]:
        client.close()
    for message in messages[2:4]:
        clients[0].send(message)
        assert clients[0].receive().data == message
    for client in clients[1:3]:
        assert taken(client.connect(), 2) == old(*messages[2:4])


def test_large_messages_of_the_view_arrive_compressed(in_memory: Server, resuming: Resuming, echo: str) -> None:
    for how in ("deflate", None):
        client = resuming(in_memory, echo, compression=how).connect()
        for message in ("x" * 40_000, os.urandom(20_000), "", b"", "\u00e9" * 3000, "x" * 40_000):
            client.send(message)
            assert client.receive() == Received(message)


# --- a page that connects for the first time -------------------------------------------------------------------------


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("count", [1, 9])
def test_page_gets_what_was_published_since_it_was_made(
    server: Server, resuming: Resuming, key: str, kind: str, method: str, count: int
) -> None:
    channel = f"kept:{key}"
    made = now()
    missed = publish_numbers(server, channel, 0, count)
    client = resuming(server, address(kind, method, channel, key, made=made)).connect().subscribed(channel)
    publish(server, channel, "live")
    assert taken(client, count + 1) == old(*missed) + new("live")
    client.close()
    publish(server, channel, "missed")
    client.connect().subscribed(channel)
    publish(server, channel, "live")
    assert taken(client, 2) == old("missed") + new("live")
    assert client.resets == []


@pytest.mark.usefixtures("beside")
def test_page_does_not_get_what_was_published_long_before(
    server: Server, resuming: Resuming, key: str, kind: str, method: str
) -> None:
    channel = f"kept:{key}"
    publish_numbers(server, channel, 0, 12)
    client = resuming(server, address(kind, method, channel, key, made=now() + 60)).connect().subscribed(channel)
    publish(server, channel, "live")
    assert taken(client, 1) == new("live")
    assert client.resets == []


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("ago", [0, 3000])
def test_page_is_not_told_anything_if_nothing_was_published(
    server: Server, resuming: Resuming, key: str, kind: str, method: str, ago: int
) -> None:
    channel = f"kept:{key}"
    client = resuming(server, address(kind, method, channel, key, made=now() - ago)).connect().subscribed(channel)
    publish(server, channel, "live")
    assert taken(client, 1) == new("live")
    assert client.resets == []


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("published", [0, 3])
def test_page_is_told_that_its_time_is_not_known(
    server: Server, resuming: Resuming, key: str, kind: str, method: str, published: int
) -> None:
    channel = f"kept:{key}"
    publish_numbers(server, channel, 0, published)
    for made in (str(now() - 3700), "-", "", "soon", "1e9", "-5", "0", "\u0661", "9" * 13):
        client = resuming(server, address(kind, method, channel, key, made=made)).connect().subscribed(channel)
        publish(server, channel, "live")
        assert taken(client, 1) == new("live"), made
        assert client.resets == [channel], made
        client.close()


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("gap", ["trimmed", "too large"])
def test_page_is_told_that_not_all_is_kept_since_it_was_made(
    server: Server, resuming: Resuming, key: str, kind: str, method: str, gap: str
) -> None:
    channel = f"kept:{key}"
    made = now()
    publish_numbers(server, channel, 0, 11 if gap == "trimmed" else 9, size=0 if gap == "trimmed" else 8000)
    client = resuming(server, address(kind, method, channel, key, made=made)).connect().subscribed(channel)
    publish(server, channel, "live")
    assert taken(client, 1) == new("live")
    assert client.resets == [channel]
    told = resuming(server, address(kind, method, channel, key, {"on_missed": "missed"}, made)).connect()
    assert told.receive() == Received("missed")
    publish(server, channel, "live")
    assert taken(told, 1) == new("live")
    assert told.resets == []


@pytest.mark.parametrize("since", ["now", "-"])
def test_time_of_the_page_is_not_used_if_the_view_wishes_something(
    server: Server, resuming: Resuming, key: str, kind: str, method: str, since: str
) -> None:
    made = since.replace("now", str(now()))
    for wish in ("last 1", "last 0", "since", "snapshot", "refused"):
        channel = f"kept:{key}-{wish}"
        publish_numbers(server, channel, 0, 2)
        middle = position(server, channel)
        numbers = publish_numbers(server, channel, 2, 5)
        cases: dict[str, tuple[dict[str, Any], list[tuple[str | bytes, bool]]]] = {
            "last 1": ({"last": 1}, old(numbers[-1])),
            "last 0": ({"last": 0}, []),
            "since": ({"since": middle}, old(*numbers)),
            "snapshot": ({"snapshot": "text"}, new("state")),
            "refused": ({"since": False}, []),
        }
        options, expected = cases[wish]
        client = resuming(server, address(kind, method, channel, key, options, made)).connect()
        assert taken(client, len(expected)) == expected
        client.subscribed(channel)
        publish(server, channel, "live")
        assert taken(client, 1) == new("live")
        assert client.resets == []
        client.close()


@pytest.mark.parametrize("since", ["now", "-"])
def test_time_of_the_page_is_for_channels_that_the_hello_does_not_name(
    server: Server, resuming: Resuming, key: str, kind: str, method: str, since: str
) -> None:
    channel, other = f"kept:{key}", f"long:{key}"
    since = since.replace("now", str(now()))
    for each in (channel, other):
        publish(server, each, "before")
    place = position(server, channel)
    publish(server, channel, "missed")
    path = address(kind, method, channel, key, {"and": [other]}, since)
    client = resuming(server, path, positions={channel: place}).connect()
    if since == "-":
        client.subscribed(other)
        assert {*client.resets} == {channel, other}
    else:
        assert client.receive()[:2] == ("missed", channel)
        assert client.receive()[:2] == ("before", other)
        assert client.resets == []
    publish(server, other, "live")
    assert client.receive()[:2] == ("live", other)


def test_time_of_the_page_gives_nothing_to_plain_clients(
    server: Server, connect: Connect, key: str, kind: str, method: str
) -> None:
    channel = f"kept:{key}"
    publish(server, channel, "before")
    for since in (now(), "-"):
        client = connect(server, address(kind, method, channel, key, made=since))
        publish(server, channel, "live")
        assert client.recv() == "live"


def times(server: Server, query: str = "") -> list[str]:
    """Return what the addresses of a page say about time."""
    page = fetch(server.port, f"/pasts/address/{query}")
    assert page.status == 200
    return re.findall(rf"/echo/\?{SINCE}=(\S+)", page.body.decode())


def known_times(server: Server) -> list[str]:
    """Do the same, once the broker has told its time: no page waits for long until it does."""
    found: list[str] = []

    def are_known() -> bool:
        found[:] = times(server)
        return "-" not in found

    assert eventually(are_known)
    return found


def test_addresses_have_the_time_at_which_the_request_began(server: Server, resuming: Resuming, key: str) -> None:
    channel = f"kept:{key}"
    before = time.time()
    with ThreadPoolExecutor(1) as thread:
        page = thread.submit(times, server, f"?key={key}")
        began = float(notes(server.port, key)[0])
        publish(server, channel, "while the page was made")
        assert eventually(lambda: time.time() > began + 2)
        fetch(server.port, f"/gate/{key}/")
        first, second = page.result()
    assert first == second
    assert before - 2 < int(first) <= began
    client = resuming(server, address("sync", "subscribes", channel, key, made=first)).connect()
    assert taken(client, 1) == old("while the page was made")


def test_addresses_have_no_time_on_a_site_without_history(site: Server) -> None:
    assert times(site) == []
    assert b"/echo/ ws://" in fetch(site.port, "/pasts/address/").body


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_addresses_say_at_once_that_the_time_is_not_known(
    start_site: StartSite, resuming: Resuming, how: signal.Signals, key: str
) -> None:
    with redis_server() as redis, start_site({**SETTINGS, "WEBSOCKET_BROKER": f"redis://{redis.address}"}) as server:
        assert all(re.fullmatch("[0-9]+", since) for since in known_times(server))
        if how == signal.SIGKILL:
            redis.stop(how)
        else:
            redis.send_signal(how)
        with at_once():
            assert times(server) == ["-", "-"]
        with at_once():
            assert times(server) == ["-", "-"]
        if how == signal.SIGKILL:
            redis.start()
        else:
            redis.send_signal(signal.SIGCONT)
        assert abs(int(known_times(server)[0]) - time.time()) < 60
        assert "Traceback" not in server.log


# --- what befalls the server -----------------------------------------------------------------------------------------


def test_client_misses_nothing_when_workers_are_killed(
    start_site: StartSite, in_redis: Server, resuming: Resuming, redis_url: str, key: str, kind: str
) -> None:
    channel, count = f"long:{key}", 300
    with start_site({**SETTINGS, "WEBSOCKET_BROKER": redis_url}) as server, ThreadPoolExecutor(1) as thread:
        client = resuming(server, address(kind, "subscribes", channel, key)).connect().subscribed(channel)
        got: list[str | bytes] = []
        kill_at = [20, 100, 180]

        def publish_all() -> None:
            for number in range(count):
                publish(in_redis, channel, str(number))

        def come_back() -> bool:
            with suppress(OSError, EOFError, ConnectionClosed):
                client.connect()
                return True
            return False

        def kill_worker() -> bool:
            with suppress(ValueError):  # between two workers there is none
                os.kill(worker_of(server), signal.SIGKILL)
                return True
            return False

        publishing = thread.submit(publish_all)
        while len(got) < count:
            try:
                got.append(client.receive().data)
            except ConnectionClosed:
                assert eventually(come_back, 30)
                continue
            if kill_at and len(got) >= kill_at[0]:
                kill_at.pop(0)
                assert eventually(kill_worker)
        publishing.result()
        assert not kill_at
        assert got == [str(number) for number in range(count)]
        assert client.resets == []


def test_client_is_told_if_redis_has_lost_everything(start_site: StartSite, resuming: Resuming, key: str) -> None:
    channel = f"kept:{key}"
    with redis_server() as redis, start_site({**SETTINGS, "WEBSOCKET_BROKER": f"redis://{redis.address}"}) as server:
        closed = resuming(server, address("sync", "listens", channel, key)).connect().subscribed(channel)
        told = resuming(server, address("async", "listens", channel, key, {"on_missed": "missed"})).connect()
        told.subscribed(channel)
        publish(server, channel, "before")
        assert taken(closed, 1) == taken(told, 1) == new("before")
        redis.stop(signal.SIGKILL)
        redis.start()
        assert eventually(lambda: fetch(server.port, f"/publish/{channel}/?text=lost").status == 200, 30)
        assert told.receive(30) == Received("missed")
        assert closed.closing()[0] == 1012
        closed.connect().subscribed(channel)
        assert closed.resets == [channel]
        publish(server, channel, "live")
        assert taken(closed, 1) == new("live")
        while told.receive() != Received("live", channel, position(server, channel)):
            pass
        told.close()
        publish(server, channel, "missed")
        assert taken(told.connect(), 1) == old("missed")
        assert told.resets == []


def test_message_of_another_program_has_no_position(
    in_redis: Server, resuming: Resuming, redis: Server, key: str, kind: str
) -> None:
    channel = f"kept:{key}"
    with redis_py.Redis(port=redis.port) as program:
        client = resuming(in_redis, address(kind, "subscribes", channel, key)).connect().subscribed(channel)
        publish(in_redis, channel, "kept")
        assert taken(client, 1) == new("kept")
        program.publish(channel, "bare")
        assert client.receive() == Received("bare", channel)
        assert client.positions == {channel: position(in_redis, channel)}


@pytest.mark.parametrize("broker", ["encrypted", "cluster"])
def test_every_broker_knows_the_time_and_the_past(
    request: pytest.FixtureRequest, start_site: StartSite, resuming: Resuming, redis_url: str, key: str, broker: str
) -> None:
    channel = f"kept:{key}"
    setting: Any = {"url": redis_url, "encryption_keys": [Fernet.generate_key().decode()]}
    if broker == "cluster":
        setting = f"redis+cluster://{request.getfixturevalue('cluster').nodes[0].address}"
    with start_site({**SETTINGS, "WEBSOCKET_BROKER": setting}) as server:
        made, _ = known_times(server)
        publish(server, channel, "since")
        client = resuming(server, address("sync", "listens", channel, key, made=made)).connect().subscribed(channel)
        publish(server, channel, "live")
        assert taken(client, 2) == old("since") + new("live")
        client.close()
        publish(server, channel, "missed")
        assert taken(client.connect(), 1) == old("missed")


# --- leaks -----------------------------------------------------------------------------------------------------------

EXACT = ("open connections", "views", "descriptors", "descriptors of readables", "channels")
CLIENTS = 200


@pytest.mark.parametrize("broker", ["memory", "redis"])
def test_clients_leave_nothing(start_site: StartSite, raw: Raw, redis_url: str, key: str, broker: str) -> None:
    settings = {**SETTINGS, **({"WEBSOCKET_BROKER": redis_url} if broker == "redis" else {})}

    def come_and_go(count: int, names: str) -> None:
        clients = []
        for number in range(count):
            channel = f"kept:{names}-{number // 4}"
            kind, method = ("sync", "async")[number % 2], ("subscribes", "listens")[number // 2 % 2]
            positions = {channel: "1.AAAAAAAAAAA"} if number % 3 else {}
            said = frame(hello(positions)) if number % 5 else b""
            client = raw(server)
            client.open(address(kind, method, channel, "", made=now()), OFFER, said)
            if number % 7 == 0:
                client.send(frame("bare" if number % 5 == 0 else "to be published"))
            clients.append(client)
        for number, client in enumerate(clients):
            assert client.frame() == WELCOME
            if number % 4 == 0:
                client.reset()
            else:
                client.send(close_frame(1000))
                client.rest()
                client.sock.close()
        assert eventually(lambda: not fetch_json(server.port, "/census/")["views"])

    def counts() -> dict[str, int]:
        found = fetch_json(server.port, "/census/")
        kept = {name: found.get(name, 0) for name in EXACT}
        kept["greenlets"] = fetch_json(server.port, "/state/")["greenlets"]
        ours = {name: count for name, count in found.items() if name.startswith("django_websocket.")}
        return {**kept, **{name: count // (CLIENTS // 4) for name, count in ours.items() if "memory" not in name}}

    def grown() -> dict[str, int]:
        after = counts()
        return {name: count for name, count in after.items() if count > before.get(name, 0)}

    with start_site(settings, env=NOT_MEASURED) as server:
        come_and_go(CLIENTS, key)
        assert eventually(lambda: not fetch_json(server.port, "/census/")["open connections"])
        before = counts()
        come_and_go(CLIENTS, key)
        assert eventually(lambda: not grown()), grown()

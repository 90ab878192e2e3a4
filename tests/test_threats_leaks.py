"""Two thousand connections that end in every possible way, and leave nothing."""

from __future__ import annotations

import socket
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import pytest
import redis as redis_py

from .support.clients import RawClient, fetch_json, request
from .support.fixtures import StartSite
from .support.frames import close_frame, frame
from .support.processes import memory, worker_of
from .support.servers import NOT_MEASURED, Server, redis_server
from .support.waiting import eventually

pytestmark = pytest.mark.slow

EACH = 20  # connections to each view that end in each way
VIEWS = ("/echo/", "/selects/{}/", "/forward/{}/", "/listen/{}/", "/by-number/{}/")

# How much more the process may hold when the connections of one way have ended. Some counts may not grow at all. Memory
# blocks and the objects of each type must grow by less than one for each connection to a single view.
EXACT = {"open connections", "views", "descriptors", "descriptors of readables", "open databases", "channels"}
ALLOWED = dict.fromkeys(EXACT, 0) | {"active watchers": 1}
ALLOWED_OF_ANYTHING_ELSE = EACH * 3 // 4
# Objects that are made once and kept appear in an early attempt: Python 3.10 makes a cache for each function at its
# 1024th call. A leak appears in every attempt.
ATTEMPTS = 16

UNMASKED = b"\x81\x00"  # a protocol error, which the server answers with 1002
HEAD = request("/echo/", {"Cookie": "a=b"})


class Way(NamedTuple):
    """A way for connections to end: `begin` gets the path of the view, and `end` runs when all have begun."""

    name: str
    begin: Callable[[RawClient, str], object]
    end: Callable[[RawClient], object]


def opened(data: bytes = b"", path: str = "") -> Callable[[RawClient, str], object]:
    """Open a WebSocket, with `data` right after the request."""
    return lambda client, view: client.open(path or view, behind=data)


def sent(data: bytes) -> Callable[[RawClient, str], object]:
    """Send something instead of a request, or a request without waiting for the answer."""
    return lambda client, view: client.send(data)


def close(client: RawClient) -> None:
    client.send(close_frame(1000))
    assert client.closing()[0] == 1000
    assert client.rest() == b""


def be_closed(code: int, data: bytes = b"") -> Callable[[RawClient], object]:
    """Send something that makes the server close, and answer its close frame."""

    def end(client: RawClient) -> None:
        client.send(data)
        assert client.closing()[0] == code
        client.send(close_frame(code))
        assert client.rest() == b""

    return end


def be_refused(client: RawClient) -> None:
    assert client.response().status in (403, 426)
    assert client.rest() == b""


def half_close(client: RawClient) -> None:
    client.sock.shutdown(socket.SHUT_WR)
    client.rest()


def leave(client: RawClient) -> None:
    client.sock.close()


def reset(data: bytes = b"") -> Callable[[RawClient], object]:
    def end(client: RawClient) -> None:
        client.send(data)
        client.reset()

    return end


def stay(client: RawClient) -> None:
    """Neither read nor send nor leave."""


WAYS = [
    Way("clean", opened(), close),
    Way("clean, after a message", opened(frame("hello")), close),
    Way("clean, begun by the server", opened(), be_closed(1002, UNMASKED)),
    Way("begun by the server, and never answered", opened(UNMASKED), stay),
    Way("the view returns", opened(frame("go"), "/end/return/"), be_closed(1000)),
    Way("the view raises", opened(frame("go"), "/end/raise/"), be_closed(1011)),
    Way("half-closed", opened(), half_close),
    Way("half-closed in a message of fragments", opened(frame("x" * 9000, fin=False)), half_close),
    Way("half-closed in a close frame", opened(close_frame(1000, "bye")[:5]), half_close),
    Way("the end of the stream", opened(), leave),
    Way("the end of the stream in a frame", opened(frame("x" * 100)[:50]), leave),
    Way("the end of the stream in the head", sent(HEAD[:-30]), leave),
    Way("a reset", opened(), reset()),
    Way("a reset in a frame", opened(frame("x" * 100)[:50]), reset()),
    Way("a reset in a close frame", opened(close_frame(1000, "bye")[:5]), reset()),
    Way("a reset behind a close frame", opened(), reset(close_frame(1000))),
    Way("a reset behind more than an inbox", opened(), reset(frame("x" * 100) * 1000 + close_frame(1000))),
    Way("a reset in the head", sent(HEAD[:10]), reset()),
    Way("a reset before the answer", lambda client, view: reset(request(view))(client), stay),
    Way("a reset while the view decides", sent(request("/takes-its-time/")), reset()),
    Way("refused for its origin", sent(request("/echo/", {"Origin": "null"})), be_refused),
    Way("refused for its version", sent(request("/echo/", {"Sec-WebSocket-Version": "8"})), be_refused),
]


def census(server: Server) -> dict[str, int]:
    """Count what the process holds."""
    with RawClient(server.port) as client:  # the last data from Redis are kept until the next: make them small
        client.open("/listen/last/", behind=close_frame(1000))
        client.rest()
    found: dict[str, int] = fetch_json(server.port, "/census/")
    return found


def is_quiet(server: Server) -> bool:
    found = census(server)
    return not found["open connections"] and not found["views"]


def come_and_go(server: Server, way: Way, channels: str) -> None:
    """Open connections to each view, on channels of their own, end them, and wait until they are gone."""
    with ExitStack() as stack:
        clients = []
        for number in range(EACH):
            for view in VIEWS:
                client = stack.enter_context(RawClient(server.port))
                way.begin(client, view.format(f"{channels}-{number}"))
                clients.append(client)
        for client in clients:
            way.end(client)
        assert eventually(lambda: is_quiet(server)), f"{way.name}: connections or views are left"


def leave_nothing(server: Server, ways: Sequence[Way], redis: Server, channels: str) -> None:
    """End connections in each way, and compare what the server holds before and after."""

    def more() -> dict[str, int]:
        grown = {name: count - before.get(name, 0) for name, count in census(server).items()}
        return {name: count for name, count in grown.items() if count > ALLOWED.get(name, ALLOWED_OF_ANYTHING_ELSE)}

    come_and_go(server, ways[0], channels)
    worker = worker_of(server)
    kibibytes = memory(worker)
    for way in ways:
        for attempt in range(1, ATTEMPTS + 1):
            before = census(server)
            come_and_go(server, way, channels)
            eventually(lambda: not more().keys() & EXACT, 2)  # descriptors are closed a moment later
            if not more():
                break
            assert attempt < ATTEMPTS, f"{way.name}: there is more of {more()}"
    assert memory(worker) - kibibytes < 16 * 1024
    with redis_py.Redis(port=redis.port) as client:
        assert not client.pubsub_channels()
        assert len(client.client_list()) <= 16 + 2  # the publisher, the subscriber, and this client


@pytest.mark.timeout(300)  # thousands of connections, which on a busy machine take two minutes
def test_connections_that_end_in_any_way_leave_nothing(start_site: StartSite, key: str) -> None:
    with (
        redis_server() as redis,
        start_site({"WEBSOCKET_BROKER": f"redis://{redis.address}/0"}, env=NOT_MEASURED) as server,
    ):
        leave_nothing(server, WAYS, redis, key)


def test_clients_that_vanished_leave_nothing(start_site: StartSite, key: str) -> None:
    impatient = {"WEBSOCKET_PING_INTERVAL": 0.5, "WEBSOCKET_PING_TIMEOUT": 0.5}
    with (
        redis_server() as redis,
        start_site({"WEBSOCKET_BROKER": f"redis://{redis.address}/0", **impatient}, env=NOT_MEASURED) as server,
    ):
        leave_nothing(server, [Way("vanished", opened(), stay)], redis, key)


def test_request_is_freed_with_its_conversation_without_the_collector(start_site: StartSite) -> None:
    def alive(way: Callable[[RawClient], None] = close) -> str:
        with RawClient(server.port) as client:
            client.open("/counts-requests/")
            counted = client.frame().text
            way(client)
        return counted

    with start_site() as server:
        for _ in range(3):
            alive(RawClient.reset)
            alive()
        if sys.version_info < (3, 11):  # its contextlib keeps the frames of an exception that passes through asgiref
            fetch_json(server.port, "/census/")  # runs the collector
        assert eventually(lambda: alive() == "AnonymousUser 1 1")  # this connection's own


@pytest.mark.parametrize("how", ["gets", "selects"])
def test_view_that_ends_by_an_exception_is_freed_without_the_collector(start_site: StartSite, how: str) -> None:
    def left() -> int:
        with RawClient(server.port) as client:
            client.open(f"/ends/count/?of={how}")
            return int(client.frame().text)

    with start_site() as server:
        for _ in range(10):
            with RawClient(server.port) as client:
                client.open(f"/ends/{how}/")
                close(client)
        assert eventually(lambda: left() == 0), left()


def test_names_and_values_that_a_client_makes_up_leave_with_it(start_site: StartSite) -> None:
    """This includes Python 3.12, where interned strings stay for as long as the process."""

    def come_and_go(times: int) -> None:
        for _ in range(times):
            unique = uuid.uuid4().hex
            own = {f"X-{unique}": unique * 100, "Cookie": f"a={unique * 200}", "User-Agent": unique * 200}
            with RawClient(server.port) as client:
                client.open(f"/echo/?{unique * 50}", own, behind=close_frame(1000))
                client.rest()

    with start_site(env=NOT_MEASURED) as server:
        come_and_go(200)
        before = memory(worker_of(server))
        come_and_go(1200)
        assert memory(worker_of(server)) - before < 6 * 1024  # while 20 MiB were sent


def test_greenlets_of_a_view_that_wait_for_a_channel_end_with_its_client(start_site: StartSite) -> None:
    with start_site() as server:
        before = fetch_json(server.port, "/state/")
        with ExitStack() as stack:
            for number in range(EACH):
                client = stack.enter_context(RawClient(server.port))
                client.open("/has-helpers/", behind=frame("hello"))
                assert client.frame().text == "hello"
                if number % 2:
                    close(client)
            assert eventually(lambda: fetch_json(server.port, "/census/")["channels"] >= 1)
        assert eventually(lambda: fetch_json(server.port, "/census/")["channels"] <= 1)
        assert eventually(lambda: fetch_json(server.port, "/state/")["greenlets"] <= before["greenlets"] + 2)

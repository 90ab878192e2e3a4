"""Each limit is in force in a project that sets none of them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from .support.clients import RawClient, request
from .support.frames import PING, close_frame, frame
from .support.servers import TEST_PROJECT, Server, gunicorn
from .support.waiting import eventually

NO_LIMITS = [f"WEBSOCKET_{name}" for name in ("URLCONF", "SERVER", "BROKER", "HISTORY", "ALLOWED_ORIGINS")]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    settings = (TEST_PROJECT / "project" / "settings.py").read_text()
    assert [line.split(" = ")[0] for line in settings.splitlines() if line.startswith("WEBSOCKET_")] == NO_LIMITS
    with gunicorn() as server:
        yield server


def seconds(since: float) -> float:
    return time.monotonic() - since


def head_that_never_ends(server: Server) -> float:
    """`WEBSOCKET_HANDSHAKE_TIMEOUT`."""
    begin = time.monotonic()
    with RawClient(server.port) as client:
        client.sock.settimeout(60)
        client.send(request("/echo/")[:-2])
        assert client.response().status == 408
    return seconds(begin)


def silence_until_the_ping(server: Server) -> float:
    """`WEBSOCKET_PING_INTERVAL`."""
    begin = time.monotonic()
    with RawClient(server.port) as client:
        client.sock.settimeout(60)
        client.open("/echo/")
        assert client.frame().opcode == PING
    return seconds(begin)


def silence_until_the_end(server: Server) -> float:
    """`WEBSOCKET_PING_INTERVAL` and `WEBSOCKET_PING_TIMEOUT`, for a client that vanished silently."""
    begin = time.monotonic()
    with RawClient(server.port) as client:
        client.sock.settimeout(60)
        client.open("/echo/")
        assert client.frame().opcode == PING
        assert client.closing()[0] == 1011
        assert client.rest() == b""
    return seconds(begin)


def answers_that_nobody_reads(server: Server) -> float:
    """`WEBSOCKET_SEND_TIMEOUT`, for messages that the view itself sends."""
    with RawClient(server.port, receive_buffer=4096) as client:
        client.sock.settimeout(0.5)
        client.open("/echo/")
        begin = time.monotonic()
        with suppress(TimeoutError):  # the server stops reading, since the view is stuck in send()
            while True:
                client.send(frame("x" * 60_000))
        assert eventually(lambda: "127.0.0.1 /echo/: 1008 does not read\n" in server.log, 30)
    return seconds(begin)


def end_that_is_not_acknowledged(server: Server) -> float:
    """`WEBSOCKET_CLOSE_TIMEOUT`."""
    begin = time.monotonic()
    with RawClient(server.port) as client:
        client.open("/echo/", behind=b"\x81\x00")  # not masked
        assert client.closing()[0] == 1002
        with suppress(OSError):
            while seconds(begin) < 30:
                client.send(b"\x81\x00")
                time.sleep(0.1)
    return seconds(begin)


TIMES: list[tuple[Callable[[Server], float], float]] = [
    (head_that_never_ends, 10),
    (silence_until_the_ping, 20),
    (silence_until_the_end, 40),
    (answers_that_nobody_reads, 20),
    (end_that_is_not_acknowledged, 5),
]


def test_time_limits(server: Server) -> None:
    with ThreadPoolExecutor(len(TIMES)) as pool:
        running = [(pool.submit(measure, server), expected) for measure, expected in TIMES]
        for future, expected in running:
            assert expected - 1 < future.result() < expected + 5


def test_message_size_limit(server: Server, raw: Callable[..., RawClient]) -> None:
    client = raw(server)
    client.open("/echo/")
    client.send(frame("x" * (1 << 20)))
    assert len(client.frame().text) == 1 << 20
    client.send(frame("x" * ((1 << 20) + 1))[:20])
    assert client.closing()[0] == 1009


def test_compression(server: Server, raw: Callable[..., RawClient]) -> None:
    client = raw(server)
    response = client.open("/echo/", {"Sec-WebSocket-Extensions": "permessage-deflate"})
    assert "server_no_context_takeover" in response.headers["sec-websocket-extensions"]
    client.send(frame("x" * 1023), frame("x" * 1024))
    assert len(client.frame().text) == 1023
    assert len(client.frame(compressed=True).payload) < 100


def test_clients_are_told_of_a_restart_one_after_another() -> None:
    with gunicorn() as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.port)) for _ in range(40)]
        for client in clients:
            client.open("/echo/")
        server.send_signal(signal.SIGTERM)
        with ThreadPoolExecutor(len(clients)) as pool:

            def told(client: RawClient) -> float:
                assert client.closing()[0] == 1012
                client.send(close_frame(1012))
                return time.monotonic()

            times = sorted(pool.map(told, clients))
        *gaps, _ = sorted(after - before for before, after in zip(times, times[1:], strict=False))
        assert 0.5 < sum(gaps) < 3  # without the longest gap, in which the machine may have stalled
        assert gaps[-1] < 1

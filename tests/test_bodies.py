"""The bodies of requests for pages served beside WebSockets: bodies that come slowly or never."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .support.clients import RawClient, fetch, notes
from .support.fixtures import Raw, StartSite
from .support.servers import Server
from .support.waiting import eventually

HASTE = 1.0  # seconds, for WEBSOCKET_HANDSHAKE_TIMEOUT
PLACES = 20


@pytest.fixture(scope="module")
def hasty(start_site: StartSite) -> Iterator[Server]:
    arguments = ["--worker-connections", str(PLACES)]
    with start_site({"WEBSOCKET_HANDSHAKE_TIMEOUT": HASTE}, args=arguments) as server:
        yield server


def post(how: str, query: str = "") -> bytes:
    return f"POST /upload/{how}/{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000\r\n\r\n".encode()


@pytest.mark.parametrize("begun", [b"", b"x"])
def test_requests_whose_bodies_never_come_give_up_their_places(hasty: Server, begun: bytes) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(hasty.port)) for _ in range(PLACES)]
        begin = time.monotonic()
        for client in clients:
            client.send(post("read"), begun)
        for client in clients:
            response = client.response()
            assert (response.status, response.headers["connection"]) == (408, "close")
            assert client.rest() == b""
        assert 0.9 * HASTE < time.monotonic() - begin < HASTE + 3
    assert eventually(lambda: fetch(hasty.port, "/page/").status == 200, 2)
    assert eventually(lambda: "127.0.0.1: 408 the body of the request: it came too slowly\n" in hasty.log)
    assert "Traceback" not in hasty.log


def test_finally_of_the_page_runs_when_its_body_does_not_come(hasty: Server, raw: Raw, key: str) -> None:
    raw(hasty).send(post("read", query=f"?key={key}"))
    assert notes(hasty.port, key) == ["finally"]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_body_that_comes_byte_by_byte_is_given_up(
    start_site: StartSite, certificate: tuple[Path, Path], raw: Raw, secure: bool
) -> None:
    arguments = ["--certfile", str(certificate[0]), "--keyfile", str(certificate[1])] if secure else []
    with start_site({"WEBSOCKET_HANDSHAKE_TIMEOUT": HASTE}, args=arguments, probe=b"") as server:
        client = raw(server, tls=secure)
        client.send(post("read"))
        client.sock.settimeout(0.05)
        begin = time.monotonic()
        while time.monotonic() - begin < HASTE + 4:
            try:
                client.send(b"x")
                received = client.sock.recv(1000)
            except TimeoutError:
                continue
            assert received.startswith(b"HTTP/1.1 408 ")
            return
        pytest.fail("the client may go on for ever")


def test_slow_but_steady_upload_is_read_to_its_end(hasty: Server, raw: Raw) -> None:
    client = raw(hasty)
    client.send(post("read"))
    begin = time.monotonic()
    for _ in range(30):
        client.send(b"x" * 100)
        time.sleep(0.1)  # a thousand bytes a second
    assert time.monotonic() - begin > 2 * HASTE
    response = client.response()
    assert (response.status, response.body) == (200, b"3000")


def test_time_that_the_page_takes_does_not_count_against_the_client(hasty: Server, raw: Raw) -> None:
    client = raw(hasty)
    client.send(post("pause"), b"x" * 2000)
    time.sleep(2.0 * HASTE)
    client.send(b"x" * 1000)
    assert client.response().body == b"3000"


def test_answer_that_has_begun_is_cut_off_with_the_connection(hasty: Server, raw: Raw) -> None:
    client = raw(hasty)
    client.send(post("answer-first"))
    answer = client.rest()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.count(b"HTTP/1.1") == 1
    assert not answer.endswith(b"0\r\n\r\n")  # this would make it look complete
    assert eventually(lambda: "127.0.0.1: the body of the request: it came too slowly\n" in hasty.log)


def test_each_request_of_a_connection_has_its_own_time(hasty: Server, raw: Raw) -> None:
    client = raw(hasty)
    for _ in range(5):
        client.send(post("read"))
        time.sleep(0.4 * HASTE)
        client.send(b"x" * 3000)
        assert client.response().body == b"3000"
    client.open("/echo/")

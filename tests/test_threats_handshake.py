"""Handshakes that were made to do harm, sent to a running server; test_threats.py has the list of all threats."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator

import pytest

from .support.clients import RawClient, fetch, notes, request, undisturbed
from .support.fixtures import Raw, StartSite
from .support.processes import descriptors, forget_peak, memory, peak_memory, worker_of
from .support.servers import NOT_MEASURED, TEST_PROJECT, Server, gunicorn
from .support.waiting import at_once, eventually


@pytest.fixture(scope="module")
def server(start_site: StartSite) -> Iterator[Server]:
    """The test site, in a process whose memory and time are measured."""
    with start_site(env=NOT_MEASURED) as server:
        yield server


# --- origins, hosts and addresses ------------------------------------------------------------------------------------


def test_page_whose_name_was_bound_to_this_address_is_refused(server: Server, raw: Raw, key: str) -> None:
    """DNS rebinding: to the browser, the attacker's page and this server are the same site."""
    client = raw(server)
    client.send(request(f"/accepts/?key={key}", {"Host": "evil.example", "Origin": "http://evil.example"}))
    assert client.response().status == 400
    assert client.rest() == b""
    raw(server).open(f"/accepts/?key={key}")
    assert notes(server.port, key, 2) == ["accepted", "finally"]  # from the second handshake only


def test_claims_of_a_client_that_is_not_a_trusted_proxy_count_for_nothing(start_site: StartSite, raw: Raw) -> None:
    claims = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "friend.example", "Forwarded": "proto=https"}
    with start_site(args=["--forwarded-allow-ips", "192.0.2.1"]) as server:
        raw(server).open("/echo/", {**claims, "Origin": "http://localhost"})
        for origin in ("https://localhost", "http://friend.example"):
            client = raw(server)
            client.send(request("/echo/", {**claims, "Origin": origin}))
            assert client.response().status == 403


def test_page_names_no_address_that_a_client_made_up() -> None:
    with gunicorn("project.wsgi:application", cwd=TEST_PROJECT) as server:
        assert fetch(server.port, "/echo/", {"Host": "evil.example"}).status == 400
        page = fetch(server.port, "/echo/", {"X-Forwarded-Host": "evil.example"})
        assert "ws://localhost/echo/" in page.body.decode()
        assert b"evil.example" not in page.body


# --- malformed heads -------------------------------------------------------------------------------------------------


def garbled(data: bytes, chance: random.Random) -> bytes:
    """The request with random parts changed, doubled, lost or added."""
    for _ in range(chance.randint(1, 3)):
        begin = chance.randrange(len(data))
        end = min(len(data), begin + chance.choice((1, 1, 1, 5, 40)))
        part = chance.choice((b"", data[begin:end] * 2, chance.randbytes(1), b" ", b"\r\n", b":", b","))
        data = data[:begin] + part + data[end:]
    return data


def test_no_garbled_handshake_causes_an_error_in_the_server(start_site: StartSite) -> None:
    chance = random.Random(1)
    statuses = set()
    offered = {"Origin": "http://localhost", "Sec-WebSocket-Protocol": "a, b", "Cookie": "sessionid=x; messages=y"}
    offered["Sec-WebSocket-Extensions"] = "permessage-deflate; client_max_window_bits=15"
    with start_site(env=NOT_MEASURED) as server:
        with undisturbed(server.port):
            for _ in range(500):
                with RawClient(server.port) as client:
                    client.send(garbled(request("/echo/?a=b", offered), chance))
                    client.sock.shutdown(socket.SHUT_WR)  # the end of the request
                    answer = client.rest()
                    if answer:
                        statuses.add(int(answer.split(b" ", 2)[1]))
        assert statuses >= {101, 400, 403, 426}
        assert not statuses & {*range(500, 600)} - {505}, statuses
        assert "Internal Server Error" not in server.log
        assert "Error handling request" not in server.log


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(request("/echo/", version="HTTP/2.0"), id="HTTP/2 in words"),
        pytest.param(b"GET /echo/\r\n\r\n", id="HTTP/0.9"),
        pytest.param(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + request("/echo/"), id="a PROXY line"),
        pytest.param(b"*1\r\n$4\r\nPING\r\n\r\n", id="Redis"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="TLS"),
        pytest.param(request("/echo/\xff"), id="a path that is not ASCII"),
        pytest.param(request("/echo/ x"), id="a path with a space"),
        pytest.param(request("/echo/", {"X-Note ": "x"}), id="a space before the colon"),
        pytest.param(request("/echo/", {"X-Note": "a\r\n b"}), id="a folded line"),
        pytest.param(request("/echo/", {"Content-Length": "-0"}), id="length -0"),
        pytest.param(request("/echo/", {"Content-Length": "+0"}), id="length +0"),
        pytest.param(request("/echo/", {"Content-Length": "0_0"}), id="length 0_0"),
        pytest.param(request("/echo/", {"Transfer-Encoding": "identity"}), id="identity"),
        pytest.param(request("/echo/", {"Transfer-Encoding": "\tchunked, identity"}), id="chunked, and more"),
    ],
)
def test_malformed_requests_are_refused(server: Server, raw: Raw, data: bytes) -> None:
    client = raw(server)
    with at_once():
        client.send(data, request("/page/"))
        assert client.response().status == 400
        assert client.rest() == b""


@pytest.mark.parametrize(
    "separator", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\r", "\n", "\r\r", "\n\n", "\0", "\xa0", "\u00ad"]
)
def test_nothing_but_a_line_break_ends_a_line(server: Server, raw: Raw, separator: str) -> None:
    session = f"sessionid={fetch(server.port, '/enter/').cookies['sessionid']}"
    raw(server).open("/members/", {"Cookie": session})  # a smuggled line would let the client in like this
    for name in ("X-Note", "Origin", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"):
        client = raw(server)
        client.send(request("/members/", {name: f"a{separator}Cookie: {session}"}))
        assert client.response().status in (302, 400, 403)
        assert client.rest() == b""
    client = raw(server)
    client.send(request(f"/members/ HTTP/1.1{separator}Cookie: {session}{separator}X: "))
    assert client.response().status == 400


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/members/?next=%0d%0aX-Bad:%201%0d%0a%0d%0a", {}),  # for the Location header
        ("/members/%0d%0aX-Bad:%201/", {}),
        ("//evil.example/%0d%0aX-Bad:%201/", {}),
        ("/subprotocols/", {"Sec-WebSocket-Protocol": "v9.example, X-Bad"}),
        ("/echo/", {"Sec-WebSocket-Extensions": "x-bad; x-bad=1, permessage-deflate; x-bad"}),
        ("/echo/", {"X-Bad": "1", "Cookie": "x-bad=1", "Accept-Language": "x-bad", "User-Agent": "X-Bad: 1"}),
    ],
)
def test_no_header_of_the_answer_repeats_what_was_sent(
    server: Server, raw: Raw, path: str, headers: dict[str, str]
) -> None:
    client = raw(server)
    client.send(request(path, headers))
    response = client.response()
    assert response.status in (101, 302, 404)
    assert "x-bad" not in response.headers
    assert not [value for name, value in response.headers.items() if name != "location" and "x-bad" in value.lower()]
    assert (response.status == 302) == response.headers.get("location", "").startswith("/login/?next=/members/")


# --- heads that are too large ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "without_end", "status"),
    [
        pytest.param(b"GET /echo/?", b"x" * 4096, 414, id="request line"),
        pytest.param(b"GET /echo/ HTTP/1.1\r\nHost: localhost\r\nX-Long: ", b"x" * 4096, 431, id="header"),
        pytest.param(b"GET /echo/ HTTP/1.1\r\nHost: localhost\r\n", b"X-Many: 1\r\n" * 400, 431, id="headers"),
        pytest.param(b"GET /echo/ HTTP/1.1\r\nHost: localhost\r\n", b"X-Many: 1\r\n \tfolded" * 200, 431, id="folded"),
    ],
)
def test_endless_head_is_refused_and_not_kept(
    server: Server, raw: Raw, begin: bytes, without_end: bytes, status: int
) -> None:
    worker = worker_of(server)
    before = memory(worker), descriptors(worker)
    forget_peak(worker)
    with undisturbed(server.port), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.port)) for _ in range(5)]
        for client in clients:
            client.send(begin)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                for _ in range(4 * 1024 * 1024 // len(without_end)):
                    client.send(without_end)
                pytest.fail("the server reads a head of 4 MiB")
            assert int(client.rest().split(b" ", 2)[1]) == status
    assert peak_memory(worker) - before[0] < 10 * 1024
    assert eventually(lambda: descriptors(worker) <= before[1])


LONG = "x" * 7000


@pytest.mark.parametrize("path", ["/echo/", "/refuse/403/", "/missing/"])
@pytest.mark.parametrize(
    ("query", "headers", "fits"),
    [
        ("", {f"X-{number}": LONG for number in range(4)}, True),
        ("", {f"X-{number}": LONG for number in range(5)}, False),
        (LONG[:3000], {"Cookie": f"a={LONG}", **{f"X-{number}": LONG for number in range(4)}}, False),
        ("", {"Cookie": "; ".join(f"a{number}={number}" for number in range(450))}, True),
        ("", {"Cookie": "; ".join(f"a{number}={number}" for number in range(550))}, False),
        ("&".join(f"a{number}" for number in range(300)), {"Cookie": ";a=b" * 300}, False),
    ],
    ids=["28 KB", "35 KB", "38 KB", "450 cookies", "550 cookies", "300 parameters and 300 cookies"],
)
def test_head_that_is_too_large_to_keep_is_refused(
    server: Server, raw: Raw, path: str, query: str, headers: dict[str, str], fits: bool
) -> None:
    client = raw(server)
    client.send(request(f"{path}?{query}", headers))
    response = client.response()
    assert (response.status == 431) == (not fits), response
    page = raw(server)
    page.send(request("/page/", {**headers, "Upgrade": None, "Connection": None}))
    assert page.response().status == 200  # pages may use all that gunicorn allows


@pytest.mark.parametrize(
    "name", ["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Connection", "Upgrade", "Origin"]
)
def test_long_value_is_parsed_at_once(server: Server, raw: Raw, name: str) -> None:
    """A regular expression that backtracks would take years for one of these."""
    for piece in (" ", "\t", ",", ", ", ";", "; ", "a;", ";a=", 'a="', '";a="\\', ";a=a", "a,a;", "a.", "a"):
        long = piece * (8000 // len(piece))
        for value in (long, f"a{long}", f"a{long}\x7f", f'a;a{long}"', f"websocket, upgrade{long}!"):
            client = raw(server)
            with at_once():
                client.send(request("/echo/", {name: value}))
                assert client.response().status in (101, 200, 400, 403, 426)

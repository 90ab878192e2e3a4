"""Which clients are let in: deadlines for the heads of requests, and the answer when there is no room."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .support.clients import RawClient, fetch, notes, request
from .support.fixtures import Raw, StartSite
from .support.frames import close_frame, frame
from .support.mishaps import Mishaps
from .support.processes import descriptors, processor_time, worker_of
from .support.servers import Server
from .support.waiting import at_once, eventually

pytestmark = pytest.mark.slow

HASTE = 1.0  # seconds, for WEBSOCKET_HANDSHAKE_TIMEOUT


def answers(server: Server) -> None:
    """Check that another client is served as usual."""
    with RawClient(server.port) as client, at_once():
        client.open("/echo/", behind=frame("hello"))
        assert client.frame().text == "hello"


# --- deadlines -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["2", "0"], ids=["keepalive", "no keepalive"])
def hasty(start_site: StartSite, request: pytest.FixtureRequest) -> Iterator[Server]:
    with start_site({"WEBSOCKET_HANDSHAKE_TIMEOUT": HASTE}, args=["--keep-alive", request.param]) as server:
        yield server


@pytest.mark.parametrize("begun", [b"", b"GET", request("/echo/")[:-2], b"GET /echo/ HTTP/1.1\r\nX-Long: "])
def test_head_that_does_not_come_in_time_is_answered_with_408(hasty: Server, raw: Raw, begun: bytes) -> None:
    begin = time.monotonic()
    client = raw(hasty)
    client.send(begun)
    response = client.response()
    assert (response.status, response.headers["connection"]) == (408, "close")
    assert 0.9 * HASTE < time.monotonic() - begin < HASTE + 2
    assert client.rest() == b""
    assert eventually(lambda: "127.0.0.1: 408 the head of the request: it did not come in time\n" in hasty.log)
    answers(hasty)


def test_one_deadline_holds_for_a_head_that_comes_byte_by_byte(hasty: Server, raw: Raw) -> None:
    begin = time.monotonic()
    client = raw(hasty)
    client.sock.settimeout(0.05)
    while time.monotonic() - begin < HASTE + 3:
        client.send(b"G")
        try:
            received = client.sock.recv(1000)
        except TimeoutError:
            continue
        except OSError:
            break
        assert received.startswith(b"HTTP/1.1 408 ")
        break
    else:
        pytest.fail("the client may go on for ever")
    answers(hasty)


def test_deadline_is_over_when_the_head_is_answered(hasty: Server, raw: Raw) -> None:
    for _ in range(3):
        client = raw(hasty)
        time.sleep(0.7 * HASTE)  # so late that the deadline would strike below, while the rest of the input is read
        begin = len(hasty.log)
        client.send(b"NONSENSE\r\n\r\n")
        status = client.response().status
        if status != 408:  # this process was too slow to send it before the deadline
            break
    assert status == 400
    with pytest.raises(OSError):  # a reset; the server reads on for a second first
        while True:
            client.send(b"x")
            time.sleep(0.05)
    answers(hasty)
    assert eventually(lambda: len(hasty.log) > begin)
    assert hasty.log[begin:] == "127.0.0.1: 400 the head of the request: InvalidRequestLine\n"


def test_many_slow_heads_neither_disturb_others_nor_leave_anything_behind(hasty: Server) -> None:
    worker = worker_of(hasty)
    before = descriptors(worker)
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(RawClient(hasty.port)).send(b"GET /echo/ HTTP/1.1\r\n")
        answers(hasty)
        assert eventually(lambda: descriptors(worker) <= before + 1)
    assert hasty.log.count("408 the head of the request") <= 15  # the log only counts the others


def test_client_is_not_blamed_for_time_in_which_the_process_stood_still(start_site: StartSite, raw: Raw) -> None:
    with start_site({"WEBSOCKET_HANDSHAKE_TIMEOUT": 3.0}) as server:
        client = raw(server)
        client.send(request("/echo/")[:20])
        answers(server)  # so the worker has accepted both clients
        worker = worker_of(server)
        os.kill(worker, signal.SIGSTOP)
        try:
            time.sleep(4)
        finally:
            os.kill(worker, signal.SIGCONT)
        time.sleep(0.3)
        client.send(request("/echo/")[20:])
        assert client.response().status == 101


def test_time_between_requests_is_limited_by_gunicorn_and_that_of_a_head_by_us(start_site: StartSite, raw: Raw) -> None:
    page = b"GET /page/ HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with start_site({"WEBSOCKET_HANDSHAKE_TIMEOUT": 2.5}, args=["--keep-alive", "1"]) as server:
        slow, quick, idle = raw(server), raw(server), raw(server)
        for client in (slow, quick, idle):
            client.send(page)
            assert client.response().status == 200
        begin = time.monotonic()
        slow.send(page[:20])
        quick.send(page[:20])
        assert idle.rest() == b""  # closed without a word
        assert 0.8 < time.monotonic() - begin < 2
        time.sleep(max(0.0, begin + 1.5 - time.monotonic()))  # beyond gunicorn's time, within ours
        quick.send(page[20:])
        assert quick.response().status == 200
        assert slow.response().status == 408
        assert time.monotonic() - begin > 2.4
        assert eventually(lambda: "408" in server.log)


def test_deadline_covers_the_tls_handshake(start_site: StartSite, certificate: tuple[Path, Path], raw: Raw) -> None:
    arguments: list[str | Path] = ["--certfile", certificate[0], "--keyfile", certificate[1]]
    with start_site({"WEBSOCKET_HANDSHAKE_TIMEOUT": HASTE}, args=arguments, probe=b"") as server:
        raw(server, tls=True).open("/echo/")  # from now on a worker is accepting
        begin = time.monotonic()
        silent, halfway = raw(server), raw(server)
        halfway.send(b"\x16\x03\x01\x02\x00\x01")
        assert silent.rest() == halfway.rest() == b""
        assert time.monotonic() - begin < HASTE + 2
        assert eventually(lambda: "127.0.0.1: the TLS handshake failed: it did not come in time\n" in server.log)
        plain = raw(server)
        plain.send(request("/echo/"))
        plain.rest()
        slow = raw(server, tls=True)
        slow.send(request("/echo/")[:-2])
        assert slow.response().status == 408
        with at_once():
            client = raw(server, tls=True)
            client.open("/echo/", behind=frame("hello"))
            assert client.frame().text == "hello"
        assert "Traceback" not in server.log


def test_deadline_covers_the_proxy_line(start_site: StartSite, raw: Raw) -> None:
    arguments = ["--proxy-protocol", "auto"]
    with start_site({"WEBSOCKET_HANDSHAKE_TIMEOUT": HASTE}, args=arguments, probe=b"") as server:
        client = raw(server)
        client.send(b"PROXY TCP4 198.51.100.1 127.0.0.1 ")
        assert client.response().status == 408


# --- no room ---------------------------------------------------------------------------------------------------------


def test_client_beyond_the_limit_is_refused_before_its_view_runs(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site({"WEBSOCKET_MAX_CONNECTIONS": 3}) as server:
        clients = [raw(server) for _ in range(3)]
        for client in clients:
            client.open("/echo/")
        late = raw(server)
        late.send(request(f"/echo/?key={key}"), frame("behind it"))
        response = late.response()
        assert (response.status, response.headers["retry-after"], response.headers["connection"]) == (503, "5", "close")
        assert eventually(
            lambda: "127.0.0.1 /echo/: 503 the process has as many clients as it may have\n" in server.log
        )
        assert fetch(server.port, "/page/").status == 200  # pages are still served
        clients[0].send(close_frame(1000))
        assert clients[0].rest() != b""
        with RawClient(server.port) as client:
            client.open("/echo/", behind=frame("there is room"))
            assert client.frame().text == "there is room"
        assert notes(server.port, key, 0) == []


def with_descriptors(server: Server, number: int) -> Server:
    """Let `server` open at most `number` files."""
    server.args[:0] = ["/bin/sh", "-c", f'ulimit -n {number}; exec "$@"', "sh"]
    return server


def test_limit_of_clients_follows_from_the_limit_of_open_files(start_site: StartSite) -> None:
    with with_descriptors(start_site(), 160) as server, ExitStack() as stack:
        clients = []
        while True:
            client = stack.enter_context(RawClient(server.port))
            client.send(request("/echo/"))
            response = client.response()
            if response.status == 503:
                break
            clients.append(client)
        assert 40 < len(clients) < 120  # a quarter is kept for files, databases and the like
        for client in (clients[0], clients[-1]):
            client.send(frame("hello"))
            assert client.frame().text == "hello"
        clients[0].reset()
        assert eventually(lambda: accepted(server))
        assert "more than half of the 160 files that the process may open" in server.log


def accepted(server: Server) -> bool:
    with RawClient(server.port) as client:
        client.send(request("/echo/"))
        return client.response().status == 101


def test_worker_out_of_descriptors_neither_ends_nor_spins(start_site: StartSite) -> None:
    settings = {"WEBSOCKET_HANDSHAKE_TIMEOUT": 60.0}
    with with_descriptors(start_site(settings), 100) as server, ExitStack() as stack:
        worker = worker_of(server)
        client = stack.enter_context(RawClient(server.port))
        client.open("/echo/")
        idle = [stack.enter_context(RawClient(server.port)) for _ in range(120)]
        assert eventually(lambda: "a client: cannot be accepted: [Errno 24] Too many open files" in server.log)
        begin, computed = time.monotonic(), processor_time(worker)
        time.sleep(2)  # processor time is measured meanwhile
        assert (processor_time(worker) - computed) / (time.monotonic() - begin) < 0.25
        client.send(frame("still here"))
        assert client.frame().text == "still here"
        for each in idle:
            each.sock.close()
        answers(server)
        assert worker_of(server) == worker
        assert "Traceback" not in server.log
        assert server.log.count("cannot be accepted") <= 12


@pytest.fixture(scope="module")
def mishaps(tmp_path_factory: pytest.TempPathFactory) -> Mishaps:
    return Mishaps(tmp_path_factory.mktemp("mishaps") / "mishaps")


@pytest.fixture
def starved(start_site: StartSite, mishaps: Mishaps) -> Iterator[Server]:
    """A server whose operating system runs short of memory, files or buffers when `mishaps` says so."""
    with start_site(env=mishaps.env) as server:
        yield server


@pytest.mark.parametrize("number", [errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_accepting_is_tried_again_after_the_system_had_no_room(
    starved: Server, mishaps: Mishaps, raw: Raw, number: int
) -> None:
    worker = worker_of(starved)
    client = raw(starved)
    client.open("/echo/")
    mishaps.happen(accept=number)
    late = raw(starved)  # the kernel keeps it waiting
    late.send(request("/echo/"))
    assert eventually(lambda: f"a client: cannot be accepted: [Errno {number}]" in starved.log)
    begin, computed = time.monotonic(), processor_time(worker)
    for _ in range(10):
        time.sleep(0.1)  # processor time is measured meanwhile
        client.send(frame("still here"))
        assert client.frame().text == "still here"
    assert (processor_time(worker) - computed) / (time.monotonic() - begin) < 0.25
    mishaps.happen()
    assert late.response().status == 101
    assert starved.log.count(f"cannot be accepted: [Errno {number}]") <= 11
    assert worker_of(starved) == worker


@pytest.fixture(scope="module")
def crowded(start_site: StartSite) -> Iterator[tuple[Server, ExitStack]]:
    """A server whose places for requests in progress are all taken by silent clients."""
    with start_site(args=["--worker-connections", "5"]) as server, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(RawClient(server.port))
        yield server, stack


def test_client_is_refused_at_once_while_no_request_finishes(crowded: tuple[Server, ExitStack], raw: Raw) -> None:
    server, stack = crowded
    begin = time.monotonic()
    late = [raw(server) for _ in range(10)]
    for client in late:
        client.send(request("/echo/"))
        response = client.response()
        assert (response.status, response.headers["retry-after"]) == (503, "5")
        assert client.rest() == b""
    assert time.monotonic() - begin < 3
    stack.close()
    assert eventually(lambda: accepted(server))
    assert eventually(
        lambda: "127.0.0.1: 503 as many requests as worker_connections allows are in progress\n" in server.log
    )


def test_burst_of_more_requests_than_may_be_in_progress_is_served(start_site: StartSite) -> None:
    with start_site(args=["--worker-connections", "5"]) as server, ExitStack() as stack:
        time.sleep(1.2)  # no request finished for longer than clients are made to wait
        clients = [stack.enter_context(RawClient(server.port)) for _ in range(300)]
        for client in clients:
            client.send(request("/echo/"))
        assert {client.response().status for client in clients} == {101}


def fill(client: RawClient, data: bytes) -> None:
    """Send `data` over and over without reading, until the server takes no more or has given up."""
    client.sock.settimeout(1)
    with pytest.raises(OSError):
        while True:
            client.send(data)


@pytest.mark.parametrize("path", ["/page/", "/echo/"])
def test_clients_that_do_not_read_the_answers_give_up_their_places(start_site: StartSite, path: str) -> None:
    app = "testsite.wsgi:application" if path == "/page/" else "testsite.wsgi:websocket"
    data = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 100
    arguments = ["--worker-connections", "3"]
    with start_site({"WEBSOCKET_SEND_TIMEOUT": 2.0}, app=app, args=arguments) as server, ExitStack() as stack:
        for _ in range(3):
            fill(stack.enter_context(RawClient(server.port, receive_buffer=4096, segment=1000)), data)
        assert eventually(lambda: accepted(server))
        assert eventually(lambda: server.log.count("127.0.0.1: the answer was not read\n") == 3)
        assert "Traceback" not in server.log


def test_refused_clients_that_do_not_read_why_give_up_their_places(start_site: StartSite) -> None:
    arguments = ["--worker-connections", "3"]
    with start_site({"WEBSOCKET_SEND_TIMEOUT": 2.0}, args=arguments) as server, ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(RawClient(server.port, receive_buffer=4096))
            client.send(request("/refuse/at-length/"))
        assert eventually(lambda: server.log.count("127.0.0.1: the answer was not read\n") == 3)
        assert accepted(server)


def test_time_limit_of_a_page_ends_when_its_connection_is_upgraded(start_site: StartSite, key: str) -> None:
    message = "x" * 900_000  # more than the system's buffers hold, less than an outbox does
    settings = {"WEBSOCKET_SEND_TIMEOUT": 1.0}
    app = "testsite.wsgi:application"
    with start_site(settings, app=app) as server, RawClient(server.port, receive_buffer=4096) as client:
        client.send(b"GET /page/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.response().status == 200
        client.open(f"/forward/{key}/")
        assert fetch(server.port, f"/publish/{key}/?text=x&times={len(message)}").status == 200
        time.sleep(4)  # much longer than a page's answer may wait
        assert client.frame().text == message


def test_handshake_within_http2_is_refused(start_site: StartSite, certificate: tuple[Path, Path]) -> None:
    arguments: list[str | Path] = [
        "--certfile",
        certificate[0],
        "--keyfile",
        certificate[1],
        "--http-protocols",
        "h2,h1",
    ]
    with (
        pytest.raises(RuntimeError, match="Remove h2 from http_protocols"),
        start_site(args=arguments, probe=b"") as server,
    ):  # gunicorn listens before its worker refuses
        server.wait()
        raise RuntimeError(server.log)

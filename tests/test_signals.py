"""Signals: a client has connected or disconnected."""

from __future__ import annotations

import signal

import pytest

from .support.clients import fetch_json, notes, request
from .support.fixtures import Raw, StartSite
from .support.frames import close_frame, frame
from .support.processes import worker_of
from .support.servers import Server
from .support.waiting import eventually


@pytest.fixture(params=["site", "stock_site"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(
    ("how", "sent", "note"),
    [
        ("echo", [frame("a"), frame(b"b"), close_frame(4321, "bye")], "4321 bye 2 5 True"),
        ("echo", [frame("a"), b"\x81\x00"], "1002 a frame is not masked 1 3 True"),
        ("listen", [frame("dropped"), close_frame(1000)], "1000  0 1 True"),
        ("raise", [frame("go")], "1011 internal error 1 1 True"),
    ],
)
def test_receivers_are_called(server: Server, raw: Raw, key: str, how: str, sent: list[bytes], note: str) -> None:
    path = f"/observed/{how}/"
    client = raw(server)
    client.open(f"{path}?key={key}")
    assert client.frame().text == "welcome"  # a receiver's own message, before the view's
    client.send(*sent)
    client.closing()
    client.sock.close()
    assert notes(server.port, key, 2) == [f"connected {path}", note]


def test_receivers_may_be_coroutines(server: Server, raw: Raw, key: str) -> None:
    clients = [raw(server) for _ in range(10)]
    for client in clients:
        client.send(request(f"/observed-by-coroutines/?key={key}"))
    for client in clients:
        assert client.response().status == 101
        client.send(frame("hello"))
        assert client.frame().text == "hello"
        client.send(close_frame(4000))
        assert client.closing()[0] == 4000
        client.sock.close()
    assert notes(server.port, key, 20) == ["a coroutine was told"] * 20


def test_receivers_learn_of_a_client_that_vanishes(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open(f"/observed/echo/?key={key}")
    client.reset()
    assert notes(site.port, key, 2)[1] == "1006  0 1 True"


def test_receivers_do_not_learn_of_a_refused_handshake(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.send(request(f"/observed/refuse/?key={key}"))
    assert client.response().status == 403
    client = raw(site)
    client.open(f"/observed/echo/?key={key}-accepted")
    client.reset()
    assert len(notes(site.port, f"{key}-accepted", 2)) == 2
    assert notes(site.port, key, 0) == []


def test_receiver_that_exits_affects_nothing_else(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site() as server:
        worker = worker_of(server)
        other = raw(server)
        other.open("/echo/")
        client = raw(server)
        client.open(f"/observed/echo/?key={key}&exit=1")
        assert client.frame().text == "welcome"
        client.send(frame("hello"), close_frame(1000))
        assert client.frame().text == "hello"
        assert client.closing() == (1000, "")
        assert notes(server.port, key, 2)[1] == "1000  1 3 True"
        assert eventually(lambda: server.log.count("SystemExit: a receiver calls sys.exit()") == 2)
        other.send(frame("hello"))
        assert other.frame().text == "hello"
        assert worker_of(server) == worker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_restart_waits_for_receivers(start_site: StartSite, raw: Raw, key: str, number: signal.Signals) -> None:
    with start_site(args=["--graceful-timeout", "10"]) as server:
        clients = [raw(server) for _ in range(30)]
        for client in clients:
            client.open(f"/observed/echo/?key={key}&slow=1")
        server.send_signal(number)
        for client in clients:
            assert client.closing() == (1012, "restart")
            client.send(close_frame(1012))
        server.wait()
        assert server.log.count(f"note {key}: 1012 restart") == 30


def test_receivers_leave_no_database_connection(site: Server, raw: Raw, key: str) -> None:
    def state() -> dict[str, int]:
        return {name: fetch_json(site.port, "/state/")[name] for name in ("greenlets", "descriptors")}

    def visits(times: int) -> None:
        for number in range(times):
            client = raw(site)
            client.open(f"/observed/echo/?key={key}{number}{times}")
            client.reset()
            notes(site.port, f"{key}{number}{times}", 2)

    visits(5)
    before = state()
    visits(20)
    after = state()
    assert after["descriptors"] <= before["descriptors"] + 2
    assert after["greenlets"] <= before["greenlets"] + 2

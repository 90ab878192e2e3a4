"""The command line that the original documents: gevent-websocket's worker, whose 101 is sent before Django runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .support.clients import ACCEPT, RawClient, fetch, fetch_json, notes
from .support.fixtures import STOCK_WORKER, Connect, Raw, StartSite
from .support.frames import PING, PONG, Frame, close_frame, frame
from .support.servers import Server
from .support.waiting import at_once, eventually


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/echo/", "hello"), ("/undecorated/", "hello"), ("/class/ann/", "ann: hello"), ("/loop/ann/", "ann: hello")],
)
def test_view_of_each_kind_answers(stock_site: Server, raw: Raw, path: str, answer: str) -> None:
    client = raw(stock_site)
    response = client.open(path, behind=frame("hello") * 2)
    assert response.headers["sec-websocket-accept"] == ACCEPT
    with at_once():
        assert [client.frame().text for _ in range(2)] == [answer] * 2
        client.send(frame("hello") * 3, frame(b"alive?", PING))
        assert [client.frame() for _ in range(4)].count(Frame(PONG, b"alive?")) == 1
    client.send(close_frame(1000))
    assert client.closing() == (1000, "")
    assert client.rest() == b""


def test_messages_of_all_sizes_come_back(stock_site: Server, connect: Connect) -> None:
    client = connect(stock_site, "/echo/")
    for message in ("", b"", "Grüße", b"\0\xff", "x" * 300_000):
        assert client.ask(message) == message


@pytest.mark.parametrize(
    ("path", "code"),
    [("/refuse/403/", 4403), ("/refuse/404/", 4404), ("/refuse/raise/", 4500), ("/nowhere/", 4404), ("/page/", 4404)],
)
def test_refusal_becomes_a_close_code(stock_site: Server, raw: Raw, path: str, code: int) -> None:
    client = raw(stock_site)
    client.open(path, behind=frame("hello"))
    received = client.frame()
    assert received.close[0] == code
    client.send(close_frame(code))
    assert client.rest() == b""


def test_redirect_to_the_login_is_a_refusal(stock_site: Server, raw: Raw) -> None:
    client = raw(stock_site)
    client.open("/members/", behind=frame("hello"))
    assert client.frame().close == (4401, "Log in first")


def test_foreign_origin_is_refused_before_the_view_runs(stock_site: Server, raw: Raw, key: str) -> None:
    client = raw(stock_site)
    client.open(f"/partners/?key={key}", {"Origin": "http://evil.example"})
    assert client.frame().close[0] == 4403
    client = raw(stock_site)
    client.open(f"/partners/?key={key}", {"Origin": "https://partner.example"})
    assert client.frame().text == "https://partner.example"
    assert notes(stock_site.port, key) == ["the view runs"]


def test_logged_in_user_is_known(stock_site: Server, raw: Raw) -> None:
    session = fetch(stock_site.port, "/enter/").cookies["sessionid"]
    client = raw(stock_site)
    client.open("/members/", {"Cookie": f"sessionid={session}"})
    assert client.frame().text == "hello ann"


def test_standard_select_sees_websockets_and_subscriptions(stock_site: Server, raw: Raw, key: str) -> None:
    clients = [raw(stock_site) for _ in range(2)]
    for client in clients:
        client.open(f"/selects/{key}/")
        assert client.frame().text.isdigit()
        assert client.frame().text == "subscribed"
    with at_once():
        clients[0].send(frame("one"), frame("two"))
        for client in clients:
            assert [client.frame().text, client.frame().text] == ["one", "two"]


def test_forwarded_and_listening_clients_get_messages(stock_site: Server, raw: Raw, key: str) -> None:
    member, listener = raw(stock_site), raw(stock_site)
    member.open(f"/forward/{key}/?key={key}")
    listener.open(f"/listen/{key}/?key={key}")
    assert sorted(notes(stock_site.port, key, 2)) == ["over", "subscribed"]
    member.send(frame("news"))
    assert (member.frame().text, listener.frame().text) == ("news", "news")
    listener.send(close_frame(1000))
    assert listener.closing() == (1000, "")
    assert listener.rest() == b""


@pytest.mark.parametrize(("how", "code"), [("raise", 1011), ("exit", 1011), ("return", 1000), ("close", 4321)])
def test_end_of_the_view_closes(stock_site: Server, raw: Raw, connect: Connect, key: str, how: str, code: int) -> None:
    other = connect(stock_site, "/echo/")
    client = raw(stock_site)
    client.open(f"/end/{how}/?key={key}", behind=frame("go"))
    assert client.closing()[0] == code
    assert notes(stock_site.port, key) == ["finally"]
    assert other.ask("still here") == "still here"


def test_close_code_reaches_the_view(stock_site: Server, raw: Raw, key: str) -> None:
    client = raw(stock_site)
    client.open(f"/echo/?key={key}")
    client.send(close_frame(4321, "bye"))
    assert client.closing() == (4321, "bye")
    assert notes(stock_site.port, key) == ["4321 bye"]


def test_finally_of_the_view_runs_when_the_client_vanishes(stock_site: Server, raw: Raw, key: str) -> None:
    client = raw(stock_site)
    client.open(f"/echo/?key={key}", behind=frame("hello"))
    client.frame()
    client.reset()
    assert notes(stock_site.port, key) == ["1006"]


@pytest.mark.parametrize("how", ["replace", "raise"])
def test_middleware_that_replaces_the_101_is_a_refusal(stock_site: Server, raw: Raw, key: str, how: str) -> None:
    client = raw(stock_site)
    client.open(f"/accepts/?key={key}&interfere={how}")
    assert client.frame().close[0] == {"replace": 4409, "raise": 4500}[how]
    assert notes(stock_site.port, key, 2) == ["WebSocketError", "finally"]


def test_protocol_errors_are_judged_by_our_engine(stock_site: Server, raw: Raw) -> None:
    for sent, code in ((b"\x81\x01x", 1002), (frame(b"\xff", 1), 1007), (frame("x" * 60) + b"\xc1\x80mask", 1002)):
        client = raw(stock_site)
        client.open("/echo/")
        client.send(sent)
        assert client.closing()[0] == code
    client = raw(stock_site)
    client.open("/small/")
    client.send(frame("x" * 101))
    assert client.closing()[0] == 1009


def test_pages_are_served_beside_websockets(stock_site: Server, stock_project: Server) -> None:
    assert fetch(stock_site.port, "/echo/").body == b"page /echo/"
    assert fetch(stock_project.port, "/echo/").status == 426


def test_clients_that_left_leave_nothing(stock_site: Server, raw: Raw) -> None:
    def visit(path: str) -> None:
        with RawClient(stock_site.port) as client:
            client.open(path)

    for path in ("/echo/", "/listen/x/", "/selects/x/", "/refuse/403/"):
        visit(path)
    assert eventually(lambda: fetch_json(stock_site.port, "/state/")["descriptors"] < 100)
    before = fetch_json(stock_site.port, "/state/")
    for path in ("/echo/", "/listen/x/", "/selects/x/", "/refuse/403/") * 10:
        visit(path)
    assert eventually(
        lambda: all(
            fetch_json(stock_site.port, "/state/")[what] < before[what] + 5 for what in ("greenlets", "descriptors")
        )
    )


@pytest.fixture(scope="module")
def impatient(start_site: StartSite) -> Iterator[Server]:
    """A server that sends pings early and gives up soon."""
    settings = {"WEBSOCKET_PING_INTERVAL": 0.5, "WEBSOCKET_PING_TIMEOUT": 1.0, "WEBSOCKET_HANDSHAKE_TIMEOUT": 1.0}
    with start_site(settings, worker=STOCK_WORKER) as server:
        yield server


def test_silent_client_is_closed_with_1011(impatient: Server, raw: Raw) -> None:
    client = raw(impatient)
    client.open("/echo/")
    assert client.frame().opcode == PING
    assert client.closing()[0] == 1011


def test_view_that_neither_accepts_nor_answers_is_ended(impatient: Server, raw: Raw, key: str) -> None:
    client = raw(impatient)
    client.open(f"/hesitates/?key={key}")
    assert 4500 <= client.closing()[0] <= 4599
    assert notes(impatient.port, key) == ["finally"]


@pytest.mark.parametrize(("header", "value"), [("Content-Length", "5"), ("Host", "evil.example")])
def test_handshake_that_only_gevent_websocket_would_accept_is_refused(
    stock_site: Server, raw: Raw, key: str, header: str, value: str
) -> None:
    client = raw(stock_site)
    client.open(f"/accepts/?key={key}", {header: value})
    assert client.frame().close[0] == 4400
    raw(stock_site).open(f"/accepts/?key={key}")
    assert notes(stock_site.port, key, 2) == ["accepted", "finally"]  # from the second handshake only

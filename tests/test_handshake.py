"""The opening handshake over a real connection: which requests get a 101, which another status, and when."""

from __future__ import annotations

import pytest

from .support.clients import ACCEPT, fetch, notes, request
from .support.fixtures import Connect, Raw, StartSite
from .support.frames import CLOSE, PING, PONG, Frame, close_frame, frame
from .support.servers import Server
from .support.waiting import DEADLINE, at_once

# The answers of the test project's three endpoints to two messages.
ENDPOINTS = [
    pytest.param("/echo/", ["one", "two"], ["one", "two"], id="echo"),
    pytest.param("/ping/", ["ping", "pong"], ["pong", "ping"], id="ping"),
    pytest.param("/chat/", ["one", "two"], ["one", "two"], id="chat"),
]

# A request pipelined behind a refused handshake must not be answered.
SMUGGLED = b"GET /page/ HTTP/1.1\r\nHost: localhost\r\n\r\n"


# --- no byte is lost or left unread ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "messages", "answers"), ENDPOINTS)
def test_two_messages_in_one_segment_are_both_answered_at_once(
    any_project: Server, raw: Raw, path: str, messages: list[str], answers: list[str]
) -> None:
    client = raw(any_project)
    client.open(path)
    for _ in range(3):
        with at_once():
            client.send(*map(frame, messages))
            assert [client.frame().text for _ in answers] == answers


@pytest.mark.parametrize(("path", "messages", "answers"), ENDPOINTS)
@pytest.mark.parametrize("count", [1, 2])
def test_messages_in_the_segment_of_the_handshake_are_answered_at_once(
    any_project: Server, raw: Raw, path: str, messages: list[str], answers: list[str], count: int
) -> None:
    client = raw(any_project)
    with at_once():
        client.open(path, behind=b"".join(map(frame, messages[:count])))
        assert [client.frame().text for _ in range(count)] == answers[:count]
        client.send(frame(messages[0]))
        assert client.frame().text == answers[0]


@pytest.mark.parametrize(("path", "messages", "answers"), ENDPOINTS)
def test_half_a_message_in_the_segment_of_the_handshake_is_completed_later(
    any_project: Server, raw: Raw, path: str, messages: list[str], answers: list[str]
) -> None:
    whole = frame(messages[0])
    client = raw(any_project)
    client.open(path, behind=whole[:3])
    client.send(whole[3:], frame(messages[1]))
    assert [client.frame().text for _ in answers] == answers


@pytest.mark.parametrize(("path", "messages", "answers"), ENDPOINTS)
def test_messages_arrive_byte_by_byte(
    any_project: Server, raw: Raw, path: str, messages: list[str], answers: list[str]
) -> None:
    client = raw(any_project)
    for byte in request(path):
        client.send(bytes([byte]))
    assert client.response().status == 101
    for byte in b"".join(map(frame, messages)):
        client.send(bytes([byte]))
    assert [client.frame().text for _ in answers] == answers


@pytest.mark.parametrize("path", ["/echo/", "/ping/", "/chat/"])
def test_message_and_close_in_one_segment_lose_nothing(any_project: Server, raw: Raw, path: str) -> None:
    client = raw(any_project)
    client.open(path, behind=frame("ping") + close_frame(1000))
    answer = "pong" if path == "/ping/" else "ping"
    received = client.frame()
    if path == "/chat/" and received.opcode == CLOSE:
        return  # the message came back from the broker only after the client had left
    assert received.text == answer
    assert client.closing() == (1000, "")
    assert client.rest() == b""


def test_ping_in_the_segment_of_the_handshake_is_answered(any_project: Server, raw: Raw) -> None:
    client = raw(any_project)
    client.open("/echo/", behind=frame(b"", PING) + frame(b"here?", PING))
    pongs = [client.frame()]
    if not pongs[0].payload:  # answering only the newest of several pings is allowed (RFC 6455, section 5.5.3)
        pongs.append(client.frame())
    assert pongs[-1] == Frame(PONG, b"here?")


# --- acceptance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "uPGRADE"},
        {"Upgrade": "WebSocket"},
        {"Origin": None},
        {"Sec-WebSocket-Protocol": "chat, superchat"},
        {"Sec-WebSocket-Extensions": "permessage-unknown; a=1"},
        {"Content-Length": "0"},
    ],
)
def test_handshake_is_accepted(site: Server, raw: Raw, headers: dict[str, str]) -> None:
    client = raw(site)
    response = client.open("/echo/", headers)
    assert response.headers["upgrade"].lower() == "websocket"
    assert response.headers["connection"].lower() == "upgrade"
    assert response.headers["sec-websocket-accept"] == ACCEPT
    for name in ("content-length", "content-type", "transfer-encoding", "sec-websocket-protocol"):
        assert name not in response.headers
    assert "sec-websocket-extensions" not in response.headers  # the server knows no extension on offer
    client.send(frame("hello"))
    assert client.frame().text == "hello"


def test_headers_and_cookies_of_view_and_middleware_travel_in_the_101(site: Server, raw: Raw) -> None:
    client = raw(site)
    response = client.open("/sets-cookies/")
    assert response.headers["x-marked"] == "101"
    assert response.headers["x-greeting"] == "hello"
    assert response.cookies["flavour"] == "oat"
    session = f"sessionid={response.cookies['sessionid']}"
    assert b'"blue"' in fetch(site.port, "/session/", {"Cookie": session}).body
    client.send(frame("hello"))
    assert client.frame().text == "hello"


@pytest.mark.parametrize(
    ("name", "value"), [("X-Greeting", "a%00b"), ("X-Greeting", "a%0bb"), ("X-Greeting", "a%1cb"), ("No%20Name", "a")]
)
def test_101_with_a_header_that_http_does_not_know_is_an_error(
    site: Server, raw: Raw, key: str, name: str, value: str
) -> None:
    client = raw(site)
    client.send(request(f"/sets-a-header/?key={key}&name={name}&value={value}"))
    assert client.response().status == 500
    assert client.rest() == b""
    assert notes(site.port, key) == ["HandshakeFailed"]


# --- refusals are HTTP -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/refuse/403/", 403),
        ("/refuse/302/", 302),
        ("/refuse/404/", 404),
        ("/refuse/raise/", 500),
        ("/refuse/exit/", 500),
        ("/members/", 302),
        ("/nowhere/", 404),
        ("/page/", 404),  # an ordinary view, which an upgrade never reaches
    ],
)
def test_refusal_is_an_http_response_that_passes_all_middleware(site: Server, raw: Raw, path: str, status: int) -> None:
    client = raw(site)
    client.send(request(path), frame("hello"), SMUGGLED)
    response = client.response()
    assert response.status == status
    assert response.headers["x-marked"] == str(status)
    assert "sec-websocket-accept" not in response.headers
    assert response.headers["connection"].lower() == "close"
    assert client.rest() == b""  # the pipelined bytes were not taken for a request


def test_redirects_lead_to_ordinary_pages(site: Server, raw: Raw) -> None:
    client = raw(site)
    client.send(request("/refuse/302/"))
    assert client.response().headers["location"] == "/elsewhere/"
    client = raw(site)
    client.send(request("/members/"))
    assert client.response().headers["location"] == "/login/?next=/members/"


def test_view_that_requires_a_login_accepts_a_logged_in_user(site: Server, raw: Raw) -> None:
    session = fetch(site.port, "/enter/").cookies["sessionid"]
    client = raw(site)
    client.open("/members/", {"Cookie": f"sessionid={session}"})
    assert client.frame().text == "hello ann"


def test_unknown_path_of_the_websocket_application_is_404(project: Server, raw: Raw) -> None:
    client = raw(project)
    client.send(request("/nowhere/"))
    assert client.response().status == 404


def test_wrong_host_is_refused_before_the_view_runs(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.send(request(f"/accepts/?key={key}", {"Host": "evil.example"}))
    assert client.response().status == 400
    assert client.rest() == b""
    raw(site).open(f"/accepts/?key={key}")
    assert notes(site.port, key, 2) == ["accepted", "finally"]  # from the second handshake only


# --- malformed handshakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handshake", "status"),
    [
        pytest.param(request("/echo/", method="POST"), {405}, id="POST"),
        pytest.param(request("/echo/", method="HEAD"), {405}, id="HEAD"),
        pytest.param(request("/echo/", version="HTTP/1.0"), {400, 426, 505}, id="HTTP/1.0"),
        pytest.param(request("/echo/", {"Sec-WebSocket-Key": None}), {400}, id="no key"),
        pytest.param(request("/echo/", {"Sec-WebSocket-Key": ""}), {400}, id="empty key"),
        pytest.param(request("/echo/", {"Sec-WebSocket-Key": "c2hvcnQ="}), {400}, id="short key"),
        pytest.param(request("/echo/", {"Sec-WebSocket-Key": "!" * 24}), {400}, id="key not base64"),
        pytest.param(request("/echo/", more="Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"), {400}, id="two keys"),
        pytest.param(request("/echo/", {"Connection": "keep-alive"}), {400, 426}, id="Connection without Upgrade"),
        pytest.param(request("/echo/", {"Connection": None}), {400, 426}, id="no Connection"),
        pytest.param(request("/echo/", {"Sec-WebSocket-Version": "8"}), {426}, id="version 8"),
        pytest.param(request("/echo/", {"Sec-WebSocket-Version": "14"}), {426}, id="version 14"),
        pytest.param(request("/echo/", {"Sec-WebSocket-Version": None}), {400, 426}, id="no version"),
        pytest.param(request("/echo/", more="Sec-WebSocket-Version: 8\r\n"), {400, 426}, id="two versions"),
        pytest.param(request("/echo/", {"Host": None}), {400}, id="no Host"),
        pytest.param(request("/echo/", more="Host: localhost\r\n"), {400}, id="two Hosts"),
        pytest.param(request("/echo/", {"Content-Length": "5"}) + b"hello", {400}, id="a body"),
        pytest.param(
            request("/echo/", {"Transfer-Encoding": "chunked"}) + b"5\r\nhello\r\n0\r\n\r\n", {400}, id="a chunked body"
        ),
        pytest.param(
            request("/echo/", {"Transfer-Encoding": "chunked"}) + b"0\r\n\r\n", {400}, id="an empty chunked body"
        ),
        pytest.param(
            request("/echo/", {"Transfer-Encoding": "chunked", "Content-Length": "5"}) + b"0\r\n\r\n",
            {400},
            id="length and chunked",
        ),
        pytest.param(
            request("/echo/", {"Content-Length": "0"}, more="Content-Length: 5\r\n") + b"hello", {400}, id="two lengths"
        ),
        pytest.param(request("/echo/", {"Sec-WebSocket-Protocol": "a b"}), {400}, id="subprotocol with a space"),
        pytest.param(request("/echo/", {"Sec-WebSocket-Protocol": "a\x0bX-Bad: 1"}), {400}, id="subprotocol with VT"),
        pytest.param(request("/echo/", {"Sec-WebSocket-Protocol": "a\x85X-Bad: 1"}), {400}, id="subprotocol with NEL"),
    ],
)
def test_malformed_handshake_is_refused_and_the_connection_closed(
    site: Server, raw: Raw, handshake: bytes, status: set[int]
) -> None:
    client = raw(site)
    client.send(handshake, SMUGGLED)
    if handshake.startswith(b"HEAD"):
        assert int(client.rest().split(b" ", 2)[1]) in status
        return
    response = client.response()
    assert response.status in status
    assert response.headers["connection"].lower() in ("close", "upgrade")
    assert "x-bad" not in response.headers
    if response.status == 426:
        assert response.headers["sec-websocket-version"] == "13"
        assert response.headers["upgrade"].lower() == "websocket"
        assert "upgrade" in response.headers["connection"].lower()
    if response.status == 405:
        assert response.headers["allow"] == "GET"
    assert client.rest() == b""


def test_request_for_another_protocol_is_a_plain_request(site: Server, project: Server, raw: Raw) -> None:
    client = raw(site)
    client.send(request("/page/", {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAA"}))
    response = client.response()
    assert (response.status, response.body) == (200, b"page /page/")
    client = raw(project)
    client.send(request("/echo/", {"Upgrade": "h2c"}))
    assert client.response().status == 426


# --- where the page comes from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "localhost"),  # not a browser
        ("http://localhost", "localhost"),
        ("http://localhost:80", "localhost"),
        ("http://localhost:8001", "localhost:8001"),
        ("http://LocalHost", "localhost"),
        ("https://friend.example", "localhost"),  # WEBSOCKET_ALLOWED_ORIGINS
        ("https://partner.example", "localhost"),  # allowed by the view itself
    ],
)
def test_allowed_origin_may_connect(site: Server, raw: Raw, origin: str | None, host: str) -> None:
    client = raw(site)
    client.open("/partners/", {"Origin": origin, "Host": host})
    assert client.frame().text == str(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "https://localhost",  # another scheme
        "http://localhost:8001",  # another port
        "http://localhost.evil.example",
        "http://evil-localhost",
        "http://evil.example/localhost",
        "http://localhost@evil.example",
        "http://evil.example@localhost",
        "http://friend.example",
        "https://friend.example.evil.example",
        "https://xfriend.example",
        "https://friend.example:444",
        "https://friend.example/",
        "https://friend.example https://evil.example",
        "http://localhost, http://evil.example",
        "file://",
        "http://[::1",
    ],
)
def test_foreign_origin_is_refused_before_any_decorator_or_view_runs(
    site: Server, raw: Raw, key: str, origin: str
) -> None:
    client = raw(site)
    client.send(request(f"/partners/?key={key}", {"Origin": origin}))
    assert client.response().status == 403
    assert client.rest() == b""
    client = raw(site)
    client.send(request("/members/", {"Origin": origin}))
    assert client.response().status == 403  # not a redirect to the login
    raw(site).open(f"/partners/?key={key}")
    assert notes(site.port, key) == ["the view runs"]


def test_two_origins_are_refused(site: Server, raw: Raw) -> None:
    client = raw(site)
    client.send(request("/echo/", {"Origin": "http://localhost"}, more="Origin: http://evil.example\r\n"))
    assert client.response().status in (400, 403)
    assert client.rest() == b""


def test_pages_on_any_port_of_the_same_host_may_connect_in_debug_mode(start_site: StartSite, raw: Raw) -> None:
    with start_site({"DEBUG": True}) as server:
        for origin in ("http://localhost:3000", "http://127.0.0.1:3000"):  # another name of the same machine
            raw(server).open("/echo/", {"Origin": origin})
        for origin in ("http://evil.example", "http://localhost.example:3000", "http://127.0.0.2:3000"):
            client = raw(server)
            client.send(request("/echo/", {"Origin": origin}))
            assert client.response().status == 403


# --- time ------------------------------------------------------------------------------------------------------------


def test_view_that_neither_accepts_nor_answers_is_ended(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site({"WEBSOCKET_HANDSHAKE_TIMEOUT": 1.0}) as server:
        client = raw(server)
        client.send(request(f"/hesitates/?key={key}"))
        assert client.response().status >= 500
        assert client.rest() == b""
        assert notes(server.port, key) == ["finally"]


# --- clients that leave ----------------------------------------------------------------------------------------------


def test_client_that_leaves_during_the_handshake_leaves_nothing(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.send(request(f"/echo/?key={key}"))
    client.reset()
    assert notes(site.port, key) in (["1006"], ["None"])


def test_connect_uses_the_websockets_library(site: Server, connect: Connect) -> None:
    client = connect(site, "/echo/")
    assert client.ask("hello") == "hello"
    assert client.ask(b"\0\xff") == b"\0\xff"
    assert client.ask("") == ""
    assert client.ask(b"") == b""
    assert client.ping().wait(DEADLINE)

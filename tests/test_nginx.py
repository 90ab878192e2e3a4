"""The files of deploy/ with a real nginx: in front of two servers that report what reached them, and of the test site.

The WebSocket server of the site runs with websocket.conf.py.
"""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from .support.fronts import get, recorder
from .support.servers import ROOT, Server, configured_nginx, gunicorn, unavailable

pytestmark = pytest.mark.slow

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}

# Without their "#", these lines keep one address from taking all connections.
LIMIT = {
    "# limit_conn_zone $binary_remote_addr": "limit_conn_zone $binary_remote_addr",
    "# limit_conn websockets 20;": "limit_conn websockets 20;",
    "# limit_conn_status 429;": "limit_conn_status 429;",
}


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("static")
    (directory / "site.css").write_text("body { color: black }")
    return directory


# Where nginx sends a request


@pytest.fixture(scope="module")
def front(static: Path) -> Iterator[Server]:
    with (
        recorder("django") as django,
        recorder("websockets") as websockets,
        configured_nginx(django, websockets, static) as server,
    ):
        yield server


@pytest.mark.parametrize(
    ("headers", "receiver"),
    [
        ({}, "django"),
        (UPGRADE, "websockets"),
        (UPGRADE | {"Upgrade": "WebSocket"}, "websockets"),
        (UPGRADE | {"Upgrade": "h2c"}, "django"),
        (UPGRADE | {"Upgrade": "websocketx"}, "django"),
        (UPGRADE | {"Upgrade": ""}, "django"),
    ],
)
def test_only_an_upgrade_to_websocket_goes_to_the_websocket_server(
    front: Server, headers: dict[str, str], receiver: str
) -> None:
    _, body = get(front, "/echo/", headers)
    received = json.loads(body)
    assert received["server"] == receiver
    if receiver == "websockets":
        assert received["headers"]["Upgrade"] == "websocket"
        assert received["headers"]["Connection"] == "upgrade"
        assert received["headers"]["Sec-WebSocket-Key"] == UPGRADE["Sec-WebSocket-Key"]
    else:
        assert "Upgrade" not in received["headers"]
        assert received["headers"]["Connection"] == "close"


@pytest.mark.parametrize("headers", [{}, UPGRADE])
@pytest.mark.parametrize(
    "path",
    [
        "/echo/?a=%2F%20b",
        "/echo/a%20b/",
        "/echo/a%2Fb%2f/",
        "/echo//b/",
        "/echo/%3F%23%25/",
        "/echo/%0a/?x=1?y=2",
        "/caf%C3%A9/?",
        "/echo/;v=1,2&x='$uri'",
        "/__ws__x/",
    ],
)
def test_path_and_query_string_arrive_as_they_were_sent(front: Server, headers: dict[str, str], path: str) -> None:
    _, body = get(front, path, headers)
    assert json.loads(body)["path"] == path


@pytest.mark.parametrize("headers", [{}, UPGRADE])
def test_client_host_and_scheme_are_passed_on_but_not_what_the_client_claims(
    front: Server, headers: dict[str, str]
) -> None:
    claims = {
        "X-Forwarded-For": "192.0.2.1",
        "X-Real-IP": "192.0.2.1",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Port": "443",
        "X-Forwarded-Host": "example.net",
    }
    _, body = get(front, "/echo/", headers | claims)
    received = json.loads(body)["headers"]
    assert received["Host"] == front.address
    assert received["X-Forwarded-For"] == received["X-Real-IP"] == "127.0.0.1"
    assert received["X-Forwarded-Proto"] == "http"
    assert received["X-Forwarded-Port"] == str(front.port)
    assert "X-Forwarded-Host" not in received


@pytest.mark.parametrize("path", ["/__ws__/", "/__ws__/echo/", "/__ws__", "/x/../__ws__/echo/", "/%5f_ws__/echo/"])
def test_internal_prefix_is_not_found_from_outside(front: Server, path: str) -> None:
    response, body = get(front, path)
    assert response.status == 404
    assert b"server" not in body


def test_internal_prefix_in_an_upgrade_is_a_path_like_any_other(front: Server) -> None:
    _, body = get(front, "/__ws__/echo/", UPGRADE)
    assert json.loads(body)["path"] == "/__ws__/echo/"


def test_static_files_come_from_nginx(front: Server) -> None:
    response, body = get(front, "/static/site.css")
    assert (response.status, body) == (200, b"body { color: black }")
    assert response.getheader("Content-Type") == "text/css"
    assert get(front, "/static/missing.css")[0].status == 404


# nginx in front of the test site


@pytest.fixture(scope="module")
def site(static: Path) -> Iterator[Server]:
    with (
        gunicorn("project.wsgi:application", "gthread") as django,
        gunicorn(args=["-c", ROOT / "deploy" / "websocket.conf.py"]) as websockets,
        configured_nginx(django.port, websockets.port, static) as server,
    ):
        yield server


def test_page_names_the_websocket_of_its_own_host_and_port(site: Server) -> None:
    response, body = get(site, "/echo/")
    assert response.status == 200
    assert f"ws://{site.address}/echo/" in body.decode()


@pytest.mark.parametrize("target", ["/echo/", "/echo/?a=%2F%20b", "/%65cho/"])
def test_echo_works_through_nginx(site: Server, target: str) -> None:
    with connect(f"ws://{site.address}{target}", origin=Origin(f"http://{site.address}")) as websocket:
        websocket.send("hello")
        assert websocket.recv(timeout=10) == "hello"
        websocket.send(b"\x00" * 100_000)
        assert websocket.recv(timeout=10) == b"\x00" * 100_000


def test_close_code_passes_through_nginx(site: Server) -> None:
    with connect(f"ws://{site.address}/echo/") as websocket:
        websocket.send(b"\xff", text=True)
        with pytest.raises(ConnectionClosed):
            websocket.recv(timeout=10)
    assert websocket.close_code == 1007


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow this process some thousand open files; skip where the hard limit keeps nginx from them."""
    enough = 5_000  # nginx opens two for each client
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < enough:
        unavailable(f"ulimit -Hn allows {hard} open files, and this test needs {enough}")
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_two_thousand_clients_of_one_worker_share_a_chat(site: Server) -> None:
    headers = "".join(f"{name}: {value}\r\n" for name, value in ({"Host": site.address} | UPGRADE).items())
    with ExitStack() as clients:
        members = []
        for _ in range(2_000):
            member = clients.enter_context(socket.create_connection(("127.0.0.1", site.port), timeout=20))
            member.sendall(f"GET /chat/ HTTP/1.1\r\n{headers}\r\n".encode())
            members.append(member)
        for member in members:
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                chunk = member.recv(4096)
                assert chunk, answer
                answer += chunk
            assert answer.startswith(b"HTTP/1.1 101 ")
        members[0].sendall(b"\x81\x85\0\0\0\0hello")  # a text frame; a mask of zeros is valid
        for member in members:
            assert member.recv(7, socket.MSG_WAITALL) == b"\x81\x05hello"


@pytest.mark.parametrize(
    ("path", "origin", "status"),
    [
        ("/missing/", None, 404),
        ("/", None, 404),
        ("/echo/", "http://example.net", 403),
        ("/echo/", "http://127.0.0.1", 403),  # the same host, but another port
    ],
)
def test_refusal_keeps_its_status(site: Server, path: str, origin: str | None, status: int) -> None:
    said = None if origin is None else Origin(origin)
    with pytest.raises(InvalidStatus) as refusal, connect(f"ws://{site.address}{path}", origin=said):
        pass
    assert refusal.value.response.status_code == status


def test_request_that_offers_http2_gets_the_page(site: Server) -> None:
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    response, body = get(site, "/echo/", headers)
    assert response.status == 200
    assert b"<html" in body


def test_one_address_gets_no_more_websockets_than_the_limit_allows(static: Path) -> None:
    with (
        gunicorn("project.wsgi:application", "gthread") as django,
        gunicorn() as websockets,
        configured_nginx(django.port, websockets.port, static, LIMIT) as server,
        ExitStack() as stack,
    ):
        url = f"ws://{server.address}/echo/"
        clients = [stack.enter_context(connect(url)) for _ in range(20)]
        with pytest.raises(InvalidStatus) as refusal, connect(url):
            pass
        assert refusal.value.response.status_code == 429
        assert get(server, "/echo/")[0].status == 200  # pages are not counted
        clients.pop().close()
        with connect(url) as websocket:
            websocket.send("hello")
            assert websocket.recv(timeout=10) == "hello"

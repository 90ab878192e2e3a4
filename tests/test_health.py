"""/healthz and /readyz: what load balancers and Kubernetes are told, and that nobody else notices them."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import RequestFactory, override_settings

from django_websocket.exceptions import BrokerError
from django_websocket.pubsub import process, subscribe
from django_websocket.transport.drain import Drain
from django_websocket.transport.shared import shared_of_loop
from django_websocket.wsgi import WebSocketApplication

from .support.clients import fetch
from .support.clients import request as handshake
from .support.fixtures import Raw, StartSite
from .support.servers import Server, configured_nginx, redis_server
from .support.waiting import eventually, until

PATHS = ["/healthz", "/readyz"]


def pages(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """The application of the pages."""
    start_response("200 OK", [])
    return [b"a page"]


def ask(path: str, method: str = "GET", **headers: str) -> tuple[str, dict[str, str], bytes]:
    """Ask an application that serves pages, too, in this process."""
    answers: list[tuple[str, dict[str, str]]] = []
    environ = getattr(RequestFactory(), method.lower())(path, headers=headers).environ
    body = b"".join(WebSocketApplication(pages)(environ, lambda *answer: answers.append((answer[0], dict(answer[1])))))
    ((status, found),) = answers
    return status, found, body


@pytest.fixture
def on() -> Iterator[None]:
    with override_settings(WEBSOCKET_HEALTH=True):
        yield


# --- what is answered -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("path", PATHS)
def test_process_that_accepts_is_alive_and_ready(path: str) -> None:
    status, headers, body = ask(path, host="nobody.knows")
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == ("200 OK", "application/json", "no-store")
    assert json.loads(body) == {"ready": True, "broker": "unused"}
    assert ask(path, "HEAD") == (status, headers, b"")
    assert headers["Content-Length"] == str(len(body))


@pytest.mark.usefixtures("on")
def test_process_that_stops_is_alive_and_not_ready() -> None:
    shared = shared_of_loop()
    try:
        Drain((), 0.0, 0.0, bool).run()
        assert shared.draining
        assert ask("/healthz")[0] == "200 OK"
        status, _, body = ask("/readyz")
        assert (status, json.loads(body)["ready"]) == ("503 Service Unavailable", False)
    finally:
        shared.draining = False


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("path", PATHS)
def test_nothing_but_get_and_head_is_answered(path: str) -> None:
    status, headers, body = ask(path, "POST")
    assert (status, headers["Allow"]) == ("405 Method Not Allowed", "GET, HEAD")
    assert body == b"Only GET and HEAD are allowed.\n"


@pytest.mark.parametrize("path", PATHS)
def test_paths_belong_to_the_pages_by_default(path: str) -> None:
    assert ask(path)[2] == b"a page"


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("path", ["/", "/healthz/", "/healthz/more", "/x/readyz", "/HEALTHZ"])
def test_other_paths_belong_to_the_pages(path: str) -> None:
    assert ask(path)[2] == b"a page"


def test_state_of_the_broker_is_told_and_never_makes_an_answer_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server() as redis, override_settings(WEBSOCKET_HEALTH=True, WEBSOCKET_BROKER=f"redis://{redis.address}"):

        def state() -> str:
            status, _, body = ask("/readyz")
            assert status == "200 OK"
            found: str = json.loads(body)["broker"]
            return found

        assert state() == "unused"
        with subscribe("news"):
            assert state() == "up"
            redis.stop()
            until(lambda: state() == "away")
            redis.start()
            until(lambda: state() == "up")
        assert state() == "unused"
        redis.stop()
        with pytest.raises(BrokerError), subscribe("news"):
            pass
        assert state() == "away"
        monkeypatch.setattr(process, "RECENT", 0.0)
        assert state() == "unused"


# --- in a server ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(start_site: StartSite) -> Iterator[Server]:
    """A site on one port, whose access log is on."""
    settings = {"WEBSOCKET_HEALTH": True, "ALLOWED_HOSTS": ["localhost"]}
    with start_site(settings, args=["--access-logfile", "-"]) as server:
        yield server


def test_checks_are_in_no_log_and_pages_are(server: Server, raw: Raw) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for method in ("GET", "HEAD", "GET"):  # on one connection
        for path in PATHS:
            connection.request(method, path, headers={"Host": "10.1.2.3"})
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (200, method == "GET")
    connection.request("GET", "/page/", headers={"Host": "localhost"})
    assert connection.getresponse().read()
    connection.close()
    client = raw(server)
    client.send(b"GET /readyz HTTP/1.0\r\n\r\n")
    response_of_http_1_0 = client.response()
    assert response_of_http_1_0.status == 200 and client.rest() == b""  # which the server ends
    assert eventually(lambda: '"GET /page/ HTTP/1.1" 200' in server.log)
    assert not any(path in server.log for path in PATHS)


def test_handshake_for_these_paths_is_one_like_others(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.send(handshake("/readyz"))
    assert client.response().status == 404


def test_checks_pass_nginx_where_it_sends_pages_to_the_same_server(server: Server, tmp_path: Path) -> None:
    with configured_nginx(server.port, server.port, tmp_path) as nginx:
        response = fetch(nginx.port, "/readyz")
    assert (response.status, json.loads(response.body)["ready"]) == (200, True)

"""ASGI applications in WEBSOCKET_URLCONF, whole ones below a prefix, and a project's asgi.py in place of wsgi.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.test import override_settings

from django_websocket.testing import Client, HandshakeRefused

from .support.clients import fetch, notes, request
from .support.fixtures import STOCK_WORKER, Raw, StartSite
from .support.frames import close_frame, frame
from .support.servers import WORKER, Server, gunicorn
from .support.waiting import eventually
from .test_logins import SOON, log_in

APPLICATIONS = {"WEBSOCKET_URLCONF": "testsite.applications", "WEBSOCKET_CLOSE_TIMEOUT": 0.3, **SOON}
ACCEPT = {"type": "websocket.accept"}
CLOSE = {"type": "websocket.close"}
HELLO = {"type": "websocket.send", "text": "hello"}
START = {"type": "websocket.http.response.start", "status": 429, "headers": [["retry-after", "7"], ["x-a", "b"]]}


@pytest.fixture(scope="module")
def ours(start_site: StartSite) -> Iterator[Server]:
    with start_site(APPLICATIONS) as server:
        yield server


@pytest.fixture(scope="module")
def stock(start_site: StartSite) -> Iterator[Server]:
    with start_site(APPLICATIONS, worker=STOCK_WORKER) as server:
        yield server


@pytest.fixture(params=["ours", "stock"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


def steps(key: str, *events: Any, **parameters: str) -> str:
    """Return the path of the application that takes these steps."""
    more = "".join(f"&{name}={value}" for name, value in parameters.items())
    return f"/follow/?key={key}{more}&steps={quote(json.dumps(events))}"


def noted(server: Server, key: str, count: int) -> list[Any]:
    """Return the notes without the last, which is the end."""
    *found, last = notes(server.port, key, count + 1)
    assert last == "end"
    return [json.loads(note) if note.startswith("{") else note for note in found]


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["pingpong", "object", "partial", "wrapped"])
def test_application_of_each_kind_talks(server: Server, raw: Raw, key: str, path: str) -> None:
    client = raw(server)
    client.open(f"/{path}/?key={key}")
    for message in ("ping", "", "é", b"\0\xff", "x" * 100_000):
        client.send(frame(message))
        received = client.frame()
        assert (received.text if isinstance(message, str) else received.payload) == message
    client.send(close_frame(4321, "bye"))
    assert client.closing()[0] == 4321
    assert notes(server.port, key) == ["4321 bye"]


def test_application_learns_that_its_client_has_vanished(ours: Server, raw: Raw, key: str) -> None:
    client = raw(ours)
    client.open(f"/pingpong/?key={key}")
    client.reset()
    assert notes(ours.port, key) == ["1006"]


def test_a_call_that_is_cancelled_takes_no_message(ours: Server, raw: Raw, key: str) -> None:
    client = raw(ours)
    client.open(steps(key, "receive", ACCEPT, "receive in time", HELLO, "receive"))
    assert client.frame().text == "hello"
    client.send(frame("late"))
    connect, nothing, message = noted(ours, key, 3)
    assert (connect["type"], nothing) == ("websocket.connect", "nothing")
    assert message == {"type": "websocket.receive", "text": "late", "bytes": None}


def test_who_receives_before_the_acceptance_waits_for_it(ours: Server, raw: Raw, key: str) -> None:
    client = raw(ours)
    client.open(steps(key, "receive", "receive in a task", ACCEPT, "pause"), behind=frame("early"))
    assert [event["type"] for event in noted(ours, key, 2)] == ["websocket.connect", "websocket.receive"]


# --- the scope -------------------------------------------------------------------------------------------------------


def test_scope_says_all_that_the_specification_asks_for(ours: Server, raw: Raw, key: str) -> None:
    client = raw(ours)
    client.open(
        "/describe/7/?a=%C3%A9&b=",
        {**log_in(ours, key), "Sec-WebSocket-Protocol": "chat, news", "X-Thing": "1, 2", "Host": "localhost"},
    )
    scope = json.loads(client.frame().text)
    headers = dict(scope["headers"])
    assert headers["x-thing"] == "1, 2"
    assert headers["host"] == "localhost"
    assert scope["type"] == "websocket"
    assert scope["asgi"]["version"] == "3.0"
    assert (scope["http_version"], scope["scheme"]) == ("1.1", "ws")
    assert (scope["path"], scope["raw_path"], scope["root_path"]) == ("/describe/7/", "/describe/7/", "")
    assert scope["query_string"] == "a=%C3%A9&b="
    assert scope["client"] == ["127.0.0.1", client.sock.getsockname()[1]]
    assert scope["server"][1] == ours.port
    assert scope["subprotocols"] == ["chat", "news"]
    assert scope["extensions"] == {"websocket.http.response": {}}
    assert scope["state"] == {}
    assert scope["url_route"] == {"args": [], "kwargs": {"number": 7}}
    assert scope["user"] == key
    assert "sessionid" in scope["cookies"]


def test_a_trusted_proxy_says_where_the_client_is(ours: Server, raw: Raw) -> None:
    client = raw(ours)
    client.open("/describe/1/", {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"})
    scope = json.loads(client.frame().text)
    assert scope["client"] == ["203.0.113.7", 0]
    assert scope["scheme"] == "wss"


@pytest.mark.parametrize(("asked", "chosen"), [("chat", "chat"), ("unknown", None)])
def test_subprotocol_is_chosen_among_those_that_were_offered(
    ours: Server, raw: Raw, asked: str, chosen: str | None
) -> None:
    response = raw(ours).open(f"/describe/1/?sub={asked}", {"Sec-WebSocket-Protocol": "news, chat"})
    assert response.headers.get("sec-websocket-protocol") == chosen


def test_headers_and_cookies_travel_with_the_101(ours: Server, raw: Raw, key: str) -> None:
    headers = [["x-a", "1"], ["X-A", "2"], ["set-cookie", "c=d; Path=/; HttpOnly"], ["set-cookie", "e=f"]]
    response = raw(ours).open(steps(key, "receive", ACCEPT | {"headers": headers}))
    assert response.headers["x-a"] == "1, 2"
    assert response.cookies == {"c": "d", "e": "f"}


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(server: Server, raw: Raw, path: str) -> Any:
    client = raw(server)
    client.send(request(path))
    return client.response()


def test_close_before_the_acceptance_is_a_403(ours: Server, raw: Raw, key: str) -> None:
    assert refused(ours, raw, steps(key, "receive", CLOSE, "receive", HELLO)).status == 403
    _, gone, error = noted(ours, key, 3)
    assert gone == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    assert error == "RuntimeError: websocket.send came after websocket.close"


def test_application_may_answer_with_a_response_of_its_own(ours: Server, raw: Raw, key: str) -> None:
    body = {"type": "websocket.http.response.body", "more_body": True}
    parts = [body | {"body": "too "}, body | {"body": "fast", "more_body": False}]
    response = refused(ours, raw, steps(key, "receive", START, *parts, "receive"))
    assert (response.status, response.body) == (429, b"too fast")
    assert (response.headers["retry-after"], response.headers["x-a"]) == ("7", "b")
    assert noted(ours, key, 2)[1]["type"] == "websocket.disconnect"


def test_refusal_is_a_close_code_where_the_project_wants_that(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site({**APPLICATIONS, "WEBSOCKET_REFUSE": "close"}) as server:
        client = raw(server)
        client.open(steps(key, "receive", CLOSE))
        assert client.closing() == (4403, "Forbidden")


def test_application_whose_101_is_replaced_cannot_send_and_is_cancelled(ours: Server, raw: Raw, key: str) -> None:
    path = steps(key, "receive", ACCEPT, "receive for ever", interfere="replace")
    assert refused(ours, raw, path).status == 409
    (connect, error) = noted(ours, key, 2)
    assert (connect["type"], error.partition(":")[0]) == ("websocket.connect", "ClientDisconnected")


def test_foreign_page_is_refused(ours: Server, raw: Raw) -> None:
    client = raw(ours)
    client.send(request("/pingpong/", {"Origin": "https://evil.example"}))
    assert client.response().status == 403


def test_application_that_does_not_end_is_cancelled(ours: Server, raw: Raw, key: str) -> None:
    assert refused(ours, raw, steps(key, "receive", CLOSE, "receive for ever")).status == 403
    assert notes(ours.port, key, 2)[-1] == "end"
    client = raw(ours)
    client.open(steps(f"{key}-2", "receive", ACCEPT, "receive for ever"))
    client.send(close_frame())
    assert notes(ours.port, f"{key}-2", 2)[-1] == "end"


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([HELLO], "RuntimeError: websocket.send came before websocket.accept"),
        ([ACCEPT, ACCEPT], "RuntimeError: websocket.accept came after websocket.accept"),
        ([ACCEPT, CLOSE, HELLO], "RuntimeError: websocket.send came after websocket.close"),
        ([ACCEPT, CLOSE, CLOSE], "RuntimeError: websocket.close came after websocket.close"),
        ([ACCEPT, START], "RuntimeError: websocket.http.response.start came after websocket.accept"),
        ([ACCEPT, HELLO | {"bytes": "x"}], "ValueError: websocket.send must have either text or bytes"),
        ([ACCEPT, {"type": "websocket.send"}], "ValueError: websocket.send must have either text or bytes"),
        (
            [ACCEPT, {"type": "websocket.send", "text": 7}],
            "TypeError: The text of websocket.send must be a str, not int",
        ),
        ([ACCEPT, CLOSE | {"code": 1006}], "ValueError: 1006 is not a close code that can be sent"),
        ([ACCEPT, {"type": "http.response.start"}], "ValueError: 'http.response.start' is not an event"),
        ([ACCEPT | {"headers": [["Sec-WebSocket-Protocol", "x"]]}], "ValueError: Give the subprotocol in the key"),
        ([{"type": "websocket.http.response.body"}], "RuntimeError: websocket.http.response.body came without"),
    ],
)
def test_mistake_of_an_application_is_told(ours: Server, raw: Raw, key: str, events: list[Any], error: str) -> None:
    client = raw(ours)
    client.send(request(steps(key, *events)))
    assert noted(ours, key, 1)[0].startswith(error)


def test_application_that_ends_without_an_answer_is_told_of_it(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site(APPLICATIONS) as server:
        assert refused(server, raw, steps(key, "receive")).status == 500
        assert eventually(lambda: "it must send websocket.accept or websocket.close" in server.log)
        assert "testsite.applications.follow has returned" in server.log


@pytest.mark.parametrize(("last", "code"), [("receive", 1000), ("raise", 1011), ("forbid", 4403)])
def test_connection_ends_with_its_application(ours: Server, raw: Raw, key: str, last: str, code: int) -> None:
    other = raw(ours)
    other.open("/pingpong/")
    client = raw(ours)
    client.open(steps(key, "receive", ACCEPT, last), behind=frame("go"))
    assert client.closing()[0] == code
    assert notes(ours.port, key, 2)[-1] == "end"
    other.send(frame("still here"))
    assert other.frame().text == "still here"


def test_error_before_the_acceptance_is_a_500(ours: Server, raw: Raw, key: str) -> None:
    assert refused(ours, raw, steps(key, "raise")).status == 500


def test_sending_to_a_client_that_has_left_is_an_oserror(ours: Server, raw: Raw, key: str) -> None:
    client = raw(ours)
    client.open(steps(key, ACCEPT, "receive", "receive", HELLO))
    client.send(close_frame(4000))
    client.closing()
    *_, gone, error = noted(ours, key, 3)
    assert gone["code"] == 4000
    assert error.startswith("ClientDisconnected: ")


# --- what holds for views --------------------------------------------------------------------------------------------


def test_connection_ends_with_the_login_of_its_user(ours: Server, raw: Raw, key: str) -> None:
    client = raw(ours)
    client.open(f"/pingpong/?key={key}", log_in(ours, key))
    fetch(ours.port, f"/change/deactivate/?name={key}")
    assert client.closing() == (4401, "logged out")
    assert notes(ours.port, key) == ["4401 logged out"]


def test_message_that_is_too_big_closes(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site({**APPLICATIONS, "WEBSOCKET_MAX_MESSAGE_SIZE": 100}) as server:
        client = raw(server)
        client.open(f"/pingpong/?key={key}")
        client.send(frame("x" * 101))
        assert client.closing()[0] == 1009
        assert notes(server.port, key)[0].startswith("1009")


def test_client_that_does_not_read_is_given_up(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site({**APPLICATIONS, "WEBSOCKET_SEND_TIMEOUT": 0.5, "WEBSOCKET_SEND_BUFFER_SIZE": 1000}) as server:
        client = raw(server, receive_buffer=4096)
        client.open(f"/flood/?key={key}")
        assert notes(server.port, key) == ["ClientDisconnected"]
        assert "does not read" in server.log
        assert "Traceback" not in server.log


# --- whole applications ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/starlette", "/tenants/acme/starlette"])
def test_whole_application_below_a_prefix(ours: Server, raw: Raw, key: str, prefix: str) -> None:
    client = raw(ours)
    client.open(f"{prefix}/talk/bob", log_in(ours, key))
    assert json.loads(client.frame().text) == {
        "path": f"{prefix}/talk/bob",
        "root_path": prefix,
        "name": "bob",
        "pool": "of the process",
        "user": key,
        "back": f"{prefix}/talk/ann",
    }
    client.send(frame("hello"))
    assert client.frame().text == "hello"


@pytest.mark.parametrize(("path", "status", "body"), [("deeper/deny", 418, b"a teapot"), ("nothing", 403, b"")])
def test_whole_application_refuses(ours: Server, raw: Raw, path: str, status: int, body: bytes) -> None:
    response = refused(ours, raw, f"/starlette/{path}")
    assert (response.status, response.body) == (status, body)


def test_application_learns_of_the_begin_and_the_end_of_the_process(start_site: StartSite, raw: Raw) -> None:
    with start_site(APPLICATIONS) as server:
        for _ in range(2):
            client = raw(server)
            client.open("/starlette/talk/bob")
            client.frame()
        assert server.log.count("lifespan: begin") == 1
        server.send_signal(signal.SIGTERM)
        assert client.closing()[0] == 1012
        assert eventually(lambda: "lifespan: end" in server.log)


def test_application_without_a_lifespan_is_served(ours: Server, raw: Raw, key: str) -> None:
    for path in ("/bare/x/", "/unaware/x/"):
        client = raw(ours)
        client.open(path)
        if path.startswith("/bare"):
            assert json.loads(client.frame().text)["root_path"] == "/bare"
        else:
            client.send(frame("hello"))
            assert client.frame().text == "hello"


def test_application_that_cannot_begin_says_why(start_site: StartSite, raw: Raw) -> None:
    with start_site(APPLICATIONS) as server:
        for _ in range(2):
            assert refused(server, raw, "/cannot-begin/").status == 500
        assert server.log.count("applications.cannot_begin could not start: no database") >= 2


# --- a project's asgi.py ---------------------------------------------------------------------------------------------

ASGI = """
import os

from django.core.asgi import get_asgi_application
from websocket_app.websocket import websocket_application

os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'websocket_app.settings')

django_application = get_asgi_application()

async def application(scope, receive, send):
  if scope['type'] == 'http':
    await django_application(scope, receive, send)
  elif scope['type'] == 'websocket':
    await websocket_application(scope, receive, send)
  else:
    raise NotImplementedError(f"Unknown scope type {scope['type']}")
"""
WEBSOCKET = """
async def websocket_application(scope, receive, send):
  while True:
    event = await receive()

    if event['type'] == 'websocket.connect':
      await send({
        'type': 'websocket.accept'
      })

    if event['type'] == 'websocket.disconnect':
      break

    if event['type'] == 'websocket.receive':
      if event['text'] == 'ping':
        await send({
          'type': 'websocket.send',
          'text': 'pong!'
        })
"""


@pytest.fixture(scope="module")
def article(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of an article on ASGI functions, made as it says."""
    folder = tmp_path_factory.mktemp("django_websockets")
    admin = [sys.executable, "-m", "django", "startproject", "websocket_app", "."]
    env = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    subprocess.run(admin, cwd=folder, check=True, env=env)
    (folder / "websocket_app" / "asgi.py").write_text(ASGI)
    (folder / "websocket_app" / "websocket.py").write_text(WEBSOCKET)
    return folder


@pytest.mark.parametrize("how", ["asgi.py", "ASGI_APPLICATION"])
def test_project_changes_nothing_but_its_command(article: Path, raw: Raw, how: str) -> None:
    app = "websocket_app.asgi:application"
    if how == "ASGI_APPLICATION":
        with (article / "websocket_app" / "settings.py").open("a") as settings:
            settings.write(f'\nASGI_APPLICATION = "{app.replace(":", ".")}"\n')
        (article / "websocket_app" / "wsgi.py").write_text(
            textwrap.dedent(
                """
                import os
                from django.core.wsgi import get_wsgi_application
                from django_websocket.wsgi import get_wsgi_websocket_application
                os.environ.setdefault("DJANGO_SETTINGS_MODULE", "websocket_app.settings")
                websocket = get_wsgi_websocket_application(http=get_wsgi_application())
                """
            )
        )
        app = "websocket_app.wsgi:websocket"
    with gunicorn(app, WORKER, cwd=article) as server:
        client = raw(server)
        client.open("/")
        client.send(frame("ping"))
        assert client.frame().text == "pong!"
        assert fetch(server.port, "/admin/login/").status == 200
        foreign = raw(server)
        foreign.send(request("/", {"Origin": "https://evil.example"}))
        assert foreign.response().status == 403
        client.send(close_frame())
        client.closing()
        assert "Traceback" not in server.log


# --- the test client -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("test_runner")
@override_settings(WEBSOCKET_URLCONF="testsite.applications")
def test_test_client_talks_with_applications() -> None:
    with Client().websocket("/pingpong/") as ws:
        ws.send("ping")
        assert ws.receive() == "ping"
    with Client().websocket("/starlette/talk/bob") as ws:
        assert ws.receive_json()["pool"] == "of the process"
    with pytest.raises(HandshakeRefused) as refusal:
        Client().websocket("/starlette/deeper/deny")
    assert refusal.value.response.status_code == 418

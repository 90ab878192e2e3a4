"""docs/recipes/operations.md: what a running site writes and reports, and the figures of its examples."""

from __future__ import annotations

import gzip
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from .support.documentation import Project, blocks, command, commands
from .support.figures import growth, measured
from .support.servers import ROOT, Server, configured_nginx, free_port
from .support.waiting import eventually

pytestmark = pytest.mark.slow

PAGE = "docs/recipes/operations.md"
SECRET = "not for others"
TOKEN = "in-the-query"
LOGIN = {"Cookie": f"sessionid={SECRET}", "Authorization": f"Bearer {SECRET}"}
PROJECT = """
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
"""
VIEWS = """
import logging
from django.urls import path
from django_websocket.decorators import websocket
from django_websocket.signals import websocket_disconnected

@websocket
def fails(request, websocket):
    text = websocket.receive()
    logging.getLogger("chat").warning("about to fail")
    raise ValueError("in the view")

def receiver(**kwargs):
    raise LookupError("in the receiver")

websocket_disconnected.connect(receiver)
urlpatterns += [path("fails/", fails)]
"""


open_page = partial(connect, additional_headers=LOGIN, open_timeout=10, proxy=None)


class Sentry(ThreadingHTTPServer):
    """Takes reports as Sentry does, and keeps them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[bytes] = []

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events among the lines of the envelopes."""
        lines = [json.loads(line) for body in self.received for line in body.split(b"\n") if line]
        return [line for line in lines if "event_id" in line and "level" in line]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Sentry)
        self.server.received.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def project(readme: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    copy = readme.copy(tmp_path_factory.mktemp("operations") / "mysite")
    copy.write("websocket.conf.py", (ROOT / "deploy/websocket.conf.py").read_text())
    copy.put(PAGE)
    copy.write("mysite/settings.py", PROJECT, add=True)
    copy.write("mysite/websocket_urls.py", VIEWS, add=True)
    return copy


@pytest.fixture(scope="module")
def sentry() -> Iterator[Sentry]:
    with Sentry() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def site(project: Project, sentry: Sentry) -> Iterator[Server]:
    """The project as it runs in production, after clients that were refused, that failed, and that only looked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENTRY_DSN", f"http://key@127.0.0.1:{sentry.server_port}/1")
        with project.gunicorn(command("docs/deployment.md", "--no-control-socket")) as server:
            with socket.create_connection(("127.0.0.1", server.port)):
                pass  # as Kubernetes' probe does
            with (
                pytest.raises(InvalidStatus),
                open_page(f"ws://{server.address}/chat/lobby/", origin="https://evil.example"),
            ):
                pass
            with open_page(f"ws://{server.address}/fails/?token={TOKEN}", origin=f"http://{server.address}") as client:
                client.send(SECRET)
                with pytest.raises(ConnectionClosed):
                    client.recv(timeout=10)
            assert eventually(lambda: len(logged(server)) >= 4 and len(sentry.events) >= 2)
            yield server


def logged(server: Server, *levels: str) -> list[dict[str, Any]]:
    """What the server has logged as the page's JSON, by default what has gone wrong; gunicorn has its own lines."""
    whole = server.log.rpartition("\n")[0].splitlines()
    lines = [json.loads(line) for line in whole if line.startswith("{")]
    # On a busy machine, anything may take long.
    lines = [line for line in lines if "all clients of this process had to wait" not in line["message"]]
    return [line for line in lines if line["level"] in (levels or ("WARNING", "ERROR"))]


def test_json_log_has_each_event_once_with_debug_off(site: Server) -> None:
    found = {(line["logger"], line["level"]): line for line in logged(site)}
    assert len(found) == len(logged(site)) == 4
    # The test's own probe; the one of Kubernetes leaves no line.
    assert {line["message"] for line in logged(site, "INFO")} == {"127.0.0.1 /: 426 an ordinary request"}
    refused = found["django_websocket", "WARNING"]["message"]
    (example,) = [line for block in blocks(PAGE) for line in block.code.splitlines() if ": 403 " in line]
    assert (
        re.sub(r"http://[\d.:]+", "https://example.com", refused.partition(" ")[2])
        == (example.partition(": ")[2].partition(" ")[2])
    )
    failed = found["django.request", "ERROR"]
    assert failed["message"] == "Error in the WebSocket view of /fails/"
    assert failed["exception"].startswith("Traceback") and "ValueError: in the view" in failed["exception"]
    assert "LookupError: in the receiver" in found["django.dispatch", "ERROR"]["exception"]
    assert found["chat", "WARNING"]["message"] == "about to fail"
    assert SECRET not in site.log and TOKEN not in site.log


def test_sentry_gets_errors_with_their_request_and_without_messages_and_logins(site: Server, sentry: Sentry) -> None:
    events = {event["exception"]["values"][0]["type"]: event for event in sentry.events}
    assert len(events) == len(sentry.events) == 2
    failed = events["ValueError"]
    assert failed["transaction"] == "/fails/"
    assert failed["request"]["url"].endswith("/fails/") and failed["request"]["query_string"] == f"token={TOKEN}"
    assert failed["request"]["headers"]["Cookie"] == failed["request"]["headers"]["Authorization"] == "[Filtered]"
    assert [crumb["message"] for crumb in failed["breadcrumbs"]["values"]] == ["about to fail"]
    assert "user" not in failed
    assert events["LookupError"]["logger"] == "django.dispatch"
    assert all(SECRET.encode() not in body for body in sentry.received)


def test_access_log_has_conversations_and_refusals_as_the_page_shows(project: Project) -> None:
    (ended, refused) = [
        line.partition(" gunicorn.access: ")[2]
        for block in blocks(PAGE)
        for line in block.code.splitlines()
        if " gunicorn.access: " in line
    ]
    with project.gunicorn("gunicorn -c websocket.conf.py mysite.wsgi:websocket") as server:
        address = f"ws://{server.address}/chat/lobby/"
        with pytest.raises(InvalidStatus), open_page(address, origin="https://evil.example"):
            pass
        with open_page(address, origin=f"http://{server.address}") as client:
            for _ in range(3):
                client.send("hello")
                client.recv(timeout=10)

        def lines() -> list[str]:
            return [line["message"] for line in logged(server, "INFO") if line["logger"] == "gunicorn.access"]

        assert eventually(lambda: len(lines()) == 3)
        probe, second, third = lines()
    assert '"GET /" 426' in probe
    assert second == refused.replace("203.0.113.7", "127.0.0.1")
    for shown, found in {"203.0.113.9 ann": "127.0.0.1 -", "31,": "3,", "204,": "3,", "1001": "1000"}.items():
        ended = ended.replace(shown, found)
    pattern = re.escape(ended).replace(re.escape("754.208"), r"\d+\.\d{3}")
    assert re.fullmatch(pattern, third), third


def test_nginx_sends_clients_to_the_instance_that_runs(site: Server, tmp_path: Path) -> None:
    (block,) = [block.code for block in blocks(PAGE) if block.code.startswith("upstream")]
    both = block.replace("10.0.0.1:8001", f"127.0.0.1:{free_port()}").replace("10.0.0.2", "127.0.0.1")
    one = "upstream websocket_server {\n        server 127.0.0.1:8001;\n    }"
    with configured_nginx(free_port(), site.port, tmp_path, {one: both}) as server:
        for number in range(3):
            origin = f"http://{server.address}"
            with open_page(f"ws://{server.address}/chat/lobby/", origin=origin) as client:
                client.send(str(number))
                assert client.recv(timeout=10) == str(number)


def test_plain_lines_look_as_the_page_shows_them() -> None:
    (code,) = [block.code for block in blocks(PAGE) if "\nLOGGING = " in block.code]
    found: dict[str, Any] = {}
    exec(code, found)
    formatter = logging.Formatter(found["LOGGING"]["formatters"]["line"].pop("format"), style="{")
    shown = [line for block in blocks(PAGE) for line in block.code.splitlines() if line.startswith("2026")]
    assert len(shown) == 6
    for line in shown:
        match = re.fullmatch(r"\S+ \S+ (\w+) (\d+) ([\w.]+): (.*)", line)
        assert match
        level, process, name, message = match.groups()
        record = logging.LogRecord(name, getattr(logging, level), "", 0, message, None, None)
        record.process = int(process)
        written = formatter.format(record)
        assert re.fullmatch(r"\d{4}(-\d\d){2} (\d\d:){2}\d\d,\d{3} .*", written)
        assert written.split(" ", 2)[2] == line.split(" ", 2)[2]


def test_example_of_a_test_passes(project: Project) -> None:
    assert "Ran 1 test" in project.run("python manage.py test chat.tests_operations", errors=True)


def test_estimate_is_as_shown_and_made_of_measured_figures(project: Project) -> None:
    (script,) = [block.code for block in blocks(PAGE) if block.language == "python" and block.file == "sizing.py"]
    (shown,) = [block.code for block in blocks(PAGE) if block.code.startswith("memory for clients")]
    assert project.run("python sizing.py") == shown
    ours = "django_websocket"
    assert dict(quoted(script)) == {
        "members15000": measured(ours, "members15000")[0],
        "clients": growth(ours, "clients", "15,000"),
        "channels": growth(ours, "channels", "1,000"),
        "connect_login": measured(ours, "connect_login")[1],
    }
    of_histories = (ROOT / "docs/history.md").read_text()
    assert "(30 + 7)" in script and "about 7 us" in of_histories and "30 us for a publish" in of_histories
    assert "about 25 KB" in (ROOT / PAGE).read_text() and "0.4, 2.7, 25 KB" in of_histories


def quoted(script: str) -> Iterator[tuple[str, str]]:
    """Yield each load that a comment of the script names, with its figure on that line."""
    for line in script.splitlines():
        code, _, comment = line.partition("#")
        loads = re.findall(r"`(\w+)`", comment)
        figures = [figure.replace("_", ",") for figure in re.findall(r"[* (+](\d[\d_.]*)", code)]
        yield from zip(loads, figures[: len(loads)], strict=True)


def test_commands_install_what_the_tests_have_and_reload_as_elsewhere() -> None:
    install, reload = commands(PAGE)
    assert f'\n    "{install.removeprefix("pip install ")}>=' in (ROOT / "pyproject.toml").read_text()
    assert reload in commands("docs/deployment.md")  # whose test runs it


def test_window_is_shorter_than_the_time_to_stop() -> None:
    text = (ROOT / PAGE).read_text()
    graceful = int(re.findall(r"^graceful_timeout = (\d+)", (ROOT / "deploy/websocket.conf.py").read_text(), re.M)[0])
    (window,) = re.findall(r"WEBSOCKET_DRAIN_WINDOW = ([\d.]+)", text)
    assert float(window) < graceful

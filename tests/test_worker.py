"""gunicorn with our worker: the commands that people type, signals, keepalive, slow readers, TLS."""

from __future__ import annotations

import importlib.metadata
import os
import select
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .support.clients import RawClient, fetch, notes, request, unverified
from .support.fixtures import Connect, Raw, StartSite
from .support.frames import BINARY, PING, PONG, TEXT, Frame, close_frame, frame
from .support.processes import worker_of
from .support.servers import HTTP_PROBE, TEST_PROJECT, Server, free_port, gunicorn, unavailable
from .support.waiting import DEADLINE, STARTS, at_once, eventually

# --- the commands ----------------------------------------------------------------------------------------------------


def as_typed(line: str, home: Path, probe: bytes = HTTP_PROBE, **environment: str) -> Server:
    """A command line of the documentation, run in test_project on another port, for local clients only."""
    port = free_port()
    command = shlex.split(line.replace("0.0.0.0:8001", f"127.0.0.1:{port}").replace("{port}", str(port)))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    # gunicorn puts its control socket into HOME.
    environment = {"PATH": path, "HOME": str(home), **environment}
    command[0] = str(Path(sys.executable).parent / command[0])
    return Server(command, port=port, probe=probe, cwd=TEST_PROJECT, env=environment)


@pytest.mark.parametrize(
    "line",
    [
        "gunicorn -k django_websocket.worker.GeventWebSocketWorker project.wsgi:websocket -b 0.0.0.0:8001",
        'gunicorn -k "geventwebsocket.gunicorn.workers.GeventWebSocketWorker" project.wsgi:websocket -b 0.0.0.0:8001',
    ],
    ids=["ours", "the original's"],
)
def test_command_line_of_the_documentation_serves_beside_runserver(connect: Connect, tmp_path: Path, line: str) -> None:
    with as_typed(line, tmp_path) as server:
        pages = as_typed("python manage.py runserver --noreload {port}", tmp_path, WEBSOCKET_SERVER=f":{server.port}")
        with pages:
            for path in ("/chat/", "/echo/", "/ping/"):
                assert f"ws://localhost:{server.port}{path}" in fetch(pages.port, path).body.decode()
        # Pages from port 8000 may connect.
        for host in ("localhost", "127.0.0.1", "[::1]"):
            for path, answer in {"/echo/": "ping", "/ping/": "pong", "/chat/": "ping"}.items():
                with connect(server, path, origin=f"http://{host}:8000") as client:
                    assert client.ask("ping") == answer


def test_ping_answers_ping_and_pong_and_nothing_else(any_project: Server, connect: Connect) -> None:
    client = connect(any_project, "/ping/")
    for other in ("hello", "", "PING", b"ping"):
        client.send(other)
    assert client.ask("ping") == "pong"
    assert client.ask("pong") == "ping"


def test_echo_keeps_text_and_binary_and_the_empty_message(any_project: Server, connect: Connect) -> None:
    client = connect(any_project, "/echo/")
    for message in ("Grüße ☺", b"\0\xff", "", b"", "x" * 70000, os.urandom(300_000)):
        assert client.ask(message) == message


def test_chat_sends_every_text_to_all_members_including_its_sender(any_project: Server, connect: Connect) -> None:
    members = [connect(any_project, "/chat/") for _ in range(3)]
    for number, member in enumerate(members):
        member.send(f"message {number}")
        assert [other.recv() for other in members] == [f"message {number}"] * 3


def test_worker_has_a_short_name_as_an_entry_point(connect: Connect) -> None:
    if not importlib.metadata.entry_points(group="gunicorn.workers"):
        unavailable("the package is not installed, only found in the tree")
    with gunicorn(worker="egg:django-gevent-websocket#GeventWebSocketWorker") as server:
        assert connect(server, "/echo/").ask("hello") == "hello"


PLUGIN = """
import sys
reads = []

def begun(event):
    sys.addaudithook(lambda name, arguments: name == "open" and str(arguments[0]).endswith("entry_points.txt")
                     and reads.append(arguments[0]))

def done(event):
    print("gevent has patched, and read", len(reads), "more", flush=True)
"""


def test_gevent_has_its_plugins_and_reads_only_once_which_are_installed(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    metadata = tmp_path / "plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    points = {"will_patch_all": "begun", "did_patch_all": "done"}
    lines = [f"[gevent.plugins.monkey.{event}]\nplugin = plugin:{name}\n" for event, name in points.items()]
    (metadata / "entry_points.txt").write_text("".join(lines))
    with gunicorn(env={"PYTHONPATH": str(tmp_path)}) as server:
        assert "gevent has patched, and read 0 more" in server.log


# --- the end of the service ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda number: number.name)
def test_clients_are_told_of_a_restart(
    start_site: StartSite, connect: Connect, raw: Raw, number: signal.Signals
) -> None:
    with start_site(args=["--graceful-timeout", "10"]) as server:
        clients = [connect(server, path) for path in ("/echo/?key=term", "/forward/x/", "/listen/x/", "/selects/x/")]
        raw(server).open("/echo/?key=mute")  # answers no close frame
        begin = time.monotonic()
        server.send_signal(number)
        assert [client.closing()[0] for client in clients] == [1012] * 4
        server.wait(10 - (time.monotonic() - begin))
        # The views have run to their end.
        for key in ("term", "mute"):
            assert f"note {key}: 1012" in server.log
        assert "Traceback" not in server.log


@pytest.mark.alone
def test_worker_without_clients_ends_at_once() -> None:
    took = []
    with gunicorn() as server:
        for _ in range(3):  # the machine itself may stall during one of them
            fetch(server.port, "/")  # waits until gunicorn has started a new worker
            worker = os.pidfd_open(worker_of(server))
            begin = time.monotonic()
            signal.pidfd_send_signal(worker, signal.SIGTERM)
            select.select([worker], [], [], DEADLINE)
            took.append(time.monotonic() - begin)
            os.close(worker)
        fetch(server.port, "/")  # a worker that was just forked would miss the signal to end
    assert min(took) < 0.3, took


def test_clients_are_told_at_once_when_a_second_signal_asks_for_a_quick_end(
    start_site: StartSite, connect: Connect
) -> None:
    with start_site({"WEBSOCKET_DRAIN_WINDOW": 10.0}, args=["--graceful-timeout", "30"]) as server:
        clients = [connect(server, "/echo/?key=told") for _ in range(40)]
        server.send_signal(signal.SIGTERM)
        assert eventually(lambda: "note told: 1012" in server.log)
        server.send_signal(signal.SIGINT)  # gunicorn gives the worker two more seconds
        assert [client.closing()[0] for client in clients] == [1012] * 40
        server.wait(5)
        assert "SIGKILL" not in server.log


def test_stuck_view_does_not_hold_up_the_process_and_nobody_new_is_accepted(
    start_site: StartSite, connect: Connect, key: str
) -> None:
    def refused() -> bool:
        try:
            with RawClient(server.port) as late:
                late.send(request("/echo/"))
                return late.rest() == b""
        except OSError:
            return True

    with start_site(args=["--graceful-timeout", "4"]) as server:
        other = connect(server, "/echo/")
        client = connect(server, f"/deaf/?key={key}")
        assert notes(server.port, key) == ["busy"]
        begin = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert (client.closing()[0], other.closing()[0]) == (1012, 1012)
        assert eventually(refused)
        server.wait(10)
        assert time.monotonic() - begin < 5  # one second is gunicorn's own
        assert "SIGKILL" not in server.log


@pytest.mark.alone  # gunicorn kills the worker when the second is over
@pytest.mark.parametrize("seconds", [1, 2])
def test_finally_blocks_run_in_a_short_graceful_timeout(
    start_site: StartSite, raw: Raw, key: str, seconds: int
) -> None:
    with start_site({"WEBSOCKET_DRAIN_WINDOW": 2.0}, args=["--graceful-timeout", str(seconds)]) as server:
        clients = [raw(server) for _ in range(50)]
        for client in clients:
            client.open(f"/tidies-up/?key={key}")
        server.send_signal(signal.SIGTERM)
        for client in clients:
            assert client.closing()[0] == 1012
        server.wait()
        assert server.log.count(f"note {key}: tidy") == 50


def test_tls_handshake_is_completed_although_the_service_ends_meanwhile(
    start_site: StartSite, certificate: tuple[Path, Path], raw: Raw
) -> None:
    arguments: list[str | Path] = ["--certfile", certificate[0], "--keyfile", certificate[1]]
    with start_site(args=arguments, probe=b"") as server:
        late = raw(server)
        other = raw(server, tls=True)
        other.open("/echo/")  # by now the server has accepted both
        server.send_signal(signal.SIGTERM)
        assert other.closing()[0] == 1012
        late.sock = unverified().wrap_socket(late.sock)
        late.open("/echo/")
        assert late.closing()[0] == 1012
        server.wait()
        assert "Traceback" not in server.log


def test_reload_closes_with_1012_and_goes_on_with_new_workers(start_site: StartSite, connect: Connect) -> None:
    with start_site() as server:
        client = connect(server, "/selects/x/")
        before = client.recv()
        server.send_signal(signal.SIGHUP)
        assert client.closing()[0] == 1012
        again = connect(server, "/selects/x/", open_timeout=STARTS)
        assert again.recv() != before


def test_worker_that_has_served_its_max_requests_closes_with_1012(start_site: StartSite, connect: Connect) -> None:
    with start_site(args=["--max-requests", "4"]) as server:  # the first request was the probe
        clients = [connect(server, "/echo/") for _ in range(3)]
        assert [client.closing()[0] for client in clients] == [1012] * 3
        assert connect(server, "/echo/", open_timeout=STARTS).ask("hello") == "hello"


def test_change_of_the_code_closes_with_1012_and_goes_on_with_the_new_code(
    tmp_path: Path, connect: Connect, raw: Raw
) -> None:
    shutil.copytree(TEST_PROJECT, tmp_path / "site")
    with (tmp_path / "site" / "project" / "settings.py").open("a") as settings:
        settings.write("WEBSOCKET_DRAIN_WINDOW = 30.0\n")  # must not matter to a reload
        settings.write("WEBSOCKET_CLOSE_TIMEOUT = 1.0\n")
    with gunicorn(cwd=tmp_path / "site", args=["--reload", "--reload-engine", "poll"]) as server:
        clients = [connect(server, path) for path in ("/echo/", "/chat/", "/ping/") * 7]
        raw(server).open("/echo/")  # answers no close frame
        urls = tmp_path / "site" / "project" / "websocket_urls.py"
        urls.write_text(urls.read_text().replace('"echo/"', '"renamed/"'))
        begin = time.monotonic()
        assert [client.closing()[0] for client in clients] == [1012] * 21
        assert time.monotonic() - begin < 5
        assert connect(server, "/renamed/", open_timeout=STARTS).ask("hello") == "hello"


# --- clients that do not answer --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(start_site: StartSite) -> Iterator[Server]:
    """A server that sends pings early and gives up soon."""
    settings = {
        "WEBSOCKET_PING_INTERVAL": 0.5,
        "WEBSOCKET_PING_TIMEOUT": 1.0,
        "WEBSOCKET_SEND_TIMEOUT": 1.0,
        "WEBSOCKET_CLOSE_TIMEOUT": 1.0,
    }
    with start_site(settings) as server:
        yield server


@pytest.mark.parametrize("path", ["/echo/", "/listen/x/", "/selects/x/"])
def test_silent_client_gets_a_ping_and_is_closed_with_1011(impatient: Server, raw: Raw, key: str, path: str) -> None:
    client = raw(impatient)
    client.open(f"{path}?key={key}")
    received = client.frame()
    while received.opcode == TEXT:
        received = client.frame()
    assert received.opcode == PING
    assert client.closing()[0] == 1011
    assert client.rest() == b""
    if path == "/echo/":
        assert notes(impatient.port, key)[0].startswith("1011")


def test_client_that_answers_pings_stays_connected(impatient: Server, raw: Raw) -> None:
    client = raw(impatient)
    client.open("/echo/")
    for _ in range(4):
        ping = client.frame()
        assert ping.opcode == PING
        client.send(frame(ping.payload, PONG))
    client.send(frame("still here"))
    assert client.frame().text == "still here"


def test_view_is_told_when_its_client_does_not_read(impatient: Server, raw: Raw, key: str) -> None:
    client = raw(impatient, receive_buffer=4096)
    client.open(f"/flood/?key={key}")
    client.sock.settimeout(2 * DEADLINE)
    assert notes(impatient.port, key) == ["ConnectionClosed 1008"]
    assert "127.0.0.1 /flood/: 1008 does not read\n" in impatient.log
    assert "Error in the WebSocket view" not in impatient.log


def test_slow_reader_gets_everything_that_a_view_sends(site: Server, raw: Raw) -> None:
    client = raw(site, receive_buffer=4096)
    client.open("/flood/")
    for _ in range(200):
        assert client.frame() == Frame(TEXT, b"x" * 65536)


def test_listener_that_does_not_read_is_closed_with_1013_and_holds_up_nobody(
    start_site: StartSite, raw: Raw, key: str
) -> None:
    with start_site({"WEBSOCKET_CLOSE_TIMEOUT": 2 * DEADLINE}) as site:  # the slow client reads behind all others
        slow = raw(site, receive_buffer=4096)
        slow.open(f"/listen/{key}/")
        member = raw(site)
        member.open(f"/forward/{key}/?key={key}")
        assert notes(site.port, key) == ["subscribed"]
        message = "x" * 500_000
        for _ in range(20):  # more than the kernel and an outbox take
            with at_once():
                assert fetch(site.port, f"/publish/{key}/?text=x&times=500000").status == 200
                assert member.frame().text == message
        received = slow.frame()
        count = 0
        while received.opcode == TEXT:
            assert received.text == message
            count += 1
            received = slow.frame()
        assert received.close[0] == 1013
        assert count < 20


# --- TLS, Unix sockets -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_site(start_site: StartSite, certificate: tuple[Path, Path]) -> Iterator[Server]:
    """The test site over gunicorn's own TLS."""
    with start_site(args=["--certfile", certificate[0], "--keyfile", certificate[1]], probe=b"") as server:
        yield server


def test_small_and_large_messages_pass_over_tls(tls_site: Server, raw: Raw) -> None:
    # Not the library's client: it reads in one thread and writes in another, which OpenSSL does not allow.
    client = raw(tls_site, tls=True)
    client.open("/echo/")
    for message in ("hello", b"", os.urandom(300_000), "x" * 300_000, "hello again"):
        client.send(frame(message))
        received = client.frame()
        assert (received.text if isinstance(message, str) else received.payload) == message
        assert received.opcode == (TEXT if isinstance(message, str) else BINARY)


def test_messages_in_one_segment_and_in_that_of_the_handshake_pass_over_tls(tls_site: Server, raw: Raw) -> None:
    client = raw(tls_site, tls=True)
    with at_once():
        client.open("/echo/", behind=frame("one") + frame("two"))
        assert [client.frame().text, client.frame().text] == ["one", "two"]
        client.send(*map(frame, ("three", "four", "five")))
        assert [client.frame().text for _ in range(3)] == ["three", "four", "five"]


def test_select_sees_messages_that_the_tls_layer_holds(tls_site: Server, raw: Raw, key: str) -> None:
    client = raw(tls_site, tls=True)
    client.open(f"/selects/{key}/", behind=frame("one"))
    client.frame()
    assert client.frame().text == "subscribed"
    assert client.frame().text == "one"
    with at_once():
        client.send(*(frame("x" * 5000) for _ in range(30)))
        assert [len(client.frame().text) for _ in range(30)] == [5000] * 30


def test_pings_refusals_and_the_end_work_over_tls(tls_site: Server, raw: Raw, key: str) -> None:
    client = raw(tls_site, tls=True)
    client.send(request("/refuse/403/"))
    assert client.response().status == 403
    client = raw(tls_site, tls=True)
    client.open("/echo/")
    client.send(frame(b"alive?", PING))
    assert client.frame() == Frame(PONG, b"alive?")
    client.send(close_frame(1000))
    assert client.closing() == (1000, "")
    assert client.rest() == b""
    vanishing = raw(tls_site, tls=True)
    vanishing.open("/echo/", behind=frame("hello"))
    vanishing.frame()
    vanishing.reset()
    connected = raw(tls_site, tls=True)
    connected.open("/echo/", behind=frame("others live"))
    assert connected.frame().text == "others live"


def test_slow_reader_gets_everything_over_tls(tls_site: Server, raw: Raw) -> None:
    client = raw(tls_site, tls=True, receive_buffer=4096)
    client.open("/flood/")
    for _ in range(100):
        assert client.frame() == Frame(TEXT, b"x" * 65536)


def test_messages_pass_over_a_unix_socket(tmp_path: Path, raw: Raw) -> None:
    path = tmp_path / "websocket.sock"
    with gunicorn(args=["-b", f"unix:{path}"]) as server:
        client = raw(str(path))
        client.open("/echo/", behind=frame("one") + frame("two"))
        assert [client.frame().text, client.frame().text] == ["one", "two"]
        client.send(close_frame(1000))
        assert client.closing() == (1000, "")
        assert client.rest() == b""
        assert fetch(server.port, "/").status == 426  # the port is served, too


# --- requests around an upgrade --------------------------------------------------------------------------------------


def test_upgrade_follows_ordinary_requests_on_one_connection(site: Server, raw: Raw) -> None:
    client = raw(site)
    page = b"GET /page/ HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(2):
        client.send(page)
        assert client.response().body == b"page /page/"
    client.send(page, request("/echo/"), frame("hello"))
    assert client.response().body == b"page /page/"
    assert client.response().status == 101
    assert client.frame().text == "hello"


def test_too_large_request_head_is_refused(site: Server, raw: Raw) -> None:
    client = raw(site)
    client.send(request("/echo/", {"X-Large": "x" * 20000}))
    assert client.rest().split(b" ", 2)[1] in (b"400", b"431")
    client = raw(site)
    client.send(request("/echo/?" + "x" * 10000))
    assert client.rest().split(b" ", 2)[1] in (b"400", b"414")

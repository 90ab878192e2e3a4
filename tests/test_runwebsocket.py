"""`manage.py runwebsocket`, as a developer uses it: the README's project, edited while it is served."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .support.documentation import ENVIRONMENT, Project
from .support.fixtures import Connect
from .support.servers import HTTP_PROBE, TEST_PROJECT, Server, free_port
from .support.waiting import STARTS, eventually

pytestmark = [pytest.mark.slow, pytest.mark.covers]

DEADLINE = 20.0  # seconds


@pytest.fixture(scope="module")
def original(migrated_readme: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The README's project, migrated."""
    return migrated_readme.copy(tmp_path_factory.mktemp("runwebsocket") / "mysite")


@pytest.fixture
def project(original: Project, tmp_path: Path) -> Project:
    """A copy of that project to edit."""
    return original.copy(tmp_path / "mysite")


def runwebsocket(directory: Path, *args: str, port: int | None = None) -> Server:
    """Run the command; it is ready once it answers a page, with any status."""
    port = port or free_port()
    words = [sys.executable, "manage.py", "runwebsocket", *(args or [f"127.0.0.1:{port}"])]
    return Server(words, port=port, probe=HTTP_PROBE, cwd=directory, env=ENVIRONMENT)


def fetch(server: Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{server.address}{path}", timeout=DEADLINE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def edit(path: Path, old: str, new: str) -> None:
    """Change a file, and make its modification time later on any file system."""
    before = path.stat().st_mtime
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    os.utime(path, (before + 2, before + 2))


def test_pages_static_files_and_websockets_share_one_port(project: Project, connect: Connect) -> None:
    project.write("chat/static/chat/test.css", "body {}")
    project.write("mysite/settings.py", 'WEBSOCKET_SERVER = ":8001"', add=True)  # for runserver; ignored here
    with runwebsocket(project.directory) as server:
        status, page = fetch(server, "/chat/lobby/")
        assert status == 200
        assert f'connect("ws://{server.address}/chat/lobby/")' in page
        assert fetch(server, "/static/chat/test.css") == (200, "body {}")
        client = connect(server, "/chat/lobby/", origin=f"http://{server.address}")
        assert client.ask("hello") == "hello"
        assert "System check identified no issues" in server.log
        assert f"development server at http://{server.address}/" in server.log
        assert "Quit the server with CONTROL-C." in server.log
        assert '"GET /chat/lobby/ HTTP/1.1" 200' in server.log


@pytest.mark.parametrize("of", ["a new project", "the demonstration"])
def test_nothing_is_warned_of_while_no_setting_is_touched(project: Project, connect: Connect, of: str) -> None:
    with runwebsocket(project.directory if of == "a new project" else TEST_PROJECT) as server:
        connect(server, "/chat/lobby/" if of == "a new project" else "/echo/")
        assert "websocket.W" not in server.log and "WEBSOCKET_" not in server.log


class Edited:
    """A project that is edited while it is served, and the output of its server since `listen()`."""

    def __init__(self, project: Project, server: Server) -> None:
        self.directory = project.directory
        self.server = server
        self._said_before = 0

    def listen(self) -> None:
        """Forget the output so far."""
        self._said_before = len(self.server.log)

    @property
    def said(self) -> str:
        """The output of the server since then."""
        return self.server.log[self._said_before :]


@pytest.fixture(scope="module")
def edited_by_all(original: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edited]:
    """One server for all tests that undo their changes."""
    project = original.copy(tmp_path_factory.mktemp("edited") / "mysite")
    with runwebsocket(project.directory) as server:
        assert eventually(lambda: "Watching for file changes" in server.log)
        yield Edited(project, server)


@pytest.fixture
def edited(edited_by_all: Edited) -> Edited:
    """That server, with its earlier output forgotten."""
    edited_by_all.listen()
    return edited_by_all


def test_a_change_of_the_code_closes_conversations_and_takes_effect(edited: Edited, connect: Connect) -> None:
    views = edited.directory / "chat/views.py"
    client = connect(edited.server, "/chat/lobby/")
    assert client.ask("hello") == "hello"
    edit(views, '", text)', '", text.upper())')
    assert client.closing() == (1012, "restart")
    client = connect(edited.server, "/chat/lobby/", open_timeout=STARTS)
    assert client.ask("hello") == "HELLO"
    assert "views.py changed, reloading." in edited.said
    edit(views, '", text.upper())', '", text)')
    assert client.closing() == (1012, "restart")
    assert connect(edited.server, "/chat/lobby/", open_timeout=STARTS).ask("hello") == "hello"


def test_changes_of_settings_and_urls_take_effect(project: Project, connect: Connect) -> None:
    with runwebsocket(project.directory) as server:
        for file, old, new in (
            ("mysite/websocket_urls.py", '"chat/<slug', '"room/<slug'),
            ("mysite/settings.py", "ALLOWED_HOSTS = []", 'ALLOWED_HOSTS = ["127.0.0.1"]\nAPPEND_SLASH = False'),
        ):
            client = connect(server, "/room/lobby/" if "settings" in file else "/chat/lobby/", open_timeout=STARTS)
            edit(project.directory / file, old, new)
            assert client.closing()[0] == 1012
        assert connect(server, "/room/lobby/", open_timeout=STARTS).ask("hello") == "hello"
        assert fetch(server, "/chat/lobby")[0] == 404


def test_a_change_of_a_template_closes_no_conversation(edited: Edited, connect: Connect) -> None:
    assert "<title>lobby</title>" in fetch(edited.server, "/chat/lobby/")[1]
    client = connect(edited.server, "/chat/lobby/")
    edit(edited.directory / "chat/templates/chat/room.html", "<title>", "<title>Room ")
    assert eventually(lambda: "<title>Room lobby</title>" in fetch(edited.server, "/chat/lobby/")[1], DEADLINE)
    assert client.ask("hello") == "hello"


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("chat/views.py", "def chat(", "def chat(:", "SyntaxError"),
        ("mysite/websocket_urls.py", "import path", "import pathh", "ImportError"),
        ("mysite/settings.py", "INSTALLED_APPS += [", 'INSTALLED_APPS += ["missing", ', "No module named 'missing'"),
        ("mysite/settings.py", '"mysite.websocket_urls"', '"mysite.elsewhere"', "websocket.E003"),
    ],
    ids=["syntax", "import", "app", "check"],
)
def test_a_mistake_is_shown_until_it_is_corrected(
    edited: Edited, connect: Connect, file: str, old: str, new: str, said: str
) -> None:
    client = connect(edited.server, "/chat/lobby/")
    edit(edited.directory / file, old, new)
    assert client.closing()[0] == 1012
    assert eventually(lambda: fetch(edited.server, "/chat/lobby/")[0] == 500, DEADLINE)
    assert "The terminal says why" in fetch(edited.server, "/chat/lobby/")[1]
    assert said in edited.said
    edit(edited.directory / file, new, old)
    assert eventually(lambda: fetch(edited.server, "/chat/lobby/")[0] == 200, DEADLINE)
    assert connect(edited.server, "/chat/lobby/").ask("hello") == "hello"


def test_a_mistake_in_an_imported_module_is_shown(edited: Edited) -> None:
    """The module that imports it fails as well, and is where the mistake is corrected."""
    (edited.directory / "chat/broken.py").write_text("1 / 0")
    edit(edited.directory / "chat/views.py", "@websocket", "import chat.broken\n\n\n@websocket")
    assert eventually(lambda: fetch(edited.server, "/chat/lobby/")[0] == 500, DEADLINE)
    assert "ZeroDivisionError" in edited.said
    edit(edited.directory / "chat/views.py", "import chat.broken\n", "")
    assert eventually(lambda: fetch(edited.server, "/chat/lobby/")[0] == 200, DEADLINE)


@pytest.mark.parametrize(
    ("send", "number"),
    [pytest.param(os.killpg, signal.SIGINT, id="Ctrl-C"), pytest.param(os.kill, signal.SIGTERM, id="kill")],
)
def test_nothing_is_left_at_the_end(
    original: Project, connect: Connect, send: Callable[[int, int], None], number: signal.Signals
) -> None:
    with runwebsocket(original.directory) as server:
        client = connect(server, "/chat/lobby/")
        assert client.ask("hello") == "hello"
        workers = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        assert len(workers) == 1
        send(server.pid, number)
        assert server.wait() == 0
        assert client.closing()[0] == 1012
        assert not Path(f"/proc/{workers[0]}").exists()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
        assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("form", "host", "address"),
    [
        ("{port}", "127.0.0.1", "127.0.0.1:{port}"),
        ("localhost:{port}", "127.0.0.1", "localhost:{port}"),
        ("0:{port}", "127.0.0.1", "0.0.0.0:{port}"),
        ("[::1]:{port}", "::1", "[::1]:{port}"),
        ("--ipv6 {port}", "::1", "[::1]:{port}"),
    ],
)
def test_addresses_have_the_forms_that_runserver_takes(original: Project, form: str, host: str, address: str) -> None:
    port = free_port()
    words = [sys.executable, "manage.py", "runwebsocket", *form.format(port=port).split()]
    server = Server(words, port=port, probe=HTTP_PROBE, host=host, cwd=original.directory, env=ENVIRONMENT)
    with server:
        assert f"development server at http://{address.format(port=port)}/" in server.log


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("127.0.0.1:{occupied}", "That port is already in use."),
        ("192.0.2.1:8000", "That IP address can't be assigned to."),
        ("127.0.0.1:70000", "port must be 0-65535"),
        ("nowhere.invalid:8000", ""),
        ("nonsense", '"nonsense" is not a valid port number or address:port pair.'),
    ],
)
def test_an_unusable_address_is_reported_at_once(original: Project, argument: str, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        argument = argument.format(occupied=occupied.getsockname()[1])
        with pytest.raises(AssertionError) as failure:
            original.run(f"python manage.py runwebsocket {argument}")
    assert re.search(rf"ended with 1:\nCommandError: .*{re.escape(said)}", str(failure.value))


def test_options_take_effect(project: Project) -> None:
    project.write("chat/static/chat/test.css", "body {}")
    project.write("mysite/settings.py", 'WEBSOCKET_URLCONF = "mysite.missing"', add=True)
    project.write("other.py", 'from mysite.settings import *\nWEBSOCKET_URLCONF = "mysite.websocket_urls"')
    port = free_port()
    options = ("--noreload", "--nostatic", "--settings", "other", "--skip-checks")
    with runwebsocket(project.directory, f"127.0.0.1:{port}", *options, port=port) as server:
        assert fetch(server, "/static/chat/test.css")[0] == 404
        assert "using settings 'other'" in server.log
        assert "Watching for file changes" not in server.log
        assert "system checks" not in server.log


def test_without_the_reloader_a_mistake_ends_the_command(project: Project) -> None:
    project.write("mysite/settings.py", 'WEBSOCKET_URLCONF = "mysite.missing"', add=True)
    port = free_port()
    with (
        pytest.raises(RuntimeError, match=r"(?s)ended with status \d.*websocket\.E003"),
        runwebsocket(project.directory, str(port), "--noreload", port=port),
    ):
        pass


def test_command_runs_from_another_directory_with_the_path_of_manage_py(project: Project, connect: Connect) -> None:
    manage = project.directory / "manage.py"
    manage.write_text(manage.read_text().replace("import sys\n", "import sys\nsys.path.append('elsewhere')\n", 1))
    project.write("elsewhere/helpful.py", "")
    project.write("chat/views.py", "import helpful", add=True)
    manage.write_text(manage.read_text().replace("'elsewhere'", repr(str(project.directory / "elsewhere"))))
    port = free_port()
    words = [sys.executable, str(manage), "runwebsocket", str(port)]
    with Server(words, port=port, probe=HTTP_PROBE, cwd=Path("/"), env=ENVIRONMENT) as server:
        assert connect(server, "/chat/lobby/").ask("hello") == "hello"


def test_missing_migrations_are_reported(original: Project, tmp_path: Path) -> None:
    copy = original.copy(tmp_path / "mysite")
    (copy.directory / "db.sqlite3").unlink()
    with runwebsocket(copy.directory) as server:
        assert "unapplied migration(s)" in server.log


def test_the_test_project_runs_in_debug_mode_with_its_own_address(connect: Connect, tmp_path: Path) -> None:
    port = free_port()
    words = [sys.executable, "manage.py", "runwebsocket", str(port), "--noreload"]
    environment = ENVIRONMENT | {"DATABASE_NAME": str(tmp_path / "db.sqlite3")}
    with Server(words, port=port, probe=HTTP_PROBE, cwd=TEST_PROJECT, env=environment) as server:
        page = fetch(server, "/echo/")[1]
        assert f'data-url="ws://{server.address}/echo/?' in page
        assert fetch(server, "/static/echo.js")[0] == 200
        assert connect(server, "/echo/", origin=f"http://{server.address}").ask("hello") == "hello"

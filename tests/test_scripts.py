"""scripts/demo in a fresh clone of the repository, and how scripts/docs is called."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Origin

from .support.servers import HTTP_PROBE, ROOT, Server, executable, free_port, unavailable

pytestmark = pytest.mark.slow

PAGES = ("/", "/dashboard/", "/together/", "/staff/")
SMALL_PAGES = ("/chat/", "/echo/", "/ping/")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as `git clone` gives it, with uncommitted files and without ignored ones."""
    if not (ROOT / ".git").exists():
        unavailable("a clone can only be made from a git repository")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    directory = tmp_path_factory.mktemp("clone")
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():  # not deleted in the working tree
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, directory / name)
    return directory


def demo(clone: Path, port: int) -> Server:
    """Run scripts/demo on a port; it is ready once the first page is served."""
    environment = {"PYTHON": sys.executable, "REDIS_URL": "redis://127.0.0.1:1/0", "DJANGO_SETTINGS_MODULE": "missing"}
    command: list[str | Path] = [clone / "scripts" / "demo", str(port)]
    return Server(command, port=port, probe=HTTP_PROBE, cwd=Path("/"), env=environment, start_timeout=240)


@pytest.fixture(scope="module")
def site(clone: Path) -> Iterator[Server]:
    with demo(clone, free_port()) as server:
        yield server


def fetch(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.status, response.read().decode()


@pytest.mark.timeout(300)  # the first of these tests makes the virtual environment
def test_demo_says_what_it_does_and_where_to_look(site: Server) -> None:
    for page in PAGES:
        assert f"http://{site.address}{page}" in site.log
    assert "Ctrl-C" in site.log


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [*PAGES, *SMALL_PAGES])
def test_demo_serves_the_page_and_its_static_files(site: Server, page: str) -> None:
    status, body = fetch(f"http://{site.address}{page}")
    assert status == 200
    static = re.findall(r'(?:href|src)="(/static/[^"]+)"', body)
    assert static, "the page has no stylesheet"
    for path in static:
        assert fetch(urljoin(f"http://{site.address}", path))[0] == 200


@pytest.mark.timeout(300)
def test_demo_serves_websockets_on_the_same_port(site: Server) -> None:
    origin = Origin(f"http://{site.address}")
    with connect(f"ws://{site.address}/echo/", origin=origin) as websocket:
        websocket.send("hello")
        assert websocket.recv(timeout=10) == "hello"
    chat = f"ws://{site.address}/chat/"
    with connect(chat, origin=origin) as ann, connect(chat, origin=origin) as bob:
        ann.send("hello")
        assert ann.recv(timeout=10) == bob.recv(timeout=10) == "hello"


def children(pid: int) -> dict[int, str]:
    """Return the command lines of a process's children, by their pids."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    if not found.exists():
        unavailable("this system does not list a process's children")
    return {int(each): Path(f"/proc/{each}/cmdline").read_text() for each in found.read_text().split()}


@pytest.mark.timeout(300)
def test_demo_is_one_server_and_a_redis_of_its_own(site: Server) -> None:
    executable("redis-server")  # without one, there is only the server
    redis, server = sorted(children(site.pid).items(), key=lambda child: "runwebsocket" in child[1])
    assert "redis-server" in redis[1]
    assert "runwebsocket" in server[1]
    assert len(children(server[0])) == 1  # gunicorn's worker
    assert "demonstrate.py" in Path(f"/proc/{site.pid}/cmdline").read_text()  # not the shell, so that signals arrive


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("send", "number"),
    [
        pytest.param(os.killpg, signal.SIGINT, id="Ctrl-C"),  # the terminal sends it to all its processes
        pytest.param(os.kill, signal.SIGTERM, id="kill"),
    ],
)
def test_demo_starts_again_without_installing_and_stops_without_noise(
    site: Server, clone: Path, send: Callable[[int, int], None], number: signal.Signals
) -> None:
    with demo(clone, free_port()) as server:
        assert "Installing" not in server.log
        started = children(server.pid)
        with connect(f"ws://{server.address}/chat/") as websocket:
            send(server.pid, number)
            assert server.wait() == 0
            with pytest.raises(ConnectionClosed):
                websocket.recv(timeout=10)
            assert websocket.close_code == 1012
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
        assert "Traceback" not in server.log
        assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def run_demo(clone: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable}
    command: list[str | Path] = [clone / "scripts" / "demo", *args]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def untouched_clone(clone: Path, tmp_path: Path) -> Path:
    """A clone in which nothing has been installed yet."""
    shutil.copytree(clone / "scripts", tmp_path / "scripts")
    return tmp_path


def test_demo_names_the_remedy_for_a_port_in_use_before_it_installs_anything(untouched_clone: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        result = run_demo(untouched_clone, str(port))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"Port {port} is in use: stop what holds it, or choose another port, as in: scripts/demo 8080\n"
    )
    assert not (untouched_clone / ".venv-demo").exists()


@pytest.mark.parametrize("args", [["http"], ["0"], ["65536"], ["-1"], ["8000", "8001"]])
def test_demo_prints_its_usage(untouched_clone: Path, args: list[str]) -> None:
    result = run_demo(untouched_clone, *args)
    assert result.returncode == 1
    assert result.stderr.startswith("Usage: scripts/demo [PORT]")
    assert not (untouched_clone / ".venv-demo").exists()


# scripts/docs, which CI runs by itself


def run_docs(clone: Path, *args: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": python}
    command: list[str | Path] = [clone / "scripts" / "docs", *args]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("args", [["serve"], ["--serve", "8000"], ["--help"]])
def test_docs_prints_its_usage(untouched_clone: Path, args: list[str]) -> None:
    result = run_docs(untouched_clone, *args)
    assert result.returncode == 1
    assert result.stderr == "Usage: scripts/docs [--serve]\n"
    assert not (untouched_clone / ".venv-docs").exists()


def test_docs_says_which_python_it_needs_before_it_installs_anything(untouched_clone: Path) -> None:
    old = untouched_clone / "python"
    old.write_text('#!/bin/sh\ncase $2 in *"(3, 12)"*) exit 1 ;; esac\n')
    old.chmod(0o755)
    result = run_docs(untouched_clone, python=str(old))
    assert result.returncode == 1
    assert "needs Python 3.12 or later" in result.stderr
    assert not (untouched_clone / ".venv-docs").exists()

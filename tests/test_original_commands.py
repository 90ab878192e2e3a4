"""Commands in test_project/, word for word as the page of version 0.2 has them, or with our worker's short name."""

from __future__ import annotations

import os
import re
import sys
import urllib.request
from pathlib import Path

import pytest
from websockets.sync.client import connect

from .support.documentation import blocks
from .support.servers import HTTP_PROBE, TEST_PROJECT, Server, free_port
from .support.waiting import DEADLINE

BIN = Path(sys.executable).parent
open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@pytest.mark.parametrize("worker", ["GeventWebSocketWorker", "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"])
def test_gunicorn_knows_the_worker_by_its_short_name(worker: str) -> None:
    port = free_port()
    words = f"gunicorn -k {worker} project.wsgi:websocket".split()
    env = {"GUNICORN_CMD_ARGS": f"-b 127.0.0.1:{port} --no-control-socket"}
    with (
        Server([str(BIN / words[0]), *words[1:]], port=port, probe=HTTP_PROBE, cwd=TEST_PROJECT, env=env),
        connect(f"ws://127.0.0.1:{port}/echo/", proxy=None, open_timeout=DEADLINE) as websocket,
    ):
        websocket.send("hello")
        assert websocket.recv(DEADLINE) == "hello"


def test_documentation_shows_the_lines_that_do_it() -> None:
    (block,) = [block for block in blocks("docs/deployment.md") if "SUPPORTED_WORKERS" in block.code]
    assert block.code == (TEST_PROJECT / "gunicorn.conf.py").read_text()


@pytest.mark.parametrize("more", [[], ["--noreload"]], ids=["with the reloader", "without"])
def test_runserver_by_the_path_of_version_0_2(more: list[str]) -> None:
    port = free_port()
    command = ["./project/manage.py", "runserver", f"0.0.0.0:{port}", *more]
    env = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    with Server(command, port=port, probe=HTTP_PROBE, cwd=TEST_PROJECT, env=env):
        page = open_url(f"http://localhost:{port}/chat/", timeout=DEADLINE).read().decode()
        assert re.search(r'"ws://localhost:8001/chat/\?', page)

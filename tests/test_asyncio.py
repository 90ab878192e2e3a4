"""asyncio anywhere in the worker harms nobody: each loop runs in one greenlet, and no other one notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .support.asyncio_features import FEATURES
from .support.clients import fetch
from .support.fixtures import Connect, StartSite
from .support.postgres import Database, settings_of
from .support.servers import Server
from .support.waiting import eventually

CLIENTS = 20
ROUNDS = 10
PROGRAM = Path(__file__).parent / "support" / "asyncio_features.py"


# --- what asyncio and its libraries can do ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(redis_url: str, postgres: Server) -> dict[str, str | None]:
    """What went wrong with each feature, in one process that runs them all."""
    env = {**os.environ, "REDIS_URL": redis_url, "POSTGRESQL_URL": f"postgresql://test@{postgres.address}/postgres"}
    done = subprocess.run([sys.executable, PROGRAM], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", FEATURES)
def test_feature_works_in_greenlets(name: str, outcomes: dict[str, str | None]) -> None:
    assert outcomes[name] is None, outcomes[name]


# --- in the worker ----------------------------------------------------------------------------------------------------

WAYS = ["asyncio.run", "async_to_sync", "async ORM", "blocking"]


@pytest.fixture(scope="module")
def asynchronous(start_site: StartSite) -> Iterator[Server]:
    """The test site, with middleware that is asynchronous around all others."""
    from testsite import settings

    with start_site({"MIDDLEWARE": ["testsite.asynchronous.waits", *settings.MIDDLEWARE]}) as server:
        yield server


def count(server: Server, connect: Connect, way: str) -> list[str]:
    """Let a client ask in its way, again and again; return what it is told."""
    with connect(server, "/asynchronous/counts/") as client:
        answers = []
        for _ in range(ROUNDS):
            client.send(way)
            answers.append(str(client.recv(timeout=20)))
        return answers


@pytest.mark.parametrize("worker", ["site", "stock_site"])
def test_clients_notice_nothing_of_asyncio_in_other_views(
    worker: str, request: pytest.FixtureRequest, connect: Connect
) -> None:
    site: Server = request.getfixturevalue(worker)
    ways = ["plain", *WAYS] * (CLIENTS // 5)
    with ThreadPoolExecutor(CLIENTS) as executor:
        answers = list(executor.map(lambda way: count(site, connect, way), ways))
    assert answers == [["0"] * ROUNDS] * len(ways)


def test_clients_notice_nothing_of_asyncio_in_pages(site: Server, connect: Connect) -> None:
    paths = [f"/asynchronous/counts/{way}/".replace(" ", "%20") for way in WAYS] + ["/asynchronous/page/"]
    with ThreadPoolExecutor(2 * CLIENTS) as executor:
        clients = [executor.submit(count, site, connect, "plain") for _ in range(CLIENTS)]
        answers = list(executor.map(lambda path: fetch(site.port, path).status, paths * CLIENTS))
        assert [client.result() for client in clients] == [["0"] * ROUNDS] * CLIENTS
    assert set(answers) == {200}


def test_page_that_is_a_coroutine_has_its_user_and_database(site: Server) -> None:
    cookie = f"sessionid={fetch(site.port, '/enter/').cookies['sessionid']}"
    answer = json.loads(fetch(site.port, "/asynchronous/page/", {"Cookie": cookie}).body)
    assert answer["user"] != ""
    assert (answer["notes"], answer["users"] >= 1) == (0, True)


def test_asynchronous_queries_leave_no_connection_behind(
    start_site: StartSite, connect: Connect, postgres: Server, database: Database
) -> None:
    settings = {"DATABASES": {"default": settings_of(postgres, "asynchronous")}}
    with start_site(settings) as server, connect(server, "/asynchronous/counts/") as client:
        notes = client.ask("plain")
        for way in WAYS:
            assert client.ask(way) == notes
            assert fetch(server.port, f"/asynchronous/counts/{way}/".replace(" ", "%20")).body == notes.encode()
        assert fetch(server.port, "/asynchronous/page/").status == 200
        assert eventually(lambda: database.held("asynchronous") == 0)


def test_asynchronous_middleware_stands_around_pages_and_handshakes(asynchronous: Server, connect: Connect) -> None:
    assert fetch(asynchronous.port, "/asynchronous/counts/plain/").headers["x-waited"] == "yes"
    with ThreadPoolExecutor(CLIENTS) as executor:
        answers = list(executor.map(lambda way: count(asynchronous, connect, way), WAYS * (CLIENTS // 4)))
    assert answers == [["0"] * ROUNDS] * CLIENTS
    with connect(asynchronous, "/asynchronous/counts/") as client:
        assert client.response is not None
        assert client.response.headers["X-Waited"] == "yes"


def test_who_uses_no_asyncio_imports_no_loop(start_site: StartSite) -> None:
    with start_site() as server:
        modules = json.loads(fetch(server.port, "/asynchronous/modules/").body)
        assert "django_websocket.asgi.loop" not in modules
        assert fetch(server.port, "/asynchronous/page/").status == 200
        assert "django_websocket.asgi.loop" in json.loads(fetch(server.port, "/asynchronous/modules/").body)

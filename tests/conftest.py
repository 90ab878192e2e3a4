"""What all tests share: servers that are started once, clients, and the check that nothing is left behind."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import django
import pytest
import websockets.sync.client
from django.test.utils import (
    setup_databases,
    setup_test_environment,
    teardown_databases,
    teardown_test_environment,
)

from django_websocket.transport import log

from .support.again import pytest_configure, pytest_runtest_protocol  # noqa: F401 - hooks
from .support.browser import Browser, chromium
from .support.certificates import Authority
from .support.clients import Client, RawClient
from .support.documentation import Project, readme_project
from .support.fixtures import SITE, STOCK_WORKER, Connect, Raw, StartPostgreSQL, StartSite
from .support.postgres import Database, settings_of
from .support.servers import (
    NOT_MEASURED,
    WORKER,
    Cluster,
    Sentinel,
    Server,
    copy_data,
    executable,
    free_port,
    gunicorn,
    postgresql,
    redis_cluster,
    redis_sentinel,
    redis_server,
)
from .support.waiting import DEADLINE, eventually
from .support.wire import Pairs

# Some tests use the package and its settings in this process, without a server.
sys.path += [str(SITE), str(SITE.parent)]
os.environ["DJANGO_SETTINGS_MODULE"] = "testsite.settings"
django.setup()

# This process and all that it starts have this in their environment, so that they can be found at the end.
MARK = f"DJANGO_WEBSOCKET_TESTS={uuid.uuid4().hex}"


@pytest.fixture(autouse=True)
def nothing_is_summed_up() -> Iterator[None]:
    """Give each test its own log lines, however many like them earlier tests logged."""
    log.begin_anew()
    log.lines_of_loop().clear()
    yield


# --- nothing is skipped in CI, and nothing is left --------------------------------------------------------------------


# The slowest files begin first, or one process would end long after the others. The slowest of all comes first.
LONGEST = (
    "tutorial",
    "browser",
    "client_resumes",
    "demonstration",
    "recipes_live_pages",
    "recipes_checked_input",
    "recipes_frontend",
    "docs",
    "worker",
    "types",
    "subprotocol",
    "logins",
    "presence_workers",
    "metrics",
    "pubsub",
    "runwebsocket",
    "soak",
    "consumers",
    "redis_topologies",
    "monitoring",
    "admin",
    "tokens",
    "deploy",
    "admission",
    "client",
    "transports",
    "threats_leaks",
    "databases",
    "presence",
    "memory",
    "async_views",
    "threats_outages",
    "scripts",
    "redis",
    "compat",
    "presence_views",
    "application",
    "threats_frames",
    "presence_outages",
    "clock",
    "compression",
    "sweep",
    "presence_torture",
    "client_presence",
    "autobahn",
    "history",
    "threats_handshake",
    "ordinary",
    "stock_worker",
    "stalls",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first."""
    rank = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection_finish() -> None:
    """Save the garbage collector, which many tests call, from looking through everything that was imported."""
    gc.collect()
    gc.freeze()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: frames have random masks, but a test must have the same id in all processes."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Count a skipped test as failed where CI is set, and show the logs of the servers that a failed test used."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but everything must run here: {report.longrepr}"
    if report.failed and call.when == "call":
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Server):
                report.sections.append((f"log of {name}", value.log[-4000:]))
    return report  # type: ignore[return-value]


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Check that no process that the tests started is still running after them."""
    name, value = MARK.split("=")
    os.environ[name] = value
    yield
    assert eventually(lambda: not marked_processes()), f"still running: {marked_processes()}"


def marked_processes() -> list[str]:
    """Return the command lines of this process's descendants, also of those whose parent has ended."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            marked = MARK.encode() in (directory / "environ").read_bytes().split(b"\0")
            if marked and int(directory.name) != os.getpid():
                found.append(f"{directory.name} {(directory / 'cmdline').read_bytes().replace(bytes(1), b' ')!r}")
        except OSError:  # it has ended meanwhile, or belongs to another user
            continue
    return found


# The processes that these files start are not measured: that halves their time, and other tests run the same lines.
UNMEASURED = (
    "compression",
    "lingering",
    "log",
    "ordinary",
    "presence_views",
    "presence_workers",
    "recipes_checked_input",
    "recipes_live_pages",
    "redis",
    "redis_topologies",
    "subprotocol",
    "threats_frames",
    "threats_handshake",
    "tokens",
    "transports",
)


@pytest.fixture(scope="module", autouse=True)
def coverage_of_started_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Measure the coverage of the processes that a test starts, apart from those of the files above."""
    with pytest.MonkeyPatch.context() as patched:
        if request.path.name in {f"test_{name}.py" for name in UNMEASURED}:
            for name, value in NOT_MEASURED.items():
                patched.setenv(name, value)
        yield


# --- servers ---------------------------------------------------------------------------------------------------------


MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Makes a file or a directory, given its name and a function of its path, for all processes of this run."""
    own = tmp_path_factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def made_once(name: str, make: Callable[[Path], object]) -> Path:
        path = common / name
        with (common / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                unfinished = common / f"unfinished-{name}"
                make(unfinished)
                unfinished.rename(path)
        return path

    return made_once


@pytest.fixture(scope="session")
def empty_database(made_once: MadeOnce) -> Path:
    """A database of the test site, with its tables."""
    return made_once("empty.sqlite3", lambda path: make_tables({"DATABASE_NAME": str(path)}))


def make_tables(env: Mapping[str, str]) -> None:
    """Make the tables of the test site in the database that the environment names."""
    path = f"{SITE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    command = [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity", "0"]
    subprocess.run(command, env={**os.environ, **env, "PYTHONPATH": path}, cwd=SITE, check=True, timeout=60)


@pytest.fixture(scope="session")
def start_site(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> StartSite:
    """Makes servers of the test site, each with a database of its own."""

    def start(
        settings: Mapping[str, Any] | None = None,
        *,
        app: str = "testsite.wsgi:application",
        worker: str = WORKER,
        args: Sequence[str | Path] = (),
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Server:
        database = tmp_path_factory.mktemp("site") / "site.sqlite3"
        shutil.copy(empty_database, database)
        return gunicorn(
            app,
            worker,
            cwd=SITE,
            env={"DATABASE_NAME": str(database), "TESTSITE_SETTINGS": json.dumps(dict(settings or {})), **(env or {})},
            args=args,
            **options,
        )

    return start


@pytest.fixture(scope="session")
def readme(made_once: MadeOnce) -> Project:
    """The project of README.md, without a database, for tests to copy."""

    def make(directory: Path) -> None:
        directory.mkdir()
        readme_project(directory)

    return Project(made_once("readme", make) / "mysite")


@pytest.fixture(scope="session")
def migrated_readme(made_once: MadeOnce, readme: Project) -> Project:
    """The same with the tables of its database."""

    def make(directory: Path) -> None:
        readme.copy(directory / "mysite").run("python manage.py migrate --verbosity 0")

    return Project(made_once("migrated", make) / "mysite")


@pytest.fixture(scope="session")
def site(start_site: StartSite) -> Iterator[Server]:
    """The test site under our worker: one process, pages and WebSockets, memory://."""
    with start_site() as server:
        yield server


@pytest.fixture(scope="session")
def stock_site(start_site: StartSite) -> Iterator[Server]:
    """The test site under gevent-websocket's worker."""
    with start_site(worker=STOCK_WORKER) as server:
        yield server


@pytest.fixture(scope="session")
def project() -> Iterator[Server]:
    """The test project under our worker."""
    with gunicorn("project.wsgi:websocket", WORKER) as server:
        yield server


@pytest.fixture(scope="session")
def stock_project() -> Iterator[Server]:
    """The test project under gevent-websocket's worker."""
    with gunicorn("project.wsgi:websocket", STOCK_WORKER) as server:
        yield server


@pytest.fixture(params=["ours", "stock"])
def any_project(request: pytest.FixtureRequest) -> Server:
    """The test project under either worker."""
    server: Server = request.getfixturevalue("project" if request.param == "ours" else "stock_project")
    return server


@pytest.fixture(scope="session")
def redis() -> Iterator[Server]:
    """A Redis for all tests: take channels of your own."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(redis: Server) -> str:
    """The URL of `redis`, as `WEBSOCKET_BROKER` takes it."""
    return f"redis://{redis.address}/0"


@pytest.fixture(scope="session")
def start_postgresql(made_once: MadeOnce) -> StartPostgreSQL:
    """Starts PostgreSQL servers of their own, whose database `postgres` has the test site's tables."""

    def make(data: Path) -> None:
        with postgresql() as server:
            make_tables({"TESTSITE_SETTINGS": json.dumps({"DATABASES": {"default": settings_of(server, "migrate")}})})
            server.stop()
            copy_data(server.data, data)

    return lambda *args: postgresql(args, made_once("postgresql", make))


@pytest.fixture(scope="session")
def postgres(start_postgresql: StartPostgreSQL) -> Iterator[Server]:
    """A PostgreSQL for all tests; it takes few clients, and its database `postgres` has the test site's tables."""
    with start_postgresql("-c", "max_connections=20", "-c", "client_connection_check_interval=100") as server:
        yield server


@pytest.fixture(scope="session")
def database(postgres: Server) -> Iterator[Database]:
    """What `postgres` itself knows of its clients and tables."""
    database = Database(postgres)
    yield database
    database.close()


@pytest.fixture(scope="session")
def sentinel() -> Iterator[Sentinel]:
    """Sentinels for tests in which no server fails; either of the two servers may be the master."""
    with redis_sentinel() as sentinel:
        yield sentinel


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Redis Cluster for tests in which no server fails."""
    with redis_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def tls_redis(authority: Authority) -> Iterator[Server]:
    """A Redis that speaks TLS, asks clients for a certificate of `authority`, and has the password s3cret."""
    certificate, key = authority.sign("server")
    port = free_port()
    args = ["--port", "0", "--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    args += ["--tls-ca-cert-file", str(authority.certificate), "--requirepass", "s3cret"]
    with redis_server(port, args, probe=b"") as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    directory = tmp_path_factory.mktemp("tls")
    paths = directory / "cert.pem", directory / "key.pem"
    subject = ["-subj", "/CN=localhost", "-days", "2"]
    command = [executable("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-out", str(paths[0]), "-keyout", str(paths[1]), *subject]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return paths


@pytest.fixture(scope="module")
def test_runner() -> Iterator[None]:
    """Set up what Django's test runner does, for tests written as a project's own."""
    setup_test_environment(debug=False)
    names = setup_databases(verbosity=0, interactive=False)
    yield
    teardown_databases(names, verbosity=0)
    teardown_test_environment()


# --- clients ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def key() -> str:
    """A name for notes and channels that no other test uses."""
    return uuid.uuid4().hex


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens WebSockets, which are closed after the test."""
    with ExitStack() as stack:

        def open_websocket(server: Server | int, path: str, **options: Any) -> Client:
            port = server if isinstance(server, int) else server.port
            scheme = "wss" if options.get("ssl") else "ws"
            client = websockets.sync.client.connect(
                f"{scheme}://127.0.0.1:{port}{path}",
                **{
                    "compression": None,
                    "proxy": None,
                    "open_timeout": DEADLINE,
                    "close_timeout": DEADLINE,
                    "ping_interval": None,
                    "max_size": 16 * 1024 * 1024,
                    "create_connection": Client,
                    **options,
                },
            )
            return stack.enter_context(cast(Client, client))

        yield open_websocket


@pytest.fixture
def raw() -> Iterator[Raw]:
    """Opens TCP connections, which are closed after the test."""
    with ExitStack() as stack:

        def open_connection(server: Server | int | str, **options: Any) -> RawClient:
            address = server.port if isinstance(server, Server) else server
            return stack.enter_context(RawClient(address, **options))

        yield open_connection


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    """Makes connections and their clients in this process, and checks that nothing of them is left after the test."""
    with Pairs() as pairs:
        yield pairs


@pytest.fixture(scope="module")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, for the tests of a file."""
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(one_browser: Browser) -> Iterator[Browser]:
    """Chromium, whose windows are closed after the test."""
    one_browser.errors()
    yield one_browser
    one_browser.close_windows()

"""Databases in conversations, with PostgreSQL: what a view holds while it waits, and what is left when it ends."""

from __future__ import annotations

import ast
import gc
import json
import signal
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connections

from django_websocket.handler.databases import untie_database

from .support.clients import RawClient, fetch, fetch_json, notes
from .support.clients import request as handshake
from .support.documentation import blocks
from .support.fixtures import STOCK_WORKER, Connect, Raw, StartPostgreSQL, StartSite
from .support.frames import frame
from .support.postgres import Database, settings_of
from .support.processes import descriptors, worker_of
from .support.servers import Server
from .support.waiting import at_once, eventually
from .test_logins import SOON, log_in, talks

# On a busy machine, hundreds of clients take longer to connect than an idle one goes without a ping.
NO_PINGS = {"WEBSOCKET_PING_INTERVAL": 300.0}
POOL = {"pool": {"min_size": 2, "max_size": 4, "timeout": 20}}


@pytest.fixture(scope="module")
def plain(start_site: StartSite, postgres: Server) -> Iterator[Server]:
    """The test site with PostgreSQL and a connection for each view that uses it."""
    with start_site({"DATABASES": {"default": settings_of(postgres, "plain")}, **NO_PINGS}) as server:
        yield server


@pytest.fixture(scope="module")
def pooled(start_site: StartSite, postgres: Server) -> Iterator[Server]:
    """The test site with PostgreSQL and Django's connection pool as documented, but with few connections."""
    (example,) = [block.code for block in blocks("docs/views.md") if '"pool"' in block.code]
    (assignment,) = [node for node in ast.parse(example).body if isinstance(node, ast.Assign)]
    documented = ast.literal_eval(assignment.value)["default"]
    documented["OPTIONS"]["pool"] |= {"min_size": 2, "max_size": 4}
    del documented["NAME"]
    with start_site({"DATABASES": {"default": settings_of(postgres, "pooled", **documented)}, **NO_PINGS}) as server:
        yield server


def test_queries_are_seen_by_whom_the_view_and_the_middleware_have_see_them(start_site: StartSite, raw: Raw) -> None:
    with start_site({"MIDDLEWARE": ["testsite.hooks.sees_queries"]}) as server:
        client = raw(server)
        client.open("/queries/wraps/", behind=frame("go"))
        assert json.loads(client.frame().text) == {
            "before": ["middleware"],
            "within": ["middleware", "view"],
            "accepted": ["view"],
            "received": ["view"],
            "after": [],
        }


# --- while a view waits ----------------------------------------------------------------------------------------------


def asking(client: RawClient) -> RawClient:
    """Connect a client to a view that makes a query at once and another one for each message."""
    client.open("/queries/asks/")
    assert client.frame().text.isdigit()
    return client


def test_five_hundred_idle_clients_that_have_used_the_orm_hold_no_connection(
    plain: Server, raw: Raw, database: Database
) -> None:
    clients = [asking(raw(plain)) for _ in range(500)]
    assert eventually(lambda: database.held("plain") == 0)
    for client in clients[::50]:
        client.send(frame("?"))
        assert client.frame().text.isdigit()
    assert eventually(lambda: database.held("plain") == 0)


def test_five_hundred_clients_share_the_connections_of_a_pool(pooled: Server, raw: Raw, database: Database) -> None:
    clients = [asking(raw(pooled)) for _ in range(500)]
    assert 0 < database.held("pooled") <= 4
    for client in clients:  # all at once, and far more than there are connections
        client.send(frame("?"))
    for client in clients:
        assert client.frame().text.isdigit()
    assert database.held("pooled") <= 4
    assert eventually(lambda: all_are_back(pooled))


def test_stock_worker_holds_no_connection_and_no_transaction_either(
    start_site: StartSite, postgres: Server, raw: Raw, database: Database, key: str
) -> None:
    settings = settings_of(postgres, "stock", ATOMIC_REQUESTS=True, CONN_MAX_AGE=None)
    app = "testsite.wsgi:websocket"  # no pages: Django keeps the connection of one, even if its greenlet has ended
    with start_site({"DATABASES": {"default": settings}}, app=app, worker=STOCK_WORKER) as server:
        clients = [asking(raw(server)) for _ in range(30)]
        assert eventually(lambda: database.held("stock") == 0)
        for client in clients:
            client.send(frame("?"))
            assert client.frame().text.isdigit()
        for how, code, stay in (("raise", 4500, 0), ("404", 4404, 0), ("response", 4403, 1)):
            refused = raw(server)
            refused.open(f"/writes/{how}/?key={key}{how}")
            assert refused.closing()[0] == code
            assert database.written(f"{key}{how}") == stay
            clients.append(refused)
        assert eventually(lambda: database.held("stock") == 0)
        for client in clients:
            client.sock.close()  # otherwise that worker would wait for it


@pytest.fixture(scope="module")
def persistent(start_site: StartSite, postgres: Server) -> Iterator[Server]:
    """The test site with persistent connections for pages."""
    settings = settings_of(postgres, "persistent", CONN_MAX_AGE=None, ATOMIC_REQUESTS=True)
    with start_site({"DATABASES": {"default": settings}}) as server:
        yield server


def test_conn_max_age_keeps_no_connection_for_a_conversation(persistent: Server, raw: Raw, database: Database) -> None:
    clients = [raw(persistent) for _ in range(10)]
    for client in clients:
        client.open("/queries/asks/")
        assert client.frame().text.isdigit()
    assert eventually(lambda: database.held("persistent") == 0)
    clients[0].send(frame("?"))
    assert clients[0].frame().text.isdigit()
    assert eventually(lambda: database.held("persistent") == 0)


def test_conn_max_age_keeps_no_connection_for_a_handshake_that_was_refused(
    persistent: Server, raw: Raw, database: Database, key: str
) -> None:
    for _ in range(30):  # more connections than PostgreSQL allows
        client = raw(persistent)
        client.send(handshake(f"/writes/response/?key={key}"))
        assert client.response().status == 403
    assert eventually(lambda: database.held("persistent") == 0)


@pytest.mark.parametrize("which", ["plain", "pooled", "persistent"])
def test_connection_that_the_server_has_dropped_is_replaced_without_an_error(
    request: pytest.FixtureRequest, raw: Raw, database: Database, which: str
) -> None:
    server: Server = request.getfixturevalue(which)
    clients = [raw(server) for _ in range(5)]
    for client in clients:
        client.open("/queries/asks/")
        client.frame()
    database.terminate(which)
    for client in clients:
        client.send(frame("?"))
    for client in clients:
        assert client.frame().text.isdigit()
    newcomer = raw(server)
    newcomer.open("/queries/asks/")
    assert newcomer.frame().text.isdigit()


def test_the_connections_of_several_databases_are_given_back(
    start_site: StartSite, postgres: Server, connect: Connect, database: Database
) -> None:
    databases = {
        "default": settings_of(postgres, "several-1"),
        "other": settings_of(postgres, "several-2", OPTIONS=POOL),
        "third": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
    }
    with start_site({"DATABASES": databases}) as server:
        client = connect(server, "/queries/asks-all/")
        for _ in range(2):
            assert json.loads(client.ask("?")) == {"default": 1, "other": 1, "third": 1}
            assert eventually(lambda: database.held("several-1") == 0)
            assert database.held("several-2") <= 4


def test_tenant_that_a_middleware_set_on_the_wrapper_lasts_for_the_conversation(
    start_site: StartSite, postgres: Server, connect: Connect, database: Database
) -> None:
    from testsite import settings

    databases = {"default": settings_of(postgres, "tenants", ENGINE="testsite.tenants")}
    middleware = ["testsite.hooks.tenant", *settings.MIDDLEWARE]
    with start_site({"DATABASES": databases, "MIDDLEWARE": middleware}) as server:
        clients = {tenant: connect(server, f"/queries/tenant/?tenant={tenant}") for tenant in ("acme", "globex")}
        for tenant, client in clients.items():
            assert client.recv() == tenant
        for _ in range(2):
            for tenant, client in clients.items():
                assert eventually(lambda: database.held("tenants") == 0)  # so each message uses a new connection
                assert client.ask("?") == tenant


def test_only_the_connection_is_left_of_a_view_that_used_the_orm_and_listens(
    plain: Server, raw: Raw, database: Database, key: str
) -> None:
    raw(plain).open(f"/queries/listens/?key={key}")
    assert eventually(lambda: not fetch_json(plain.port, f"/queries/request-is-alive/{key}/"))
    assert eventually(lambda: database.held("plain") == 0)


@pytest.mark.parametrize("by", ["session", "token"])
def test_a_restart_of_postgresql_does_not_end_views_that_wait(
    start_site: StartSite, start_postgresql: StartPostgreSQL, raw: Raw, key: str, by: str
) -> None:
    """Meanwhile nobody can tell whether users are still logged in, and the log says so once."""
    with start_postgresql() as server:
        databases = {"default": settings_of(server, "restarted")}
        with start_site({**SOON, "DATABASES": databases}) as site:
            names = [f"{key}-{number}" for number in range(3)]
            members = [raw(site) for _ in names]
            for name, member in zip(names, members, strict=True):
                login = log_in(site, name)
                member.open("/members/", login if by == "session" else {"Authorization": f"Bearer {name}"})
                assert talks(member)
            client = asking(raw(site))
            files = descriptors(worker_of(site))
            server.stop()
            assert eventually(lambda: "cannot be checked" in site.log)
            time.sleep(3 * SOON["WEBSOCKET_LOGIN_CHECK_INTERVAL"])  # logins are checked again and again
            for member in members:
                assert talks(member)
            assert site.log.count("cannot be checked") == 1
            server.start()
            client.send(frame("?"))
            assert client.frame().text.isdigit()
            assert fetch(site.port, f"/change/deactivate/?name={names[0]}").status == 200
            assert members[0].closing() == (4401, "logged out")
            for member in members[1:]:
                assert talks(member)
            assert site.log.count("they can be checked again") == 1
            assert "Traceback" not in site.log
            assert eventually(lambda: descriptors(worker_of(site)) <= files)


# --- while a query runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["plain", "pooled"])
def test_other_clients_do_not_wait_for_a_slow_query(
    request: pytest.FixtureRequest, raw: Raw, database: Database, which: str
) -> None:
    server: Server = request.getfixturevalue(which)
    slow, other = raw(server), raw(server)
    other.open("/queries/asks/")
    other.frame()
    slow.open("/queries/sleeps/")
    assert slow.frame().text == "begins"
    assert eventually(lambda: database.asleep(which) == 1)
    with at_once():
        for _ in range(3):
            other.send(frame("?"))
            assert other.frame().text.isdigit()
    assert database.asleep(which) == 1
    database.terminate(which)
    assert slow.closing()[0] == 1011


# --- transactions ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def atomic(start_site: StartSite, postgres: Server) -> Iterator[Server]:
    """The test site with `ATOMIC_REQUESTS`."""
    settings = settings_of(postgres, "atomic", ATOMIC_REQUESTS=True)
    with start_site({"DATABASES": {"default": settings}}) as server:
        yield server


@pytest.mark.parametrize(("how", "status", "stay"), [("raise", 500, 0), ("404", 404, 0), ("response", 403, 1)])
def test_atomic_requests_end_with_the_refusal(
    atomic: Server, raw: Raw, database: Database, key: str, how: str, status: int, stay: int
) -> None:
    client = raw(atomic)
    client.send(handshake(f"/writes/{how}/?key={key}"))
    assert client.response().status == status
    assert database.written(key) == stay
    assert eventually(lambda: database.held("atomic") == 0)


def test_atomic_requests_end_with_the_acceptance(atomic: Server, raw: Raw, database: Database, key: str) -> None:
    client = raw(atomic)
    client.open(f"/writes/accept/?key={key}")
    assert database.written(key) == 1
    client.send(frame("again"))
    assert client.frame().text == "written"
    assert database.written(key) == 2
    assert eventually(lambda: database.held("atomic") == 0)


@pytest.mark.parametrize("what", ["accept", "receive", "select"])
def test_waiting_inside_atomic_is_an_error_that_leaves_nothing(
    atomic: Server, raw: Raw, database: Database, key: str, what: str
) -> None:
    client = raw(atomic)
    client.open(f"/inside-atomic/{what}/?key={key}")
    (error,) = notes(atomic.port, key)
    assert error.startswith("RuntimeError: ")
    assert "atomic()" in error
    assert eventually(lambda: database.held("atomic") == 0)


@pytest.mark.parametrize(
    "how",
    ["accept", "send", "receive", "iteration", "select", "fileno", "socket", "subscribe", "listen", "close"],
)
def test_every_way_of_accepting_inside_atomic_is_an_error(plain: Server, raw: Raw, how: str) -> None:
    client = raw(plain)
    client.send(handshake(f"/queries/accepts-in-atomic/{how}/"))
    response = client.response()
    assert response.status == 409
    assert b"RuntimeError: The WebSocket cannot be accepted inside a transaction" in response.body
    assert b"atomic()" in response.body


@pytest.mark.parametrize("what", ["receive", "receive-within", "iteration", "get", "select"])
def test_receiving_inside_atomic_is_an_error_even_if_a_message_is_there(
    plain: Server, raw: Raw, key: str, what: str
) -> None:
    client = raw(plain)
    client.open(f"/queries/in-atomic/{what}/?key={key}", behind=frame("there already"))
    assert client.frame().text == "open"
    fetch(plain.port, f"/publish/{key}/?text=x")
    fetch(plain.port, f"/gate/{key}/")
    (error,) = notes(plain.port, key)
    assert error.startswith("RuntimeError: ")
    assert "atomic()" in error


def test_looking_for_messages_without_waiting_is_allowed_inside_atomic(plain: Server, raw: Raw, key: str) -> None:
    client = raw(plain)
    client.open(f"/queries/in-atomic/look/?key={key}")
    fetch(plain.port, f"/gate/{key}/")
    assert notes(plain.port, key) == ["fine"]


def test_each_call_of_a_loop_view_may_be_a_transaction(plain: Server, raw: Raw, database: Database, key: str) -> None:
    client = raw(plain)
    client.open("/queries/loop-in-atomic/", behind=frame(key) * 3)
    assert [client.frame().text for _ in range(3)] == ["written"] * 3
    client.send(frame(key))
    assert client.frame().text == "written"
    assert eventually(lambda: database.written(key) == 4)  # a message may arrive before the commit
    assert eventually(lambda: database.held("plain") == 0)


def test_loop_view_may_not_take_a_second_message_in_its_transaction(
    plain: Server, raw: Raw, database: Database, key: str
) -> None:
    client = raw(plain)
    client.open("/queries/loop-in-atomic/?greedy=yes", behind=frame(key) * 2)
    assert client.closing()[0] == 1011
    assert database.written(key) == 0


def test_library_may_wait_for_its_own_socket_inside_atomic(plain: Server, raw: Raw) -> None:
    client = raw(plain)
    client.open("/queries/library-in-atomic/")
    assert client.frame().text == "1 True"


def test_waiting_in_a_transaction_without_atomic_is_an_error_too(
    plain: Server, raw: Raw, database: Database, key: str
) -> None:
    client = raw(plain)
    client.open(f"/queries/without-autocommit/?key={key}")
    (error,) = notes(plain.port, key)
    assert error.startswith("RuntimeError: ")
    assert "set_autocommit" in error
    assert eventually(lambda: database.held("plain") == 0)
    assert database.written(key) == 0


# --- the end ---------------------------------------------------------------------------------------------------------

ENDS = ["raise", "exit", "kill", "timeout", "send", "terminate"]


@pytest.mark.parametrize("which", ["plain", "pooled"])
@pytest.mark.parametrize("how", ENDS)
def test_nothing_is_left_of_a_view_that_ends_in_a_transaction(
    request: pytest.FixtureRequest, raw: Raw, database: Database, key: str, which: str, how: str
) -> None:
    server: Server = request.getfixturevalue(which)
    client = raw(server)
    client.open(f"/queries/ends/{how}/?key={key}")
    assert client.frame().text == "written"
    if how in ("kill", "terminate"):
        assert eventually(lambda: database.asleep(which) == 1)
    if how == "kill":
        fetch(server.port, f"/queries/kill/{key}/")
    elif how == "terminate":
        database.terminate(which)
    elif how == "send":
        client.reset()
        fetch(server.port, f"/gate/{key}/")
    assert notes(server.port, key) == [f"{how}: finally"]
    if how != "send":
        assert client.closing()[0] in (1011, 1012)
    assert database.written(key) == 0
    if which == "pooled":
        assert eventually(lambda: all_are_back(server))
    else:
        assert eventually(lambda: database.held(which) == 0)


def all_are_back(server: Server) -> bool:
    """Whether nobody uses a connection of the pool or waits for one."""
    pool = fetch_json(server.port, "/queries/pool/")
    return bool(pool["pool_available"] == pool["pool_size"] and not pool.get("requests_waiting"))


def test_view_that_is_ended_while_it_waits_for_the_pool_keeps_no_connection(
    start_site: StartSite, postgres: Server, raw: Raw, database: Database, key: str
) -> None:
    settings = {
        "DATABASES": {"default": settings_of(postgres, "late", OPTIONS=POOL)},
        "WEBSOCKET_HANDSHAKE_TIMEOUT": 2.0,
    }
    with start_site(settings) as server:
        busy = [raw(server) for _ in range(4)]
        for client in busy:
            client.open("/queries/sleeps/")
            assert client.frame().text == "begins"
        assert eventually(lambda: database.asleep("late") == 4)
        late = [raw(server) for _ in range(5)]
        for client in late:
            client.send(handshake("/queries/asks/"))
        assert [client.response().status for client in late] == [500] * 5
        for _ in range(5):
            impatient = raw(server)
            impatient.open("/queries/impatient/")
            assert impatient.frame().text == "TimeoutError"
        database.terminate("late")
        for client in busy:
            assert client.closing()[0] == 1011
        assert eventually(lambda: all_are_back(server))


def test_nothing_is_left_of_a_view_whose_new_connection_cannot_be_prepared(
    start_site: StartSite, postgres: Server, raw: Raw, database: Database
) -> None:
    settings = settings_of(postgres, "unprepared", ENGINE="testsite.tenants")
    with start_site({"DATABASES": {"default": settings}}) as server:
        for _ in range(30):  # more connections than PostgreSQL allows
            client = raw(server)
            client.open("/queries/tenant/?schema=fails")
            assert client.closing()[0] == 1011
        assert eventually(lambda: database.held("unprepared") == 0)


@pytest.mark.parametrize("options", [{}, POOL], ids=["plain", "pooled"])
def test_restart_ends_transactions_and_closes_connections(
    start_site: StartSite, postgres: Server, raw: Raw, database: Database, key: str, options: dict[str, object]
) -> None:
    settings = settings_of(postgres, f"restart-{key}", OPTIONS=options)
    with start_site({"DATABASES": {"default": settings}}, args=["--graceful-timeout", "3"]) as server:
        idle, stuck = raw(server), raw(server)
        idle.open("/queries/asks/")
        idle.frame()
        stuck.open(f"/queries/ends/send/?key={key}")
        assert stuck.frame().text == "written"
        server.send_signal(signal.SIGTERM)
        assert idle.closing()[0] == 1012
        assert server.wait() == 0
        assert "Traceback" not in server.log
    assert eventually(lambda: database.held(f"restart-{key}") == 0)
    assert database.written(key) == 0


def test_wrapper_of_a_view_that_has_ended_still_works_and_is_freed_without_the_collector(
    tmp_path: Path,
) -> None:
    default = connections["default"]
    wrapper = type(default)({**default.settings_dict, "NAME": tmp_path / "database"}, "default")
    wrapper.ensure_connection()
    wrapper.close()
    untie_database(wrapper)
    assert wrapper.introspection.table_names() == []  # it connects again, and its helpers work
    wrapper.close()
    ended = weakref.ref(wrapper)
    gc.disable()
    try:
        del wrapper
        assert ended() is None
    finally:
        gc.enable()

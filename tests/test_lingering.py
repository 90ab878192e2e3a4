"""A client that talks keeps its database connection for a moment, and nobody notices but by the time that it saves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from django_websocket.handler import lingering
from django_websocket.handler.lingering import MOST, Lingering, Watch, leaves_nothing

from .support.clients import fetch_json
from .support.fixtures import Connect, Raw, StartPostgreSQL, StartSite
from .support.frames import frame
from .support.postgres import Database, settings_of
from .support.processes import worker_of
from .support.servers import Server
from .support.waiting import eventually
from .test_databases import POOL, asking

ALL_KINDS = {"WEBSOCKET_URLCONF": "testsite.executing"}
LONG = {"WEBSOCKET_DATABASE_LINGER": 60.0, **ALL_KINDS}  # longer than any of these tests takes
KINDS = ["", "-async", "-consumer", "-async-consumer"]


@pytest.fixture(params=KINDS, ids=["view", *(kind[1:] for kind in KINDS[1:])])
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of view, each of which has a path of its own."""
    return str(request.param)


def path_of(kind: str = "") -> str:
    return f"/queries/executes{kind}/?key=x"


@pytest.fixture(scope="module")
def patient(start_site: StartSite, postgres: Server) -> Iterator[Server]:
    """The test site with PostgreSQL, where connections linger for a minute."""
    with start_site({"DATABASES": {"default": settings_of(postgres, "patient")}, **LONG}) as server:
        yield server


class Talk:
    """A client that has talked, so that its connection is kept from now on."""

    def __init__(self, connect: Connect, server: Server, kind: str = "") -> None:
        self._client = connect(server, path_of(kind))
        self.close = self._client.close
        self.ask()
        self.first = self.ask()

    def ask(self, text: str = "") -> int:
        """Have something executed; return the number of the database session."""
        return int(self._client.ask(text))


# --- what is kept, and for how long ----------------------------------------------------------------------------------


def test_a_client_that_talks_keeps_its_connection_and_no_other_gets_it(
    patient: Server, connect: Connect, database: Database, kind: str
) -> None:
    talks = [Talk(connect, patient, kind) for _ in range(3)]
    assert len({talk.first for talk in talks}) == 3
    for _ in range(3):
        assert [talk.ask() for talk in talks] == [talk.first for talk in talks]
    for talk in talks:
        talk.close()
    assert eventually(lambda: database.held("patient") == 0)


def test_a_client_that_asks_once_keeps_nothing(
    patient: Server, connect: Connect, database: Database, kind: str
) -> None:
    client = connect(patient, path_of(kind))
    client.ask("")
    assert eventually(lambda: database.held("patient") == 0)


def test_after_half_a_second_of_silence_the_connection_is_closed(
    start_site: StartSite, postgres: Server, connect: Connect, database: Database, kind: str
) -> None:
    with start_site({"DATABASES": {"default": settings_of(postgres, "brief")}, **ALL_KINDS}) as server:
        client = connect(server, path_of(kind))
        begin = time.monotonic()
        sessions = [client.ask("") for _ in range(30)]
        assert len(set(sessions)) < 15 or time.monotonic() - begin > 2  # of this, a very slow machine makes nothing
        assert eventually(lambda: database.held("brief") == 0)
        assert client.ask("") not in sessions
        assert "Traceback" not in server.log


@pytest.mark.parametrize("kind", ["", "-async"])
def test_no_more_than_so_many_are_kept_and_those_who_have_one_keep_it(
    start_site: StartSite, start_postgresql: StartPostgreSQL, connect: Connect, kind: str
) -> None:
    with start_postgresql("-c", "max_connections=100") as postgres:
        database = Database(postgres)
        databases = {"default": settings_of(postgres, "many")}
        with start_site({"DATABASES": databases, **LONG}) as server:
            talks = [Talk(connect, server, kind) for _ in range(MOST + 10)]
            for _ in range(2):
                found = [talk.ask() == talk.first for talk in talks]
                assert found == [True] * MOST + [False] * 10
            assert eventually(lambda: database.held("many") == MOST)
        database.close()


def test_nothing_is_kept_with_the_setting_0(
    start_site: StartSite, postgres: Server, connect: Connect, database: Database
) -> None:
    databases = {"default": settings_of(postgres, "never")}
    with start_site({"DATABASES": databases, "WEBSOCKET_DATABASE_LINGER": 0}) as server:
        talk = Talk(connect, server)
        assert talk.ask() != talk.first
        assert eventually(lambda: database.held("never") == 0)


def test_a_connection_of_a_pool_goes_back_at_once(start_site: StartSite, postgres: Server, connect: Connect) -> None:
    databases = {"default": settings_of(postgres, "pool", OPTIONS=POOL)}
    with start_site({"DATABASES": databases, **LONG}) as server:
        Talk(connect, server)

        def all_are_back() -> bool:
            pool = fetch_json(server.port, "/queries/pool/")
            return bool(pool["pool_available"] == pool["pool_size"])

        assert eventually(all_are_back)


def test_sqlite_is_opened_once_for_a_client_that_talks(start_site: StartSite, connect: Connect) -> None:
    with start_site({"WEBSOCKET_DATABASE_LINGER": 1.0}) as server:

        def opened() -> int:
            count = 0
            for link in Path(f"/proc/{worker_of(server)}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed meanwhile
                    count += "site.sqlite3" in str(link.readlink())
            return count

        client, another = connect(server, "/queries/asks/"), connect(server, "/echo/")
        client.recv()

        def kept() -> int:
            client.ask("?")
            another.ask("?")  # behind which the client's view has given back what it does not keep
            return opened()

        assert eventually(lambda: opened() == 0)
        deadline = time.monotonic() + 20
        while not (found := kept()) and time.monotonic() < deadline:  # if not at the first attempt, then at the second
            pass
        assert found == 1
        assert eventually(lambda: opened() == 0)
        assert client.ask("?").isdigit()


# --- when nothing may be kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["ORM", "SELECT 1", "  select 1", "WITH one AS (SELECT 1) SELECT * FROM one"])
def test_ordinary_queries_leave_the_connection(patient: Server, connect: Connect, text: str, kind: str) -> None:
    talk = Talk(connect, patient, kind)
    for _ in range(3):
        assert talk.ask(text) == talk.first


@pytest.mark.parametrize(
    "text",
    [
        "SET statement_timeout = 60000",
        "CREATE TEMPORARY TABLE mine (number int)",
        "LISTEN news",
        "SELECT set_config('statement_timeout', '60000', false)",
        "SELECT pg_advisory_lock(1)",
        "SELECT 1 AS number INTO TEMP mine",
        "PREPARE mine AS SELECT 1",
        "callproc",
        "executemany",
        "driver's",
        "cursor",
        "iterator",
    ],
)
def test_what_is_done_to_a_session_does_not_outlive_a_wait(
    patient: Server, connect: Connect, text: str, kind: str
) -> None:
    Talk(connect, patient, kind).ask("ORM")  # a note, for the iterator
    talk = Talk(connect, patient, kind)
    assert talk.ask(text) == talk.first
    assert talk.ask(text) != talk.first


def test_nothing_is_kept_while_a_view_waits_for_other_files_too(patient: Server, connect: Connect) -> None:
    talk = Talk(connect, patient)
    assert talk.ask("select") == talk.first
    assert talk.ask("") != talk.first


def test_nothing_is_kept_while_django_notes_queries(
    start_site: StartSite, postgres: Server, connect: Connect, database: Database
) -> None:
    databases = {"default": settings_of(postgres, "debug")}
    with start_site({"DATABASES": databases, "DEBUG": True, **LONG}) as server:
        talk = Talk(connect, server)
        assert talk.ask("SET statement_timeout = 60000") != talk.first
        assert eventually(lambda: database.held("debug") == 0)


@pytest.mark.parametrize(
    ("sql", "so"),
    [
        ('SELECT "a" FROM "b" WHERE "c" = %s', True),
        ("  \n insert into a values (1)", True),
        ('UPDATE "a" SET "b" = %s', True),
        ('DELETE FROM "a"', True),
        ('SAVEPOINT "s1"', True),
        ('RELEASE SAVEPOINT "s1"', True),
        ('ROLLBACK TO SAVEPOINT "s1"', True),
        ("BEGIN", True),
        ("SELECT " + 2000 * "1, " + "1", True),
        ("SELECT " + 2000 * "1, " + "set_config('a', 'b', false)", False),
        ("SELECT SET_CONFIG('a', 'b', false)", False),
        ("SELECT pg_try_advisory_lock_shared(1)", False),
        ("SELECT GET_LOCK('a', 1)", False),
        ("SELECT @a := 1", False),
        ("SELECT 1 INTO  TEMPORARY a", False),
        ("SELECT 1 INTO @a", False),
        ("SELECT setseed(0.5)", False),
        ("SELECTED", False),
        ("SET a = 1", False),
        ("PRAGMA foreign_keys = OFF", False),
        ("ATTACH DATABASE 'a' AS b", False),
        ("DECLARE a CURSOR FOR SELECT 1", False),
        ("LOCK TABLE a", False),
        ("(SELECT 1)", False),
        ("-- a comment\nSELECT 1", False),
        ("", False),
        (b"SELECT 1", False),
        (None, False),
    ],
)
def test_statements_that_leave_nothing_behind(sql: Any, so: bool) -> None:
    assert leaves_nothing(sql) is so


def test_an_error_of_closing_a_cursor_is_none_as_in_django() -> None:
    class Failing:
        def close(self) -> None:
            raise Wrapper.Database.Error

    watch = Watch(wrapper := Wrapper())  # type: ignore[arg-type]
    with watch(Failing()):
        assert not watch.is_idle()
    assert watch.is_idle()
    assert wrapper.closed == 0


# --- when something goes wrong ---------------------------------------------------------------------------------------


def test_connection_that_the_server_has_dropped_meanwhile_is_replaced(
    patient: Server, connect: Connect, database: Database, kind: str
) -> None:
    talks = [Talk(connect, patient, kind) for _ in range(3)]
    database.terminate("patient")
    for talk in talks:
        assert talk.ask() != talk.first
    assert "Traceback" not in patient.log


def test_whoever_needs_a_connection_gets_one_although_others_keep_all_of_them(
    start_site: StartSite, start_postgresql: StartPostgreSQL, connect: Connect, raw: Raw
) -> None:
    with start_postgresql("-c", "max_connections=10") as postgres:
        databases = {"default": settings_of(postgres, "scarce")}
        with start_site({"DATABASES": databases, **LONG}) as server:
            talks = [Talk(connect, server) for _ in range(25)]
            for _ in range(3):
                for talk in talks:
                    assert talk.ask()
            for _ in range(5):
                asking(raw(server)).send(frame("?"))
            assert "Traceback" not in server.log


@pytest.mark.parametrize("kind", ["", "-async"])
def test_a_database_that_is_gone_is_an_error_as_ever(
    start_site: StartSite, start_postgresql: StartPostgreSQL, connect: Connect, raw: Raw, kind: str
) -> None:
    with start_postgresql() as postgres:
        databases = {"default": settings_of(postgres, "gone")}
        with start_site({"DATABASES": databases, **LONG}) as server:
            talk, other = Talk(connect, server, kind), Talk(connect, server, kind)
            postgres.stop()
            with pytest.raises(Exception, match="1011"):
                talk.ask()
            postgres.start()
            assert other.ask() != other.first


def test_views_that_end_in_whatever_way_close_their_connections(
    patient: Server, connect: Connect, raw: Raw, database: Database, kind: str
) -> None:
    talks = [Talk(connect, patient, kind) for _ in range(6)]
    with pytest.raises(Exception, match="1011"):
        talks[0].ask("nonsense")
    for talk in talks[1:]:
        talk.close()
    assert eventually(lambda: database.held("patient") == 0)


# --- the views of a loop, with databases that do as they are told ----------------------------------------------------


class Wrapper:
    """Stands for a database's wrapper."""

    connection = object()

    class Database:
        class Error(Exception):
            pass

    def __init__(self, *, waits: bool = False, fails: bool = False) -> None:
        self.closed = 0
        self.shared = 0
        self.closing = Event()
        self.may_go_on = Event()
        self._waits = waits
        self._fails = fails

    def inc_thread_sharing(self) -> None:
        self.shared += 1

    def dec_thread_sharing(self) -> None:
        self.shared -= 1

    def close(self) -> None:
        assert self.shared == 1
        self.closed += 1
        self.closing.set()
        if self._waits:
            assert self.may_go_on.wait(10)
        if self._fails:
            raise ValueError("the driver's own")


def keep(views: Lingering, wrapper: Wrapper, seconds: float) -> object:
    view = object()
    assert views.keep(view, [wrapper], seconds)  # type: ignore[list-item]
    return view


def test_each_is_closed_in_its_time() -> None:
    views = Lingering()
    wrappers = [Wrapper() for _ in range(3)]
    kept = [keep(views, wrapper, 0.02) for wrapper in wrappers]
    views.take_back(kept[1])
    assert wrappers[0].closing.wait(10)
    assert wrappers[2].closing.wait(10)
    gevent.sleep(0.03)
    assert [(wrapper.closed, wrapper.shared) for wrapper in wrappers] == [(1, 0), (0, 0), (1, 0)]
    late = Wrapper()
    keep(views, late, 0.01)
    assert late.closing.wait(10)


def test_view_that_goes_on_while_its_connection_is_being_closed_waits_for_that() -> None:
    views = Lingering()
    wrapper = Wrapper(waits=True)
    view = keep(views, wrapper, 0.001)
    assert wrapper.closing.wait(10)
    going_on = gevent.spawn(views.take_back, view)
    gevent.sleep(0.02)
    assert not going_on.ready()
    wrapper.may_go_on.set()
    going_on.get(timeout=10)
    assert wrapper.shared == 0


def test_error_of_a_driver_is_one_line_in_the_log_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    views = Lingering()
    failing, other = Wrapper(fails=True), Wrapper()
    keep(views, failing, 0.001)
    keep(views, other, 0.002)
    assert other.closing.wait(10)
    assert [record.getMessage() for record in caplog.records] == [
        'databases: closing a connection failed: ValueError("the driver\'s own")'
    ]
    assert failing.shared == other.shared == 0


def test_there_is_room_again_when_views_go_on() -> None:
    views = Lingering()
    kept = [keep(views, Wrapper(), 60) for _ in range(MOST)]
    assert not views.keep(object(), [Wrapper()], 60)  # type: ignore[list-item]
    views.take_back(kept[0])
    one = Wrapper()
    keep(views, one, 60)
    assert views.give_back_all() == MOST
    assert one.closed == 1
    assert views.give_back_all() == 0
    views.take_back(kept[1])  # whose connection has been closed meanwhile


def test_the_driver_may_know_that_a_connection_is_lost() -> None:
    class Lost:
        def fileno(self) -> int:
            raise ValueError("the connection is lost")

    assert lingering.has_hung_up(Lost())
    assert not lingering.has_hung_up(object())

"""Conversations end with the login they began with, in every process; sessions inside a conversation."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast
from urllib.parse import urlencode

import pytest
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.backends.cache import SessionStore
from django.core.signing import Signer
from django.db import connections
from django.test import override_settings
from redis import Redis

from django_websocket import pubsub
from django_websocket.handler import login_checks, users
from django_websocket.handler.orders import CHANNEL
from django_websocket.handler.sealing import opened, sealed
from django_websocket.handler.surroundings import Surroundings
from django_websocket.logins import disconnect

from .support.brokers import in_use
from .support.clients import RawClient, fetch
from .support.fixtures import SITE, Raw, StartSite
from .support.frames import PING, PONG, frame
from .support.postgres import Database, settings_of
from .support.servers import Server, redis_server
from .support.waiting import eventually, until
from .support.wire import Pairs

pytestmark = [pytest.mark.slow, pytest.mark.covers]

ENGINES = ["db", "cached_db", "cache", "file", "signed_cookies"]
SOON = {"WEBSOCKET_LOGIN_CHECK_INTERVAL": 0.3}
PASSWORD_BACKEND = "django.contrib.auth.backends.ModelBackend"


@pytest.fixture(scope="module")
def quick(start_site: StartSite) -> Iterator[Server]:
    with start_site(SOON) as server:
        yield server


@pytest.fixture(scope="module", params=ENGINES)
def any_engine(
    start_site: StartSite, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Server]]:
    """A server for each of Django's session engines."""
    directory = tmp_path_factory.mktemp("sessions")
    settings = {
        **SOON,
        "SESSION_ENGINE": f"django.contrib.sessions.backends.{request.param}",
        "SESSION_FILE_PATH": str(directory),
        "CACHES": {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    }
    with start_site(settings) as server:
        yield request.param, server


def log_in(server: Server, name: str, backend: str = PASSWORD_BACKEND) -> dict[str, str]:
    """Log a user in; return the headers that prove it."""
    page = fetch(server.port, f"/enter/?name={name}&backend={backend}")
    return {"Cookie": f"sessionid={page.cookies['sessionid']}"}


def talks(client: RawClient) -> bool:
    client.send(frame("still here"))
    while (text := client.frame().text) != "still here":
        assert text.startswith("hello ")  # the view's greeting
    return True


def answers(client: RawClient) -> bool:
    """Whether the client is still connected: a pong comes whatever the view is doing."""
    client.send(frame("", PING))
    while client.frame().opcode != PONG:
        pass
    return True


@pytest.mark.parametrize("path", ["/members/", "/members-who-listen/"])
@pytest.mark.parametrize("what", ["password", "deactivate", "delete"])
def test_conversations_end_with_their_login(quick: Server, raw: Raw, key: str, what: str, path: str) -> None:
    clients = [raw(quick) for _ in range(2)]
    for client in clients:
        client.open(path, log_in(quick, key))  # two sessions of one user
    other, stays, anonymous = raw(quick), raw(quick), raw(quick)
    other.open("/members/", log_in(quick, f"{key}-other"))
    stays.open("/members-who-stay/", log_in(quick, key))
    anonymous.open("/echo/")
    assert fetch(quick.port, f"/change/{what}/?name={key}").status == 200
    for client in clients:
        assert client.closing() == (4401, "logged out")
    time.sleep(2 * SOON["WEBSOCKET_LOGIN_CHECK_INTERVAL"])  # long enough for a check to end other logins by mistake
    for client in (other, stays, anonymous):
        assert talks(client)


def test_conversations_end_with_logout_and_expiry(any_engine: tuple[str, Server], raw: Raw, key: str) -> None:
    engine, server = any_engine
    mine, others = log_in(server, key), log_in(server, f"{key}-other")
    leaving, staying = raw(server), raw(server)
    leaving.open("/members/", mine)
    staying.open("/members/", others)
    if engine == "signed_cookies":  # the session is in the browser: the server has nothing to delete
        fetch(server.port, f"/change/password/?name={key}")
    else:
        fetch(server.port, "/leave/", mine)
    assert leaving.closing() == (4401, "logged out")
    assert talks(staying)
    if engine != "signed_cookies":
        fetch(server.port, f"/change/expire/?name={key}", others)
        assert staying.closing() == (4401, "logged out")


def test_conversation_ends_when_its_signed_cookie_expires(start_site: StartSite, raw: Raw, key: str) -> None:
    engine = "django.contrib.sessions.backends.signed_cookies"
    with start_site({**SOON, "SESSION_ENGINE": engine, "SESSION_COOKIE_AGE": 2}) as server:
        client = raw(server)
        client.open("/members/", log_in(server, key))
        begin = time.monotonic()
        assert client.closing() == (4401, "logged out")
        assert time.monotonic() - begin > 1


def test_disconnect_reaches_a_user_in_every_process(start_site: StartSite, raw: Raw, key: str) -> None:
    with redis_server() as redis:
        settings = {"WEBSOCKET_BROKER": f"redis://{redis.address}", "WEBSOCKET_LOGIN_CHECK_INTERVAL": 60.0}
        first = start_site(settings)
        second = start_site(settings)
        second.env["DATABASE_NAME"] = first.env["DATABASE_NAME"]  # one site, two processes
        with first, second:
            mine, others = log_in(first, key), log_in(first, f"{key}-other")
            clients = [raw(server) for server in (first, second)]
            for client in clients:
                client.open("/members/", mine)
            other = raw(second)
            other.open("/members/", others)
            for client in clients:
                assert talks(client)
            with Redis(port=redis.port) as asked:  # a process subscribes soon after its first login
                assert eventually(lambda: asked.pubsub_numsub(CHANNEL)[0][1] == 2)
            assert fetch(first.port, f"/change/disconnect/?name={key}").status == 200
            for client in clients:
                assert client.closing() == (4401, "go away")
            assert talks(other)


def test_database_failure_disconnects_nobody(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site({**SOON, "SESSION_ENGINE": "testsite.sessions"}) as server:
        client = raw(server)
        client.open("/members/", log_in(server, key))
        fetch(server.port, "/session/?broken=1")
        for _ in range(4):
            time.sleep(SOON["WEBSOCKET_LOGIN_CHECK_INTERVAL"])
            assert talks(client)
        assert "logins: they cannot be checked at present: OperationalError('the database is broken')" in server.log
        fetch(server.port, "/session/?broken=")
        fetch(server.port, f"/change/deactivate/?name={key}")
        assert client.closing() == (4401, "logged out")


@pytest.mark.parametrize("what", ["a backend that is not set", "a backend that fails"])
def test_login_that_cannot_be_checked_does_not_affect_the_others(
    start_site: StartSite, raw: Raw, key: str, what: str
) -> None:
    failing = "testsite.backends.FailingBackend"
    backend = failing if what == "a backend that fails" else "gone.Backend"
    with start_site({**SOON, "AUTHENTICATION_BACKENDS": [PASSWORD_BACKEND, failing]}) as server:
        strange, leaving, staying = raw(server), raw(server), raw(server)
        strange.open("/whoever/", log_in(server, f"{key}-strange", backend))
        assert strange.frame().text == ("hello stranger" if backend == "gone.Backend" else f"hello {key}-strange")
        leaving.open("/members/", log_in(server, key))
        staying.open("/members/", log_in(server, f"{key}-other", failing))
        fetch(server.port, f"/change/fail/?name={key}-strange")
        time.sleep(3 * SOON["WEBSOCKET_LOGIN_CHECK_INTERVAL"])
        fetch(server.port, f"/change/deactivate/?name={key}")
        assert leaving.closing() == (4401, "logged out")
        fetch(server.port, f"/change/delete/?name={key}-other")
        assert staying.closing() == (4401, "logged out")
        assert talks(strange)
        line = "it cannot be checked, and its WebSockets stay open: LookupError('the backend fails')"
        assert server.log.count(line) == (backend == failing)
        assert "they cannot be checked" not in server.log


@pytest.mark.parametrize("what", ["leave", "password", "deactivate", "disconnect"])
def test_login_is_watched_from_the_first_use_of_the_user(quick: Server, raw: Raw, key: str, what: str) -> None:
    headers = log_in(quick, key)
    client, unseen = raw(quick), raw(quick)
    client.open("/looks-later/", headers)
    unseen.open("/looks-later/", headers)
    client.send(frame("I am"))
    assert client.frame().text == f"'I am' {key}"
    fetch(quick.port, "/leave/" if what == "leave" else f"/change/{what}/?name={key}", headers)
    assert client.closing() == (4401, "go away" if what == "disconnect" else "logged out")
    unseen.send(frame("I am"))
    if what == "disconnect":
        assert unseen.frame().text == f"'I am' {key}"  # its view had not read the user, and the login is still valid
    else:
        assert unseen.frame().text == "'I am' "


@pytest.mark.parametrize("path", ["/members/", "/members-who-listen/"])
@pytest.mark.parametrize("what", ["deactivate", "delete", "disconnect"])
def test_user_without_a_session_is_disconnected(quick: Server, raw: Raw, key: str, path: str, what: str) -> None:
    client, other = raw(quick), raw(quick)
    client.open(path, {"Authorization": f"Bearer {key}"})
    other.open("/members/", {"Authorization": f"Bearer {key}-other"})
    time.sleep(2 * SOON["WEBSOCKET_LOGIN_CHECK_INTERVAL"])
    assert talks(other)
    fetch(quick.port, f"/change/{what}/?name={key}")
    assert client.closing() == (4401, "go away" if what == "disconnect" else "logged out")
    assert talks(other)


def test_user_other_than_that_of_the_session_is_watched(quick: Server, raw: Raw, key: str) -> None:
    client = raw(quick)
    client.open("/members/", {**log_in(quick, f"{key}-session"), "Authorization": f"Bearer {key}-token"})
    assert client.frame().text == f"hello {key}-token"
    fetch(quick.port, f"/change/deactivate/?name={key}-token")
    assert client.closing() == (4401, "logged out")


@pytest.fixture(scope="module", params=["databases", "schemas"])
def with_tenants(
    start_site: StartSite,
    empty_database: Path,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A site whose tenants, acme and globex, have users and sessions of their own."""
    from testsite import settings

    if request.param == "databases":  # a router finds the tenant in a context variable
        directory = tmp_path_factory.mktemp("tenants")
        changes: dict[str, Any] = {
            "DATABASE_ROUTERS": ["testsite.routers.ByTenant"],
            "DATABASES": {
                name: {
                    "ENGINE": "django.db.backends.sqlite3",
                    "NAME": str(shutil.copy(empty_database, directory / name)),
                }
                for name in ("default", "acme", "globex")
            },
        }
        tenant = "testsite.middleware.tenant"
    else:  # a middleware sets the tenant on the database wrapper
        postgres: Server = request.getfixturevalue("postgres")
        changes = {"DATABASES": {"default": settings_of(postgres, "logins", ENGINE="testsite.tenants")}}
        tenant = "testsite.hooks.tenant"
        database: Database = request.getfixturevalue("database")
        for name in ("acme", "globex"):
            database.make_schema(name, ["auth_user", "django_session"])
    with start_site({**SOON, **changes, "MIDDLEWARE": [tenant, *settings.MIDDLEWARE]}) as server:
        yield server


@pytest.mark.parametrize("path", ["/members/", "/members-who-listen/", "/looks-later/"])
def test_logins_of_tenants_are_kept_apart(with_tenants: Server, raw: Raw, key: str, path: str) -> None:
    clients = {}
    for tenant in ("acme", "globex"):  # the first users of each, with the same primary keys
        page = fetch(with_tenants.port, f"/enter/?name={key}&tenant={tenant}")
        client = clients[tenant] = raw(with_tenants)
        client.open(f"{path}?tenant={tenant}", {"Cookie": f"sessionid={page.cookies['sessionid']}"})
        if path == "/looks-later/":
            client.send(frame("I am"))
            assert client.frame().text == f"'I am' {key}"
    time.sleep(2 * SOON["WEBSOCKET_LOGIN_CHECK_INTERVAL"])
    assert answers(clients["globex"])
    fetch(with_tenants.port, f"/change/disconnect/?name={key}&tenant=acme")
    assert clients["acme"].closing() == (4401, "go away")
    assert answers(clients["globex"])
    fetch(with_tenants.port, f"/change/deactivate/?name={key}&tenant=globex")
    assert clients["globex"].closing() == (4401, "logged out")


@pytest.mark.parametrize("what", ["disconnect", "deactivate"])
def test_users_of_tenants_are_kept_apart_without_a_session(with_tenants: Server, raw: Raw, key: str, what: str) -> None:
    clients = {}
    for tenant in ("acme", "globex"):
        client = clients[tenant] = raw(with_tenants)
        client.open(f"/members/?tenant={tenant}", {"Authorization": f"Bearer {key}"})
        assert client.frame().text == f"hello {key}"
    time.sleep(2 * SOON["WEBSOCKET_LOGIN_CHECK_INTERVAL"])
    assert answers(clients["acme"])
    fetch(with_tenants.port, f"/change/{what}/?name={key}&tenant=globex")
    assert clients["globex"].closing() == (4401, "go away" if what == "disconnect" else "logged out")
    assert answers(clients["acme"])


@pytest.mark.parametrize(
    ("settings", "tenant"),
    [
        ({}, "acme"),
        ({"TENANT_APPS": ["django.contrib.auth"]}, "acme"),
        ({"TENANT_TYPES": {"free": {"APPS": []}, "paid": {"APPS": ["django.contrib.auth.apps.AuthConfig"]}}}, "acme"),
        ({"TENANT_APPS": ["testsite"]}, ""),
        ({"TENANT_TYPES": {"free": {"APPS": ["testsite"]}}}, ""),
    ],
)
def test_users_in_a_table_shared_by_all_tenants_belong_to_no_tenant(settings: dict[str, Any], tenant: str) -> None:
    wrapper: Any = connections["default"]
    wrapper.schema_name = "acme"
    try:
        with override_settings(**settings):
            assert users.identify("1") == ("1", "auth.User", "default", tenant)
    finally:
        del wrapper.schema_name


def test_user_read_from_a_replica_is_identified_with_that_of_the_primary_database() -> None:
    user = get_user_model()(pk=1)
    replica, archive = SimpleNamespace(db_for_read=lambda *args, **hints: "replica"), "archive"
    with override_settings(DATABASE_ROUTERS=[replica]):
        user._state.db = "replica"
        assert users.identify(user) == users.identify(1) == ("1", "auth.User", "default", "")
        user._state.db = archive
    connections.settings[archive] = connections.settings["default"]
    try:
        assert users.identify(user) == ("1", "auth.User", archive, "")
    finally:
        del connections[archive], connections.settings[archive]


def test_login_that_seems_to_have_ended_is_checked_again_in_the_context_of_its_request(
    key: str, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant: ContextVar[str] = ContextVar("tenant")  # for a manager that hides the users of other tenants
    monkeypatch.setattr(
        login_checks, "valid", lambda asked, faults: {one for one in asked if one.session_key == tenant.get()}
    )
    with in_use(f"memory://{key}", WEBSOCKET_LOGIN_CHECK_INTERVAL=0.05):
        watched = login_checks.Logins()
        connections_of, peers = {}, {}
        for name in ("acme", "globex", "gone"):
            context = copy_context()
            context.run(tenant.set, name)
            connections_of[name], peers[name] = pairs()
            session = "none" if name == "gone" else name
            login = login_checks.Login(session, users.identify("1"), "", "", time.time() + 60)
            watched.add(login, connections_of[name], Surroundings(context, ()))
        until(lambda: not connections_of["gone"].connected)
        assert connections_of["acme"].connected and connections_of["globex"].connected
        for peer in peers.values():
            peer.sock.close()
        until(lambda: not any(connection.connected for connection in connections_of.values()))


USER = ["1", "auth.User", "default", ""]
PLACE = "django_websocket.answers.1"
FOREIGN_ORDERS: list[bytes] = [
    json.dumps(["user", USER, 4401, "", PLACE]).encode(),  # nobody has signed it
    Signer(key="another", salt="django_websocket.processes.order").sign_object([0, 1]).encode(),
    b"[" * 30_000,
    b"1" * 5_000,
    b"null",
    b":",
    b"a:b",
    b"\xff\x00",
    b"\xfe",
    b"",
]
MALFORMED_ORDERS: list[Any] = [  # signed, as another version may do it
    [{"user": ["1", "auth.User", "default", "\ud800"]}, 4401, ""],
    [{"user": [1, "auth.User", "default", ""]}, 4401, ""],
    [{"user": USER[:3]}, 4401, ""],
    [{"user": "1"}, 4401, ""],
    [{"user": None}, 4401, ""],
    [{"user": USER}, 4401, 5],
    [{"user": USER}, 4401, None],
    [{"user": USER}, 4401, "\ud800"],
    [{"user": USER}, 999, ""],
    [{"user": USER}, "4401", ""],
    [{"user": USER}, True, ""],
    [{"user": USER}, 4401],
    [{"everybody": []}, 4401, ""],
    [{"user": USER, "everybody": []}, 4401, ""],
    [{}, 4401, ""],
    [["user"], 4401, ""],
    {"user": "1"},
    ["user"],
    None,
    5,
]


@pytest.fixture(scope="module")
def observed(start_site: StartSite) -> Iterator[tuple[Server, Server]]:
    """A server, and its Redis, to which others can publish as well."""
    with redis_server() as redis:
        settings = {"WEBSOCKET_LOGIN_CHECK_INTERVAL": 60.0, "WEBSOCKET_BROKER": f"redis://{redis.address}"}
        with start_site(settings) as server:
            yield server, redis


def members(server: Server, raw: Raw, key: str) -> tuple[RawClient, RawClient]:
    """Connect a user who talks and one who listens, and return them once the process listens for orders."""
    client, listener = raw(server), raw(server)
    client.open("/members/", log_in(server, key))
    assert talks(client)
    listener.open("/members-who-listen/", log_in(server, f"{key}-other"))
    return client, listener


def send_order(
    redis: Redis, value: Any, *, place: str = PLACE, purpose: str = "order", verb: Any = "disconnect"
) -> None:
    with override_settings(SECRET_KEY="for-tests-only"):
        redis.publish(CHANNEL, sealed([verb, value, place], purpose))


def test_malformed_order_harms_nobody(observed: tuple[Server, Server], raw: Raw, key: str) -> None:
    server, redis = observed
    client, listener = members(server, raw, key)
    with Redis(port=redis.port) as asked:
        assert eventually(lambda: asked.pubsub_numsub(CHANNEL)[0][1] == 1)
        for text in FOREIGN_ORDERS:
            asked.publish(CHANNEL, text)
        for number, value in enumerate(MALFORMED_ORDERS):
            send_order(asked, value, place=f"{PLACE}{number}")
        verbs: list[Any] = [None, [], {}, "dance", 1]
        for number, verb in enumerate(verbs):
            send_order(asked, [{"user": USER}, 4401, ""], place=f"{PLACE}verb{number}", verb=verb)
        places: list[Any] = [5, None, [], {}, "members"]
        for place in places:
            send_order(asked, [{"user": USER}, 4401, ""], place=place)
        asked.publish("members", "news")
        assert listener.frame().text == "news"
        assert talks(client)
        assert fetch(server.port, f"/change/disconnect/?name={key}").status == 200
        assert client.closing() == (4401, "go away")
        asked.publish("members", "more news")
        assert listener.frame().text == "more news"
        assert "a message was ignored that no process of this project has sent" in server.log
        assert "an order of another process could not be carried out" in server.log
        assert "Traceback" not in server.log


def test_order_counts_once_and_only_if_it_is_new_and_of_this_project(
    observed: tuple[Server, Server], raw: Raw, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, redis = observed
    client, _ = members(server, raw, key)
    with Redis(port=redis.port) as asked, asked.pubsub() as recorder:
        assert eventually(lambda: asked.pubsub_numsub(CHANNEL)[0][1] == 1)
        user = [[str(get_id(server, key)), "auth.User", "default", ""]]
        value = [{"user": user[0]}, 4401, "by force"]
        now = time.time()
        for seconds in (-31, 31):
            with monkeypatch.context() as patched:
                patched.setattr("django_websocket.handler.sealing.time.time", lambda: now + seconds)  # noqa: B023
                send_order(asked, value, place=f"{PLACE}{seconds}")
        send_order(asked, value, purpose="answer")
        with override_settings(SECRET_KEY="another"):
            asked.publish(CHANNEL, sealed(["disconnect", value, PLACE], "order"))
        assert talks(client)
        recorder.subscribe(CHANNEL)
        assert recorder.get_message(timeout=10)
        assert fetch(server.port, f"/change/disconnect/?name={key}").status == 200
        assert client.closing() == (4401, "go away")
        recorded = recorder.get_message(timeout=10)
        assert recorded is not None
        again = raw(server)
        again.open("/members/", log_in(server, key))
        assert talks(again)
        asked.publish(CHANNEL, recorded["data"])
        assert eventually(lambda: "was ignored because it has come again" in server.log)
        assert "was ignored because it is too old" in server.log
        assert talks(again)
        send_order(asked, value, place=f"{PLACE}new")
        assert again.closing() == (4401, "by force")


def test_order_does_not_count_for_a_process_that_was_not_there(
    observed: tuple[Server, Server], raw: Raw, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, redis = observed
    with Redis(port=redis.port) as asked:
        assert eventually(lambda: asked.pubsub_numsub(CHANNEL)[0][1] == 0)  # nobody is connected
        client, _ = members(server, raw, key)
        assert eventually(lambda: asked.pubsub_numsub(CHANNEL)[0][1] == 1)
        before = time.time() - 10
        with monkeypatch.context() as patched:
            patched.setattr("django_websocket.handler.sealing.time.time", lambda: before)
            send_order(asked, [{"user": [str(get_id(server, key)), *USER[1:]]}, 4401, ""], place=f"{PLACE}{key}")
        assert talks(client)


def get_id(server: Server, name: str) -> int:
    """Return the primary key of a user of the server's."""
    with sqlite3.connect(server.env["DATABASE_NAME"]) as database:
        [found] = database.execute("SELECT id FROM auth_user WHERE username = ?", [name]).fetchone()
    database.close()
    return int(found)


def test_orders_are_read_with_a_former_key() -> None:
    with override_settings(SECRET_KEY="old"):
        message = sealed(["disconnect", 1, PLACE], "order")
    with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["old"]):
        assert opened(message, "order").value == ["disconnect", 1, PLACE]
        for other in ("answer", PLACE, ""):
            with pytest.raises(ValueError, match="does not match"):
                opened(message, other)
    with override_settings(SECRET_KEY="new"), pytest.raises(ValueError, match="does not match"):
        opened(message, "order")


def test_answers_that_no_process_has_signed_are_not_counted(
    observed: tuple[Server, Server], raw: Raw, key: str
) -> None:
    """Whoever can publish knows where the answers are expected, but not how to sign them."""
    server, redis = observed
    client, _ = members(server, raw, key)
    session = log_in(server, key)["Cookie"].partition("=")[2]
    ended_by_session = raw(server)
    ended_by_session.open("/members/", {"Cookie": f"sessionid={session}"})
    recorded = []

    def forge(message: dict[str, Any]) -> None:
        text = message["data"]
        recorded.append(text)
        place = json.loads(base64.urlsafe_b64decode(text.partition(b":")[0] + b"=="))[1][2]
        for forged in ("5", '["forger", 7]', sealed(["forger", 7], "order"), sealed(["forger", 7], place + "1")):
            asked.publish(place, forged)

    with Redis(port=redis.port) as asked, asked.pubsub() as forger:
        assert eventually(lambda: asked.pubsub_numsub(CHANNEL)[0][1] == 1)
        forger.subscribe(**{CHANNEL: forge})
        thread = forger.run_in_thread(sleep_time=0.01)
        try:
            assert eventually(lambda: asked.pubsub_numsub(CHANNEL)[0][1] == 2)
            assert ended(server, session=session) == 1
        finally:
            thread.stop()
            thread.join()
        assert ended_by_session.closing() == (4401, "")
        assert talks(client)
        assert recorded and session.encode() not in b"".join(recorded)  # it would let everybody in


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"user": "1", "reason": "\ud800"}, ValueError),
        ({"user": "1", "reason": b"bytes"}, TypeError),
        ({"user": "1", "reason": None}, TypeError),
        ({"user": "1", "reason": "x" * 10_000}, ValueError),
        ({"user": "1", "code": 999}, ValueError),
        ({"user": "1", "code": "4401"}, TypeError),
        ({"user": None}, ValueError),
        ({"session": None}, ValueError),
        ({"session": ""}, ValueError),
        ({"session": 5}, TypeError),
        ({"channel": ""}, TypeError),
        ({"channel": CHANNEL}, ValueError),
        ({"connection": 5}, TypeError),
        ({}, TypeError),
        ({"user": "1", "session": "2"}, TypeError),
    ],
)
def test_invalid_order_is_refused_before_it_is_sent(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        disconnect(**arguments)


def test_channels_reserved_for_the_package_are_refused() -> None:
    for attempt in (pubsub.publish, pubsub.subscribe):
        with pytest.raises(ValueError, match="Choose another name"):
            attempt(CHANNEL, "anything")
    with pytest.raises(ValueError, match="Choose another name"):
        pubsub.forward(["news", CHANNEL])  # called by a WebSocket's subscribe() and listen()


# --- the session in a conversation -----------------------------------------------------------------------------------


def test_session_update_keeps_what_others_saved_meanwhile(site: Server, raw: Raw) -> None:
    cookie = fetch(site.port, "/session/?colour=blue").cookies["sessionid"]
    headers = {"Cookie": f"sessionid={cookie}"}
    client = raw(site)
    client.open("/updates-the-session/", headers)
    client.send(frame("count"))
    assert json.loads(client.frame().text) == {"colour": "blue", "count": 1}
    fetch(site.port, "/session/?colour=red&size=large", headers)
    client.send(frame("count"))
    assert json.loads(client.frame().text) == {"colour": "red", "size": "large", "count": 2}
    assert json.loads(fetch(site.port, "/session/", headers).body) == {"colour": "red", "size": "large", "count": 2}


def test_session_that_is_gone_or_never_existed_is_not_updated(site: Server, raw: Raw) -> None:
    cookie = fetch(site.port, "/session/?colour=blue").cookies["sessionid"]
    headers = {"Cookie": f"sessionid={cookie}"}
    client, without = raw(site), raw(site)
    client.open("/updates-the-session/", headers)
    fetch(site.port, "/leave/", headers)
    client.send(frame("count"))
    assert client.frame().text.startswith("UpdateError")
    without.open("/updates-the-session/")
    without.send(frame("count"))
    assert without.frame().text.startswith("RuntimeError: The client has no session to update")


# --- disconnect() -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["redis", "memory"])
def named(start_site: StartSite, request: pytest.FixtureRequest) -> Iterator[list[Server]]:
    """Servers of one site: two that share a Redis, or one with memory://."""
    if request.param == "memory":
        with start_site({"WEBSOCKET_LOGIN_CHECK_INTERVAL": 60.0}) as server:
            yield [server]
        return
    with redis_server() as redis:
        settings = {"WEBSOCKET_BROKER": f"redis://{redis.address}", "WEBSOCKET_LOGIN_CHECK_INTERVAL": 60.0}
        servers = [start_site(settings) for _ in range(2)]
        servers[1].env["DATABASE_NAME"] = servers[0].env["DATABASE_NAME"]
        with servers[0], servers[1], Redis(port=redis.port) as asked, connected_to_all(servers):
            assert eventually(lambda: asked.pubsub_numsub(CHANNEL)[0][1] == 2)
            yield servers


@contextmanager
def connected_to_all(servers: list[Server]) -> Iterator[None]:
    """Keep a client connected to each server: a process listens for orders only while it has one."""
    with ExitStack() as clients:
        for server in servers:
            clients.enter_context(RawClient(server.port)).open("/echo/")
        yield


def ended(server: Server, **whom: str) -> int:
    """Have a page call disconnect(); return the number of connections that it reports."""
    return int(fetch(server.port, f"/end/?{urlencode(whom)}").body)


def test_user_is_disconnected_and_counted(named: list[Server], raw: Raw, key: str) -> None:
    clients = []
    for server in (*named, *named):
        client = raw(server)
        client.open("/members/", log_in(named[0], key))
        clients.append(client)
    both = raw(named[0])
    both.open("/members/", {**log_in(named[0], f"{key}-other"), "Authorization": f"Bearer {key}"})  # two users
    other, stays = raw(named[-1]), raw(named[-1])
    other.open("/members/", log_in(named[0], f"{key}-other"))
    stays.open("/members-who-stay/", log_in(named[0], key))
    begin = time.monotonic()
    assert ended(named[0], user=key, code="4444", reason="go away") == len(clients) + 1
    assert time.monotonic() - begin < 1  # did not wait longer, once every process had answered
    for client in (*clients, both):
        assert client.closing() == (4444, "go away")
    for client in (other, stays):
        assert talks(client)
    assert ended(named[0], user=key) == 0


def test_only_the_given_session_is_disconnected(named: list[Server], raw: Raw, key: str) -> None:
    mine, another = log_in(named[0], key), log_in(named[0], key)
    client, other = raw(named[-1]), raw(named[-1])
    client.open("/members/", mine)
    other.open("/members/", another)
    assert ended(named[0], session=mine["Cookie"].partition("=")[2]) == 1
    assert client.closing() == (4401, "")
    assert talks(other)


def test_all_subscribers_of_a_channel_are_disconnected(named: list[Server], raw: Raw, key: str) -> None:
    clients = []
    for server in named:
        for path in ("/listen/", "/subscribed/", "/relay/"):
            client = raw(server)
            client.open(f"{path}{key}/")
            clients.append(client)
            if path != "/listen/":
                assert client.frame().text == "subscribed"
    other = raw(named[-1])
    other.open(f"/listen/{key}-other/")
    assert ended(named[0], channel=key, code="4000", reason="closed") == len(clients)
    for client in clients:
        assert client.closing() == (4000, "closed")
    assert answers(other)
    assert ended(named[0], channel=key) == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_single_connection_is_disconnected_by_its_id(named: list[Server], raw: Raw, key: str, when: str) -> None:
    clients = [raw(server) for server in (named[-1], named[-1])]
    ids = []
    for client in clients:
        client.open(f"/tells-its-id/{when}/")
        ids.append(client.frame().text)
    assert ids[0] != ids[1]
    assert ended(named[0], connection=ids[0]) == 1
    assert clients[0].closing() == (4401, "")
    assert talks(clients[1])
    assert ended(named[0], connection="") == -1
    assert ended(named[0], connection="another") == 0


def test_view_may_disconnect_its_own_client(named: list[Server], raw: Raw, key: str) -> None:
    client = raw(named[0])
    client.open("/ends-itself/")
    assert client.closing() == (4001, "1")


def test_disconnect_works_in_processes_without_a_loop(named: list[Server], raw: Raw, key: str) -> None:
    client = raw(named[-1])
    client.open(f"/listen/{key}/")
    code = "import django; django.setup()\nfrom django_websocket.logins import disconnect\n"
    code += f"print(disconnect(channel={key!r}))\n"
    env = {**os.environ, **named[0].env, "DJANGO_SETTINGS_MODULE": "testsite.settings", "PYTHONPATH": str(SITE)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=20, check=False
    )
    if len(named) == 1:  # memory:// does not reach other processes
        assert done.stdout == "0\n", done.stderr
        assert answers(client)
    else:
        assert done.stdout == "1\n", done.stderr
        assert client.closing() == (4401, "")


def test_process_that_does_not_answer_is_given_up_soon(start_site: StartSite, raw: Raw, key: str) -> None:
    with redis_server() as redis:
        settings = {"WEBSOCKET_BROKER": f"redis://{redis.address}"}
        with start_site(settings) as server, Redis(port=redis.port) as asked:
            deaf = asked.pubsub()
            deaf.subscribe(CHANNEL)
            assert deaf.get_message(timeout=10)
            client = raw(server)
            client.open(f"/listen/{key}/")
            assert eventually(lambda: asked.pubsub_numsub(CHANNEL)[0][1] == 2)
            begin = time.monotonic()
            assert ended(server, channel=key) == 1
            assert 0.9 < time.monotonic() - begin < 2
            redis.stop()
            assert fetch(server.port, f"/end/?channel={key}").body == b"BrokerError"
            assert "Traceback" not in server.log


class CountingBackend:
    """A backend of its own kind, which counts for whom it is asked."""

    asked: ClassVar[list[str]] = []

    def get_user(self, key: str) -> Any:
        self.asked.append(key)
        return SimpleNamespace(get_session_auth_hash=lambda: "hash")


def test_backend_is_asked_once_for_a_user_whatever_the_number_of_sessions_and_sockets() -> None:
    path = f"{__name__}.{CountingBackend.__name__}"
    with override_settings(
        SESSION_ENGINE="django.contrib.sessions.backends.cache",
        CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
        AUTHENTICATION_BACKENDS=[path],
    ):
        found = set()
        for _ in range(3):
            session: Any = SessionStore()
            session.update({SESSION_KEY: "7", BACKEND_SESSION_KEY: path, HASH_SESSION_KEY: "hash"})
            session.save()
            for _ in range(40):
                login = login_checks.login_of(cast(Any, SimpleNamespace(session=session)))
                assert login is not None
                found.add(login)
        assert len(found) == 3  # one for a session
        faults: dict[login_checks.Login, Exception] = {}
        assert login_checks.valid(list(found), faults) == found
        assert not faults
        assert CountingBackend.asked == ["7"]


def test_session_that_is_a_plain_dict_is_nobody_s(start_site: StartSite, raw: Raw) -> None:
    middleware = ["testsite.hooks.plain_session", "testsite.middleware.bearer"]
    with start_site({"MIDDLEWARE": middleware, **SOON}) as server:
        client = raw(server)
        client.open("/echo/", behind=frame("hello"))
        assert client.frame().text == "hello"
        known = raw(server)
        known.open("/echo/", {"Authorization": "Bearer ann"})
        assert fetch(server.port, "/change/deactivate/?name=ann").status == 200
        assert known.closing() == (4401, "logged out")
        assert talks(client)
        assert "Traceback" not in server.log

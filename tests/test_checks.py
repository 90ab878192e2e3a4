"""Mistakes in the settings, which the system checks and the application at its start name with a remedy."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import re
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.decorators import login_required
from django.core.checks import Error, Warning, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import clear_url_caches, include, path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.generic import TemplateView
from redis.credentials import UsernamePasswordCredentialProvider
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.views import APIView
from testsite.kinds import KINDS

from django_websocket import checks, conf
from django_websocket.checks import check, check_worker
from django_websocket.decorators import websocket
from django_websocket.websocket import WebSocket
from django_websocket.wsgi import get_wsgi_websocket_application

from .support.clients import RawClient
from .support.documentation import blocks
from .support.fixtures import StartSite
from .support.frames import frame
from .support.postgres import Database, settings_of
from .support.servers import Server
from .support.waiting import eventually


def written(value: object) -> str:
    """Return a value's `str()` without addresses, since a test must have the same id in all processes."""
    return re.sub(" at 0x[0-9a-f]+", "", str(value))


class OnlyAsync:
    sync_capable = False
    async_capable = True


class Broker:
    OPTIONS = ("subject", "token")

    def __init__(self, **options: Any) -> None:
        assert options in ({}, {"url": "nats://localhost", "subject": "x", "token": "y"})


class Both:
    sync_capable = True
    async_capable = True


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    made = types.ModuleType("made_for_a_test")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    made.OnlyAsync, made.Both = OnlyAsync, Both  # type: ignore[attr-defined]
    clear_url_caches()  # these caches know modules by name
    return made


def test_the_test_site_passes_the_checks() -> None:
    assert check() == []


@pytest.mark.parametrize(
    ("settings", "id", "words"),
    [
        ({"WEBSOCKET_PING_INTERVAL": "soon"}, "E001", ["WEBSOCKET_PING_INTERVAL", "soon", "number"]),
        ({"WEBSOCKET_ALLOWED_ORIGINS": "https://example.com"}, "E001", ["WEBSOCKET_ALLOWED_ORIGINS", "list"]),
        ({"WEBSOCKET_URLCONF": ""}, "E002", ["WEBSOCKET_URLCONF is not set", "websocket_urls"]),
        ({"WEBSOCKET_URLCONF": "nowhere.at_all"}, "E003", ["no such module", "nowhere/at_all.py"]),
        ({"WEBSOCKET_URLCONF": "nowhere/at_all.py"}, "E003", ["no such module", '"nowhere.at_all"']),
        ({"WEBSOCKET_URLCONF": "made_for_a_test"}, "E003", ["made_for_a_test", "patterns"]),
        ({"WEBSOCKET_BROKER": "kafka://localhost"}, "E004", ["kafka://", "redis://", "memory://"]),
        ({"WEBSOCKET_SERVER": "https://example.com"}, "E005", ["https://example.com", "wss://host/prefix"]),
        ({"WEBSOCKET_SERVER": "8001"}, "E005", ["'8001'", '":8001"']),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_named_with_its_remedy(
    module: types.ModuleType, settings: dict[str, Any], id: str, words: list[str]
) -> None:
    with override_settings(**settings):
        (message,) = check()
        assert isinstance(message, Error)
        assert message.id == f"websocket.{id}"
        for word in words:
            assert word in f"{message.msg} {message.hint}"
        assert message in run_checks(tags=["websocket"])
        with pytest.raises(ImproperlyConfigured) as raised:  # gunicorn runs no system checks
            get_wsgi_websocket_application()
        for word in words:
            assert word in str(raised.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("WEBSOCKET_BROKERS", "WEBSOCKET_BROKER"),
        ("WEBSOCKET_ALLOWED_ORIGIN", "WEBSOCKET_ALLOWED_ORIGINS"),
        ("WEBSOCKET_URL", None),  # of another package
        ("WEBSOCKET_SOMETHING_ELSE", None),
    ],
)
def test_a_name_that_is_nearly_that_of_a_setting_gets_a_warning(name: str, meant: str | None) -> None:
    with override_settings(**{name: "x"}):
        found = check()
    if meant is None:
        assert found == []
    else:
        (message,) = found
        assert (type(message), message.id) == (Warning, "websocket.W009")
        assert name in message.msg
        assert f"If you mean {meant}," in str(message.hint)


BROKER_MISTAKES = [
    ("", ["must be a URL such as redis://"]),
    ("localhost:6379", ["must be a URL such as redis://"]),
    ("kafka://localhost", ["kafka://", "memory://", "redis://", "rediss://", "unix://"]),
    ({}, ["without a url"]),
    ({"prefix": "site1:"}, ["without a url"]),
    ({"url": None}, ["must be a URL such as redis://"]),
    ({"url": "redis://localhost", "prefx": "site1:"}, ["'prefx'", "prefix", "ssl_ca_certs", "encryption_keys"]),
    ("redis://localhost?prefx=site1:", ["'prefx'", "prefix"]),
    ("memory://?prefix=site1:", ["'prefix'", "encryption_keys"]),
    ({"url": "redis://localhost", "prefix": 1}, ["'prefix'", "a string"]),
    ("redis://localhost:redis", ["'localhost:redis'", "localhost:6379"]),
    ("redis://localhost:0", ["'localhost:0'", "localhost:6379"]),
    ("redis://localhost:65536", ["'localhost:65536'", "localhost:6379"]),
    ("redis://::1:6379", ["'::1:6379'", "localhost:6379"]),
    ("redis://a:6379,b:6379", ["several hosts", "redis+sentinel://", "redis+cluster://"]),
    ("redis+sentinel://localhost", ["name that the sentinels have", "redis+sentinel://localhost:26379/mymaster"]),
    ("redis+sentinel://a,b:x/main", ["'b:x'", "localhost:6379"]),
    ("redis+sentinel://a,b/main/first", ["'db'", "number"]),
    ("redis+cluster://a,b/1", ["database 0"]),
    ({"url": "redis+cluster://a,b", "db": 0}, ["'db'", "ssl_ca_certs"]),
    ({"url": "redis://localhost", "sentinel_password": "x"}, ["'sentinel_password'", "ssl_ca_certs"]),
    ("unix://", ["name a socket", "unix:///run/redis"]),
    ("redis://localhost/first", ["'db'", "number"]),
    ("redis://localhost?db=-1", ["'db'", "number"]),
    ({"url": "redis://localhost", "db": True}, ["'db'", "number"]),
    ({"url": "redis://localhost", "credential_provider": "me"}, ["'credential_provider'", "redis-py"]),
    (
        {"url": "redis://:x@localhost", "credential_provider": UsernamePasswordCredentialProvider("me", "x")},
        ["'credential_provider'", "also a username or password"],
    ),
    ("redis://localhost?ssl_cert_reqs=none", ["'ssl_cert_reqs'", "rediss"]),
    ("redis+cluster://localhost?ssl_cert_reqs=none", ["'ssl_cert_reqs'", "rediss"]),
    ("rediss://localhost?ssl_cert_reqs=maybe", ["'ssl_cert_reqs'", '"required"']),
    ("rediss://localhost?ssl_check_hostname=maybe", ["'ssl_check_hostname'", "True or False"]),
    ("rediss://localhost?ssl_ca_certs=/missing.pem", ["'ssl_ca_certs'", "file"]),
    ({"url": "rediss://localhost", "ssl_ca_certs": 5}, ["'ssl_ca_certs'", "file"]),
    ({"url": "rediss://localhost", "ssl_ca_certs": __file__}, ["certificates", "cannot be used"]),
    ({"url": "rediss://localhost", "ssl_keyfile": __file__}, ["'ssl_keyfile'", "'ssl_certfile'"]),
    ({"url": "rediss://localhost", "ssl_certfile": __file__}, ["certificates", "cannot be used"]),
    ({"class": "nowhere.at_all.Broker"}, ["nowhere.at_all.Broker", "cannot be imported"]),
    ({"class": "Broker"}, ["Broker", "cannot be imported"]),
    ({"class": "django_websocket.pubsub.memory.Nothing"}, ["Nothing", "cannot be imported"]),
    ({"url": "memory://", "encryption_keys": "one"}, ["'encryption_keys'", "list"]),
    ({"url": "memory://", "encryption_keys": []}, ["'encryption_keys'", "list"]),
    ({"url": "memory://", "encryption_keys": None}, ["'encryption_keys'", "list"]),
    ({"url": "memory://", "encryption_keys": [b"1" * 32]}, ["'encryption_keys'", "list"]),
    ({"url": "memory://", "encryption_keys": ["1" * 32, "2" * 31]}, ["'encryption_keys'", "32 characters", "python"]),
]


@pytest.mark.parametrize(("broker", "words"), BROKER_MISTAKES, ids=[written(broker) for broker, _ in BROKER_MISTAKES])
def test_a_mistake_in_the_broker_is_named(broker: Any, words: list[str]) -> None:
    with override_settings(WEBSOCKET_BROKER=broker):
        (message,) = check()
    assert message.id == "websocket.E004"
    assert "WEBSOCKET_BROKER" in message.msg
    for word in words:
        assert word in message.msg


@pytest.mark.parametrize(
    "broker",
    [
        "rediss://user:p4ssw0rd@localhost:port",
        "rediss://user:p4ssw0rd@localhost/one",
        "kafka://user:p4ssw0rd@localhost",
        "user:p4ssw0rd@localhost",
        # A character that should be percent-encoded, and is not, cuts the password in two.
        "redis://user:p4ssw0rd/p4ssw0rd@localhost",
        "redis://user:1/p4ssw0rd@localhost",
        "redis://user:1?p4ssw0rd=p4ssw0rd@localhost",
        "redis://user:1#p4ssw0rd@localhost",
        "redis://user:p4ssw0rd@p4ssw0rd@[::1",
        "redis://user:p4ssw0rd\u2100@localhost:0",
        "redis://user:p4ssw0rd@localhost?unknown=p4ssw0rd",
        {"url": "redis://localhost:0", "username": "user", "password": "p4ssw0rd"},
        {"url": "redis://localhost", "password": b"p4ssw0rd"},
        {"url": b"redis://user:p4ssw0rd@localhost"},
        {"url": "rediss://user:p4ssw0rd@localhost", "ssl_certfile": __file__, "ssl_password": "p4ssw0rd"},
        {"url": "memory://", "encryption_keys": ["p4ssw0rd"]},
        ["redis://user:p4ssw0rd@localhost"],
        b"redis://user:p4ssw0rd@localhost",
    ],
    ids=str,
)
def test_a_mistake_in_the_broker_is_named_without_its_password(broker: Any) -> None:
    with override_settings(WEBSOCKET_BROKER=broker):
        (message,) = check()
    assert "WEBSOCKET_BROKER" in message.msg
    assert "p4ssw0rd" not in message.msg
    assert not re.search(r"\buser\b", message.msg)


@pytest.mark.parametrize(
    "broker",
    [
        "memory://",
        "redis://",
        "REDIS://localhost",
        "redis://:secret@localhost:6379/0?prefix=site1:",
        "redis://[::1]:6379/1",
        "redis://%2f%3f%23%40%25:%2f%3f%23%40%25@localhost",
        "rediss://localhost?ssl_cert_reqs=none&ssl_check_hostname=false",
        "redis+sentinel://a,b:26380,[::1]/main/2?sentinel_password=secret",
        "rediss+sentinel://:secret@a/main",
        "redis+cluster://:secret@a:7000,b:7001/0",
        "rediss+cluster://a/",
        "unix:///run/redis.sock?db=1",
        "unix://user:secret@/run/redis.sock",
        {"url": "redis://localhost", "password": "/?#@%", "db": 1, "prefix": "site1:"},
        {"url": "redis://localhost", "password": None},  # as os.environ.get() may return it
        {"url": "redis://localhost", "credential_provider": UsernamePasswordCredentialProvider("me", "secret")},
        {"url": "memory://", "encryption_keys": ["1" * 32, "2" * 50]},
        {"class": "made_for_a_test.Broker"},
        {"class": "made_for_a_test.Broker", "url": "nats://localhost?subject=x", "token": "y"},
    ],
    ids=written,
)
def test_a_correct_broker_passes(module: types.ModuleType, broker: Any) -> None:
    module.Broker = Broker  # type: ignore[attr-defined]
    with override_settings(WEBSOCKET_BROKER=broker):
        assert check() == []
        assert "secret" not in repr(conf.current())


def test_encryption_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "django_websocket.pubsub.encryption", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography.fernet", None)
    with override_settings(WEBSOCKET_BROKER={"url": "memory://", "encryption_keys": ["1" * 32]}):
        (message,) = check()
    assert message.id == "websocket.E004"
    assert 'pip install "django-gevent-websocket[encryption]"' in message.msg


def test_a_missing_module_that_the_urlconf_imports_is_not_taken_for_the_urlconf(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "imports_too_much.py").write_text("import missing_elsewhere\nurlpatterns = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    with override_settings(WEBSOCKET_URLCONF="imports_too_much"), pytest.raises(ModuleNotFoundError) as raised:
        check()
    assert raised.value.name == "missing_elsewhere"


@pytest.mark.parametrize("name", ["Both", "OnlyAsync"])
def test_asynchronous_middleware_passes(module: types.ModuleType, name: str) -> None:
    with override_settings(MIDDLEWARE=[f"made_for_a_test.{name}", "django.middleware.common.CommonMiddleware"]):
        assert check() == []


@pytest.fixture
def policy() -> Iterator[type[Any]]:
    """A policy of somebody else, as uvloop has one."""

    class EventLoopPolicy(asyncio.DefaultEventLoopPolicy):
        pass

    former = asyncio.get_event_loop_policy()
    EventLoopPolicy.__module__, EventLoopPolicy.__qualname__ = "uvloop", "EventLoopPolicy"
    yield EventLoopPolicy
    asyncio.set_event_loop_policy(former)


def test_policy_whose_loops_make_all_clients_wait_is_named(policy: type[Any]) -> None:
    assert check() == []
    asyncio.set_event_loop_policy(policy())
    (message,) = check()
    assert isinstance(message, Warning)
    assert message.id == "websocket.W008"
    assert "uvloop.EventLoopPolicy" in message.msg


# --- views -----------------------------------------------------------------------------------------------------------


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("a page")


def forgotten(request: HttpRequest, websocket: WebSocket) -> None:
    """A view whose decorator was forgotten."""


@websocket
def decorated(request: HttpRequest, websocket: WebSocket) -> None:
    """A WebSocket view."""


def hides(view: Any) -> Any:
    """Decorate a view without functools.wraps(), so that nothing shows what was decorated."""

    def inner(request: HttpRequest) -> Any:
        return view(request)

    return inner


def takes_it(request: HttpRequest) -> None:
    request.META["wsgi.websocket"].receive()


def takes_it_elsewhere(request: HttpRequest) -> None:
    takes_it(request)


def passes_on(request: HttpRequest) -> Any:
    return decorated(request)


class TakesIt(View):
    def get(self, request: HttpRequest) -> None:
        def inner() -> None:
            request.META["wsgi.websocket"].receive()

        inner()


class Decorated(View):
    @method_decorator(websocket)
    def get(self, request: HttpRequest, websocket: WebSocket) -> None:
        """A WebSocket view."""


@method_decorator(websocket, name="dispatch")
class DecoratedWhole(View):
    """A WebSocket view."""


class Callable:
    def __call__(self, request: HttpRequest) -> None:
        takes_it(request)


WITHOUT_SOURCE: dict[str, Any] = {"__name__": "compiled"}
exec(compile("def takes_what(request): pass", "compiled.py", "exec"), WITHOUT_SOURCE)


def with_views(module: types.ModuleType, *views: Any) -> Any:
    """Override the settings with a WEBSOCKET_URLCONF that has these views."""
    module.urlpatterns = [path("x/", include([path("<slug:room>/", view) for view in views]))]  # type: ignore[attr-defined]
    return override_settings(WEBSOCKET_URLCONF=module.__name__)


@api_view(["GET"])
def api_page(request: Request) -> HttpResponse:
    return HttpResponse("a page")


@api_view(["GET"])
def api_takes_it(request: Request) -> HttpResponse:
    request.META["wsgi.websocket"].receive()
    return HttpResponse()


@dataclasses.dataclass
class Room:
    name: str

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(self.name)


def undecorated(request: HttpRequest, websocket: WebSocket, room: str) -> None:
    websocket.send(room)


@websocket  # type: ignore[arg-type]
def wrong(request: HttpRequest, room: str) -> None:
    """Take no WebSocket."""


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (undecorated, ["no @websocket above it"]),
        (wrong, ["second argument", "is room"]),
        (login_required(wrong), ["second argument", "is room"]),
    ],
    ids=["undecorated", "without the argument", "without the argument below a decorator"],
)
def test_a_view_with_the_wrong_arguments_gets_a_warning(module: types.ModuleType, view: Any, words: list[str]) -> None:
    with with_views(module, view):
        (message,) = check()
    assert (type(message), message.id) == (Warning, "websocket.W001")
    for word in words:
        assert word in message.msg


@pytest.mark.parametrize(
    "view",
    [
        page,
        forgotten,
        hides(decorated),
        functools.partial(page),
        TemplateView.as_view(),
        View.as_view(),
        APIView.as_view(),
        api_page,
        Room("lobby"),
    ],
    ids=written,
)
def test_a_view_that_does_not_take_a_websocket_gets_a_warning(module: types.ModuleType, view: Any) -> None:
    with with_views(module, view):
        (message,) = check()
    assert (type(message), message.id) == (Warning, "websocket.W001")
    assert "'<slug:room>/'" in message.msg
    assert "@websocket" in f"{message.msg} {message.hint}"


@pytest.mark.parametrize(
    "view",
    [
        decorated,
        takes_it,
        takes_it_elsewhere,
        functools.partial(takes_it),
        passes_on,
        TakesIt.as_view(),
        Decorated.as_view(),
        DecoratedWhole.as_view(),
        Callable(),
        functools.wraps(decorated)(hides(decorated)),
        WITHOUT_SOURCE["takes_what"],
        api_takes_it,
        *KINDS.values(),
    ],
    ids=written,
)
def test_a_view_that_takes_a_websocket_gets_no_warning(module: types.ModuleType, view: Any) -> None:
    with with_views(module, view):
        assert check() == []


def test_an_async_view_passes(module: types.ModuleType) -> None:
    async def view(request: HttpRequest) -> None:
        request.META["wsgi.websocket"]

    class AsyncView(View):
        async def get(self, request: HttpRequest) -> None:
            request.META["wsgi.websocket"]

    with with_views(module, view, AsyncView.as_view()):
        assert check() == []


def test_djangos_own_checks_of_urlconfs_cover_this_one(module: types.ModuleType) -> None:
    module.urlpatterns = [path("/slash/", decorated), path("class/", Decorated)]  # type: ignore[arg-type, attr-defined]
    with override_settings(WEBSOCKET_URLCONF=module.__name__):
        found = {message.id for message in check()}
    assert {"urls.W002", "urls.E009"} <= found


# --- origins and limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "id"),
    [
        ("null", "W002"),
        ("NULL", "W002"),
        ("*", "W003"),
        ("https://*.example.com", "W003"),
        ("example.com", "W003"),
        ("https://example.com/", "W003"),
        ("https://example.com/app", "W003"),
        ("", "W003"),
        ("file:///", "W003"),
        ("https://", "W003"),
        ("https://example.com:", "W003"),
        ("https://user@example.com", "W003"),
        ("https://müller.example", "W003"),  # a browser sends xn--mller-kva
        ("capacitor://*", "W003"),
    ],
)
def test_an_origin_of_every_site_or_of_none_gets_a_warning(module: types.ModuleType, origin: str, id: str) -> None:
    @websocket(origins=["https://fine.example", origin])
    def view(request: HttpRequest, websocket: WebSocket) -> None:
        """A view that is open to everybody."""

    with override_settings(WEBSOCKET_ALLOWED_ORIGINS=["https://fine.example", origin]):
        (message,) = check()
    assert (type(message), message.id) == (Warning, f"websocket.{id}")
    assert repr(origin).lower() in message.msg.lower()
    assert "WEBSOCKET_ALLOWED_ORIGINS" in message.msg
    with with_views(module, view):
        (message,) = check()
    assert message.id == f"websocket.{id}"
    assert "'<slug:room>/'" in message.msg


def test_correct_origins_pass() -> None:
    origins = ["https://example.com", "http://localhost:3000", "HTTPS://Example.com", "http://[::1]:80", "app://x"]
    origins += ["file://", "https://xn--mller-kva.example", "capacitor://localhost"]
    with override_settings(WEBSOCKET_ALLOWED_ORIGINS=origins):
        assert check() == []


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"MAX_MESSAGE_SIZE": 2_000_000}, ["MAX_MESSAGE_SIZE", "OUTBOX_SIZE"]),
        ({"OUTBOX_SIZE": 100_000}, ["MAX_MESSAGE_SIZE", "OUTBOX_SIZE"]),
        ({"SEND_BUFFER_SIZE": 2_000_000}, ["SEND_BUFFER_SIZE", "OUTBOX_SIZE"]),
        ({"MAX_MESSAGE_SIZE": 100_000_000, "OUTBOX_SIZE": 100_000_000}, ["MAX_MESSAGE_SIZE"]),
    ],
)
def test_limits_that_contradict_each_other_get_a_warning(settings: dict[str, int], names: list[str]) -> None:
    with override_settings(**{f"WEBSOCKET_{name}": value for name, value in settings.items()}):
        (message,) = check()
    assert (type(message), message.id) == (Warning, "websocket.W004")
    for name in names:
        assert f"WEBSOCKET_{name}" in message.msg


def test_a_large_message_size_of_one_view_gets_a_warning(module: types.ModuleType) -> None:
    @websocket(max_message_size=100_000_000)
    def view(request: HttpRequest, websocket: WebSocket) -> None:
        """A view for large files."""

    with with_views(module, view):
        (message,) = check()
    assert message.id == "websocket.W004"
    assert "max_message_size" in message.msg


def test_settings_that_conflict_with_gunicorns_get_a_warning() -> None:
    def found(workers: int = 1, longest_drain: float = 14.0, **settings: Any) -> list[str | None]:
        with override_settings(**settings):
            return [message.id for message in check_worker(conf.current(), workers, longest_drain)]

    assert found() == []
    assert found(workers=2) == ["websocket.W006"]
    assert found(workers=2, SILENCED_SYSTEM_CHECKS=["websocket.W006"]) == []
    assert found(workers=2, WEBSOCKET_BROKER={"url": "memory://"}) == ["websocket.W006"]
    assert found(workers=2, WEBSOCKET_BROKER="redis://localhost") == []
    assert found(WEBSOCKET_DRAIN_WINDOW=15.0) == ["websocket.W004"]


# --- database drivers ------------------------------------------------------------------------------------------------


@pytest.fixture
def use_driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the project a database that uses a module as its driver."""

    def use(driver: types.ModuleType) -> None:
        base = types.ModuleType("made_for_a_test.base")
        base.DatabaseWrapper = type("DatabaseWrapper", (), {"Database": driver})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "made_for_a_test", types.ModuleType("made_for_a_test"))
        monkeypatch.setitem(sys.modules, "made_for_a_test.base", base)
        monkeypatch.setitem(connections.settings, "made", {"ENGINE": "made_for_a_test"})

    return use


def driver(name: str, **attributes: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(attributes)
    return made


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (driver("MySQLdb"), ["PyMySQL", "install_as_MySQLdb"]),
        (driver("cx_Oracle"), ["oracledb"]),
        (driver("oracledb", is_thin_mode=lambda: False), ["thin mode"]),
        (driver("pyodbc"), ["short"]),
    ],
)
def test_a_driver_that_blocks_gets_a_warning(use_driver: Any, module: types.ModuleType, words: list[str]) -> None:
    use_driver(module)
    (message,) = check()
    assert (type(message), message.id) == (Warning, "websocket.W005")
    assert f'The database "made" uses {module.__name__}, which blocks' in message.msg
    for word in words:
        assert word in (message.hint or "")


@pytest.mark.parametrize(
    "module", [driver("pymysql"), driver("oracledb", is_thin_mode=lambda: True), driver("sqlite3"), driver("else")]
)
def test_a_driver_that_does_not_block_gets_no_warning(use_driver: Any, module: types.ModuleType) -> None:
    use_driver(module)
    assert check() == []


def test_a_missing_engine_is_left_to_django(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings, "made", {"ENGINE": "nowhere.at_all"})
    assert check() == []


def test_psycopg2_gets_a_warning_where_nothing_makes_it_cooperate(
    use_driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    psycopg2 = pytest.importorskip("psycopg2")
    from psycopg2.extensions import set_wait_callback

    use_driver(psycopg2)
    assert check() == []  # psycogreen is installed, and the server may call it
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    (message,) = check()
    assert message.id == "websocket.W005"
    assert "psycopg 3" in (message.hint or "")
    set_wait_callback(lambda connection: None)
    try:
        assert check() == []
    finally:
        set_wait_callback(None)


# --- when a server starts --------------------------------------------------------------------------------------------


def warnings(server: Server) -> list[str]:
    """Return the ids of the checks in the log."""
    return re.findall(r"\((websocket\.W\d+)\)$", server.log, re.MULTILINE)


def test_server_logs_at_its_start_the_warnings_that_are_not_silenced(start_site: StartSite) -> None:
    settings: dict[str, Any] = {
        "WEBSOCKET_ALLOWED_ORIGINS": ["*"],
        "WEBSOCKET_SEND_BUFFER_SIZE": 2_000_000,
        "SILENCED_SYSTEM_CHECKS": ["websocket.W004"],
    }
    with start_site(settings, args=["--workers", "2"]) as server:  # each worker logs them
        assert eventually(lambda: sorted(warnings(server)) == ["websocket.W003"] * 2 + ["websocket.W006"] * 2)
        assert "WEBSOCKET_ALLOWED_ORIGINS has '*'" in server.log
        assert "There are 2 workers" in server.log


@pytest.mark.parametrize("cooperates", [False, True])
def test_psycopg2_blocks_exactly_where_the_server_warns_about_it(
    start_site: StartSite, postgres: Server, database: Database, raw: Any, tmp_path: Path, cooperates: bool
) -> None:
    (documented,) = [block.code for block in blocks("docs/deployment.md") if "psycogreen" in block.code]
    (tmp_path / "gunicorn.conf.py").write_text(documented if cooperates else "")
    settings = {"DATABASES": {"default": settings_of(postgres, "psycopg2")}}
    args: list[str | Path] = ["-c", tmp_path / "gunicorn.conf.py"]
    with start_site(settings, args=args, env={"TESTSITE_WITHOUT": "psycopg"}) as server:
        assert warnings(server) == ([] if cooperates else ["websocket.W005"])
        slow: RawClient = raw(server)
        slow.open(f"/queries/sleeps/?seconds={60 if cooperates else 4}")
        assert slow.frame().text == "begins"
        assert eventually(lambda: database.asleep("psycopg2") == 1)
        begin = time.monotonic()
        other: RawClient = raw(server)
        other.open("/echo/", behind=frame("hello"))
        assert other.frame().text == "hello"
        if cooperates:
            database.terminate("psycopg2")
            assert slow.closing()[0] == 1011
        else:
            assert time.monotonic() - begin > 0.5

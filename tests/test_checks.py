"""Mistakes in the settings: named, with the remedy, by the system checks and by the application at its start."""

from __future__ import annotations

import re
import sys
import types
from typing import Any

import pytest
from django.core.checks import Error, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from redis.credentials import UsernamePasswordCredentialProvider

from django_websocket import conf
from django_websocket.checks import check
from django_websocket.wsgi import get_wsgi_websocket_application


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
    return made


def test_the_site_of_these_tests_is_without_fault() -> None:
    assert check() == []


@pytest.mark.parametrize(
    ("settings", "id", "words"),
    [
        ({"WEBSOCKET_PING_INTERVAL": "soon"}, "E001", ["WEBSOCKET_PING_INTERVAL", "soon", "number"]),
        ({"WEBSOCKET_ALLOWED_ORIGINS": "https://example.com"}, "E001", ["WEBSOCKET_ALLOWED_ORIGINS", "list"]),
        ({"WEBSOCKET_URLCONF": ""}, "E002", ["WEBSOCKET_URLCONF is not set", "websocket_urls"]),
        ({"WEBSOCKET_URLCONF": "nowhere.at_all"}, "E003", ["no such module", "nowhere/at_all.py"]),
        ({"WEBSOCKET_URLCONF": "made_for_a_test"}, "E003", ["made_for_a_test", "patterns"]),
        ({"WEBSOCKET_BROKER": "kafka://localhost"}, "E004", ["kafka://", "redis://", "memory://"]),
        ({"WEBSOCKET_SERVER": "https://example.com"}, "E005", ["https://example.com", "wss://host/prefix"]),
        ({"MIDDLEWARE": ["made_for_a_test.OnlyAsync"]}, "E006", ["made_for_a_test.OnlyAsync", "async"]),
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
    ("redis://localhost/first", ["'db'", "number"]),
    ("redis://localhost?db=-1", ["'db'", "number"]),
    ({"url": "redis://localhost", "db": True}, ["'db'", "number"]),
    ({"url": "redis://localhost", "credential_provider": "me"}, ["'credential_provider'", "redis-py"]),
    ("redis://localhost?ssl_cert_reqs=none", ["'ssl_cert_reqs'", "rediss"]),
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
    ({"url": "memory://", "encryption_keys": [b"1" * 32]}, ["'encryption_keys'", "list"]),
    ({"url": "memory://", "encryption_keys": ["1" * 32, "2" * 31]}, ["'encryption_keys'", "32 characters", "python"]),
]


@pytest.mark.parametrize(("broker", "words"), BROKER_MISTAKES, ids=[str(broker) for broker, _ in BROKER_MISTAKES])
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
        # What has to be percent-encoded, and is not, cuts the password in two.
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
        "unix:///run/redis.sock?db=1",
        "unix://user:secret@/run/redis.sock",
        {"url": "redis://localhost", "password": "/?#@%", "db": 1, "prefix": "site1:"},
        {"url": "redis://localhost", "credential_provider": UsernamePasswordCredentialProvider("me", "secret")},
        {"url": "memory://", "encryption_keys": ["1" * 32, "2" * 50]},
        {"class": "made_for_a_test.Broker"},
        {"class": "made_for_a_test.Broker", "url": "nats://localhost?subject=x", "token": "y"},
    ],
    ids=str,
)
def test_a_broker_without_fault(module: types.ModuleType, broker: Any) -> None:
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


def test_a_module_that_the_urlconf_imports_and_that_is_missing_is_not_taken_for_the_urlconf(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "imports_too_much.py").write_text("import missing_elsewhere\nurlpatterns = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    with override_settings(WEBSOCKET_URLCONF="imports_too_much"), pytest.raises(ModuleNotFoundError) as raised:
        check()
    assert raised.value.name == "missing_elsewhere"


def test_middleware_that_is_sync_and_async_is_fine(module: types.ModuleType) -> None:
    with override_settings(MIDDLEWARE=["made_for_a_test.Both", "django.middleware.common.CommonMiddleware"]):
        assert check() == []

"""Mistakes in the settings: named, with the remedy, by the system checks and by the application at its start."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from django.core.checks import Error, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_websocket.checks import check
from django_websocket.wsgi import get_wsgi_websocket_application


class OnlyAsync:
    sync_capable = False
    async_capable = True


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
        ({"WEBSOCKET_BROKER": "kafka://localhost"}, "E004", ["kafka://localhost", "redis://", "memory://"]),
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

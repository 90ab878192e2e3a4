"""The settings: they have the documented defaults, and an error names a wrong value."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_websocket import conf
from django_websocket.conf import Settings
from django_websocket.decorators import Options
from django_websocket.protocol.deflate import Compression
from django_websocket.transport.limits import Limits

MIB = 1024 * 1024

DEFAULTS = {
    "URLCONF": "",
    "SERVER": "",
    "BROKER": "memory://",
    "ALLOWED_ORIGINS": (),
    "MAX_MESSAGE_SIZE": MIB,
    "INBOX_MESSAGES": 16,
    "INBOX_SIZE": MIB,
    "OUTBOX_SIZE": MIB,
    "SEND_BUFFER_SIZE": 64 * 1024,
    "SEND_TIMEOUT": 20,
    "HANDSHAKE_TIMEOUT": 10,
    "PING_INTERVAL": 20,
    "PING_TIMEOUT": 20,
    "CLOSE_TIMEOUT": 5,
    "DRAIN_WINDOW": 2,
    "MAX_CONNECTIONS_PER_USER": None,
    "COMPRESSION": True,
    "HEALTH": False,
}
NUMBERS = [name for name, value in DEFAULTS.items() if isinstance(value, int) and not isinstance(value, bool)]
SIZES = ["MAX_MESSAGE_SIZE", "INBOX_MESSAGES", "INBOX_SIZE", "OUTBOX_SIZE", "SEND_BUFFER_SIZE"]
TIMES = [name for name in NUMBERS if name not in SIZES]
STRINGS = ["URLCONF", "SERVER", "BROKER"]


def value_of(name: str) -> Any:
    return getattr(conf.current(), name.lower())


@pytest.mark.parametrize("name, default", DEFAULTS.items())
def test_default(name: str, default: Any) -> None:
    assert getattr(Settings(), name.lower()) == default


def test_a_connection_without_settings_has_the_same_limits() -> None:
    assert Limits() == Settings().limits


def test_a_project_without_settings_has_the_defaults() -> None:
    with override_settings(WEBSOCKET_URLCONF="x"):
        for name in DEFAULTS:
            if hasattr(settings, f"WEBSOCKET_{name}"):
                delattr(settings, f"WEBSOCKET_{name}")
        assert conf.current() == Settings()


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_take_effect_and_are_forgotten_again(name: str) -> None:
    before = value_of(name)
    with override_settings(**{f"WEBSOCKET_{name}": 7}):
        assert value_of(name) == 7
        if name.lower() in Limits.__dataclass_fields__:
            assert getattr(conf.current().limits, name.lower()) == 7
    assert value_of(name) == before


@pytest.mark.parametrize("name", TIMES)
def test_times_may_be_fractions(name: str) -> None:
    with override_settings(**{f"WEBSOCKET_{name}": 0.5}):
        assert value_of(name) == 0.5


@pytest.mark.parametrize("name", STRINGS)
def test_strings_take_effect(name: str) -> None:
    with override_settings(**{f"WEBSOCKET_{name}": "something"}):
        assert value_of(name) == "something"


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_origins_may_be_any_collection(kind: type) -> None:
    with override_settings(WEBSOCKET_ALLOWED_ORIGINS=kind(["https://example.com"])):
        assert conf.current().allowed_origins == ("https://example.com",)
        assert "https://example.com" in conf.current().origins


def test_trusted_origins_of_csrf_count_too() -> None:
    with override_settings(WEBSOCKET_ALLOWED_ORIGINS=["https://a.example"]):
        conf.current().origins  # noqa: B018  # computed once, and again when the other setting changes
        with override_settings(CSRF_TRUSTED_ORIGINS=["https://b.example"]):
            assert {"https://a.example", "https://b.example"} <= conf.current().origins
        assert "https://b.example" not in conf.current().origins


@pytest.mark.parametrize("debug", [True, False])
def test_debug_is_djangos(debug: bool) -> None:
    with override_settings(DEBUG=debug):
        assert conf.current().debug is debug


@pytest.mark.parametrize(
    "value, wanted",
    [
        (True, Compression(takeover=False, window_bits=15, threshold=1024)),
        (False, None),
        ({}, Compression()),
        ({"takeover": True}, Compression(takeover=True)),
        ({"takeover": True, "window_bits": 9, "threshold": 0}, Compression(True, 9, 0)),
    ],
)
def test_compression_is_a_switch_or_a_dict_of_options(value: Any, wanted: Any) -> None:
    with override_settings(WEBSOCKET_COMPRESSION=value):
        assert conf.current().wanted_compression == wanted
        assert Options().wanted_compression() == wanted
        assert Options(compression=False).wanted_compression() is None
    assert conf.current().wanted_compression == Compression()


WRONG = [
    *((name, value) for name in NUMBERS for value in ("20", None, True, [1], 0, -1)),
    *((name, 1.5) for name in SIZES),
    *((name, value) for name in TIMES for value in (float("nan"), float("inf"))),
    *((name, value) for name in STRINGS for value in (None, 5, b"x", ["x"])),
    *(("ALLOWED_ORIGINS", value) for value in ("https://example.com", None, 5, [5], [None], {"a": 1}.values())),
    *(("COMPRESSION", value) for value in (None, 1, "on", ["takeover"], {"level": 9}, {1: 2})),
    *(("COMPRESSION", {"takeover": value}) for value in (None, 1, "yes")),
    *(("COMPRESSION", {"window_bits": value}) for value in (8, 16, True, 10.0, "10", None)),
    *(("COMPRESSION", {"threshold": value}) for value in (-1, 1.5, True, "1024", None)),
]


@pytest.mark.parametrize("name, value", WRONG)
def test_the_error_about_a_wrong_value_names_its_setting(name: str, value: Any) -> None:
    with (
        override_settings(**{f"WEBSOCKET_{name}": value}),
        pytest.raises(ImproperlyConfigured, match=rf"\bWEBSOCKET_{name}\b"),
    ):
        conf.current()
    conf.current()


def test_the_error_about_a_missing_urlconf_says_what_to_do() -> None:
    with override_settings(WEBSOCKET_URLCONF=""), pytest.raises(ImproperlyConfigured, match="WEBSOCKET_URLCONF = "):
        conf.current().required_urlconf()
    with override_settings(WEBSOCKET_URLCONF="a.b"):
        assert conf.current().required_urlconf() == "a.b"


def test_settings_cannot_be_changed_by_accident() -> None:
    with pytest.raises(AttributeError):
        conf.current().server = "x"  # type: ignore[misc]


def test_the_options_of_a_view_replace_the_settings_of_the_project() -> None:
    with override_settings(WEBSOCKET_MAX_MESSAGE_SIZE=1000, WEBSOCKET_PING_INTERVAL=7):
        assert Options().limits() is conf.current().limits
        limits = Options(max_message_size=5000).limits()
        assert (limits.max_message_size, limits.ping_interval) == (5000, 7)
        assert conf.current().limits.max_message_size == 1000

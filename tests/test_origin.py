"""Which sites' pages may open a WebSocket: scheme, host and port exactly, and no lookalikes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

import gevent
import pytest
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest
from django.test import RequestFactory, override_settings

from django_websocket.checks import check_origins
from django_websocket.handler.origin import origin_is_allowed

from .support.waiting import until


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with override_settings(
        ALLOWED_HOSTS=["example.com", ".example.org", "127.0.0.1", "[::1]"],
        WEBSOCKET_ALLOWED_ORIGINS=["https://friend.example", "http://friend.example:8000"],
        CSRF_TRUSTED_ORIGINS=["https://trusted.example", "https://*.wild.example"],
        DEBUG=False,
    ):
        yield


def request(origin: str | None, host: str = "example.com", *, secure: bool = False, **extra: Any) -> HttpRequest:
    if origin is not None:
        extra["HTTP_ORIGIN"] = origin
    return RequestFactory().get("/chat/", secure=secure, HTTP_HOST=host, **extra)


def test_a_program_that_sends_no_origin_is_allowed() -> None:
    assert origin_is_allowed(request(None))


@pytest.mark.parametrize(
    "origin, host, secure",
    [
        ("http://example.com", "example.com", False),
        ("https://example.com", "example.com", True),
        ("http://example.com:8000", "example.com:8000", False),
        ("http://sub.example.org", "sub.example.org", False),
        ("http://127.0.0.1:8001", "127.0.0.1:8001", False),
        ("http://[::1]:8001", "[::1]:8001", False),
        ("http://[::1]", "[::1]", False),
        # the default port may be given or left out
        ("http://example.com:80", "example.com", False),
        ("http://example.com", "example.com:80", False),
        ("https://example.com:443", "example.com", True),
        ("https://example.com", "example.com:443", True),
        # host names and schemes are case-insensitive
        ("http://EXAMPLE.com", "example.com", False),
        ("HTTP://example.com", "example.com", False),
        ("http://example.com", "Example.COM", False),
        # origins that the settings allow
        ("https://friend.example", "example.com", False),
        ("https://friend.example:443", "example.com", False),
        ("https://FRIEND.example", "example.com", False),
        ("http://friend.example:8000", "example.com", True),
        ("https://trusted.example", "example.com", False),
    ],
)
def test_origin_is_allowed(origin: str, host: str, secure: bool) -> None:
    assert origin_is_allowed(request(origin, host, secure=secure))


REFUSED = [
    "https://evil.example",
    "null",
    "",
    " ",
    "*",
    "example.com",
    "//example.com",
    "http://",
    # another scheme
    "https://example.com",
    "http://friend.example",
    "ws://example.com",
    "ftp://example.com",
    "file://",
    "javascript://example.com",
    "chrome-extension://example.com",
    # another port
    "http://example.com:8000",
    "http://example.com:81",
    "http://example.com:443",
    "http://example.com:080",
    "http://example.com:",
    "http://example.com:8o",
    "http://example.com:800000",
    "https://friend.example:8000",
    "http://friend.example:8001",
    # lookalikes
    "http://example.com.evil.example",
    "http://evil-example.com",
    "http://evilexample.com",
    "http://sub.example.com",
    "http://example.co",
    "http://example.comm",
    "http://example.com.",
    "http://xexample.com",
    "https://sub.friend.example",
    "https://friend.example.evil.example",
    "https://trusted.example.evil.example",
    "https://a.wild.example",
    "https://*.wild.example.evil.example",
    # user information, paths and the like
    "http://example.com@evil.example",
    "http://evil.example@example.com",
    "http://user:password@example.com",
    "http://example.com:80@evil.example",
    "http://evil.example#example.com",
    "http://evil.example?http://example.com",
    "http://evil.example/http://example.com",
    "http://example.com/",
    "http://example.com/path",
    "http://example.com?",
    "http://example.com#",
    "http://example.com\\@evil.example",
    "http://evil.example\\.example.com",
    # two origins: the server joins headers of the same name
    "http://example.com,http://example.com",
    "http://example.com, https://evil.example",
    "https://evil.example, http://example.com",
    "http://example.com https://evil.example",
    # bytes that no origin may contain
    " http://example.com",
    "http://example.com ",
    "http://example.com\t",
    "http://example.com\n",
    "http://example.com\r\nX: y",
    "http://example.com\x00",
    "http://ex\u00e4mple.com",
    "http://example\u3002com",
    "http://[::1",
    "http://::1",
]


@pytest.mark.parametrize("origin", REFUSED)
def test_origin_is_refused(origin: str) -> None:
    assert not origin_is_allowed(request(origin))


@pytest.mark.parametrize(
    "origin, host",
    [
        ("http://example.com", "sub.example.org"),
        ("http://example.org", "sub.example.org"),
        ("http://other.example.org", "sub.example.org"),
        ("http://127.0.0.1:8000", "127.0.0.1:8001"),
        ("http://localhost:8001", "127.0.0.1:8001"),
        ("http://[::1]:8000", "[::1]:8001"),
        ("http://[::2]", "[::1]"),
    ],
)
def test_another_host_of_the_same_site_is_refused(origin: str, host: str) -> None:
    assert not origin_is_allowed(request(origin, host))


def test_every_refusal_is_logged_on_one_line_that_names_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="django_websocket"):
        assert not origin_is_allowed(request("http://evil.example\r\nforged line\x1b[2J\u2028"))
        until(lambda: caplog.records)
    (record,) = caplog.records
    line = record.getMessage()
    assert "WEBSOCKET_ALLOWED_ORIGINS" in line and "evil.example" in line
    assert line.isprintable()
    caplog.clear()
    evil = RequestFactory().get("/a%0Aforged", HTTP_HOST="example.com", HTTP_ORIGIN="null")
    assert not origin_is_allowed(evil)
    until(lambda: caplog.records)
    assert caplog.records[0].getMessage().isprintable()
    assert "secret" not in caplog.text


def test_allowed_requests_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="django_websocket"):
        assert origin_is_allowed(request("http://example.com"))
        assert origin_is_allowed(request(None))
        gevent.sleep(0)
    assert not caplog.records


@pytest.mark.parametrize("origin", [None, "http://evil.example", "http://example.com"])
def test_a_host_outside_allowed_hosts_is_refused_whatever_the_origin(origin: str | None) -> None:
    with pytest.raises(DisallowedHost):
        origin_is_allowed(request(origin, "evil.example"))


@pytest.mark.parametrize(
    "origin",
    [
        "file://",
        "capacitor://localhost",
        "ionic://localhost",
        "tauri://localhost",
        "app://.",
        "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
        "moz-extension://2c127fa4-62c7-7e4f-90e5-472b45eecfdc",
        "safari-web-extension://9D2F2A4B-8A6F-4B0E-9C62-0C0E8A5B7A11",
        "vscode-webview://0A1b2C",
    ],
)
def test_pages_of_apps_and_extensions_may_be_allowed(origin: str) -> None:
    assert not origin_is_allowed(request(origin))
    with override_settings(WEBSOCKET_ALLOWED_ORIGINS=[origin]):
        assert not list(check_origins("the origins", [origin]))
        assert origin_is_allowed(request(origin))
        assert not origin_is_allowed(request(f"{origin}x"))
    assert origin_is_allowed(request(origin), [origin])


# --- DEBUG ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["http://example.com:8000", "http://example.com", "http://EXAMPLE.com:9999"])
def test_with_debug_any_port_of_the_same_host_is_allowed(origin: str) -> None:
    assert not origin_is_allowed(request(origin, "example.com:8001"))
    with override_settings(DEBUG=True):
        assert origin_is_allowed(request(origin, "example.com:8001"))


@pytest.mark.parametrize("host", ["127.0.0.1:8001", "[::1]:8001"])
def test_with_debug_any_port_of_an_ip_address_is_allowed(host: str) -> None:
    with override_settings(DEBUG=True):
        assert origin_is_allowed(request(f"http://{host[:-1]}0", host))


LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]


@pytest.mark.parametrize("page", LOOPBACK)
@pytest.mark.parametrize("socket", LOOPBACK)
def test_with_debug_the_names_of_this_machine_are_one_host(page: str, socket: str) -> None:
    foreign = request(f"http://{page}:8000", f"{socket}:8001")
    with override_settings(ALLOWED_HOSTS=LOOPBACK):
        assert not origin_is_allowed(foreign)
    with override_settings(DEBUG=True, ALLOWED_HOSTS=LOOPBACK):
        assert origin_is_allowed(foreign)


@pytest.mark.parametrize(
    ("page", "socket"),
    [
        ("localhost", "example.com"),
        ("example.com", "localhost"),
        ("localhost.evil.example", "localhost"),
        ("127.0.0.2", "127.0.0.1"),
        ("0.0.0.0", "localhost"),
    ],
)
def test_with_debug_other_names_are_not_of_this_machine(page: str, socket: str) -> None:
    with override_settings(DEBUG=True, ALLOWED_HOSTS=["*"]):
        assert not origin_is_allowed(request(f"http://{page}:8000", f"{socket}:8001"))


OWN_HOST = re.compile(r"https?://example\.com(:[0-9]{1,5})?")


@pytest.mark.parametrize("origin", [origin for origin in REFUSED if not OWN_HOST.fullmatch(origin)])
def test_with_debug_other_hosts_are_still_refused(origin: str) -> None:
    with override_settings(DEBUG=True):
        assert not origin_is_allowed(request(origin))


# --- origins that a view allows ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", [["https://partner.example"], ("https://partner.example:443",), ["https://Partner.Example"]]
)
def test_a_view_may_allow_further_origins(more: Sequence[str]) -> None:
    assert not origin_is_allowed(request("https://partner.example"))
    assert origin_is_allowed(request("https://partner.example"), more)
    assert origin_is_allowed(request("https://partner.example:443"), more)
    assert origin_is_allowed(request("http://example.com"), more)
    for origin in (
        "http://partner.example",
        "https://partner.example:8000",
        "https://partner.example.evil.example",
        "null",
    ):
        assert not origin_is_allowed(request(origin), more)


@pytest.mark.parametrize("setting", ["WEBSOCKET_ALLOWED_ORIGINS", "CSRF_TRUSTED_ORIGINS"])
def test_origins_in_settings_may_have_capitals_and_default_ports(setting: str) -> None:
    with override_settings(**{setting: ["https://Written.Example:443", "http://with.example:80"]}):
        assert origin_is_allowed(request("https://written.example"))
        assert origin_is_allowed(request("http://with.example"))
        assert not origin_is_allowed(request("http://written.example"))


def test_the_scheme_is_taken_from_a_trusted_proxy() -> None:
    forwarded = request("https://example.com", HTTP_X_FORWARDED_PROTO="https")
    assert not origin_is_allowed(forwarded)
    with override_settings(SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https")):
        forwarded = request("https://example.com", HTTP_X_FORWARDED_PROTO="https")
        assert origin_is_allowed(forwarded)
        assert not origin_is_allowed(request("http://example.com", HTTP_X_FORWARDED_PROTO="https"))

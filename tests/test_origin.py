"""Which sites' pages may open a WebSocket: scheme, host and port exactly, and nothing that only looks alike."""

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
        # the default port may be said or left out
        ("http://example.com:80", "example.com", False),
        ("http://example.com", "example.com:80", False),
        ("https://example.com:443", "example.com", True),
        ("https://example.com", "example.com:443", True),
        # host names and schemes have no case
        ("http://EXAMPLE.com", "example.com", False),
        ("HTTP://example.com", "example.com", False),
        ("http://example.com", "Example.COM", False),
        # friends of the project
        ("https://friend.example", "example.com", False),
        ("https://friend.example:443", "example.com", False),
        ("https://FRIEND.example", "example.com", False),
        ("http://friend.example:8000", "example.com", True),
        ("https://trusted.example", "example.com", False),
    ],
)
def test_allowed(origin: str, host: str, secure: bool) -> None:
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
    # what only looks alike
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
    # two of them: the server joins headers of one name
    "http://example.com,http://example.com",
    "http://example.com, https://evil.example",
    "https://evil.example, http://example.com",
    "http://example.com https://evil.example",
    # bytes that have no place there
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
def test_refused(origin: str) -> None:
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


def test_every_refusal_is_logged_on_one_line_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
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


def test_what_is_allowed_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="django_websocket"):
        assert origin_is_allowed(request("http://example.com"))
        assert origin_is_allowed(request(None))
        gevent.sleep(0)
    assert not caplog.records


@pytest.mark.parametrize("origin", [None, "http://evil.example", "http://example.com"])
def test_a_host_that_django_does_not_know_is_refused_whatever_the_origin_says(origin: str | None) -> None:
    with pytest.raises(DisallowedHost):
        origin_is_allowed(request(origin, "evil.example"))


# --- DEBUG ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["http://example.com:8000", "http://example.com", "http://EXAMPLE.com:9999"])
def test_with_debug_any_port_of_the_own_host_is_allowed(origin: str) -> None:
    assert not origin_is_allowed(request(origin, "example.com:8001"))
    with override_settings(DEBUG=True):
        assert origin_is_allowed(request(origin, "example.com:8001"))


@pytest.mark.parametrize("host", ["127.0.0.1:8001", "[::1]:8001"])
def test_with_debug_addresses_have_any_port_too(host: str) -> None:
    with override_settings(DEBUG=True):
        assert origin_is_allowed(request(f"http://{host[:-1]}0", host))


OWN_HOST = re.compile(r"https?://example\.com(:[0-9]{1,5})?")


@pytest.mark.parametrize("origin", [origin for origin in REFUSED if not OWN_HOST.fullmatch(origin)])
def test_with_debug_other_hosts_are_still_refused(origin: str) -> None:
    with override_settings(DEBUG=True):
        assert not origin_is_allowed(request(origin))


# --- the view's own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", [["https://partner.example"], ("https://partner.example:443",), ["https://Partner.Example"]]
)
def test_a_view_may_allow_more(more: Sequence[str]) -> None:
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
def test_what_the_project_writes_in_capitals_or_with_a_port_is_meant(setting: str) -> None:
    with override_settings(**{setting: ["https://Written.Example:443", "http://with.example:80"]}):
        assert origin_is_allowed(request("https://written.example"))
        assert origin_is_allowed(request("http://with.example"))
        assert not origin_is_allowed(request("http://written.example"))


def test_the_scheme_is_that_of_the_browser_where_a_proxy_says_so() -> None:
    forwarded = request("https://example.com", HTTP_X_FORWARDED_PROTO="https")
    assert not origin_is_allowed(forwarded)
    with override_settings(SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https")):
        forwarded = request("https://example.com", HTTP_X_FORWARDED_PROTO="https")
        assert origin_is_allowed(forwarded)
        assert not origin_is_allowed(request("http://example.com", HTTP_X_FORWARDED_PROTO="https"))

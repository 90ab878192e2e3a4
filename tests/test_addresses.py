"""The addresses of WebSockets in pages: `websocket_url` in Python and in templates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import DisallowedHost, ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.template import Context, RequestContext, Template, engines
from django.test import RequestFactory, override_settings
from django.urls import NoReverseMatch, include, path, set_script_prefix

from django_websocket import addresses, apps
from django_websocket.addresses import websocket_url


def view(request: HttpRequest, **kwargs: Any) -> HttpResponse:
    raise NotImplementedError


class urls:  # stands in for a module
    """The urlconf of the WebSockets."""

    rooms = ([path("<slug:room>/", view, name="room")], "rooms")
    urlpatterns = [
        path("chat/", view, name="chat"),
        path("chat/<slug:room>/", view, name="chat-room"),
        path("chat/<str:a>/<int:b>/", view, name="two"),
        path("any/<path:rest>", view, name="any"),
        path("rooms/", include(rooms)),
    ]


class pages:
    """The urlconf of the pages, whose names must not be found."""

    urlpatterns = [path("page/", view, name="page"), path("wrong/", view, name="chat")]


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with override_settings(
        WEBSOCKET_URLCONF="addresses_websockets",
        ROOT_URLCONF="addresses_pages",
        WEBSOCKET_SERVER="",
        ALLOWED_HOSTS=["testserver", "example.com", "[::1]", "127.0.0.1"],
    ):
        yield


@pytest.fixture(autouse=True)
def importable_urlconfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the urlconfs importable by name, as the settings want them, without files."""
    import sys

    monkeypatch.setitem(sys.modules, "addresses_websockets", urls)
    monkeypatch.setitem(sys.modules, "addresses_pages", pages)


def request(host: str = "testserver", *, secure: bool = False, **extra: Any) -> HttpRequest:
    return RequestFactory().get("/page/", secure=secure, HTTP_HOST=host, **extra)


# --- WEBSOCKET_SERVER -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "server, host, secure, expected",
    [
        ("", "testserver", False, "ws://testserver/chat/"),
        ("", "testserver", True, "wss://testserver/chat/"),
        ("", "testserver:8000", False, "ws://testserver:8000/chat/"),
        ("", "[::1]", False, "ws://[::1]/chat/"),
        ("", "[::1]:8000", False, "ws://[::1]:8000/chat/"),
        ("", "127.0.0.1:8000", False, "ws://127.0.0.1:8000/chat/"),
        (":8001", "testserver", False, "ws://testserver:8001/chat/"),
        (":8001", "testserver:8000", False, "ws://testserver:8001/chat/"),
        (":8001", "testserver:8000", True, "wss://testserver:8001/chat/"),
        (":8001", "[::1]", False, "ws://[::1]:8001/chat/"),
        (":8001", "[::1]:8000", False, "ws://[::1]:8001/chat/"),
        (":8001/prefix", "testserver", False, "ws://testserver:8001/prefix/chat/"),
        ("live.example.com", "testserver", False, "ws://live.example.com/chat/"),
        ("live.example.com", "testserver", True, "wss://live.example.com/chat/"),
        ("live.example.com:9000", "testserver:8000", False, "ws://live.example.com:9000/chat/"),
        ("live.example.com:9000/", "testserver", True, "wss://live.example.com:9000/chat/"),
        ("[2001:db8::1]:9000", "testserver", False, "ws://[2001:db8::1]:9000/chat/"),
        ("[2001:db8::1]", "testserver", False, "ws://[2001:db8::1]/chat/"),
        ("ws://live.example.com", "testserver", True, "ws://live.example.com/chat/"),
        ("wss://live.example.com", "testserver", False, "wss://live.example.com/chat/"),
        ("wss://live.example.com/", "testserver", False, "wss://live.example.com/chat/"),
        ("wss://live.example.com:443/prefix", "testserver", False, "wss://live.example.com:443/prefix/chat/"),
        ("wss://live.example.com/prefix/", "testserver", False, "wss://live.example.com/prefix/chat/"),
        ("wss://[::1]:9000/a/b", "testserver", False, "wss://[::1]:9000/a/b/chat/"),
    ],
)
def test_the_address_is_made_of_the_server_and_the_request(server: str, host: str, secure: bool, expected: str) -> None:
    with override_settings(WEBSOCKET_SERVER=server):
        assert websocket_url("chat", request=request(host, secure=secure)) == expected


@pytest.mark.parametrize(
    "server, expected",
    [
        ("live.example.com:9000", "ws://live.example.com:9000/chat/"),
        ("wss://live.example.com/prefix", "wss://live.example.com/prefix/chat/"),
        ("ws://127.0.0.1:8001", "ws://127.0.0.1:8001/chat/"),
    ],
)
def test_a_server_with_a_host_needs_no_request(server: str, expected: str) -> None:
    with override_settings(WEBSOCKET_SERVER=server):
        assert websocket_url("chat") == expected


@pytest.mark.parametrize("server", ["", ":8001", "/prefix"])
def test_without_a_request_a_server_without_a_host_is_an_error_that_says_what_to_do(server: str) -> None:
    with (
        override_settings(WEBSOCKET_SERVER=server),
        pytest.raises(ImproperlyConfigured, match="WEBSOCKET_SERVER") as error,
    ):
        websocket_url("chat")
    assert "request" in str(error.value)


@pytest.mark.parametrize(
    "server",
    [
        "http://live.example.com",
        "https://live.example.com",
        "ftp://x",
        "wss:/live.example.com",
        "wss://",
        "wss://:8001",
        "wss:///prefix",
        "://x",
        "//live.example.com",
        "user@live.example.com",
        "live.example.com:port",
        "live.example.com:",
        "live.example.com?x",
        "wss://live.example.com/#x",
        "live example.com",
        "live.example.com\nx",
        "javascript:alert(1)",
        '"><script>',
        "::1",
        "[::1",
    ],
)
def test_a_server_that_gives_no_address_is_an_error_that_names_the_setting(server: str) -> None:
    with (
        override_settings(WEBSOCKET_SERVER=server),
        pytest.raises(ImproperlyConfigured, match="WEBSOCKET_SERVER"),
    ):
        websocket_url("chat", request=request())


# --- the request ------------------------------------------------------------------------------------------------


def test_https_at_the_proxy_is_wss() -> None:
    forwarded = request(HTTP_X_FORWARDED_PROTO="https")
    assert websocket_url("chat", request=forwarded) == "ws://testserver/chat/"  # anybody can send this header
    with override_settings(SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https")):
        assert websocket_url("chat", request=forwarded) == "wss://testserver/chat/"
        assert websocket_url("chat", request=request(HTTP_X_FORWARDED_PROTO="http")) == "ws://testserver/chat/"


def test_the_proxys_host_counts_where_django_trusts_it() -> None:
    forwarded = request(HTTP_X_FORWARDED_HOST="example.com:8443")
    assert websocket_url("chat", request=forwarded) == "ws://testserver/chat/"
    with override_settings(USE_X_FORWARDED_HOST=True):
        assert websocket_url("chat", request=forwarded) == "ws://example.com:8443/chat/"


@pytest.mark.parametrize("server", ["", ":8001"])
@pytest.mark.parametrize(
    "host",
    ["evil.example", "testserver.evil.example", "testserver@evil.example", 'testserver"><script>', "[::2]:80", ""],
)
def test_a_host_that_django_does_not_know_is_never_reflected(server: str, host: str) -> None:
    with override_settings(WEBSOCKET_SERVER=server), pytest.raises(DisallowedHost):
        websocket_url("chat", request=request(host))


# --- names and arguments ----------------------------------------------------------------------------------------


def test_names_and_arguments_are_those_of_the_websockets_urlconf() -> None:
    page = request()
    assert websocket_url("chat-room", ["lobby"], request=page) == "ws://testserver/chat/lobby/"
    assert websocket_url("chat-room", kwargs={"room": "lobby"}, request=page) == "ws://testserver/chat/lobby/"
    assert websocket_url("two", ("x", 5), request=page) == "ws://testserver/chat/x/5/"
    assert websocket_url("rooms:room", kwargs={"room": "lobby"}, request=page) == "ws://testserver/rooms/lobby/"
    assert websocket_url("any", ["a b/\u00e9?#"], request=page) == "ws://testserver/any/a%20b/%C3%A9%3F%23"


@pytest.mark.parametrize(
    "name, args, kwargs",
    [
        ("page", None, None),  # the name of a page
        ("nowhere", None, None),
        ("chat", ["extra"], None),
        ("chat-room", None, None),
        ("chat-room", None, {"place": "lobby"}),
        ("chat-room", ["not a slug"], None),
        ("nowhere:room", None, None),
    ],
)
def test_a_name_that_does_not_resolve_is_djangos_error(
    name: str, args: list[Any] | None, kwargs: dict[str, Any] | None
) -> None:
    with pytest.raises(NoReverseMatch):
        websocket_url(name, args, kwargs, request=request())


def test_the_prefix_of_the_application_is_part_of_the_path() -> None:
    try:
        set_script_prefix("/app/")
        assert websocket_url("chat", request=request()) == "ws://testserver/app/chat/"
    finally:
        set_script_prefix("/")


def test_without_a_urlconf_the_error_names_the_setting() -> None:
    with (
        override_settings(WEBSOCKET_URLCONF=""),
        pytest.raises(ImproperlyConfigured, match="WEBSOCKET_URLCONF"),
    ):
        websocket_url("chat", request=request())


# --- the tag ----------------------------------------------------------------------------------------------------


def render(source: str, page: HttpRequest | None = None, **values: Any) -> str:
    template = Template("{% load websockets %}" + source)
    context = Context(values) if page is None else RequestContext(page, values)
    if page is not None:
        context["request"] = page
    return template.render(context)


@pytest.mark.parametrize(
    "tag, expected",
    [
        ("{% websocket_url 'chat' %}", "ws://testserver/chat/"),
        ("{% websocket_url 'chat-room' 'lobby' %}", "ws://testserver/chat/lobby/"),
        ("{% websocket_url 'chat-room' room='lobby' %}", "ws://testserver/chat/lobby/"),
        ("{% websocket_url 'chat-room' room=name %}", "ws://testserver/chat/cellar/"),
        ("{% websocket_url name_of_view name %}", "ws://testserver/chat/cellar/"),
        ("{% websocket_url 'two' 'x' 5 %}", "ws://testserver/chat/x/5/"),
        ("{% websocket_url 'two' b=5 a='x' %}", "ws://testserver/chat/x/5/"),
        ("{% websocket_url 'chat' as url %}[{{ url }}]", "[ws://testserver/chat/]"),
        ("{% websocket_url 'chat-room' room='lobby' as url %}[{{ url }}]", "[ws://testserver/chat/lobby/]"),
    ],
)
def test_the_tag_takes_what_djangos_url_takes(tag: str, expected: str) -> None:
    assert render(tag, request(), name="cellar", name_of_view="chat-room") == expected


def test_the_tag_is_wss_on_a_secure_page() -> None:
    assert render("{% websocket_url 'chat' %}", request(secure=True)) == "wss://testserver/chat/"


def test_the_tag_renders_nothing_that_ends_a_script() -> None:
    nasty = "</script><script>alert('\"&"
    rendered = render("{% websocket_url 'any' nasty %}", request(), nasty=nasty)
    assert not set("<>'\"") & set(rendered)


def test_the_tag_without_a_request_needs_a_server_with_a_host() -> None:
    with pytest.raises(ImproperlyConfigured, match="WEBSOCKET_SERVER"):
        render("{% websocket_url 'chat' %}")
    with override_settings(WEBSOCKET_SERVER="wss://live.example.com"):
        assert render("{% websocket_url 'chat' %}") == "wss://live.example.com/chat/"


def test_the_tag_says_which_name_does_not_resolve() -> None:
    with pytest.raises(NoReverseMatch, match="nowhere"):
        render("{% websocket_url 'nowhere' %}", request())
    with pytest.raises(NoReverseMatch):
        render("{% websocket_url 'nowhere' as url %}", request())


def test_the_tag_never_reflects_an_unknown_host() -> None:
    with pytest.raises(DisallowedHost):
        render("{% websocket_url 'chat' %}", request("evil.example"))


def test_the_tag_is_found_by_the_template_engine_of_projects() -> None:
    template = engines["django"].from_string("{% load websockets %}{% websocket_url 'chat' %}")
    assert template.render({}, request()) == "ws://testserver/chat/"


def test_begin_of_a_request_has_one_name() -> None:
    assert apps.BEGAN == addresses.BEGAN

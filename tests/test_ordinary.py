"""A WebSocket view works like an ordinary view: request, decorators, middleware, and WSGI wrappers around it all."""

from __future__ import annotations

import gzip
import http.client
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.messages import get_messages

from django_websocket.handler.request import WebSocketRequest

from .support.clients import RawClient, fetch, notes
from .support.clients import request as handshake
from .support.fixtures import STOCK_WORKER, Connect, Raw, StartSite
from .support.frames import frame
from .support.servers import WORKER as OUR_WORKER
from .support.servers import Server
from .support.waiting import eventually


@pytest.fixture(scope="module", params=[OUR_WORKER, STOCK_WORKER], ids=["ours", "stock"])
def full_site_on_either_worker(request: pytest.FixtureRequest, start_site: StartSite) -> Iterator[Server]:
    """The test site with many middleware classes, under either worker."""
    with start_full_site(start_site, request.param) as server:
        yield server


@pytest.fixture(scope="module")
def full_site(start_site: StartSite) -> Iterator[Server]:
    """The same site under our own worker."""
    with start_full_site(start_site, OUR_WORKER) as server:
        yield server


def start_full_site(start_site: StartSite, worker: str) -> Server:
    """The test site with many middleware classes in addition to its own."""
    from testsite import settings

    middleware = [
        "django.middleware.cache.UpdateCacheMiddleware",
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.http.ConditionalGetMiddleware",
        "django.middleware.security.SecurityMiddleware",
        "testsite.hooks.Outer",
        "testsite.hooks.both",
        *settings.MIDDLEWARE,
        "django.contrib.sites.middleware.CurrentSiteMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
        "testsite.hooks.local_time",
        "testsite.hooks.urlconf",
        "testsite.hooks.Inner",
        "django.middleware.cache.FetchFromCacheMiddleware",
    ]
    caches = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    return start_site({"MIDDLEWARE": middleware, "CACHES": caches, "USE_TZ": True}, worker=worker)


def log_in(server: Server) -> str:
    """Log a user in; return the cookie."""
    return f"sessionid={fetch(server.port, '/enter/').cookies['sessionid']}"


# --- the request -----------------------------------------------------------------------------------------------------


def test_request_is_like_that_of_a_page_and_stays_so(full_site_on_either_worker: Server, connect: Connect) -> None:
    full_site = full_site_on_either_worker
    path = "/ordinary/in/7/room-lobby/?zone=Asia/Tokyo"
    cookie = log_in(full_site)
    fetch(full_site.port, "/session/?colour=blue", {"Cookie": cookie})
    host = f"127.0.0.1:{full_site.port}"
    headers = {"Cookie": cookie, "Accept-Language": "de"}
    page = json.loads(fetch(full_site.port, path, {**headers, "Host": host}).body)
    assert page == {
        "address": "127.0.0.1",
        "cookies": ["sessionid"],
        "host": host,
        "kwargs": {"number": 7, "slug": "lobby"},
        "language": ["de", "de", "Montag"],
        "method": "GET",
        "names": [
            "ordinary:first:page",
            "page",
            ["ordinary", "first"],
            ["ordinary", "rooms"],
            "ordinary/in/<int:number>/room-<slug:slug>/",
        ],
        "page": ["/page/", "/ordinary/in/7/room-x/"],
        "path": path,
        "scheme": "http",
        "session": "blue",
        "site": ["example.com", "example.com"],
        "time": ["Asia/Tokyo", "09:00"],
        "token": 64,
        "user": ["ann", True],
    }
    client = connect(full_site, path, additional_headers=headers)
    other = connect(full_site, "/ordinary/in/8/room-x/")
    assert json.loads(client.recv()) == page
    stranger = json.loads(other.recv())
    assert (stranger["language"][0], stranger["time"][0], stranger["user"]) == ("en", "UTC", ["", False])
    for _ in range(2):  # the conversations take turns
        assert json.loads(client.ask("?")) == page
        assert json.loads(other.ask("?")) == stranger


@pytest.mark.parametrize("path", ["/ordinary/in/x/room-lobby/", "/ordinary/in/7/room-a%20b/", "/in/7/room-x/"])
def test_converters_and_includes_decide_which_paths_exist(full_site: Server, raw: Raw, path: str) -> None:
    client = raw(full_site)
    client.send(handshake(path))
    assert client.response().status == 404


@pytest.mark.parametrize(("host", "page"), [("localhost", "/page/"), ("testserver", "/other/")])
def test_reverse_uses_the_urlconf_that_middleware_has_set(full_site: Server, raw: Raw, host: str, page: str) -> None:
    client = raw(full_site)
    client.open("/ordinary/where/", {"Host": host})
    assert client.frame().text == page
    client.send(frame("?"))
    assert client.frame().text == page


def test_messages_for_the_user_pass_between_pages_and_websockets(full_site: Server, raw: Raw) -> None:
    left = fetch(full_site.port, "/ordinary/message/").cookies["messages"]
    response = raw(full_site).open("/ordinary/tells/", {"Cookie": f"messages={left}"})
    assert response.headers["x-messages"] == "from the page"
    page = fetch(full_site.port, "/ordinary/message/", {"Cookie": f"messages={response.cookies['messages']}"})
    assert page.body == b"from the WebSocket"


def test_messages_for_the_user_are_made_when_a_view_asks_for_them(full_site: Server, connect: Connect) -> None:
    """More than a KiB for each client that nobody would use."""
    left = fetch(full_site.port, "/ordinary/message/").cookies["messages"]
    client = connect(full_site, "/ordinary/tells-later/", additional_headers={"Cookie": f"messages={left}"})
    assert json.loads(client.ask("?")) == [False, "from the page"]
    assert json.loads(client.ask("?")) == [True, "from the page", "from the WebSocket"]


def test_handshake_without_the_middleware_has_neither_messages_nor_users() -> None:
    request = WebSocketRequest({"REQUEST_METHOD": "GET", "wsgi.input": io.BytesIO()})
    request.forget_unused()
    assert not hasattr(request, "auser") and not hasattr(request, "_messages") and [*get_messages(request)] == []


def test_csrf_cookie_of_the_handshake_is_valid_for_a_form(full_site: Server, raw: Raw) -> None:
    response = raw(full_site).open("/ordinary/changed/csrf-cookie/converse/")
    token = response.cookies["csrftoken"]
    assert post(full_site, "/ordinary/post/", {"Cookie": f"csrftoken={token}"}) == 403
    assert post(full_site, "/ordinary/post/", {"Cookie": f"csrftoken={token}", "X-CSRFToken": token}) == 200


def post(server: Server, path: str, headers: dict[str, str]) -> int:
    """Post a form; return the status of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("POST", path, headers={"Host": "localhost", **headers})
        return connection.getresponse().status
    finally:
        connection.close()


# --- class-based views -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["method", "dispatch", "named-method"])
def test_options_of_a_class_based_view_apply(site: Server, raw: Raw, where: str) -> None:
    client = raw(site)
    response = client.open(
        f"/ordinary/options/{where}/", {"Origin": "https://partner.example", "Sec-WebSocket-Protocol": "v1.example"}
    )
    assert response.headers["sec-websocket-protocol"] == "v1.example"
    client.send(frame("x" * 100), frame("x" * 101))
    assert client.frame().text == "x" * 100
    assert client.closing()[0] == 1009
    foreign = raw(site)
    foreign.send(handshake(f"/ordinary/options/{where}/", {"Origin": "https://evil.example"}))
    assert foreign.response().status == 403


# --- decorators ------------------------------------------------------------------------------------------------------

GUARDS = [  # the status for a stranger, and for a user without permissions
    ("login-above", 302, 101),
    ("login-below", 302, 101),
    ("permission-above", 302, 302),
    ("permission-below", 302, 302),
    ("permission-403-above", 403, 403),
    ("permission-403-below", 403, 403),
    ("test-above", 302, 101),
    ("test-below", 302, 101),
    ("class", 302, 101),
    ("mixin", 302, 101),
]


@pytest.mark.parametrize(("guard", "for_strangers", "for_users"), GUARDS)
def test_guards_of_ordinary_views_run_before_acceptance(
    site: Server, raw: Raw, guard: str, for_strangers: int, for_users: int
) -> None:
    for cookie, status in ((None, for_strangers), (log_in(site), for_users)):
        client = raw(site)
        client.send(handshake(f"/ordinary/guarded/{guard}/", {"Cookie": cookie}))
        response = client.response()
        assert response.status == status
        if status == 302:
            assert response.headers["location"] == f"/login/?next=/ordinary/guarded/{guard}/"
        if status == 101:
            assert client.frame().text == "hello ann"


CHANGES = {
    "never-cache": ("cache-control", "no-store"),
    "cache-control": ("cache-control", "private"),
    "vary": ("vary", "Cookie"),
    "frames": ("x-frame-options", "DENY"),
    "csrf-cookie": ("vary", "Cookie"),
    "gzip": ("vary", "Accept-Encoding"),
    "etag": ("etag", '"1"'),
    "cache-page": ("x-marked", ""),
    "get": ("x-marked", ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_decorators_that_change_the_response_get_one_however_the_view_ends(
    site: Server, raw: Raw, key: str, change: str
) -> None:
    begin = len(site.log)
    name, value = CHANGES[change]
    headers = {"Accept-Encoding": "gzip"}
    refused = raw(site)
    refused.send(handshake(f"/ordinary/changed/{change}/answer/", headers))
    response = refused.response()
    assert response.status == 404
    assert value in response.headers[name]
    assert (gzip.decompress(response.body) if change == "gzip" else response.body) == b"x" * 1000
    returned = raw(site).open(f"/ordinary/changed/{change}/return/", headers)
    if change != "gzip":  # an empty response is not compressed
        assert value in returned.headers[name]
    client = raw(site)
    client.open(f"/ordinary/changed/{change}/converse/?key={key}", headers, behind=frame("hello"))
    assert client.frame().text == "hello"
    client.sock.close()
    assert notes(site.port, key) == ["over"]
    assert "Traceback" not in site.log[begin:]
    raised = raw(site)
    raised.send(handshake(f"/ordinary/changed/{change}/refuse/"))
    assert raised.response().status == 403


def test_transaction_around_a_whole_view_is_an_error_that_explains_itself(site: Server, raw: Raw) -> None:
    client = raw(site)
    client.send(handshake("/ordinary/whole-in-atomic/"))
    assert client.response().status == 500
    assert eventually(lambda: "The WebSocket cannot be accepted inside a transaction" in site.log)


# --- middleware ------------------------------------------------------------------------------------------------------


def hooked(server: Server, raw: Raw, how: str, hooks: str, key: str) -> RawClient:
    client = raw(server)
    client.send(handshake(f"/ordinary/hooked/{how}/?hooks={hooks}&key={key}"))
    return client


def test_middleware_runs_in_its_order_around_the_handshake(full_site: Server, raw: Raw, key: str) -> None:
    client = hooked(full_site, raw, "accept", "note", key)
    response = client.response()
    assert response.status == 101
    for name in ("x-outer", "x-both", "x-inner"):
        assert response.headers[name] == "was here"
    client.send(frame("go"))
    assert client.closing()[0] == 1011
    assert notes(full_site.port, key, 7) == [
        "Outer: request",
        "Inner: request",
        "Outer: view hooked {'how': 'accept'}",
        "Inner: view hooked {'how': 'accept'}",
        "Inner: response 101",
        "Outer: response 101",
        "accepted",  # no hook sees the exception raised later: no request is left to answer
    ]


@pytest.mark.parametrize(
    ("how", "hooks", "status", "body", "noted"),
    [
        ("accept", "Outer-view", 409, b"answered by process_view", ["Outer: view hooked {'how': 'accept'}"]),
        ("raise", "note", 500, None, ["Inner: exception raised by the view", "Outer: exception raised by the view"]),
        ("raise", "Inner-exception", 418, b"answered: raised by the view", ["Inner: exception raised by the view"]),
        ("template", "note", 404, b"was here, was here, was here", ["Inner: template response"]),
        ("refuse", "note", 403, b"refused", ["Inner: response 403", "Outer: response 403"]),
    ],
)
def test_hooks_of_middleware_are_called_as_for_a_page(
    full_site: Server, raw: Raw, key: str, how: str, hooks: str, status: int, body: bytes | None, noted: list[str]
) -> None:
    response = hooked(full_site, raw, how, hooks, key).response()
    assert response.status == status
    assert body is None or response.body == body
    found = notes(full_site.port, key, 4)
    assert [note for note in found if note in noted] == noted
    assert "accepted" not in found


def test_acceptance_passes_through_middleware_that_compresses_caches_and_compares(full_site: Server, raw: Raw) -> None:
    headers = {"Accept-Encoding": "gzip", "If-None-Match": "*", "If-Modified-Since": "Thu, 01 Jan 2099 00:00:00 GMT"}
    for _ in range(2):
        client = raw(full_site)
        response = client.open("/echo/", headers, behind=frame("hello"))
        assert client.frame().text == "hello"
        for name in ("content-encoding", "content-length", "content-type", "etag", "expires", "cache-control"):
            assert name not in response.headers
        page = fetch(full_site.port, "/echo/", {"Accept-Encoding": "gzip"})
        assert (page.status, page.body) == (200, b"page /echo/")
        assert "max-age" in page.headers["cache-control"]
    refused = raw(full_site)
    refused.send(handshake("/ordinary/changed/get/answer/", headers))
    response = refused.response()
    assert (response.status, gzip.decompress(response.body)) == (404, b"x" * 1000)


def test_middleware_that_requires_a_login_refuses_strangers(start_site: StartSite, raw: Raw) -> None:
    from testsite import settings

    middleware = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    with start_site({"MIDDLEWARE": middleware}) as server:
        stranger, foreign = raw(server), raw(server)
        stranger.send(handshake("/echo/"))
        assert stranger.response().status == 302
        foreign.send(handshake("/echo/", {"Origin": "https://evil.example"}))
        assert foreign.response().status == 403  # a foreign page cannot learn whether its visitor has logged in


# --- around the application ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(start_site: StartSite) -> Iterator[Server]:
    """The test site with Sentry's SDK, in Django and around it."""
    with start_site(app="testsite.sentry:application") as server:
        yield server


def reported(server: Server, kind: str, client: str) -> list[dict[str, Any]]:
    """The reports about one client that Sentry would have got; `kind` is "event" or "transaction"."""
    lines = server.log.rpartition("\n")[0].splitlines()  # the last one may not be whole yet
    found = [json.loads(line.removeprefix("sentry ")) for line in lines if line.startswith("sentry ")]
    return [
        item for item in found if item.get("type", "event") == kind and item.get("tags", {}).get("client") == client
    ]


def test_sentry_is_told_of_an_error_in_a_conversation_once_and_with_its_request(watched: Server, raw: Raw) -> None:
    client = raw(watched)
    client.open("/ordinary/reports/?client=a", behind=frame("raise"))
    assert client.closing()[0] == 1011
    assert eventually(lambda: len(reported(watched, "event", "a")) == 1)
    (event,) = reported(watched, "event", "a")
    (error,) = event["exception"]["values"]
    assert (error["type"], error["value"]) == ("ValueError", "raised in the conversation")
    assert event["request"]["url"] == "http://localhost/ordinary/reports/"
    assert event["transaction"] == "/ordinary/reports/"
    # The error is in the log as well, a moment later.
    assert eventually(lambda: watched.log.count("ValueError: raised in the conversation") == 1)


def test_sentry_is_told_of_an_error_in_the_handshake(watched: Server, raw: Raw) -> None:
    client = raw(watched)
    client.send(handshake("/ordinary/reports/?client=b&refuse=yes"))
    assert client.response().status == 500
    assert eventually(lambda: len(reported(watched, "event", "b")) == 1)
    (error,) = reported(watched, "event", "b")[0]["exception"]["values"]
    assert (error["type"], error["value"]) == ("ValueError", "raised in the handshake")


def test_reports_of_conversations_to_sentry_are_kept_apart(watched: Server, connect: Connect) -> None:
    clients = {name: connect(watched, f"/ordinary/reports/?client={name}") for name in ("c", "d")}
    for number in range(3):
        for name, client in clients.items():
            assert client.ask(f"{name}{number}") == "reported"
    for name in clients:
        assert [event["message"] for event in reported(watched, "event", name)] == [f"{name}{n}" for n in range(3)]


def test_sentry_measures_the_handshake_without_the_conversation(watched: Server, connect: Connect) -> None:
    client = connect(watched, "/ordinary/reports/?client=e")
    assert client.ask("hello") == "reported"
    assert eventually(lambda: len(reported(watched, "transaction", "e")) == 1)  # while the conversation goes on
    (transaction,) = reported(watched, "transaction", "e")
    assert transaction["transaction"] == "/ordinary/reports/"
    assert transaction["contexts"]["response"]["status_code"] == 101


def test_application_works_inside_a_generator_that_copies_environ(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site(app="testsite.wsgi:late") as server:
        client = raw(server)
        client.open(f"/echo/?key={key}", behind=frame("hello"))
        assert client.frame().text == "hello"
        refused = raw(server)
        refused.send(handshake("/refuse/403/"))
        assert refused.response().status == 403
        replaced = raw(server)
        replaced.send(handshake("/accepts/?interfere=replace"))
        assert replaced.response().status == 409
        assert fetch(server.port, "/page/").body == b"page /page/"
        client.reset()
        assert notes(server.port, key) == ["1006"]


def test_error_while_the_response_closes_is_answered_and_logged_as_500(
    start_site: StartSite, raw: Raw, key: str
) -> None:
    with start_site(app="testsite.wsgi:failing_at_the_end", args=["--access-logfile", "-"]) as server:
        client = raw(server)
        client.send(handshake(f"/echo/?key={key}"))
        assert client.response().status == 500
        assert eventually(lambda: "ValueError: raised when the response was closed" in server.log)
        assert '" 101 ' not in server.log

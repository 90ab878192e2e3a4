"""What Django promises to views, in conversations: sessions, transactions, database connections, the cache."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from .support.clients import fetch, fetch_json, notes, request
from .support.fixtures import Connect, Raw, StartSite
from .support.servers import Server
from .support.waiting import eventually

# --- sessions --------------------------------------------------------------------------------------------------------


def test_session_of_the_handshake_is_saved_at_acceptance_and_not_again_over_newer_data(
    site: Server, connect: Connect
) -> None:
    client = connect(site, "/keeps-the-session/")
    assert client.ask("hello") == "hello"
    assert client.response is not None
    cookie = client.response.headers["Set-Cookie"].partition(";")[0]
    shown = fetch(site.port, "/session/?size=large", {"Cookie": cookie})
    assert json.loads(shown.body) == {"colour": "blue", "size": "large"}
    assert client.ask("still") == "still"
    client.close()
    assert client.closing()[0] == 1000
    assert json.loads(fetch(site.port, "/session/", {"Cookie": cookie}).body) == {"colour": "blue", "size": "large"}


# --- database connections --------------------------------------------------------------------------------------------


def is_held(server: Server, key: str) -> bool:
    held: bool = fetch_json(server.port, f"/database/{key}/")["held"]
    return held


@pytest.mark.parametrize("how", ["receive", "iteration", "get", "select", "loop"])
def test_no_database_connection_is_held_while_a_view_waits(site: Server, connect: Connect, key: str, how: str) -> None:
    client = connect(site, f"/waits/{how}/?key={key}")
    if how == "loop":
        client.send("?")
    assert client.recv() == "open"
    assert eventually(lambda: not is_held(site, key))
    if how == "get":
        fetch(site.port, f"/publish/{key}/?text=x")
    else:
        client.send("?")
    assert client.recv() == "open"  # the view has a connection again
    assert eventually(lambda: not is_held(site, key))


def test_no_database_connection_is_held_after_a_conversation(site: Server, connect: Connect, key: str) -> None:
    client = connect(site, f"/waits/receive/?key={key}")
    assert client.recv() == "open"
    client.close()
    assert eventually(lambda: not is_held(site, key))


# --- transactions ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def atomic_site(start_site: StartSite) -> Iterator[Server]:
    """The test site with `ATOMIC_REQUESTS`."""
    with start_site({"ATOMIC_REQUESTS": True}) as server:
        yield server


@pytest.fixture(params=["site", "atomic_site"])
def any_site(request: pytest.FixtureRequest) -> Server:
    """The test site without and with `ATOMIC_REQUESTS`."""
    server: Server = request.getfixturevalue(request.param)
    return server


def written(server: Server, key: str) -> int:
    count: int = fetch_json(server.port, f"/database/{key}/")["notes"]
    return count


@pytest.mark.parametrize(("how", "status"), [("raise", 500), ("404", 404)])
def test_atomic_requests_roll_back_the_writes_of_a_view_that_raises(
    atomic_site: Server, raw: Raw, key: str, how: str, status: int
) -> None:
    client = raw(atomic_site)
    client.send(request(f"/writes/{how}/?key={key}"))
    assert client.response().status == status
    assert written(atomic_site, key) == 0


def test_without_atomic_requests_the_writes_of_a_view_that_raises_stay(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.send(request(f"/writes/raise/?key={key}"))
    assert client.response().status == 500
    assert written(site, key) == 1


def test_writes_are_committed_with_the_response_that_a_view_returns(any_site: Server, raw: Raw, key: str) -> None:
    client = raw(any_site)
    client.send(request(f"/writes/response/?key={key}"))
    assert client.response().status == 403
    assert written(any_site, key) == 1


def test_writes_are_committed_when_a_view_accepts_and_at_once_from_then_on(
    any_site: Server, connect: Connect, key: str
) -> None:
    client = connect(any_site, f"/writes/accept/?key={key}")
    assert written(any_site, key) == 1
    assert client.ask("again") == "written"
    assert written(any_site, key) == 2


def test_writes_of_a_view_stay_when_a_middleware_raises_afterwards(atomic_site: Server, raw: Raw, key: str) -> None:
    # As in Django, the transaction is around the view only, and has ended when the middleware sees the response.
    client = raw(atomic_site)
    client.send(request(f"/writes/accept/?key={key}&interfere=raise"))
    assert client.response().status == 500
    assert written(atomic_site, key) == 1


def test_conversation_is_not_in_a_transaction(atomic_site: Server, connect: Connect) -> None:
    client = connect(atomic_site, "/about/1/")
    assert json.loads(client.ask("?"))["is_atomic"] is False


@pytest.mark.parametrize("what", ["accept", "receive", "select"])
def test_waiting_for_the_client_inside_atomic_is_an_error_that_says_so(
    any_site: Server, raw: Raw, key: str, what: str
) -> None:
    client = raw(any_site)
    client.open(f"/inside-atomic/{what}/?key={key}")
    (error,) = notes(any_site.port, key)
    assert error.startswith("RuntimeError: ")
    assert "transaction" in error
    assert "atomic()" in error


def test_sending_and_publishing_inside_atomic_is_allowed(any_site: Server, raw: Raw, key: str) -> None:
    client = raw(any_site)
    client.open(f"/inside-atomic/send/?key={key}")
    assert client.frame().text == "sent"
    assert notes(any_site.port, key) == ["fine"]


@pytest.mark.parametrize("how", ["receive", "select", "loop"])
def test_atomic_requests_hold_no_database_connection_while_a_view_waits(
    atomic_site: Server, connect: Connect, key: str, how: str
) -> None:
    client = connect(atomic_site, f"/waits/{how}/?key={key}")
    if how == "loop":
        client.send("?")
    assert client.recv() == "open"
    assert eventually(lambda: not is_held(atomic_site, key))


def test_listening_client_holds_no_database_connection_and_no_transaction(
    atomic_site: Server, raw: Raw, key: str
) -> None:
    client = raw(atomic_site)
    client.open(f"/listen/{key}/?key={key}")
    assert notes(atomic_site.port, key) == ["over"]
    # SQLite has one writer at a time, so this would wait for an open transaction.
    other = raw(atomic_site)
    other.send(request(f"/writes/response/?key={key}"))
    assert other.response().status == 403
    assert written(atomic_site, key) == 1


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cached_site(start_site: StartSite) -> Iterator[Server]:
    """The test site with the site-wide cache, set up as in Django's documentation."""
    from testsite import settings

    middleware = [
        "django.middleware.cache.UpdateCacheMiddleware",
        *settings.MIDDLEWARE,
        "django.middleware.cache.FetchFromCacheMiddleware",
    ]
    caches = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    with start_site({"MIDDLEWARE": middleware, "CACHES": caches, "CACHE_MIDDLEWARE_SECONDS": 600}) as server:
        yield server


def test_site_wide_cache_neither_answers_nor_keeps_handshakes(cached_site: Server, connect: Connect) -> None:
    for _ in range(2):
        assert fetch(cached_site.port, "/echo/").body == b"page /echo/"
        assert connect(cached_site, "/echo/").ask("hello") == "hello"


def test_site_wide_cache_keeps_no_refusal(cached_site: Server, raw: Raw, key: str) -> None:
    for _ in range(2):
        client = raw(cached_site)
        client.send(request(f"/refuse/403/?key={key}"))
        assert client.response().status == 403
    assert notes(cached_site.port, key, 2) == ["the view runs"] * 2
    response = fetch(cached_site.port, f"/refuse/403/?key={key}")
    assert (response.status, response.body) == (200, b"page /refuse/403/")


def test_each_handshake_of_a_cached_site_reaches_its_view(cached_site: Server, raw: Raw, key: str) -> None:
    for _ in range(3):
        raw(cached_site).open(f"/returns-nothing/?key={key}")
    assert notes(cached_site.port, key, 3) == ["returned"] * 3

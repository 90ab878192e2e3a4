"""Refusals that a page can read: a close code instead of the status, where a view or the project asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from django_websocket.decorators import websocket

from .support.clients import fetch, notes, request
from .support.fixtures import Raw, StartSite
from .support.frames import close_frame, frame
from .support.servers import Server
from .support.waiting import eventually


@pytest.fixture(scope="module")
def closing_site(start_site: StartSite) -> Iterator[Server]:
    with start_site({"WEBSOCKET_REFUSE": "close"}) as server:
        yield server


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("403", (4403, "Forbidden")),
        ("404", (4404, "Not Found")),
        ("limit", (4429, "Too Many Requests")),
        ("login", (4401, "Log in first")),
        ("elsewhere", (4302, "Found")),
        ("raise", (4500, "Internal Server Error")),
        ("exit", (4500, "Internal Server Error")),
    ],
)
def test_view_may_refuse_by_a_close_code(site: Server, raw: Raw, key: str, how: str, expected: tuple[int, str]) -> None:
    client = raw(site)
    response = client.open(f"/refuse-by-closing/{how}/?key={key}", behind=frame("never read"))
    assert client.closing() == expected
    client.send(close_frame(expected[0]))
    assert client.rest() == b""
    assert notes(site.port, key, 0) in ([], ["the view runs"])
    if how not in ("raise", "exit"):  # no session is saved after an exception, as in any view
        assert "sessionid" in response.cookies
    assert "location" not in response.headers


@pytest.mark.parametrize("path", ["/staff-only/", "/writers-only/"])
@pytest.mark.parametrize("which", ["site", "stock_site"])
def test_a_user_who_has_logged_in_is_not_told_to_log_in(
    request: pytest.FixtureRequest, raw: Raw, which: str, path: str
) -> None:
    server: Server = request.getfixturevalue(which)
    stranger = raw(server)
    stranger.open(path)
    assert stranger.closing() == (4401, "Log in first")
    member = raw(server)
    member.open(path, {"Cookie": f"sessionid={fetch(server.port, '/enter/').cookies['sessionid']}"})
    assert member.closing() == (4403, "Forbidden")


def test_accepted_handshake_stays_as_it_is(site: Server, raw: Raw) -> None:
    client = raw(site)
    client.open("/refuse-by-closing/accept/")
    assert client.closing() == (1000, "")


def test_refusal_is_in_the_log_with_its_status(site: Server, raw: Raw) -> None:
    raw(site).open("/refuse-by-closing/limit/")
    assert eventually(lambda: "127.0.0.1 /refuse-by-closing/limit/: 429 Too Many Requests\n" in site.log)


@pytest.mark.parametrize(("path", "code"), [("/nowhere/", 4404), ("/refuse/403/", 4403), ("/members/", 4401)])
def test_setting_applies_to_all_views_and_unknown_paths(closing_site: Server, raw: Raw, path: str, code: int) -> None:
    client = raw(closing_site)
    client.open(path)
    assert client.closing()[0] == code


def test_view_may_refuse_by_status_despite_the_setting(closing_site: Server, raw: Raw) -> None:
    client = raw(closing_site)
    client.send(request("/refuse-by-status/403/"))
    assert client.response().status == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Host": "evil.example"}, 400),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Version": "8"}, 426),
    ],
)
def test_foreign_pages_and_malformed_handshakes_are_refused_by_status(
    closing_site: Server, raw: Raw, headers: dict[str, str | None], status: int
) -> None:
    client = raw(closing_site)
    client.send(request("/echo/", headers))
    assert client.response().status == status


@pytest.mark.parametrize("interfere", ["replace", "raise"])
def test_middleware_that_replaces_the_101_closes(closing_site: Server, raw: Raw, key: str, interfere: str) -> None:
    client = raw(closing_site)
    client.open(f"/accepts/?key={key}&interfere={interfere}")
    assert client.closing()[0] == {"replace": 4409, "raise": 4500}[interfere]
    assert notes(closing_site.port, key, 2) == ["WebSocketError", "finally"]


def test_the_error_names_an_invalid_value(start_site: StartSite) -> None:
    with pytest.raises(Exception, match='must be "http" or "close", not \'politely\''):
        websocket(refuse="politely")
    with pytest.raises(RuntimeError, match="not 'politely'"), start_site({"WEBSOCKET_REFUSE": "politely"}):
        pass

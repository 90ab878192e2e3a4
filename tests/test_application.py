"""What views may do with their WebSocket, and the WSGI application around them, under our worker."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.test import RequestFactory
from testsite.kinds import KINDS, Undecorated

from django_websocket.decorators import websocket

from .support.clients import fetch, fetch_json, notes
from .support.clients import request as handshake
from .support.fixtures import SITE, STOCK_WORKER, Connect, Raw, StartSite
from .support.frames import CLOSE, PING, PONG, Frame, close_frame, frame
from .support.servers import HTTP_PROBE, WORKER, Server, free_port, gunicorn
from .support.waiting import at_once, eventually

# --- ways to write a view --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/echo/", "hello"),
        ("/undecorated/", "hello"),
        ("/class/ann/", "ann: hello"),
        ("/loop/ann/", "ann: hello"),
    ],
)
def test_view_of_each_kind_answers(site: Server, connect: Connect, raw: Raw, path: str, answer: str) -> None:
    client = connect(site, path)
    assert client.ask("hello") == answer
    assert client.ask("hello") == answer
    segment = raw(site)
    segment.open(path, behind=frame("hello") * 3)
    assert [segment.frame().text for _ in range(3)] == [answer] * 3
    segment.send(close_frame(1000))
    assert segment.closing() == (1000, "")


@pytest.fixture(scope="module")
def kinds_site(start_site: StartSite) -> Iterator[Server]:
    with start_site({"WEBSOCKET_URLCONF": "testsite.kinds"}) as server:
        yield server


@pytest.mark.parametrize("kind", KINDS)
def test_options_of_a_callable_of_each_kind_hold(kinds_site: Server, raw: Raw, kind: str) -> None:
    client = raw(kinds_site)
    client.open(f"/{kind}/", behind=frame("hello"))
    assert client.frame().text == "hello"
    if kind != "loop":  # which has none
        client.send(frame("hello!"))
        assert client.closing()[0] == 1009


@pytest.mark.parametrize("view", [functools.partial(print), Undecorated("{}")])
def test_a_callable_without_a_name_is_named_in_errors(view: Callable[..., Any]) -> None:
    decorated: Callable[[HttpRequest], object] = websocket(view)
    with pytest.raises(ImproperlyConfigured, match=r"(builtins\.print|kinds\.Undecorated) is a WebSocket"):
        decorated(RequestFactory().get("/"))


def test_views_that_compare_equal_serve_their_own_urls(site: Server, raw: Raw) -> None:
    for path, greeting in (("/greets/", "hello"), ("/greets/informally/", "hi"), ("/greets/", "hello")):
        client = raw(site)
        client.open(path)
        assert client.frame().text == greeting


@pytest.mark.parametrize("how", ["never", "queries"])
def test_loop_ends_with_an_error_if_its_view_leaves_the_message(site: Server, raw: Raw, how: str) -> None:
    sentence = "leaves_its_message was called for a message, but did not receive it"
    before = site.log.count(sentence)
    client = raw(site)
    client.open(f"/leaves-its-message/{how}/", behind=frame("a"))
    assert client.closing() == (1011, "internal error")
    assert eventually(lambda: site.log.count(sentence) > before)


def test_loop_goes_on_if_its_view_takes_a_message_later(site: Server, raw: Raw) -> None:
    client = raw(site)
    client.open("/leaves-its-message/seldom/")
    for _ in range(20):
        client.send(frame("a") * 30)
        assert [client.frame().text for _ in range(30)] == ["a"] * 30


GERMAN = "de de Dieses Feld ist zwingend erforderlich."
ENGLISH = "en en This field is required."


@pytest.fixture(scope="module", params=["all languages", "other languages"])
def speaking_site(request: pytest.FixtureRequest, start_site: StartSite) -> Iterator[tuple[Server, str]]:
    urlconf, english = {
        "all languages": ("testsite.languages", "/en/speaks/"),
        "other languages": ("testsite.other_languages", "/speaks/"),
    }[request.param]
    with start_site({"WEBSOCKET_URLCONF": urlconf, "LANGUAGE_CODE": "en"}) as server:
        yield server, english


def test_language_of_the_path_is_found_where_no_page_has_one(
    speaking_site: tuple[Server, str], connect: Connect, raw: Raw
) -> None:
    server, english = speaking_site
    for path, said in (("/de/speaks/", GERMAN), (english, ENGLISH)):
        for accepted in ("de", "en"):
            client = connect(server, path, additional_headers={"Accept-Language": accepted})
            for _ in range(2):
                assert client.ask("?") == said
    for path in ("/fr/speaks/", "/de/nowhere/", "/nowhere/"):
        refused = raw(server)
        refused.send(handshake(path, {"Accept-Language": "de"}))
        answer = refused.response()
        assert (answer.status, answer.headers["content-language"]) == (404, "de")


def test_view_that_returns_nothing_accepts_and_closes(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open(f"/returns-nothing/?key={key}")
    assert client.closing() == (1000, "")
    client.send(close_frame(1000))
    assert client.rest() == b""
    assert notes(site.port, key) == ["returned"]
    assert "returns-nothing" not in site.log  # a view that returns None is not logged as an error


def test_conversation_knows_its_request(site: Server, connect: Connect) -> None:
    cookie = f"sessionid={fetch(site.port, '/enter/').cookies['sessionid']}"
    fetch(site.port, "/session/?colour=blue", {"Cookie": cookie})
    headers = {"Cookie": cookie, "Accept-Language": "de"}
    client = connect(site, "/about/7/?tenant=acme", additional_headers=headers, origin=f"http://127.0.0.1:{site.port}")
    other = connect(site, "/about/8/")
    expected = {
        "user": "ann",
        "session": "blue",
        "language": "de",
        "tenant": "acme",
        "view": "about",
        "kwargs": {"number": 7},
        "page": "/page/",
        "path": "/about/7/",
        "secure": False,
        "address": "127.0.0.1",
        "is_atomic": False,
        "websocket": ["/about/7/", f"http://127.0.0.1:{site.port}", None, "13"],
    }
    for _ in range(2):  # the answer is the same after a wait, whatever other conversations do
        assert json.loads(client.ask("?")) == expected
        of_other = json.loads(other.ask("?"))
        assert (of_other["user"], of_other["session"], of_other["tenant"]) == ("", None, "nobody")
        assert (of_other["language"], of_other["kwargs"]) == ("en", {"number": 8})


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("v1.example", "v1.example"),
        ("v1.example, v2.example", "v2.example"),  # the view's preference
        ("v3.example", None),
        (None, None),
    ],
)
def test_subprotocol_of_the_view_is_chosen(site: Server, raw: Raw, offered: str | None, chosen: str | None) -> None:
    client = raw(site)
    response = client.open("/subprotocols/", {"Sec-WebSocket-Protocol": offered})
    assert response.headers.get("sec-websocket-protocol") == chosen
    assert client.frame().text == str(offered)


def test_view_chooses_a_subprotocol_itself(site: Server, raw: Raw) -> None:
    response = raw(site).open("/chooses/?choice=b", {"Sec-WebSocket-Protocol": "a, b"})
    assert response.headers["sec-websocket-protocol"] == "b"


def test_subprotocol_that_was_not_offered_cannot_be_chosen(site: Server, raw: Raw) -> None:
    client = raw(site)
    client.send(handshake("/chooses/?choice=c", {"Sec-WebSocket-Protocol": "a, b"}))
    assert client.response().status == 500


def test_message_larger_than_the_view_allows_is_refused_with_1009(site: Server, raw: Raw) -> None:
    client = raw(site)
    client.open("/small/")
    client.send(frame("x" * 100))
    assert client.frame().text == "100"
    client.send(frame("x" * 60, fin=False), frame("x" * 41, 0))
    assert client.closing()[0] == 1009
    client = raw(site)
    client.open("/small/")
    client.send(frame("x" * 1000)[:8])  # the declared length is enough
    assert client.closing()[0] == 1009


def test_message_larger_than_the_setting_is_refused_with_1009(site: Server, raw: Raw) -> None:
    client = raw(site)
    client.open("/echo/")
    client.send(bytes([0x82, 0xFF]) + (1 << 40).to_bytes(8, "big") + b"mask")
    with at_once():
        assert client.closing()[0] == 1009


def test_input_of_a_view_that_only_sends_is_dropped(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open(f"/sends-only/?key={key}", behind=frame("x" * 1000) * 50)
    assert client.frame().text == "ready"
    for _ in range(200):  # far more than an inbox holds
        client.send(frame("x" * 50000))
    client.send(frame(b"alive?", PING))
    assert client.frame() == Frame(PONG, b"alive?")
    fetch(site.port, f"/gate/{key}/")
    assert client.frame().text == "done"
    client.send(close_frame(1000))
    assert client.closing()[0] == 1000


# --- servers that serve pages alone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["django.core.wsgi:get_wsgi_application()", "testsite.wsgi:echoes_the_path"])
def test_handshake_with_the_application_of_the_pages_is_told_what_is_missing(
    start_site: StartSite, raw: Raw, app: str
) -> None:
    env = {"DJANGO_SETTINGS_MODULE": "testsite.settings"}
    with start_site(app=app, env=env) as server:
        client = raw(server)
        client.send(handshake("/echo/"))
        status = client.response().status
        line = f"127.0.0.1 /echo/: {status} the application serves no WebSockets: start gunicorn with the one that "
        assert eventually(lambda: line + "get_wsgi_websocket_application() returns" in server.log)
        assert fetch(server.port, "/page/").status == 200
        assert server.log.count("WebSockets") == 1


@pytest.mark.parametrize("app", ["application", "websocket", "monitored", "late", "generating"])
def test_nothing_is_missing_where_the_application_knows_websockets(start_site: StartSite, raw: Raw, app: str) -> None:
    with start_site(app=f"testsite.wsgi:{app}", probe=b"") as server:
        raw(server).open("/echo/")
        for refused in (handshake("/nowhere/"), handshake("/echo/", {"Sec-WebSocket-Key": "short"})):
            client = raw(server)
            client.send(refused)
            assert client.response().status in (400, 404)
        assert eventually(lambda: "404 Not Found" in server.log and "400 Sec-WebSocket-Key" in server.log)
        assert "serves no WebSockets" not in server.log and "only pages" not in server.log


@pytest.mark.parametrize("how", ["runserver", "gunicorn"])
def test_handshake_with_a_server_of_pages_alone_is_told_what_is_missing(
    start_site: StartSite, raw: Raw, how: str
) -> None:
    env = {"DJANGO_SETTINGS_MODULE": "testsite.settings"}
    port = free_port()
    words = [sys.executable, "-m", "django", "runserver", "--noreload", f"127.0.0.1:{port}"]
    with (
        Server(words, port=port, probe=HTTP_PROBE, cwd=SITE, env={**env, "PYTHONPATH": str(SITE)})
        if how == "runserver"
        else start_site(app="django.core.wsgi:get_wsgi_application()", worker="sync", env=env)
    ) as server:
        client = raw(server)
        client.send(handshake("/echo/%1b[2J"))
        assert client.response().status == 404
        line = r"A WebSocket handshake for /echo/\x1b[2J came to a server that serves only pages."
        assert eventually(lambda: line in server.log and "manage.py runwebsocket" in server.log), server.log
        client = raw(server)
        client.send(handshake("/page/", {"Upgrade": "h2c"}))
        assert client.response().status == 200
        assert server.log.count("A WebSocket handshake") == 1


# --- the end ---------------------------------------------------------------------------------------------------------


def test_error_in_a_view_closes_with_1011_and_is_reported_once(
    start_site: StartSite, raw: Raw, connect: Connect, key: str
) -> None:
    with start_site() as server:
        other = connect(server, "/echo/")
        client = raw(server)
        client.open(f"/end/raise/?key={key}", behind=frame("go"))
        code, reason = client.closing()
        assert code == 1011
        assert "raised by a view" not in reason
        assert notes(server.port, key) == ["finally"]
        assert server.log.count("ValueError: raised by a view") == 1
        assert server.log.count("Traceback") == 1
        assert fetch_json(server.port, "/state/")["signals"]["exception"] == 1
        assert other.ask("still here") == "still here"


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_whatever_a_view_raises_ends_that_view_only(
    site: Server, raw: Raw, connect: Connect, key: str, how: str
) -> None:
    before = fetch_json(site.port, "/state/")["pid"]
    other = connect(site, "/echo/")
    client = raw(site)
    client.open(f"/end/{how}/?key={key}", behind=frame("go"))
    assert client.closing()[0] in (1011, 1012)
    assert notes(site.port, key) == ["finally"]
    assert other.ask("still here") == "still here"
    assert fetch_json(site.port, "/state/")["pid"] == before


def test_sys_exit_is_an_error_of_the_view(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open("/end/exit/", behind=frame("go"))
    assert client.closing()[0] == 1011


@pytest.mark.parametrize(
    ("how", "expected"), [("return", (1000, "")), ("close", (4321, "bye")), ("response", (1000, ""))]
)
def test_view_ends_the_conversation(site: Server, connect: Connect, how: str, expected: tuple[int, str]) -> None:
    client = connect(site, f"/end/{how}/")
    client.send("go")
    assert client.closing() == expected


REFUSED_LATE = "the view refused a client that it had accepted"
ANSWERED_LATE = "the view returned a response to a client that it had accepted; the response is lost"


@pytest.mark.parametrize(
    ("path", "expected", "detail"),
    [
        ("/end/404/", (4404, "Not Found"), "Http404('too late for that')"),
        ("/end/403/", (4403, "Forbidden"), "PermissionDenied('not any more')"),
        ("/end/400/", (4400, "Bad Request"), "BadRequest('no sense')"),
        ("/end/suspicious/", (4400, "Bad Request"), "DisallowedRedirect('not there')"),
        ("/end/response-403/", (4403, "Forbidden"), "testsite.views.end returned"),
        ("/end/response-503/", (4503, "Service Unavailable"), "testsite.views.end returned"),
        ("/end/login/", (4401, "Log in first"), "testsite.views.end returned"),
        ("/refuses-late/", (4429, "Too Many Requests"), "testsite.views.RefusesLate returned"),
        ("/loop-that-answers/", (4403, "Forbidden"), "testsite.views.loop_that_answers returned"),
    ],
)
def test_refusal_after_the_acceptance_is_a_close_code_and_a_line_of_the_log(
    site: Server, raw: Raw, connect: Connect, path: str, expected: tuple[int, str], detail: str
) -> None:
    before = fetch_json(site.port, "/state/")["signals"].get("exception", 0)
    begin = len(site.log)
    client = raw(site)
    client.open(path, behind=frame("go"))
    assert client.closing() == expected
    assert eventually(lambda: f"127.0.0.1 {path}: {expected[0]} {REFUSED_LATE}: {detail}" in site.log[begin:])
    assert "Traceback" not in site.log[begin:]
    assert fetch_json(site.port, "/state/")["signals"].get("exception", 0) == before


@pytest.mark.parametrize(
    ("path", "sent", "what"),
    [
        ("/end/response/", ["go"], "testsite.views.end returned HttpResponse"),
        ("/end/json/", ["go"], "testsite.views.end returned JsonResponse"),
        ("/end/text/", ["go"], "testsite.views.end returned str"),
        ("/loop-that-answers/", ["one", "two"], "testsite.views.loop_that_answers returned HttpResponse"),
    ],
)
def test_response_that_nobody_gets_is_told_of(site: Server, raw: Raw, path: str, sent: list[str], what: str) -> None:
    begin = len(site.log)
    client = raw(site)
    client.open(path)
    client.send(*map(frame, sent))
    if path.startswith("/loop"):
        assert [client.frame().text for _ in sent] == sent
        client.send(close_frame(1000))
    assert client.closing() == (1000, "")
    line = f"127.0.0.1 {path}: 1000 {ANSWERED_LATE}: {what}"
    assert eventually(lambda: line in site.log[begin:])
    told = site.log[begin:].partition(line)[2].partition("\n")[0]
    assert "a plain `return`" in told and "websocket.send" in told and "before" in told


def test_client_that_listens_stays_whatever_its_view_returned(site: Server, raw: Raw, key: str) -> None:
    begin = len(site.log)
    client = raw(site)
    client.open(f"/end/listen-{key}/")
    assert eventually(lambda: f"/end/listen-{key}/: {ANSWERED_LATE}" in site.log[begin:])
    member = raw(site)
    member.open(f"/forward/{key}/", behind=frame("news"))
    assert client.frame().text == "news"


def test_nothing_is_received_after_the_view_has_closed(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open(f"/end/close-and-wait/?key={key}", behind=frame("go") + frame("more"))
    assert client.closing() == (4321, "bye")
    assert notes(site.port, key, 2) == ["receive() gives None", "finally"]
    client.send(frame("ignored"), close_frame(4321))
    assert client.rest() == b""


@pytest.mark.parametrize(
    ("sent", "noted"),
    [
        (close_frame(1000), "1000"),
        (close_frame(1001, "going away"), "1001 going away"),
        (close_frame(4999, "mine"), "4999 mine"),
        (frame(b"", CLOSE), "1005"),
        (frame(b"\xff", 1), "1007"),  # not UTF-8; the server gives the reason
        (b"\x81\x01x", "1002"),  # not masked
    ],
)
def test_close_code_and_reason_reach_the_view(site: Server, raw: Raw, key: str, sent: bytes, noted: str) -> None:
    client = raw(site)
    client.open(f"/echo/?key={key}")
    client.send(sent)
    (found,) = notes(site.port, key)
    assert found.startswith(noted) if noted in ("1007", "1002") else found == noted
    answer = client.frame()
    assert answer.opcode == CLOSE
    if noted != "1005":
        assert str(answer.close[0]) == noted[:4]
    assert client.rest() == b""


@pytest.mark.parametrize("vanish", ["reset", "fin"])
def test_finally_of_the_view_runs_when_the_client_vanishes(site: Server, raw: Raw, key: str, vanish: str) -> None:
    client = raw(site)
    client.open(f"/echo/?key={key}", behind=frame("hello"))
    client.frame()
    if vanish == "reset":
        client.reset()
    else:
        client.sock.close()
    assert notes(site.port, key) == ["1006"]


def test_sending_to_a_closed_websocket_ends_the_view_quietly(site: Server, connect: Connect, key: str) -> None:
    client = connect(site, f"/send-after-the-end/?key={key}")
    client.close()
    assert notes(site.port, key, 2) == ["WebSocketError", "finally"]
    assert "send-after-the-end" not in site.log


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_receive_with_a_timeout_raises_timeout_error_and_the_next_one_works(site: Server, connect: Connect) -> None:
    client = connect(site, "/receive-within/")
    assert client.recv() == "TimeoutError"
    assert client.ask("hello") == "hello"


def test_ping_is_answered_while_the_view_is_busy(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open(f"/busy/?key={key}")
    assert notes(site.port, key) == ["busy"]
    with at_once():
        client.send(frame(b"alive?", PING))
        assert client.frame() == Frame(PONG, b"alive?")
    fetch(site.port, f"/gate/{key}/")
    assert client.frame().text == "closed: False"


def test_end_is_noticed_while_the_view_is_busy(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open(f"/busy/?key={key}")
    assert notes(site.port, key) == ["busy"]
    client.send(close_frame(1000))
    with at_once():
        assert client.closing()[0] == 1000
        assert client.rest() == b""
    fetch(site.port, f"/gate/{key}/")
    assert notes(site.port, key, 2) == ["busy", "finally"]


def test_more_messages_than_an_inbox_holds_are_all_answered_in_order(site: Server, raw: Raw) -> None:
    client = raw(site)
    client.open("/echo/", behind=b"".join(frame(str(number)) for number in range(1000)))
    client.send(*(frame(str(number)) for number in range(1000, 3000)))
    assert [client.frame().text for _ in range(3000)] == [str(number) for number in range(3000)]


def test_messages_for_a_busy_view_wait_for_it(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open(f"/busy/?key={key}", behind=b"".join(frame(str(number)) for number in range(100)))
    assert notes(site.port, key) == ["busy"]
    client.send(*(frame("x" * 50000) for _ in range(20)))
    fetch(site.port, f"/gate/{key}/")
    assert client.frame().text == "closed: False"
    assert client.frame().text == "0"


# --- listening clients -----------------------------------------------------------------------------------------------


def test_listening_client_gets_published_messages_after_its_view_has_ended(site: Server, raw: Raw, key: str) -> None:
    client = raw(site)
    client.open(f"/listen/{key}/?key={key}", behind=frame("dropped"))
    assert notes(site.port, key) == ["over"]
    fetch(site.port, f"/publish/{key}/?text=news")
    assert client.frame().text == "news"
    client.send(frame("dropped") * 100, frame(b"alive?", PING))
    assert client.frame() == Frame(PONG, b"alive?")
    fetch(site.port, f"/publish/{key}/?text=more")
    assert client.frame().text == "more"
    client.send(close_frame(1000, "enough"))
    assert client.closing() == (1000, "enough")
    assert client.rest() == b""


def test_listening_client_has_no_greenlet(site: Server, raw: Raw, key: str) -> None:
    assert fetch(site.port, f"/publish/{key}/?text=first").status == 200  # starts what then stays
    before = fetch_json(site.port, "/state/")["greenlets"]
    clients = [raw(site) for _ in range(20)]
    for client in clients:
        client.open(f"/listen/{key}/")
    assert eventually(lambda: fetch_json(site.port, "/state/")["greenlets"] < before + 5)
    fetch(site.port, f"/publish/{key}/?text=news")
    assert [client.frame().text for client in clients] == ["news"] * 20


def test_forwarded_messages_reach_all_members_in_order(site: Server, connect: Connect, key: str) -> None:
    clients = [connect(site, f"/forward/{key}/?key={key}") for _ in range(3)]
    assert len(notes(site.port, key, 3)) == 3
    for number in range(10):
        clients[number % 3].send(f"message {number}")
        clients[0].recv()  # so that the next message comes after this one
        for client in clients[1:]:
            assert client.recv() == f"message {number}"


# --- middleware and applications around a view -----------------------------------------------------------------------


@pytest.mark.parametrize(("how", "status", "body"), [("replace", 409, b"something else"), ("raise", 500, None)])
def test_answer_of_a_middleware_in_place_of_the_101_reaches_the_client(
    site: Server, raw: Raw, key: str, how: str, status: int, body: bytes | None
) -> None:
    client = raw(site)
    client.send(handshake(f"/accepts/?key={key}&interfere={how}"), frame("hello"))
    response = client.response()
    assert response.status == status
    assert body is None or response.body == body
    assert "sec-websocket-accept" not in response.headers
    assert client.rest() == b""
    assert notes(site.port, key, 2) == ["WebSocketError", "finally"]


def test_nothing_is_left_of_a_handshake_that_a_middleware_stopped(site: Server, raw: Raw) -> None:
    def stop(how: str) -> None:
        client = raw(site)
        client.send(handshake(f"/accepts/?interfere={how}"))
        client.response()

    stop("replace")
    before = fetch_json(site.port, "/state/")
    for how in ["replace", "raise"] * 10:
        stop(how)
    assert eventually(
        lambda: all(fetch_json(site.port, "/state/")[what] < before[what] + 5 for what in ("greenlets", "descriptors"))
    )


def test_application_works_inside_another_one(start_site: StartSite, raw: Raw, key: str) -> None:
    with start_site(app="testsite.wsgi:monitored") as server:
        client = raw(server)
        response = client.open("/echo/", behind=frame("hello"))
        assert response.headers["x-monitored"] == "yes"
        assert client.frame().text == "hello"
        refused = raw(server)
        refused.send(handshake("/refuse/403/"))
        assert refused.response().status == 403
        assert fetch(server.port, "/page/").body == b"page /page/"
        client.send(close_frame(1000))
        assert client.rest()


def test_request_is_over_for_django_when_the_conversation_begins(start_site: StartSite, connect: Connect) -> None:
    with start_site() as server:
        before = fetch_json(server.port, "/state/")["signals"]
        clients = [connect(server, "/echo/") for _ in range(3)]
        assert [client.ask("hello") for client in clients] == ["hello"] * 3
        after = fetch_json(server.port, "/state/")["signals"]
        assert after["started"] == before["started"] + 4
        assert after["finished"] == before.get("finished", 0) + 4


def test_generator_around_the_application_runs_to_its_end(start_site: StartSite, raw: Raw) -> None:
    with start_site(app="testsite.wsgi:generating") as server:
        before = fetch_json(server.port, "/state/")["signals"]
        clients = [raw(server) for _ in range(3)]
        for client in clients:
            client.open("/echo/", behind=frame("hello"))
            assert client.frame().text == "hello"
        assert eventually(lambda: server.log.count("body of /echo/ is over") == 3)
        refused = raw(server)
        refused.send(handshake("/refuse/403/"))
        refused.rest()
        assert eventually(lambda: "body of /refuse/403/ is over" in server.log)
        after = fetch_json(server.port, "/state/")["signals"]
        assert after["started"] == before["started"] + 5
        assert after["finished"] == before.get("finished", 0) + 5


# --- requests other than handshakes ----------------------------------------------------------------------------------


def test_plain_request_is_told_to_upgrade(any_project: Server) -> None:
    for path in ("/", "/echo/", "/nowhere/"):
        response = fetch(any_project.port, path)
        assert response.status == 426
        assert response.headers["upgrade"].lower() == "websocket"
        assert "upgrade" in response.headers["connection"].lower()
        assert response.headers["sec-websocket-version"] == "13"
        assert response.body


def test_pages_and_websockets_share_a_port_and_paths(site: Server, connect: Connect) -> None:
    assert fetch(site.port, "/echo/").body == b"page /echo/"
    assert connect(site, "/echo/").ask("hello") == "hello"
    assert fetch(site.port, "/about/7/").status == 404  # this path has only a WebSocket


# --- mistakes in the set-up ------------------------------------------------------------------------------------------


def output_of_failing(server: Server) -> str:
    """Return the output of a server that cannot start."""
    with pytest.raises(RuntimeError) as failure, server:
        pass
    return str(failure.value)


@pytest.mark.parametrize("worker", [WORKER, STOCK_WORKER])
def test_missing_urlconf_is_named_with_its_remedy(start_site: StartSite, worker: str) -> None:
    output = output_of_failing(start_site({"WEBSOCKET_URLCONF": ""}, worker=worker))
    sentences = [line for line in output.splitlines() if "WEBSOCKET_URLCONF" in line]
    assert any("WEBSOCKET_URLCONF =" in sentence for sentence in sentences), output


@pytest.mark.parametrize("worker", [WORKER, STOCK_WORKER])
def test_wrong_urlconf_is_named_with_its_remedy(start_site: StartSite, worker: str) -> None:
    output = output_of_failing(start_site({"WEBSOCKET_URLCONF": "testsite.nowhere"}, worker=worker))
    sentences = [line for line in output.splitlines() if "WEBSOCKET_URLCONF" in line]
    assert any("testsite.nowhere" in sentence for sentence in sentences), output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WEBSOCKET_PING_INTERVAL", "soon"),
        ("WEBSOCKET_ALLOWED_ORIGINS", "https://x.example"),
        ("WEBSOCKET_BROKER", "x:"),
    ],
)
def test_wrong_setting_is_named_at_the_start(start_site: StartSite, name: str, value: str) -> None:
    assert name in output_of_failing(start_site({name: value}))


def test_preloaded_application_is_refused_with_a_clear_sentence() -> None:
    output = output_of_failing(gunicorn(args=["--preload"]))
    (sentence,) = {line.partition("] [ERROR] ")[2] for line in output.splitlines() if "preload_app" in line}
    assert "gevent" in sentence
    assert "Remove preload_app" in sentence


PATCH = "from gevent import monkey; monkey.patch_all()\n"


def test_django_imported_before_gevent_has_patched_is_refused_with_a_remedy(
    start_site: StartSite, tmp_path: Path, raw: Raw
) -> None:
    """opentelemetry-instrument imports it so, by a sitecustomize.py of its own."""
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{SITE}", "DJANGO_SETTINGS_MODULE": "testsite.settings"}
    customize, conf = tmp_path / "sitecustomize.py", tmp_path / "conf.py"
    customize.write_text("import django.db\n")
    conf.write_text(PATCH)
    arguments: list[list[str | Path]] = [[], ["-c", conf]]
    for args in arguments:
        output = output_of_failing(start_site(env=env, args=args))
        (sentence,) = {line.partition("] [ERROR] ")[2] for line in output.splitlines() if "preload_app" in line}
        for what in ("sitecustomize.py", "opentelemetry", "post_fork()", PATCH.strip()):
            assert what in sentence

    # Either remedy helps.
    customize.write_text(f"{PATCH}import django.db\n")
    with start_site(env=env) as server:
        raw(server).open("/echo/")
    customize.write_text("")
    conf.write_text(f"{PATCH}def post_fork(server, worker):\n    import django.db\n")
    with start_site(env=env, args=["-c", conf]) as server:
        raw(server).open("/echo/")


def test_name_that_does_not_resolve_is_named(tmp_path: Path) -> None:
    code = (
        "import django; django.setup()\n"
        "from django.template import Context, engines\n"
        "from django.test import RequestFactory\n"
        "template = engines['django'].from_string(\"{% load websockets %}{% websocket_url 'nowhere' %}\")\n"
        "template.render({}, RequestFactory().get('/'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SITE, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode
    assert "nowhere" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("how", ["joins", "sleeps", "sends", "receives"])
@pytest.mark.parametrize("server", ["site", "stock_site"])
def test_any_greenlet_of_a_view_accepts_by_sending(
    request: pytest.FixtureRequest, raw: Raw, key: str, how: str, server: str
) -> None:
    client = raw(request.getfixturevalue(server))
    client.open(f"/helpers/{how}/?key={key}")
    expected = "abcd" if how == "sends" else "abc"
    assert sorted(client.frame().text for _ in expected) == list(expected)
    client.send(frame("echo"))
    assert client.frame().text == "echo"
    client.send(close_frame(1000))
    assert client.closing() == (1000, "")


@pytest.mark.parametrize(
    ("how", "status", "body"), [("403", 403, b"no entry"), ("raise", 404, b"Not Found"), ("stream", 403, b"no ")]
)
def test_greenlet_that_accepts_after_the_view_has_answered_gets_an_error_at_once(
    site: Server, raw: Raw, key: str, how: str, status: int, body: bytes
) -> None:
    client = raw(site)
    client.send(handshake(f"/answers-before-its-helper/{how}/?key={key}"))
    response = client.response()
    assert response.status == status and body in response.body
    if how == "stream":
        assert b"HandshakeFailed" in response.body
    fetch(site.port, f"/gate/{key}/")
    assert notes(site.port, key) == ["HandshakeFailed"]


def test_interrupted_acceptance_is_completed_by_the_next_call(site: Server, raw: Raw) -> None:
    client = raw(site)
    client.open("/accepts-again/")
    assert client.frame().text == "interrupted"
    assert client.closing()[0] == 1000

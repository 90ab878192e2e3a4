"""The access log has one line for each conversation, when it ends, and one for each handshake that is refused."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger, SafeAtoms

from django_websocket.handler.journal import Answer, Asked, Journal, Length, is_on, safe
from django_websocket.handler.upgrade import Notes
from django_websocket.transport.waiting import unfinished

from .support.clients import RawClient, fetch, notes
from .support.clients import request as handshake
from .support.fixtures import Raw, StartSite
from .support.frames import PING, close_frame, frame
from .support.servers import Server
from .support.waiting import eventually, until
from .support.wire import Pairs

ATOMS = (
    *("client", "user", "view", "seconds", "received", "sent", "received_bytes", "sent_bytes"),
    *("code", "reason", "latency"),
)
FORMAT = "access %(s)s|%(m)s|%(U)s|%(b)s|%(L)s|%({x-mark}i)s|" + "|".join(
    f"%({{websocket.{name}}}e)s" for name in ATOMS
)
NAMES = ("status", "method", "path", "bytes", "length", "mark", *ATOMS)
OPTIONS = ["--access-logfile", "-", "--access-logformat", FORMAT]


@pytest.fixture(scope="module")
def server(start_site: StartSite) -> Iterator[Server]:
    """The test site, with an access log."""
    with start_site({"WEBSOCKET_URLCONF": "testsite.every_kind"}, args=OPTIONS) as server:
        yield server


def logged(server: Server, mark: str, count: int = 1) -> list[dict[str, str]]:
    """Return the lines of requests with the header `X-Mark: mark`, once there are `count`."""

    def lines() -> list[dict[str, str]]:
        split = [line.removeprefix("access ").split("|") for line in server.log.splitlines() if line[:7] == "access "]
        return [found for parts in split if (found := dict(zip(NAMES, parts, strict=True)))["mark"] == mark]

    assert eventually(lambda: len(lines()) >= count)
    return lines()


def opened(raw: Raw, server: Server, path: str, mark: str, **headers: str) -> RawClient:
    client = raw(server)
    client.open(path, {"X-Mark": mark, **headers})
    return client


# --- what is logged ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "view"),
    [
        ("/echo/", "testsite.views.echo"),
        ("/asynchronous/echo/", "testsite.asynchronous.echo"),
        ("/consumer/", "testsite.stalls.Consumer"),
    ],
)
def test_conversation_is_one_line_when_it_ends(server: Server, raw: Raw, key: str, path: str, view: str) -> None:
    client = opened(raw, server, path, key)
    client.send(frame("hello"), frame("€"))
    assert [client.frame().text for _ in range(2)] == ["hello", "€"]
    assert key not in server.log
    client.send(close_frame(1000, "done"))
    assert client.closing() == (1000, "done")
    (line,) = logged(server, key)
    assert (line["status"], line["method"], line["path"]) == ("101", "GET", path)
    assert (line["client"], line["user"], line["view"]) == ("127.0.0.1", "-", view)
    assert (line["received"], line["sent"]) == ("2", "2")
    assert line["received_bytes"] == str(len(frame("hello") + frame("€") + close_frame(1000, "done")))
    assert line["sent_bytes"] == line["bytes"] == str(7 + 5 + 8)  # frames of a server have no mask
    assert (line["code"], line["reason"], line["latency"]) == ("1000", "done", "-")
    assert 0 <= float(line["seconds"]) < 60 and abs(float(line["seconds"]) - float(line["length"])) < 0.001


def test_client_that_listens_without_a_greenlet_is_logged(server: Server, raw: Raw, key: str) -> None:
    client = opened(raw, server, f"/listen/{key}/?key={key}", key)
    assert notes(server.port, key) == ["over"]
    fetch(server.port, f"/publish/{key}/?text=news")
    assert client.frame().text == "news"
    client.send(close_frame(1001))
    client.closing()
    (line,) = logged(server, key)
    assert (line["view"], line["received"], line["sent"], line["code"]) == ("testsite.views.listen", "0", "1", "1001")


def test_client_that_vanishes_is_logged(server: Server, raw: Raw, key: str) -> None:
    opened(raw, server, "/echo/", key).reset()
    (line,) = logged(server, key)
    assert (line["status"], line["code"], line["reason"]) == ("101", "1006", "-")


@pytest.mark.parametrize("path", ["/members/", "/looks-later/", "/members-who-listen/"])
def test_user_is_named_if_the_view_has_asked_for_it(server: Server, raw: Raw, key: str, path: str) -> None:
    name = f"ann {key[:8]} é"
    session = fetch(server.port, f"/enter/?name={quote(name)}").cookies["sessionid"]
    client = opened(raw, server, path, key, Cookie=f"sessionid={session}")
    if path != "/members-who-listen/":
        client.send(frame("hello"))
        client.frame()
    client.send(close_frame(1000))
    client.closing()
    (line,) = logged(server, key)
    assert line["user"] == name.encode("unicode_escape").decode()


@pytest.mark.parametrize(
    ("path", "status", "view"),
    [
        ("/refuse/403/", "403", "testsite.views.refuse"),
        ("/nowhere/", "404", "-"),
        ("/members/", "302", "testsite.views.members"),
    ],
)
def test_refusal_by_status_is_one_line(server: Server, raw: Raw, key: str, path: str, status: str, view: str) -> None:
    client = raw(server)
    client.send(handshake(path, {"X-Mark": key}))
    assert str(client.response().status) == status
    (line,) = logged(server, key)
    assert (line["status"], line["path"], line["client"], line["view"]) == (status, path, "127.0.0.1", view)
    assert (line["code"], line["received"]) == ("-", "-")


def test_refusal_that_is_no_handshake_is_one_line(server: Server, raw: Raw, key: str) -> None:
    client = raw(server)
    client.send(handshake("/echo/", {"X-Mark": key, "Sec-WebSocket-Version": "7"}))
    assert client.response().status == 426
    (line,) = logged(server, key)
    assert (line["status"], line["client"], line["view"]) == ("426", "127.0.0.1", "-")


def test_refusal_by_a_close_code_is_one_line_with_it(server: Server, raw: Raw, key: str) -> None:
    client = opened(raw, server, "/refuse-by-closing/limit/", key)
    assert client.closing()[0] == 4429
    client.send(close_frame(4429))
    (line,) = logged(server, key)
    assert (line["status"], line["code"], line["reason"]) == ("101", "4429", "Too Many Requests")
    assert line["view"] == "testsite.views.refuse_by_closing"


def test_nobody_can_begin_a_line(server: Server, raw: Raw, key: str) -> None:
    forged = f"access 200|GET|/forged/|0|0|{key}"
    name = f"ann\n{forged}"
    session = fetch(server.port, f"/enter/?name={quote(name)}").cookies["sessionid"]
    client = opened(raw, server, "/members/", key, Cookie=f"sessionid={session}")
    client.send(close_frame(1000, f'"\r\n{forged[:60]}'))
    client.closing()
    for path in (f"/no%0a{quote(forged)}/", "/no%c2%85where/%1b%e2%80%a8/"):  # also NEL, ESC and LS
        client = raw(server)
        client.send(handshake(path, {"X-Mark": key}))
        assert client.response().status == 404
        assert fetch(server.port, path, {"X-Mark": key}).status == 404

    def found() -> list[str]:
        return [line for line in server.log.splitlines() if line.startswith("access ") and key in line]

    assert eventually(lambda: len(found()) >= 5)
    lines = found()
    assert len(lines) == 5 and not any(line.startswith("access 200|GET|/forged/") for line in lines)
    assert "|ann\\naccess 200|" in lines[0] and '|\\"\\r\\naccess 200|' in lines[0]
    assert all(line.isprintable() for line in lines)


def test_lines_have_the_latency_and_come_before_the_server_ends(start_site: StartSite, raw: Raw, key: str) -> None:
    settings = {"WEBSOCKET_PING_INTERVAL": 0.5}
    with start_site(settings, args=[*OPTIONS, "--graceful-timeout", "3"]) as server:
        client = opened(raw, server, "/echo/", key)
        listening = opened(raw, server, "/listen/x/", key)
        stuck = opened(raw, server, f"/ignores/?key={key}", key)
        stuck.send(frame("x"))
        assert notes(server.port, key) == ["busy"]
        ping = client.frame()
        assert ping.opcode == PING
        client.send(frame(ping.payload, 10))
        client.send(close_frame(1000))
        client.closing()
        (line,) = logged(server, key)
        assert 0 < float(line["latency"]) < 10
        # All that is still open when the server stops is logged, too: also a view that does not end.
        server.send_signal(signal.SIGTERM)
        listening.closing()
        listening.send(close_frame(1012))
        server.wait(40)
        lines = logged(server, key, 3)
    assert [line["code"] for line in lines] == ["1000", "1012", "1012"]
    assert {line["view"] for line in lines[1:]} == {"testsite.views.listen", "testsite.views.ignores"}


# --- by itself --------------------------------------------------------------------------------------------------------


def config(**settings: Any) -> Config:
    made = Config()
    for name, value in settings.items():
        made.set(name, value)
    return made


def test_there_is_no_journal_without_an_access_log() -> None:
    class Own(Logger):  # type: ignore[misc]
        def access(self, *args: Any) -> None:
            """Count, say."""

    off = config()
    log = Logger(off)
    assert not is_on(log, off)
    assert is_on(log, config(accesslog="-"))
    assert is_on(Own(off), off)
    assert is_on(log, config(logconfig_dict={"version": 1}))
    assert is_on(log, config(syslog=True))
    assert not is_on(log, config(syslog=True, disable_redirect_access_to_syslog=True))


def test_length_counts_days() -> None:
    long = Length(days=2, seconds=3, microseconds=500_000)
    atoms = Logger(config()).atoms(Answer("101 Switching Protocols", [], 0), Asked({}), ENVIRON, long)
    assert (atoms["T"], atoms["L"], atoms["D"]) == (172803, "172803.500000", 172803500000)


ENVIRON = {"REQUEST_METHOD": "GET", "RAW_URI": "/", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_X_MARK": "x"}


def test_line_that_cannot_be_written_costs_no_other(pairs: Pairs) -> None:
    written: list[str] = []

    def access(answer: Answer, asked: Asked, environ: dict[str, Any], length: Length) -> None:
        if environ["number"] == 0:
            raise ValueError("a log that fails")
        written.append(f"{answer.status} {asked.headers} {environ['websocket.code']} {environ['websocket.user']}")

    journal = Journal(access)
    for number in range(3):
        connection, peer = pairs()
        notes_of = Notes()
        notes_of.user = lambda: "ann"
        journal.begin(connection, "101 Switching Protocols", [], {**ENVIRON, "number": number}, notes_of, 0.0)
        peer.close_frame(1000)
    until(lambda: len(written) == 2 and not unfinished)
    assert written == ["101 Switching Protocols [('X-MARK', 'x')] 1000 ann"] * 2
    journal.finish()
    assert len(written) == 2


def test_conversation_that_ends_while_the_last_lines_are_written_is_one_line(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[float] = []
    journal = Journal(lambda answer, asked, environ, length: lines.append(float(environ["websocket.seconds"])))
    connection, peer = pairs()
    for each in (connection, pairs()[0]):
        journal.begin(each, "101 Switching Protocols", [], ENVIRON, Notes(), time.monotonic())
    peer.close_frame(1000)

    def let_the_client_end() -> None:
        until(lambda: not connection.connected)

    monkeypatch.setattr("django_websocket.handler.journal.let_others_run_if_spent", let_the_client_end)
    journal.finish()
    until(lambda: not unfinished)
    assert len(lines) == 2
    assert all(0 <= seconds < 60 for seconds in lines)


def test_values_are_escaped_only_if_they_need_to_be() -> None:
    line = safe(SafeAtoms)({"U": "/a\nb\x1b/", "a": "Mozilla é €", "b": 5, "q": '"'})
    written = "%(U)s %(a)s %(b)s %(q)s %(nothing)s" % line  # noqa: UP031  # as logging does
    assert written == '/a\\nb\\x1b/ Mozilla é € 5 \\" -'

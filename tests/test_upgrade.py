"""What passes between the worker and the application while a handshake is answered."""

from __future__ import annotations

import contextvars
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.test import RequestFactory
from gevent.hub import get_hub
from gunicorn.config import Config

from django_websocket.exceptions import HandshakeFailed
from django_websocket.handler.environ import forget_request
from django_websocket.handler.handshake import Handshake
from django_websocket.handler.surroundings import Surroundings
from django_websocket.handler.upgrade import HANDSHAKE_KEY, KEY, Upgrade
from django_websocket.protocol.handshake import ClientHandshake
from django_websocket.transport.connection import Connection
from django_websocket.websocket import WebSocket
from django_websocket.worker import remember_settings

from .support.waiting import until

ACCEPTED = "101 Switching Protocols"


class Nobody:
    """A taker that must not be called."""

    def opened(self, sock: Any, early: bytes, head: bytes) -> Any:
        raise AssertionError

    def failed(self, reason: str) -> None:
        raise AssertionError


def answered(status: str, headers: list[tuple[str, str]], *, accepted: bool = True) -> tuple[Upgrade, list[Any]]:
    """Return an upgrade that the application has answered, and what reached the server's start_response."""
    upgrade = Upgrade()
    if accepted:
        upgrade.taker = Nobody()
    passed: list[Any] = []
    upgrade.watch(lambda *args: passed.append(args))(status, headers)
    return upgrade, passed


def test_the_101_is_held_back_and_written_as_the_application_made_it() -> None:
    upgrade, passed = answered(ACCEPTED, [("Upgrade", "websocket"), ("Set-Cookie", "a=é")])
    assert passed == []
    assert upgrade.head() == b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSet-Cookie: a=\xe9\r\n\r\n"


def test_any_other_answer_is_left_to_the_server() -> None:
    for status, accepted in (("403 Forbidden", True), (ACCEPTED, False)):
        upgrade, passed = answered(status, [("A", "b")], accepted=accepted)
        assert passed == [(status, [("A", "b")])]
        assert not upgrade.accepted


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b=c", "a\n", "a\r", "\r\n"])
def test_header_of_several_lines_is_not_sent(value: str) -> None:
    upgrade, _ = answered(ACCEPTED, [("X-Wrapper", value)])
    with pytest.raises(ValueError, match="line break"):
        upgrade.head()


def test_header_that_http_cannot_carry_is_not_sent() -> None:
    upgrade, _ = answered(ACCEPTED, [("X-Wrapper", "☃")])
    with pytest.raises(ValueError, match="latin-1"):
        upgrade.head()


@pytest.mark.parametrize("value", ["a\0b", "a\x0bb", "a\x1cb", "a\x7fb", "a\nb", "\u20ac"])
def test_header_value_that_http_does_not_know_is_not_sent(value: str) -> None:
    upgrade = Upgrade()
    upgrade.status, upgrade.headers = "101 Switching Protocols", [("Upgrade", "websocket"), ("X-Greeting", value)]
    with pytest.raises(ValueError, match="X-Greeting"):
        upgrade.head()


@pytest.mark.parametrize("name", ["No Name", "", "X:", "X\t", "X\0", "X-\xe9"])
def test_header_name_that_http_does_not_know_is_not_sent(name: str) -> None:
    upgrade = Upgrade()
    upgrade.status, upgrade.headers = "101 Switching Protocols", [(name, "value")]
    with pytest.raises(ValueError, match="header"):
        upgrade.head()


def test_headers_that_http_knows_are_sent() -> None:
    upgrade = Upgrade()
    upgrade.status, upgrade.headers = "101 Switching Protocols", [("X-~", "a\tb \xe9"), ("X-Empty", "")]
    assert upgrade.head() == b"HTTP/1.1 101 Switching Protocols\r\nX-~: a\tb \xe9\r\nX-Empty: \r\n\r\n"


def test_environment_keeps_the_entries_for_views_in_their_order() -> None:
    kept: list[tuple[str, Any]] = [("PATH_INFO", "/chat/"), ("HTTP_HOST", "localhost"), ("wsgi.multithread", True)]
    environ: dict[str, Any] = {KEY: 1, "wsgi.input": 2, **dict(kept), HANDSHAKE_KEY: 3}
    forget_request(environ)
    assert list(environ.items()) == kept


def test_equal_headers_of_two_clients_are_kept_once() -> None:
    first, second = ({"".join(["HTTP_", "HOST"]): "".join(["local", "host"])} for _ in range(2))
    forget_request(first)
    forget_request(second)
    for one, other in zip(first.items(), second.items(), strict=True):
        assert one[0] is other[0]
        assert one[1] is other[1]


def test_settings_of_gunicorn_are_the_same_as_plain_attributes() -> None:
    cfg: Any = Config()
    cfg.set("workers", 3)
    cfg.set("keepalive", 7)
    before = {name: getattr(cfg, name) for name in cfg.settings}
    remember_settings(cfg)
    assert {name: getattr(cfg, name) for name in cfg.settings} == before
    assert vars(cfg)["keepalive"] == 7
    assert "is_ssl" not in vars(cfg)  # computed
    with pytest.raises(AttributeError):
        _ = cfg.no_such_setting


# --- what runs a view -------------------------------------------------------------------------------------------------


class Steps:
    """Runs a view that is a function for each step, called in the hub: nothing in it can wait."""

    def __init__(self, begin: Callable[[Steps], object]) -> None:
        self.request = RequestFactory().get("/steps/")
        self.upgrade = self.request.META[KEY] = Upgrade("127.0.0.1")
        self.handshake = Handshake(self.request, ClientHandshake("dGhlIHNhbXBsZSBub25jZQ==", (), ()), view)
        self.websocket = WebSocket(self.request.META, self.handshake.response, self.accept)
        self.outcomes: list[object] = []
        self._begin = begin

    def accept(self, subprotocol: str | None) -> Connection:
        raise AssertionError("a view that cannot wait does not call this")

    def start(self) -> None:
        get_hub().loop.run_callback(self._begin, self)

    def abort(self, error: Exception, timeout: float) -> None:
        self.outcomes.append(error)

    def opened(self, sock: socket.socket, early: bytes, head: bytes) -> Connection:
        connection = self.handshake.connect(self.websocket, sock, early, head)
        self.handshake.opened()
        return connection

    def failed(self, reason: str) -> None:
        self.handshake.failed(reason)


def view(request: HttpRequest) -> None:
    """Stands in the urlconf."""


def accept(steps: Steps) -> None:
    steps.handshake.waiting.append(partial(note_outcome, steps))
    steps.handshake.accept(steps, None, Surroundings(contextvars.copy_context(), ()))


def note_outcome(steps: Steps) -> None:
    try:
        steps.outcomes.append(steps.handshake.outcome())
    except HandshakeFailed as error:
        steps.outcomes.append(str(error))


def answer_of(steps: Steps) -> HttpResponseBase:
    """Return the answer, begun as a server does."""
    response = steps.handshake.answer_of(steps)
    steps.upgrade.watch(lambda *args: None)(f"{response.status_code} {response.reason_phrase}", [*response.items()])
    return response


def test_a_view_that_runs_without_a_greenlet_accepts_and_gets_its_connection() -> None:
    steps = Steps(accept)
    assert answer_of(steps).status_code == 101 and steps.upgrade.accepted
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        connection = steps.upgrade.open(ours, b"", steps.upgrade.head())
        until(lambda: steps.outcomes == [connection])
        assert steps.handshake.complete(steps.websocket, connection)
        assert not steps.handshake.complete(steps.websocket, connection)
        steps.websocket.send("hello")
        expected = steps.upgrade.head() + b"\x81\x05hello"
        assert theirs.recv(len(expected), socket.MSG_WAITALL) == expected
    until(lambda: not connection.connected)


def test_a_view_that_runs_without_a_greenlet_learns_that_it_has_no_connection() -> None:
    steps = Steps(accept)
    answer_of(steps)
    steps.upgrade.fail("a middleware replaced the 101")
    until(lambda: steps.outcomes == ["a middleware replaced the 101"])


def test_a_view_that_runs_without_a_greenlet_refuses_with_its_own_answer() -> None:
    refusal = HttpResponse("no entry", status=403)
    steps = Steps(lambda steps: steps.handshake.refuse(refusal))
    assert answer_of(steps) is refusal and not steps.upgrade.accepted
    with pytest.raises(HandshakeFailed):
        steps.handshake.check_not_over()

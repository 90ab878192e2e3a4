"""What passes between the worker and the application while a handshake is answered."""

from __future__ import annotations

from typing import Any

import pytest
from gunicorn.config import Config

from django_websocket.handler.environ import forget_request
from django_websocket.handler.upgrade import HANDSHAKE_KEY, KEY, Upgrade
from django_websocket.worker import remember_settings

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

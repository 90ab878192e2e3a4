"""`@websocket` and `@websocket_loop`: what they refuse, and what they keep of the function."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.test import RequestFactory

from django_websocket.decorators import websocket, websocket_loop
from django_websocket.handler.upgrade import Begun, Upgrade


@pytest.mark.parametrize("decorate", [websocket, websocket(), websocket_loop])
def test_an_async_view_stays_one(decorate: Any) -> None:
    async def view(request: Any, websocket: Any) -> None:
        """A view that is not called here."""

    async def answer(request: Any, websocket: Any, message: Any) -> None:
        """A function for each message that is not called here."""

    assert iscoroutinefunction(decorate(answer if decorate is websocket_loop else view))


@pytest.mark.parametrize("name", ["", "two words", "a,b", 'quo"ted'])
def test_a_subprotocol_that_no_header_can_carry_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="subprotocol"):
        websocket(subprotocols=[name])


@pytest.mark.parametrize("size", [0, -1, "1000", 1.5])
def test_a_message_size_that_is_not_a_number_of_bytes_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="max_message_size"):
        websocket(max_message_size=size)


def test_a_view_called_for_an_ordinary_request_says_where_it_belongs() -> None:
    @websocket
    def chat(request: Any, websocket: Any) -> HttpResponse:
        return HttpResponse()

    with pytest.raises(ImproperlyConfigured, match="chat is a WebSocket view.*WEBSOCKET_URLCONF"):
        chat(RequestFactory().get("/"))


def test_the_function_keeps_its_name_and_its_attributes() -> None:
    def view(request: Any, websocket: Any) -> None:
        """What it does."""

    view.csrf_exempt = True  # type: ignore[attr-defined]
    for decorated in (websocket(view), websocket(origins=["https://example.com"])(view), websocket_loop(view)):
        assert decorated.__name__ == "view"
        assert decorated.__doc__ == "What it does."
        assert decorated.csrf_exempt is True  # type: ignore[attr-defined]


# --- responses that begin only when iterated -----------------------------------------------------------------------


def test_a_generator_application_is_started_so_that_its_status_is_known() -> None:
    events = []
    upgrade = Upgrade()

    def application(start_response: Any) -> Any:
        start_response("403 Forbidden", [])
        try:
            yield b"a"
            yield b"b"
        finally:
            events.append("closed")

    result = upgrade.begun(application(upgrade.watch(lambda status, headers: events.append(status))))
    assert isinstance(result, Begun)
    assert upgrade.status == "403 Forbidden"
    assert events == ["403 Forbidden"]
    parts = iter(result)
    assert next(parts) == b"a"
    result.close()
    assert events == ["403 Forbidden", "closed"]


def test_an_empty_response_without_a_close_method_works() -> None:
    result = Upgrade().begun([])
    assert list(result) == [b""]
    result.close()  # type: ignore[attr-defined]


def test_a_response_that_has_begun_is_left_alone() -> None:
    upgrade = Upgrade()
    upgrade.watch(lambda status, headers: None)("200 OK", [])
    body = [b"a"]
    assert upgrade.begun(body) is body


@pytest.mark.parametrize("option", ["origins", "subprotocols"])
def test_a_string_in_place_of_a_list_is_an_error_at_once(option: str) -> None:
    with pytest.raises(TypeError, match=rf"{option}=\['chat.v1'\]"):
        websocket(**{option: "chat.v1"})  # type: ignore[call-overload]

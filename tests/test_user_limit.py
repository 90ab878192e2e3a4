"""`WEBSOCKET_MAX_CONNECTIONS_PER_USER`: who counts, who is refused, and that each place becomes free again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from channels.generic.websocket import WebsocketConsumer
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

from django_websocket import conf
from django_websocket.asgi.websocket import AsyncWebSocket
from django_websocket.decorators import websocket
from django_websocket.exceptions import WebSocketError
from django_websocket.handler import admission
from django_websocket.handler import users as of_users
from django_websocket.logins import disconnect
from django_websocket.testing import Client, ClientWebSocket, HandshakeRefused
from django_websocket.websocket import WebSocket

from .support.clients import RawClient, request
from .support.fixtures import StartSite
from .support.processes import descriptors, worker_of
from .support.waiting import eventually, until

LIMIT = 2


@websocket
def echo(request: HttpRequest, websocket: WebSocket) -> None:
    for message in websocket:
        websocket.send(message)


@websocket(refuse="close")
def closing(request: HttpRequest, websocket: WebSocket) -> None:
    """Stay until the client leaves."""
    assert list(websocket) == []


@websocket
async def echo_async(request: HttpRequest, websocket: AsyncWebSocket) -> None:
    async for message in websocket:
        await websocket.send(message)


@websocket
def listens(request: HttpRequest, websocket: WebSocket) -> HttpResponse:
    return websocket.listen("news")


@websocket
def fails(request: HttpRequest, websocket: WebSocket) -> None:
    websocket.accept()
    raise LookupError("the view fails")


@websocket
def refuses(request: HttpRequest, websocket: WebSocket) -> None:
    raise PermissionDenied


@websocket
def stubborn(request: HttpRequest, websocket: WebSocket) -> None:
    """Note what accepting raises, and go on."""
    for _ in range(2):
        try:
            websocket.accept()
        except WebSocketError as error:
            noted.append(str(error))


class EchoConsumer(WebsocketConsumer):  # type: ignore[misc]
    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.send(text_data)


noted: list[str] = []

urlpatterns = [
    path("echo/", echo),
    path("closing/", closing),
    path("async/", echo_async),
    path("listens/", listens),
    path("fails/", fails),
    path("refuses/", refuses),
    path("stubborn/", stubborn),
    path("consumer/", EchoConsumer.as_asgi()),
]
KINDS = ["/echo/", "/async/", "/listens/", "/consumer/"]


@pytest.fixture
def users(test_runner: None) -> Iterator[Callable[[str], Client]]:
    """Returns a client that is logged in as somebody; checks at the end that nobody has a place any more."""

    def logged_in(name: str) -> Client:
        client = Client()
        client.force_login(User.objects.get_or_create(username=name)[0])
        return client

    with override_settings(WEBSOCKET_URLCONF=__name__, WEBSOCKET_MAX_CONNECTIONS_PER_USER=LIMIT):
        yield logged_in
        until(lambda: not admission._taken)
    Session.objects.all().delete()


Users = Callable[[str], Client]


def full(client: Client, address: str = "/echo/", **headers: Any) -> bool:
    """Whether there is no place for one more connection."""
    try:
        client.websocket(address, **headers).close()
    except HandshakeRefused as refusal:
        assert refusal.response.status_code == 429
        return True
    return False


@pytest.mark.parametrize("address", KINDS)
def test_user_has_so_many_connections_and_no_more(users: Users, address: str) -> None:
    ann, ben = users("ann"), users("ben")
    with ann.websocket(address) as first, ann.websocket("/echo/") as second:
        assert full(ann, address)
        assert not full(ben, address)
        second.close()
        assert not full(ann, address)
        first.close()


def test_refusal_says_when_to_come_back_and_is_one_line_in_the_log(
    users: Users, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "django_websocket")
    ann = users("ann")
    with ann.websocket("/echo/"), ann.websocket("/echo/"), pytest.raises(HandshakeRefused) as refused:
        ann.websocket("/echo/")
    assert (refused.value.response.status_code, refused.value.response["Retry-After"]) == (429, "30")
    user = User.objects.get(username="ann").pk
    until(lambda: caplog.messages)
    assert caplog.messages == [f"127.0.0.1 /echo/: 429 {admission.FULL}: user {user}"]


def test_page_can_read_the_refusal(users: Users) -> None:
    ann = users("ann")
    with ann.websocket("/echo/"), ann.websocket("/echo/"), ann.websocket("/closing/") as third:
        assert (third.close_code, third.close_reason) == (4429, "Too Many Requests")
    assert not full(ann)


def test_anonymous_clients_do_not_count(users: Users) -> None:
    with ExitStack() as stack:
        for _ in range(LIMIT + 1):
            stack.enter_context(Client().websocket("/echo/")).send("x")


def test_user_without_a_session_counts_like_one_with_a_session(users: Users) -> None:
    ann = users("ann")
    token: dict[str, Any] = {"headers": {"Authorization": "Bearer ann"}}
    with ann.websocket("/echo/"), Client().websocket("/echo/", **token):
        assert full(ann)
        assert full(Client(), **token)
        assert not full(Client(), headers={"Authorization": "Bearer ben"})


def test_nobody_is_loaded_without_the_limit(users: Users) -> None:
    ann = users("ann")
    with override_settings(WEBSOCKET_MAX_CONNECTIONS_PER_USER=None), ExitStack() as stack:
        for _ in range(LIMIT + 1):
            stack.enter_context(ann.websocket("/echo/"))
        assert not admission._taken
        request = HttpRequest()
        request.user = None  # type: ignore[assignment]  # whoever looked at it would fail
        assert admission.take_place(request) is None


def test_requests_without_a_user_do_not_count(users: Users) -> None:
    nobody = HttpRequest()
    assert admission.take_place(nobody) is None
    nobody.user = AnonymousUser()
    assert admission.take_place(nobody) is None


@pytest.mark.parametrize("user", [SimpleNamespace(is_authenticated=True, pk=None), SimpleNamespace(name="a service")])
def test_users_that_cannot_be_told_apart_do_not_count_as_one(users: Users, user: Any) -> None:
    request = HttpRequest()
    request.user = user
    assert admission.take_place(request) is None


@pytest.mark.parametrize("address", KINDS)
@pytest.mark.parametrize("how", ["client", "vanished", "kicked"])
def test_place_is_free_when_the_connection_has_ended(users: Users, address: str, how: str) -> None:
    ann = users("ann")
    for _ in range(LIMIT + 1):
        ws: ClientWebSocket = ann.websocket(address)
        if how == "kicked":
            disconnect(user=User.objects.get(username="ann"))
            until(partial(ended, ws))
        ws.close(1006 if how == "vanished" else 1000)
        until(lambda: not admission._taken)


def ended(ws: ClientWebSocket) -> bool:
    return ws.close_code is not None


def test_place_is_free_after_an_error_of_the_view(users: Users) -> None:
    ann = users("ann")
    for _ in range(LIMIT + 1):
        with pytest.raises(LookupError):
            ann.websocket("/fails/").close()


@pytest.mark.parametrize("address", ["/refuses/", "/echo/?interfere=replace", "/listens/?interfere=replace"])
def test_refused_handshake_takes_no_place(users: Users, address: str) -> None:
    ann = users("ann")
    for _ in range(LIMIT + 1):
        with pytest.raises(HandshakeRefused) as refused:
            ann.websocket(address)
        assert refused.value.response.status_code != 429
    assert not admission._taken


def test_handshake_that_fails_after_the_acceptance_gives_its_place_back(users: Users) -> None:
    ann = users("ann")
    for _ in range(LIMIT + 1):
        with pytest.raises(LookupError):
            ann.websocket("/echo/?interfere=raise")
        until(lambda: not admission._taken)


def test_view_that_goes_on_after_the_refusal_cannot_accept(users: Users) -> None:
    ann = users("ann")
    noted.clear()
    with ann.websocket("/echo/"), ann.websocket("/echo/"):
        assert full(ann, "/stubborn/")
    until(lambda: len(noted) == 2)
    assert noted[0] == admission.FULL


def test_place_is_given_back_once() -> None:
    user = of_users.User("1", "auth.User", "default", "")
    one, other = admission.Place(user), admission.Place(user)
    one.give_back()
    one.give_back()
    assert admission._taken == {user: 1}
    other.give_back()
    assert not admission._taken


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_value_that_makes_no_sense_is_an_error(value: Any) -> None:
    name = "WEBSOCKET_MAX_CONNECTIONS_PER_USER"
    with override_settings(**{name: value}), pytest.raises(ImproperlyConfigured, match=f"{name} is {value!r}"):
        conf.current()


def test_however_many_come_at_once_no_more_than_the_limit_are_let_in(start_site: StartSite) -> None:
    with start_site({"WEBSOCKET_MAX_CONNECTIONS_PER_USER": 5}) as server, ExitStack() as stack:
        token = {"Authorization": "Bearer ann"}
        worker = worker_of(server)
        with RawClient(server.port) as client:
            client.send(request("/sets-a-header/?name=a%20b&value=x", token))  # no header has such a name
            assert client.response().status == 500
        idle = descriptors(worker)

        def come(_: int) -> tuple[RawClient, int]:
            client = stack.enter_context(RawClient(server.port))
            client.send(request("/echo/", token))
            return client, client.response().status

        for _ in range(3):
            with ThreadPoolExecutor(20) as pool:
                came = list(pool.map(come, range(20)))
            assert sorted(status for _, status in came) == [101] * 5 + [429] * 15
            for client, _ in came:
                client.reset()
            assert eventually(lambda: descriptors(worker) <= idle)

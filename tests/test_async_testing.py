"""`django_websocket.testing` with async views: the client without a server."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.test import TestCase, override_settings
from testsite.models import Note

from django_websocket.asgi.loop import shared_loop
from django_websocket.exceptions import ConnectionClosed
from django_websocket.handler.coroutine import CoroutineConversation
from django_websocket.pubsub import publish
from django_websocket.testing import Client, HandshakeRefused
from django_websocket.transport.shared import open_connections
from django_websocket.transport.waiting import unfinished

from .support.waiting import until
from .support.wire import descriptors

pytestmark = pytest.mark.usefixtures("test_runner")


@pytest.fixture(autouse=True)
def nothing_stays(test_runner: None) -> Iterator[None]:
    """Check after each test that no view, no connection and no descriptor is left."""
    shared_loop()  # it stays
    gc.collect()  # other tests may have left it something
    before = descriptors()
    yield
    until(lambda: not unfinished and not open_connections())
    assert not descriptors() - before


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.mark.parametrize("message", ["hello", "", "é", b"\0\xff", "x" * 1_000_000])
def test_messages_come_back(client: Client, message: str | bytes) -> None:
    with client.websocket("/asynchronous/echo/") as ws:
        ws.send(message)
        assert ws.receive() == message


def test_nothing_refers_to_a_websocket_that_has_ended(client: Client) -> None:
    for _ in range(3):
        with client.websocket("/asynchronous/echo/") as ws:
            ws.send("hello")
            assert isinstance(ws._conversation, CoroutineConversation)
            ended = weakref.ref(ws._conversation.websocket)
        del ws
        until(lambda: not unfinished)
        gc.collect()
        assert ended() is None


@pytest.mark.parametrize("path", ["class/ann", "loop/ann"])
def test_views_of_each_kind_answer(client: Client, path: str) -> None:
    with client.websocket(f"/asynchronous/{path}/") as ws:
        for _ in range(3):
            ws.send("hi")
            assert ws.receive() == "ann: hi"


def test_send_returns_when_the_view_has_handled_the_message(client: Client, key: str) -> None:
    with (
        client.websocket("/asynchronous/echo/") as ws,
        client.websocket(f"/asynchronous/forward/{key}/") as other,
    ):
        ws.send("hello")
        assert ws.receive(timeout=0) == "hello"
        publish(key, "to all")
        assert other.receive(timeout=0) == "to all"


@pytest.mark.parametrize(("how", "status"), [("403", 403), ("404", 404), ("denied", 403)])
def test_refusal_is_the_response_of_the_view(client: Client, how: str, status: int) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        client.websocket(f"/asynchronous/refuse/{how}/")
    assert refused.value.response.status_code == status


def test_what_the_view_raises_reaches_the_test(client: Client) -> None:
    with pytest.raises(ValueError, match="raised by a view"):
        client.websocket("/asynchronous/refuse/raise/")
    with client.websocket("/asynchronous/end/raise/") as ws, pytest.raises(ValueError, match="raised by a view"):
        ws.send("go")
        ws.receive()
    with client.websocket("/asynchronous/end/return/") as ws:
        ws.send("go")
        with pytest.raises(ConnectionClosed, match="1000"):
            ws.receive()


def test_view_that_does_not_end_is_ended_and_the_test_is_told_where_it_waits(client: Client) -> None:
    ws = client.websocket("/asynchronous/busy/", timeout=0.3)
    assert ws.receive() == "busy"
    with pytest.raises(TimeoutError, match=r"asynchronous\.py"):
        ws.close()


def test_view_learns_how_its_client_left(client: Client) -> None:
    ws = client.websocket("/asynchronous/calls/")
    ws.send("closes")
    with pytest.raises(ConnectionClosed):
        ws.receive()
    assert (ws.close_code, ws.close_reason) == (4321, "bye")
    ws.close()


async def count_notes() -> int:
    """Ask the database, which Django does in synchronous code."""
    return await Note.objects.acount()


class InATransaction(TestCase):
    client_class = Client
    client: Client

    def test_view_and_test_share_a_transaction(self) -> None:
        Note.objects.create(text="of the test")
        with self.client.websocket("/asynchronous/calls/") as ws:
            ws.send("counts_notes")
            self.assertEqual(ws.receive_json(), [2, 2, 2])
        self.assertEqual(Note.objects.count(), 2)

    def test_test_may_call_asynchronous_code_after_a_view_has_called_synchronous_code(self) -> None:
        with self.client.websocket("/asynchronous/calls/") as ws:
            ws.send("counts_notes")
            self.assertEqual(ws.receive_json(), [1, 1, 1])
            self.assertEqual(async_to_sync(count_notes)(), 1)
        self.assertEqual(async_to_sync(count_notes)(), 1)

    def test_view_may_call_synchronous_code_that_calls_asynchronous_code(self) -> None:
        Note.objects.create(text="of the test")
        with self.client.websocket("/asynchronous/calls/") as ws:
            ws.send("counts_in_synchronous_code")
            self.assertEqual(ws.receive_json(), 1)

    def test_rows_are_gone_in_the_next_test(self) -> None:
        self.assertEqual(Note.objects.count(), 0)

    @override_settings(WEBSOCKET_LOGIN_CHECK_INTERVAL=0.05)
    def test_login_is_known_and_its_end_ends_the_conversation(self) -> None:
        with self.assertRaises(HandshakeRefused):
            self.client.websocket("/asynchronous/members/")
        self.client.force_login(get_user_model().objects.create(username="ann"))
        with self.client.websocket("/asynchronous/members/") as ws:
            self.assertEqual(ws.receive(), "hello ann")
            self.client.logout()
            with self.assertRaises(ConnectionClosed):
                ws.receive()
            self.assertEqual(ws.close_code, 4401)

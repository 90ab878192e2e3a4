"""`django_websocket.testing` with Channels' consumers: the client without a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.contrib.auth import get_user_model
from django.test import TestCase, override_settings
from testsite.models import Note
from websockets.sync.client import connect

from django_websocket.testing import Client, HandshakeRefused, WebSocketLiveServerTestCase
from django_websocket.transport.shared import open_connections
from django_websocket.transport.waiting import unfinished

from .support.waiting import DEADLINE, until

pytestmark = pytest.mark.usefixtures("test_runner")

COMMON = {
    "ASGI_APPLICATION": "testsite.tested_consumers.application",
    "CHANNEL_LAYERS": {"default": {"BACKEND": "django_websocket.channels.ChannelLayer"}},
}
IN_URLCONF = {**COMMON, "WEBSOCKET_URLCONF": "testsite.tested_consumers"}
IN_ASGI = {**COMMON, "WEBSOCKET_URLCONF": ""}


@pytest.fixture(params=[IN_URLCONF, IN_ASGI], ids=["urlconf", "asgi.py"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the test client find consumers in either way, and check that none stays."""
    with override_settings(**request.param):
        yield
    until(lambda: not unfinished and not open_connections())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_consumers_chat(kind: str) -> None:
    with Client().websocket(f"/{kind}/lobby/") as ann, Client().websocket(f"/{kind}/lobby/") as bob:
        for text in ("hello", "é"):
            ann.send(text)
            assert ann.receive() == bob.receive() == f"None: {text}"
        async_to_sync(get_channel_layer().group_send)("lobby", {"type": "say", "text": "news"})
        assert ann.receive() == bob.receive() == "news"


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_refusal_is_an_exception(kind: str) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        Client().websocket(f"/{kind}/closed/")
    assert refused.value.response.status_code == 403
    with pytest.raises(HandshakeRefused) as refused:
        Client().websocket("/nowhere/")
    assert refused.value.response.status_code == 404


@override_settings(**IN_URLCONF)
class InATransaction(TestCase):
    client_class = Client
    client: Client

    def test_consumers_see_what_a_test_has_stored(self) -> None:
        self.client.force_login(get_user_model().objects.create_user("ann"))
        Note.objects.create(text="of the test")
        for kind in ("sync", "async"):
            with self.client.websocket(f"/{kind}/count/") as ws:
                ws.send("?")
                self.assertEqual(ws.receive(), "ann: 1")


@override_settings(**IN_ASGI)
class InATransactionWithAnAsgiApplication(InATransaction):
    """The same."""


@override_settings(**IN_ASGI)
class LiveServer(WebSocketLiveServerTestCase):
    def test_live_server_has_consumers(self) -> None:
        for kind in ("sync", "async"):
            url = f"{self.live_server_url}/{kind}/live/".replace("http", "ws", 1)
            with connect(url, proxy=None) as ann, connect(url, proxy=None) as bob:
                ann.send("hello")
                self.assertEqual([each.recv(timeout=DEADLINE) for each in (ann, bob)], ["None: hello"] * 2)

"""`WebSocketLiveServerTestCase`: pages and WebSockets of the test site, in a thread of the test process.

test_docs.py runs it with a browser, in the documentation's example.
"""

from __future__ import annotations

import gc
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import gevent
import pytest
import websockets.sync.client
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.db import connection, transaction
from django.http import HttpRequest
from django.test import RequestFactory, TransactionTestCase, override_settings
from django.urls import path
from testsite.models import Note
from testsite.websocket_urls import urlpatterns as of_the_site
from websockets.exceptions import ConnectionClosed, InvalidStatus

from django_websocket import conf
from django_websocket.addresses import websocket_url
from django_websocket.decorators import websocket
from django_websocket.handler import databases
from django_websocket.pubsub import publish
from django_websocket.testing import Client, WebSocketLiveServerTestCase, captured_messages
from django_websocket.websocket import WebSocket

from .support.clients import Client as LiveClient
from .support.waiting import DEADLINE
from .support.wire import descriptors

pytestmark = pytest.mark.usefixtures("test_runner")


@pytest.fixture(scope="module", autouse=True)
def nothing_stays(test_runner: None) -> Iterator[None]:
    gevent.sleep(0)  # creates this thread's loop, whose descriptors count as well
    gc.collect()  # other tests may have left it something
    before, threads = descriptors(), {*threading.enumerate()}  # of which other tests' may end at any time
    yield
    assert not descriptors() - before
    assert not {*threading.enumerate()} - threads
    assert not databases.used_elsewhere


@websocket
def note(request: HttpRequest, websocket: WebSocket) -> None:
    """Save each message to the database, and answer with all that are stored there."""
    for text in websocket:
        with transaction.atomic():
            Note.objects.create(text=str(text))
        websocket.send(" ".join(Note.objects.order_by("id").values_list("text", flat=True)))


urlpatterns = [path("note/", note), *of_the_site]


class Live(WebSocketLiveServerTestCase):
    """Shared by the tests: clients of the live server."""

    client_class = Client
    client: Client

    def setUp(self) -> None:
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)

    def connect(self, path: str, **options: Any) -> LiveClient:
        client = websockets.sync.client.connect(
            self.live_server_url.replace("http", "ws") + path,
            proxy=None,
            compression=None,
            open_timeout=DEADLINE,
            create_connection=LiveClient,
            **options,
        )
        return cast(LiveClient, self.stack.enter_context(client))

    def fetch(self, path: str) -> str:
        with urllib.request.urlopen(self.live_server_url + path, timeout=DEADLINE) as response:
            text: str = response.read().decode()
            return text


@override_settings(WEBSOCKET_URLCONF=__name__, STATIC_URL="/static/")
class PagesAndWebSockets(Live):
    def test_pages_and_websockets_share_one_port(self) -> None:
        self.assertEqual(self.fetch("/echo/"), "page /echo/")
        ws = self.connect("/echo/", origin=self.live_server_url)
        for message in ("hello", b"\0", "x" * 500_000):
            self.assertEqual(ws.ask(message), message)
        with self.assertRaises(InvalidStatus) as refused:
            self.connect("/echo/", origin="https://evil.example")
        self.assertEqual(refused.exception.response.status_code, 403)

    def test_user_whom_the_test_logged_in_is_known_to_the_view(self) -> None:
        self.client.force_login(get_user_model().objects.create(username="ann"))
        cookie = f"{settings.SESSION_COOKIE_NAME}={self.client.cookies[settings.SESSION_COOKIE_NAME].value}"
        ws = self.connect("/members/", additional_headers={"Cookie": cookie})
        self.assertEqual(ws.recv(), "hello ann")

    def test_view_and_test_see_the_rows_that_the_other_writes(self) -> None:
        Note.objects.create(text="test")
        ws = self.connect("/note/")
        self.assertEqual(ws.ask("view"), "test view")
        self.assertEqual(Note.objects.count(), 2)
        Note.objects.create(text="test")
        self.assertEqual(ws.ask("view"), "test view test view")

    def test_transaction_of_the_test_does_not_keep_the_view_from_waiting(self) -> None:
        assert connection.is_in_memory_db()  # type: ignore[attr-defined] # shared by test and view
        ws = self.connect("/note/")
        with transaction.atomic():
            self.assertEqual(ws.ask("a"), "a")
            self.assertEqual(ws.ask("b"), "a b")
        self.assertEqual(ws.ask("c"), "a b c")

    def test_messages_pass_between_the_test_and_live_clients(self) -> None:
        with captured_messages() as messages, self.client.websocket("/forward/news/") as ours:
            theirs = self.connect("/forward/news/")
            for sender in (ours, theirs):
                sender.send("hello")
                self.assertEqual([ours.receive(), theirs.recv()], ["hello", "hello"])
            publish("news", b"of the test")
            self.assertEqual([ours.receive(), theirs.recv()], [b"of the test"] * 2)
            self.fetch("/publish/news/?text=page")
            self.assertEqual([ours.receive(), theirs.recv()], ["page"] * 2)
        self.assertEqual([text for _, text in messages], ["hello", "hello", b"of the test", "page"])

    def test_settings_of_the_test_apply_to_the_server(self) -> None:
        with override_settings(WEBSOCKET_MAX_MESSAGE_SIZE=10):
            ws = self.connect("/echo/")
            ws.send("x" * 11)
            self.assertEqual(ws.closing()[0], 1009)

    def test_many_clients_get_a_published_message(self) -> None:
        many = [self.connect("/listen/all/") for _ in range(50)]
        publish("all", "hello")
        self.assertEqual([ws.recv() for ws in many], ["hello"] * 50)


@override_settings(STATIC_URL="/static/")
class BeginAndEnd(TransactionTestCase):
    def test_pages_find_the_websockets_of_the_live_server(self) -> None:
        request = RequestFactory().get("/", headers={"host": "localhost:8000"})
        with override_settings(WEBSOCKET_SERVER="wss://production.example"):
            Live.setUpClass()
            try:
                self.assertEqual(websocket_url("echo", request=request), "ws://localhost:8000/echo/")
            finally:
                Live.doClassCleanups()

    def test_clients_are_told_of_the_end_and_nothing_is_left(self) -> None:
        Live.setUpClass()
        port = Live.server_thread.port
        live = Live()
        live.setUp()
        self.addCleanup(live.doCleanups)
        ws = live.connect("/echo/")
        self.assertEqual(ws.ask("hello"), "hello")
        deaf = socket.create_connection(("127.0.0.1", port))
        Live.doClassCleanups()
        with self.assertRaises(ConnectionClosed):
            ws.recv()
        self.assertEqual(ws.close_code, 1012)
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        deaf.close()

    def test_a_server_that_cannot_start_says_why(self) -> None:
        with socket.create_server(("localhost", 0)) as occupied:

            class Occupied(WebSocketLiveServerTestCase):
                port = occupied.getsockname()[1]

            with self.assertRaises(OSError):
                Occupied.setUpClass()
            Occupied.doClassCleanups()


@override_settings(
    STATIC_URL="/static/",
    STATICFILES_FINDERS=["django.contrib.staticfiles.finders.FileSystemFinder"],
)
class WithStaticFiles(Live, StaticLiveServerTestCase):
    def test_static_files_are_served_from_the_finders(self) -> None:
        with override_settings(STATICFILES_DIRS=[Path(__file__).parent]):
            self.assertEqual(self.fetch(f"/static/{Path(__file__).name}"), Path(__file__).read_text())
        self.assertEqual(self.connect("/echo/").ask("hello"), "hello")


def test_live_server_warns_of_nothing_while_no_setting_is_touched(capfd: pytest.CaptureFixture[str]) -> None:
    with override_settings(WEBSOCKET_DRAIN_WINDOW=conf.Settings.drain_window):
        Live.setUpClass()
        Live.doClassCleanups()
    assert "WEBSOCKET_" not in capfd.readouterr().err

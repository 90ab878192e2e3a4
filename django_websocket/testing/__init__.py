"""Tests of WebSocket views: a client that needs no server, and a live server for browsers.

    from django.test import TestCase
    from django_websocket.testing import Client

    class EchoTests(TestCase):
        client_class = Client

        def test_echo(self):
            with self.client.websocket("/echo/") as ws:
                ws.send("hello")
                self.assertEqual(ws.receive(), "hello")

Import everything from here: the modules of this folder are private to the package.
"""

from __future__ import annotations

from django_websocket.compat import verify

from .client import Client, ClientWebSocket, HandshakeRefused, captured_messages
from .live import WebSocketLiveServerTestCase

__all__ = ["Client", "ClientWebSocket", "HandshakeRefused", "WebSocketLiveServerTestCase", "captured_messages"]

verify("testing")

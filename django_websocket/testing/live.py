"""A live server for browsers: Django's LiveServerTestCase, with WebSockets on the port of the pages.

The worker's own code serves both, in a thread of the test process, so that what the test writes into the database, what
it publishes and the settings that it overrides are there. A view that blocks keeps all clients waiting, because gevent
cannot patch a process that is already running.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

from django.db import connections
from django.test import LiveServerTestCase, override_settings
from gevent import getcurrent, monkey, socket
from gevent.hub import get_hub
from gunicorn.config import Config

from django_websocket.compat import naming
from django_websocket.handler.databases import used_elsewhere
from django_websocket.worker import GeventWebSocketWorker
from django_websocket.wsgi import WebSocketApplication, asgi_application

from .client import Client

with naming("application", "testing"):
    from django.core.handlers.wsgi import WSGIHandler
    from django.test.testcases import LiveServerThread, _MediaFilesHandler
    from gunicorn.glogging import Logger

STOP_TIMEOUT = 4  # seconds that views and clients have when the tests of a class are over


class WebSocketLiveServerThread(LiveServerThread):
    """The thread of a live server, with a loop of its own."""

    def run(self) -> None:
        """Serve until `terminate()`."""
        override = self.connections_override or {}
        for alias, connection in override.items():
            connections[alias] = connection
        used_elsewhere.update(override.values())
        try:
            self._main = getcurrent()
            self._loop = get_hub().loop
            with socket.socket(socket.AF_INET) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((self.host, self.port))
                listener.listen()
                self.port = listener.getsockname()[1]
                pages = self.static_handler(_MediaFilesHandler(WSGIHandler()))
                worker = _Worker(listener, WebSocketApplication(pages, asgi_application()))
                self.is_ready.set()
                worker.serve()
        except Exception as error:
            self.error = error  # type: ignore[assignment]
            self.is_ready.set()
        finally:
            connections.close_all()
            used_elsewhere.difference_update(override.values())
            if not monkey.is_module_patched("threading"):  # else the loop is the test's, too
                get_hub().destroy()

    def terminate(self) -> None:
        """Tell the clients that the server stops (1012), and wait for its end."""
        if self.error is None:
            self._loop.run_callback_threadsafe(self._main.throw, SystemExit)
        self.join()


class WebSocketLiveServerTestCase(LiveServerTestCase):
    """Django's `LiveServerTestCase`, which serves the project's WebSockets as well, at the address of its pages."""

    server_thread_class = WebSocketLiveServerThread
    client_class = Client
    client: Client

    @classmethod
    def setUpClass(cls) -> None:
        """Start the server; pages find the WebSockets at its own address, whatever `WEBSOCKET_SERVER` says."""
        cls.enterClassContext(override_settings(WEBSOCKET_SERVER=""))
        super().setUpClass()


class _Worker(GeventWebSocketWorker):
    """The worker without a process of its own, and without an arbiter."""

    has_process = False
    serves_many = False

    def __init__(self, listener: Any, application: Any) -> None:
        cfg = Config()
        cfg.set("loglevel", "warning")
        cfg.set("graceful_timeout", STOP_TIMEOUT)
        app = SimpleNamespace(wsgi=lambda: application)
        super().__init__(0, os.getppid(), [listener], app, 0, cfg, Logger(cfg))
        self._last_descriptor = sys.maxsize

    def serve(self) -> None:
        try:
            self.load_wsgi()
            self.run()
        except SystemExit:
            pass
        finally:
            self.tmp.close()

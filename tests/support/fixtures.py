"""The types of conftest.py's fixtures that make servers and clients, for the annotations of tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from .clients import Client, RawClient
from .servers import ROOT, WORKER, PostgreSQL, Server

SITE = ROOT / "tests" / "site"
STOCK_WORKER = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"


class StartSite(Protocol):
    """Makes a server of the test site, which starts when its `with` block begins."""

    def __call__(
        self,
        settings: Mapping[str, Any] | None = None,
        *,
        app: str = "testsite.wsgi:application",
        worker: str = WORKER,
        args: Sequence[str | Path] = (),
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Server: ...


class StartPostgreSQL(Protocol):
    """Starts a PostgreSQL with these arguments, which has the test site's tables."""

    def __call__(self, *args: str) -> AbstractContextManager[PostgreSQL]: ...


class Connect(Protocol):
    """Opens a WebSocket with the `websockets` library, which is closed after the test."""

    def __call__(self, server: Server | int, path: str, **options: Any) -> Client: ...


class Raw(Protocol):
    """Opens a TCP connection, which is closed after the test."""

    def __call__(self, server: Server | int | str, **options: Any) -> RawClient: ...

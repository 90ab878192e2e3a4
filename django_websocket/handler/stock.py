"""gevent-websocket's own gunicorn worker, which the command line of version 0.2.0 names.

It has sent the 101 before it calls the application. So a refusal becomes a close code, 4000 plus the HTTP status, and
headers of the response cannot travel.
"""

from __future__ import annotations

import contextlib
import select
import sys
from collections.abc import Callable, Iterable
from typing import Any

from gevent import monkey
from gevent.event import Event

from django_websocket import compat
from django_websocket.asgi import policy
from django_websocket.select import select as cooperative_select
from django_websocket.transport.connection import WOULD_BLOCK
from django_websocket.transport.sockets import share
from django_websocket.transport.stalls import watch_of_loop

from .databases import give_back_databases
from .refusal import Refusal
from .upgrade import KEY, Upgrade, who


def prepare() -> None:
    """Do once what a worker of this package does itself, if this process is of gevent-websocket's."""
    if "geventwebsocket.gunicorn.workers" in sys.modules:
        compat.verify("stock worker")
        if monkey.is_module_patched("select"):
            from .sharing import share_with_asgiref

            select.select = cooperative_select
            policy.install()
            share_with_asgiref(give_back_databases)


def adopt(environ: dict[str, Any], answer: Callable[[Callable[..., Any]], Iterable[bytes]]) -> list[bytes]:
    """Have `answer`, which is called with a start_response, answer a request; return when its WebSocket has ended."""
    watch_of_loop().start()
    websocket = environ["wsgi.websocket"]
    upgrade = environ[KEY] = Upgrade(environ.get("REMOTE_ADDR", ""), answered=True)
    # gevent-websocket has asked the application which subprotocol to choose.
    upgrade.speaks = hasattr(websocket.handler.application, "app_protocol")
    try:
        result = upgrade.begun(answer(upgrade.watch(lambda status, headers, *exc_info: lambda data: None)))
        if hasattr(result, "close"):
            result.close()  # gevent-websocket would not
        ended = Event()
        sock, early = take_from(websocket)
        if not upgrade.accepted:
            upgrade.fail(f"The request was answered with {upgrade.status}: a middleware replaced the 101")
            upgrade.taker = Refusal(4000 + int(upgrade.status[:3]), upgrade.status[4:], who(environ))
        connection = upgrade.open(sock, early)
        connection.call_on_end(ended.set)
        ended.wait()
    except BaseException:
        upgrade.fail("The request ended with an error")
        raise
    return []


def take_from(websocket: Any) -> tuple[Any, bytes]:
    """Take the client from a WebSocket of gevent-websocket: return its socket, and what was read from it already."""
    handler = websocket.handler
    handler.socket.settimeout(0)
    early = b""
    with contextlib.suppress(*WOULD_BLOCK):
        early = handler.rfile.read1(65536) or b""
    # gevent-websocket must neither send nor close when the application returns.
    websocket.closed = True
    websocket.stream = websocket.raw_read = websocket.raw_write = None
    return share(handler.socket), early

"""Answering a request for the figures: at a path of the application, and on a port of their own."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import gevent
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

from django_websocket import conf, metrics
from django_websocket.transport.counts import counts
from django_websocket.transport.log import report

from .figures import of_server
from .upgrade import who

__all__ = ["Port", "answer"]

CLIENTS = 8  # that the port serves at once; a Prometheus has one connection
ATTEMPTS = 10  # to get the port, one each second; then it is another program that has it
PATIENCE = 10.0  # seconds for a client of the port, from its connection to the end of its answer
# A request with one of these has come through a proxy, whose address says nothing about who asks.
OF_PROXIES = ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_REAL_IP")

logger = logging.getLogger("django_websocket")


def answer(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer a request for the figures, as a WSGI application."""
    exposed = conf.current().exposed
    method = environ["REQUEST_METHOD"]
    headers = []
    if exposed is None or not may_read(environ, exposed):
        report(who(environ), 403, "not allowed to read the metrics")
        status, body, content_type = "403 Forbidden", b"Not allowed here.\n", "text/plain"
    elif method not in ("GET", "HEAD"):
        status, body, content_type = "405 Method Not Allowed", b"Only GET and HEAD are allowed.\n", "text/plain"
        headers = [("Allow", "GET, HEAD")]
    else:
        status = "200 OK"
        body, content_type = metrics.written(environ.get("HTTP_ACCEPT", ""))
    headers += [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    start_response(status, headers)
    return [] if method == "HEAD" else [body]


def answer_and_close(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer the only request of a connection: a client that stayed would take the place of another one."""
    return answer(environ, lambda status, headers: start_response(status, [*headers, ("Connection", "close")]))


def may_read(environ: Mapping[str, Any], exposed: conf.Exposed) -> bool:
    """Whether whoever asks may read the figures: by the token, or by the address from which they connect."""
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if exposed.token and scheme.lower() == "bearer":
        return hmac.compare_digest(token.strip().encode(), exposed.token.encode())
    if any(name in environ for name in OF_PROXIES):
        return False
    try:
        address = ipaddress.ip_address(environ.get("REMOTE_ADDR", ""))
    except ValueError:  # a Unix socket
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in exposed.networks)


class Late(Exception):
    """The time of a client is over."""


class Server(WSGIServer):
    """A server for few clients, which do not stay."""

    def handle(self, sock: Any, address: Any) -> None:
        """Serve a client for a while."""
        with suppress(Late), gevent.Timeout(PATIENCE, Late):
            super().handle(sock, address)


class Port:
    """The port on which one worker of the server answers for all, as long as it is there."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._server: Server | None = None
        self._attempts = 0

    def listen(self) -> None:
        """Listen, if no other worker does. To be called again and again: that worker may end."""
        if self._server is not None:
            return
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        try:
            listener = socket.create_server(self._address, family=family)
        except OSError as error:
            self._attempts += 1
            if self._attempts == ATTEMPTS and not of_server().gauges.get("listens"):
                logger.error("The metrics cannot be read at %s port %d: %s", *self._address, error)
            return
        listener.setblocking(False)
        self._attempts = 0
        name = {"SERVER_NAME": self._address[0]}  # else the server asks the DNS for one, which may take long
        server = Server(listener, answer_and_close, log=None, spawn=Pool(CLIENTS), environ=name)
        server.start()
        self._server = server
        counts.listens = True

    def sockets(self) -> list[Any]:
        """Return the sockets that a child of the process must not have."""
        return [] if self._server is None else [self._server.socket]

    def close(self) -> None:
        """Leave the port to another worker; answers that have begun may end."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            counts.listens = False

"""What a worker does for the metrics: once a second, it looks how late it is, and leaves its figures to the others."""

from __future__ import annotations

import logging
import time

import gevent
from django.core.signals import got_request_exception
from django.http import HttpRequest

from django_websocket.conf import Exposed
from django_websocket.transport.counts import counts
from django_websocket.transport.log import report

from . import figures
from .scraping import Port

__all__ = ["Sampling", "begin_to_count"]

INTERVAL = 1.0  # seconds; what a worker has counted since is lost if it is killed


def begin_to_count(slot: int | None) -> figures.OwnSlot:
    """Count in this process from now on; `slot` is its place among the workers of its server."""
    import prometheus_client  # noqa: F401  # now: it takes a while, for which the clients of the first scrape would wait

    got_request_exception.connect(_count_error, dispatch_uid="django_websocket.metrics")
    return figures.begin(slot)


def _count_error(request: HttpRequest | None = None, **kwargs: object) -> None:
    """Count the error of a view, unless it is that of a page."""
    if getattr(request, "is_handshake", False):
        counts.add("view_errors")


class Sampling:
    """The greenlet of a worker that keeps its figures up to date, and its port."""

    def __init__(self, exposed: Exposed, slot: int | None) -> None:
        self._own = begin_to_count(slot)
        self._port = None if exposed.address is None else Port(exposed.address)
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Begin, once the process serves clients."""
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            try:
                if self._port is not None:
                    self._port.listen()
                self._own.refresh()
            except Exception as error:  # a fault of this package; it must not be the end of all figures
                report("metrics", None, "the figures could not be gathered", repr(error), logging.ERROR)
            due = time.monotonic() + INTERVAL
            gevent.sleep(INTERVAL)
            counts.observe("hub_lag_seconds", max(0.0, time.monotonic() - due))

    def sockets(self) -> list[object]:
        """Return the sockets that a child of the process must not have."""
        return [] if self._port is None else self._port.sockets()

    def leave_port(self) -> None:
        """Let another worker have the port: this one is about to stop."""
        port, self._port = self._port, None
        if port is not None:
            port.close()

    def stop(self) -> None:
        """Save the figures for the last time."""
        if self._greenlet is not None:
            self._greenlet.kill()
        self._own.refresh(last=True)

"""The gunicorn worker: gunicorn's gevent worker and HTTP parser, which gives upgraded sockets to their conversations.

gunicorn -k django_websocket.worker.GeventWebSocketWorker project.wsgi:websocket -b 127.0.0.1:8001
"""

from __future__ import annotations

import contextlib
import random
import resource
import select
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NamedTuple

import gevent
from gevent import Greenlet, getcurrent, monkey
from gunicorn.workers.ggevent import GeventWorker

from .connection import open_connections
from .protocol.frames import CloseCode
from .protocol.handshake import is_upgrade
from .select import select as cooperative_select
from .sockets import give_away
from .upgrade import KEY, Upgrade
from .waiting import ViewGreenlet

WSGIApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
DRAIN_MARGIN = 2.0  # seconds before gunicorn's graceful_timeout at which the worker is gone, whatever goes on
DRAIN_STEP = 20  # groups in which clients are told of a restart
APP_LOAD_ERROR = 4  # the exit status by which gunicorn's arbiter knows that another worker would fail alike

# What a conversation has no use for, and would keep alive for as long as it lasts.
REQUEST_ONLY = (KEY, "wsgi.input", "wsgi.errors", "wsgi.file_wrapper", "wsgi.early_hints", "gunicorn.socket")


class Handover(NamedTuple):
    """What the worker's own application returns to gunicorn in place of a 101."""

    upgrade: Upgrade
    result: Iterable[bytes]
    environ: dict[str, Any]
    response: Any  # gunicorn's, which has the status and the headers
    started: datetime


class GeventWebSocketWorker(GeventWorker):  # type: ignore[misc]
    """Serves WebSockets beside ordinary requests; all options of gunicorn's gevent worker hold."""

    def init_process(self) -> None:
        """Patch the standard library before anything of the project is imported, then serve."""
        if "django" in sys.modules and not monkey.is_module_patched("threading"):
            self.log.error(
                "Django was imported before gevent could patch the standard library. Remove preload_app (--preload), "
                "and imports of your project from gunicorn.conf.py; or make this the first line of gunicorn.conf.py: "
                "from gevent import monkey; monkey.patch_all()"
            )
            sys.exit(APP_LOAD_ERROR)
        raise_descriptor_limit()
        super().init_process()

    def patch(self) -> None:
        """Patch the standard library, with a select() that knows WebSockets and has no limit of 1023."""
        super().patch()
        select.select = cooperative_select

    def load_wsgi(self) -> None:
        """Load the application, and stand between it and gunicorn."""
        open_connections()  # from here on this process is one that serves clients
        super().load_wsgi()
        self._application: WSGIApplication = self.wsgi
        self.wsgi: Any = self._call

    # --- a request -----------------------------------------------------------------------------------------------

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        """Serve one request; the greenlet keeps it where `_call` finds it."""
        current: Any = getcurrent()
        current.request = req
        return super().handle_request(listener_name, req, sock, addr)

    def _call(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Call the application; where it accepts an upgrade, return a `Handover`."""
        if not is_upgrade(environ.get("HTTP_UPGRADE", "")):
            return self._application(environ, start_response)
        started = datetime.now()
        upgrade = environ[KEY] = Upgrade()
        # The client may have sent frames behind its request. If it is refused, nobody may take them for a request.
        current: Any = getcurrent()
        current.request.force_close()
        try:
            result = upgrade.begun(self._application(environ, upgrade.watch(start_response)))
        except BaseException:
            upgrade.fail("The request ended with an error")
            raise
        if upgrade.accepted:
            return Handover(upgrade, result, environ, start_response.__self__, started)  # type: ignore[attr-defined]
        upgrade.fail(f"The request was answered with {upgrade.status}: a middleware replaced the 101")
        return result

    def is_already_handled(self, respiter: Any) -> bool:
        """Hand an upgraded socket over, and leave gunicorn's loop over the requests of a connection."""
        if type(respiter) is not Handover:
            return bool(super().is_already_handled(respiter))
        self._hand_over(respiter)
        raise StopIteration

    def _hand_over(self, handover: Handover) -> None:
        upgrade, result, environ, response, started = handover
        current: Any = getcurrent()
        request = current.request
        sock = environ["gunicorn.socket"]
        try:
            try:
                upgrade.write(b"")
            except OSError as error:
                upgrade.fail(f"The client left during the handshake: {error}")
            finally:
                self.log.access(response, request, environ, datetime.now() - started)
                if hasattr(result, "close"):
                    result.close()  # the end of the request, for Django
            if upgrade.taker is not None:
                early = request.unreader.take_buffered()
                for name in REQUEST_ONLY:
                    environ.pop(name, None)
                upgrade.open(give_away(sock), early)
        except BaseException as error:
            upgrade.fail(f"The handshake ended with {error!r}")
            raise

    # --- the end of the process ----------------------------------------------------------------------------------

    _stopping: Greenlet[..., None] | None = None

    def notify(self) -> None:
        """Show the arbiter that the worker lives; and see, as often, whether it is to stop."""
        super().notify()
        if not self.alive:
            self._stop()

    def run(self) -> None:
        """Serve until told to stop; then let conversations end before the process does."""
        window = None
        try:
            super().run()
        except SystemExit:  # SIGINT, SIGQUIT, and the reloader, which is in a hurry
            window = 0.0
            raise
        finally:
            stopping = self._stop(window)
            while not stopping.ready():
                with contextlib.suppress(SystemExit):  # Ctrl-C comes twice: from the terminal and from the arbiter
                    stopping.join()

    def _stop(self, window: float | None = None) -> Greenlet[..., None]:
        if self._stopping is None:
            self._stopping = gevent.spawn(self._drain, window)
        return self._stopping

    def _drain(self, window: float | None) -> None:
        """Tell the clients that the service restarts (1012), spread over a window, and wait until all is over.

        `window` is in seconds, None for the setting. The end is before gunicorn's graceful_timeout, at which the
        arbiter kills: neither a stuck view nor a dead client holds up the others or the process.
        """
        end = time.monotonic() + max(0.0, self.cfg.graceful_timeout - DRAIN_MARGIN)
        connections = list(open_connections())
        random.shuffle(connections)
        if window is None:
            window = max((connection.limits.drain_window for connection in connections), default=0.0)
        window = min(window, max(0.0, end - time.monotonic()) / 2)
        for number, connection in enumerate(connections, 1):
            connection.close(CloseCode.SERVICE_RESTART, "restart")
            if number * DRAIN_STEP // len(connections) != (number - 1) * DRAIN_STEP // len(connections):
                self.tmp.notify()
                gevent.sleep(window / DRAIN_STEP * random.uniform(0.5, 1.0))
        while (open_connections() or ViewGreenlet.running) and time.monotonic() < end:
            for connection in tuple(open_connections()):  # one may have opened meanwhile
                connection.close(CloseCode.SERVICE_RESTART, "restart")
            self.tmp.notify()
            gevent.sleep(0.05)


def raise_descriptor_limit() -> None:
    """Allow as many open files as the system lets the process have: each client is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # where "unlimited" is more than the system means
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

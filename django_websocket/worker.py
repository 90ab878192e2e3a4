"""The gunicorn worker: gunicorn's gevent worker and HTTP parser; upgraded sockets are given to their WebSockets.

`gunicorn -k django_websocket.worker.GeventWebSocketWorker project.wsgi:websocket -b 127.0.0.1:8001` starts it.
"""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import math
import os
import resource
import select
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from importlib import metadata
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import gevent
from gevent import monkey
from gevent.event import Event

from django_websocket import compat

from .handler import journal
from .handler.environ import forget_request
from .handler.journal import Journal
from .handler.upgrade import KEY, Notes, Unlogged, Upgrade, finish, who
from .protocol.handshake import is_upgrade
from .select import select as cooperative_select
from .transport import forking, slots
from .transport.acceptor import BODY, LINGER, RETRY_AFTER, Acceptor
from .transport.clients import current_client
from .transport.counts import count_refusal
from .transport.culprits import culprit_of
from .transport.drain import Drain, drain_time
from .transport.log import report
from .transport.shared import open_connections
from .transport.slow import (
    AnswerNotTaken,
    BodySocket,
    ConnectionOver,
    GivenAway,
    NextHead,
    NoFurtherRequest,
    SlowBody,
    SlowHead,
    give_up_after,
    was_given_up,
)
from .transport.sockets import give_away, hang_up
from .transport.stalls import watch_of_loop
from .transport.turns import let_others_run_if_spent

if TYPE_CHECKING:
    from .handler.sampling import Sampling

with compat.naming("worker"):
    from gunicorn.http import errors
    from gunicorn.sock import ssl_context
    from gunicorn.util import close_graceful, write_error
    from gunicorn.workers.ggevent import GeventWorker

__all__ = ["GeventWebSocketWorker"]

WSGIApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
BATCH = 100  # clients that a worker accepts in a turn of the loop if there is no other worker
APP_LOAD_ERROR = 4  # exit status; gunicorn's arbiter then starts no other worker, which would fail alike
HEARTBEAT = 1.0  # seconds between two signs of life for gunicorn, as in its own workers
RESERVE = 256  # descriptors kept from clients: views open files and connections too

UNPATCHED = (
    "Django was imported before gevent could patch the standard library. Remove preload_app (--preload) and all "
    "imports of your project from gunicorn.conf.py, or make this the first line of gunicorn.conf.py: "
    "from gevent import monkey; monkey.patch_all() "
    "If a sitecustomize.py imports Django, make it the first line there. Do not use opentelemetry-instrument, which "
    "has a sitecustomize.py of its own: call opentelemetry.instrumentation.auto_instrumentation.initialize() in "
    "post_fork() of a gunicorn.conf.py with that first line."
)

NO_WEBSOCKETS = (
    "start gunicorn with the one that get_wsgi_websocket_application() returns, such as mysite.wsgi:websocket instead "
    "of mysite.wsgi:application; with http=get_wsgi_application(), it serves pages too"
)

# Errors of a request head that are not answered with 400.
with compat.naming("worker"):
    STATUS = {
        errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
        errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        errors.ForbiddenProxyRequest: HTTPStatus.FORBIDDEN,
        errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
        errors.UnsupportedTransferCoding: HTTPStatus.NOT_IMPLEMENTED,
    }


class Handover(NamedTuple):
    """Returned to gunicorn in place of a 101."""

    upgrade: Upgrade
    result: Iterable[bytes]
    environ: dict[str, Any]
    response: Any  # gunicorn's
    started: float  # seconds of time.monotonic


class Listener(NamedTuple):
    """Tells gunicorn the address of a listening socket, which may be closed by then."""

    address: Any

    def getsockname(self) -> Any:
        """Return the address."""
        return self.address


@contextlib.contextmanager
def plugins_looked_up_once() -> Iterator[None]:
    """Let gevent read the metadata of all installed packages once instead of 25 times, a fifth of a worker's start.

    gevent looks for its plugins before and after each module that it patches.
    """
    look_up, installed = metadata.entry_points, metadata.entry_points()
    metadata.entry_points = lambda **group: installed.select(**group)
    try:
        yield
    finally:
        metadata.entry_points = look_up


class GeventWebSocketWorker(GeventWorker):  # type: ignore[misc]
    """Serves WebSockets beside ordinary requests; all options of gunicorn's gevent worker apply."""

    has_process = True  # False for a test's live server, a thread of a process that gevent may not have patched
    logs_at_end = True  # False in development: the access log has conversations when they begin, as pages
    serves_many = True  # False in development: clients are told of a restart all at once, and nobody waits for that
    _told_to_stop: Event | None = None
    _journal: Journal | None = None  # if there is an access log
    _sampling: Sampling | None = None  # of a worker whose figures somebody wants

    @classmethod
    def setup(cls) -> None:
        """Make what the workers share. gunicorn calls this in the master, each time it looks up the class."""
        slots.share()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slot = slots.share().reserve(self)  # in the master, so that no two workers get the same

    def init_process(self) -> None:
        """Patch the standard library before anything of the project is imported, then serve."""
        with self._compatible():
            compat.verify("connections", "worker")
        if "django" in sys.modules and not monkey.is_module_patched("threading"):
            self._refuse_unpatched()
        if "h2" in self.cfg.http_protocols:
            self.log.error(
                "This worker speaks only HTTP/1.1, with which every WebSocket begins. Remove h2 from http_protocols "
                "(--http-protocols); nginx in front can speak HTTP/2 with browsers."
            )
            sys.exit(APP_LOAD_ERROR)
        descriptors = raise_descriptor_limit()
        self._last_descriptor = descriptors - min(RESERVE, descriptors // 4)
        if self.worker_connections > descriptors // 2:
            self.log.warning(
                "worker_connections is %d, more than half of the %d files that the process may open: lower it, or "
                "raise the limit (ulimit -n, LimitNOFILE= of systemd).",
                self.worker_connections,
                descriptors,
            )
        super().init_process()

    def patch(self) -> None:
        """Patch the standard library: a select() that knows WebSockets, asyncio loops that greenlets do not notice."""
        with plugins_looked_up_once():
            super().patch()
        select.select = cooperative_select
        with self._compatible():
            from .asgi import policy  # not before asyncio finds what is patched

            policy.install()

    def load_wsgi(self) -> None:
        """Load the application, and stand between it and gunicorn."""
        open_connections()  # marks the process as one that serves clients, for a fork while the project is loaded
        with self._compatible():
            super().load_wsgi()
            # They import Django, which must not happen before everything is patched and the project is loaded.
            from django_websocket import checks, conf
            from django_websocket.decorators import is_asgi
            from django_websocket.handler import databases, lingering
            from django_websocket.handler.sharing import share_with_asgiref

        if self.has_process:
            if not databases.databases_are_separate():
                self._refuse_unpatched()
            share_with_asgiref(databases.give_back_databases)
            if conf.current().database_linger:
                lingering.watch_databases()
        application: Any = self.wsgi
        if is_asgi(application):
            from django_websocket.wsgi import serve_asgi

            application = serve_asgi(application)
        self._settings = conf.current()
        says_https = [name for name, value in self.cfg.secure_scheme_headers.items() if value == "https"]
        self._scheme_headers = [f"HTTP_{name.replace('-', '_')}" for name in says_https]
        self._close_databases = databases.close_databases
        if self._settings.exposed is not None:
            from django_websocket.handler.sampling import Sampling

            if self._slot is None:
                self.log.warning("There are too many workers: what this one counts is not among the metrics.")
            self._sampling = Sampling(self._settings.exposed, self._slot if self.has_process else None)
        self._drain_window = self._settings.drain_window if self.serves_many and not self.cfg.reload else 0.0
        longest_drain = drain_time(self.cfg.graceful_timeout) / 2 if self._drain_window else math.inf
        for message in checks.check_worker(self._settings, self.cfg.workers, longest_drain):
            self.log.warning("%s", checks.sentence(message))
        if self.logs_at_end and journal.is_on(self.log, self.cfg):
            self._journal = Journal(self.log.access)
        if hasattr(self.log, "atoms_wrapper_class"):  # else it is a project's own
            self.log.atoms_wrapper_class = journal.safe(self.log.atoms_wrapper_class)
        self._application: WSGIApplication = application
        self.wsgi: Any = self._call

    def _refuse_unpatched(self) -> NoReturn:
        """Stop for good: all clients would share one database connection, and so one transaction."""
        self.log.error("%s", UNPATCHED)
        sys.exit(APP_LOAD_ERROR)

    @contextlib.contextmanager
    def _compatible(self) -> Iterator[None]:
        """Stop for good, with a sentence in the log, if a library is installed that the package cannot work with."""
        try:
            yield
        except compat.Incompatible as error:
            self.log.error("%s", error)
            sys.exit(APP_LOAD_ERROR)

    # --- a request -----------------------------------------------------------------------------------------------

    def _serve(self, tls: ssl.SSLContext | None, at: Any, client: Any, address: Any) -> None:
        """Serve one client, until it leaves or its socket is given away; in a greenlet of its own."""
        current = current_client()
        current.limit(self._settings.handshake_timeout, SlowHead())
        held = None
        try:
            if tls is not None:
                client = client.cooperative()
                client = current.client = tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
                held = client.makefile("rb", buffering=0)  # gunicorn closes it without close_notify
                client.do_handshake()
            self.handle(Listener(at), client, address)
        except ConnectionOver:
            pass  # the worker stops during the TLS handshake; at any later time gunicorn catches it
        except (SlowHead, OSError) as error:
            report(peer(address), None, "the TLS handshake failed", str(error))
        finally:
            if forking.in_child():
                forking.end_child(sys.exc_info()[1])
            current.unlimit()
            if held is not None:
                if not current.given_away:
                    hang_up(client)
                held.close()
            client.close()
            if current.serves_pages:
                self._close_databases()  # only this greenlet could have used them again

    def timeout_ctx(self) -> Any:
        """Limit the time for a request's head, where gunicorn knows only `keepalive`."""
        if current_client().request is None:
            return contextlib.nullcontext()  # the deadline has run since the client was accepted
        return NextHead(self.cfg.keepalive, self._settings.handshake_timeout)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        """Serve one request, which the greenlet keeps for `_call`."""
        current = current_client()
        current.unlimit()
        current.waits_for_head = False
        current.request = req
        current.response = None
        let_others_run_if_spent()
        try:
            return super().handle_request(listener_name, req, sock, addr)
        except TimeoutError as error:
            if not was_given_up(error):
                raise
            report(peer(addr), None, "the answer was not read")
            raise AnswerNotTaken from None
        finally:
            req.unreader.sock = sock

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what is not a request, or did not come in time, with one line in the log."""
        current = current_client()
        current.unlimit()
        what, why = "the head of the request", type(exc).__name__  # the client may have made up the rest of its text
        answered = False
        if isinstance(exc, SlowBody):
            status, what, why = HTTPStatus.REQUEST_TIMEOUT, "the body of the request", str(exc)
            answered = current.response is not None and current.response.headers_sent
        elif isinstance(exc, SlowHead):
            status, why = HTTPStatus.REQUEST_TIMEOUT, str(exc)
        elif current.waits_for_head and isinstance(exc, errors.ParseException):
            status = STATUS.get(type(exc), HTTPStatus.BAD_REQUEST)
        elif isinstance(exc, ssl.SSLError):
            report(peer(addr), None, "TLS failed", str(exc))
            return
        else:
            super().handle_error(req, client, addr, exc)
            return
        report(peer(addr), None if answered else status, what, why)
        if answered:
            return  # the end of the connection tells the client that the answer is not whole
        with contextlib.suppress(OSError):
            write_error(client, status.value, status.phrase, "")
        close_graceful(client, LINGER)

    def _call(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Call the application; where it accepts an upgrade, return a `Handover`."""
        current = current_client()
        if not is_upgrade(environ.get("HTTP_UPGRADE", "")):
            current.serves_pages = True
            give_up_after(self._settings.send_timeout, environ["gunicorn.socket"])
            current.response = getattr(start_response, "__self__", None)
            current.request.unreader.sock = BodySocket(environ["gunicorn.socket"], self._settings.handshake_timeout)
            return self._run_application(environ, start_response)
        started = time.monotonic()
        request = current.request
        # The client may have sent frames behind its request. If it is refused, they must not be read as a request.
        request.force_close()
        upgrade = environ[KEY] = Upgrade(self._address(request, environ))
        if self._journal is not None:
            upgrade.notes = Notes()
            environ[journal.CLIENT] = upgrade.address or "unix"
        if self._is_said_to_be_secure(request, environ):
            environ["wsgi.url_scheme"] = "https"
        if not self._has_room(environ["gunicorn.socket"]):
            report(who(environ), 503, "the process has as many clients as it may have")
            count_refusal(503)
            headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))]
            start_response("503 Service Unavailable", [*headers, ("Retry-After", str(RETRY_AFTER))])
            return [BODY]
        try:
            result = upgrade.begun(self._run_application(environ, upgrade.watch(start_response)))
        except BaseException:
            upgrade.fail("The request ended with an error")
            raise
        if not upgrade.recognised:
            report(who(environ), int(upgrade.status[:3]), "the application serves no WebSockets", NO_WEBSOCKETS)
        if upgrade.accepted:
            return Handover(upgrade, result, environ, start_response.__self__, started)  # type: ignore[attr-defined]
        upgrade.fail(f"The request was answered with {upgrade.status}: a middleware replaced the 101")
        if upgrade.notes is not None:
            environ[journal.VIEW] = journal.known(upgrade.notes.view)
            environ[journal.USER] = journal.known(upgrade.notes.user())
        give_up_after(self._settings.send_timeout, environ["gunicorn.socket"])
        return result

    def _run_application(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Call the application. A child process that it forks does not come back from it, however it ends."""
        try:
            result = self._application(environ, start_response)
        except BaseException as error:
            if forking.in_child():
                forking.end_child(error)
            raise
        if forking.in_child():
            forking.end_child()
        return result

    def _has_room(self, sock: Any) -> bool:
        """Return whether there is room for the client of `sock`, which has the lowest descriptor that was free."""
        wanted = self._settings.max_connections
        if wanted is not None and len(open_connections()) + len(self._acceptor.serving) > wanted:
            return False
        return bool(sock.fileno() < self._last_descriptor)

    def _address(self, request: Any, environ: dict[str, Any]) -> str:
        """Return the client's address for the log: from a trusted proxy's header, or the peer's."""
        forwarded = environ.get("HTTP_X_FORWARDED_FOR")
        # A proxy that speaks the PROXY protocol passes headers on as the client sent them.
        if forwarded and not request.proxy_protocol_info and believes(self.cfg, request.peer_addr):
            return str(forwarded.rpartition(",")[2].strip()[:64])
        return str(environ["REMOTE_ADDR"])

    def _is_said_to_be_secure(self, request: Any, environ: dict[str, Any]) -> bool:
        """Whether a proxy that is to be believed says "wss" of a handshake; gunicorn knows "https" only."""
        said = any(environ.get(name) == "wss" for name in self._scheme_headers)
        return said and believes(self.cfg, request.peer_addr)

    def is_already_handled(self, respiter: Any) -> bool:
        """Hand an upgraded socket over, and leave gunicorn's loop over the requests of a connection."""
        if type(respiter) is Handover:
            self._hand_over(respiter)
            raise GivenAway
        if type(respiter) is Unlogged:
            return self._answer_unlogged(respiter)
        return bool(super().is_already_handled(respiter))

    def _answer_unlogged(self, body: Unlogged) -> bool:
        """Answer as gunicorn does, but leave the answer out of the access log."""
        response = current_client().response
        for part in body:
            response.write(part)
        response.close()
        if response.should_close():
            raise NoFurtherRequest
        return True

    def _hand_over(self, handover: Handover) -> None:
        upgrade, result, environ, response, started = handover
        current = current_client()
        request = current.request
        sock = environ["gunicorn.socket"]
        try:
            try:
                head = upgrade.head()
            finally:
                finish(result)  # the end of the request, for Django
            if not self.logs_at_end:
                response.status, response.headers = upgrade.status, upgrade.headers
                self.log.access(response, request, environ, timedelta(seconds=time.monotonic() - started))
            if current.serves_pages:
                give_up_after(0, sock)  # the WebSocket has its own limits
            early = request.unreader.take_buffered()
            forget_request(environ)
            response.headers_sent = True
            current.given_away = True
            notes = upgrade.notes
            connection = upgrade.open(give_away(sock), early, head)
            if self._journal is not None and notes is not None:
                self._journal.begin(connection, upgrade.status, upgrade.headers, environ, notes, started)
        except BaseException as error:
            upgrade.fail(f"The handshake ended with {error!r}")
            raise

    # --- a child of the process ----------------------------------------------------------------------------------

    def _hold_signals(self) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self.SIGNALS)

    def _take_signals(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _leave_to_parent(self) -> list[Any]:
        """Return the sockets that are the parent's alone, and let signals end the child."""
        signal.set_wakeup_fd(-1)
        for number in self.SIGNALS:
            if getattr(signal.getsignal(number), "__self__", None) is self:
                signal.signal(number, signal.SIG_DFL)
        of_metrics = [] if self._sampling is None else self._sampling.sockets()
        return [*self.sockets, *self._acceptor.clients(), *of_metrics]

    # --- the end of the process ----------------------------------------------------------------------------------

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop because of SIGTERM, and wake `run()` at once."""
        super().handle_exit(sig, frame)
        if self._told_to_stop is not None:
            self._told_to_stop.set()

    def handle_abort(self, sig: int, frame: FrameType | None) -> None:
        """Say what has held the loop when gunicorn loses its patience, which kills the worker then."""
        try:
            self.log.error("The worker was held for longer than gunicorn's `timeout`: %s", culprit_of(frame))
        finally:
            super().handle_abort(sig, frame)

    def run(self) -> None:
        """Serve until told to stop; then let requests and conversations end before the process does."""
        tls = ssl_context(self.cfg) if self.cfg.is_ssl else None
        remember_settings(self.cfg)
        gc.collect()
        gc.freeze()  # the project itself stays, so the collector need not look through it each time
        batch = 1 if self.cfg.workers > 1 else BATCH
        self._acceptor = Acceptor(
            self.sockets, partial(self._serve, tls), self.worker_connections, batch, tls=tls is not None
        )
        forking.leave_to_parent(self._leave_to_parent)
        go_on = self._take_signals  # a signal for the child waits until the worker's handlers are gone from it
        os.register_at_fork(before=self._hold_signals, after_in_parent=go_on, after_in_child=go_on)
        self._acceptor.start()
        if self._sampling is not None:
            self._sampling.start()
        self._drain = Drain(
            self._acceptor.serving,
            drain_time(self.cfg.graceful_timeout),
            self._drain_window,
            self.tmp.notify,
        )
        self._told_to_stop = told_to_stop = Event()
        heartbeat = gevent.get_hub().loop.timer(HEARTBEAT, repeat=HEARTBEAT)
        heartbeat.start(told_to_stop.set)
        watch = watch_of_loop()
        watch.harmless(heartbeat)
        if self.has_process:
            watch.start()
        try:
            while self.alive and not forking.in_child():
                self.notify()
                told_to_stop.wait()
                told_to_stop.clear()
        except SystemExit:  # SIGINT, SIGQUIT
            self._drain.window = 0.0
            raise
        finally:
            if forking.in_child():
                forking.end_child(sys.exc_info()[1])
            self._acceptor.close()
            for sock in self.sockets:
                sock.close()
            if self._sampling is not None:
                self._sampling.leave_port()
            draining = gevent.spawn(self._drain.run)
            while not draining.ready():
                try:
                    draining.join()
                except SystemExit:  # the arbiter kills soon; Ctrl-C comes twice, from the terminal and from the arbiter
                    self._drain.window = 0.0
            if self._sampling is not None:
                self._sampling.stop()
            if self._journal is not None:
                self._journal.finish()
            watch.stop()
            heartbeat.close()


def raise_descriptor_limit() -> int:
    """Raise the limit on open files as far as the system lets, since each client is one; return the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # where "unlimited" is more than the system means
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def remember_settings(cfg: Any) -> None:
    """Make gunicorn's settings plain attributes: a request reads forty, each through an AttributeError otherwise."""
    names = (name for name in cfg.settings if not hasattr(type(cfg), name))
    vars(cfg).update({name: getattr(cfg, name) for name in names})


def peer(address: Any) -> str:
    """Return the address of a socket's peer for the log."""
    return str(address[0]) if address else "unix"


def believes(cfg: Any, address: Any) -> bool:
    """Return whether gunicorn's `forwarded_allow_ips` trusts the peer at `address`, as it does any Unix socket."""
    if not isinstance(address, tuple) or "*" in cfg.forwarded_allow_ips:
        return True
    ip = ipaddress.ip_address(address[0])
    return any(ip in network for network in cfg.forwarded_allow_networks())

"""The WSGI application that serves a project's WebSockets, beside its pages or without them."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import django
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.apps import apps
from django.core.exceptions import DisallowedHost, ImproperlyConfigured
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseBase
from django.urls import resolve
from django.utils.module_loading import import_string
from django.utils.translation import activate, get_language_from_path
from gevent import getcurrent

from django_websocket import checks, compat, conf

from .decorators import Options, is_asgi, name_of, options_of
from .exceptions import BrokerError
from .handler import health, stock
from .handler.conversation import Conversation
from .handler.counting import count_handshake
from .handler.databases import close_databases
from .handler.handshake import Interrupted
from .handler.origin import origin_is_allowed
from .handler.recognition import checks_origin, recognised, unserved
from .handler.refusal import close_at_once, refuse, refuse_origin, refuses_by_closing, try_again_later
from .handler.request import WebSocketRequest
from .handler.upgrade import HANDSHAKE_KEY, KEY, who
from .handler.users import name_if_known
from .protocol.handshake import ClientHandshake, HandshakeError, check_request, is_upgrade, upgrade_required
from .transport.clients import ClientGreenlet
from .transport.counts import count_refusal, counts
from .transport.log import report
from .transport.subprotocol import NAME as SUBPROTOCOL

with compat.naming("application"):
    from django.core.handlers.wsgi import WSGIHandler
    from django.urls import ResolverMatch, get_resolver, set_urlconf

__all__ = ["get_wsgi_websocket_application"]

WSGIApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
MAX_HEAD = 32 * 1024  # bytes of a handshake's head; nginx lets no more pass by default, and gunicorn 800 KiB
MAX_PARTS = 500  # headers, cookies and parameters of the query in it; browsers keep 180 cookies for a site
MAX_BEGINNINGS = 1000  # views whose start is built once and kept
BESIDE_PAGES = "/django_websocket/connection/live/"  # ends the address of the WebSocket that `admin.py` has
NOT_ON_101 = ("Content-Type", "Content-Length")
PARTS = ("protocol", "connections", "application")  # of the package, which rely on other libraries

logger = logging.getLogger("django_websocket")


def get_wsgi_websocket_application(http: WSGIApplication | None = None) -> WebSocketApplication:
    """Return the WSGI application for the views of `WEBSOCKET_URLCONF`: `websocket` in the project's wsgi.py.

    Requests that are not WebSocket handshakes go to `http`, for example Django's own `get_wsgi_application()`, so that
    one process serves both; without it, they are answered with 426. Where `WEBSOCKET_URLCONF` is not set and
    `ASGI_APPLICATION` is, that application gets the handshakes.

    Raises ImproperlyConfigured for a mistake in the settings, such as a missing `WEBSOCKET_URLCONF`, and ImportError
    for an incompatible library.
    """
    django.setup(set_prefix=False)
    return WebSocketApplication(http, asgi_application())


def asgi_application() -> Callable[..., Any] | None:
    """Return the application of `ASGI_APPLICATION` if it is to get the handshakes; None if WEBSOCKET_URLCONF is set."""
    settings = conf.current()
    if settings.urlconf or not settings.asgi_application:
        return None
    application: Callable[..., Any] = import_string(settings.asgi_application)
    return application


def serve_asgi(application: Callable[..., Any]) -> WebSocketApplication:
    """Return what serves an ASGI application: it gets the handshakes, and Django's WSGI application all other requests.

    For a server that was given the project's asgi.py.
    """
    django.setup(set_prefix=False)
    return WebSocketApplication(WSGIHandler(), application)


class WebSocketApplication:
    """Tells handshakes from other requests, and answers both."""

    def __init__(self, http: WSGIApplication | None = None, asgi: Callable[..., Any] | None = None) -> None:
        compat.verify(*PARTS)
        stock.prepare()
        check_settings(urlconf=asgi is None)
        log_warnings()
        exposed = conf.current().exposed
        self._metrics = "" if exposed is None else exposed.path
        if exposed is not None and not counts.wanted:
            from .handler.sampling import begin_to_count

            begin_to_count(None)  # a worker of ours says more when it has loaded the application
        self._answers_checks = conf.current().health
        self._http = http
        self._websocket = WebSocketHandler() if asgi is None else AsgiHandler(asgi)

    def app_protocol(self, path: str) -> str:
        """Tell gevent-websocket's worker which subprotocol to choose if it is offered."""
        return SUBPROTOCOL

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        if not is_upgrade(environ.get("HTTP_UPGRADE", "")):
            if self._metrics and environ.get("PATH_INFO") == self._metrics:
                from .handler.scraping import answer

                return answer(environ, start_response)
            if self._answers_checks and environ.get("PATH_INFO") in health.PATHS:
                return health.answer(environ, start_response)
            if self._http is not None:
                return self._http(environ, start_response)
            report(who(environ), 426, "an ordinary request", level=logging.INFO)
            return refuse(upgrade_required(), start_response)
        upgrade = environ.get(KEY)
        if upgrade is not None:
            upgrade.recognised = True
        try:
            environ[HANDSHAKE_KEY] = client_handshake(environ)
        except HandshakeError as error:
            report(who(environ), error.status, error.reason)
            count_refusal(error.status)
            if "wsgi.websocket" in environ:
                return stock.adopt(environ, functools.partial(refuse, error))
            return refuse(error, start_response)
        if upgrade is not None:
            return self._websocket(environ, start_response)
        if "wsgi.websocket" in environ:
            return stock.adopt(environ, functools.partial(self._websocket, environ))
        logger.error(
            "A WebSocket handshake came to a server that cannot answer it. "
            "Start gunicorn with -k django_websocket.worker.GeventWebSocketWorker"
        )
        return refuse(HandshakeError(501, "This server cannot switch protocols."), start_response)


class WebSocketHandler(WSGIHandler):
    """Django's handler, with the views of `WEBSOCKET_URLCONF`, each in a greenlet of its own."""

    request_class = WebSocketRequest

    def get_response(self, request: HttpRequest) -> HttpResponseBase:
        """Run the request through the middleware."""
        begin = perf_counter()
        response = super().get_response(request)
        if counts.wanted:
            match = request.resolver_match
            count_handshake(None if match is None else match.func, response.status_code, perf_counter() - begin)
        notes = request.META[KEY].notes
        if notes is not None:
            match = request.resolver_match
            notes.view = "" if match is None else name_of(match.func)
            notes.request = weakref.ref(request)
            notes.user = functools.partial(name_if_known, notes.request)
        if response.status_code != 101 and refuses_by_closing(request, response):
            response = close_at_once(request, response)
        if response.status_code == 101:
            for name in NOT_ON_101:
                response.headers.pop(name, None)
        current = getcurrent()
        if response.status_code != 101 or not isinstance(current, ClientGreenlet) or current.uses_databases:
            closers: list[Callable[[], None]] = response._resource_closers  # type: ignore[attr-defined]
            closers.append(close_databases)  # the greenlet that could use them again ends
        return response

    def load_middleware(self, is_async: bool = False) -> None:
        """Build the chain, and around it what logs each refusal in one line, in place of Django's."""
        super().load_middleware(is_async)
        chain: Callable[[HttpRequest], HttpResponseBase] = self._middleware_chain  # type: ignore[has-type]

        def reporting_chain(request: HttpRequest) -> HttpResponseBase:
            try:
                request.get_host()
            except DisallowedHost:  # Django would log each one with a traceback
                response: HttpResponseBase = HttpResponseBadRequest("This Host is not served here.\n", "text/plain")
            else:
                response = chain(request)
            if response.status_code != 101 and not getattr(response, "_has_been_logged", False):
                report(who(request.META), response.status_code, response.reason_phrase)
                response._has_been_logged = True  # type: ignore[attr-defined]
            return response

        self._middleware_chain = reporting_chain

    def resolve_request(self, request: HttpRequest) -> ResolverMatch:
        """Find the view, or the one that refuses a page of a foreign site before any decorator runs."""
        if hasattr(request, "urlconf"):
            set_urlconf(request.urlconf)  # set by a middleware; `reverse()` finds the pages in it
        match = self.find(request)
        match.tried = None  # it is for the page of a 404 alone
        request.resolver_match = match
        request._cache_update_cache = False  # type: ignore[attr-defined]  # a refusal is not kept in the cache
        if not self.allows_origin(request, match.func):
            return ResolverMatch(refuse_origin, (), {})
        return match

    def find(self, request: HttpRequest) -> ResolverMatch:
        """Return the view for the path. Raises Http404."""
        return find_beside_pages(request) or find_view(request)

    def allows_origin(self, request: HttpRequest, view: Callable[..., Any]) -> bool:
        """Whether the page that asks may connect."""
        options = options_of(view) or Options()
        return origin_is_allowed(request, options.origins)

    def make_view_atomic(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """Return what Django calls in place of the view: its start, within the transaction of ATOMIC_REQUESTS."""
        if view is refuse_origin:
            return view
        atomic: Callable[..., HttpResponseBase] = super().make_view_atomic(beginning_of(view))
        return atomic

    def process_exception_by_middleware(self, exception: Exception, request: HttpRequest) -> HttpResponse:
        """Answer a view's exception: 503 if the broker cannot be reached or the process ends, else as Django does."""
        if isinstance(exception, (BrokerError, Interrupted)):
            level = logging.ERROR if isinstance(exception, BrokerError) else logging.INFO
            report(who(request.META), 503, str(exception), level=level)
            return try_again_later()
        return super().process_exception_by_middleware(exception, request)


class AsgiHandler(WebSocketHandler):
    """Has one ASGI application answer all handshakes, which brings its own middleware.

    Django's is left out, but not the checks of the Host and, unless the application has its own, of the page's origin.
    """

    def __init__(self, application: Callable[..., Any]) -> None:
        from .handler.asgi import Mounted

        self._view = Mounted(recognised(application))
        self._checks_origin = checks_origin(application)
        for sentence in unserved(application):
            logger.warning("%s", sentence)
        super().__init__()

    def load_middleware(self, is_async: bool = False) -> None:
        """Build a chain without the project's middleware."""
        with conf.without_middleware():
            super().load_middleware(is_async)

    def find(self, request: HttpRequest) -> ResolverMatch:
        """Return the application, whatever the path is."""
        return ResolverMatch(self._view, (), {})

    def allows_origin(self, request: HttpRequest, view: Callable[..., Any]) -> bool:
        """Whether the page that asks may connect, or that is for the application to decide."""
        return self._checks_origin or super().allows_origin(request, view)


def find_beside_pages(request: HttpRequest) -> ResolverMatch | None:
    """Return the WebSocket of the admin's page, whose address is among those of the pages; None for all else."""
    if not request.path_info.endswith(BESIDE_PAGES) or not apps.is_installed("django.contrib.admin"):
        return None
    try:
        match = resolve(request.path_info, getattr(request, "urlconf", None))
    except Http404:
        return None
    view = getattr(match.func, "websocket_beside_pages", None)
    return None if view is None else ResolverMatch(view, match.args, match.kwargs, match.url_name)


def find_view(request: HttpRequest) -> ResolverMatch:
    """Resolve the path among the WebSocket views. Raises Http404.

    Django's LocaleMiddleware goes by the language in the path only if the pages have `i18n_patterns`. Where only these
    views have them, the path is looked up again in its own language.
    """
    resolver = get_resolver(conf.current().required_urlconf())
    try:
        return resolver.resolve(request.path_info)
    except Http404:
        language = get_language_from_path(request.path_info) or conf.current().language_code
        accepted = getattr(request, "LANGUAGE_CODE", language)  # without that middleware nobody chooses a language
        if language == accepted:
            raise
        activate(language)
        try:
            match = resolver.resolve(request.path_info)
        except Http404:
            activate(accepted)
            raise
        request.LANGUAGE_CODE = language
        return match


def beginning_of(view: Callable[..., Any]) -> Callable[..., HttpResponseBase]:
    """Return what starts a view for one request, in a conversation."""
    begin = _beginnings.get(id(view))
    if begin is None:
        begin = make_beginning(view)
        while len(_beginnings) >= MAX_BEGINNINGS:
            del _beginnings[next(iter(_beginnings))]
        _beginnings[id(view)] = begin
    return begin


def make_beginning(view: Callable[..., Any]) -> Callable[..., HttpResponseBase]:
    """Return a new function that starts `view` for one request."""
    conversation: Callable[..., Any] = Conversation
    if is_asgi(view):
        from .handler.asgi import AsgiConversation

        view, conversation = recognised(view), AsgiConversation
    elif iscoroutinefunction(view):
        from .handler.coroutine import CoroutineConversation

        conversation = CoroutineConversation

    def begin(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        answer: HttpResponseBase = conversation(request, request.META[HANDSHAKE_KEY], view, args, kwargs).begin()
        return answer

    functools.update_wrapper(begin, view)
    for mark in COROUTINE_MARKS:  # or Django would await the response
        vars(begin).pop(mark, None)
    return begin


COROUTINE_MARKS = frozenset(vars(markcoroutinefunction(lambda: None)))


# By the identity of the view, which the function keeps alive: views that compare equal may still behave differently.
_beginnings: dict[int, Callable[..., HttpResponseBase]] = {}


def check_settings(*, urlconf: bool = True) -> None:
    """Raise ImproperlyConfigured for the errors that the system checks find, which a server does not run by itself.

    Without `urlconf`, none has to be set.
    """
    errors = [message for message in checks.check() if message.is_serious()]
    if not urlconf:
        errors = [error for error in errors if error.id != "websocket.E002"]
    if errors:
        raise ImproperlyConfigured("\n".join(f"{error.msg} {error.hint or ''}" for error in errors))


@functools.cache  # there may be several applications
def log_warnings() -> None:
    """Log the warnings of the system checks."""
    for message in (*checks.check(), *checks.check_libraries(*PARTS)):
        if not message.is_serious() and not message.is_silenced():
            logger.warning("%s", checks.sentence(message))


def check_head(environ: dict[str, Any]) -> None:
    """Raise `HandshakeError` for a head that is too large to be kept for as long as the client stays."""
    kept = [(name, value) for name, value in environ.items() if name.startswith("HTTP_")]
    address = environ.get("RAW_URI") or environ.get("PATH_INFO", "") + environ.get("QUERY_STRING", "")
    size = len(address) + sum(len(name) + len(value) for name, value in kept)
    if size > MAX_HEAD:
        raise HandshakeError(431, f"The head of a WebSocket handshake may have at most {MAX_HEAD} bytes.")
    parts = len(kept) + environ.get("HTTP_COOKIE", "").count(";") + environ.get("QUERY_STRING", "").count("&")
    if parts > MAX_PARTS:
        raise HandshakeError(
            431, f"A WebSocket handshake may have at most {MAX_PARTS} headers, cookies and parameters."
        )


def client_handshake(environ: dict[str, Any]) -> ClientHandshake:
    """Return what the client asks for. Raises `HandshakeError` unless it is a handshake (RFC 6455, section 4.2.1)."""
    check_head(environ)
    headers = {
        "upgrade": environ["HTTP_UPGRADE"],
        "connection": environ.get("HTTP_CONNECTION", ""),
        "host": environ.get("HTTP_HOST", ""),
        "content-length": environ.get("CONTENT_LENGTH") or "0",
        "sec-websocket-version": environ.get("HTTP_SEC_WEBSOCKET_VERSION", ""),
        "sec-websocket-key": environ.get("HTTP_SEC_WEBSOCKET_KEY", ""),
        "sec-websocket-protocol": environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", ""),
        "sec-websocket-extensions": environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""),
    }
    if "HTTP_TRANSFER_ENCODING" in environ:
        headers["transfer-encoding"] = environ["HTTP_TRANSFER_ENCODING"]
    return check_request(environ["REQUEST_METHOD"], environ["SERVER_PROTOCOL"], headers)

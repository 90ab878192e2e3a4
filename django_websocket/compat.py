"""The names in other libraries that this package needs although those libraries do not promise to keep them.

`RELIED_ON` lists them all, and a test fails for any private name that the package uses and the list does not have. If a
module needs such a name at the top, it imports the name within `naming()`. The other names are checked once, by
`verify()`, when a server starts. When a name is gone, one sentence says which one and what to install. This module
imports other libraries only inside functions, so every layer may use it. Private to this package.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

__all__ = ["RELIED_ON", "Incompatible", "Name", "apply_mask", "is_there", "masking", "missing", "naming", "verify"]

OURS = "django-gevent-websocket"  # on PyPI
PYTHON = "Python"
BOUND = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])? *>= *([0-9.]+)")  # a dependency in the package's metadata


class Incompatible(ImportError):
    """A library lacks a name that the package needs. The text says which name it is and what to install."""


class Name(NamedTuple):
    """A name that the package relies on.

    `path` says where the name is: "module:name", or "module:Class.name". `use` says what the package uses it for, and
    completes the sentence "..., which ...". `made` returns an object that has the name, for a name that only instances
    have. `probe` returns whether the name still behaves as expected. `instead` says what happens without the name, if
    the package can do without it.
    """

    library: str  # its name on PyPI
    path: str
    use: str
    made: Callable[[], object] | None = None
    probe: Callable[[], bool] | None = None
    instead: str = ""

    def __str__(self) -> str:
        return self.path.replace(":", ".")


# --- objects that have the names, and probes --------------------------------------------------------------------------


def _loop() -> object:
    import gevent

    return gevent.config.loop  # the class, so that no loop has to be made


def _new_gunicorn_config() -> Any:
    from gunicorn.config import Config

    return Config()


_gunicorn_config = cache(_new_gunicorn_config)  # a dozen names need one, and nothing else here takes as long to make


def _gunicorn_request() -> Any:
    from gunicorn.http.parser import RequestParser

    parser = RequestParser(_gunicorn_config(), iter([b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"]), ("127.0.0.1", 1))
    return next(parser)


def _gunicorn_unreader() -> object:
    from gunicorn.http.unreader import SocketUnreader

    return SocketUnreader(object())


def _gunicorn_response() -> object:
    from gunicorn.http.wsgi import Response

    return Response(_gunicorn_request(), None, _gunicorn_config())


def _settings_can_be_attributes() -> bool:
    config = _new_gunicorn_config()
    vars(config)["keepalive"] = value = object()
    return config.keepalive is value and "keepalive" in config.settings


def _setup_is_called() -> bool:
    called = []

    class Worker:
        @classmethod
        def setup(cls) -> None:
            called.append(cls)

    config = _new_gunicorn_config()
    config.set("worker_class", Worker)
    return config.worker_class is Worker and called == [Worker]


def _greenlets_can_be_untracked() -> bool:
    from gevent import Greenlet, config

    setting = config.settings["track_greenlet_tree"]
    tracked, setting.value = config.track_greenlet_tree, False
    made: Any = Greenlet(list)
    setting.value = tracked
    return made.spawning_stack is None


def _hub_is_a_greenlet() -> bool:
    from gevent.hub import Hub
    from greenlet import greenlet

    return issubclass(Hub, greenlet)


def _hub_can_be_a_subclass() -> bool:
    from gevent.hub import Hub

    class Subclass(Hub):
        __slots__ = ()

    hub = Hub.__new__(Hub)
    hub.__class__ = Subclass
    return callable(hub.switch)


def _asyncio_loop() -> object:
    from asyncio import BaseEventLoop

    loop = BaseEventLoop()
    loop.close()
    return loop


def _channels_router() -> object:
    from channels.routing import URLRouter

    return URLRouter([])


def _channels_protocols() -> object:
    from channels.routing import ProtocolTypeRouter

    return ProtocolTypeRouter({})


def _channels_session() -> object:
    from channels.sessions import InstanceSessionWrapper

    return InstanceSessionWrapper({"session": None}, None)


def _redis_connection() -> object:
    import redis

    make: Callable[[], object] = redis.Connection
    return make()


def _locals_of_two_contexts_differ() -> bool:
    from contextvars import copy_context

    from asgiref.local import Local

    def probe() -> bool:
        local: Any = Local()
        local.language = "of the view"
        of_view = copy_context()
        local.language = "of the request, later"
        return bool(of_view.run(lambda: local.language) == "of the view")

    return copy_context().run(probe)


def _django_request() -> Any:
    from io import BytesIO

    from django.core.handlers.wsgi import WSGIRequest

    return WSGIRequest({"REQUEST_METHOD": "POST", "wsgi.input": BytesIO()})


def _django_response() -> Any:
    from django.http import HttpResponse

    return HttpResponse(b"", "text/plain", 400)


def _logged_responses_are_marked() -> bool:
    import logging

    from django.utils.log import log_response

    response = _django_response()
    logger = logging.Logger("django_websocket.compat", logging.CRITICAL + 1)
    log_response("", response=response, request=_django_request(), logger=logger)
    return response._has_been_logged is True


def _cache_is_told() -> bool:
    from django.middleware.cache import FetchFromCacheMiddleware

    request = _django_request()
    FetchFromCacheMiddleware(lambda request: _django_response()).process_request(request)
    return request._cache_update_cache is False


def _messages_are_with_the_request() -> bool:
    from django.contrib.messages.middleware import MessageMiddleware

    request = _django_request()
    request.session = {}
    MessageMiddleware(lambda request: _django_response()).process_request(request)
    return vars(request)["_messages"].request is request


def _lazy_object() -> Any:
    from django.utils.functional import SimpleLazyObject

    return SimpleLazyObject(dict)


def _lazy_object_shows_its_state() -> bool:
    from django.utils.functional import empty

    lazy = _lazy_object()
    before = lazy._wrapped is empty
    len(lazy)
    return before and lazy._wrapped is not empty


def _database() -> Any:
    from django.db.backends.dummy.base import DatabaseWrapper

    return DatabaseWrapper({"TIME_ZONE": None}, "default")


def _is_shared_when_told() -> bool:
    wrapper = _database()
    before = wrapper.allow_thread_sharing
    wrapper.inc_thread_sharing()
    shared = wrapper.allow_thread_sharing
    wrapper.dec_thread_sharing()
    return not before and shared and not wrapper.allow_thread_sharing


def _refers_back(name: str, back: str) -> Callable[[], bool]:
    def probe() -> bool:
        wrapper = _database()
        return getattr(getattr(wrapper, name), back) is wrapper and name in vars(wrapper)

    return probe


def _takes(path: str, *args: object, **kwargs: object) -> Callable[[], bool]:
    """Return a probe that checks whether a function, called or overridden here, still takes these arguments."""

    def probe() -> bool:
        import inspect

        inspect.signature(_at(path)).bind(*args, **kwargs)
        return True

    return probe


def _runserver() -> Any:
    from django.core.management.commands.runserver import Command

    return Command()


def _raw_ipv6_is_bracketed() -> bool:
    from io import StringIO

    from django.core.management.commands.runserver import Command

    command: Any = Command(stdout=StringIO(), no_color=True)
    command.addr, command.port, command._raw_ipv6 = "::1", "8000", True
    command.on_bind("8000")
    return "[::1]:8000" in command.stdout.getvalue()


def _reloader() -> object:
    from django.utils.autoreload import StatReloader

    return StatReloader()


def _live_server() -> object:
    from django.test.testcases import LiveServerThread

    make: Callable[..., object] = LiveServerThread
    return make("localhost", None)


def _stock_websocket() -> Any:
    from types import SimpleNamespace

    from geventwebsocket.websocket import WebSocket

    return WebSocket({}, SimpleNamespace(read=None, write=None), SimpleNamespace())


# --- the names --------------------------------------------------------------------------------------------------------

BASE = "django.db.backends.base.base:BaseDatabaseWrapper"
SELECTOR_LOOP = "asyncio:SelectorEventLoop"
HANDLER = "django.core.handlers.wsgi:WSGIHandler"
RUNSERVER = "django.core.management.commands.runserver:Command"
LIVE = "django.test.testcases:LiveServerThread"
WORKER = "gunicorn.workers.ggevent:GeventWorker"
REQUEST = "gunicorn.http.message:Request"
STOCK = "geventwebsocket.websocket:WebSocket"

# By the part of the package that relies on the names.
RELIED_ON: dict[str, list[Name]] = {
    "protocol": [
        Name(
            "websockets",
            "websockets.speedups:apply_mask",
            "unmasks what clients send",
            probe=lambda: _masks(_at("websockets.speedups:apply_mask")),
            instead="Python code does so, which is slower for large messages",
        ),
    ],
    "connections": [
        Name(
            "gevent",
            "gevent.core:loop.pendingcnt",
            "tells whether other clients are about to be read",
            _loop,
            instead="answers to several clients leave one by one",
        ),
        Name("gevent", "gevent.core:loop.ref", "keeps the loop running while a deadline runs", _loop),
        Name("gevent", "gevent.core:loop.unref", "lets the loop end when no deadline runs", _loop),
        Name("gevent", "gevent.core:loop.io", "makes the watchers of a socket, and shows whether one is active", _loop),
        Name("gevent", "gevent:Greenlet._run", "is what the greenlet of a view runs"),
        Name(
            "gevent",
            "gevent:config.settings",
            "keeps greenlets from knowing which one made them",
            probe=_greenlets_can_be_untracked,
            instead="each handshake takes a tenth longer",
        ),
        Name(PYTHON, "sys:_current_frames", "shows what holds the loop"),
        Name("gevent", "gevent.hub:Hub", "is the greenlet that runs while others wait", probe=_hub_is_a_greenlet),
        Name("gevent", "gevent.hub:Hub.loop", "shows whether a thread's loop has ended"),
        Name("gevent-websocket", "geventwebsocket.exceptions:WebSocketError", "is the base of the package's errors"),
        Name(PYTHON, "os:_exit", "ends a child process without the code of its parent"),
        Name(PYTHON, "_socket:socket", "is the kernel's socket of a client, without the cost of gevent's"),
        Name(
            PYTHON,
            "socket:socket._accept",
            "accepts a client without a Python object around the kernel's socket",
            instead="each client costs one that is thrown away",
        ),
    ],
    "application": [
        Name("asgiref", "asgiref.sync:_restore_context", "carries the context of a request into its view"),
        Name("asgiref", "asgiref.sync:AsyncToSync.executors", "names the thread of asynchronous middleware"),
        Name(
            "asgiref",
            "asgiref.local:Local",
            "keeps what a request sets later, such as the language, from its view",
            probe=_locals_of_two_contexts_differ,
        ),
        Name("Django", f"{HANDLER}._middleware_chain", "is the chain of middleware that leads to a view"),
        Name(
            "Django",
            f"{HANDLER}.load_middleware",
            "builds the chain of middleware",
            probe=_takes(f"{HANDLER}.load_middleware", 0, 0),
        ),
        Name("Django", f"{HANDLER}.get_response", "runs a request", probe=_takes(f"{HANDLER}.get_response", 0, 0)),
        Name(
            "Django",
            f"{HANDLER}.resolve_request",
            "finds the view of a WebSocket",
            probe=_takes(f"{HANDLER}.resolve_request", 0, 0),
        ),
        Name(
            "Django",
            f"{HANDLER}.make_view_atomic",
            "is where a view begins",
            probe=_takes(f"{HANDLER}.make_view_atomic", 0, 0),
        ),
        Name(
            "Django",
            f"{HANDLER}.process_exception_by_middleware",
            "answers the exception of a view",
            probe=_takes(f"{HANDLER}.process_exception_by_middleware", 0, 0, 0),
        ),
        Name("Django", f"{HANDLER}.request_class", "names the class of requests"),
        Name("Django", "django.core.handlers.wsgi:WSGIRequest._get_raw_host", "returns the Host that a client sends"),
        Name("Django", "django.core.handlers.wsgi:WSGIRequest._stream", "is the body of a request", _django_request),
        Name(
            "Django",
            "django.core.handlers.wsgi:LimitedStream",
            "stands for an empty body",
            probe=_takes("django.core.handlers.wsgi:LimitedStream", 0, 0),
        ),
        Name(
            "Django",
            "django.http:HttpResponse._resource_closers",
            "is what the end of a response calls",
            _django_response,
        ),
        Name(
            "Django",
            "django.http:HttpResponse._has_been_logged",
            "keeps a refusal from being logged twice",
            probe=_logged_responses_are_marked,
            instead="it is logged twice",
        ),
        Name(
            "Django",
            "django.http:HttpRequest._cache_update_cache",
            "keeps the answer to a handshake out of the site-wide cache",
            probe=_cache_is_told,
        ),
        Name(
            "Django",
            "django.utils.functional:SimpleLazyObject._wrapped",
            "shows whether the user of a request was looked up",
            probe=_lazy_object_shows_its_state,
        ),
        Name(
            "Django",
            "django.utils.functional:SimpleLazyObject._setupfunc",
            "refers to the request of a user",
            probe=lambda: "_setupfunc" in vars(_lazy_object()),
            instead="only the garbage collector frees a request",
        ),
        Name("Django", "django.utils.functional:empty", "stands for a user that was not looked up"),
        Name(
            "Django",
            "django.http:HttpRequest._messages",
            "refers back to its request",
            probe=_messages_are_with_the_request,
            instead="only the garbage collector frees a request",
        ),
        Name(
            "Django", f"{BASE}.inc_thread_sharing", "lets a view use its request's database", probe=_is_shared_when_told
        ),
        Name(
            "Django",
            f"{BASE}.dec_thread_sharing",
            "takes the database back when the view has ended",
            probe=_is_shared_when_told,
        ),
        Name("Django", f"{BASE}.atomic_blocks", "tells a view's transactions from its request's", _database),
        Name("Django", f"{BASE}.in_atomic_block", "shows whether a transaction runs", _database),
        Name("Django", f"{BASE}.autocommit", "shows whether each query is a transaction", _database),
        Name("Django", f"{BASE}.settings_dict", "has the settings of a database", _database),
        Name("Django", f"{BASE}.make_cursor", "makes the cursors of a database"),
        Name("Django", f"{BASE}.connect", "connects to a database"),
        Name("Django", "django.db:connections.create_connection", "makes what stands for a database"),
        Name("Django", f"{BASE}._close", "closes a connection, or gives it back to a pool"),
        Name("Django", f"{BASE}.queries_logged", "shows whether queries are noted for debugging"),
        *(
            Name(
                "Django",
                f"{BASE}.{name}",
                f"refers back to its database by `{back}`",
                probe=_refers_back(name, back),
                instead="only the garbage collector frees what a view used of a database",
            )
            for name, back in (
                ("client", "connection"),
                ("creation", "connection"),
                ("features", "connection"),
                ("introspection", "connection"),
                ("ops", "connection"),
                ("validation", "connection"),
                ("wrap_database_errors", "wrapper"),
            )
        ),
        Name("Django", "django.db:connections._connections", "keeps the databases of each greenlet apart"),
        Name(
            "asgiref",
            "django.db:connections._connections._storage",
            "shows whether a greenlet has used a database",
            instead="each job of synchronous code takes 4 microseconds longer",
        ),
        Name("Django", "django.db.utils:load_backend", "finds the driver of a database"),
        Name(
            "Django",
            "django.db:connections.all",
            "returns the databases that a greenlet has used",
            probe=_takes("django.db:connections.all", initialized_only=True),
        ),
        Name("Django", "django.urls:get_resolver", "reads the views of WEBSOCKET_URLCONF"),
        Name("Django", "django.urls.resolvers:RoutePattern", "is the prefix of a mounted application"),
        Name("Django", "django.urls:set_urlconf", "makes reverse() find the pages"),
        Name("Django", "django.urls:URLPattern.lookup_str", "names a view in a message"),
    ],
    "worker": [
        Name(
            "gunicorn",
            "gunicorn.config:Config.worker_class",
            "has the master make what its workers share",
            probe=_setup_is_called,
        ),
        Name("gunicorn", f"{WORKER}.init_process", "starts a worker"),
        Name("gunicorn", f"{WORKER}.patch", "makes gevent patch the standard library"),
        Name("gunicorn", f"{WORKER}.load_wsgi", "loads the application"),
        Name("gunicorn", f"{WORKER}.run", "serves until the worker is told to stop"),
        Name("gunicorn", f"{WORKER}.notify", "tells gunicorn that the worker lives"),
        Name(
            "gunicorn", f"{WORKER}.handle_exit", "is called for SIGTERM", probe=_takes(f"{WORKER}.handle_exit", 0, 0, 0)
        ),
        Name("gunicorn", f"{WORKER}.handle", "serves a client", probe=_takes(f"{WORKER}.handle", 0, 0, 0, 0)),
        Name(
            "gunicorn",
            f"{WORKER}.timeout_ctx",
            "limits the time for a request",
            probe=_takes(f"{WORKER}.timeout_ctx", 0),
        ),
        Name(
            "gunicorn",
            f"{WORKER}.handle_request",
            "answers a request",
            probe=_takes(f"{WORKER}.handle_request", 0, 0, 0, 0, 0),
        ),
        Name(
            "gunicorn",
            f"{WORKER}.handle_error",
            "answers a malformed request",
            probe=_takes(f"{WORKER}.handle_error", 0, 0, 0, 0, 0),
        ),
        Name(
            "gunicorn",
            f"{WORKER}.is_already_handled",
            "is where a socket is handed over to its WebSocket",
            probe=_takes(f"{WORKER}.is_already_handled", 0, 0),
        ),
        Name("gunicorn", f"{REQUEST}.force_close", "makes a request the last one of its connection"),
        Name("gunicorn", f"{REQUEST}.unreader", "holds what a client sent after its request", _gunicorn_request),
        Name("gunicorn", f"{REQUEST}.proxy_protocol_info", "is the PROXY line of a client", _gunicorn_request),
        Name("gunicorn", f"{REQUEST}.peer_addr", "is the address from which a client came", _gunicorn_request),
        Name(
            "gunicorn",
            "gunicorn.http.unreader:SocketUnreader.sock",
            "is where the body of a request comes from",
            _gunicorn_unreader,
        ),
        Name("gunicorn", "gunicorn.http.unreader:Unreader.take_buffered", "hands over what came after a request"),
        Name(
            "gunicorn",
            "gunicorn.http.unreader:Unreader.unread",
            "puts back bytes that were only looked at",
            probe=_takes("gunicorn.http.unreader:Unreader.unread", 0, b""),
        ),
        Name("gunicorn", "gunicorn.http.wsgi:Response.start_response", "leads from the application to its response"),
        *(
            Name("gunicorn", f"gunicorn.http.wsgi:Response.{name}", use, _gunicorn_response)
            for name, use in (
                ("status", "tells the access log how a handshake was answered"),
                ("headers", "tells the access log which headers were sent"),
                ("headers_sent", "keeps gunicorn from answering a handshake again"),
            )
        ),
        Name(
            "gunicorn",
            "gunicorn.glogging:Logger.access",
            "writes a line of the access log",
            probe=_takes("gunicorn.glogging:Logger.access", 0, 0, 0, 0, 0),
        ),
        Name(
            "gunicorn",
            "gunicorn.glogging:Logger.atoms_wrapper_class",
            "is what a line of the access log is made of",
            instead="a path may have control characters there",
        ),
        Name("gunicorn", "gunicorn.http.wsgi:default_environ", "puts the socket into the WSGI environment"),
        *(
            Name("gunicorn", f"gunicorn.http.errors:{name}", "tells what is wrong with a request")
            for name in (
                "ExpectationFailed",
                "ForbiddenProxyRequest",
                "LimitRequestHeaders",
                "LimitRequestLine",
                "ParseException",
                "UnsupportedTransferCoding",
            )
        ),
        Name("gunicorn", "gunicorn.sock:ssl_context", "makes the TLS settings of the worker"),
        Name(
            "gunicorn",
            "gunicorn.util:close_graceful",
            "lets a client read an answer to the end",
            probe=_takes("gunicorn.util:close_graceful", 0, 0),
        ),
        Name(
            "gunicorn",
            "gunicorn.util:write_error",
            "answers a malformed request",
            probe=_takes("gunicorn.util:write_error", 0, 0, 0, 0),
        ),
        Name("gunicorn", "gunicorn.workers.workertmp:WorkerTmp.notify", "shows that a worker lives while it stops"),
        *(
            Name("gunicorn", f"gunicorn.config:Config.{name}", use, _gunicorn_config)
            for name, use in (
                ("forwarded_allow_ips", "says which proxies are trusted"),
                ("forwarded_allow_networks", "says which networks of proxies are trusted"),
                ("http_protocols", "says which protocols are served"),
                ("is_ssl", "says whether there is TLS"),
            )
        ),
        Name(
            "gunicorn",
            "gunicorn.config:Config.settings",
            "lets a setting be read without a detour",
            probe=_settings_can_be_attributes,
        ),
    ],
    "stock worker": [
        Name("gevent-websocket", f"{STOCK}.{name}", use, _stock_websocket)
        for name, use in (
            ("closed", "keeps gevent-websocket from closing what was given away"),
            ("handler", "leads to the socket of a client"),
            ("raw_read", "reads for gevent-websocket, and must not after the handover"),
            ("raw_write", "writes for gevent-websocket, and must not after the handover"),
            ("stream", "is closed by gevent-websocket when the application returns"),
        )
    ],
    "asyncio": [
        Name(PYTHON, "asyncio.events:_get_running_loop", "shows which asyncio loop runs in the thread"),
        Name(PYTHON, "asyncio.events:_set_running_loop", "hides an asyncio loop from other greenlets"),
        *(
            [Name(PYTHON, "asyncio.tasks:_swap_current_task", "hides a task from other greenlets")]
            if sys.version_info >= (3, 14)
            else []
        ),
        Name("asgiref", "asgiref.sync:SyncToAsync.threadlocal", "says in which loop async_to_sync runs"),
        Name(
            "asgiref",
            "asgiref.sync:SyncToAsync.context_to_thread_executor",
            "says where sync_to_async runs the functions of one view",
        ),
        Name(
            "asgiref",
            "asgiref.sync:SyncToAsync.thread_sensitive_context",
            "says in which view sync_to_async is called",
        ),
        Name("asgiref", "asgiref.sync:SyncToAsync.single_thread_executor", "is where sync_to_async runs functions"),
        Name(PYTHON, "asyncio:BaseEventLoop._ready", "is what an asyncio loop calls next", _asyncio_loop),
        Name(PYTHON, "asyncio:BaseEventLoop._check_closed", "raises an error if a closed asyncio loop is used"),
        Name(PYTHON, f"{SELECTOR_LOOP}._make_self_pipe", "creates the pipe that wakes an asyncio loop"),
        Name(PYTHON, f"{SELECTOR_LOOP}._close_self_pipe", "closes the pipe that wakes an asyncio loop"),
        Name(PYTHON, f"{SELECTOR_LOOP}._write_to_self", "wakes an asyncio loop"),
        Name(PYTHON, f"{SELECTOR_LOOP}._check_thread", "compares threads in asyncio's debug mode"),
        Name("gevent", "gevent.hub:Hub.switch", "lets other greenlets run", probe=_hub_can_be_a_subclass),
    ],
    "channels": [
        Name("channels", "channels.consumer:get_handler_name", "names the method that handles a message"),
        Name("channels", "channels.consumer:AsyncConsumer.dispatch", "calls the methods of an asynchronous consumer"),
        Name("channels", "channels.consumer:SyncConsumer.dispatch", "calls the methods of a synchronous consumer"),
        Name("channels", "channels.routing:URLRouter.routes", "leads to the consumers", _channels_router),
        Name(
            "channels",
            "channels.routing:ProtocolTypeRouter.application_mapping",
            "leads to the consumers",
            _channels_protocols,
        ),
        Name("channels", "channels.security.websocket:OriginValidator", "checks the page's origin"),
        Name("channels", "channels.auth:UserLazyObject", "gives a scope its user"),
        Name(
            "channels",
            "channels.sessions:InstanceSessionWrapper.real_send",
            "is what session middleware calls",
            _channels_session,
        ),
    ],
    "redis": [
        Name("redis", "redis:Connection._sock", "is the socket of a connection to Redis", _redis_connection),
        Name("redis", "redis.connection:socket", "shows whether redis-py waits as gevent does"),
        Name(
            "redis",
            "redis:Connection.read_response",
            "reads a reply where hiredis is not installed",
            probe=_takes("redis:Connection.read_response", 0, disconnect_on_error=False),
        ),
    ],
    "runwebsocket": [
        Name("Django", f"{RUNSERVER}.run", "starts a development server", probe=_takes(f"{RUNSERVER}.run", 0)),
        Name(
            "Django", f"{RUNSERVER}._raw_ipv6", "says whether an address needs brackets", probe=_raw_ipv6_is_bracketed
        ),
        Name("Django", f"{RUNSERVER}.on_bind", "says where the server is", probe=_takes(f"{RUNSERVER}.on_bind", 0, "")),
        Name("Django", f"{RUNSERVER}.check_migrations", "looks for migrations that were not applied"),
        Name(
            "Django", "django.core.servers.basehttp:get_internal_wsgi_application", "loads the application of the pages"
        ),
        Name("Django", "django.contrib.staticfiles.handlers:StaticFilesHandler", "serves static files"),
        Name("Django", "django.utils.autoreload:get_reloader", "watches the code of the project"),
        Name("Django", "django.utils.autoreload:logger", "says what watches the code of the project"),
        Name("Django", "django.utils.autoreload:StatReloader.run", "waits for a change", _reloader),
        Name("Django", "django.utils.autoreload:StatReloader.run_loop", "waits for one in broken code", _reloader),
        Name(
            "Django",
            "django.utils.autoreload:StatReloader.extra_files",
            "makes autoreload watch the broken files",
            _reloader,
        ),
    ],
    "testing": [
        Name("Django", "django.test.client:ClientHandler", "answers the requests of Django's test client"),
        Name("Django", "django.test.utils:_TestState", "shows that Django's test environment is set up"),
        Name("Django", "django.test.testcases:_MediaFilesHandler", "serves files in tests"),
        *(
            Name("Django", f"{LIVE}.{name}", use, _live_server)
            for name, use in (
                ("connections_override", "shares the databases of a test with its live server"),
                ("error", "tells a test why its live server does not start"),
                ("host", "says where a live server listens"),
                ("is_ready", "tells a test that its live server has started"),
                ("port", "says where a live server listens"),
                ("static_handler", "serves static files in tests"),
            )
        ),
        Name("Django", "django.test:LiveServerTestCase.server_thread_class", "names the live server of a test"),
        Name("gunicorn", "gunicorn.glogging:Logger", "writes the log of a live server"),
    ],
}


# --- checking the names -----------------------------------------------------------------------------------------------


def _at(path: str) -> Any:
    module, _, names = path.partition(":")
    found: Any = import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def is_there(name: Name) -> bool:
    """Return whether a name exists and still does what the package needs."""
    try:
        return _resolves(name) if name.probe is None else name.probe()
    except Exception:  # an untested version of a library may do anything
        return False


def _resolves(name: Name) -> bool:
    try:
        if name.made is not None:
            getattr(name.made(), name.path.rpartition(".")[2])
        else:
            _at(name.path)
    except Exception:
        return False
    return True


def missing(*parts: str) -> Iterator[tuple[Name, str]]:
    """Yield each name that these parts of the package rely on and that is gone, with a sentence for the user."""
    _gunicorn_config.cache_clear()  # a name may have gone since the last time
    for part in parts:
        for name in RELIED_ON[part]:
            if not is_there(name):
                yield name, sentence(name, changed=_resolves(name))
    _gunicorn_config.cache_clear()  # a server asks only once, so it need not keep the configuration


def verify(*parts: str) -> None:
    """Raise `Incompatible` if these parts of the package cannot work with the libraries that are installed."""
    sentences = [text for name, text in missing(*parts) if not name.instead]
    if sentences:
        raise Incompatible("\n".join(sentences))


@contextmanager
def naming(*parts: str) -> Iterator[None]:
    """Raise `Incompatible`, which says what to install, if an import in the block fails because a name is gone."""
    try:
        yield
    except (ImportError, AttributeError):
        verify(*parts)
        raise


def sentence(name: Name, *, changed: bool = False) -> str:
    """Return a sentence that says that a name is gone or has changed, what it was needed for, and what to do."""
    version = _version(name.library)
    minimum = _minimum(name.library)
    older = minimum is not None and _numbers(version) < _numbers(minimum)
    verb = "has a different" if changed else "has no" if older else "no longer has"
    without = f"; without it, {name.instead}" if name.instead else ""
    newer = f"a newer {OURS}"
    if name.library == PYTHON:
        remedy = f"use an older Python, or install {newer}"
    elif older:
        remedy = f'install "{name.library}>={minimum}"'
    elif minimum is None:
        remedy = f"install an older {name.library}, or {newer}"
    else:
        remedy = f'install "{name.library}>={minimum},<{version}", or {newer}'
    return f"{name.library} {version} {verb} {name}, which {name.use}{without}: {remedy}."


def _version(library: str) -> str:
    import platform
    from importlib import metadata

    try:
        return platform.python_version() if library == PYTHON else metadata.version(library)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _minimum(library: str) -> str | None:
    """Return the oldest version of a library that this package was tested with, or None if that is unknown."""
    from importlib import metadata

    try:
        requirements = metadata.requires(OURS) or []
    except metadata.PackageNotFoundError:  # the package was imported from a tree and is not installed
        requirements = []
    for match in filter(None, map(BOUND.match, requirements)):
        if match[1].lower().replace("_", "-") == library.lower():
            return match[2]
    return None


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]+", version)][:3]


# --- replacements for names that are gone -----------------------------------------------------------------------------


def masking() -> Callable[[Any, Any], bytes]:
    """Return the function that masks and unmasks bytes (RFC 6455, section 5.3): websockets' C routine if it exists."""
    (name,) = RELIED_ON["protocol"]
    routine: Callable[[Any, Any], bytes] = _at(name.path) if is_there(name) else apply_mask
    return routine


def apply_mask(data: bytes | memoryview, mask: bytes | memoryview) -> bytes:
    """Return `data`, masked or unmasked with the four bytes of `mask`, by an XOR of large integers."""
    size = len(data)
    key = (bytes(mask) * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def _masks(routine: Callable[[Any, Any], bytes]) -> bool:
    return routine(b"\x11\x12\x13\x14\x15", b"\x01\x02\x03\x04") == b"\x10\x10\x10\x10\x14"


class NothingPending:
    """Stands in for a loop that does not tell how many callbacks are pending."""

    pendingcnt = 0

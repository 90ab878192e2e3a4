"""System checks for mistakes in the settings. They run in `manage.py check` and before a server starts.

docs/settings.md lists their ids.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.module_loading import import_string
from gevent import monkey

from django_websocket import compat, conf

from .asgi.policy import foreign_policy
from .decorators import inside, is_asgi, misnamed, options_of, without_as_asgi
from .handler.origin import split
from .pubsub.entries import keeps
from .pubsub.factory import broker_from
from .pubsub.memory import MemoryBroker

with compat.naming("application"):
    from django.db.utils import load_backend
    from django.urls import URLPattern, URLResolver, get_resolver

__all__ = ["check", "check_compatibility", "check_libraries", "check_worker", "sentence"]

# What browsers send as an Origin, and apps and extensions whose pages have a scheme of their own; files have no host.
ORIGIN = re.compile(r"(?!https?:)[a-z][a-z0-9+.-]*://[^/?#*@\s]+|file://", re.IGNORECASE)
SIMILAR = 0.9  # how much of two names is the same, for one to be taken for the other
DEPTH = 2  # calls that are followed from a view to find out whether it uses the WebSocket
CHANNEL_LAYER = "django_websocket.channels.ChannelLayer"
LARGE_MESSAGE = 64 * 1024 * 1024  # bytes; a hundred such messages fill the memory of most machines

# Drivers that wait in C code, where gevent cannot switch, and what to do about each.
REMEDIES = {
    "psycopg2": 'Install psycopg 3, which Django prefers by itself: pip install "psycopg[binary,pool]". Or call '
    "psycogreen.gevent.patch_psycopg() in post_fork() of gunicorn.conf.py.",
    "psycopg": "It was imported before gevent patched the standard library: remove whatever imports it from "
    "gunicorn.conf.py.",
    "MySQLdb": "Install PyMySQL, and put at the top of your settings: import pymysql; pymysql.install_as_MySQLdb()",
    "cx_Oracle": "Install oracledb, and use it in its thin mode, the default.",
    "oracledb": "Use its thin mode, the default, without init_oracle_client().",
    "pyodbc": "There is no other driver for this database. Keep its queries short.",
}


@checks.register("websocket")
def check(**kwargs: Any) -> list[checks.CheckMessage]:
    """Check the project's WebSocket settings."""
    try:
        settings = conf.current()
    except ImproperlyConfigured as error:
        return [checks.Error(str(error), id="websocket.E001")]
    return [
        *check_names(),
        *check_urlconf(settings),
        *check_broker(settings),
        *check_server(settings),
        *check_origins("WEBSOCKET_ALLOWED_ORIGINS", settings.allowed_origins),
        *check_limits(settings),
        *check_metrics(settings),
        *check_databases(),
        *check_asyncio(),
        *check_channel_layers(settings),
    ]


@checks.register("websocket")
def check_compatibility(**kwargs: Any) -> list[checks.CheckMessage]:
    """Check the installed libraries. `django_websocket.testing` checks what only tests need."""
    unused = {"testing"} if "channels" in sys.modules else {"testing", "channels"}
    return list(check_libraries(*(part for part in compat.RELIED_ON if part not in unused)))


def check_libraries(*parts: str) -> Iterator[checks.CheckMessage]:
    """Check that the libraries have the names on which these parts of the package rely."""
    for name, text in compat.missing(*parts):
        if name.instead:
            yield checks.Warning(text, id="websocket.W007")
        else:
            yield checks.Error(text, id="websocket.E008")


def check_worker(settings: conf.Settings, workers: int, longest_drain: float) -> list[checks.CheckMessage]:
    """Check the settings against those of gunicorn, which only a worker knows; it logs the result when it starts.

    `longest_drain` is the time in seconds in which a stopping worker can tell all clients of a restart.
    """
    found: list[checks.CheckMessage] = []
    if workers > 1 and isinstance(broker_from(settings.broker), MemoryBroker):
        found.append(
            checks.Warning(
                f"There are {workers} workers, but a message published over memory:// reaches the clients of only one.",
                hint='Use Redis, WEBSOCKET_BROKER = "redis://localhost:6379/0", or start one worker.',
                id="websocket.W006",
            )
        )
    if settings.drain_window > longest_drain:
        found.append(
            checks.Warning(
                f"WEBSOCKET_DRAIN_WINDOW is {settings.drain_window}, but gunicorn's graceful_timeout leaves only "
                f"{longest_drain} seconds to tell all clients of a restart.",
                hint="Lower WEBSOCKET_DRAIN_WINDOW, or raise graceful_timeout (--graceful-timeout).",
                id="websocket.W004",
            )
        )
    return [message for message in found if not message.is_silenced()]


def sentence(message: checks.CheckMessage) -> str:
    """Return a message with its hint and id as one line for the log."""
    return " ".join(filter(None, (message.msg, message.hint, f"({message.id})")))


def check_names() -> Iterator[checks.CheckMessage]:
    """Look for settings whose names are nearly those of this package."""
    known = conf.names()
    for name in conf.unknown_names():
        for similar in get_close_matches(name, known, 1, SIMILAR):
            yield checks.Warning(
                f"There is no setting {name}, so it has no effect.",
                hint=f"If you mean {similar}, write it like that.",
                id="websocket.W009",
            )


def check_urlconf(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """Check that the module with the WebSocket views exists, and check each view."""
    if not settings.urlconf and settings.asgi_application:
        return  # whose WebSocket part is served
    try:
        urlconf = settings.required_urlconf()
    except ImproperlyConfigured as error:
        yield checks.Error(str(error), id="websocket.E002")
        return
    try:
        get_resolver(urlconf).url_patterns  # noqa: B018  # imports it
    except ImproperlyConfigured as error:
        yield checks.Error(f"WEBSOCKET_URLCONF: {error}", id="websocket.E003")
    except ModuleNotFoundError as error:
        if error.name is None or not f"{urlconf}.".startswith(f"{error.name}."):
            raise  # the module exists, and imports something that does not
        yield checks.Error(
            f"WEBSOCKET_URLCONF is {urlconf!r}, but there is no such module.",
            hint=hint_for(urlconf),
            id="websocket.E003",
        )
    else:
        resolver = get_resolver(urlconf)
        yield from resolver.check()  # Django's own
        for pattern in patterns_of(resolver):
            yield from check_view(pattern)


def hint_for(urlconf: str) -> str:
    """Return what to do if there is no such module."""
    if "/" in urlconf or urlconf.endswith(".py"):
        return f'Write the path of a module: "{urlconf.removesuffix(".py").strip("/").replace("/", ".")}".'
    path = urlconf.replace(".", os.sep)
    return f"Create {path}.py with the urlpatterns of your WebSocket views, or correct the setting."


def patterns_of(resolver: URLResolver) -> Iterator[URLPattern]:
    """Return the patterns of a urlconf, including nested ones."""
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            yield from patterns_of(pattern)
        elif isinstance(pattern, URLPattern):
            yield pattern


def check_view(pattern: URLPattern) -> Iterator[checks.CheckMessage]:
    """Check that a pattern leads to a WebSocket view."""
    mistake = without_as_asgi(pattern.callback)
    if mistake is not None:
        yield checks.Error(f"WEBSOCKET_URLCONF: {mistake}", id="websocket.E009")
        return
    where = f"The view {pattern.lookup_str} in WEBSOCKET_URLCONF, {pattern.pattern.describe()},"
    options = options_of(pattern.callback)
    mistake = misnamed(pattern)
    if mistake is not None:
        yield checks.Warning(
            f"{where} {mistake}",
            hint="A WebSocket view looks like this: @websocket def view(request, websocket, ...), and then what the "
            "URL has.",
            id="websocket.W001",
        )
    elif options is None and not is_asgi(pattern.callback) and not takes_websocket(pattern.callback):
        yield checks.Warning(
            f"{where} is not decorated with @websocket, and does not seem to use a WebSocket.",
            hint="Decorate it, or move it to ROOT_URLCONF. If it is decorated, a decorator above @websocket hides "
            "that: such a decorator must use functools.wraps(), as Django's do.",
            id="websocket.W001",
        )
    if options is None:
        return
    yield from check_origins(f"{where} origins", options.origins)
    if options.max_message_size is not None:
        yield from check_message_size(f"{where} max_message_size", options.max_message_size)


def takes_websocket(view: Callable[..., Any], depth: int = DEPTH) -> bool:
    """Whether an undecorated view uses the WebSocket, as far as its source shows.

    It may do so itself, by `request.META["wsgi.websocket"]`, or call a function that does, or one with `@websocket`. A
    view whose source is not available gets the benefit of the doubt.
    """
    functions: list[Any] = []
    inner: Callable[..., Any] | None = view
    while inner is not None:
        view_class = getattr(inner, "view_class", None) or getattr(inner, "cls", None)
        if view_class is not None:
            functions = [function for _, function in inspect.getmembers(view_class, inspect.isfunction)]
        innermost, inner = inner, inside(inner)
    functions.append(innermost)
    sources = {function: source_of(function) for function in filter(inspect.isfunction, functions)}
    if sources and not any(sources.values()):
        return depth == DEPTH
    for function, source in sources.items():
        if "wsgi.websocket" in source:
            return True
        named = [function.__globals__.get(name) for name in names_in(source)] if depth else []
        for other in filter(inspect.isfunction, named):
            if options_of(other) is not None or (other is not function and takes_websocket(other, depth - 1)):
                return True
    return False


def source_of(function: Callable[..., Any]) -> str:
    """Return the source of a function, "" if it is not available."""
    try:
        return inspect.getsource(function)
    except OSError:
        return ""


def names_in(source: str) -> set[str]:
    """Return the variables that a piece of source refers to; none if it cannot be parsed by itself."""
    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:
        return set()
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def check_broker(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """Check that a broker can be made of WEBSOCKET_BROKER."""
    try:
        broker = broker_from(settings.broker)
    except ValueError as error:
        yield checks.Error(str(error), id="websocket.E004")
    else:
        if settings.history and not keeps(broker):
            yield checks.Error(
                "WEBSOCKET_HISTORY has channels that keep messages, but the broker of WEBSOCKET_BROKER keeps none: use "
                "Redis or memory://, or remove the setting.",
                id="websocket.E011",
            )


def check_server(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """Check that WEBSOCKET_SERVER is well-formed."""
    if settings.server.isdecimal():
        yield checks.Error(
            f"WEBSOCKET_SERVER is {settings.server!r}, which is a number and not the address of a server.",
            hint=f'For another port of the page\'s host, put a colon before it: ":{settings.server}".',
            id="websocket.E005",
        )
    if settings.parsed_server is None:
        yield checks.Error(
            f"WEBSOCKET_SERVER is {settings.server!r}, which is not the address of a server.",
            hint='Use "" (the host of the page), ":8001" (another port of that host), "host:port" or '
            '"wss://host/prefix".',
            id="websocket.E005",
        )


def check_metrics(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """Check that the library is there that writes the metrics."""
    if settings.exposed is not None and not is_installed("prometheus_client"):
        yield checks.Error(
            "WEBSOCKET_METRICS is set, but the library that writes the metrics is not installed.",
            hint='Install it: pip install "django-gevent-websocket[metrics]"',
            id="websocket.E012",
        )


def is_installed(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return find_spec(module) is not None
    except ValueError:  # it is kept from being imported
        return False


def check_asyncio() -> Iterator[checks.CheckMessage]:
    """Look for a policy whose loops do not run on gevent's."""
    policy = foreign_policy()
    if policy is not None:
        yield checks.Warning(
            f"The project sets {policy} as asyncio's event loop policy. While one of its loops runs, all clients of "
            f"the process wait.",
            hint="Do not set it in code that the WebSocket server imports, and do not call uvloop.install() there: "
            "asyncio.run() and async_to_sync() then use loops that run beside the clients.",
            id="websocket.W008",
        )


def check_channel_layers(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """Check that the channel layers of this package can be made of CHANNEL_LAYERS."""
    for layer in settings.channel_layers.values():
        if layer.get("BACKEND") != CHANNEL_LAYER:
            continue
        try:
            import_string(CHANNEL_LAYER)(**layer.get("CONFIG", {}))
        except ModuleNotFoundError as error:
            yield checks.Error(
                f"CHANNEL_LAYERS has {CHANNEL_LAYER}, which needs a library that is not installed: {error}.",
                hint='Install it: pip install "django-gevent-websocket[channels]"',
                id="websocket.E010",
            )
        except (ImproperlyConfigured, TypeError) as error:
            yield checks.Error(str(error), id="websocket.E010")


def check_origins(name: str, origins: Sequence[str]) -> Iterator[checks.CheckMessage]:
    """Look for origins that any site can claim, and for those that match none."""
    for origin in origins:
        if origin.lower() == "null":
            yield checks.Warning(
                f"{name} has 'null', an origin that a page of any site can claim: every site may connect with the "
                f"cookies of your users.",
                hint="List the sites instead. Programs other than browsers need not send an Origin at all.",
                id="websocket.W002",
            )
        elif split(origin.lower()) is None and not ORIGIN.fullmatch(origin):
            yield checks.Warning(
                f"{name} has {origin!r}, which is not an origin, and matches no page.",
                hint="Write each site with scheme, host and, if it has one, port, without a slash at the end: "
                '"https://example.com". Write a host that is not ASCII as "https://xn--...". There are no wildcards.',
                id="websocket.W003",
            )


def check_limits(settings: conf.Settings) -> Iterator[checks.CheckMessage]:
    """Look for limits that contradict each other."""
    yield from check_message_size("WEBSOCKET_MAX_MESSAGE_SIZE", settings.max_message_size)
    if settings.max_message_size > settings.outbox_size:
        yield checks.Warning(
            f"WEBSOCKET_MAX_MESSAGE_SIZE is {settings.max_message_size}, and WEBSOCKET_OUTBOX_SIZE "
            f"{settings.outbox_size}: a message that a client may send may be too large to publish.",
            hint="Raise WEBSOCKET_OUTBOX_SIZE, or lower WEBSOCKET_MAX_MESSAGE_SIZE.",
            id="websocket.W004",
        )
    if settings.send_buffer_size > settings.outbox_size:
        yield checks.Warning(
            f"WEBSOCKET_SEND_BUFFER_SIZE is {settings.send_buffer_size}, and WEBSOCKET_OUTBOX_SIZE "
            f"{settings.outbox_size}: a client may be closed as too slow just because its view has sent a lot.",
            hint="Make WEBSOCKET_OUTBOX_SIZE the larger one.",
            id="websocket.W004",
        )


def check_message_size(name: str, size: int) -> Iterator[checks.CheckMessage]:
    """Look for a message size with which a few clients can fill the memory."""
    if size > LARGE_MESSAGE:
        yield checks.Warning(
            f"{name} is {size}: each client can make the server hold a message of that many bytes.",
            hint="Let clients upload large files by HTTP, or in parts.",
            id="websocket.W004",
        )


def check_databases() -> Iterator[checks.CheckMessage]:
    """Look for database drivers that block the whole process while a query runs."""
    for alias, settings in connections.settings.items():
        try:
            wrapper = load_backend(settings["ENGINE"]).DatabaseWrapper
        except (ImportError, ImproperlyConfigured):
            continue  # Django says so itself when it is used
        driver = getattr(wrapper, "Database", None)
        if driver is not None and blocks(driver):
            yield checks.Warning(
                f'The database "{alias}" uses {driver.__name__}, which blocks: while the query of one view runs, all '
                f"clients of the process wait.",
                hint=REMEDIES[driver.__name__],
                id="websocket.W005",
            )


def blocks(driver: ModuleType) -> bool:
    """Whether a driver waits where gevent cannot switch.

    Some drivers can be configured not to; only the serving process knows whether they are. Elsewhere, as in `manage.py
    check`, they get the benefit of the doubt.
    """
    serves = monkey.is_module_patched("socket")
    if driver.__name__ == "psycopg":
        waiting: Any = import_string("psycopg.waiting.wait")
        return serves and waiting.__module__ != "psycopg.waiting"  # psycopg's own in C
    if driver.__name__ == "psycopg2":
        callback = import_string("psycopg2.extensions.get_wait_callback")()
        return callback is None and (serves or find_spec("psycogreen") is None)
    if driver.__name__ == "oracledb":
        return not driver.is_thin_mode()
    return driver.__name__ in REMEDIES

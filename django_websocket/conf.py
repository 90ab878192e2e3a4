"""All settings, with defaults and meanings. No other module of the package reads `django.conf.settings`."""

from __future__ import annotations

import ipaddress
import math
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.shortcuts import resolve_url

from django_websocket import compat

from .protocol.deflate import Compression
from .transport.limits import Limits

if TYPE_CHECKING:
    from .pubsub.entries import Rules

__all__ = ["Settings", "current"]

PREFIX = "WEBSOCKET_"
TEST_BROKER = "memory://tests"
SHORTEST_TOKEN = 16  # characters; a shorter one can be guessed
THIS_MACHINE = ("127.0.0.0/8", "::1/128")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
SERVER = re.compile(r"(?:(wss?)://(?=[^:/]))?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])?(:[0-9]+)?(/(?!/)[^?#\s]*)?")


class Server(NamedTuple):
    """The parts of `WEBSOCKET_SERVER`, each empty where it is missing: "wss", "host", ":port", "/prefix"."""

    scheme: str
    host: str
    port: str
    prefix: str


class Exposed(NamedTuple):
    """Where the figures can be read: at a `path` of the application, "" for none, and at an `address`, None for none.

    Those may read them who say the `token`, if there is one, and those who connect from one of the `networks`.
    """

    path: str
    address: tuple[str, int] | None
    token: str
    networks: tuple[Network, ...]


@dataclass(frozen=True)
class Settings:
    """The values of the settings. Each is named `WEBSOCKET_` and the name of its field in capitals."""

    urlconf: str = ""  # the module with the urlpatterns of the WebSocket views; required
    # The address of the server: "" for the page's host, ":8001" for another port, "host:port", "wss://host/prefix".
    server: str = ""
    # The broker: memory:// within one process, redis:// between several; or a dict with a url and options. It may
    # contain a password, so repr() leaves it out.
    broker: str | Mapping[str, Any] = field(default="memory://", repr=False)
    # What channels keep, by patterns of their names: {"chat:*": {"messages": 100, "seconds": 3600}}.
    history: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    allowed_origins: tuple[str, ...] = ()  # other sites whose pages may connect, such as "https://example.com"
    refuse: str = "http"  # how to refuse: "http" with a status, "close" with a close code that pages can read

    # Sizes are in bytes, times in seconds. The defaults of the limits of a connection are those of `Limits`.

    # A larger message from a client closes the connection with 1009.
    max_message_size: int = Limits.max_message_size
    # The messages of a client that may wait for its view, and their bytes; beyond either, reading pauses.
    inbox_messages: int = Limits.inbox_messages
    inbox_size: int = Limits.inbox_size
    # Published bytes that may wait for a client; beyond it, the client is closed with 1013.
    outbox_size: int = Limits.outbox_size
    # Bytes sent by a view that may wait for the client; beyond it, send() waits up to `send_timeout`, and then the
    # connection is closed with 1008.
    send_buffer_size: int = Limits.send_buffer_size
    send_timeout: float = Limits.send_timeout
    handshake_timeout: float = 10.0  # for the head of a request, and again until the view accepts or answers
    max_connections: int | None = None  # per process; more are answered with 503. None: as many as `ulimit -n` allows
    # Of one user, per process; more are answered with 429. None: as many as the user likes.
    max_connections_per_user: int | None = None
    ping_interval: float = Limits.ping_interval  # of silence until a client is sent a ping
    ping_timeout: float = Limits.ping_timeout  # for the answer; then the client is closed with 1011
    close_timeout: float = Limits.close_timeout  # for the client's close frame; then the socket is closed
    drain_window: float = 2.0  # in which a stopping process tells its clients to reconnect (1012)

    # For which a view that waits keeps its database connection, so that a client that talks need not reconnect for each
    # message. 0 for not at all.
    database_linger: float = 0.5
    login_check_interval: float = 5.0  # between two checks that users are still logged in

    # Where the process's figures can be read, and by whom: {"path": "/metrics", "token": "..."}. Not at all if it is
    # empty. The token is a password, so repr() leaves it out.
    metrics: Mapping[str, Any] = field(default_factory=dict, repr=False)
    health: bool = False  # whether requests for /healthz and /readyz are told how the process is

    compression: bool | Mapping[str, Any] = True  # of messages; or a dict of options such as {"takeover": True}

    # Derived once, because they are needed for each connection or message.
    limits: Limits = field(init=False, repr=False, compare=False)
    wanted_compression: Compression | None = field(init=False, repr=False, compare=False)
    exposed: Exposed | None = field(init=False, repr=False, compare=False)  # `metrics` in another form
    broker_key: str = field(init=False, repr=False, compare=False)  # `broker` as a dict key

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in Limits.__dataclass_fields__}
        object.__setattr__(self, "limits", Limits(**values))
        object.__setattr__(self, "wanted_compression", _compression(self.compression))
        object.__setattr__(self, "broker_key", _broker_key(self.broker))
        object.__setattr__(self, "exposed", _exposed(self.metrics))
        _check_history(self.history)

    @cached_property
    def origins(self) -> frozenset[str]:
        """The allowed origins other than the request's own, in lower case, as browsers send them."""
        allowed = (*self.allowed_origins, *django_settings.CSRF_TRUSTED_ORIGINS)
        return frozenset(origin.lower() for origin in allowed)

    @cached_property
    def rules(self) -> Rules:
        """What channels keep."""
        from .pubsub.entries import Rule, Rules  # which not everybody needs who needs a setting

        return Rules({pattern: Rule(int(rule["messages"]), rule["seconds"]) for pattern, rule in self.history.items()})

    @property
    def debug(self) -> bool:
        """Django's `DEBUG`."""
        return bool(django_settings.DEBUG)

    @property
    def language_code(self) -> str:
        """Django's `LANGUAGE_CODE`."""
        return str(django_settings.LANGUAGE_CODE)

    @property
    def asgi_application(self) -> str | None:
        """The setting `ASGI_APPLICATION` that projects with Channels have."""
        path: str | None = getattr(django_settings, "ASGI_APPLICATION", None)
        return path

    @property
    def channel_layers(self) -> dict[str, dict[str, Any]]:
        """The setting `CHANNEL_LAYERS` that projects with Channels have."""
        layers: dict[str, dict[str, Any]] = getattr(django_settings, "CHANNEL_LAYERS", {})
        return layers

    @property
    def secure_proxy_ssl_header(self) -> tuple[str, str] | None:
        """Django's `SECURE_PROXY_SSL_HEADER`."""
        header: tuple[str, str] | None = django_settings.SECURE_PROXY_SSL_HEADER
        return header

    @property
    def middleware(self) -> list[str]:
        """Django's `MIDDLEWARE`."""
        return list(django_settings.MIDDLEWARE)

    @property
    def authentication_backends(self) -> list[str]:
        """Django's `AUTHENTICATION_BACKENDS`."""
        return list(django_settings.AUTHENTICATION_BACKENDS)

    def is_of_tenants(self, app: AppConfig) -> bool:
        """Whether each tenant has tables of `app`, by django-tenants' settings; True with other packages."""
        types = getattr(django_settings, "TENANT_TYPES", {})
        named = [getattr(django_settings, "TENANT_APPS", None), *(each.get("APPS") for each in types.values())]
        lists = [apps for apps in named if apps is not None]
        names = {app.name, f"{type(app).__module__}.{type(app).__qualname__}"}
        return not lists or any(names & {*apps} for apps in lists)

    @property
    def session_engine(self) -> str:
        """Django's `SESSION_ENGINE`."""
        return str(django_settings.SESSION_ENGINE)

    @property
    def session_cache_alias(self) -> str:
        """Django's `SESSION_CACHE_ALIAS`."""
        return str(django_settings.SESSION_CACHE_ALIAS)

    @property
    def login_path(self) -> str:
        """The path of Django's `LOGIN_URL`."""
        return urlsplit(resolve_url(django_settings.LOGIN_URL)).path

    @cached_property
    def parsed_server(self) -> Server | None:
        """The parts of `server`; None if it is malformed."""
        match = SERVER.fullmatch(self.server)
        return None if match is None else Server(*(part or "" for part in match.groups()))

    def required_urlconf(self) -> str:
        """Return `urlconf`, or raise ImproperlyConfigured if it is not set."""
        if not self.urlconf:
            raise ImproperlyConfigured(
                "WEBSOCKET_URLCONF is not set. Add it to your settings, as the path of the module that has the "
                'urlpatterns of your WebSocket views: WEBSOCKET_URLCONF = "project.websocket_urls"'
            )
        return self.urlconf


_current: Settings | None = None
_current_in_tests: Settings | None = None
_broker_overrides = 0  # active in tests


def current() -> Settings:
    """Return the project's settings. Raises ImproperlyConfigured for a value of the wrong type."""
    global _current
    if _current is None:
        _current = _read()
    return _current


def names() -> list[str]:
    """Return the names of all settings."""
    return [PREFIX + name.upper() for name, field in Settings.__dataclass_fields__.items() if field.init]


def unknown_names() -> list[str]:
    """Return the names of the project's settings that begin as those of this package, and are none of them."""
    known = names()
    return [name for name in dir(django_settings) if name.startswith(PREFIX) and name not in known]


def serve_pages_too() -> None:
    """Ignore `WEBSOCKET_SERVER`: one server has the pages and the WebSockets, at the same address."""
    global _current, _current_in_tests
    django_settings.WEBSOCKET_SERVER = ""
    _current = _current_in_tests = None


@contextmanager
def without_middleware() -> Iterator[None]:
    """Have Django find no `MIDDLEWARE`, for a chain that is built meanwhile."""
    configured = django_settings.MIDDLEWARE
    django_settings.MIDDLEWARE = []
    try:
        yield
    finally:
        django_settings.MIDDLEWARE = configured


def for_publishing() -> Settings:
    """Return the settings for publishing and subscribing.

    In Django's test environment the broker is the memory of the process, as it is for Django's e-mails: a test must not
    publish to the clients of a site. A test that overrides `WEBSOCKET_BROKER` gets the broker that it names.
    """
    global _current_in_tests
    utils = sys.modules.get("django.test.utils")
    if utils is None or _broker_overrides:
        return current()
    state = getattr(utils, "_TestState", None)
    if state is None:  # without it, a test would publish to the clients of a site
        compat.verify("testing")
    if not hasattr(state, "saved_data"):
        return current()
    if _current_in_tests is None:
        _current_in_tests = replace(current(), broker=TEST_BROKER)
    return _current_in_tests


def _read() -> Settings:
    values: dict[str, Any] = {}
    for name, attribute in Settings.__dataclass_fields__.items():
        setting = PREFIX + name.upper()
        if attribute.init and hasattr(django_settings, setting):
            value = getattr(django_settings, setting)
            unchecked = name in (
                "broker",
                "compression",
                "history",
                "metrics",
            )  # they may be dicts, which are checked later
            values[name] = value if unchecked else _checked(setting, value, attribute.default)
    return Settings(**values)


def _checked(setting: str, value: Any, default: Any) -> Any:
    """Return `value`, checked against the type of `default`. Raises ImproperlyConfigured."""
    if isinstance(default, tuple):
        if isinstance(value, (list, tuple, set, frozenset)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ImproperlyConfigured(f"{setting} is {value!r}, but must be a list of strings")
    if setting == f"{PREFIX}REFUSE":
        check_refuse(value)
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise ImproperlyConfigured(f"{setting} is {value!r}, but must be True or False")
    if isinstance(default, str):
        if isinstance(value, str):
            return value
        raise ImproperlyConfigured(f"{setting} is {value!r}, but must be a string")
    if value is None and default is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float) if isinstance(default, float) else int):
        raise ImproperlyConfigured(f"{setting} is {value!r}, but must be a number such as {default or 1000!r}")
    if setting == f"{PREFIX}DATABASE_LINGER" and value == 0:
        return value
    if value <= 0 or not math.isfinite(value):
        raise ImproperlyConfigured(f"{setting} is {value!r}, but must be above 0: no limit can be switched off")
    return value


def check_refuse(value: Any) -> None:
    """Raise ImproperlyConfigured unless `value` is a way to refuse a handshake."""
    if value not in ("http", "close"):
        raise ImproperlyConfigured(f'WEBSOCKET_REFUSE and refuse= must be "http" or "close", not {value!r}')


def _broker_key(value: Any) -> str:
    """Return a key that differs between brokers."""
    if not isinstance(value, (str, Mapping)):  # not shown: it may contain a password
        raise ImproperlyConfigured(f"{PREFIX}BROKER must be a URL or a dict, but it is a {type(value).__name__}")
    return value if isinstance(value, str) else repr(value)


def _check_history(value: Any) -> None:
    """Raise ImproperlyConfigured unless `value` may be that of `WEBSOCKET_HISTORY`."""
    if isinstance(value, Mapping) and all(isinstance(name, str) and _is_rule(rule) for name, rule in value.items()):
        return
    raise ImproperlyConfigured(
        f"{PREFIX}HISTORY is {value!r}, but must be a dict that says for patterns of channels' names how many "
        f'messages are kept, and for how many seconds: {{"chat:*": {{"messages": 100, "seconds": 3600}}}}'
    )


def _is_rule(value: Any) -> bool:
    if not isinstance(value, Mapping) or {*value} != {"messages", "seconds"}:
        return False
    messages, seconds = value["messages"], value["seconds"]
    if bool in (type(messages), type(seconds)):
        return False
    return isinstance(messages, int) and messages > 0 and isinstance(seconds, (int, float)) and 0 < seconds < math.inf


def _exposed(value: Any) -> Exposed | None:
    """Return what a value of `WEBSOCKET_METRICS` says; None if it is empty. Raises ImproperlyConfigured."""
    if not isinstance(value, Mapping):
        raise ImproperlyConfigured(
            f'{PREFIX}METRICS must be a dict such as {{"path": "/metrics", "token": "..."}}, but it is a '
            f"{type(value).__name__}"
        )
    if not value:
        return None
    unknown = sorted(str(name) for name in value.keys() - {"path", "bind", "token", "allow"})
    if unknown:
        raise ImproperlyConfigured(f'{PREFIX}METRICS knows "path", "bind", "token" and "allow", but not {unknown[0]!r}')
    path, bind, token = (value.get(name, "") for name in ("path", "bind", "token"))
    if not all(isinstance(each, str) for each in (path, bind, token)):
        raise ImproperlyConfigured(f'"path", "bind" and "token" of {PREFIX}METRICS must be strings')
    if not (path or bind):
        raise ImproperlyConfigured(
            f'{PREFIX}METRICS says nowhere that the figures can be read: add "path": "/metrics" or '
            f'"bind": "127.0.0.1:9101"'
        )
    if path and not re.fullmatch(r"/[^?#\s]*", path):
        raise ImproperlyConfigured(f'"path" of {PREFIX}METRICS is {path!r}, but must begin with a slash')
    match = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", bind)
    if bind and (match is None or not 0 < int(match[2]) < 65536):
        raise ImproperlyConfigured(
            f'"bind" of {PREFIX}METRICS is {bind!r}, but must be an address and a port: "127.0.0.1:9101"'
        )
    if token and len(token) < SHORTEST_TOKEN:  # not shown
        raise ImproperlyConfigured(
            f'"token" of {PREFIX}METRICS must have {SHORTEST_TOKEN} characters or more, so that nobody can guess it'
        )
    if path and not token and not value.get("allow"):
        raise ImproperlyConfigured(
            f'"path" of {PREFIX}METRICS is open to everybody who reaches the WebSockets: add a "token", or say in '
            f'"allow" from which addresses the figures may be read'
        )
    allow = value.get("allow", () if token else THIS_MACHINE)
    if isinstance(allow, str) or not isinstance(allow, Collection):
        raise ImproperlyConfigured(
            f'"allow" of {PREFIX}METRICS is {allow!r}, but must be a list such as ["10.0.0.0/8"]'
        )
    try:
        networks = tuple(ipaddress.ip_network(network) for network in allow)
    except ValueError as error:
        raise ImproperlyConfigured(f'"allow" of {PREFIX}METRICS has a wrong address: {error}') from None
    return Exposed(path, (match[1].strip("[]"), int(match[2])) if match else None, token, networks)


def _compression(value: Any) -> Compression | None:
    """Return the compression for a value of `WEBSOCKET_COMPRESSION`; None if it is off."""
    if isinstance(value, bool):
        return Compression() if value else None
    try:
        wanted = Compression(**value)
    except TypeError:
        pass
    else:
        numbers = (wanted.window_bits, wanted.threshold)
        if (
            isinstance(wanted.takeover, bool)
            and all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
            and 9 <= wanted.window_bits <= 15
            and wanted.threshold >= 0
        ):
            return wanted
    raise ImproperlyConfigured(
        f"{PREFIX}COMPRESSION is {value!r}, but must be True, False, or a dict with any of takeover (True or False), "
        f"window_bits (9 to 15) and threshold (bytes)"
    )


def _forget(*, setting: str, enter: bool, **kwargs: Any) -> None:
    global _current, _current_in_tests, _broker_overrides
    if setting.startswith(PREFIX) or setting in ("CSRF_TRUSTED_ORIGINS", "DEBUG"):
        _current = _current_in_tests = None
    if setting == f"{PREFIX}BROKER":
        _broker_overrides += 1 if enter else -1


setting_changed.connect(_forget)

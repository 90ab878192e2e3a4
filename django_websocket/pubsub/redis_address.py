"""The address of Redis and how to connect to it, from the URL and the options of `WEBSOCKET_BROKER`."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import redis
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.retry import Retry

PORT, SENTINEL_PORT = 6379, 26379
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^][:]*)(?::([0-9]{1,5}))?")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _file(value: Any) -> str:
    path = _text(os.fspath(value))
    if not Path(path).is_file():
        raise ValueError
    return path


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or int(value) < 0:
        raise TypeError
    return int(value)


def _switch(value: Any) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]


def _requirement(value: Any) -> str:
    return {"none": "none", "optional": "optional", "required": "required"}[value]


def _provider(value: Any) -> CredentialProvider:
    if not isinstance(value, CredentialProvider):
        raise TypeError
    return value


# The options; those for connections have redis-py's names. Each has a function that checks and converts its value, and
# a description of the right values.
OPTIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "prefix": (_text, "a string"),
    "username": (_text, "a string"),
    "password": (_text, "a string"),
    "credential_provider": (_provider, "a CredentialProvider of redis-py"),
    "db": (_number, "the number of a database"),
    "client_name": (_text, "a string"),
    "ssl_ca_certs": (_file, "the path of a file that exists"),
    "ssl_ca_data": (_text, "a string"),
    "ssl_certfile": (_file, "the path of a file that exists"),
    "ssl_keyfile": (_file, "the path of a file that exists"),
    "ssl_password": (_text, "a string"),
    "ssl_cert_reqs": (_requirement, '"required", "optional" or "none"'),
    "ssl_check_hostname": (_switch, "True or False"),
    "sentinel_username": (_text, "a string"),
    "sentinel_password": (_text, "a string"),
}


class Host(NamedTuple):
    """The host and port of a server."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


class RedisAddress:
    """The parts of a URL and its options, checked.

    `redis://[[username]:password@]host[:port][/db]`, with TLS if it begins with `rediss`; `unix://[...@]/path`;
    `redis+sentinel://[...@]host[:port][,host[:port]...]/service[/db]`; `redis+cluster://[...@]host[:port][,host...]`.

    Args:
        url: One of these, without a query.
        options: Some of `OPTIONS`. They override the URL; None means that an option is not given.

    Raises ValueError, which names the mistake and never repeats a password.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        options = {name: value for name, value in options.items() if value is not None}
        scheme, _, rest = url.partition("://")
        authority, slash, path = rest.partition("/")
        login, _, hosts = authority.rpartition("@")
        username, _, password = map(unquote, login.partition(":"))
        path = unquote(path)
        self.scheme, _, self.topology = scheme.lower().partition("+")
        port = SENTINEL_PORT if self.topology == "sentinel" else PORT
        self.hosts = [_host(host, port) for host in hosts.split(",")]
        self.service = ""  # the sentinels' name for the master
        self.arguments: dict[str, Any] = {  # of connections
            "username": username or None,
            "password": password or None,
            "retry": Retry(NoBackoff(), 0),  # a command without a reply may have been carried out
            "protocol": 2,
            **{name: _right(name, value) for name, value in options.items()},
        }
        if "credential_provider" in options and (self.arguments["username"] or self.arguments["password"]):
            raise ValueError(
                "WEBSOCKET_BROKER has a 'credential_provider' and also a username or password: remove one or the other"
            )
        self.prefix: str = self.arguments.pop("prefix", "")  # of channels
        self.sentinel_login = {
            name: self.arguments.pop(f"sentinel_{name}", None) for name in ("username", "password")
        } | {"credential_provider": None}
        self.kind: Any = redis.Connection
        if self.scheme == "unix":
            self.place = f"unix://{slash}{path}"  # for messages, without secrets
            self.kind = redis.UnixDomainSocketConnection
            self.arguments["path"] = slash + path
            if not path:
                raise ValueError("The URL of WEBSOCKET_BROKER must name a socket, as in unix:///run/redis/redis.sock")
        else:
            self.place = f"{scheme}://{','.join(map(str, self.hosts))}"
            self.arguments["host"], self.arguments["port"] = self.hosts[0]
            self._take_path(path)
        if self.scheme == "rediss":
            self.kind = redis.SSLConnection
            _check_certificates(self.arguments)
        elif misplaced := [name for name in options if name.startswith("ssl_")]:
            raise ValueError(
                f"WEBSOCKET_BROKER has the option {misplaced[0]!r}, but its URL begins with {scheme}://, so there is "
                f"no TLS: let it begin with rediss"
            )

    def _take_path(self, path: str) -> None:
        if self.topology == "cluster":
            if path not in ("", "0"):
                raise ValueError(
                    f"The URL of WEBSOCKET_BROKER ends with /{path}, but Redis Cluster has only database 0"
                )
            return
        if self.topology == "sentinel":
            self.service, _, path = path.partition("/")
            if not self.service:
                raise ValueError(
                    f"The URL of WEBSOCKET_BROKER must end with the name that the sentinels have for the master, "
                    f"as in {self.place}/mymaster"
                )
            self.place += f"/{self.service}"
        elif len(self.hosts) > 1:
            raise ValueError(
                f"WEBSOCKET_BROKER names several hosts, but {self.scheme}:// takes one. URLs of Sentinel and Cluster "
                f"begin with redis+sentinel:// and redis+cluster://."
            )
        if path:
            self.arguments.setdefault("db", _right("db", path))

    def connect(self, timeout: float, host: Host | None = None, **arguments: Any) -> redis.Connection:
        """Return a connection to `host`, or else to the first host. `arguments` override those of the address.

        Connecting and each reply have `timeout` seconds. Raises RedisError or OSError.
        """
        if host is not None:
            arguments["host"], arguments["port"] = host
        timeouts = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        connection: redis.Connection = self.kind(**{**self.arguments, **timeouts, **arguments})
        connection.connect()  # type: ignore[no-untyped-call]
        return connection


def _right(name: str, value: Any) -> Any:
    """Return the value of an option, checked and converted. Raises ValueError."""
    convert, kind = OPTIONS[name]
    try:
        return convert(value)
    except (TypeError, ValueError, KeyError):
        raise ValueError(f"The option {name!r} of WEBSOCKET_BROKER must be {kind}") from None


def _host(host: str, port: int) -> Host:
    match = HOST.fullmatch(host)
    if match is None or not 0 < int(match[2] or port) < 65536:
        raise ValueError(f"WEBSOCKET_BROKER has {host!r} in place of a host and a port, as in localhost:6379")
    return Host(unquote(match[1]).strip("[]") or "localhost", int(match[2] or port))


def _check_certificates(options: Mapping[str, Any]) -> None:
    """Load the certificates once: redis-py's later errors would name neither option nor file."""
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), cadata=options.get("ssl_ca_data"))
        if "ssl_certfile" in options or "ssl_keyfile" in options:
            context.load_cert_chain(
                options["ssl_certfile"],
                options.get("ssl_keyfile"),
                options.get("ssl_password", ""),  # without one, OpenSSL would ask the terminal
            )
    except KeyError:
        raise ValueError("WEBSOCKET_BROKER has the option 'ssl_keyfile', but no 'ssl_certfile'") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"The certificates that WEBSOCKET_BROKER names cannot be used: {error}") from error

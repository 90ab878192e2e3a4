"""Where Redis is and how to connect to it: what the URL and the options of `WEBSOCKET_BROKER` say, checked."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import redis
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.retry import Retry

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


# The options, all but the first with the names that redis-py gives them: what makes a value right or raises, and what
# it must be.
OPTIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "prefix": (_text, "a string"),
    "username": (_text, "a string"),
    "password": (_text, "a string"),
    "credential_provider": (_provider, "a CredentialProvider of redis-py"),
    "db": (_number, "the number of a database"),
    "client_name": (_text, "a string"),
    "ssl_ca_certs": (_file, "the path of a file, which must be there"),
    "ssl_ca_data": (_text, "a string"),
    "ssl_certfile": (_file, "the path of a file, which must be there"),
    "ssl_keyfile": (_file, "the path of a file, which must be there"),
    "ssl_password": (_text, "a string"),
    "ssl_cert_reqs": (_requirement, '"required", "optional" or "none"'),
    "ssl_check_hostname": (_switch, "True or False"),
}


class RedisAddress:
    """What a URL says: `scheme://[[username]:password@]host[:port][,host[:port]...][/path]`, or `unix://[...@]/path`.

    Args:
        url: Its scheme, if it begins with `rediss`, asks for TLS.
        options: Some of `OPTIONS`, which count more than the same in the URL.
        port: The default.

    Raises ValueError, which names the mistake and never repeats a password.
    """

    def __init__(self, url: str, options: Mapping[str, Any], port: int = 6379) -> None:
        scheme, _, rest = url.partition("://")
        authority, slash, path = rest.partition("/")
        login, _, hosts = authority.rpartition("@")
        username, _, password = map(unquote, login.partition(":"))
        self.scheme = scheme.lower()
        self.hosts = [_host(host, port) for host in hosts.split(",")]
        self.path = unquote(path)
        self.place = f"{self.scheme}://{hosts or 'localhost'}"  # for people, without what is secret
        self.arguments: dict[str, Any] = {  # of connections
            "username": username or None,
            "password": password or None,
            "retry": Retry(NoBackoff(), 0),  # what was sent, and has no reply, may have been done
            "protocol": 2,
            **{name: _right(name, value) for name, value in options.items()},
        }
        self.kind: Any = redis.Connection
        if self.scheme == "unix":
            self.kind = redis.UnixDomainSocketConnection
            self.arguments["path"] = slash + self.path
            self.place = f"unix://{slash}{self.path}"
        else:
            self.arguments["host"], self.arguments["port"] = self.hosts[0]
        self.prefix: str = self.arguments.pop("prefix", "")  # of channels
        if self.scheme.startswith("rediss"):
            self.kind = redis.SSLConnection
            _check_certificates(self.arguments)
        misplaced = [name for name in options if name.startswith("ssl_")]
        if misplaced and self.kind is not redis.SSLConnection:
            raise ValueError(
                f"WEBSOCKET_BROKER has the option {misplaced[0]!r}, but {self.scheme}:// is without TLS: its URL would "
                f"have to begin with rediss"
            )

    def use_db(self, number: str) -> None:
        """Have connections use the database that the path of the URL names, unless an option names one."""
        if number:
            self.arguments.setdefault("db", _right("db", number))

    def connect(self, timeout: float, **arguments: Any) -> redis.Connection:
        """Return a connection to the first server, or with other arguments than those that the URL and options give.

        Each reply has `timeout` seconds, and so has the connection itself. Raises RedisError or OSError.
        """
        timeouts = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        connection: redis.Connection = self.kind(**{**self.arguments, **timeouts, **arguments})
        connection.connect()  # type: ignore[no-untyped-call]
        return connection


def _right(name: str, value: Any) -> Any:
    """Return the value of an option in its type."""
    convert, kind = OPTIONS[name]
    try:
        return convert(value)
    except (TypeError, ValueError, KeyError):
        raise ValueError(f"The option {name!r} of WEBSOCKET_BROKER must be {kind}") from None


def _host(host: str, port: int) -> tuple[str, int]:
    match = HOST.fullmatch(host)
    if match is None or not 0 < int(match[2] or port) < 65536:
        raise ValueError(f"WEBSOCKET_BROKER has {host!r} where a host and its port should stand, as in localhost:6379")
    return unquote(match[1]).strip("[]") or "localhost", int(match[2] or port)


def _check_certificates(options: Mapping[str, Any]) -> None:
    """Load them once: what redis-py says about them later has no option in it, nor a file."""
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), cadata=options.get("ssl_ca_data"))
        if "ssl_certfile" in options or "ssl_keyfile" in options:
            context.load_cert_chain(
                options["ssl_certfile"],
                options.get("ssl_keyfile"),
                options.get("ssl_password", ""),  # without one, OpenSSL would ask the terminal
            )
    except KeyError:
        raise ValueError("WEBSOCKET_BROKER has the option 'ssl_keyfile', but not its 'ssl_certfile'") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"The certificates that WEBSOCKET_BROKER names cannot be used: {error}") from error

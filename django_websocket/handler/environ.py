"""What a WebSocket keeps of its request's WSGI environment, which it has for as long as the client stays."""

from __future__ import annotations

import functools
from typing import Any

from .upgrade import HANDSHAKE_KEY, KEY

# Of use while the request is answered; each would keep much alive.
REQUEST_ONLY = (
    KEY,
    HANDSHAKE_KEY,
    "wsgi.input",
    "wsgi.errors",
    "wsgi.file_wrapper",
    "wsgi.early_hints",
    "gunicorn.socket",
)

# Names that are the same for most clients, and so are kept once. Other names that a client sends are its own and are
# freed with it, so that made-up names leave nothing behind.
NAMES = {
    name: name
    for name in (
        *("REQUEST_METHOD", "RAW_URI", "PATH_INFO", "QUERY_STRING", "SCRIPT_NAME", "REMOTE_ADDR", "REMOTE_PORT"),
        *("SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL", "SERVER_SOFTWARE", "HTTP_HOST", "HTTP_ORIGIN"),
        *("HTTP_USER_AGENT", "HTTP_COOKIE", "HTTP_ACCEPT", "HTTP_ACCEPT_LANGUAGE", "HTTP_ACCEPT_ENCODING"),
        *("HTTP_AUTHORIZATION", "HTTP_CACHE_CONTROL", "HTTP_PRAGMA", "HTTP_CONNECTION", "HTTP_UPGRADE"),
        *("HTTP_SEC_FETCH_DEST", "HTTP_SEC_FETCH_MODE", "HTTP_SEC_FETCH_SITE", "HTTP_SEC_WEBSOCKET_EXTENSIONS"),
        *("HTTP_SEC_WEBSOCKET_KEY", "HTTP_SEC_WEBSOCKET_PROTOCOL", "HTTP_SEC_WEBSOCKET_VERSION"),
        *("HTTP_FORWARDED", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PROTO"),
        *("HTTP_X_REAL_IP", "HTTP_X_REQUEST_ID"),
    )
}
PRIVATE = {"HTTP_COOKIE", "HTTP_AUTHORIZATION", "HTTP_SEC_WEBSOCKET_KEY", "REMOTE_PORT", "HTTP_X_REQUEST_ID"}
ALIKE = NAMES.keys() - PRIVATE  # whose values many clients have in common
MAX_SHARED_VALUES = 256  # of the last clients: with their lengths, less than 100 KiB in all
MAX_SHARED_LENGTH = 200  # characters; hosts, addresses and user agents are shorter


def forget_request(environ: dict[str, Any]) -> None:
    """Remove from the environment what only the request needs, and share what many clients send alike."""
    for name in REQUEST_ONLY:
        environ.pop(name, None)
    kept = {}
    for name, value in environ.items():
        if name in ALIKE and type(value) is str and len(value) <= MAX_SHARED_LENGTH:
            value = copy_for_all(value)
        kept[NAMES.get(name, name)] = value
    environ.clear()
    environ.update(kept)


@functools.lru_cache(maxsize=MAX_SHARED_VALUES)
def copy_for_all(value: str) -> str:
    """Return the copy of `value` that came first. Not sys.intern(), whose strings stay for good in Python 3.12."""
    return value

"""The opening handshake, for servers and clients (RFC 6455, section 4), as headers in and headers out."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
VERSION = "13"
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2

# A member of Sec-WebSocket-Extensions (section 9.1). A quoted value must be a token once its backslashes are removed.
QUOTED = r"(?:\\?[!#$%&'*+\-.^_`|~0-9A-Za-z])+"
PARAMETER = re.compile(rf'[ \t]*;[ \t]*({TOKEN.pattern})(?:[ \t]*=[ \t]*(?:({TOKEN.pattern})|"({QUOTED})"))?')
EXTENSION = re.compile(rf"[ \t]*({TOKEN.pattern})((?:{PARAMETER.pattern})*)[ \t]*")

Parameters = Sequence[tuple[str, str | None]]  # names and values, None for a name that stands alone


class HandshakeError(Exception):
    """The request is not a valid opening handshake; the attributes make the HTTP response that says so.

    `status` is the HTTP status code, `reason` a sentence for the body, `headers` are others that the response needs.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"


class Extension(NamedTuple):
    """A member of a `Sec-WebSocket-Extensions` header."""

    name: str
    parameters: Parameters


class ClientHandshake(NamedTuple):
    """The facts of a valid opening handshake: `key` as sent, subprotocols and extensions in the client's order."""

    key: str
    subprotocols: Sequence[str]
    extensions: Sequence[Extension]


def is_upgrade(upgrade: str) -> bool:
    """Whether the value of an `Upgrade` header asks for a WebSocket (RFC 9110, section 7.8)."""
    return has_token(upgrade, "websocket")


def upgrade_required() -> HandshakeError:
    """Return the refusal of a request that is not an upgrade (RFC 9110, section 15.5.22)."""
    return HandshakeError(
        426,
        "This address serves WebSockets: connect to it with a WebSocket client.",
        {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": VERSION},
    )


def check_request(method: str, http_version: str, headers: Mapping[str, str]) -> ClientHandshake:
    """Check the opening handshake of a client (section 4.2.1) and return what it asks for.

    `http_version` is the protocol of the request line, such as "HTTP/1.1". Names in `headers` are in lower case, and
    repeated headers are joined with commas. Raises `HandshakeError` with the response to send instead.
    """
    if not is_upgrade(headers.get("upgrade", "")):
        raise upgrade_required()
    if http_version != "HTTP/1.1":
        raise HandshakeError(400, "A WebSocket handshake requires HTTP/1.1.")
    if method != "GET":
        raise HandshakeError(405, "A WebSocket handshake must be a GET request.", {"Allow": "GET"})
    if not has_token(headers.get("connection", ""), "upgrade"):
        raise HandshakeError(400, 'The header "Connection: Upgrade" is missing; a proxy may have removed it.')
    if not is_host(headers.get("host", "")):
        raise HandshakeError(400, "The Host header is missing, or there are two.")  # RFC 9112, section 3.2
    if headers.get("content-length", "0").strip(" \t") != "0" or "transfer-encoding" in headers:
        raise HandshakeError(400, "A WebSocket handshake must not have a body.")
    version = headers.get("sec-websocket-version", "").strip(" \t")
    if version != VERSION:
        raise HandshakeError(426, f"This server supports only WebSocket version {VERSION}.", upgrade_required().headers)
    key = headers.get("sec-websocket-key", "").strip(" \t")
    if not is_key(key):
        raise HandshakeError(400, "Sec-WebSocket-Key must be 16 bytes in base64.")
    subprotocols = tokens(headers.get("sec-websocket-protocol", ""))
    if len(set(subprotocols)) != len(subprotocols) or not all(map(TOKEN.fullmatch, subprotocols)):
        raise HandshakeError(400, "Sec-WebSocket-Protocol must be a list of different tokens.")
    return ClientHandshake(key, subprotocols, parse_extensions(headers.get("sec-websocket-extensions", "")))


def tokens(value: str) -> list[str]:
    """Return the members of a comma-separated header value, without the empty ones (RFC 9110, section 5.6.1)."""
    return [token for part in value.split(",") if (token := part.strip(" \t"))]


def has_token(value: str, token: str) -> bool:
    """Whether `token`, in lower case, is a member of a header value that ignores case."""
    value = value.lower()
    return value == token or token in tokens(value)


def parse_extensions(value: str) -> list[Extension]:
    """Return the members of a `Sec-WebSocket-Extensions` header, in order.

    Raises `HandshakeError` (400) for a value that breaks the grammar (section 9.1).
    """
    extensions = []
    for member in tokens(value):  # no value can contain a comma: even in quotes it must be a token
        match = EXTENSION.fullmatch(member)
        if match is None:
            raise HandshakeError(400, "Sec-WebSocket-Extensions is malformed.")
        parameters = [
            (name, token or quoted.replace("\\", "") or None) for name, token, quoted in PARAMETER.findall(match[2])
        ]
        extensions.append(Extension(match[1], parameters))
    return extensions


def is_host(host: str) -> bool:
    """Whether this is the value of one Host header; two would be joined with a comma."""
    return bool(host.strip(" \t")) and "," not in host


def is_key(key: str) -> bool:
    try:
        return len(key) == 24 and len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):  # ValueError: a character that is not ASCII
        return False


def accept_value(key: str) -> str:
    """Return the `Sec-WebSocket-Accept` that answers `key` (section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + GUID, usedforsecurity=False).digest()).decode()


def accept_headers(key: str, subprotocol: str | None = None, extensions: str | None = None) -> dict[str, str]:
    """Return the headers of the 101 that accepts a handshake (section 4.2.2)."""
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept_value(key)}
    if subprotocol is not None:
        headers["Sec-WebSocket-Protocol"] = subprotocol
    if extensions is not None:
        headers["Sec-WebSocket-Extensions"] = extensions
    return headers


def choose_subprotocol(offered: Sequence[str], supported: Sequence[str]) -> str | None:
    """Return the first of the server's `supported` subprotocols that the client offered, else None."""
    return next((name for name in supported if name in offered), None)


class ClientRequest:
    """The client's side of the handshake (section 4.1): the key of its request, and the check of the response.

    Subprotocols and extensions are offered with `headers`.
    """

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        self.key = base64.b64encode(os.urandom(16)).decode()
        offered = {name.lower(): value for name, value in (headers or {}).items()}
        self.subprotocols = tokens(offered.get("sec-websocket-protocol", ""))
        self._offered = {extension.name for extension in parse_extensions(offered.get("sec-websocket-extensions", ""))}

    def check_response(self, status: int, headers: Mapping[str, str]) -> str | None:
        """Return the subprotocol that the server chose, if any; names in `headers` are in lower case.

        Raises `HandshakeError` with the server's status if it did not accept, or not correctly.
        """
        if status != 101:
            raise HandshakeError(status, "The server did not switch protocols.")
        upgraded = headers.get("upgrade", "").strip(" \t").lower() == "websocket"
        if not upgraded or not has_token(headers.get("connection", ""), "upgrade"):
            raise HandshakeError(status, "The server switched to another protocol.")
        if headers.get("sec-websocket-accept", "").strip(" \t") != accept_value(self.key):
            raise HandshakeError(status, "Sec-WebSocket-Accept does not match the key.")
        try:
            extensions = parse_extensions(headers.get("sec-websocket-extensions", ""))
        except HandshakeError as error:
            raise HandshakeError(status, error.reason) from None
        if not self._offered.issuperset(extension.name for extension in extensions):
            raise HandshakeError(status, "The server uses an extension that was not offered.")
        subprotocol = headers.get("sec-websocket-protocol")
        if subprotocol is not None and subprotocol not in self.subprotocols:
            raise HandshakeError(status, "The server chose a subprotocol that was not offered.")
        return subprotocol

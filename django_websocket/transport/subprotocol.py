"""The subprotocol of the package's client: what stands before a message, and what is said beside the messages.

docs/subprotocol.md describes it for those who write other clients.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from gevent.event import Event

__all__ = [
    "BEAT",
    "HELLO_SIZE",
    "HELLO_TIMEOUT",
    "NAME",
    "SINCE",
    "Greeting",
    "control",
    "from_channel",
    "from_view",
    "of_application",
    "time_of_page",
]

NAME = "django-websocket.1"
SINCE = "django-websocket-since"  # the parameter of an address that says when its page was made
BEAT = "{}"  # says nothing but that the server is there
HELLO_TIMEOUT = 10.0  # seconds for the client's first message, once somebody waits for it
HELLO_SIZE = 128 * 1024  # bytes; it is kept until the positions in it are used
BEGINNING = 10.0  # seconds from the hello in which a view subscribes to what its page is about
MAX_POSITIONS = 1000  # that a client may name
MAX_SESSION = 64  # characters of the name of a session
MAX_POSITION = 40  # characters, which no position has


def of_application(names: Iterable[str]) -> list[str]:
    """Return the subprotocols among those that a client offers which are the application's business."""
    return [name for name in names if name != NAME]


def from_view(message: str | bytes) -> str | bytes:
    """Return a message that a view sends as the client gets it."""
    return "s" + message if isinstance(message, str) else b"s" + message


def from_channel(number: int, position: object, message: str | bytes) -> str | bytes:
    """Return a message of the channel with this number as the client gets it; `position` is None without a history."""
    head = f"p{number}:{'' if position is None else position}:"
    return head + message if isinstance(message, str) else head.encode() + message


def control(**members: Any) -> str:
    """Return a text that is no message, but tells the client something."""
    return json.dumps(members, separators=(",", ":"))


def time_of_page(environ: Mapping[str, Any]) -> int | None:
    """Return when the page of a handshake was made, in seconds since the epoch; None if its address does not say it.

    0 if it says something else: nothing is kept for that long.
    """
    query = environ.get("QUERY_STRING", "")
    if SINCE not in query:
        return None
    values = parse_qs(query, keep_blank_values=True).get(SINCE)
    if not values:
        return None
    return int(values[0]) if re.fullmatch("[0-9]{1,12}", values[0]) else 0


class Greeting:
    """What a client says first: where it goes on in which channel.

    `subprotocol` is the application's own, which the server has chosen beside this one. `discard` says whether what
    follows is dropped. `next_beat` is the tick at which the client hears that the server is there.

    `positions` has a position, or None, for each channel to which the client was subscribed before.
    """

    __slots__ = ("_known", "_until", "discard", "next_beat", "positions", "session", "subprotocol")

    def __init__(self, subprotocol: str | None = None) -> None:
        self.subprotocol = subprotocol
        self.discard = False
        self.next_beat = 0
        self.positions: dict[str, str | None] = {}  # each is taken out when it is used
        self.session: str | None = None  # a name that the client keeps when it connects again
        self._known: Event | None = Event()  # None once the hello is there
        self._until = 0.0  # when the beginning is over, as time.monotonic() has it

    @property
    def awaited(self) -> bool:
        """Whether the next message is the hello."""
        return self._known is not None

    @property
    def begins(self) -> bool:
        """Whether the connection has just begun, so that what is subscribed to now is what its page is about."""
        return self._known is not None or time.monotonic() < self._until

    @property
    def known(self) -> Event | None:
        """What is set when the hello has come, or will not come any more; None if it has come."""
        return self._known

    def welcome(self, interval: float) -> str:
        """Return what the server says first; it lets the client hear from it every `interval` seconds."""
        return control(welcome={"protocol": self.subprotocol, "beat": interval})

    def take(self, message: str | bytes) -> bool:
        """Take the client's first message; return whether it is a hello."""
        if not isinstance(message, str) or len(message) > HELLO_SIZE:
            return False
        try:
            hello = json.loads(message)["hello"]
            positions, session = hello.get("positions", {}), hello.get("session")
            if len(positions) > MAX_POSITIONS:
                return False
            self.session = session if isinstance(session, str) and 0 < len(session) <= MAX_SESSION else None
            self.positions = {channel: _checked(position) for channel, position in positions.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False
        self._until = time.monotonic() + BEGINNING
        self.over()
        self._known = None
        return True

    def over(self) -> None:
        """Wake those who wait for the hello."""
        if self._known is not None:
            self._known.set()


def _checked(position: object) -> str | None:
    """Return what may be a position; "", which is none, for what cannot be one."""
    if position is None:
        return None
    return position if isinstance(position, str) and len(position) <= MAX_POSITION else ""

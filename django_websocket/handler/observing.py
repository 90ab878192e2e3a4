"""What the connections of one loop are doing, as other processes are told of it.

Query strings, headers and cookies are not among it, nor is anything that a client or a view has said.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import median
from types import FrameType
from typing import Any
from uuid import uuid4

from django_websocket.decorators import name_of
from django_websocket.pubsub.forwarding import forwardings_of
from django_websocket.transport.connection import Connection
from django_websocket.transport.shared import shared_of_loop
from django_websocket.transport.turns import let_others_run_if_spent
from django_websocket.transport.waiting import ViewGreenlet, unfinished

from .users import User
from .whereabouts import NOWHERE, place_among

__all__ = ["Observer", "matches_pattern"]

LONGEST = 300  # characters of a text that a client or a project may have made up
MOST_CHANNELS = 20  # named of one connection
FEW = 50  # connections between two looks at the clock

HOST = socket.gethostname()


class Observer:
    """Looks at connections: one object for one look at many, which would ask the same for each of them."""

    def __init__(self, users: Mapping[Connection, User]) -> None:
        self._users = users
        self._names: dict[int, str] = {}  # of views, by their identity: not all have a hash
        self._runners: dict[Connection, Any] = {}  # what runs the view of each
        for runner in (*ViewGreenlet.running, *unfinished):  # of all loops
            connection = getattr(runner, "connection", None)
            if connection is not None:
                self._runners[connection] = runner

    def view(self, connection: Connection) -> str:
        """Return the name of a connection's view: where it is defined. That of a consumer is its class."""
        driving = getattr(self._runners.get(connection), "driving", None)
        view: Any = connection.view if driving is None else type(driving.consumer)
        if view is None:
            return ""
        name = self._names.get(id(view))
        if name is None:
            name = self._names[id(view)] = name_of(view)
        return name

    def channels(self, connection: Connection) -> list[str]:
        """Return the channels to which a connection is subscribed, itself or by its view, and a consumer's groups."""
        found: dict[str, None] = {}
        for forwarding in forwardings_of(connection):
            found.update(dict.fromkeys(forwarding.channels))
        runner = self._runners.get(connection)
        if isinstance(runner, ViewGreenlet):
            for dependent in runner.dependents():
                found.update(dict.fromkeys(getattr(dependent, "channels", ())))
        found.update(dict.fromkeys(getattr(getattr(runner, "driving", None), "groups", ())))
        return sorted(found)

    def predicate(self, kind: str, pattern: str) -> Callable[[Connection], bool]:
        """Return what tells whether a connection is one of those that a filter wants."""
        if kind == "path":
            return lambda connection: matches_pattern(path_of(connection), pattern)
        if kind == "view":
            return lambda connection: matches_pattern(self.view(connection), pattern)
        return lambda connection: any(matches_pattern(name, pattern) for name in self.channels(connection))

    def describe(self, connection: Connection) -> dict[str, Any]:
        """Return what a connection is doing; see `monitoring.Connection`. `began` is by this process's own clock."""
        if not connection.id:
            connection.id = uuid4().hex
        runner = self._runners.get(connection)
        frames: Iterable[FrameType] = getattr(runner, "frames", ())
        place = place_among(frames, getattr(connection.view, "__module__", "")) if frames else NOWHERE
        channels = self.channels(connection)
        return {
            "id": connection.id,
            "user": self._users.get(connection),
            "path": path_of(connection)[:LONGEST],
            "address": connection.who.partition(" ")[0][:LONGEST],
            "view": self.view(connection)[:LONGEST],
            "began": connection.began,
            "received_messages": connection.received_messages,
            "sent_messages": connection.sent_messages,
            "received_bytes": connection.received_bytes,
            "sent_bytes": connection.sent_bytes,
            "outbox": connection.unsent_bytes,
            "latency": connection.latency,
            "channels": [name[:LONGEST] for name in channels[:MOST_CHANNELS]],
            "more_channels": max(0, len(channels) - MOST_CHANNELS),
            "file": place.file[-LONGEST:],
            "line": place.line,
            "function": place.function[:LONGEST],
        }


def path_of(connection: Connection) -> str:
    """Return the path of the request that a connection began with, without the query string."""
    return connection.who.partition(" ")[2]


def summary(connections: Iterable[Connection]) -> dict[str, Any]:
    """Return what the process and its connections are doing in all; see `monitoring.Process`."""
    shared = shared_of_loop()
    number = unsent = 0
    received, sent = shared.received, shared.sent
    latencies = []
    for connection in politely(connections):
        number += 1
        received += connection.received_messages
        sent += connection.sent_messages
        unsent += connection.unsent_bytes
        if connection.latency is not None:
            latencies.append(connection.latency)
    return {
        "now": time.monotonic(),
        "host": HOST,
        "pid": os.getpid(),
        "connections": number,
        "received_messages": received,
        "sent_messages": sent,
        "outbox": unsent,
        "latency": median(latencies) if latencies else None,
    }


def politely(connections: Iterable[Connection]) -> Iterator[Connection]:
    """Iterate over connections, and let others run now and then."""
    for number, connection in enumerate(tuple(connections)):
        if not number % FEW:
            let_others_run_if_spent()
        yield connection


def matches_pattern(text: str, pattern: str) -> bool:
    """Return whether a pattern matches, in which * stands for any text; in time that is linear, whatever the text."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    if not text.startswith(first) or not text.endswith(rest[-1]):
        return False
    begin = len(first)
    for part in rest[:-1]:
        begin = text.find(part, begin)
        if begin < 0:
            return False
        begin += len(part)
    return len(text) - begin >= len(rest[-1])

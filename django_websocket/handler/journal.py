"""The access log's line at the end of each conversation.

gunicorn's logger writes it, in gunicorn's format, as it writes those of pages and of refused handshakes. What only
conversations have is in the environment, where the format finds it: `%({websocket.code}e)s`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent

from django_websocket.transport.log import printable, report
from django_websocket.transport.turns import let_others_run_if_spent
from django_websocket.transport.waiting import unfinished

from .upgrade import Notes

if TYPE_CHECKING:
    from django_websocket.transport.connection import Connection

__all__ = ["Journal", "is_on", "known", "safe"]

CLIENT, VIEW, USER = "websocket.client", "websocket.view", "websocket.user"  # of refused handshakes, too
NOTHING = "-"  # as gunicorn writes what it does not know


class Length(timedelta):
    """How long a conversation was. gunicorn reads the seconds alone, from which a timedelta leaves out whole days."""

    @property
    def seconds(self) -> int:
        """The whole seconds, those of days among them."""
        return self // timedelta(seconds=1)


class Answer(NamedTuple):
    """The response, as gunicorn's logger reads it. `sent` is what the conversation has sent, in bytes."""

    status: str
    headers: Iterable[tuple[str, str]]
    sent: int


class Asked:
    """The request, as gunicorn's logger reads it: from the environment that the conversation has anyway."""

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self.method = environ.get("REQUEST_METHOD")
        self.uri = environ.get("RAW_URI")
        self.path = environ.get("PATH_INFO")
        self.query = environ.get("QUERY_STRING")
        self.headers = [(name[5:].replace("_", "-"), value) for name, value in environ.items() if name[:5] == "HTTP_"]


class Record:
    """One conversation that is to be logged when it ends."""

    __slots__ = ("_begin", "_connection", "_environ", "_headers", "_journal", "_notes", "_request", "_status", "_user")

    def __init__(
        self,
        journal: Journal,
        connection: Connection,
        status: str,
        headers: Iterable[tuple[str, str]],
        environ: Mapping[str, Any],
        notes: Notes,
        begin: float,
    ) -> None:
        self._journal = journal
        self._connection = connection
        self._status = status
        self._headers = headers
        self._environ = environ
        self._notes = notes
        self._begin = begin
        self._user = notes.user()  # unless somebody asks for it later
        self._request: object = None

    def end(self) -> None:
        """Have the line written, once: `finish` may have done so before the socket is closed. Called in the hub."""
        if not self._journal.take(self):
            return
        self._begin -= time.monotonic()
        self._request = self._notes.request()  # until the name of its user is read
        self._journal.ended(self)

    def write(self, access: Callable[..., None]) -> None:
        """Write the line, by gunicorn's `access`."""
        connection = self._connection
        seconds = -self._begin
        latency = connection.latency
        environ = {
            **self._environ,
            VIEW: known(self._notes.view),
            USER: known(self._notes.user() or self._user),
            "websocket.seconds": f"{seconds:.3f}",
            "websocket.received": connection.received_messages,
            "websocket.sent": connection.sent_messages,
            "websocket.received_bytes": connection.received_bytes,
            "websocket.sent_bytes": connection.sent_bytes,
            "websocket.code": NOTHING if connection.close_code is None else int(connection.close_code),
            "websocket.reason": known(connection.close_reason),
            "websocket.latency": NOTHING if latency is None else f"{latency:.4f}",
        }
        answer = Answer(self._status, self._headers, connection.sent_bytes)
        access(answer, Asked(environ), environ, Length(seconds=seconds))


class Journal:
    """The conversations of a worker that are to be logged, by gunicorn's `access`, each once."""

    def __init__(self, access: Callable[..., None]) -> None:
        self._access = access
        self._open: set[Record] = set()
        self._ended: deque[Record] = deque()
        self._writer: gevent.Greenlet[[], None] | None = None

    def begin(self, connection: Connection, *facts: Any) -> None:
        """Log a conversation when it has ended; see `Record` for what is to be known of it."""
        record = Record(self, connection, *facts)
        self._open.add(record)
        connection.call_on_end(record.end)

    def take(self, record: Record) -> bool:
        """Note that a conversation has ended; return False if that was noted before."""
        known = record in self._open
        self._open.discard(record)
        return known

    def ended(self, record: Record) -> None:
        """Write the line of a conversation, in a greenlet: a log may block. Called in the hub."""
        self._ended.append(record)
        if self._writer is None:
            self._writer = gevent.spawn(self._write)
            unfinished.add(self._writer)

    def finish(self) -> None:
        """Write the lines of all conversations that have not ended, as the process is about to."""
        for record in tuple(self._open):
            record.end()
        self._write_all()

    def _write(self) -> None:
        try:
            self._write_all()
        finally:
            unfinished.discard(self._writer)
            self._writer = None

    def _write_all(self) -> None:
        while self._ended:
            try:
                self._ended.popleft().write(self._access)
            except Exception as error:
                report("the access log", None, "a line was not written", repr(error))
            let_others_run_if_spent()


def is_on(log: Any, cfg: Any) -> bool:
    """Whether gunicorn's logger writes an access log, or is a project's own, which may do something else."""
    from gunicorn.glogging import Logger

    if type(log).access is not Logger.access:
        return True
    to_syslog = cfg.syslog and not cfg.disable_redirect_access_to_syslog
    return bool(cfg.accesslog or cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json or to_syslog)


def known(text: str) -> str:
    """Return a text in the form in which it can be in a line."""
    return printable(text) if text else NOTHING


def safe(atoms: type[dict[str, Any]]) -> type[dict[str, Any]]:
    """Return gunicorn's class of what a line is made of, so changed that no value can begin a line of its own.

    The path of a request is decoded there, and may have had any character.
    """

    class Safe(atoms):  # type: ignore[misc, valid-type]
        def __getitem__(self, name: str) -> Any:
            value = super().__getitem__(name)
            if not isinstance(value, str) or value.isprintable():
                return value
            return "".join(each if each.isprintable() else printable(each) for each in value)

    return Safe

"""Who is connected, and what they are doing: the WebSockets of all processes, on all machines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db.models import Model

from django_websocket.handler import orders
from django_websocket.handler.users import LOGGED_OUT, User, identify
from django_websocket.transport.turns import let_others_run_if_any

__all__ = ["Connection", "Connections", "Process", "connections", "disconnect", "usernames"]

LONGEST = 5.0  # seconds for all that one process after the other tells; each may take a second
MOST_ASKED = 100  # processes that one question names

NOT_GIVEN: Any = object()
EVERYBODY: orders.Which = {}


@dataclass(frozen=True)
class Connection:
    """One open WebSocket, as it was when its process told of it."""

    id: str
    """Its name, by which `disconnect(id=...)` finds it: `websocket.id`."""

    user: str
    """The primary key of its user; empty if nobody is logged in, or if nothing has looked at `request.user`."""

    path: str
    """The path of its request, without the query string; of a long one, the beginning."""

    address: str
    """The client's, as in the log; "unix" for one that came by a Unix socket without a proxy's word for it."""

    view: str
    """Where its view is defined, such as "chat.views.room". That of a consumer is its class."""

    age: float
    """Seconds since the handshake."""

    received_messages: int
    """Messages of the client."""

    sent_messages: int
    """Messages to the client, including those that were published."""

    received_bytes: int
    """Bytes of the client, with the headers of their frames, as they came: perhaps compressed."""

    sent_bytes: int
    """Bytes to the client, counted in the same way."""

    outbox: int
    """Bytes that wait for the client to read."""

    latency: float | None
    """Seconds between the last ping that the client has answered and its pong; None until there was one."""

    channels: tuple[str, ...]
    """The first twenty channels to which it is subscribed, itself or by its view, and the groups of a consumer."""

    more_channels: int
    """How many it has beyond these."""

    file: str
    """The file of the project's code that its view executes or waits in, such as "chat/views.py"; empty for none.

    A view that has ended with `websocket.listen()` has none, nor has a consumer whose handlers have returned.
    """

    line: int
    """The number of the line in that file."""

    function: str
    """The function that the line is in."""

    pid: int
    """The process."""

    host: str
    """The name of its machine."""

    user_model: str = ""
    """The model of the user, such as "auth.User"."""

    database: str = ""
    """The alias of the user's database."""

    tenant: str = ""
    """The tenant in whose schema the user is, with django-tenants and the like."""

    @property
    def where(self) -> str:
        """The line that its view executes or waits in, such as "chat/views.py:17"; empty for none."""
        return f"{self.file}:{self.line}" if self.file else ""


@dataclass(frozen=True)
class Process:
    """A process that has WebSockets, with figures of all of them, whatever the filters were."""

    name: str
    """A name that no other process has."""

    host: str
    """The name of its machine."""

    pid: int
    """Its number there."""

    connections: int
    """How many are open."""

    received_messages: int
    """Messages of all clients since the process began."""

    sent_messages: int
    """Messages to all clients since the process began, including those that were published."""

    outbox: int
    """Bytes that wait for clients to read."""

    latency: float | None
    """The median of the clients' latencies, in seconds; None until one of them has answered a ping."""


class Connections(list[Connection]):
    """The connections that were asked for, the oldest first, and what else became known."""

    total: int = 0
    """How many there are, whatever the limit was."""

    processes: tuple[Process, ...] = ()
    """The processes that have answered."""

    silent: int = 0
    """How many processes have not answered in time. Their connections are missing here."""


def connections(
    *,
    user: Any = NOT_GIVEN,
    path: str = NOT_GIVEN,
    view: str = NOT_GIVEN,
    channel: str = NOT_GIVEN,
    id: str = NOT_GIVEN,
    limit: int | None = 1000,
) -> Connections:
    """Return the open WebSockets of all processes, the oldest first.

    If there are more than `limit`, some are left out; None is for no limit. The other arguments say which are wanted,
    and all that are given must apply. `user` is an object or its primary key. In a `path`, a `view` and a `channel`, an
    asterisk stands for any text: `path="/chat/*"`. `id` is that of a connection.

    Works from anywhere, as `publish` does, and waits for the answers of all processes that have WebSockets; those of a
    process that does not answer within a second are missing. A process tells of many connections in pieces, so its
    clients do not have to wait. Raises `BrokerError` if the broker cannot be reached, and TypeError or ValueError for
    an argument that does not say which WebSockets are meant.
    """
    which = which_of(user=user, path=path, view=view, channel=channel, id=id)
    result = Connections()
    processes: dict[str, Process] = {}
    clocks: dict[str, float] = {}  # of the processes
    after: dict[str, float] = {}  # where those go on that have more to tell
    asked: dict[str, float] | None = None  # of them; None for all processes
    end = time.monotonic() + LONGEST
    while True:
        told: dict[str, dict[int, dict[str, Any]]] = {}  # parts of answers, by process and number

        def take(process: str, answer: dict[str, Any], told: Any = told) -> bool:
            parts = told.setdefault(process, {})
            new = answer["part"] not in parts
            parts[answer["part"]] = answer
            return new and bool(answer["last"])

        most = None if limit is None else limit - len(result)
        question = {"which": which, "after": asked, "most": most}
        expected = None if asked is None else len(asked)
        reached, answered = orders.ask("list", question, take, expected=expected, longest=LONGEST)
        result.silent += max(0, ((reached or 0) if expected is None else expected) - answered)
        for name, parts in told.items():
            last = parts.get(0, {})
            if last.get("summary") is not None:
                clocks[name] = last["summary"].pop("now")
                processes[name] = Process(name=name, **last["summary"])
                result.total += last["total"]
            if last.get("after") is not None:
                after[name] = last["after"]
            for part in parts.values() if name in processes else ():
                result += [_connection(each, processes[name], clocks[name]) for each in part["connections"]]
                let_others_run_if_any()
        if not after or (limit is not None and len(result) >= limit) or time.monotonic() > end:
            break
        asked = {name: after.pop(name) for name in list(after)[:MOST_ASKED]}
    result.sort(key=lambda connection: -connection.age)
    del result[len(result) if limit is None else limit :]
    result.processes = tuple(processes.values())
    return result


def disconnect(
    *,
    user: Any = NOT_GIVEN,
    path: str = NOT_GIVEN,
    view: str = NOT_GIVEN,
    channel: str = NOT_GIVEN,
    id: str = NOT_GIVEN,
    code: int = LOGGED_OUT,
    reason: str = "",
) -> int:
    """Close all WebSockets that `connections` would return for the same arguments; return their number.

    At least one must be given. Unlike `logins.disconnect`, this reaches views with `until_logout=False`, and takes
    patterns. `code`, `reason`, waiting and errors are the same.
    """
    which = which_of(user=user, path=path, view=view, channel=channel, id=id)
    if not which:
        raise TypeError('disconnect() needs to know which WebSockets to close; path="*" is all of them')
    return orders.disconnect(orders.Order(which, code, reason))


def usernames(connections: Iterable[Connection]) -> dict[str, str]:
    """Return the names of users, by the `id` of their connections; it takes one query of the database.

    Only those of the project's user model are among them, as it is in the database and the tenant that are active here.
    """
    model = get_user_model()
    own = identify("")[1:]
    users = {
        each.id: each.user
        for each in connections
        if (each.user_model, each.database, each.tenant) == own and could_be_key(model, each.user)
    }
    found = {str(user.pk): user.get_username() for user in model._default_manager.filter(pk__in={*users.values()})}
    return {id: found[user] for id, user in users.items() if user in found}


def could_be_key(model: type[Model], key: str) -> bool:
    """Whether the table of a model could have a primary key: a middleware may have made up a user, of no table."""
    field = model._meta.pk
    try:
        field.run_validators(field.to_python(key))
    except ValidationError:
        return False
    return True


def which_of(**given: Any) -> orders.Which:
    """Return what is asked for. Raises TypeError or ValueError for an argument that does not say which."""
    which: dict[str, tuple[str, ...]] = {}
    for name, value in given.items():
        if value is NOT_GIVEN:
            continue
        if name == "user":
            if getattr(value, "pk", value) in (None, ""):
                raise ValueError(f"user={value!r} is not a user who is stored in the database")
            which["known"] = identify(value)
        elif not isinstance(value, str):
            raise TypeError(f"{name}= must be a str, not {value!r}")
        elif not value:
            raise ValueError(f"{name}= is empty, so it does not say which WebSockets are meant")
        else:
            which[{"id": "connection", "channel": "channels"}.get(name, name)] = (value,)
    orders.check_which(which)
    return which


def _connection(told: Mapping[str, Any], process: Process, now: float) -> Connection:
    user = User(*told["user"]) if told["user"] else User("", "", "", "")
    values: dict[str, Any] = {**told, "user": user.key, "channels": tuple(told["channels"])}
    values["age"] = max(0.0, now - values.pop("began"))
    values.update(pid=process.pid, host=process.host)
    values.update(user_model=user.model, database=user.database, tenant=user.tenant)
    return Connection(**values)

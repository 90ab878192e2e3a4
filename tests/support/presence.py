"""Clients in this process that are present in channels, other processes to which they may go, and how a test waits."""

from __future__ import annotations

import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import gevent
import gevent.socket
import pytest
import redis.connection
from django.http import HttpResponse
from gevent.hub import get_hub

from django_websocket import conf, pubsub
from django_websocket.exceptions import BrokerError
from django_websocket.protocol.engine import Engine, Role
from django_websocket.pubsub import count, present
from django_websocket.pubsub.forwarding import Forwarding
from django_websocket.pubsub.presence import presence_of
from django_websocket.pubsub.process import current_broker, current_hub
from django_websocket.pubsub.roster import PRESENT, Claim, PresenceBroker, RosterEvent
from django_websocket.transport.connection import Connection
from django_websocket.transport.subprotocol import NAME, Greeting
from django_websocket.websocket import WebSocket

from .waiting import DEADLINE, until
from .wire import Pairs, Peer, unix_pair

if TYPE_CHECKING:
    from .servers import Cluster, Sentinel

ENCRYPTION_KEY = "a key that has not less than 32 characters"
BROKERS = ["memory", "redis", "encrypted", "sentinel", "cluster"]
ROOM = "room:1"
ANN, BOB, EVE = {"id": 1, "name": "ann"}, {"id": 2, "name": "bob"}, {"id": 3, "name": "eve"}
NEVER = 10_000.0  # seconds of grace with which only those leave within a test's time who leave at once

T = TypeVar("T")


def broker_setting(request: pytest.FixtureRequest, key: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a `WEBSOCKET_BROKER` of the kind that the parameter names, whose channels no other test uses."""
    kind = getattr(request, "param", "memory")
    if kind == "memory":
        return f"memory://{key}"
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)  # as in a patched worker
    if kind == "sentinel":
        sentinel: Sentinel = request.getfixturevalue("sentinel")
        return {**sentinel.broker(), "prefix": f"{key}:"}
    if kind == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        return {"url": f"redis+cluster://{cluster.nodes[0].address}", "prefix": f"{key}:"}
    url: str = request.getfixturevalue("redis_url")
    keys = {"encryption_keys": [ENCRYPTION_KEY]} if kind == "encrypted" else {}
    return {"url": url, "prefix": f"{key}:", **keys}


every_broker = pytest.mark.parametrize("setting", BROKERS, indirect=True)
each_kind = pytest.mark.parametrize("setting", ["memory", "redis"], indirect=True)
on_redis = pytest.mark.parametrize("setting", ["redis"], indirect=True)


MakesPairs = Callable[..., tuple[Connection, Peer]]  # makes a connection and its client, as `Pairs` does


class Client:
    """A client that speaks the subprotocol, or a plain one, and its view's WebSocket."""

    def __init__(self, pairs: MakesPairs, session: Any = None, *, plain: bool = False, **options: Any) -> None:
        self.connection: Connection
        self.peer: Peer
        self.connection, self.peer = pairs(greeting=None if plain else Greeting(), **options)
        agreement = options.get("agreement")
        self._engine = agreement and Engine(
            Role.CLIENT, agreement=agreement, max_message_size=1 << 30, max_queued_messages=1 << 30
        )
        self._inflated = 0  # segments
        environ = {} if plain else {"HTTP_SEC_WEBSOCKET_PROTOCOL": NAME}
        self.websocket = WebSocket(environ, HttpResponse(), lambda subprotocol: self.connection)
        self.websocket.accept()
        if not plain:
            self.peer.text(json.dumps({"hello": {} if session is None else {"session": session}}))
            greeting = self.connection.greeting
            assert greeting is not None
            until(lambda: not greeting.awaited)

    def subscribe(self, *channels: str, **options: Any) -> Forwarding:
        return self.websocket.subscribe(*channels, **options)

    # --- how it leaves -------------------------------------------------------------------------------------------

    def close(self, code: int = 1000) -> None:
        """Close with a code of the client's, 1006 to vanish; return when the server has noticed."""
        if code == 1006:
            self.peer.sock.close()
        else:
            self.peer.close_frame(code)
        until(lambda: not self.connection.connected)
        assert self.connection.close_code == code

    def be_closed(self, code: int) -> None:
        """Be closed by the server with a code, and answer that."""
        self.connection.close(code)
        self.peer.close_frame(code)
        until(lambda: not self.connection.connected)
        assert self.connection.close_code == code

    # --- what it is told -----------------------------------------------------------------------------------------

    def messages(self) -> list[str | bytes]:
        """Read what has come, and return all messages so far, those that are none included."""
        while self.peer.pump():
            pass
        if self._engine is None:
            return [one.payload.decode() for one in self.peer.frames if one.opcode == 1]
        new, self._inflated = self.peer.segments[self._inflated :], len(self.peer.segments)
        assert self._engine.receive(b"".join(new)) == []
        return self._engine.messages

    def all_controls(self) -> list[dict[str, Any]]:
        """Return all that is no message."""
        return [json.loads(one) for one in self.messages() if one[:1] == "{"]

    def controls(self) -> list[dict[str, Any]]:
        """Return what has been told of who is there."""
        return [one for one in self.all_controls() if {"present", "leave", "join", "count"} & one.keys()]

    def knows(self, channel: str = ROOM) -> dict[Any, Any] | None:
        """Return who is there, as the client has been told: by the id, as JSON, for 1 and "1" differ.

        None before it has the list.
        """
        users: dict[Any, Any] | None = None
        for control in self.controls():
            if channel not in control["count"]:
                continue
            if channel in control.get("present", {}):
                users = {json.dumps(user["id"]): user for user in control["present"][channel]}
            assert users is not None, control
            for left in control.get("leave", {}).get(channel, ()):
                del users[json.dumps(left)]
            users.update((json.dumps(user["id"]), user) for user in control.get("join", {}).get(channel, ()))
            assert control["count"][channel] == len(users), control
        return users

    def until_it_knows(self, *users: Any, channel: str = ROOM) -> None:
        """Wait until the client has been told that just these users are there."""
        expected = by_id(users)
        with suppress(AssertionError):
            until(lambda: self.knows(channel) == expected)
        assert self.knows(channel) == expected


def by_id(users: Any) -> dict[str, Any]:
    return {json.dumps(user["id"]): user for user in users}


def there(channel: str = ROOM) -> dict[str, Any]:
    """Return who is in a channel, as the broker knows, after a check that each user is there once."""
    users = present(channel)
    found = by_id(users)
    assert len(found) == len(users) == count(channel), users
    return found


def until_there(*users: Any, channel: str = ROOM, within: float = DEADLINE) -> None:
    """Wait until the broker knows that just these users are in a channel."""
    expected = by_id(users)
    with suppress(AssertionError):
        until(lambda: by_id(present(channel)) == expected, within)
    assert there(channel) == expected


def own_process() -> bytes:
    """Return by which name the broker knows the running loop, which is a process to it."""
    return presence_of(current_hub()).process


class Told:
    """What processes tell the broker of who is there: a test may delay it, have it fail, and look at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[bytes, list[Claim]]] = []  # processes with their claims, when they begin to tell them
        self.delays: defaultdict[bytes, float] = defaultdict(float)  # seconds until a call arrives, by process
        self.late_answers: defaultdict[bytes, float] = defaultdict(float)  # seconds until its answer arrives
        self.failing: set[bytes] = set()  # processes
        kind: Any = type(current_broker())
        change = kind.change_roster

        def change_roster(
            broker: PresenceBroker, channel: str, process: bytes, claims: Sequence[Claim], *, gone: bool = False
        ) -> RosterEvent | None:
            self.calls.append((process, [*claims]))
            if process in self.failing:
                raise BrokerError("the test has it fail")
            if self.delays[process]:
                gevent.sleep(self.delays[process])
            late = self.late_answers[process]
            event: RosterEvent | None = change(broker, channel, process, claims, gone=gone)
            if late:
                gevent.sleep(late)
            return event

        monkeypatch.setattr(kind, "change_roster", change_roster)


class Elsewhere:
    """Another loop in a thread of its own. Brokers and their processes take it for another process."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._ending = False
        self._connections: list[tuple[Connection, Peer]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Elsewhere:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.call(self._close)
        finally:
            self._ending = True
            until(lambda: not self._thread.is_alive())

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in a greenlet of the other loop, and let this one run meanwhile."""
        outcome: list[tuple[Any, BaseException | None]] = []

        def job() -> None:
            try:
                outcome.append((function(), None))
            except BaseException as error:
                outcome.append((None, error))

        self._jobs.append(job)
        until(lambda: outcome, 3 * DEADLINE)
        result, error = outcome[0]
        if error is not None:
            raise error
        found: T = result
        return found

    def client(self, session: Any = None, **options: Any) -> Client:
        """Return a client of the other loop. What is done with it has to be done by `call`."""
        return self.call(lambda: Client(self._pair, session, **options))

    def guest(self, present: Any, session: Any = None, *channels: str) -> Client:
        """Return a client of the other loop that is present in channels."""
        client = self.client(session)
        self.call(lambda: client.subscribe(*channels or (ROOM,), present=present))
        return client

    def _pair(self, **options: Any) -> tuple[Connection, Peer]:
        server, ours = unix_pair()
        self._connections.append((Connection(server, **options), Peer(ours)))
        return self._connections[-1]

    def _close(self) -> None:
        for connection, peer in self._connections:
            if connection.connected:
                connection.close()
                with suppress(OSError):
                    peer.close_frame(1000)
            until(lambda: not connection.connected)  # noqa: B023
            peer.sock.close()
        key = conf.current().broker_key, get_hub()
        mine = [hub for (_, of, loop), hub in pubsub.process.hubs.items() if (of, loop) == key]
        with suppress(AssertionError):  # those who are held for a while
            until(lambda: not any(name.startswith(PRESENT) for hub in mine for name in hub.channels))
        # A call that is under way when the loop ends would leave its connection open.
        for presence in [hub.presence for hub in mine if hub.presence is not None]:
            until(lambda: not (presence._leasing.locked() or presence._readers))  # noqa: B023
        pubsub.process.close_hub(conf.current())

    def _run(self) -> None:
        try:
            while self._jobs or not self._ending:
                while self._jobs:
                    gevent.spawn(self._jobs.popleft())
                gevent.sleep(0.002)
        finally:
            get_hub().destroy(destroy_loop=True)


_crowds: list[Forwarding] = []  # of the running test


def crowd(channel: str, users: list[Any]) -> list[Forwarding]:
    """Have many users be in a channel, without connections; they leave by `close()`, and by `all_leave()`."""
    forwardings = []
    for user in users:
        forwarding = pubsub.forward([channel], present=user, for_good=True)
        _crowds.append(forwarding)
        forwarding.enter(None)
        forwardings.append(forwarding)
    return forwardings


def all_leave(pairs: Pairs) -> None:
    """Have all clients of a test leave that are still there, so that nothing is left of them."""
    while _crowds:
        _crowds.pop().close()
    for connection, peer in pairs.made:
        if connection.connected:
            connection.close()
        peer.sock.close()
    until(lambda: not any(connection.connected for connection, _ in pairs.made))

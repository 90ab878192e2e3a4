"""Who is in a channel: on every broker, in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
import redis.connection
from django.http import HttpResponse

from django_websocket.pubsub import count, present, watch
from django_websocket.pubsub.forwarding import Forwarding
from django_websocket.transport.connection import Connection
from django_websocket.transport.subprotocol import NAME, Greeting
from django_websocket.websocket import WebSocket

from .support.brokers import in_use
from .support.servers import Cluster, Sentinel
from .support.waiting import until
from .support.wire import Pairs, Peer

ENCRYPTION_KEY = "a key that has not less than 32 characters"
ROOM = "room:1"
ANN, BOB = {"id": 1, "name": "ann"}, {"id": 2, "name": "bob"}


@pytest.fixture
def setting(request: pytest.FixtureRequest, key: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `WEBSOCKET_BROKER` of the kind that the parameter names, whose channels no other test uses."""
    if request.param == "memory":
        return f"memory://{key}"
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)  # as in a patched worker
    if request.param == "sentinel":
        sentinel: Sentinel = request.getfixturevalue("sentinel")
        return {**sentinel.broker(), "prefix": f"{key}:"}
    if request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        return {"url": f"redis+cluster://{cluster.nodes[0].address}", "prefix": f"{key}:"}
    url: str = request.getfixturevalue("redis_url")
    keys = {"encryption_keys": [ENCRYPTION_KEY]} if request.param == "encrypted" else {}
    return {"url": url, "prefix": f"{key}:", **keys}


@pytest.fixture(autouse=True)
def broker(setting: Any, pairs: Pairs) -> Iterator[None]:
    with in_use(setting):
        yield


every_broker = pytest.mark.parametrize(
    "setting", ["memory", "redis", "encrypted", "sentinel", "cluster"], indirect=True
)


class Client:
    """A client that speaks the subprotocol, or a plain one, and its view's WebSocket."""

    def __init__(self, pairs: Pairs, session: str | None = None, *, plain: bool = False, **options: Any) -> None:
        self.connection: Connection
        self.peer: Peer
        self.connection, self.peer = pairs(greeting=None if plain else Greeting(), **options)
        environ = {} if plain else {"HTTP_SEC_WEBSOCKET_PROTOCOL": NAME}
        self.websocket = WebSocket(environ, HttpResponse(), lambda subprotocol: self.connection)
        self.websocket.accept()
        if not plain:
            self.peer.text(json.dumps({"hello": {"session": session} if session else {}}))
            greeting = self.connection.greeting
            assert greeting is not None
            until(lambda: not greeting.awaited)

    def subscribe(self, *channels: str, **options: Any) -> Forwarding:
        return self.websocket.subscribe(*channels, **options)

    def controls(self) -> list[dict[str, Any]]:
        """Return what has been told of who is there."""
        self.peer.pump()
        found = [json.loads(one.payload) for one in self.peer.frames if one.payload[:1] == b"{"]
        return [one for one in found if "count" in one]

    def knows(self, channel: str = ROOM) -> dict[Any, Any]:
        """Return who is there, as the client has been told."""
        users: dict[Any, Any] = {}
        for control in self.controls():
            if channel in control.get("present", {}):
                users = {user["id"]: user for user in control["present"][channel]}
            for left in control.get("leave", {}).get(channel, ()):
                del users[left]
            users.update((user["id"], user) for user in control.get("join", {}).get(channel, ()))
            assert control["count"][channel] == len(users)
        return users


@every_broker
def test_basics(pairs: Pairs) -> None:
    assert present(ROOM) == []
    assert count(ROOM) == 0
    with watch(ROOM) as changes:
        first = changes.get(5)
        assert (first.joined, first.left, first.count) == ([], [], 0)
        ann = Client(pairs, "a")
        with ann.subscribe(ROOM, present=ANN) as presence:
            assert present(ROOM) == [ANN]
            assert count(ROOM) == 1
            change = changes.get(5)
            assert (change.joined, change.left, change.count) == ([ANN], [], 1)
            bob = Client(pairs, "b")
            with bob.subscribe(ROOM, present=BOB):
                change = changes.get(5)
                assert (change.joined, change.left, change.count) == ([BOB], [], 2)
                presence.update_present({**ANN, "typing": True})
                change = changes.get(5)
                assert (change.joined, change.left, change.count) == ([{**ANN, "typing": True}], [], 2)
                until(lambda: bob.knows() == {1: {**ANN, "typing": True}, 2: BOB})
                until(lambda: ann.knows() == bob.knows())
            change = changes.get(5)
            assert (change.joined, change.left, change.count) == ([], [BOB], 1)
            assert count(ROOM) == 1
        change = changes.get(5)
        assert (change.joined, change.left, change.count) == ([], [{**ANN, "typing": True}], 0)
    assert present(ROOM) == []
    assert count(ROOM) == 0

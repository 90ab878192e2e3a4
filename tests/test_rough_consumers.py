"""Channels' consumers that do what a server has to endure: the other clients notice nothing, and nothing is lost."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import URLRouter
from django.db import connection
from django.urls import path

from django_websocket.handler.consumers import Recognised, recognise
from django_websocket.handler.databases import give_back_databases

from .support.clients import RawClient, request
from .support.fixtures import Raw, StartSite
from .support.frames import frame
from .support.servers import Server, redis_server
from .support.waiting import eventually

SETTINGS = {
    "WEBSOCKET_URLCONF": "testsite.rough_consumers",
    "WEBSOCKET_CLOSE_TIMEOUT": 0.3,
    "CHANNEL_LAYERS": {"default": {"BACKEND": "django_websocket.channels.ChannelLayer"}},
}


@pytest.fixture(scope="module")
def server(start_site: StartSite) -> Iterator[Server]:
    """A server that lets one synchronous handler work at a time, behind middleware that has used the database."""
    from testsite import settings

    more = {"MIDDLEWARE": [*settings.MIDDLEWARE, "testsite.rough_consumers.counting"]}
    with start_site({**SETTINGS, **more}, env={"ASGI_THREADS": "1"}) as server:
        yield server


def opened(raw: Raw, server: Server, path: str = "/sync/") -> RawClient:
    client = raw(server)
    client.open(path)
    return client


def ask(client: RawClient, text: str) -> str:
    """Send a message, and return the answer."""
    client.send(frame(text))
    return client.frame().text


@pytest.mark.parametrize("path", ["/sync/", "/async/"])
def test_handler_that_sends_without_end_ends_behind_its_client(server: Server, raw: Raw, path: str) -> None:
    client, other = opened(raw, server, path), opened(raw, server)
    assert ask(client, "endless").startswith("x")
    client.reset()
    assert ask(other, "echo still here") == "still here"
    assert ask(opened(raw, server, path), "echo me too") == "me too"


def test_transaction_goes_on_behind_a_send_that_has_waited(server: Server, raw: Raw, key: str) -> None:
    client = opened(raw, server)
    client.send(frame(f"save {key}"))
    other = raw(server)
    other.open("/async/")
    assert ask(other, "echo meanwhile") == "meanwhile"
    for _ in range(20):
        assert len(client.frame().payload) == 600_000
    assert client.frame().text == "2"


def test_acceptance_within_a_transaction_names_the_mistake(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.send(request("/sync/?atomic"))
    assert client.response().status == 500
    assert eventually(lambda: "cannot be accepted inside a transaction" in server.log)


def test_flush_ends_nobody(server: Server, raw: Raw, key: str) -> None:
    client = opened(raw, server)
    assert ask(client, f"join {key}") == "joined"
    assert ask(client, f"say {key}") == "said"
    assert ask(client, "flush") == "flushed"
    client.send(frame(f"say {key}"))
    assert ask(client, "echo nobody has heard it") == "nobody has heard it"


def test_timeout_that_a_handler_leaves_behind_ends_no_greenlet(start_site: StartSite, raw: Raw) -> None:
    with start_site(SETTINGS, env={"ASGI_THREADS": "1"}) as server:  # of its own, since it may hit the next handler
        assert ask(opened(raw, server), "time_out") == "started"
        time.sleep(0.2)  # until the timeout is over, which no client can see
        for _ in range(3):
            assert ask(opened(raw, server), "echo two") == "two"


@pytest.mark.parametrize("path", ["/sync/", "/async/"])
def test_child_process_ends_with_its_handler(server: Server, raw: Raw, path: str) -> None:
    client = opened(raw, server, path)
    assert ask(client, "fork") == "child ended"
    assert ask(client, "echo the parent") == "the parent"


def test_who_joins_in_vain_during_an_outage_takes_nobody_along(start_site: StartSite, raw: Raw) -> None:
    with (
        redis_server() as redis,
        start_site({**SETTINGS, "WEBSOCKET_BROKER": f"redis://{redis.address}/0"}) as server,
    ):
        ann, bob = opened(raw, server), opened(raw, server)
        assert ask(ann, "join room") == "joined"
        redis.stop()
        bob.send(frame("join room"))
        assert bob.closing()[0] == 1013
        redis.start()
        assert eventually(lambda: "is back" in server.log)
        assert ask(ann, "say room") == "said"


# --- without a server ------------------------------------------------------------------------------------------------


class Slotted:
    """Middleware with slots."""

    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.inner(scope, receive, send)


async def middleware(inner: Any, scope: Any, receive: Any, send: Any) -> None:
    await inner(scope, receive, send)


def in_a_closure(inner: Any) -> Any:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    return application


@pytest.mark.parametrize("around", [Slotted, in_a_closure, lambda inner: functools.partial(middleware, inner)])
def test_consumers_are_found_behind_middleware_of_each_form(around: Any) -> None:
    router = URLRouter([path("echo/", AsyncWebsocketConsumer.as_asgi())])
    recognise(around(Slotted(around(router))))
    (route,) = router.routes
    assert isinstance(route.callback, Recognised)


def test_database_that_cannot_be_closed_is_given_back_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def close() -> None:
        raise OSError("the server has ended the connection")

    connection.ensure_connection()
    with monkeypatch.context() as patched:
        patched.setattr(connection, "close", close)
        give_back_databases()
    connection.close()

"""The channel layer by itself, in a process that is like a task or a command: gevent has not patched it."""

from __future__ import annotations

import asyncio
import datetime
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import gevent
import pytest
from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull, MessageTooLarge
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from redis import Redis

from django_websocket import conf
from django_websocket.channels import ChannelLayer
from django_websocket.pubsub.process import close_all
from django_websocket.pubsub.redis import TIMEOUT

from .support.fixtures import SITE
from .support.servers import Server, redis_server
from .support.waiting import DEADLINE, eventually, until

BACKEND = "django_websocket.channels.ChannelLayer"
CAPACITY = 5
LAYERS = {"default": {"BACKEND": BACKEND}, "small": {"BACKEND": BACKEND, "CONFIG": {"capacity": CAPACITY}}}


@pytest.fixture(params=["memory", "redis"])
def broker(request: pytest.FixtureRequest, key: str) -> str:
    """The URL of each kind of broker."""
    if request.param == "memory":
        return f"memory://{key}"
    url: str = request.getfixturevalue("redis_url")
    return url


@pytest.fixture(scope="module", autouse=True)
def brokers_end() -> Iterator[None]:
    """Close what this process has connected, in whichever thread: other tests count greenlets and descriptors."""
    yield
    close_all()
    until(lambda: not running())  # the loop runs meanwhile: another file's test may have left a delivery to it


def running() -> list[Any]:
    """The greenlets of subscribers in all threads that have not ended."""
    found = [each for each in gc.get_objects() if type(each) is gevent.Greenlet and not each.dead and each.loop]
    return [each for each in found if "Subscriber" in str(each)]


@pytest.fixture
def layer(broker: str) -> Iterator[Any]:
    """The layer of a project, as it gets it."""
    with override_settings(WEBSOCKET_BROKER=broker, CHANNEL_LAYERS=LAYERS):
        yield get_channel_layer()


@pytest.fixture
def in_memory(key: str) -> Iterator[Any]:
    with override_settings(WEBSOCKET_BROKER=f"memory://{key}", CHANNEL_LAYERS=LAYERS):
        yield get_channel_layer()


def said(value: Any) -> dict[str, Any]:
    return {"type": "said", "value": value}


async def received(layer: Any, channel: str) -> Any:
    """Return what the next message says."""
    return (await asyncio.wait_for(layer.receive(channel), DEADLINE))["value"]


async def nothing(layer: Any, channel: str) -> bool:
    """Whether nothing waits, which a message to oneself shows that comes behind all others."""
    await layer.send(channel, said("the end"))
    return bool(await received(layer, channel) == "the end")


# --- messages --------------------------------------------------------------------------------------------------------


def test_layer_is_one_object(layer: Any) -> None:
    assert isinstance(layer, ChannelLayer)
    assert layer is get_channel_layer()


def test_channels_have_names_of_their_own(layer: Any) -> None:
    async def main() -> None:
        names = [await layer.new_channel() for _ in range(100)]
        assert len(set(names)) == 100
        assert all("!" in name and len(name) < 100 for name in names)
        assert all(name.startswith("mine") for name in [await layer.new_channel("mine")])

    asyncio.run(main())


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (b"\0\xff", b"\0\xff"),
        ("Grüße 🙂", "Grüße 🙂"),
        ((1, (2, b"x")), [1, [2, b"x"]]),
        ({"a": {"b": [None, True, 1.5, -(2**63), 2**64 - 1]}}, {"a": {"b": [None, True, 1.5, -(2**63), 2**64 - 1]}}),
        ([], []),
    ],
    ids=["bytes", "text", "tuple", "nested", "empty"],
)
def test_values_arrive(layer: Any, key: str, value: Any, arrives: Any) -> None:
    async def main() -> None:
        name = await layer.new_channel()
        await layer.group_add(key, name)
        await layer.send(name, said(value))
        await layer.group_send(key, said(value))
        for _ in range(2):
            message = await asyncio.wait_for(layer.receive(name), DEADLINE)
            assert message == said(arrives)
            assert type(message["value"]) is type(arrives)

    asyncio.run(main())


@pytest.mark.parametrize(
    "value", [{1: "x"}, datetime.datetime.now(), {"a": datetime.date.today()}, {1, 2}, object()], ids=lambda value: ""
)
def test_other_values_are_errors_of_the_sender(layer: Any, key: str, value: Any) -> None:
    async def main() -> None:
        name = await layer.new_channel()
        await layer.group_add(key, name)
        with pytest.raises(TypeError):
            await layer.send(name, said(value))
        with pytest.raises(TypeError):
            await layer.group_send(key, said(value))
        with pytest.raises(TypeError):
            await layer.group_send(f"{key}-empty", said(value))
        assert await nothing(layer, name)

    asyncio.run(main())


def test_message_belongs_to_who_receives_it(layer: Any, key: str) -> None:
    async def main() -> None:
        names = [await layer.new_channel() for _ in range(2)]
        for name in names:
            await layer.group_add(key, name)
        message = said([1])
        await layer.group_send(key, message)
        message["value"].append("of the sender")
        for name in names:
            got = await received(layer, name)
            assert got == [1]
            got.append("of a receiver")

    asyncio.run(main())


def test_message_that_is_too_large_is_an_error_of_the_sender(layer: Any, key: str) -> None:
    async def main() -> None:
        name = await layer.new_channel()
        await layer.group_add(key, name)
        with pytest.raises(MessageTooLarge):
            await layer.send(name, said("x" * 3_000_000))
        with pytest.raises(MessageTooLarge):
            await layer.group_send(key, said(b"x" * 3_000_000))
        await layer.send(name, said("x" * 500_000))
        assert len(await received(layer, name)) == 500_000

    asyncio.run(main())


# --- groups ----------------------------------------------------------------------------------------------------------


def test_members_of_a_group_get_its_messages(layer: Any, key: str) -> None:
    async def main() -> None:
        names = [await layer.new_channel() for _ in range(3)]
        for name in names:
            await layer.group_add(key, name)
            await layer.group_add(key, name)  # it is a member once all the same
        await layer.group_send(key, said("to all"))
        assert [await received(layer, name) for name in names] == ["to all"] * 3
        await layer.group_discard(key, names[0])
        await layer.group_discard(key, names[0])
        await layer.group_send(key, said("to two"))
        assert [await received(layer, name) for name in names[1:]] == ["to two"] * 2
        for name in names:
            assert await nothing(layer, name)
        await layer.group_send(f"{key}-empty", said("to nobody"))
        await layer.group_discard(f"{key}-empty", names[0])

    asyncio.run(main())


def test_order_holds_across_groups_and_direct_messages(layer: Any, key: str) -> None:
    async def main() -> None:
        name = await layer.new_channel()
        for number in range(3):
            await layer.group_add(f"{key}-{number}", name)
        for number in range(60):
            which = number * 7 % 4
            if which == 3:
                await layer.send(name, said(number))
            else:
                await layer.group_send(f"{key}-{which}", said(number))
        assert [await received(layer, name) for _ in range(60)] == list(range(60))

    asyncio.run(main())


@pytest.mark.parametrize("name", ["", "x" * 100, "a b", "é", "٣", "a!b", "a/b", "a:b", "a\n", 7, None, b"bytes"])
def test_wrong_name_of_a_group_is_a_type_error(in_memory: Any, name: Any) -> None:
    async def main() -> None:
        channel = await in_memory.new_channel()
        with pytest.raises(TypeError):
            await in_memory.group_add(name, channel)
        with pytest.raises(TypeError):
            await in_memory.group_discard(name, channel)
        with pytest.raises(TypeError):
            await in_memory.group_send(name, said("x"))

    asyncio.run(main())


@pytest.mark.parametrize("name", ["x" * 99, "azAZ09._-", "."])
def test_name_of_a_group_may_be(layer: Any, name: str) -> None:
    async def main() -> None:
        channel = await layer.new_channel()
        await layer.group_add(name, channel)
        await layer.group_send(name, said("x"))
        assert await received(layer, channel) == "x"
        await layer.group_discard(name, channel)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["", "x" * 100, "a b", "é", 7, None])
def test_wrong_name_of_a_channel_is_a_type_error(in_memory: Any, key: str, name: Any) -> None:
    async def main() -> None:
        with pytest.raises(TypeError):
            await in_memory.send(name, said("x"))
        with pytest.raises(TypeError):
            await in_memory.group_add(key, name)

    asyncio.run(main())


def test_general_name_that_nobody_receives_is_not_implemented(layer: Any) -> None:
    async def main() -> None:
        with pytest.raises(NotImplementedError, match="task queue"):
            await layer.send("thumbnails", said("x"))

    asyncio.run(main())


def test_process_may_receive_by_a_general_name_of_its_own(layer: Any, key: str) -> None:
    async def main() -> None:
        await layer.group_add(key, f"client_{key}")
        await layer.group_send(key, said("to the group"))
        assert await received(layer, f"client_{key}") == "to the group"
        await layer.send(f"client_{key}", said("to the channel"))
        assert await received(layer, f"client_{key}") == "to the channel"
        await layer.group_discard(key, f"client_{key}")
        await layer.group_send(key, said("missed"))
        assert await nothing(layer, f"client_{key}")

    asyncio.run(main())


def test_worker_of_channels_is_told_what_to_use(in_memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "channels.worker", ModuleType("channels.worker"))
    with pytest.raises(NotImplementedError, match="task queue"):
        asyncio.run(in_memory.receive("thumbnails"))


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("layer")
def test_direct_message_over_the_capacity_raises(key: str) -> None:
    async def main() -> None:
        layer = get_channel_layer("small")
        name = await layer.new_channel()
        for number in range(CAPACITY):
            await layer.send(name, said(number))
        with pytest.raises(ChannelFull):
            await layer.send(name, said("one too many"))
        assert [await received(layer, name) for _ in range(CAPACITY)] == list(range(CAPACITY))
        assert await nothing(layer, name)

    asyncio.run(main())


@pytest.mark.usefixtures("layer")
def test_what_a_member_loses_is_logged_once(key: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        layer = get_channel_layer("small")
        slow, quick = await layer.new_channel(), await layer.new_channel()
        for name in (slow, quick):
            await layer.group_add(key, name)
        for number in range(4 * CAPACITY):
            await layer.group_send(key, said(number))
            assert await received(layer, quick) == number
        assert [await received(layer, slow) for _ in range(CAPACITY)] == list(range(CAPACITY))

    asyncio.run(main())
    assert eventually(lambda: len(caplog.records) >= 2)  # when it begins and when it is over, but not for each message
    first, second = [record.getMessage() for record in caplog.records]
    assert "capacity" in first
    assert f"were dropped: {3 * CAPACITY} in all" in second


# --- receiving outside of consumers ----------------------------------------------------------------------------------


def test_receive_that_times_out_loses_no_message(layer: Any) -> None:
    async def main() -> None:
        name = await layer.new_channel()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(layer.receive(name), 0.1)
        await layer.send(name, said("first"))
        assert await received(layer, name) == "first"
        got: list[int] = []

        async def send() -> None:
            for number in range(100):
                await layer.send(name, said(number))
                await asyncio.sleep(0.001 * (number % 3))

        sender = asyncio.create_task(send())
        while len(got) < 100 and not (sender.done() and sender.exception()):
            try:
                got.append((await asyncio.wait_for(layer.receive(name), 0.001))["value"])
            except asyncio.TimeoutError:
                continue
        await sender
        assert got == list(range(100))

    asyncio.run(main())


def test_receive_in_a_task_that_is_cancelled_loses_no_message(layer: Any) -> None:
    async def main() -> None:
        name = await layer.new_channel()
        for number in range(20):
            task = asyncio.create_task(layer.receive(name))
            await asyncio.sleep(0)
            sending = asyncio.create_task(layer.send(name, said(number)))
            task.cancel()
            outcome = (await asyncio.gather(task, return_exceptions=True))[0]
            await sending
            assert isinstance(outcome, asyncio.CancelledError)
            assert await received(layer, name) == number

    asyncio.run(main())


def test_several_loops_one_after_the_other(layer: Any, key: str) -> None:
    async def main(text: str) -> None:
        name = await layer.new_channel()
        await layer.group_add(key, name)
        await layer.group_send(key, said(text))
        assert await received(layer, name) == text
        await layer.group_discard(key, name)

    for number in range(3):
        asyncio.run(main(str(number)))
        async_to_sync(main)(f"again {number}")


def test_threads_have_loops_of_their_own(layer: Any, key: str) -> None:
    count = 4
    ready = threading.Barrier(count + 1, timeout=DEADLINE)
    got: list[str] = []

    async def listens() -> None:
        name = await layer.new_channel()
        await layer.group_add(key, name)
        await asyncio.get_running_loop().run_in_executor(None, ready.wait)
        got.append(await received(layer, name))
        await layer.group_discard(key, name)

    threads = [threading.Thread(target=asyncio.run, args=[listens()]) for _ in range(count)]
    for thread in threads:
        thread.start()
    ready.wait()
    async_to_sync(layer.group_send)(key, said("hello"))
    for thread in threads:
        thread.join(DEADLINE)
    assert got == ["hello"] * count


OTHER_PROCESS = """
import asyncio, json, sys
import django
django.setup()
from channels.layers import get_channel_layer

async def main():
    layer = get_channel_layer()
    group, others = sys.argv[1:]
    mine = await layer.new_channel()
    await layer.group_add(group, mine)
    print(mine, flush=True)
    for _ in range(2):
        message = await asyncio.wait_for(layer.receive(mine), 20)
        await layer.send(others, {"type": "said", "value": [message["value"], b"heard"]})
    await layer.group_discard(group, others)
    await layer.group_send(group, {"type": "said", "value": "to itself alone"})
    message = await asyncio.wait_for(layer.receive(mine), 20)
    await layer.group_add(group, others)
    await layer.group_send(group, {"type": "said", "value": "to both"})
    print(message["value"], flush=True)

asyncio.run(main())
"""


def test_processes_talk_to_each_other(redis_url: str, key: str) -> None:
    with override_settings(WEBSOCKET_BROKER=redis_url, CHANNEL_LAYERS=LAYERS), ExitStack() as stack:
        layer = get_channel_layer()

        async def main() -> None:
            mine = await layer.new_channel()
            await layer.group_add(key, mine)
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "error", "-c", OTHER_PROCESS, key, mine],
                    cwd=SITE,
                    env={
                        **os.environ,
                        "TESTSITE_SETTINGS": json.dumps({"WEBSOCKET_BROKER": redis_url, "CHANNEL_LAYERS": LAYERS}),
                    },
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            assert process.stdout is not None
            theirs = process.stdout.readline().strip()
            await layer.send(theirs, said("direct"))
            assert await received(layer, mine) == ["direct", b"heard"]
            await layer.group_send(key, said("to both"))
            assert await received(layer, mine) == "to both"
            assert await received(layer, mine) == ["to both", b"heard"]
            assert await received(layer, mine) == "to both"  # but not what came while this one was no member
            assert process.stdout.readline() == "to itself alone\n"
            assert process.wait(20) == 0

        asyncio.run(main())


def test_outage_of_redis_is_an_error_of_the_sender_and_passes(key: str) -> None:
    with (
        redis_server() as redis,
        override_settings(WEBSOCKET_BROKER=f"redis://{redis.address}/0", CHANNEL_LAYERS=LAYERS),
    ):
        layer = get_channel_layer()

        async def main() -> None:
            name = await layer.new_channel()
            await layer.group_add(key, name)
            await layer.group_send(key, said("before"))
            assert await received(layer, name) == "before"
            redis.stop()
            with pytest.raises(Exception, match=str(redis.port)):
                await layer.group_send(key, said("meanwhile"))
            redis.start()
            for _ in range(100):
                await layer.group_send(key, said("after"))
                try:
                    assert (await asyncio.wait_for(layer.receive(name), 0.2))["value"] == "after"
                except asyncio.TimeoutError:
                    continue
                break
            else:
                pytest.fail("nothing arrives after an outage")

        asyncio.run(main())


def test_closing_waits_for_the_thread_of_the_subscriptions_and_does_not_stop_it(key: str) -> None:
    with (
        redis_server() as redis,
        override_settings(WEBSOCKET_BROKER=f"redis://{redis.address}/0", CHANNEL_LAYERS=LAYERS),
    ):
        layer = get_channel_layer()
        asyncio.run(layer.group_add(key, asyncio.run(layer.new_channel())))
        begun = time.monotonic()
        close_all(conf.for_publishing().broker_key)
        assert time.monotonic() - begun < TIMEOUT, "nothing ended until the time was over"
        with Redis(port=redis.port) as asked:
            assert eventually(lambda: len(asked.client_list()) == 1)


def test_channel_that_was_forgotten_leaves_no_subscription(redis: Server, redis_url: str, key: str) -> None:
    with override_settings(WEBSOCKET_BROKER=redis_url, CHANNEL_LAYERS=LAYERS), Redis(port=redis.port) as asked:
        layer = get_channel_layer()

        async def main() -> None:
            name = await layer.new_channel()
            await layer.group_add(key, name)
            (channel,) = [found for found in asked.pubsub_channels("*") if key.encode() in found]
            assert asked.pubsub_numsub(channel) == [(channel, 1)]
            await layer.group_discard(key, name)
            for _ in range(500):
                if not asked.pubsub_numsub(channel)[0][1]:
                    return
                await asyncio.sleep(0.02)
            pytest.fail("the process is still subscribed to a group without members")

        asyncio.run(main())


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"hosts": [{"sentinels": [("localhost", 26379)], "master_name": "main"}]},
        {"hosts": ["redis://localhost:6379/0", "redis://localhost:6380/0"]},
        {"unknown": 7},
    ],
    ids=["sentinels", "several hosts", "unknown"],
)
def test_config_that_means_something_else_here_names_the_setting(config: dict[str, Any]) -> None:
    layers = {"default": {"BACKEND": BACKEND, "CONFIG": config}}
    with override_settings(CHANNEL_LAYERS=layers), pytest.raises(ImproperlyConfigured, match="WEBSOCKET_BROKER"):
        get_channel_layer()


@pytest.mark.parametrize(
    "config",
    [
        {"prefix": "site", "capacity": 10, "expiry": 5, "channel_capacity": {"http.*": 200}, "group_expiry": 1},
        {"hosts": [("127.0.0.1", 6379)]},
        {"hosts": ["redis://:password@localhost:6379/0?socket_timeout=60"]},
        {"hosts": [{"host": "localhost", "port": 6380, "db": 1, "socket_timeout": None}]},
        {"hosts": [{"address": "unix:///run/redis.sock", "socket_timeout": 60}]},
        {"hosts": ["redis://localhost"], "symmetric_encryption_keys": ["k" * 32, b"l" * 32]},
        {"symmetric_encryption_keys": ["k" * 50]},
    ],
    ids=str,
)
def test_config_of_channels_redis_is_taken(config: dict[str, Any]) -> None:
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": BACKEND, "CONFIG": config}}):
        assert isinstance(get_channel_layer(), ChannelLayer)
        assert [message.id for message in run_checks(tags=["websocket"])] == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"unknown": 7}, "'unknown'"),
        ({"hosts": [7]}, "WEBSOCKET_BROKER"),
        ({"symmetric_encryption_keys": ["short"]}, "symmetric_encryption_keys"),
        ({"channel_capacity": 7}, "channel_capacity"),
    ],
    ids=str,
)
def test_checks_find_a_config_that_cannot_be_used(config: dict[str, Any], words: str) -> None:
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": BACKEND, "CONFIG": config}}):
        (found,) = run_checks(tags=["websocket"])
    assert found.id == "websocket.E010"
    assert words in found.msg


# --- Channels' own way to test consumers -----------------------------------------------------------------------------


class Chat(AsyncWebsocketConsumer):  # type: ignore[misc]
    groups = ["room"]

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.channel_layer.group_send("room", {"type": "chat.message", "text": text_data})

    async def chat_message(self, event: Any) -> None:
        await self.send(text_data=event["text"])

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_send("room", {"type": "chat.message", "text": f"left with {code}"})


class SyncChat(WebsocketConsumer):  # type: ignore[misc]
    groups = ["room"]

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        async_to_sync(self.channel_layer.group_send)("room", {"type": "chat.message", "text": text_data})

    def chat_message(self, event: Any) -> None:
        self.send(text_data=event["text"])

    def disconnect(self, code: int) -> None:
        async_to_sync(self.channel_layer.group_send)("room", {"type": "chat.message", "text": f"left with {code}"})


@pytest.mark.parametrize("kind", [Chat, SyncChat])
@pytest.mark.parametrize("again", [1, 2])
@pytest.mark.usefixtures("layer")
def test_communicators_chat(kind: Any, again: int) -> None:
    async def main() -> None:
        ann, bob = (WebsocketCommunicator(kind.as_asgi(), "/chat/") for _ in range(2))
        for client in (ann, bob):
            assert await client.connect(timeout=DEADLINE) == (True, None)
        await ann.send_to(text_data="hello")
        assert [await client.receive_from(timeout=DEADLINE) for client in (ann, bob)] == ["hello"] * 2
        await get_channel_layer().group_send("room", {"type": "chat.message", "text": "from the test"})
        assert [await client.receive_from(timeout=DEADLINE) for client in (ann, bob)] == ["from the test"] * 2
        await ann.disconnect(code=1001, timeout=DEADLINE)
        assert await bob.receive_from(timeout=DEADLINE) == "left with 1001"
        assert await bob.receive_nothing()
        await bob.disconnect(timeout=DEADLINE)

    asyncio.run(main())

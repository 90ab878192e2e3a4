"""Encrypted messages: only holders of a key can read them or forge one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import gevent.socket
import pytest
import redis as redis_py

from django_websocket.pubsub import publish, subscribe
from django_websocket.pubsub.encryption import EncryptedBroker
from django_websocket.pubsub.memory import MemoryBroker
from django_websocket.transport import log

from .support.brokers import in_use
from .support.servers import Server
from .support.waiting import until

OLD, NEW, OTHER = "the old key ".ljust(32, "-"), "the new key ".ljust(32, "-"), "another key ".ljust(32, "-")


class Listener:
    """A listener that keeps every message delivered to it."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []

    def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        assert batch
        self.received += batch

    def lost(self, channels: Sequence[str]) -> None:
        raise AssertionError

    def missed(self, channels: Sequence[str]) -> None:
        raise AssertionError

    def closed(self) -> None:
        raise AssertionError


@pytest.fixture
def memory() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def listener(memory: MemoryBroker) -> Listener:
    """A subscriber that accepts both the new key and the old one."""
    listener = Listener()
    EncryptedBroker(memory, [NEW, OLD]).subscriber(listener).subscribe(["news"])
    return listener


@pytest.mark.parametrize("keys", [[OLD], [NEW], [OLD, NEW], [NEW, OTHER]])
def test_keys_can_be_replaced_one_by_one(memory: MemoryBroker, listener: Listener, keys: list[str]) -> None:
    publisher = EncryptedBroker(memory, keys)
    for payload in (b"text", b"\xff binary", b"", b"x" * 1_000_000):
        publisher.publish("news", payload)
    publisher.publish("Grüße \0", b"text")
    assert until(lambda: len(listener.received) == 5)
    assert listener.received == [
        ("news", b"text"),
        ("news", b"\xff binary"),
        ("news", b""),
        ("news", b"x" * 1_000_000),
        ("Grüße \0", b"text"),
    ]


def test_unreadable_messages_are_dropped_and_only_a_few_are_logged(
    memory: MemoryBroker, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    for payload in (b"plain text", b"", b"\xff", *[b"more"] * 1000):
        memory.publish("news", payload)
    EncryptedBroker(memory, [OTHER, NEW]).publish("news", b"only the first key counts")
    EncryptedBroker(memory, [NEW]).publish("news", b"fine")
    assert until(lambda: listener.received == [("news", b"fine")])
    assert until(lambda: len(caplog.records) == log.LINES)
    for record in caplog.records:
        assert record.levelno == logging.WARNING
        assert "Channel news: " in record.getMessage()
        assert "encryption_keys of WEBSOCKET_BROKER" in record.getMessage()
    log._sum_up(log._counts)
    assert caplog.messages[log.LINES].startswith(f"{1004 - log.LINES} more in ")


def test_a_message_is_valid_on_its_own_channel_only(memory: MemoryBroker, listener: Listener) -> None:
    """A publisher without a key cannot redirect an encrypted message to another channel."""

    class Overheard(MemoryBroker):
        def publish(self, channel: str, payload: bytes) -> int:
            return sum(memory.publish(name, payload) for name in ("news", "admins", "new", "news:1", channel))

    EncryptedBroker(Overheard(), [NEW]).publish("users", b"for users")
    EncryptedBroker(memory, [NEW]).publish("news", b"the last")
    assert until(lambda: ("news", b"the last") in listener.received)
    assert listener.received == [("users", b"for users"), ("news", b"the last")]


@pytest.fixture
def cooperative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make redis-py's sockets cooperative, as they are in a patched worker."""
    monkeypatch.setattr(redis_py.connection, "socket", gevent.socket)


@pytest.fixture
def encrypted_redis(redis: Server, cooperative: None) -> Iterator[None]:
    with in_use({"url": f"redis://{redis.address}", "encryption_keys": [NEW, OLD]}):
        yield


def test_redis_sees_the_channel_and_nothing_else(redis: Server, encrypted_redis: None, key: str) -> None:
    with redis_py.Redis(port=redis.port) as client, client.pubsub() as watcher, subscribe(key) as messages:
        watcher.subscribe(key)
        watcher.get_message(timeout=5)
        publish(key, "top secret")
        assert messages.get(5) == "top secret"
        message: Any = watcher.get_message(timeout=5)
        assert message["channel"] == key.encode()
        assert b"secret" not in message["data"]
        assert key.encode() not in message["data"]
        client.publish(key, "plain text")
        publish(key, b"\xff\0")
        assert messages.get(5) == b"\xff\0"

"""Code with much to do lets the loop look at the other sockets in between."""

from __future__ import annotations

import os
import select as standard
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gevent
import gevent.socket
import pytest
import redis
from gevent.hub import get_hub

from django_websocket.pubsub.hub import Hub
from django_websocket.pubsub.memory import BATCH_SIZE, MemoryBroker
from django_websocket.pubsub.publication import Publication
from django_websocket.pubsub.redis import RedisBroker
from django_websocket.select import select
from django_websocket.transport.turns import BUDGET, Turns, let_others_run, let_others_run_if_spent, turns_of_loop

from .support.waiting import until


class Polls:
    """Counts how often the loop has looked at sockets, by one that is always readable."""

    def __init__(self) -> None:
        self.count = 0

    def _on_readable(self) -> None:
        self.count += 1

    def watch(self, sock: socket.socket) -> Any:
        watcher = get_hub().loop.io(sock.fileno(), 1)
        watcher.start(self._on_readable)
        return watcher


@pytest.fixture
def polls() -> Iterator[Polls]:
    one, other = socket.socketpair()
    with one, other:
        other.send(b"x")
        polls = Polls()
        watcher = polls.watch(one)
        try:
            yield polls
        finally:
            watcher.stop()
            watcher.close()


def test_each_turn_looks_at_all_sockets(polls: Polls) -> None:
    for _ in range(100):
        let_others_run()
    assert polls.count >= 99


def test_a_turn_without_anything_to_do_takes_no_time() -> None:
    begun = time.monotonic()
    for _ in range(1000):
        let_others_run()
    assert time.monotonic() - begun < 0.5


def test_an_interrupted_turn_leaves_nothing_behind() -> None:
    waiting = gevent.spawn(let_others_run)
    gevent.sleep(0)
    waiting.kill()
    let_others_run()
    assert waiting.dead


def test_postponed_calls_run_in_turns_of_bounded_time(polls: Polls) -> None:
    turns = turns_of_loop()
    seen: list[int] = []

    def work() -> None:
        time.sleep(BUDGET / 4)
        seen.append(polls.count)

    gevent.sleep(0.01)
    for _ in range(100):
        turns.postpone(work)
    until(lambda: len(seen) == 100)
    assert max(seen.count(count) for count in set(seen)) <= 5


def test_many_greenlets_with_much_to_do_take_turns(polls: Polls) -> None:
    order: list[int] = []

    def work(number: int) -> None:
        for _ in range(3):
            time.sleep(BUDGET)
            order.append(number)
            let_others_run_if_spent()

    gevent.sleep(0.01)
    before = polls.count
    gevent.joinall([gevent.spawn(work, number) for number in range(10)], raise_error=True)
    assert polls.count - before >= 15
    assert len(set(order[-9:])) == 9  # no greenlet was done long before the others


def test_a_postponed_call_that_fails_does_not_affect_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_hub(), "handle_error", lambda *args: None)
    done: list[int] = []
    turns = turns_of_loop()
    turns.postpone(lambda: 1 / 0)
    turns.postpone(lambda: done.append(1))
    until(lambda: done)


def test_a_loop_that_does_not_count_its_turns_is_bounded_by_time_alone() -> None:
    class Loop:
        iteration = -1

    turns = Turns()
    turns._loop = Loop()
    turns._until = time.monotonic() + BUDGET
    assert not turns.spent()
    time.sleep(BUDGET)
    assert turns.spent()
    assert not turns.spent()


def test_select_with_a_timeout_of_zero_lets_others_run(polls: Polls) -> None:
    for _ in range(50):
        select([], [], [], 0)
    assert polls.count >= 49


def test_select_that_always_finds_something_lets_others_run(polls: Polls) -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"x")
        assert standard.select([read], [], [], 0)[0]
        end = time.process_time() + 100 * BUDGET  # on a busy machine, others have a part of the time that passes
        while time.process_time() < end:
            assert select([read], [], [], 5)[0]
    finally:
        os.close(read)
        os.close(write)
    assert polls.count >= 49


class Slow:
    """A listener that takes two milliseconds for each batch, and notes how often the loop had looked."""

    def __init__(self, polls: Polls) -> None:
        self.polls = polls
        self.seen: list[int] = []
        self.messages = 0

    def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        self.messages += len(batch)
        self.seen.append(self.polls.count)
        time.sleep(0.002)

    def missed(self, channels: Sequence[str]) -> None: ...

    def lost(self, channels: Sequence[str]) -> None: ...

    def closed(self) -> None: ...


def test_a_redis_that_always_has_more_lets_others_run(
    redis_url: str, polls: Polls, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = redis.Redis.from_url(redis_url)
    client.ping()  # connects by a standard socket, so that publishing keeps the loop from reading
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)
    broker = RedisBroker(redis_url)
    listener = Slow(polls)
    subscriber = broker.subscriber(listener)
    try:
        subscriber.subscribe(["flood"])
        pipeline = client.pipeline(transaction=False)
        for _ in range(2000):
            pipeline.publish("flood", "x" * 1024)
        pipeline.execute()
        until(lambda: listener.messages == 2000)
    finally:
        broker.close()
        client.close()
    assert len(listener.seen) > 20
    assert max(listener.seen.count(count) for count in set(listener.seen)) < 10


class SlowMember:
    """A member that takes a millisecond for each delivery."""

    def __init__(self) -> None:
        self.count = 0

    def deliver(self, publication: Publication) -> None:
        self.count += len(publication.messages)
        time.sleep(0.001)

    def missed(self) -> None: ...

    def broker_closed(self) -> None: ...


def test_messages_of_many_channels_that_came_together_let_others_run(polls: Polls) -> None:
    hub = Hub(MemoryBroker())
    member = SlowMember()
    names = [f"channel-{number}" for number in range(200)]
    hub.join(member, names)
    gevent.sleep(0.01)
    before = polls.count
    hub.deliver([(name, b"x") for name in names])
    assert member.count == 200
    assert polls.count - before >= 2
    hub.close()


def test_many_messages_to_few_members_let_others_run(polls: Polls) -> None:
    hub = Hub(MemoryBroker())
    members = [SlowMember() for _ in range(50)]
    for member in members:
        hub.join(member, ["news"])
    gevent.sleep(0.01)
    before = polls.count
    hub.deliver([("news", b"x")] * 100)
    assert {member.count for member in members} == {100}
    assert polls.count - before >= 5
    hub.close()


def test_a_greenlet_that_publishes_in_memory_without_pause_lets_others_run(polls: Polls) -> None:
    broker = MemoryBroker("memory://tests")
    hub = Hub(broker)
    member = SlowMember()
    hub.join(member, ["news"])
    gevent.sleep(0.01)
    before = polls.count
    batches = 40
    for _ in range(batches * BATCH_SIZE // 1024):
        broker.publish("news", b"x" * 1024)
    assert polls.count - before >= batches // 2
    hub.close()

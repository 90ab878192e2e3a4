"""A question to all processes that serve clients, and the sum of their answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from uuid import uuid4

from gevent import monkey
from gevent.queue import Empty, SimpleQueue

from django_websocket.pubsub import RESERVED, _broker, _close_hub, _hub, _hubs, publish_reserved
from django_websocket.transport.log import report

from .broker import Receiver
from .hub import Publication

ANSWERS = RESERVED + "answers."  # begins the names of the channels for answers, one for each question
ANSWER_TIMEOUT = 1.0  # seconds for all answers together; a process whose loop is free answers within milliseconds
THREADS = 4  # that ask at once, in a process without a loop

_threads: dict[int, ThreadPoolExecutor] = {}  # by process, since a fork leaves them behind


class Answers:
    """The answers to one question, as a member of its channel."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[str | bytes] = SimpleQueue()

    def deliver(self, publication: Publication) -> None:
        """Keep them until they are counted."""
        for message in publication.messages:
            self._queue.put(message)

    def receive(self, timeout: float) -> list[str | bytes]:
        """Wait for the next one."""
        try:
            return [self._queue.get(timeout=timeout)]
        except Empty:
            raise TimeoutError from None

    def missed(self) -> None:
        """Nothing to do: who asks does not wait for long."""

    def broker_closed(self) -> None:
        """Nothing to do: who asks does not wait for long."""


def ask(channel: str, question: Callable[[str], str]) -> int:
    """Publish a question on a reserved channel, and return the sum of what the processes answer.

    `question` is given the channel for the answers, and returns the message. May be called wherever `publish` may.
    Waits for as many answers as there are processes that were reached, for `ANSWER_TIMEOUT` seconds at most. Raises
    BrokerError.
    """
    if monkey.is_module_patched("threading") or any(hub.here for hub in list(_hubs.values())):
        return _ask(channel, question)
    place = _place()
    receiver: Receiver | None = getattr(_broker(), "receiver", lambda channel: None)(place)
    if receiver is not None:
        with closing(receiver):
            return _sum(publish_reserved(channel, question(place)), receiver.receive)
    # Others receive in a loop only, and a thread that has none should not be left with one.
    threads = _threads.get(os.getpid())
    if threads is None:
        threads = _threads[os.getpid()] = ThreadPoolExecutor(THREADS, "django_websocket")
    return threads.submit(_ask_once, channel, question).result()


def _ask(channel: str, question: Callable[[str], str]) -> int:
    answers, place, hub = Answers(), _place(), _hub()
    hub.join(answers, [place])
    try:
        return _sum(publish_reserved(channel, question(place)), answers.receive)
    finally:
        hub.leave(answers, [place])


def _place() -> str:
    """Return the name of a new channel for answers."""
    return ANSWERS + uuid4().hex


def _sum(expected: int | None, receive: Callable[[float], Sequence[str | bytes]]) -> int:
    """Wait until as many answers have come as are expected, or until the time is over, and add them up."""
    deadline = time.monotonic() + ANSWER_TIMEOUT
    answers: list[int] = []
    with suppress(OSError, ValueError):  # a TimeoutError, mostly
        while (expected is None or len(answers) < expected) and (left := deadline - time.monotonic()) > 0:
            answers += map(int, receive(left))
    return sum(answers)


def _ask_once(channel: str, question: Callable[[str], str]) -> int:
    try:
        return _ask(channel, question)
    finally:
        _close_hub()


def answer(place: str, number: int) -> None:
    """Answer a question with a number; that it cannot be published is logged."""
    try:
        publish_reserved(place, str(number))
    except Exception as error:  # who has asked learns less, and nothing else depends on it
        report("disconnect()", None, "the answer of this process is lost", str(error))

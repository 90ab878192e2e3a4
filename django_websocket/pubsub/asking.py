"""Asks all processes that serve clients a question, and adds up their answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from uuid import uuid4

from gevent import monkey
from gevent.queue import Empty, SimpleQueue

from django_websocket.transport.log import report

from .broker import Receiver, to_wire
from .channels import RESERVED
from .process import NamesBroker, broker_for, close_hub, current_settings, hub_for, hubs
from .publication import Publication

ANSWERS = RESERVED + "answers."  # begins the channel for the answers to a question; each question has its own
ANSWER_TIMEOUT = 1.0  # seconds for all answers together; a process that is not blocked answers within milliseconds
THREADS = 4  # for questions asked at the same time in a process without a loop

_threads: dict[int, ThreadPoolExecutor] = {}  # by process, since a fork leaves them behind


class Answers:
    """The answers to one question, as a member of its channel."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[str | bytes] = SimpleQueue()

    def deliver(self, publication: Publication) -> None:
        """Keep answers until they are counted."""
        for message in publication.messages:
            self._queue.put(message)

    def receive(self, timeout: float) -> list[str | bytes]:
        """Wait for the next answer; return it in a list. Raises TimeoutError."""
        try:
            return [self._queue.get(timeout=timeout)]
        except Empty:
            raise TimeoutError from None

    def missed(self) -> None:
        """Do nothing: the question has a short timeout anyway."""

    def broker_closed(self) -> None:
        """Do nothing: the question has a short timeout anyway."""


def ask(channel: str, question: Callable[[str], str], settings: NamesBroker | None = None) -> int:
    """Publish a question on a reserved channel, and return the sum of the processes' answers.

    `question` takes the channel for the answers and returns the message. `settings` name the broker, by default the
    project's. May be called wherever `publish` may. Waits until every process that was reached has answered, for
    `ANSWER_TIMEOUT` seconds at most. Raises BrokerError.
    """
    settings = settings or current_settings()
    if monkey.is_module_patched("threading") or any(hub.here for hub in list(hubs.values())):
        return _ask(channel, question, settings)
    place = _place()
    broker = broker_for(settings)
    receiver: Receiver | None = getattr(broker, "receiver", lambda channel: None)(place)
    if receiver is not None:
        with closing(receiver):
            return _sum(broker.publish(channel, to_wire(question(place))), receiver.receive)
    # Other brokers receive in a loop only, and this thread should not be left with one.
    threads = _threads.get(os.getpid())
    if threads is None:
        threads = _threads[os.getpid()] = ThreadPoolExecutor(THREADS, "django_websocket")
    return threads.submit(_ask_once, channel, question, settings).result()


def _ask(channel: str, question: Callable[[str], str], settings: NamesBroker) -> int:
    answers, place, hub = Answers(), _place(), hub_for(settings)
    hub.join(answers, [place])
    try:
        return _sum(broker_for(settings).publish(channel, to_wire(question(place))), answers.receive)
    finally:
        hub.leave(answers, [place])


def _place() -> str:
    """Return the name of a new channel for answers."""
    return ANSWERS + uuid4().hex


def _sum(expected: int | None, receive: Callable[[float], Sequence[str | bytes]]) -> int:
    """Wait for the expected number of answers, or until time runs out, and return their sum."""
    deadline = time.monotonic() + ANSWER_TIMEOUT
    answers: list[int] = []
    with suppress(OSError, ValueError):  # usually a TimeoutError
        while (expected is None or len(answers) < expected) and (left := deadline - time.monotonic()) > 0:
            answers += map(int, receive(left))
    return sum(answers)


def _ask_once(channel: str, question: Callable[[str], str], settings: NamesBroker) -> int:
    try:
        return _ask(channel, question, settings)
    finally:
        close_hub(settings)


def answer(place: str, number: int, settings: NamesBroker | None = None) -> None:
    """Answer a question with a number, on the broker that it came by; log it if that cannot be published."""
    try:
        broker_for(settings or current_settings()).publish(place, to_wire(str(number)))
    except Exception as error:  # only the count suffers
        report("publish/subscribe", None, "an answer to another process could not be published", str(error))

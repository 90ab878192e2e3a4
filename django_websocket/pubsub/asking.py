"""Asks all processes that serve clients a question, and takes their answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import NamedTuple
from uuid import uuid4

from gevent import monkey
from gevent.queue import Empty, SimpleQueue

from django_websocket.transport.log import report
from django_websocket.transport.turns import let_others_run_if_any

from .broker import Receiver, from_wire, to_wire
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


class Asked(NamedTuple):
    """How many processes a question has reached, None if the broker cannot tell, and how many have answered it."""

    reached: int | None
    answered: int


def ask(channel: str, question: Callable[[str], str], settings: NamesBroker | None = None) -> int:
    """Publish a question on a reserved channel, and return the sum of the processes' answers.

    See `put` for the arguments. Raises BrokerError.
    """
    answers: list[int] = []

    def take(answer: str | bytes, place: str) -> bool:
        answers.append(int(answer))
        return True

    put(channel, question, take, settings)
    return sum(answers)


def put(
    channel: str,
    question: Callable[[str], str],
    take: Callable[[str | bytes, str], bool],
    settings: NamesBroker | None = None,
    *,
    expected: int | None = None,
    longest: float = ANSWER_TIMEOUT,
) -> Asked:
    """Publish a question on a reserved channel, and have `take` called with each answer and the channel it came by.

    `question` takes the channel for the answers and returns the message. `take` returns whether a process has now
    answered completely. A message for which it raises ValueError, LookupError or TypeError is not an answer, and is
    ignored. `settings` name the broker, by default the project's. May be called wherever `publish` may.

    Waits until every process that was reached, or the `expected` number of them, has answered, but for no more than
    `ANSWER_TIMEOUT` seconds without any answer, and `longest` seconds in all. Raises BrokerError.
    """
    settings = settings or current_settings()

    def publish(place: str, receive: Callable[[float], Sequence[str | bytes]]) -> Asked:
        reached = broker_for(settings).publish(channel, to_wire(question(place)))
        enough = reached if expected is None else expected
        return Asked(reached, _take_all(enough, receive, lambda answer: take(answer, place), longest))

    if monkey.is_module_patched("threading") or any(hub.here for hub in list(hubs.values())):
        return _put(publish, settings)
    place = _place()
    broker = broker_for(settings)
    receiver: Receiver | None = getattr(broker, "receiver", lambda channel: None)(place)
    if receiver is not None:
        with closing(receiver):
            return publish(place, lambda timeout: _decoded(receiver.receive(timeout)))
    # Other brokers receive in a loop only, and this thread should not be left with one.
    threads = _threads.get(os.getpid())
    if threads is None:
        threads = _threads[os.getpid()] = ThreadPoolExecutor(THREADS, "django_websocket")
    return threads.submit(_put_once, publish, settings).result()


Publish = Callable[[str, Callable[[float], Sequence[str | bytes]]], Asked]


def _put(publish: Publish, settings: NamesBroker) -> Asked:
    answers, place, hub = Answers(), _place(), hub_for(settings)
    hub.join(answers, [place])
    try:
        return publish(place, answers.receive)
    finally:
        hub.leave(answers, [place])


def _put_once(publish: Publish, settings: NamesBroker) -> Asked:
    try:
        return _put(publish, settings)
    finally:
        close_hub(settings)


def _place() -> str:
    """Return the name of a new channel for answers."""
    return ANSWERS + uuid4().hex


def _decoded(payloads: Sequence[bytes]) -> list[str | bytes]:
    """Return the messages among payloads; what is none is no answer."""
    messages = []
    for payload in payloads:
        with suppress(UnicodeDecodeError):
            messages.append(from_wire(payload))
    return messages


def _take_all(
    enough: int | None,
    receive: Callable[[float], Sequence[str | bytes]],
    take: Callable[[str | bytes], bool],
    longest: float,
) -> int:
    """Take answers until `enough` processes have answered or time runs out; return how many have."""
    begin = time.monotonic()
    deadline = begin + ANSWER_TIMEOUT
    answered = 0
    with suppress(OSError):  # usually a TimeoutError
        while (enough is None or answered < enough) and (left := deadline - time.monotonic()) > 0:
            for answer in receive(left):
                with suppress(LookupError, TypeError, ValueError):  # perhaps from another version of the package
                    answered += take(answer)
                    deadline = min(time.monotonic() + ANSWER_TIMEOUT, begin + longest)
                let_others_run_if_any()
    return answered


def answer(place: str, text: str, settings: NamesBroker | None = None) -> None:
    """Answer a question, on the broker that it came by; log it if that cannot be published."""
    try:
        broker_for(settings or current_settings()).publish(place, to_wire(text))
    except Exception as error:  # only the count suffers
        report("publish/subscribe", None, "an answer to another process could not be published", str(error))

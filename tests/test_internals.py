"""docs/internals.md is true: its names are there, and a running server makes the calls of its pictures in their order.

A picture is a block of `text`. Each of its lines names a greenlet, a function and the function's file; after a function
is renamed, the failure says which line to change.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import gevent.socket
import pytest
import redis
import websockets.sync.client
from django.http import HttpRequest
from django.test import override_settings
from django.urls import path
from gevent import getcurrent
from gevent.hub import Hub

from django_websocket import pubsub
from django_websocket.decorators import websocket
from django_websocket.pubsub import publish
from django_websocket.testing import WebSocketLiveServerTestCase
from django_websocket.transport.waiting import ViewGreenlet
from django_websocket.websocket import WebSocket

from .support.brokers import in_use
from .support.clients import Client
from .support.documentation import blocks
from .support.frames import text
from .support.layers import INTERNALS, PACKAGE, sources
from .support.servers import ROOT
from .support.waiting import DEADLINE, eventually
from .support.wire import Pairs

GREENLETS = ("hub", "request", "view", "subscriber", "publisher")
LINE = re.compile(r"(\w+)( +)([\w.]+) +([\w/]+\.py)(?:  +(\S.*))?")


@dataclass(frozen=True)
class Step:
    """A line of a picture: a call, and the calls that have not returned when it is made."""

    greenlet: str
    name: str
    file: str
    within: tuple[str, ...]

    @property
    def module(self) -> str:
        return f"{PACKAGE}.{self.file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"


def steps(code: str) -> list[Step]:
    """Return the lines of a picture."""
    found: list[Step] = []
    around: list[tuple[int, str]] = []  # the indented calls above, from the outermost on
    header, *lines = code.splitlines()
    assert header.split() == ["greenlet", "call", "file", "what", "happens"], (
        f"{INTERNALS}: a picture begins with {header!r}"
    )
    for line in lines:
        match = LINE.fullmatch(line)
        assert match and match[1] in GREENLETS, f"{INTERNALS}: this line names no greenlet, call and file: {line!r}"
        column = match.start(3)
        while around and around[-1][0] >= column:
            around.pop()
        found.append(Step(match[1], match[3], match[4], tuple(name for _, name in around)))
        around.append((column, match[3]))
    return found


def pictures() -> dict[str, list[Step]]:
    """Return all pictures, by the sentence that stands above each."""
    text = (ROOT / INTERNALS).read_text()
    found = {}
    for block in blocks(INTERNALS):
        above = text[: text.index(f"```{block.language}\n{block.code}")].rstrip().rpartition("\n\n")[2]
        found[" ".join(above.split())] = steps(block.code)
    return found


def resolve(step: Step) -> tuple[Any, str, Callable[..., Any]] | None:
    """Return the module or the class that has the function of a step, the function's name in it, and the function."""
    try:
        owner: Any = importlib.import_module(step.module)
        *classes, last = step.name.split(".")
        for name in classes:
            owner = getattr(owner, name)
        function = vars(owner)[last]
    except (ImportError, AttributeError, KeyError):
        return None
    return (owner, last, function) if inspect.isfunction(inspect.unwrap(function)) else None


def test_every_call_of_the_pictures_is_a_function_of_the_file_that_is_named() -> None:
    assert len(pictures()) == 6
    wrong = {
        f"{step.name} is not in {step.file}" for picture in pictures().values() for step in picture if not resolve(step)
    }
    assert not wrong, f"{INTERNALS} shows calls of functions that are not there; change its lines: {sorted(wrong)}"


def test_every_name_and_file_in_the_text_is_there() -> None:
    prose = re.sub(r"```.*?```", "", (ROOT / INTERNALS).read_text(), flags=re.DOTALL)
    names = [name for name in sources() if name != "admin"]  # which cannot be imported where Django's admin is not used
    modules = {name: importlib.import_module(f"{PACKAGE}.{name}".rstrip(".")) for name in names}
    files = {f"{name.replace('.', '/')}{end}" for name in modules for end in ("/", ".py", "/__init__.py")}
    for named in re.findall(r"`([^`]+)`", prose):
        if re.fullmatch(r"\w[\w/]*(\.py|/)", named):
            assert named in files or (ROOT / named).exists(), f"{INTERNALS} names {named}, which is not there"
        elif re.fullmatch(r"[A-Z]\w*[a-z]\w*(\.\w+)?", named):
            name, _, attribute = named.partition(".")
            owners = [vars(module)[name] for module in modules.values() if name in vars(module)]
            assert owners, f"{INTERNALS} names {name}, which is nowhere in the package"
            has = not attribute or any(hasattr(owner, attribute) for owner in owners)
            assert has, f"{INTERNALS} names {named}, which is not there"
        elif re.fullmatch(r"[a-z]+(_[a-z]+)+|[A-Z_]+", named):
            assert any(hasattr(module, named) for module in modules.values()), f"{INTERNALS} names {named}"


# A server that is traced


@dataclass(frozen=True)
class Call:
    """A call that was made: of what, by which greenlet, and which calls had not returned then."""

    name: str
    greenlet: Any
    within: tuple[str, ...]

    @property
    def by(self) -> str:
        """The greenlet's name in the pictures."""
        if isinstance(self.greenlet, Hub):
            return "hub"
        if isinstance(self.greenlet, ViewGreenlet):
            return "view"
        if hasattr(self.greenlet, "waits_for_head"):
            return "request"
        return "publisher" if self.greenlet.parent is None else "subscriber"  # the thread's own greenlet publishes

    def is_as_in(self, step: Step) -> bool:
        """Whether this is the call that a picture shows."""
        return self.name == step.name and self.by == step.greenlet and {*step.within} <= {*self.within}


class Trace:
    """Notes the calls of all functions that the pictures name."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._running: list[str] = []

    def note(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, each call of which is noted under `name`."""

        @functools.wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(Call(name, getcurrent(), tuple(self._running)))
            self._running.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._running.remove(name)

        return noted

    def first_missing(self, picture: Sequence[Step]) -> Step | None:
        """Return the first step that was not made after those before it, None if all of them were."""
        calls = iter(self.calls)
        for step in picture:
            if not any(call.is_as_in(step) for call in calls):
                return step
        return None


@pytest.fixture(scope="module")
def trace_of_all() -> Iterator[Trace]:
    """Trace this process, in which the live server is a thread, from before that starts."""
    trace = Trace()
    functions: dict[str, tuple[Any, str, Any]] = {}
    for picture in pictures().values():
        for step in picture:
            found = resolve(step)
            if found is not None:  # else a test above has failed, and the trace will, too
                functions[step.name] = found
    replaced: list[tuple[Any, str, Any]] = []
    try:
        for name, (owner, last, function) in functions.items():
            noted = trace.note(name, function)
            owners = [owner]
            if inspect.ismodule(owner):  # and wherever the function was imported to
                owners = [module for key, module in list(sys.modules.items()) if key.partition(".")[0] == PACKAGE]
                owners.append(sys.modules[__name__])
            for each in owners:
                if vars(each).get(last) is function:
                    replaced.append((each, last, function))
                    setattr(each, last, noted)
        yield trace
    finally:
        for owner, last, function in replaced:
            setattr(owner, last, function)


LARGE = "x" * (16 * 1024 * 1024)  # more than a kernel keeps for one client


@websocket
def echo(request: HttpRequest, websocket: WebSocket) -> None:
    """Answer each message; "large" with one that the kernel does not take at once, and end after "end"."""
    while (message := websocket.receive()) not in (None, "end"):
        websocket.send(LARGE if message == "large" else str(message))


urlpatterns = [path("echo/", echo)]


class Live(WebSocketLiveServerTestCase):
    """A live server, for the tests below."""

    def runTest(self) -> None:
        """Nothing: pytest's functions are the tests."""


@pytest.fixture(scope="module")
def live(test_runner: None, trace_of_all: Trace) -> Iterator[str]:
    """The address of a live server that is traced."""
    with override_settings(WEBSOCKET_URLCONF=__name__):
        Live.setUpClass()
        try:
            yield Live.live_server_url.replace("http", "ws")
        finally:
            Live.doClassCleanups()


@pytest.fixture
def trace(trace_of_all: Trace) -> Trace:
    """The calls that are made in one test."""
    trace_of_all.calls.clear()
    return trace_of_all


@pytest.fixture
def connect(live: str) -> Iterator[Callable[[str], Client]]:
    """Opens a WebSocket of the live server, which is closed after the test."""
    with ExitStack() as stack:

        def connect(path: str) -> Client:
            client = websockets.sync.client.connect(
                live + path,
                proxy=None,
                compression=None,
                max_size=None,
                open_timeout=DEADLINE,
                create_connection=Client,
            )
            return cast(Client, stack.enter_context(client))

        yield connect


def assert_made(trace: Trace, above: str) -> None:
    """Assert that the calls of the picture below a sentence are made, in their order."""
    [picture] = [picture for sentence, picture in pictures().items() if above in sentence]
    eventually(lambda: trace.first_missing(picture) is None)
    missing = trace.first_missing(picture)
    made = "\n".join(f"    {call.by:10}  {'  ' * len(call.within)}{call.name}" for call in trace.calls)
    assert missing is None, (
        f"{INTERNALS}, {above!r}: the server did not call {missing.name} in the {missing.greenlet} greenlet at that "
        f"point. It made these calls:\n{made}"
    )


def test_trip_of_a_byte(connect: Callable[[str], Client], trace: Trace) -> None:
    client = connect("/echo/")
    client.send("hello")
    assert client.recv(timeout=DEADLINE) == "hello"
    assert_made(trace, "gets one and answers")


def test_trip_of_a_message_that_the_kernel_does_not_take_at_once(
    connect: Callable[[str], Client], trace: Trace
) -> None:
    client = connect("/echo/")
    client.send("large")
    assert client.recv(timeout=DEADLINE) == LARGE
    assert_made(trace, "larger than what the kernel takes")


def test_trip_of_a_handshake(connect: Callable[[str], Client], trace: Trace) -> None:
    connect("/echo/")
    assert_made(trace, "The handshake is a response")


def test_trip_of_a_published_message(trace: Trace, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this thread, since that of the live server is not patched, and would block while it waits for Redis."""
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)
    with Pairs() as pairs, in_use(redis_url):
        connection, client = pairs()
        with pubsub.forward(["members"]).attach(connection):
            publish("members", "hello")
            assert client.until_frames(1) == [text("hello")]
            assert_made(trace, "one connection to the broker")


def test_trip_of_a_close_by_the_client(connect: Callable[[str], Client], trace: Trace) -> None:
    client = connect("/echo/")
    client.send("hello")
    assert client.recv(timeout=DEADLINE) == "hello"
    client.close()
    assert_made(trace, "The client closes")


def test_trip_of_a_close_by_the_view(connect: Callable[[str], Client], trace: Trace) -> None:
    connect("/echo/").send("end")
    assert_made(trace, "The view returns")

"""What the package relies on in other libraries is there, or one sentence says what is missing."""

from __future__ import annotations

import ast
import contextvars
import importlib
import importlib.util
import inspect
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
import websockets.speedups
from asgiref.local import Local
from django.core.checks import Error, Warning
from django.test import utils
from django.test.utils import setup_test_environment, teardown_test_environment
from django.utils.functional import SimpleLazyObject
from gevent.hub import get_hub
from gevent.pywsgi import WSGIHandler
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.ggevent import GeventWorker
from redis.crc import key_slot

from django_websocket import compat
from django_websocket.checks import check_libraries
from django_websocket.pubsub.cluster import slot_of
from django_websocket.transport import shared
from django_websocket.transport.sockets import ClientSocket, accept, accept_publicly

from .support.fixtures import SITE, STOCK_WORKER, StartSite
from .support.wire import Pairs

NAMES = {str(name): (part, name) for part, names in compat.RELIED_ON.items() for name in names}


def installed(library: str) -> str:
    return metadata.version(library)


# --- each name is there, and means what it did before -----------------------------------------------------------------


@pytest.mark.parametrize("path", NAMES)
def test_name_is_there(path: str) -> None:
    _, name = NAMES[path]
    assert compat.is_there(name), compat.sentence(name)
    deeper = DEEPER.get(path)
    assert deeper is None or deeper(), compat.sentence(name)


def greenlet_runs_its_method() -> bool:
    class Answer(gevent.Greenlet):  # type: ignore[type-arg]
        def _run(self) -> int:
            return 42

    greenlet = Answer()
    greenlet.start()
    return bool(greenlet.get(timeout=10) == 42)


def ended_hub_has_no_loop() -> bool:
    hubs = []

    def run() -> None:
        hubs.append(get_hub())
        hubs[0].destroy()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return hubs[0].loop is None


def watcher_says_whether_it_is_active() -> bool:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        watcher: Any = get_hub().loop.io(ours.fileno(), 1)
        seen = [watcher.active]
        watcher.start(bool)
        seen.append(watcher.active)
        watcher.stop()
        seen.append(watcher.active)
        watcher.close()
    return seen == [False, True, False]


def loop_counts_pending_callbacks() -> bool:
    counts: list[int] = []
    loop: Any = get_hub().loop

    def count(watcher: Any) -> None:
        counts.append(loop.pendingcnt)
        watcher.stop()

    pairs = [socket.socketpair() for _ in range(8)]
    watchers = [loop.io(ours.fileno(), 1) for ours, _ in pairs]
    for watcher, (_, theirs) in zip(watchers, pairs, strict=True):
        theirs.send(b"x")
        watcher.start(count, watcher)
    gevent.sleep(0.1)
    for watcher, pair in zip(watchers, pairs, strict=True):
        watcher.close()
        for sock in pair:
            sock.close()
    return sorted(counts, reverse=True) == counts and counts[0] >= 7


def context_can_be_restored_in_another_greenlet() -> bool:
    from asgiref.sync import _restore_context

    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    local: Any = Local()

    def prepare() -> contextvars.Context:
        variable.set("here")
        local.name = "here"
        return contextvars.copy_context()

    def look(context: contextvars.Context) -> tuple[str, str]:
        _restore_context(context)
        return variable.get(), local.name

    prepared = gevent.spawn(prepare).get()
    return bool(gevent.spawn(look, prepared).get() == ("here", "here"))


def set_up_environment_is_noted() -> bool:
    if hasattr(utils._TestState, "saved_data"):  # the environment is set up already
        return True
    setup_test_environment(debug=False)
    try:
        return hasattr(utils._TestState, "saved_data")
    finally:
        teardown_test_environment()
        assert not hasattr(utils._TestState, "saved_data")


class Recorder(GeventWorker):  # type: ignore[misc]
    """gunicorn's own worker, which serves one client in this process."""

    def __init__(self) -> None:
        cfg = Config()
        cfg.set("loglevel", "error")
        super().__init__(0, 0, [], SimpleNamespace(), 0, cfg, Logger(cfg))
        self.errors: list[BaseException] = []
        self.asked = 0
        self.wsgi = self.application
        self.tmp.close()

    def application(self, environ: dict[str, Any], start_response: Any) -> str:
        self.asked += 1
        self.response = start_response.__self__
        self.socket = environ["gunicorn.socket"]
        self.early = self.request.unreader.take_buffered()
        return "over"

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        self.request = req
        return super().handle_request(listener_name, req, sock, addr)

    def is_already_handled(self, respiter: Any) -> bool:
        assert respiter == "over"
        raise StopIteration

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        self.errors.append(exc)

    def serve(self) -> tuple[Any, bytes]:
        """Serve a client that sends something behind its request; return its socket and the answer."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nEARLY")
            listener = SimpleNamespace(getsockname=lambda: ("127.0.0.1", 80))
            self.handle(listener, theirs, ("127.0.0.1", 1))
            return theirs, ours.recv(100)


def stop_iteration_ends_a_connection_silently() -> bool:
    worker = Recorder()
    _, answer = worker.serve()
    return (worker.asked, answer, worker.errors) == (1, b"", [])


def start_response_is_a_method_of_the_response() -> bool:
    worker = Recorder()
    worker.serve()
    return type(worker.response).__name__ == "Response" and worker.response.headers_sent is False


def environ_has_the_socket() -> bool:
    worker = Recorder()
    sock, _ = worker.serve()
    return worker.socket is sock


def bytes_behind_a_request_can_be_taken() -> bool:
    worker = Recorder()
    worker.serve()
    return bool(worker.early == b"EARLY")


def stock_handler_has_the_socket_and_the_buffered_input() -> bool:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"GET")
        server: Any = SimpleNamespace()
        address: Any = ("127.0.0.1", 1)
        handler = WSGIHandler(ours, address, server)
        with handler.rfile:
            return bool(handler.socket is ours and handler.rfile.read1(65536) == b"GET")


def body_of_a_request_can_be_replaced() -> bool:
    from django.core.handlers.wsgi import LimitedStream, WSGIRequest

    request = WSGIRequest({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "4", "wsgi.input": BytesIO(b"body")})
    request._stream = LimitedStream(BytesIO(), 0)  # type: ignore[assignment]
    return request.body == b""


# Checks that try a name out, which would take a server too long when it starts.
DEEPER: dict[str, Callable[[], bool]] = {
    "gevent.Greenlet._run": greenlet_runs_its_method,
    "gevent.hub.Hub.loop": ended_hub_has_no_loop,
    "gevent.core.loop.io": watcher_says_whether_it_is_active,
    "gevent.core.loop.pendingcnt": loop_counts_pending_callbacks,
    "asgiref.sync._restore_context": context_can_be_restored_in_another_greenlet,
    "django.core.handlers.wsgi.WSGIRequest._stream": body_of_a_request_can_be_replaced,
    "django.test.utils._TestState": set_up_environment_is_noted,
    "gunicorn.workers.ggevent.GeventWorker.handle": stop_iteration_ends_a_connection_silently,
    "gunicorn.workers.ggevent.GeventWorker.is_already_handled": stop_iteration_ends_a_connection_silently,
    "gunicorn.http.wsgi.Response.start_response": start_response_is_a_method_of_the_response,
    "gunicorn.http.wsgi.default_environ": environ_has_the_socket,
    "gunicorn.http.unreader.Unreader.take_buffered": bytes_behind_a_request_can_be_taken,
    "geventwebsocket.websocket.WebSocket.handler": stock_handler_has_the_socket_and_the_buffered_input,
}


def test_each_name_that_is_tried_out_is_in_the_list() -> None:
    assert DEEPER.keys() <= NAMES.keys()


# --- a sentence tells of a name that is gone --------------------------------------------------------------------------


def owners(name: compat.Name) -> list[Any]:
    """Return what a name is an attribute of: a module, or a class and its bases."""
    module, _, names = name.path.partition(":")
    owner: Any = importlib.import_module(module)
    for step in names.split(".")[:-1]:
        owner = getattr(owner, step)
    if name.made is not None:
        made = name.made()
        owner = made if inspect.isclass(made) else type(made)
    if inspect.ismodule(owner):
        return [owner]
    return list((owner if inspect.isclass(owner) else type(owner)).__mro__)


# Names that are written in C, and so cannot be removed from a running interpreter.
FIXED = {
    "gevent.core.loop.io",
    "gevent.core.loop.pendingcnt",
    "gevent.core.loop.ref",
    "gevent.core.loop.unref",
    "gevent.Greenlet._run",
    "gevent.hub.Hub.loop",
    "gevent.hub.Hub.switch",
    "socket.socket._accept",
}


class Forgotten:
    """An attribute that an object seems not to have."""

    def __get__(self, instance: object, owner: type) -> Any:
        raise AttributeError

    def __set__(self, instance: object, value: object) -> None:
        pass


def take_away(monkeypatch: pytest.MonkeyPatch, name: compat.Name) -> None:
    """Remove the name from its library."""
    attribute = name.path.rpartition(".")[2].rpartition(":")[2]
    found = owners(name)
    for owner in found:
        if attribute in vars(owner) and owner is not object:
            monkeypatch.delattr(owner, attribute)
    kept = {Config: "settings", SimpleLazyObject: "__dict__"}.get(found[0])  # where the name is not an attribute
    if kept is not None and attribute != kept:
        initialise = found[0].__init__

        def without(self: Any, *args: Any) -> None:
            initialise(self, *args)
            object.__getattribute__(self, kept).pop(attribute, None)

        monkeypatch.setattr(found[0], "__init__", without)
    elif inspect.isclass(found[0]) and not hasattr(found[0], attribute):
        monkeypatch.setattr(found[0], attribute, Forgotten(), raising=False)


@pytest.mark.parametrize("path", [path for path in NAMES if path not in FIXED])
def test_name_that_is_gone_is_reported(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part, name = NAMES[path]
    take_away(monkeypatch, name)
    sentence = compat.sentence(name)
    assert (name, sentence) in list(compat.missing(part))
    if name.instead:
        (message,) = [message for message in check_libraries(part) if message.msg == sentence]
        assert (type(message), message.id) == (Warning, "websocket.W007")
    else:
        with pytest.raises(compat.Incompatible) as raised:
            compat.verify(part)
        assert sentence in str(raised.value).splitlines()
        (message,) = [message for message in check_libraries(part) if message.msg == sentence]
        assert (type(message), message.id) == (Error, "websocket.E008")


def test_sentence_says_what_is_gone_and_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    _, name = NAMES["asgiref.sync._restore_context"]
    monkeypatch.setattr(metadata, "version", lambda library: "4.0.1")
    monkeypatch.setattr(metadata, "requires", lambda library: ["django>=5.2", "asgiref[x]>=3.8.1", "gevent>=25"])
    sentence = "asgiref 4.0.1 no longer has asgiref.sync._restore_context, which carries the context of a request into "
    assert compat.sentence(name) == (
        f'{sentence}its view: install "asgiref>=3.8.1,<4.0.1", or a newer django-gevent-websocket.'
    )


def test_sentence_about_an_old_library_asks_for_one_that_was_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    _, name = NAMES["gunicorn.http.unreader.Unreader.take_buffered"]
    monkeypatch.setattr(metadata, "version", lambda library: "23.0.0")
    monkeypatch.setattr(metadata, "requires", lambda library: ["gunicorn[gevent]>=26.2"])
    assert compat.sentence(name) == (
        "gunicorn 23.0.0 has no gunicorn.http.unreader.Unreader.take_buffered, which hands over what came after a "
        'request: install "gunicorn>=26.2".'
    )


def test_sentence_about_python_names_the_cost_of_the_replacement() -> None:
    _, name = NAMES["socket.socket._accept"]
    assert re.fullmatch(
        r"Python 3\.[0-9.]+\S* no longer has socket\.socket\._accept, which accepts .*; without it, each client costs "
        r"one that is thrown away: use an older Python, or install a newer django-gevent-websocket\.",
        compat.sentence(name),
    )


def test_name_that_means_something_else_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    _, name = NAMES["gunicorn.workers.ggevent.GeventWorker.handle"]
    monkeypatch.setattr(GeventWorker, "handle", lambda self, connection: None)
    with pytest.raises(compat.Incompatible) as raised:
        compat.verify("worker")
    assert str(raised.value) == compat.sentence(name, changed=True)
    assert " has a different gunicorn.workers.ggevent.GeventWorker.handle, which serves a client: " in str(raised.value)


@pytest.mark.parametrize("unknown", ["version", "requires"])
def test_sentence_without_metadata(unknown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, name = NAMES["redis.Connection._sock"]

    def not_found(library: str) -> Any:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, unknown, not_found)
    assert compat.sentence(name).startswith("redis ")
    assert "install" in compat.sentence(name)


def test_each_library_has_a_stated_minimum() -> None:
    for _, name in NAMES.values():
        if name.library != compat.PYTHON:
            assert compat._minimum(name.library), name.library
            assert compat._numbers(installed(name.library)) >= compat._numbers(compat._minimum(name.library) or "")


def test_import_that_fails_for_another_reason_is_left_alone() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), compat.naming("application"):
        importlib.import_module("no_such_module")


# --- as a user meets it -----------------------------------------------------------------------------------------------

RESTORE = "from asgiref import sync; del sync._restore_context\n"
BUFFERED = "from gunicorn.http.unreader import Unreader; del Unreader.take_buffered\n"


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that can import the test site."""
    code = f"import sys; sys.path[:0] = [{str(SITE)!r}]; sys.argv[1:] = {list(args)}\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def sentence_of(path: str) -> str:
    return compat.sentence(NAMES[path][1])


IMPORTS = {
    "asgiref.sync._restore_context": ("wsgi", RESTORE),
    "django.core.handlers.wsgi.LimitedStream": ("wsgi", "import django.core.handlers.wsgi as m; del m.LimitedStream\n"),
    "django.db.utils.load_backend": ("checks", "import django.db.utils as m; import django.db; del m.load_backend\n"),
    "geventwebsocket.exceptions.WebSocketError": (
        "websocket",
        "import geventwebsocket.exceptions as m; del m.WebSocketError\n",
    ),
    "gunicorn.http.errors.LimitRequestLine": ("worker", "import gunicorn.http.errors as m; del m.LimitRequestLine\n"),
    "gunicorn.workers.ggevent.GeventWorker": ("worker", "import gunicorn.workers.ggevent as m; del m.GeventWorker\n"),
    "gunicorn.util.write_error": ("worker", "import gunicorn.util as m; del m.write_error\n"),
    "gunicorn.util.close_graceful": ("transport.acceptor", "import gunicorn.util as m; del m.close_graceful\n"),
    "redis.connection.socket": ("pubsub.redis", "import redis.connection as m; del m.socket\n"),
    "django.test.testcases._MediaFilesHandler": (
        "testing",
        "import django; django.setup()\nimport django.test.testcases as m; del m._MediaFilesHandler\n",
    ),
    "django.core.servers.basehttp.get_internal_wsgi_application": (
        "management.commands.runwebsocket",
        "import django.core.servers.basehttp as m; import django.core.management.commands.runserver\n"
        "del m.get_internal_wsgi_application\n",
    ),
}


@pytest.mark.parametrize("path", IMPORTS)
def test_import_of_the_package_says_what_is_gone(path: str) -> None:
    module, removal = IMPORTS[path]
    done = run(f"{removal}import django_websocket.{module}")
    assert done.returncode == 1
    *_, last = [line for line in done.stderr.splitlines() if line.startswith("django_websocket.compat.Incompatible: ")]
    said = done.stderr[done.stderr.rindex(last) :]
    if path in NAMES:
        assert sentence_of(path) in said
    else:  # the worker's base class, which has many of the names
        assert "gunicorn.workers.ggevent.GeventWorker" in said


def test_manage_py_check_says_what_is_gone() -> None:
    done = run(f"{RESTORE}from django.core.management import execute_from_command_line as run; run(sys.argv)", "check")
    assert done.returncode == 1
    assert f"(websocket.E008) {sentence_of('asgiref.sync._restore_context')}\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_manage_py_check_warns_of_what_has_a_replacement() -> None:
    code = "import websockets.speedups as m; del m.apply_mask\n"
    code += "from django.core.management import execute_from_command_line as run; run(sys.argv)"
    done = run(code, "check")
    assert done.returncode == 0
    assert f"(websocket.W007) {sentence_of('websockets.speedups.apply_mask')}\n" in done.stderr


def test_manage_py_runwebsocket_says_what_is_gone() -> None:
    code = f"{BUFFERED}from django.core.management import execute_from_command_line as run; run(sys.argv)"
    done = run(code, "runwebsocket", "127.0.0.1:0")
    assert done.returncode == 1
    assert sentence_of("gunicorn.http.unreader.Unreader.take_buffered") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("removal", "path"),
    [
        pytest.param(BUFFERED, "gunicorn.http.unreader.Unreader.take_buffered", id="gunicorn"),
        pytest.param(RESTORE, "asgiref.sync._restore_context", id="asgiref"),
    ],
)
def test_worker_says_what_is_gone_and_is_not_started_again(
    removal: str, path: str, start_site: StartSite, tmp_path: Path
) -> None:
    configuration = tmp_path / "gunicorn.conf.py"
    configuration.write_text(removal)
    with pytest.raises(RuntimeError) as raised, start_site(args=["-c", configuration]):
        pass
    log = str(raised.value)
    assert "ended with status 4" in log  # APP_LOAD_ERROR
    assert f"[ERROR] {sentence_of(path)}\n" in log
    assert log.count("Booting worker") == 1
    assert "Traceback" not in log


def test_gunicorn_says_what_is_gone_where_there_can_be_no_worker(start_site: StartSite, tmp_path: Path) -> None:
    configuration = tmp_path / "gunicorn.conf.py"
    configuration.write_text("import gunicorn.http.errors as errors; del errors.LimitRequestLine\n")
    with pytest.raises(RuntimeError) as raised, start_site(args=["-c", configuration]):
        pass
    assert f"{sentence_of('gunicorn.http.errors.LimitRequestLine')}\n" in str(raised.value)


def test_stock_worker_says_what_is_gone(start_site: StartSite, tmp_path: Path) -> None:
    configuration = tmp_path / "gunicorn.conf.py"
    configuration.write_text("from geventwebsocket.websocket import WebSocket; del WebSocket.raw_read\n")
    with pytest.raises(RuntimeError) as raised, start_site(worker=STOCK_WORKER, args=["-c", configuration]):
        pass
    assert sentence_of("geventwebsocket.websocket.WebSocket.raw_read") in str(raised.value)


def test_server_logs_what_has_a_replacement(start_site: StartSite, tmp_path: Path) -> None:
    configuration = tmp_path / "gunicorn.conf.py"
    configuration.write_text("import websockets.speedups as m; del m.apply_mask\n")
    with start_site(args=["-c", configuration]) as server:
        assert f"{sentence_of('websockets.speedups.apply_mask')} (websocket.W007)" in server.log


# --- replacements -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 65536, 100_001])
def test_masking_in_python_gives_the_same_as_in_c(size: int) -> None:
    data = bytes(index * 7 % 256 for index in range(size))
    for mask in (b"\0\0\0\0", b"\x01\x02\x03\xff"):
        expected = websockets.speedups.apply_mask(data, mask)
        assert compat.apply_mask(data, mask) == expected
        assert compat.apply_mask(memoryview(b"..." + data)[3:], memoryview(mask)) == expected


def test_masking_in_c_is_used_only_if_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compat.masking() is websockets.speedups.apply_mask
    monkeypatch.setattr(websockets.speedups, "apply_mask", lambda data, mask: data)
    assert compat.masking() is compat.apply_mask


@pytest.mark.parametrize("how", [accept, accept_publicly])
def test_client_is_accepted(how: Callable[..., tuple[ClientSocket, Any]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        kind = listening.family, listening.type, listening.proto
        with pytest.raises(BlockingIOError):
            how(listening, kind)
        with socket.create_connection(listening.getsockname()) as client:
            served, address = how(listening, kind)
            assert address == client.getsockname()
            client.sendall(b"hello")
            assert served.recv(5) == b"hello"
            sock = served.give_away()
            sock.send(b"bye")
            assert client.recv(3) == b"bye"
            sock.close()


class LoopThatDoesNotCount:
    """gevent's loop without `pendingcnt`."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        if name == "pendingcnt":
            raise AttributeError(name)
        return getattr(self._loop, name)


def test_answers_leave_where_the_loop_does_not_count(monkeypatch: pytest.MonkeyPatch, pairs: Pairs) -> None:
    loop = LoopThatDoesNotCount(get_hub().loop)
    with monkeypatch.context() as patched:
        patched.setattr(shared, "get_hub", lambda: SimpleNamespace(loop=loop))
        alone = shared.Shared()
    assert alone.callbacks.pendingcnt == 0
    monkeypatch.setattr(shared.shared_of_loop(), "callbacks", alone.callbacks)
    connection, peer = pairs()

    def echo() -> None:
        for message in connection:
            connection.send(message)

    view = gevent.spawn(echo)
    for number in range(20):
        peer.text(str(number))
    assert [frame.payload.decode() for frame in peer.until_frames(20)] == [str(number) for number in range(20)]
    peer.close_frame()
    peer.until_end()
    view.get(timeout=10)


@pytest.mark.parametrize(
    "key", [b"", b"a", b"{a}b", b"a{b}c{d}", b"{}a", b"a{}{b}", b"{a", b"a}b{", b"}{a}", b"{{a}}", b"site1:CHAT"]
)
def test_slot_of_a_channel_is_the_one_that_redis_computes(key: bytes) -> None:
    for tail in (b"", b"x", "ü".encode()):
        assert slot_of(key + tail) == key_slot(key + tail)


# --- the list is complete ---------------------------------------------------------------------------------------------

FOREIGN = ("asgiref", "channels", "django", "gevent", "geventwebsocket", "greenlet", "gunicorn", "redis", "websockets")

# Modules that are hardly documented.
UNDOCUMENTED = (
    "asgiref",
    "channels",
    "django.contrib.staticfiles.handlers",
    "django.core.checks.urls",
    "django.core.handlers",
    "django.core.management.commands",
    "django.core.servers",
    "django.db.backends.base",
    "django.db.utils",
    "django.http.response",
    "django.test.client",
    "django.test.testcases",
    "django.urls",
    "django.utils.autoreload",
    "django.utils.functional",
    "geventwebsocket",
    "gunicorn",
    "redis.connection",
    "redis.crc",
    "websockets",
)
DOCUMENTED = {
    # Imports.
    "asgiref.sync.ThreadSensitiveContext",
    "asgiref.sync.async_to_sync",
    "asgiref.sync.iscoroutinefunction",
    "asgiref.sync.markcoroutinefunction",
    "asgiref.sync.sync_to_async",
    "channels.consumer.AsyncConsumer",
    "channels.consumer.SyncConsumer",
    "channels.exceptions.ChannelFull",
    "channels.exceptions.MessageTooLarge",
    "channels.exceptions.StopConsumer",
    "channels.layers.BaseChannelLayer",
    "channels.layers.get_channel_layer",
    "channels.routing.ProtocolTypeRouter",
    "channels.routing.URLRouter",
    "django.urls.NoReverseMatch",
    "django.urls.ResolverMatch",
    "django.urls.URLPattern",
    "django.urls.URLResolver",
    "django.urls.path",
    "django.urls.resolve",
    "django.urls.reverse",
    "django.utils.functional.Promise",
    "django.utils.functional.SimpleLazyObject",
    "gunicorn.app.base.BaseApplication",
    "gunicorn.config.Config",
    # Attributes that begin with an underscore.
    "_base_manager",
    "_default_manager",
    "_meta",
    "_state",
    "_xoptions",
}
TYPES = {"_Compress", "_Decompress"}  # zlib's, in annotations that are never evaluated
ENDINGS = {"_max_window_bits", "_total"}  # endings of the protocol's parameters, and of the names of counters
PRIVATE = re.compile("_[A-Za-z][A-Za-z0-9_]*")


def sources() -> dict[str, ast.Module]:
    """Return the installed package's modules, except the one with the list."""
    found = importlib.util.find_spec("django_websocket")
    assert found is not None and found.origin is not None
    folder = Path(found.origin).parent
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*.py")}
    return {name: ast.parse(path.read_text()) for name, path in files.items() if name != "compat.py"}


def own_names(modules: dict[str, ast.Module]) -> set[str]:
    """Return what the package defines itself: functions, classes, variables, attributes and slots."""
    names: set[str] = set()
    for module in modules.values():
        for node in ast.walk(module):
            match node:
                case (
                    ast.FunctionDef(name=name)
                    | ast.AsyncFunctionDef(name=name)
                    | ast.ClassDef(name=name)
                    | ast.Name(id=name, ctx=ast.Store())
                ):
                    names.add(name)
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    names.add(name)
                case ast.Assign(targets=[ast.Name(id="__slots__")], value=ast.Tuple(elts=slots)):
                    names |= {str(slot.value) for slot in slots if isinstance(slot, ast.Constant)}
    return names


def foreign_names(module: ast.Module) -> set[str]:
    """Return the names in a module that refer to other libraries."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and (node.module or "").split(".")[0] != "django_websocket"
        ):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def private_uses(module: ast.Module, own: set[str]) -> Iterator[tuple[int, str]]:
    """Yield the names of other libraries that a module uses and that are private by their name or their module."""
    foreign = foreign_names(module)
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
            root: ast.expr = node.value
            while isinstance(root, (ast.Attribute, ast.Call)):
                root = root.value if isinstance(root, ast.Attribute) else root.func
            if node.attr not in own or (isinstance(root, ast.Name) and root.id in foreign):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and PRIVATE.fullmatch(node.value):
            if node.value not in own:
                yield node.lineno, node.value
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if any(PRIVATE.fullmatch(part) for part in alias.name.split(".")):
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in FOREIGN:
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                private = any(PRIVATE.fullmatch(part) for part in path.split("."))
                if private or f"{path}.".startswith(tuple(f"{name}." for name in UNDOCUMENTED)):
                    yield node.lineno, path


def is_known(use: str) -> bool:
    """Whether a used name is in the list."""
    if use in DOCUMENTED | TYPES | ENDINGS:
        return True
    if "." in use:  # the name itself, or one that contains it
        return any(f"{path}.".startswith(f"{use}.") for path in NAMES)
    return any(use in path.split(".") for path in NAMES)


def test_private_names_of_other_libraries_are_in_the_list() -> None:
    modules = sources()
    own = own_names(modules)
    unknown = [
        f"{file}:{line}: {use}"
        for file, module in modules.items()
        for line, use in private_uses(module, own)
        if not is_known(use)
    ]
    assert unknown == [], "add a row to compat.RELIED_ON, or use what is documented"


@pytest.mark.parametrize(
    ("code", "use"),
    [
        ("from redis import client\nclient._pack()", "_pack"),
        ("getattr(request, '_hidden', None)", "_hidden"),
        ("from asgiref.sync import ThreadSafeTool", "asgiref.sync.ThreadSafeTool"),
        ("from gevent._hub_local import get_loop", "gevent._hub_local.get_loop"),
        ("import gevent\ngevent.get_hub()._own()", "_own"),
        ("import _thread", "_thread"),
        ("vars(request)['_hidden']", "_hidden"),
    ],
)
def test_a_new_private_use_is_found(code: str, use: str) -> None:
    module = ast.parse(code)
    found = [name for _, name in private_uses(module, {"_own"})]
    assert found == [use]
    assert not is_known(use)


def test_list_has_only_names_that_are_used() -> None:
    words: set[str] = set()
    for module in sources().values():
        for node in ast.walk(module):
            match node:
                case (
                    ast.Attribute(attr=name)
                    | ast.FunctionDef(name=name)
                    | ast.Name(id=name)
                    | ast.Constant(value=str(name))
                ):
                    words.add(name)
                case ast.Import(names=names) | ast.ImportFrom(names=names):
                    words |= {alias.name.rpartition(".")[2] for alias in names}
                case ast.keyword(arg=str(name)):
                    words.add(name)
    words |= {"apply_mask", "__self__", "gunicorn.socket"}
    unused = [path for path in NAMES if path.rpartition(".")[2] not in words]
    assert unused == ["asgiref.local.Local", "gunicorn.http.wsgi.default_environ"]

"""Whatever holds the loop of a process is one line in the log, with the file and the line that did it."""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from django.test import override_settings
from greenlet import greenlet
from testsite import stalls as holding

from django_websocket.handler.conversation import Conversation
from django_websocket.handler.coroutine import CoroutineConversation
from django_websocket.testing import Client
from django_websocket.transport import log
from django_websocket.transport.counts import counts
from django_websocket.transport.culprits import culprit_of, work_of
from django_websocket.transport.deadlines import Deadline, sweep_of_loop
from django_websocket.transport.stalls import LONGEST, Watch, watch_of_loop
from django_websocket.worker import GeventWebSocketWorker

from .support.clients import fetch
from .support.fixtures import Raw, StartSite
from .support.frames import frame
from .support.processes import stand_still, worker_of
from .support.servers import Server
from .support.waiting import DEADLINE, eventually, until

HELD = re.compile(r"(.*): all clients of this process had to wait: (\d+\.\d\d) seconds (?:in (.+?), )?at (.*)")
TRIES = 5  # on a machine with too much to do, the thread may come too late for code that keeps the interpreter's lock
SOURCE = inspect.getsourcefile(holding) or ""


def line_of(code: str) -> str:
    """Return where a line of the views that hold the loop is: its file and number."""
    numbers = [number for number, line in enumerate(inspect.getsource(holding).splitlines(), 1) if code in line]
    return f"{SOURCE}:{numbers[0]}"


@pytest.fixture
def watch() -> Iterator[Watch]:
    """The watch of this thread's loop, which goes on."""
    watch = watch_of_loop()
    watch.start()
    yield watch
    watch.stop()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged."""
    caplog.set_level(logging.INFO, logger="django_websocket")

    def written() -> list[str]:
        until(lambda: not log.lines_of_loop().writing)
        return [record.getMessage() for record in caplog.records]

    return written


def compute(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


# --- what is seen -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("test_runner")
@override_settings(WEBSOCKET_URLCONF="testsite.stalls")
@pytest.mark.parametrize(
    ("path", "what", "how", "code"),
    [
        ("/view/", "the view testsite.stalls.view", "sleep", " native_sleep(LONG)"),
        ("/view/", "the view testsite.stalls.view", "compute", "while time.thread_time() < end:"),
        ("/view/", "the view testsite.stalls.view", "match", "re.match("),
        ("/coroutine/", "the view testsite.stalls.coroutine", "sleep", " native_sleep(LONG)"),
        ("/consumer/", "the consumer testsite.stalls.Consumer", "sleep", " native_sleep(LONG)"),
    ],
)
def test_line_names_client_view_file_and_line(
    watch: Watch,
    lines: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    what: str,
    how: str,
    code: str,
) -> None:
    monkeypatch.setattr(counts, "wanted", True)
    monkeypatch.setattr(counts, "totals", {})
    before = watch.count
    found: list[re.Match[str]] = []
    with Client().websocket(path) as client:
        for _ in range(TRIES):
            client.send(how)
            assert client.receive() == how
            gevent.sleep(0.01)
            held = [match for line in lines() if (match := HELD.fullmatch(line))]
            found = [
                match for match in held if match[3] == what and " in hold" in match[4]
            ]  # a busy machine has others
            if found:
                break
    assert found and watch.count > before
    who, seconds, _, place = found[0].groups()
    assert who == f"127.0.0.1 {path}"
    assert LONGEST <= float(seconds) < 5
    assert counts.totals["hub_stalls"] == {(): watch.count - before}
    file, _, led_to = place.partition(" in hold")
    assert file == line_of(code) or how == "compute" and file.rpartition(":")[0] == SOURCE
    if how == "match":
        assert led_to == f", which has led to {re.__file__}:{led_to.rpartition(':')[2]}"
        assert led_to.endswith(" in match")
    else:
        assert led_to == ""


@pytest.mark.alone  # the thread sleeps where little happens
@pytest.mark.parametrize("how", ["sleep", "match"])
def test_what_a_timer_begins_is_seen_although_the_thread_sleeps(watch: Watch, how: str) -> None:
    before = watch.count
    for _ in range(TRIES):
        wait_until_asleep(watch)
        gevent.spawn_later(0.01, holding.hold, how).join()
        gevent.sleep(0.01)
        if watch.count > before:
            return
    raise AssertionError("it was not seen")


@pytest.mark.alone  # the thread has to sleep before the deadline
def test_what_a_deadline_begins_is_seen_although_the_thread_sleeps(watch: Watch) -> None:
    def work() -> None:
        deadline = Deadline(2.0, LookupError())
        try:
            gevent.sleep(60)
        except LookupError:
            holding.hold("sleep")
        finally:
            deadline.close()

    before = watch.count
    working = gevent.spawn(work)
    wait_until_asleep(watch)
    working.join()
    until(lambda: watch.count > before)


def wait_until_asleep(watch: Watch) -> None:
    """Let the loop be idle until the thread has slept for a while."""
    hub = gevent.get_hub()
    timers = [hub.loop.timer(0.7) for _ in range(20)]
    watch.harmless(*timers)
    for timer in timers:
        asleep = watch.asleep
        hub.wait(timer)
        if asleep and watch.asleep:
            return
    raise AssertionError("the thread does not sleep")


def test_short_work_is_not_reported(watch: Watch, lines: Callable[[], list[str]]) -> None:
    reported = 0
    for _ in range(TRIES):  # on a busy machine, one may take long all the same
        for _short in range(20):
            compute(0.02)
            gevent.sleep(0.001)
        before, reported = reported, len([line for line in lines() if " in compute" in line])
        if reported == before:
            return
    raise AssertionError(f"{reported} in {TRIES} attempts")


def test_lag_of_the_loop_is_measured_with_each_tick(watch: Watch) -> None:
    sweep = sweep_of_loop()
    now = sweep.now
    until(lambda: sweep.now > now)
    holding.native_sleep(0.7)  # the next tick was due in half a second
    now = sweep.now
    until(lambda: sweep.now > now)
    assert watch.lag > 0.15
    until(lambda: watch.lag < 0.1)


def test_watching_can_end_and_begin_again() -> None:
    watch = Watch()
    for _ in range(2):
        watch.start()
        watch.start()
        before = watch.count
        compute(0.2)
        until(lambda before=before: watch.count > before)  # type: ignore[misc]
        watch.stop()
        watch.stop()
    before = watch.count
    compute(0.2)
    gevent.sleep(0.01)
    assert watch.count == before


# --- whose fault it is ------------------------------------------------------------------------------------------------


LIBRARY = "/srv/.venv/lib/python3.13/site-packages/markdown/core.py"
STANDARD = os.path.join(os.path.dirname(re.__file__), "__init__.py")
VIEWS = "/srv/site/views.py"


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ([VIEWS], f"{VIEWS}:2 in call"),
        ([LIBRARY], f"{LIBRARY}:2 in call"),
        ([VIEWS, LIBRARY], f"{VIEWS}:2 in call, which has led to {LIBRARY}:2 in call"),
        ([LIBRARY, VIEWS], f"{VIEWS}:2 in call"),
        ([VIEWS, LIBRARY, STANDARD], f"{VIEWS}:2 in call, which has led to {STANDARD}:2 in call"),
        ([VIEWS, gevent.__file__], f"{VIEWS}:2 in call, which has led to {gevent.__file__}:2 in call"),
    ],
)
def test_code_of_the_project_is_named_first(files: list[str], place: str) -> None:
    calls: list[Callable[..., object]] = []
    for file in files:
        found: dict[str, Callable[..., object]] = {}
        exec(compile("def call(calls):\n    return calls[0](calls[1:])\n", file, "exec"), found)
        calls.append(found["call"])

    def look(calls: object) -> str:
        return culprit_of(sys._getframe(1)).place

    # In a greenlet of its own, this test is not among the callers.
    assert greenlet(calls[0]).switch([*calls[1:], look]) == place


# --- what is not a stall, and what other processes do -----------------------------------------------------------------

SCRIPT = """
import os, signal, subprocess, sys, time, warnings
import gevent
from gevent import monkey
monkey.patch_all()
from gevent.fileobject import FileObject
from django_websocket.transport.stalls import watch_of_loop

warnings.simplefilter("error")
native_sleep = monkey.get_original("time", "sleep")
waitpid = monkey.get_original("os", "waitpid")  # gevent's may miss a child that ends at once
watch = watch_of_loop()
watch.start()

def compute(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

def stopped():
    os.kill(os.getpid(), signal.SIGSTOP)

def stopped_and_slow():
    stopped()
    native_sleep(0.2)

def forks():
    pid = os.fork()
    if not pid:
        os._exit(0)
    waitpid(pid, 0)

def crowded():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    native_sleep(0.001)
    begin = time.monotonic()
    while time.monotonic() < begin + 0.5:  # the others begin
        compute(0.005)
        gevent.sleep(0.001)
    begin = time.monotonic()
    compute(0.05)
    print("took", time.monotonic() - begin, file=sys.stderr)
    for other in others:
        other.kill()
        other.wait()

def slow():
    native_sleep(0.2)

for line in FileObject(0, "r"):
    globals()[line.strip()]()
    gevent.sleep(0.01)
    print(watch.count, flush=True)
"""


class Process:
    """A process whose loop is watched, and which does what it is told."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)

    def begin(self, what: str) -> None:
        """Tell it to do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()

    def counted(self) -> int:
        """Return how many stalls it has counted, once it has done what it was told."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def freeze(self, seconds: float) -> None:
        """Leave it stopped, as it has stopped itself, and let it go on."""
        stand_still(self.process.pid, seconds)

    def end(self) -> list[str]:
        """End it, and return what it has logged."""
        _, errors = self.process.communicate(timeout=DEADLINE)
        assert self.process.returncode == 0, errors
        return errors.splitlines()


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process()
    with process.process:
        yield process
        process.process.kill()


@pytest.mark.alone  # the thread must not come late
def test_time_for_which_the_process_was_stopped_does_not_count(process: Process) -> None:
    process.begin("stopped")
    process.freeze(0.5)
    assert process.counted() == 0
    process.begin("stopped_and_slow")
    process.freeze(1)
    assert process.counted() == 1
    (line,) = process.end()
    match = HELD.fullmatch(line)
    assert match and match[1] == "the worker" and float(match[2]) < 0.8 and match[4].endswith(" in stopped_and_slow")


@pytest.mark.alone  # with a crowd of its own
@pytest.mark.slow
def test_time_for_which_there_was_no_processor_does_not_count(process: Process) -> None:
    process.begin("crowded")
    assert process.counted() == 0
    (line,) = process.end()
    assert float(line.removeprefix("took ")) > 2 * LONGEST


@pytest.mark.alone  # on a busy machine, the child itself may keep its parent waiting
def test_watching_goes_on_after_a_fork_of_which_python_does_not_warn(process: Process) -> None:
    for what, count in {"forks": 0, "slow": 1}.items():  # a warning would be an error
        process.begin(what)
        assert process.counted() == count
    assert len(process.end()) == 1


# --- in a worker ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(start_site: StartSite) -> Iterator[Server]:
    """A site of nothing but views and pages that hold the loop."""
    settings = {"WEBSOCKET_URLCONF": "testsite.stalls", "ROOT_URLCONF": "testsite.stalls", "LOGS_STALLS": True}
    with start_site(settings, args=["--timeout", "3"]) as server:
        yield server


@pytest.mark.alone  # a worker that gets no processor has more to do in a round
def test_thread_does_not_wake_up_in_an_idle_worker(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.open("/view/")  # a silent client changes nothing
    pid = worker_of(server)
    (thread,) = {int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()} - {pid}

    def wakes(number: int) -> int:
        status = Path(f"/proc/{pid}/task/{number}/status").read_text()
        found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)
        assert found
        return int(found[1])

    def sleeps() -> bool:
        before, begin = wakes(thread), wakes(pid)
        assert eventually(lambda: wakes(pid) > begin + 4)  # ticks, and a sign of life for gunicorn
        return wakes(thread) == before

    assert eventually(sleeps)


def said_of(hold: Callable[[], None], server: Server, begin: str) -> str:
    """Hold the server's worker until it says so in a line with `begin`, and return that line."""
    for _ in range(TRIES):
        hold()
        if eventually(lambda: begin in server.log, 1):
            break
    return next(line for line in server.log.splitlines() if begin in line)


def test_worker_names_pages_and_goes_on_after_a_fork(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.open("/view/")
    client.send(frame("fork"))
    assert client.frame().text == "fork"

    def hold() -> None:
        assert fetch(server.port, "/page/sleep/").status == 200

    line = said_of(hold, server, "127.0.0.1 /page/sleep/: all clients of this process had to wait: 0.")
    match = HELD.fullmatch(line)
    assert match and match[3] == "a page" and match[4].startswith(line_of(" native_sleep(LONG)"))


def test_coroutine_that_waits_without_await_is_named(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.open("/coroutine/")
    sent = time.monotonic()
    client.send(frame("pause"))
    assert client.frame().text == "pause"
    took = time.monotonic() - sent
    begin = "127.0.0.1 /coroutine/: all coroutines of this process had to wait: "
    assert eventually(lambda: begin in server.log)
    (line,) = [line for line in server.log.splitlines() if begin in line]
    assert 0.2 <= float(line.partition(begin)[2].split()[0]) <= took + 0.01  # 0.25, unless the machine was busy
    view, _, place = line.partition(" in the view testsite.stalls.coroutine, at ")
    assert place.startswith(f"{line_of(' time.sleep(LONG)')} in hold, which has led to ")


def test_synchronous_code_of_a_coroutine_is_named(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.open("/waits-for-others/")

    def hold() -> None:
        client.send(frame("sleep"))
        assert client.frame().text == "sleep"

    line = said_of(hold, server, "127.0.0.1 /waits-for-others/: all clients of this process had to wait: ")
    assert "in the view testsite.stalls.waits_for_others, at " + line_of(" native_sleep(LONG)") in line


@pytest.mark.parametrize("worker", [Conversation, CoroutineConversation])
def test_look_at_what_is_in_the_middle_of_being_made_finds_nothing_and_goes_on(worker: Any) -> None:
    half_made = worker.__new__(worker)
    with pytest.raises(AttributeError):
        half_made.works_for  # noqa: B018
    looked_at: Any = SimpleNamespace(f_locals={"self": half_made})
    assert work_of(looked_at) == ("", "")


def test_what_gunicorn_kills_a_worker_for_is_logged(server: Server, raw: Raw) -> None:
    client = raw(server)
    client.open("/view/")
    client.send(frame("for ever"))
    said = "The worker was held for longer than gunicorn's `timeout`: in the view testsite.stalls.view, at "
    assert eventually(lambda: said in server.log, within=20)
    assert said + SOURCE in server.log


def test_worker_ends_although_nobody_can_tell_what_holds_it() -> None:
    worker: Any = object.__new__(GeventWebSocketWorker)
    worker.log = None
    worker.cfg = SimpleNamespace(worker_abort=lambda worker: None)
    with pytest.raises(SystemExit):
        worker.handle_abort(signal.SIGABRT, None)

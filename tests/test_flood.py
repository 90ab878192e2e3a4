"""While a worker is flooded, its other clients get prompt answers and gunicorn's master its heartbeats."""

from __future__ import annotations

import json
import os
import selectors
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from operator import ge
from pathlib import Path

import pytest

from .support.clients import RawClient, fetch
from .support.fixtures import StartSite
from .support.floods import FLOODS, Figures
from .support.frames import frame, text
from .support.processes import worker_of
from .support.servers import NOT_MEASURED, ROOT, Server, redis_server, unavailable

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # the tests measure how long an answer takes

SECONDS = 0.8  # duration of each flood; its clients have half as long to connect
MEDIAN, WORST = 0.05, 0.25  # seconds another client may wait for an answer
LEAST = {  # with less, nothing was flooded, or Redis closed the connection
    "60,000 publishes a second": Figures(times=int(30_000 * SECONDS), received=int(5_000_000 * SECONDS)),
}
HEARTBEAT = 1.5  # seconds within which the worker must report to the master


class Flooded:
    """A worker pinned to one core; the load and the measuring process use the others."""

    def __init__(self, server: Server, redis: Server, cores: list[int]) -> None:
        self.server = server
        self.redis = redis
        self.worker = worker_of(server)
        self.cores = cores
        os.sched_setaffinity(self.worker, cores[:1])
        os.sched_setaffinity(redis.pid, cores[1:])
        self.heartbeat = next(
            path for path in Path(f"/proc/{self.worker}/fd").iterdir() if "wgunicorn-" in os.readlink(path)
        )

        command = [sys.executable, "-m", "tests.support.floods", str(server.port), str(redis.port)]
        self.load = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        os.sched_setaffinity(self.load.pid, cores[1:])
        os.setpriority(os.PRIO_PROCESS, self.load.pid, 10)  # must not delay the measuring process

    def __enter__(self) -> Flooded:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.load.kill()
        self.load.communicate()

    def flood(self, name: str, seconds: float) -> tuple[list[float], list[float], Figures]:
        """Return another client's waits for answers, the ages of the heartbeat, and what the flood sent."""
        asked, answers = self.load.stdin, self.load.stdout
        assert asked is not None and answers is not None
        times, ages = [], []
        with RawClient(self.server.port) as idle, selectors.DefaultSelector() as selector:
            idle.open("/echo/")
            asked.write(json.dumps([name, seconds]).encode() + b"\n")
            asked.flush()
            assert answers.readline() == b"ready\n"
            asked.write(b"\n")
            asked.flush()
            selector.register(answers, selectors.EVENT_READ)
            while not selector.select(0.01):
                begun = time.monotonic()
                idle.send(frame("hello"))
                assert idle.frame() == text("hello")
                times.append(time.monotonic() - begun)
                ages.append(time.monotonic() - self.heartbeat.stat().st_mtime)
        fetch(self.server.port, "/hang-up/")  # drops megabytes that the kernel still holds for the flood's clients
        return times, ages, Figures(*json.loads(answers.readline()))


@pytest.fixture(scope="module")
def flooded(start_site: StartSite) -> Iterator[Flooded]:
    own = os.sched_getaffinity(0)
    cores = sorted(own)
    if len(cores) < 2:
        unavailable("the worker and its load need a core each")
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        settings = {"WEBSOCKET_BROKER": f"redis://{redis.address}/0", "WEBSOCKET_ALLOWED_ORIGINS": ["*"]}
        server = stack.enter_context(start_site(settings, env=NOT_MEASURED, args=["--graceful-timeout", "1"]))
        flooded = stack.enter_context(Flooded(server, redis, cores))
        stack.callback(os.sched_setaffinity, 0, own)
        os.sched_setaffinity(0, cores[1:])
        yield flooded


@pytest.mark.parametrize("name", FLOODS)
def test_an_idle_client_is_answered_at_once_while_others_flood_the_worker(flooded: Flooded, name: str) -> None:
    times, ages, figures = flooded.flood(name, SECONDS)
    said = f"{name}: median {1000 * statistics.median(times):.1f} ms, at worst {1000 * max(times):.0f} ms, {figures}"
    print(said)
    assert statistics.median(times) < MEDIAN, said
    assert max(times) < WORST, said
    assert max(ages) < HEARTBEAT, said
    assert any(figures), said
    assert all(map(ge, figures, LEAST.get(name, Figures()))), said
    assert "Redis at" not in flooded.server.log, "the worker lost its connection"
    assert "Traceback" not in flooded.server.log, flooded.server.log
    assert worker_of(flooded.server) == flooded.worker

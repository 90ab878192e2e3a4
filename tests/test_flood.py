"""A flood through Redis does not keep other clients of the process waiting."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from .support.clients import RawClient
from .support.fixtures import StartSite
from .support.frames import frame, text
from .support.processes import worker_of
from .support.servers import NOT_MEASURED, unavailable

pytestmark = pytest.mark.alone  # it measures how long an answer takes

MEMBERS = 300
ALL_CHANNELS = "".join(f"&and=flood-{number:02}" for number in range(30))
SECONDS = 4.0  # of the flood
RATE = 60_000  # messages a second
# Publishes at a rate at which Redis does not close the connection of the worker for being too slow.
FLOOD = """
import socket, sys, time
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.setblocking(True)
commands = b"".join(
    b"*3\\r\\n$7\\r\\nPUBLISH\\r\\n$8\\r\\nflood-%02d\\r\\n$10\\r\\n0123456789\\r\\n" % (n % 30) for n in range(500)
)
begun = time.monotonic()
end = begun + float(sys.argv[2])
rate = float(sys.argv[3])
sent = 0
while time.monotonic() < end:
    sock.sendall(commands)
    answered = 0
    while answered < 500:
        answered += sock.recv(65536).count(b"\\n")
    sent += 500
    time.sleep(max(0, begun + sent / rate - time.monotonic()))
print(sent)
"""
# Reads what the members get, until its input ends, and prints how many bytes.
READ = """
import selectors, socket, sys
sockets = [socket.socket(fileno=int(number)) for number in sys.argv[1:]]
size = 0
with selectors.DefaultSelector() as selector:
    for sock in [*sockets, sys.stdin]:
        selector.register(sock, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                print(size)
                sys.exit()
            data = key.fileobj.recv(1 << 20)
            size += len(data)
            if not data:
                selector.unregister(key.fileobj)
"""


def test_an_idle_client_is_answered_at_once_while_others_are_flooded(start_site: StartSite, redis_url: str) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        unavailable("the worker and its load need a core each")
    settings = {"WEBSOCKET_BROKER": redis_url, "WEBSOCKET_ALLOWED_ORIGINS": ["*"]}
    with start_site(settings, env=NOT_MEASURED) as server, ExitStack() as stack:
        worker = worker_of(server)
        os.sched_setaffinity(worker, cores[:1])
        members = [stack.enter_context(RawClient(server.port)) for _ in range(MEMBERS)]
        for _number, member in enumerate(members):
            member.open("/listen/flood-00/?on_slow=drop_oldest" + ALL_CHANNELS)
        idle = stack.enter_context(RawClient(server.port))
        idle.open("/echo/")
        numbers = [member.sock.fileno() for member in members]
        processes = []
        for code, arguments, shared in (
            (READ, numbers, numbers),
            (FLOOD, [redis_url.rpartition(":")[2].partition("/")[0], SECONDS, RATE], []),
        ):
            process = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, arguments)],
                pass_fds=shared,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            os.sched_setaffinity(process.pid, cores[1:])
            processes.append(process)
        reader, flood = processes
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        times = []
        while flood.poll() is None:
            begun = time.monotonic()
            idle.send(frame("hello"))
            assert idle.frame() == text("hello")
            times.append(time.monotonic() - begun)
            time.sleep(0.02)
        published, received = int(flood.communicate()[0]), int(reader.communicate()[0])
        figures = f"{published / SECONDS:.0f}/s, {received / 1e6:.0f} MB, "
        figures += f"{statistics.median(times):.3f} s, at worst {max(times):.3f} s"
        print(figures)
        assert published > RATE / 2 * SECONDS, figures
        assert received > 10_000_000, figures  # it is no flood if Redis has closed the connection
        assert statistics.median(times) < 0.05, figures
        assert max(times) < 0.25, figures
        assert "Redis at" not in server.log, "the worker lost its connection"
        assert worker_of(server) == worker

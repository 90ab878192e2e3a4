"""Messages that are slow to compress when a view sends them on do not keep other clients waiting."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from .support import floods
from .support.clients import RawClient
from .support.frames import frame, text
from .support.processes import worker_of
from .support.servers import NOT_MEASURED, WORKER, gunicorn, unavailable

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # the test measures how long an answer takes

SECONDS = 3.0  # duration of each flood
# Reads everything that the members receive until its own input ends, then prints the number of bytes.
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
# Sends compressed messages at a fixed rate on each socket; every message begins with its number.
SEND = """
import socket, sys, time, zlib
seconds, rate, path = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
sockets = [socket.socket(fileno=int(number)) for number in sys.argv[4:]]
for sock in sockets:
    sock.setblocking(True)
rest = open(path, "rb").read()
begun = time.monotonic()
sent = 0
while time.monotonic() < begun + seconds:
    packer = zlib.compressobj(wbits=-15)
    payload = packer.compress(b"%08d" % sent) + packer.flush(zlib.Z_FULL_FLUSH) + rest
    frame = b"\\xc1\\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload
    for sock in sockets:
        sock.sendall(frame)
    sent += 1
    time.sleep(max(0, begun + sent / rate - time.monotonic()))
print(sent)
"""
OFFER = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}


def end_of_message(size: int) -> bytes:
    """The end of a compressed message: it inflates to `size` bytes that zlib is very slow to compress again."""
    packer = zlib.compressobj(9, wbits=-15)
    return (packer.compress(floods.hard_to_compress(size)) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def cores_for_worker_and_load() -> tuple[list[int], list[int]]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        unavailable("the worker and its load need a core each")
    return cores[:1], cores[1:]


def start(stack: ExitStack, code: str, arguments: Sequence[object], sockets: Sequence[int]) -> subprocess.Popen[str]:
    """Start a process that makes load on the cores that the worker does not use."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments), *map(str, sockets)],
        pass_fds=sockets,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    os.sched_setaffinity(process.pid, cores_for_worker_and_load()[1])
    return process


def round_trips(idle: RawClient, going_on: Callable[[], bool]) -> list[float]:
    """Measure one round trip after another while `going_on()` is true; return the seconds that each took."""
    times = []
    while going_on():
        begun = time.monotonic()
        idle.send(frame("hello"))
        assert idle.frame() == text("hello")
        times.append(time.monotonic() - begun)
        time.sleep(0.02)
    return times


# For a view of the test project: how many clients connect, how many of them send, the messages per second from each
# sender, and the bytes in a message.
FLOODS = {
    "a chat of 450": ("/chat/", 450, 1, 2, 1024 * 1024),
    "a chat of 450, small messages": ("/chat/", 450, 1, 20, 16 * 1024),
}


@pytest.mark.parametrize(("path", "count", "senders", "rate", "size"), FLOODS.values(), ids=FLOODS)
def test_an_idle_client_is_answered_at_once_while_others_send_data_slow_to_compress(
    tmp_path: Path, path: str, count: int, senders: int, rate: int, size: int
) -> None:
    rest = tmp_path / "rest"
    rest.write_bytes(end_of_message(size - len("00000000")))
    with gunicorn("project.wsgi:websocket", WORKER, env=NOT_MEASURED) as server, ExitStack() as stack:
        worker = worker_of(server)
        os.sched_setaffinity(worker, cores_for_worker_and_load()[0])
        members = [stack.enter_context(RawClient(server.port)) for _ in range(count)]
        for member in members:
            member.open(path, OFFER)
        idle = stack.enter_context(RawClient(server.port))
        idle.open("/echo/")
        numbers = [member.sock.fileno() for member in members]
        reader = start(stack, READ, [], numbers)
        flood = start(stack, SEND, [SECONDS, rate, rest], numbers[:senders])
        times = round_trips(idle, lambda: flood.poll() is None)
        sent, received = int(flood.communicate()[0]), int(reader.communicate()[0])
        figures = f"{sent / SECONDS:.0f}/s, {received / 1e6:.0f} MB, "
        figures += f"{statistics.median(times):.3f} s, at worst {max(times):.3f} s"
        print(figures)
        assert sent >= SECONDS * rate / 2, figures
        assert statistics.median(times) < 0.05, figures
        assert max(times) < 0.25, figures
        assert worker_of(server) == worker

"""Child processes that pages and views start."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import gevent
from django.http import HttpRequest

from . import probe

FORK = multiprocessing.get_context("fork")
event = threading.Event()


class Over(Exception):
    """Ends the code of a child."""


def keep_a_copy(request: HttpRequest) -> None:
    """Keep the client's connection open in this process, as a child would that was not started by Python."""
    os.dup(request.META["gunicorn.socket"].fileno())


def start(request: HttpRequest, how: str) -> None:
    """Start a child that ends when the request's gate opens; note its process id, once it runs, and how it ended."""
    read, write = os.pipe()  # tells the child, which has no gate, to end
    begun, begins = os.pipe()  # tells that the child runs
    try:
        if how == "work":
            queue = FORK.SimpleQueue()
            process = FORK.Process(target=work, args=(queue,))
            process.start()
            process.join(probe.WAIT)
            probe.note(request, queue.get() if process.exitcode == 0 else f"status {process.exitcode}")
        elif how in ("process", "terminate"):
            process = FORK.Process(target=wait, args=(read, begins))
            process.start()
            os.read(begun, 1)
            probe.note(request, str(process.pid))
            if how == "process":
                probe.wait_at_gate(request)
                os.write(write, b"x")
            else:
                process.terminate()
            process.join(probe.WAIT)
            probe.note(request, f"status {process.exitcode}")
        else:
            pid = os.fork()
            if not pid:
                wait(read, begins)
                if how == "exit":
                    sys.exit(3)
                if how == "raise":
                    raise Over
                return
            os.read(begun, 1)
            probe.note(request, str(pid))
            probe.wait_at_gate(request)
            os.write(write, b"x")
            probe.note(request, f"status {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")
    finally:
        for descriptor in (read, write, begun, begins):
            os.close(descriptor)


def wait(read: int, begins: int) -> None:
    """Tell that the child runs, and wait in its loop until there is something to read."""
    os.write(begins, b"x")
    os.set_blocking(read, False)
    deadline = time.monotonic() + probe.WAIT
    while time.monotonic() < deadline:
        gevent.sleep(0.001)
        try:
            os.read(read, 1)
        except BlockingIOError:
            continue
        return


def work(queue: Any) -> None:
    """Use threads, programs, processes, a pool and an event, as children do."""
    done = []
    thread = threading.Thread(target=lambda: done.append("a thread"))
    thread.start()
    thread.join()
    done.append(subprocess.run(["echo", "a program"], capture_output=True, text=True, check=True).stdout.strip())
    other = FORK.Process(target=time.sleep, args=(0.01,))
    other.start()
    other.join()
    assert other.exitcode == 0
    done.append("another child")
    with ProcessPoolExecutor(2, mp_context=FORK) as pool:
        assert list(pool.map(abs, [-1, -2])) == [1, 2]
    done.append("a pool")
    assert not event.wait(0.01)
    done.append("an event")
    queue.put(", ".join(done))

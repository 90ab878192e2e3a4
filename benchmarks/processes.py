"""Starts, watches and ends the processes of a run. Only processes started here are ended, by their ids."""

import ctypes
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1  # prctl(2)
libc = ctypes.CDLL(None)


@contextmanager
def pinned_to(core):
    """Run the processes started in the block on that core alone, or on any that we may use if it is None."""
    allowed = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def end_with_parent():
    """Called in a child: let the kernel send it SIGTERM if its parent is killed before it can end it."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """A child and all that it starts; its output goes to the file `log`. A context manager that ends it."""

    def __init__(self, command, *, log, core=None, environ=None, cwd=None):
        self.log = Path(log)
        self.stopped = False
        with self.log.open("ab") as output, pinned_to(core):
            self.process = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()

    def pids(self):
        """The child and all that it started: they have a session of their own."""
        leader = str(self.process.pid)
        entries = [entry for entry in os.listdir("/proc") if entry.isdigit()]
        return [int(pid) for pid in entries if (fields := stat_fields(pid)) and fields[3] == leader]

    def alive(self):
        return self.process.poll() is None

    def stop(self, seconds=4):
        """Send SIGTERM to the child; kill what is left of its session after `seconds`."""
        if self.stopped:
            return
        self.stopped = True
        try:
            if self.alive():
                self.process.terminate()
                self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()

    def last_words(self, lines=1):
        text = self.log.read_text(errors="replace").strip()
        return "\n".join(text.splitlines()[-lines:])


def stat_fields(pid):
    """/proc/PID/stat from the third field on, or None when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def cpu_ticks(pids):
    fields = filter(None, map(stat_fields, pids))
    return sum(int(f[11]) + int(f[12]) for f in fields)


def memory(pids, key):
    """KiB of all the processes: `key` is Pss (shared pages divided among those who share them) or Rss."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
    return total


def wait_until_quiet(pids, seconds=6):
    """Wait for the processes to stop using CPU, which would count for the next load; return whether they did."""
    deadline = time.monotonic() + seconds
    before = cpu_ticks(pids)
    while time.monotonic() < deadline:
        time.sleep(0.25)
        after = cpu_ticks(pids)
        if after - before <= 1:
            return True
        before = after
    return False


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def accepts(port):
    with socket.socket() as client:
        client.settimeout(0.5)
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until_accepts(process, port, seconds):
    """Wait for the port to open; return whether it did while the process lived."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.alive():
        if accepts(port):
            return True
        time.sleep(0.05)
    return False


def pick_cores():
    """Three of the cores that we may use, on different physical cores if there are that many."""
    picked, siblings = [], set()
    allowed = sorted(os.sched_getaffinity(0))
    for core in allowed:
        if core not in siblings:
            picked.append(core)
            siblings |= sibling_threads(core)
    picked += [core for core in allowed if core not in picked]
    return [picked[min(index, len(picked) - 1)] for index in range(3)]


def sibling_threads(core):
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return set()
    ranges = [part.split("-") for part in text.split(",")]
    return {number for ends in ranges for number in range(int(ends[0]), int(ends[-1]) + 1)}

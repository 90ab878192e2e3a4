"""What a process uses, as Linux reports it in /proc."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from .servers import Server


def worker_of(server: Server) -> int:
    """The process id of gunicorn's only worker."""
    (worker,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return int(worker)


def descriptors(pid: int) -> int:
    """The number of open files."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory(pid: int) -> int:
    """Resident memory in KiB."""
    return _status(pid, "VmRSS:")


def private_memory(pid: int) -> int:
    """Return the memory in KiB that it alone has written to, whatever other processes share or stop sharing."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def peak_memory(pid: int) -> int:
    """The most resident memory in KiB that the process had since `forget_peak()`."""
    return _status(pid, "VmHWM:")


def forget_peak(pid: int) -> None:
    """Let `peak_memory` start again from what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def processor_time(pid: int) -> float:
    """Processor time of the process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def stand_still(pid: int, seconds: float) -> float:
    """Wait until a child of this process is stopped, and let it go on after `seconds`; return how long it was."""
    os.waitpid(pid, os.WUNTRACED)
    begin = time.monotonic()
    time.sleep(seconds)  # not for something to happen: the standstill itself
    os.kill(pid, signal.SIGCONT)
    return time.monotonic() - begin

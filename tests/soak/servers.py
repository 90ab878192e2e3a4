"""The servers of the soak, what is done to them, and what their processes use."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..history.checker import Rule
from ..history.faults import Log, Topology, Workers, ask
from ..support.processes import descriptors, private_memory, processor_time
from ..support.servers import Server, redis_server
from .checker import KILLED, NGINX, REDIS, RELOADED


class Nobody:
    """Stands for publishers, who need not wait for any fault here."""

    def hold(self) -> None:
        """Do nothing."""

    def go(self) -> None:
        """Do nothing."""


class Redis(Topology):
    """A Redis that writes everything to its disk before it answers, so that it has it after each restart."""

    name = "soaked"

    def __init__(self, log: Log, rules: Mapping[str, Rule]) -> None:
        super().__init__(log, rules, Nobody())

        data = self.stack.enter_context(tempfile.TemporaryDirectory())
        args = ["--dir", data, "--appendonly", "yes", "--appendfsync", "always"]
        self.server = self.stack.enter_context(redis_server(args=args))

    @property
    def broker(self) -> dict[str, Any]:
        return {"url": f"redis://{self.server.address}/0"}

    @property
    def faults(self) -> Mapping[Callable[[], None], int]:
        return {self.restarted: 2, self.subscribers_killed: 1}

    def server_of(self, channel: str) -> Server:
        return self.server

    def ask(self, server: Server, *words: Any) -> Any:
        return ask(server, words)

    def restarted(self) -> None:
        """Kill or end the server, and start it again with its data."""
        how = self.log.random.choice([signal.SIGKILL, signal.SIGTERM])
        with self.log.fault(REDIS, cuts=True):
            self.server.stop(how)
            self.log.pause(0, 2)
            self.server.start()

    def held(self) -> dict[str, float]:
        """Return how many clients and keys it has, and its memory in KiB."""
        memory = self.info(self.server, "used_memory") / 1024
        clients = self.info(self.server, "connected_clients") - 1  # this one
        return {"clients": clients, "keys": float(self.ask(self.server, "DBSIZE")), "memory": memory}


class Site(Workers):
    """gunicorn, and nginx in front of it.

    A worker that is killed is never the oldest one: only one that lives for long shows what grows slowly.
    """

    def __init__(self, log: Log, site: Server, nginx: Server) -> None:
        super().__init__(log, site)
        self.nginx = nginx

    def killed(self) -> None:
        *_, youngest = sorted(self.pids(), key=started)
        with self.log.fault(KILLED), suppress(ProcessLookupError):
            os.kill(youngest, signal.SIGKILL)

    def reloaded(self) -> None:
        with self.log.fault(RELOADED):
            self.site.send_signal(signal.SIGHUP)

    def nginx_reloaded(self) -> None:
        """Have nginx replace its processes; the old ones end when their clients have left, or are sent away."""
        with self.log.fault(NGINX):
            self.nginx.send_signal(signal.SIGHUP)

    @property
    def faults(self) -> Mapping[Callable[[], None], int]:
        return {self.killed: 2, self.nginx_reloaded: 1}


def started(pid: int) -> float:
    """Return when a process was started, in ticks of the system's clock; 0 if it is gone."""
    try:
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0


def used(pid: int, database: Path | None = None) -> dict[str, float]:
    """Return the memory in KiB and the descriptors of a process, and how many of these are open files of a database.

    The memory is what the process alone has written to: what processes share changes when another is started.
    """
    values: dict[str, float] = {
        "memory": private_memory(pid),
        "descriptors": descriptors(pid),
        "cpu": processor_time(pid),
    }
    if database is not None:
        values["databases"] = 0
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                values["databases"] += os.readlink(f"/proc/{pid}/fd/{descriptor}") == str(database)
    return values

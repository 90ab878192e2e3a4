"""Putting a server under a load: start it, measure, end it."""

import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from environment import APPS, redis_server
from loads import echo, faults, run_wsload
from processes import Process, free_port, memory, wait_until_accepts, wait_until_quiet
from servers import ECHO

START_SECONDS = 20
OPENED_PER_SECOND = 300  # at least, when many clients connect
NOT_INHERITED = {"DJANGO_SETTINGS_MODULE", "GUNICORN_CMD_ARGS", "WEB_CONCURRENCY"}


class Bench:
    """What all measurements of a run share: the environment, cores, Redis, where logs go, how long to measure."""

    def __init__(self, bin_directory, logs, *, cores=(None, None, None), seconds=3.0, idle_seconds=2.5, smoke=False):
        self.bin = bin_directory
        self.logs = Path(logs)
        self.server_core, self.load_core, self.redis_core = cores
        self.seconds = seconds
        self.idle_seconds = idle_seconds
        self.smoke = smoke  # nothing is measured: no time is spent on making figures comparable
        self.rate = 500.0  # messages/s of the loads at one rate
        self.cookie = None
        self.redis = None
        self.redis_port = free_port()

    def start_redis(self):
        options = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--maxclients", "12000")
        command = [redis_server(), "--port", self.redis_port, *options]
        redis = Process(command, log=self.logs / "redis.log", core=self.redis_core, cwd=self.logs)
        if not wait_until_accepts(redis, self.redis_port, 5):
            redis.stop()
            raise SystemExit(f"Redis does not start: {redis.last_words()}")
        self.redis = redis

    @contextmanager
    def services(self):
        """Redis, and the database with somebody who is logged in."""
        made = subprocess.run(
            [self.bin / "python", "-m", "djangosite.prepare"],
            env=self.environ(),
            cwd=APPS,
            capture_output=True,
            text=True,
        )
        if made.returncode:
            raise SystemExit(f"{made.stderr}the database for the benchmarks cannot be made")
        self.cookie = made.stdout.strip()
        self.start_redis()
        try:
            yield
        finally:
            self.redis.stop()

    def calibrate(self, server, share):
        """Have loads at one rate use that share of what `server` carries."""
        process = self.start(server)
        try:
            result = self.measure(server, echo("", "", 100), *process)
        finally:
            process[0].stop()
        if wrong := faults(result):
            raise SystemExit(f"{server.name}, which sets the rate for the others: {wrong}")
        self.rate = result["rate"] * share

    def log(self, server):
        return self.logs / f"{server.name}.log"

    def environ(self, server=None):
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        return inherited | {
            "PYTHONPATH": str(APPS),
            "PYTHONDONTWRITEBYTECODE": "1",  # the checkouts stay as they are
            "DATABASE": str(self.logs / "db.sqlite3"),
            "REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            **(server.environ if server else {}),
        }

    def start(self, server):
        """The running server: a process and its port. RuntimeError says why it does not serve."""
        if not self.redis.alive():
            self.start_redis()
        port = free_port()
        command = server.command_line(self.bin, port)
        try:
            process = Process(
                command, log=self.log(server), core=self.server_core, environ=self.environ(server), cwd=APPS
            )
        except FileNotFoundError as error:
            raise RuntimeError(f"{command[0]} does not exist") from error
        try:
            if not wait_until_accepts(process, port, START_SECONDS):
                raise RuntimeError(f"does not start: {process.last_words()}")
            arguments = ("--port", port, "--path", ECHO, "-c", 5 if self.smoke else 50, "-t", 0.1)
            result = run_wsload("idle", (*arguments, "--connect-timeout", 8), core=self.load_core)
            if wrong := faults(result):
                raise RuntimeError(f"does not serve: {wrong} {process.last_words()}")
        except BaseException:
            process.stop()
            raise
        return process, port

    def measure(self, server, load, process, port):
        """The result of wsload, with what the server's memory or CPU had to do with it."""
        pids = process.pids()
        arguments = ["--port", port, "--path", server.paths[load.path], *load.arguments]
        arguments += ["--connect-timeout", 5 if self.smoke else 20 + load.clients // OPENED_PER_SECOND]
        arguments += ["--cpu", f"server:{','.join(map(str, pids))}", "--cpu", f"redis:{self.redis.process.pid}"]
        if self.smoke:
            arguments += ["--warm", 0]
        if load.login:
            arguments += ["--header", f"Cookie: {self.cookie}"]
        if load.redis:
            arguments += ["--redis", self.redis_port]
        elif load.mode == "fanout":
            arguments += ["--publisher-path", server.publisher or server.paths[load.path]]
        if load.rated:
            arguments += ["--rate", self.rate]
        if load.measures_memory:
            result = self.measure_memory(load, arguments, process)
        else:
            result = run_wsload(load.mode, [*arguments, "-t", self.seconds], core=self.load_core)
            messages = result.get("acknowledged" if load.path == "room" else "msgs")
            if messages:
                result["cpu_per_message"] = result["cpu_server_s"] / messages
                result["redis_cpu_per_message"] = result["cpu_redis_s"] / messages
        if load.rated:
            result["asked"] = self.rate
        result["load_average"] = os.getloadavg()[0]
        return result

    def measure_memory(self, load, arguments, process):
        wait_until_quiet(process.pids())
        before = {key: memory(process.pids(), key) for key in ("Pss", "Rss")}
        found = {"base_mib": before["Pss"] / 1024}

        def clients_are_open(count):
            time.sleep(self.idle_seconds / 2)
            grown = {key: memory(process.pids(), key) - before[key] for key in before}
            found["kib_per_client"] = grown["Pss"] / max(count, 1)
            found["rss_kib_per_client"] = grown["Rss"] / max(count, 1)

        if load.mode == "idle":
            arguments += ["-t", self.idle_seconds]
        else:
            arguments += ["-t", self.seconds / 5, "--hold", self.idle_seconds]
        return run_wsload(load.mode, arguments, core=self.load_core, on_open=clients_are_open) | found

    def measure_all(self, server, loads):
        """Yields each load with its result, from one process of the server; from a new one where that has died.

        Memory is measured in a new one: what clients have left behind would be there for the next.
        """
        process = failed = None
        try:
            for load in loads:
                if process is not None and load.measures_memory and not self.smoke:
                    process.stop()
                try:
                    if not failed and (process is None or not process.alive()):
                        process, port = self.start(server)
                except RuntimeError as error:
                    failed = {"failed": str(error)}
                if failed:
                    yield load, failed
                else:
                    yield load, self.measure(server, load, process, port)
                    if not self.smoke:
                        wait_until_quiet(process.pids())
        finally:
            if process is not None:
                process.stop()

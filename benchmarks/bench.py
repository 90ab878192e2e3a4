"""Putting a server under a load: start it, measure, end it."""

import os
import time
from contextlib import contextmanager
from pathlib import Path

from environment import APPS, redis_server
from loads import faults, run_wsload
from processes import Process, free_port, memory, wait_until_accepts, wait_until_quiet

START_SECONDS = 20
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
    def running_redis(self):
        self.start_redis()
        try:
            yield
        finally:
            self.redis.stop()

    def log(self, server):
        return self.logs / f"{server.name}.log"

    def environ(self, server):
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        return inherited | {
            "PYTHONPATH": str(APPS),
            "PYTHONDONTWRITEBYTECODE": "1",  # the checkouts stay as they are
            "REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            **server.environ,
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
            arguments = ("--port", port, "--path", server.paths["echo"], "-c", 5 if self.smoke else 50, "-t", 0.1)
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
        seconds = self.idle_seconds if load.measures_memory else self.seconds
        arguments = ["--port", port, "--path", server.paths[load.path], "-t", seconds, *load.arguments]
        arguments += ["--cpu", f"server:{','.join(map(str, pids))}", "--cpu", f"redis:{self.redis.process.pid}"]
        if not load.measures_memory:
            result = run_wsload(load.mode, arguments, core=self.load_core)
            if result.get("msgs"):
                result["cpu_per_message"] = result["cpu_server_s"] / result["msgs"]
                result["redis_cpu_per_message"] = result["cpu_redis_s"] / result["msgs"]
        else:
            result = self.measure_memory(load, arguments, process)
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

        return run_wsload(load.mode, arguments, core=self.load_core, on_open=clients_are_open) | found

    def measure_all(self, server, loads):
        """Yields each load with its result, from one process of the server; from a new one where that has died."""
        process = failed = None
        try:
            for load in loads:
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

"""Puts servers under loads: starts a server, measures it, and ends it."""

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
OPENED_PER_SECOND = 300  # the least that is expected when many clients connect
NOT_INHERITED = {"DJANGO_SETTINGS_MODULE", "GUNICORN_CMD_ARGS", "WEB_CONCURRENCY"}


class Bench:
    """Everything that the measurements of a run share: environment, cores, services, logs, and running servers.

    A server is started when it is needed, and runs until `stop()`: while others have their turn, it is idle.
    """

    def __init__(self, bin_directory, logs, *, cores=(None, None, None), seconds=3.0, idle_seconds=2.5, smoke=False):
        self.bin = bin_directory
        self.logs = Path(logs)
        self.server_core, self.load_core, self.redis_core = cores
        self.seconds = seconds
        self.idle_seconds = idle_seconds
        self.smoke = smoke  # nothing is measured, so no time is spent on comparable figures
        self.rate = 5000.0  # messages/s of the loads at a fixed rate
        self.database = self.logs / "db.sqlite3"
        self.cookie = None  # of a user who is logged in; it comes with the database
        self.redis = None
        self.redis_port = free_port()
        self.running = {}  # server's name -> process, port
        self.failed = {}  # server's name -> why it does not serve

    def start_redis(self):
        options = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--maxclients", "12000")
        command = [redis_server(), "--port", self.redis_port, *options]
        redis = Process(command, log=self.logs / "redis.log", core=self.redis_core, cwd=self.logs)
        if not wait_until_accepts(redis, self.redis_port, 5):
            redis.stop()
            raise SystemExit(f"Redis does not start: {redis.last_words()}")
        self.redis = redis

    def make_database(self):
        """Make the database with a user who is logged in."""
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

    def take_database_of(self, other):
        """Use the database of another Bench, which costs a second less than to make one."""
        self.database, self.cookie = other.database, other.cookie

    @contextmanager
    def services(self):
        """Run Redis, and make the database unless there is one."""
        if self.cookie is None:
            self.make_database()
        self.start_redis()
        try:
            yield
        finally:
            for name in list(self.running):
                self.stop(name)
            self.redis.stop()

    def stop(self, name):
        process, _ = self.running.pop(name, (None, None))
        if process is not None:
            process.stop()

    def calibrate(self, server, share):
        """Set the fixed rate of loads to that share of what `server` carries."""
        result = self.measure(server, echo("calibration", "", 100))
        if wrong := faults(result):
            raise SystemExit(f"{server.name}, which sets the rate for the others: {wrong}")
        self.rate = result["rate"] * share

    def log(self, server):
        return self.logs / f"{server.name}.log"

    def environ(self, server=None):
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        return inherited | {
            "PYTHONPATH": str(APPS),
            "PYTHONDONTWRITEBYTECODE": "1",  # leaves the checkouts as they are
            "DATABASE": str(self.database),
            "REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "CHANNEL": server.name if server else "",
            **(server.environ if server else {}),
        }

    def start(self, server):
        """Start the server; return its process and its port. A RuntimeError says why it does not serve."""
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

    def measure(self, server, load):
        """Put the server under the load; return the result, or `{"failed": why}`."""
        if not self.redis.alive():
            self.start_redis()
        alone = load.measures_memory and not self.smoke  # in a new process, since former clients leave memory behind
        if server.name in self.running and (alone or not self.running[server.name][0].alive()):
            self.stop(server.name)
        try:
            if server.name not in self.running and server.name not in self.failed:
                self.running[server.name] = self.start(server)
        except RuntimeError as error:
            self.failed[server.name] = str(error)
        if server.name in self.failed:
            return {"failed": self.failed[server.name]}
        process, port = self.running[server.name]
        result = self.put_under(server, load, process, port)
        if alone:
            self.stop(server.name)
        elif not self.smoke and not wait_until_quiet(process.pids()):
            self.stop(server.name)  # it would take CPU time from the next server
        return result

    def put_under(self, server, load, process, port):
        """Run wsload; return its result, with the server's memory or CPU time added."""
        pids = process.pids()
        arguments = ["--port", port, "--path", server.paths[load.path], *load.arguments]
        arguments += ["--connect-timeout", 5 if self.smoke else 20 + load.clients // OPENED_PER_SECOND]
        arguments += ["--cpu", f"server:{','.join(map(str, pids))}", "--cpu", f"redis:{self.redis.process.pid}"]
        if self.smoke:
            # Nothing is lost as long as it may still come: on a busy machine, a slow server has time to answer.
            arguments += ["--warm", 0, "--least", 1, "--drain", 30]
        if load.login:
            arguments += ["--header", f"Cookie: {self.cookie}"]
        if load.redis:
            room = "room" if load.path == "room" else ""
            arguments += ["--redis", self.redis_port, "--channel", f"{server.name}{room}"]
            if server.keeps:
                arguments += ["--script", self.script_of(server)]
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
                result["kernel_per_message"] = result["kernel_server_s"] / messages
                result["redis_cpu_per_message"] = result["cpu_redis_s"] / messages
        if load.rated:
            result["asked"] = self.rate
        result["load_average"] = os.getloadavg()[0]
        return result

    def script_of(self, server):
        """Let Redis know the script by which this version of the package publishes and keeps; return its digest."""
        code = (
            "import os, redis; from django_websocket.pubsub.keeping import PUBLISHING;"
            "print(redis.Redis.from_url(os.environ['REDIS_URL']).script_load(PUBLISHING['PUBLISH']._text))"
        )
        command = [self.bin / "python", "-c", code]
        return subprocess.run(
            command, env=self.environ(server), cwd=APPS, capture_output=True, text=True, check=True
        ).stdout.strip()

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
            arguments += ["-t", min(self.seconds, 1), "--hold", self.idle_seconds]
        return run_wsload(load.mode, arguments, core=self.load_core, on_open=clients_are_open) | found

"""Lets a site run for long with everything at once, and says whether it lost anything, or grew; scripts/soak runs this.

    python -m tests.soak.run [MINUTES] [--into DIRECTORY] [--docs] [--seed N] [--records] [--verbose]

There are nginx, gunicorn with two workers, Redis and a database; clients of all kinds, and processes that publish. From
time to time a server is restarted, reloaded or killed, and from time to time everybody leaves, for a look at what is
left. Everything that clients did and saw is judged at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..history.checker import Fault, Life, Rule
from ..history.checker import check as check_history
from ..history.faults import Log
from ..history.subscribers import Crowd as Subscribers
from ..history.subscribers import crowd_of as subscribers_of
from ..history.torture import OUTBOX_SIZE, Publishers, tracebacks
from ..presence.checker import Span, Timing
from ..presence.checker import check as check_presence
from ..presence.crowd import Crowd as Present
from ..presence.crowd import crowd_of as present_of
from ..presence.torture import Plan as PresencePlan
from ..presence.torture import Stage as PresenceStage
from ..presence.torture import disturbance
from ..support.servers import NOT_INHERITED, NOT_MEASURED, ROOT, WORKER, configured_nginx, gunicorn
from ..support.standstills import standstills
from .checker import STOOD_STILL, Verdict, Visit, check_group, check_visits, check_waits
from .clients import crowd_of
from .growth import Lull, Trend, trends_of, what_grows, what_is_left
from .report import Report
from .rude import CLOSE_TIMEOUT, HANDSHAKE_TIMEOUT, PING_INTERVAL, PING_TIMEOUT, SEND_TIMEOUT, Rude
from .scene import Scene
from .servers import Redis, Site, used

SITE = ROOT / "tests" / "site"
TIMING = Timing(grace=4.0, lease=6.0, renewal=1.5, slack=3.0)  # of presence; the defaults leave little time for calm
TOLD = ("closed 4410",)  # how a view of the site tells of a gap, which the checker of histories judges
LIVE = Rule(0, 0.0)  # a channel without a history: each interruption is one that clients must be told of
RULES = {
    **{f"long:{number}": Rule(500, 3 * 3600.0) for number in range(3)},
    "short:0": Rule(15, 5.0),
    **{f"live:{number}": LIVE for number in range(2)},
}
SIZES = (0, 400)  # characters of a published message
LONGEST_LULL = 30.0  # seconds until all connections must be gone, even of clients that vanish
SETTLING = TIMING.grace + 1.5  # seconds in which a worker forgets the sessions of who was present
QUIET = 4.0  # seconds without a message, after which none is expected any more
LONGEST_QUIET = 60.0
LONGEST_END = 60.0  # seconds for all clients to end
CALM = 4.0  # seconds without any effect of a fault, from which on a time counts as calm
GRACEFUL = 10  # seconds; gunicorn's graceful_timeout
NGINX_KEEPS = "15s"  # worker_shutdown_timeout


@dataclass(frozen=True)
class Plan:
    """How a soak goes."""

    seconds: float
    lull_every: float  # seconds
    fault_every: float
    sample_every: float
    seed: int = 1
    workers: int = 2
    size: int = 4  # clients of the most frequent kinds
    subscribers: int = 1  # of each channel with a history
    together: int = 2  # subscribers of several channels
    tabs: int = 8  # clients that are present
    rooms: int = 3
    rate: float = 3.0  # messages that each of two processes publishes in a second
    # When all workers are replaced, as parts of the time. In between, the oldest one shows what grows.
    reloads: Sequence[float] = (0.08, 0.93)
    script: Sequence[str] = ()  # the names of the faults, one after the other, instead of random ones

    @staticmethod
    def lasting(seconds: float, seed: int) -> Plan:
        """Return the plan of a soak that lasts so long."""
        return Plan(
            seconds,
            # Enough lulls to tell what grows, and time for the clients in between.
            lull_every=min(max(seconds / 25, 18.0), 120.0),
            # A killed worker costs a second of a core, and presence needs some time without faults.
            fault_every=min(max(seconds / 60, 6.0), 45.0),
            # Some hundred points for the picture.
            sample_every=min(max(seconds / 400, 1.0), 10.0),
            seed=seed,
        )


@dataclass
class Samples:
    """What the processes used and held over time, by their names."""

    values: dict[str, list[tuple[float, Mapping[str, float]]]] = field(default_factory=dict)
    lulls: dict[str, list[Lull]] = field(default_factory=dict)
    began: dict[str, float] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)  # of processes
    types: dict[str, list[Mapping[str, int]]] = field(default_factory=dict)  # objects of a worker, lull by lull

    def name(self, pid: int, kind: str) -> str:
        """Return the name of a process, with a number for each of its kind."""
        if pid not in self.names:
            number = 1 + sum(name.startswith(f"{kind} ") for name in self.names.values())
            self.names[pid] = f"{kind} {number}"
        return self.names[pid]

    def add(self, process: str, values: Mapping[str, float], connections: float, lull: bool) -> None:
        """Write down what a process holds."""
        now = time.monotonic()
        self.began.setdefault(process, now)
        self.values.setdefault(process, []).append((now, values))
        if lull:
            self.lulls.setdefault(process, []).append(Lull(now, connections, values))

    @property
    def trends(self) -> list[Trend]:
        """How all numbers of all processes that lived long enough have developed."""
        return [
            trend for process, lulls in self.lulls.items() for trend in trends_of(process, lulls, self.began[process])
        ]

    @property
    def processor_time(self) -> float:
        """Seconds of all processes, in which each had used some when it was seen last."""
        return sum(values[-1][1].get("cpu", 0.0) for values in self.values.values())


class Soak:
    """The servers, everybody who talks to them, and what is measured."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda line: None) -> None:
        self.plan = plan
        self.say = say
        self.samples = Samples()
        self.lulls: list[Span] = []
        self.listeners: list[Life] = []
        self.log = Log(random.Random(f"{plan.seed} faults"))
        self.presence = PresenceStage("single", PresencePlan(seed=plan.seed, timing=TIMING, rooms=plan.rooms))
        self.presence.log = self.presence.workers_log = self.log
        self.began = 0.0
        self._choices = random.Random(f"{plan.seed} soak")

    def run(self) -> Report:
        """Let everything run, and judge it."""
        plan = self.plan
        with ExitStack() as stack:
            self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._database = self._directory / "site.sqlite3"
            self._redis = Redis(self.log, RULES)
            stack.enter_context(self._redis)
            environment = self._environment()
            inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
            inherited |= environment
            command = [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity", "0"]
            subprocess.run(command, cwd=SITE, env=inherited, check=True, timeout=60)
            args = ["--workers", str(plan.workers), "--graceful-timeout", str(GRACEFUL)]
            site = gunicorn("testsite.wsgi:application", WORKER, cwd=SITE, env=environment, args=args)
            stack.enter_context(site)
            changes = {
                "worker_shutdown_timeout 10m;": f"worker_shutdown_timeout {NGINX_KEEPS};",
                "worker_processes auto;": "worker_processes 1;",
            }
            nginx = stack.enter_context(configured_nginx(site.port, site.port, self._directory, changes))
            self._servers = Site(self.log, site, nginx)
            self._publishers = Publishers(self, self._directory, inherited)  # type: ignore[arg-type]
            stack.callback(self._publishers.end)
            self.scene = Scene(nginx.port, site.port, plan.seed)
            self.subscribers = Subscribers(nginx.port, plan.seed, 6.0, {"long": 6.0, "short": 7.0}, path="history/")
            popularity = self.presence.plan.popularity
            self.present = Present(nginx.port, plan.seed, popularity, 8.0, 12.0, path="presence/")
            self.began = time.monotonic()
            with standstills(lambda begin, end: self.log.faults.append(Fault(STOOD_STILL, begin, end))):
                asyncio.run(self._drive(inherited))
            self._publishers.end()
            lasted = time.monotonic() - self.began
            status = site.stop()
            return self._report(site.log, status, lasted, tracebacks(site, wanted="Failure"))

    # What publishers need to know.

    @property
    def publishers(self) -> int:
        """How many threads each process has."""
        return 1

    @property
    def seed(self) -> int:
        """What decides about all that is random."""
        return self.plan.seed

    @property
    def rate(self) -> float:
        """How many messages each thread publishes in a second."""
        return self.plan.rate

    @property
    def channels(self) -> dict[str, tuple[int, int]]:
        """The sizes of each channel's messages."""
        return dict.fromkeys(RULES, SIZES)

    def _environment(self) -> dict[str, str]:
        kinds = {name.partition(":")[0]: rule for name, rule in RULES.items() if rule is not LIVE}
        database = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(self._database),
            # As documented for sites: readers do not wait for writers.
            "OPTIONS": {"timeout": 10, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"},
        }
        settings = {
            "WEBSOCKET_URLCONF": "testsite.soak",
            "WEBSOCKET_BROKER": self._redis.broker,
            "WEBSOCKET_HISTORY": {
                f"{kind}:*": {"messages": rule.messages, "seconds": int(rule.seconds)} for kind, rule in kinds.items()
            },
            "WEBSOCKET_OUTBOX_SIZE": OUTBOX_SIZE,
            "WEBSOCKET_PING_INTERVAL": PING_INTERVAL,
            "WEBSOCKET_PING_TIMEOUT": PING_TIMEOUT,
            "WEBSOCKET_SEND_TIMEOUT": SEND_TIMEOUT,
            "WEBSOCKET_CLOSE_TIMEOUT": CLOSE_TIMEOUT,
            "WEBSOCKET_HANDSHAKE_TIMEOUT": HANDSHAKE_TIMEOUT,
            "WEBSOCKET_DRAIN_WINDOW": 2.0,
            "CHANNEL_LAYERS": {"default": {"BACKEND": "django_websocket.channels.ChannelLayer"}},
            "DATABASES": {"default": database},
        }
        graces = {"grace": TIMING.grace, "lease": TIMING.lease, "renewal": TIMING.renewal}
        return {
            **NOT_MEASURED,
            "TESTSITE_SETTINGS": json.dumps(settings),
            "TESTSITE_GRACES": json.dumps(graces),
            "TESTSITE_FIGURES": json.dumps({"directory": str(self._directory), "seconds": self.plan.sample_every}),
            "DJANGO_SETTINGS_MODULE": "testsite.settings",
        }

    # --- how it goes ---------------------------------------------------------------------------------------------

    async def _drive(self, environment: Mapping[str, str]) -> None:
        """Let everybody in, and go on until the time is over."""
        plan, scene = self.plan, self.scene
        live = [name for name, rule in RULES.items() if rule is LIVE]
        kept = [name for name in RULES if name not in live]
        choices = random.Random(f"{plan.seed} together")
        groups = [choices.sample(kept, 2) for _ in range(plan.together)]
        asking = json.dumps({"channels": [*self.present.rooms], "pause": 0.25})
        asker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "testsite.asking", asking),
            cwd=SITE,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
        )
        listening = asyncio.create_task(self.presence.listen(self.present, asker))
        everybody: list[Any] = [
            *crowd_of(scene, live, self.listeners, plan.size),
            *(Rude(scene, f"rude{number}") for number in range(max(2, plan.size // 2 + 1))),
            *subscribers_of(self.subscribers, dict.fromkeys(kept, plan.subscribers), groups),
            *present_of(self.present, plan.tabs, random.Random(f"{plan.seed} users")),
        ]
        tasks = [asyncio.create_task(somebody.run()) for somebody in everybody]
        try:
            with ThreadPoolExecutor(4) as self._threads:
                sampling = asyncio.create_task(self._sample_again_and_again())
                await self._go_on(self.began + plan.seconds)
                await self._end(tasks)
                await self._lull()
                sampling.cancel()
                await asyncio.gather(sampling, return_exceptions=True)
        finally:
            with suppress(ProcessLookupError):
                asker.terminate()
            await asyncio.wait_for(asker.wait(), LONGEST_END)
            for task in [*tasks, listening]:
                task.cancel()
            ended = await asyncio.gather(*tasks, listening, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _go_on(self, until: float) -> None:
        """Cause faults one after the other, with lulls in between, until the time is over."""
        plan, servers = self.plan, self._servers
        faults = {**self._redis.faults, **servers.faults}
        reloads = [self.began + part * plan.seconds for part in plan.reloads]
        next_lull = self.began + plan.lull_every
        by_name = {fault.__name__: fault for fault in faults}
        script = [by_name[name] for name in reversed(plan.script)]
        causes: list[Callable[[], None]] = []
        while time.monotonic() < until or script:
            await asyncio.sleep(plan.fault_every * self._choices.uniform(0.7, 1.3))
            now = time.monotonic()
            if now > next_lull:
                await self._lull()
                next_lull = time.monotonic() + plan.lull_every
                continue
            if reloads and now > reloads[0]:
                reloads.pop(0)
                cause: Callable[[], None] = servers.reloaded
            elif script:
                cause = script.pop()
            else:
                if not causes:  # each as often as its weight says, so that even a short run has all of them
                    causes = [fault for fault, weight in faults.items() for _ in range(weight)]
                    self._choices.shuffle(causes)
                cause = causes.pop()
            await self._in_thread(self._cause, cause)

    def _cause(self, cause: Callable[[], None]) -> None:
        begin = time.monotonic()
        try:
            cause()
        except Exception as error:
            self.log.failures.append(f"{cause.__name__}: {type(error).__name__}: {error}")
        self.say(f"{begin - self.began:7.1f} s: {cause.__name__}")

    async def _end(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Let all be connected while all goes well, until nothing more is to come; then have everybody leave."""
        self.subscribers.ending.set()
        await asyncio.sleep(QUIET)
        await self._in_thread(self._publishers.hold)
        stopped = time.monotonic()
        while time.monotonic() < min(stopped + LONGEST_QUIET, max(stopped, self.subscribers.latest) + QUIET):
            await asyncio.sleep(0.1)
        await self.presence.be_quiet(self.present, self._redis, self._threads)
        self.scene.over = self.present.over = True
        self.subscribers.over.set()
        _, pending = await asyncio.wait(tasks, timeout=LONGEST_END)
        self.scene.wrong += [f"does not end: {task.get_coro()}" for task in pending]

    async def _in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)

    # --- what is measured ----------------------------------------------------------------------------------------

    async def _lull(self) -> None:
        """Have everybody leave, look at what is left, and let everybody come back."""
        begin = time.monotonic()
        sign = self._directory / "lull"
        sign.touch()
        self._leaving(True)
        while not self._is_empty(begin) and time.monotonic() < begin + LONGEST_LULL:
            await asyncio.sleep(0.25)
        await asyncio.sleep(SETTLING)
        await self._in_thread(self._sample, True)
        sign.unlink()
        self._leaving(False)
        self.lulls.append((begin, time.monotonic()))
        self.say(f"{begin - self.began:7.1f} s: everybody leaves, for {time.monotonic() - begin:.1f} s")

    def _leaving(self, leaving: bool) -> None:
        self.scene.leaving = self.subscribers.leaving = self.present.leaving = leaving

    def _is_empty(self, begin: float) -> bool:
        """Whether all workers say that nobody is connected."""
        figures = [self._figures(pid) for pid in self._servers.pids()]
        return all(
            told.get("quiet") and told["time"] > begin and not told["connections"] + told["views"] for told in figures
        )

    def _figures(self, pid: int) -> dict[str, Any]:
        """Return what a worker has written down."""
        try:
            told: dict[str, Any] = json.loads((self._directory / f"{pid}.json").read_text())
        except OSError:
            return {}
        return told

    async def _sample_again_and_again(self) -> None:
        while True:
            await self._in_thread(self._sample, False)
            await asyncio.sleep(self.plan.sample_every)

    def _sample(self, lull: bool) -> None:
        """Write down what each process uses and holds."""
        samples, servers = self.samples, self._servers
        connections = float(self.connections)
        for pid in servers.pids():
            with suppress(OSError, StopIteration):  # it has just ended
                told = self._figures(pid)
                if told and (not lull or told["quiet"]):
                    name = samples.name(pid, "worker")
                    if lull:
                        samples.types.setdefault(name, []).append(told["types"])
                    numbers = {key: value for key, value in told.items() if key not in ("types", "quiet", "time")}
                    samples.add(name, {**numbers, **used(pid, self._database)}, told["handshakes"], lull)
        others = {"gunicorn": servers.site.pid, "nginx": servers.nginx.pid}
        others |= {log.stem: log_pid for log, log_pid in zip(self._publishers.logs, self._pids, strict=True)}
        for name, pid in others.items():
            with suppress(OSError, StopIteration):
                samples.add(name, used(pid), connections, lull)
        with suppress(Exception):  # Redis is away
            held = self._redis.held()
            samples.add("redis", {**held, "cpu": used(self._redis.server.pid)["cpu"]}, connections, lull)

    @property
    def _pids(self) -> list[int]:
        return [process.pid for process in self._publishers.processes]

    @property
    def connections(self) -> int:
        """How many there have been."""
        return self.scene.done["connections"] + self.subscribers.connections + len(self.present.stays)

    # --- the verdict ---------------------------------------------------------------------------------------------

    def _report(self, log: str, status: int | None, lasted: float, logged: Sequence[str]) -> Report:
        faults, scene = self.log.faults, self.scene
        verdict = Verdict()
        check_visits(scene.visits, faults, verdict)
        ends = [(name, *end) for name, crowd in (("subscriber", self.subscribers), ("present", self.present))
                for end in crowd.ends]  # fmt: skip
        check_visits((Visit(name, at, at, outcome_of(end), TOLD) for name, at, end in ends), faults, verdict)
        check_waits(scene.long_waits, faults, verdict)
        check_group(scene.said, scene.hearings, faults, verdict)
        sent = self._publishers.sent()
        history = check_history(sent, [*self.subscribers.lives, *self.listeners], faults, RULES, OUTBOX_SIZE * 0.9)
        disturbances = [disturbance(fault) for fault in faults]
        self.present.seen.sort(key=lambda seen: seen.time)
        presence = check_presence(
            self.present.stays, self.present.seen, self.presence.looks, disturbances, self._calms(), TIMING
        )
        trends = self.samples.trends
        wrong = [*verdict.wrong, *scene.wrong, *self.subscribers.wrong, *self.present.wrong]
        wrong += [*history.violations, *map(str, presence.wrong), *logged]
        for process, lulls in self.samples.lulls.items():
            wrong += what_is_left(process, lulls)
        wrong += what_grows(trends)
        wrong += [f"could not be caused: {failure}" for failure in self.log.failures]
        if "WORKER TIMEOUT" in log:
            wrong.append("hung: gunicorn has ended a worker that did not answer")
        if status != 0:
            wrong.append(f"ended badly: gunicorn's status is {status}")
        return Report(self, lasted, verdict, history, presence, sent, trends, wrong, own_processor_time(), log)

    def _calms(self) -> list[Span]:
        """Return the times in which no fault or lull had an effect on who is there."""
        busy = sorted([(fault.begin, fault.end) for fault in self.log.faults] + self.lulls)
        calms = [(end + TIMING.dead, begin) for (_, end), (begin, _) in zip(busy, busy[1:], strict=False)]
        return [(begin, end) for begin, end in calms if end - begin > CALM]


def outcome_of(end: str) -> str:
    """Return how a connection was refused, in the words of the checker."""
    words = "server rejected WebSocket connection: HTTP "
    if words in end:
        return f"refused {end.partition(words)[2]}"
    return end.replace("refused: ", "refused: the connection ended ", 1)


def own_processor_time() -> float:
    """Return the seconds of processor time of this process, the clients'."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# --- the command -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak")
    parser.add_argument("minutes", nargs="?", type=float, default=10.0, help="how long, without starting and judging")
    parser.add_argument("--into", type=Path, default=ROOT / "build" / "soak", help="a directory for the picture")
    parser.add_argument("--docs", action="store_true", help="put the picture and the figures into docs/project, too")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what decides about all that is random")
    parser.add_argument("--records", action="store_true", help="write down what everybody did and saw, too")
    parser.add_argument("--verbose", action="store_true", help="name each fault when it is over")
    options = parser.parse_args(arguments)
    print(f"The seed is {options.seed}.", flush=True)

    def say(line: str) -> None:
        if options.verbose:
            print(line, flush=True)

    report = Soak(Plan.lasting(options.minutes * 60, options.seed), say).run()
    report.write(options.into, records=options.records)
    if options.docs:
        report.put_into_docs()
    print(report.text(), flush=True)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

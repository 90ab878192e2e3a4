"""Tries to break the promises of presence; scripts/presence prepares its environment and runs this module.

    python -m tests.presence.torture [--minutes N] [--seed N] [--stages single,sentinel,cluster]

For each stage there are real servers and workers, and clients that come to rooms, leave, reload, vanish and come back.
A stage goes in rounds. In a storm, servers and workers are killed, paused, emptied and replaced at random. Then all
stay where they are, until everybody who looks sees exactly who is there. Then they move on, and once nothing of the
storm can be left, comes a calm, in which everything has to be seen within a moment.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from ..history.checker import Fault, Rule
from ..history.faults import TOPOLOGIES, Log, Topology, Workers
from ..history.torture import options_of, tracebacks
from ..support.servers import NOT_INHERITED, NOT_MEASURED, ROOT, WORKER, Server, gunicorn
from .checker import TIMING, Disturbance, Look, Seen, Span, Timing, Truth, Verdict, Wrong, check, converged
from .crowd import Crowd, crowd_of

SITE = ROOT / "tests" / "site"
PRESENT = "django_websocket.present."  # begins the channels on which a room's changes are told
LEASES = "django_websocket:processes"  # the key of the leases, beside a channel of this name
ROSTER = "django_websocket:present:"  # begins the keys of rosters
ASKER = "asker"
LONGEST_WAIT = 15.0  # seconds for a process to end
TOGETHER = 4.0  # seconds between things that several observers saw, of one cause
SETTLING = 0.4  # seconds between two looks at whether everybody sees who is there

# What can be done to servers without the loss of anything, and with it.
HARMLESS = {
    "single": {"subscribers_killed": 4, "clients_killed": 3, "scripts_forgotten": 1, "paused": 4, "restarted": 4},
    "sentinel": {"subscribers_killed": 4, "clients_killed": 3, "scripts_forgotten": 1, "paused": 4},
    "cluster": {"subscribers_killed": 3, "clients_killed": 2, "scripts_forgotten": 1, "paused": 3, "slots_moved": 8},
}
HARMFUL = {
    "single": {"flushed": 3, "restarted_empty": 3, "out_of_memory": 1},
    "sentinel": {
        "flushed": 2,
        "failed_over": 3,
        "failed_over_to_a_lagging_replica": 2,
        "failed_over_while_it_hung": 1,
        "partitioned": 2,
    },
    "cluster": {"flushed": 2, "failed_over": 3, "failed_over_after_a_crash": 2, "restarted_empty": 2, "slots_moved": 2},
}


@dataclass(frozen=True)
class Plan:
    """How a stage goes."""

    seconds: float = 600.0
    seed: int = 1
    timing: Timing = TIMING
    rooms: int = 12
    tabs: int = 150
    workers: int = 4
    stay: float = 12.0  # seconds that a connection lasts on average
    away: float = 40.0  # seconds until a client comes as a new one, at most
    storm: float = 40.0  # seconds
    calm: float = 25.0
    between: tuple[float, float] = (3.0, 8.0)  # seconds between two faults of the servers
    between_workers: tuple[float, float] = (4.0, 10.0)
    longest_pause: float = 5.0
    script: Sequence[str] = ()  # the names of the servers' faults, one after the other, instead of random ones
    workers_script: Sequence[str] = ()

    @property
    def popularity(self) -> dict[str, int]:
        """The rooms, and how popular each is."""
        return {f"room:{number}": max(1, 40 // (number * number)) for number in range(1, self.rooms + 1)}


@dataclass
class Result:
    """What a stage has shown."""

    name: str
    verdict: Verdict
    other: Sequence[str]  # what is wrong beside what the checker finds
    done: Counter[str]
    closes: Counter[str]
    faults: Counter[str]
    failures: Sequence[str]  # faults that could not be caused
    waited: Sequence[float]  # seconds until everybody saw who is there
    calm: float  # seconds of it

    @property
    def wrong(self) -> list[str]:
        """All that is wrong."""
        return [*map(str, self.verdict.wrong), *self.other]

    def some_wrong(self, count: int) -> list[str]:
        """Return some of each kind that is wrong; what several observers saw of a user at a time is one."""
        cases: list[tuple[Wrong, list[str]]] = []
        for one in self.verdict.wrong:
            same = [case for case, _ in cases if _alike(case, one)]
            if same:
                next(observers for case, observers in cases if case is same[-1]).append(one.observer)
            else:
                cases.append((one, []))
        kinds: dict[str, list[str]] = {}
        for one, others in cases:
            more = f"; and {len(others)} more, as {', '.join(dict.fromkeys(others[:3]))}" if others else ""
            kinds.setdefault(one.kind, []).append(f"{one}{more}")
        for text in self.other:
            kinds.setdefault(text.partition(":")[0], []).append(text)
        return [one for found in kinds.values() for one in found[:count]]

    def text(self) -> str:
        """Return the figures."""
        waited = ", ".join(f"{seconds:.1f}" for seconds in self.waited)
        kinds = self.verdict.kinds + Counter(one.partition(":")[0] for one in self.other)
        lines = [
            f"--- {self.name}",
            f"quiet after               {waited} s",
            f"calm                      {self.calm:.0f} s",
            *table("what clients did", self.done),
            *table("closed by the server", self.closes),
            *table("faults", self.faults),
            *(f"could not be caused: {failure}" for failure in self.failures),
            *table("checks", self.verdict.checks),
            *table("excused", self.verdict.excused),
            *table("wrong", kinds),
        ]
        return "\n".join(lines)


def table(title: str, counts: Counter[str]) -> Iterable[str]:
    """Return the lines of a table."""
    yield f"{title:25} {sum(counts.values())}"
    for name, count in counts.most_common():
        yield f"{count:12} {name}"


def _alike(one: Wrong, other: Wrong) -> bool:
    """Whether two things that are wrong probably have one cause."""
    return one[0] == other[0] and one[2:4] == other[2:4] and abs(one.time - other.time) < TOGETHER


class Nothing:
    """Stands for publishers, of which there are none."""

    def hold(self) -> None:
        """Do nothing."""

    def go(self) -> None:
        """Do nothing."""


class Shift(Workers):
    """The workers, of which one may also be told to end."""

    def __init__(self, log: Log, site: Server, longest_pause: float) -> None:
        super().__init__(log, site)
        self._longest_pause = longest_pause

    @property
    def faults(self) -> Mapping[Callable[[], None], int]:
        return {self.killed: 4, self.reloaded: 2, self.paused: 3, self.stopped: 2}

    def stopped(self) -> None:
        """Have a worker end; gunicorn starts another."""
        with self.log.fault("worker stopped"), suppress(ProcessLookupError, IndexError):
            os.kill(self.log.random.choice(self.pids()), signal.SIGTERM)

    def paused(self) -> None:
        with self.log.fault("worker paused", cuts=True), suppress(ProcessLookupError, IndexError):
            pid = self.log.random.choice(self.pids())
            os.kill(pid, signal.SIGSTOP)
            try:
                self.log.pause(0.5, self._longest_pause)
            finally:
                os.kill(pid, signal.SIGCONT)


def disturbance(fault: Fault) -> Disturbance:
    """Return what a fault of the servers may cost."""
    loses = fault.loses or fault.kind.startswith("failover")
    rooms = None
    if fault.channels is not None and LEASES not in fault.channels:
        rooms = frozenset(name.removeprefix(PRESENT) for name in fault.channels)
    return Disturbance(fault.kind, fault.begin, fault.end, fault.resets and not loses, loses, rooms)


class Stage:
    """The servers of a topology, the site, the clients, and a process that asks."""

    def __init__(
        self, name: str, plan: Plan, say: Callable[[str], None] = lambda line: None, records: str = ""
    ) -> None:
        self.name = name
        self.plan = plan
        self.say = say
        self.records = records and f"{records}/{name}"  # where everything is written down, if anywhere
        self.looks: list[Look] = []
        self.calms: list[Span] = []
        self.log = Log(random.Random(f"{plan.seed} servers"))
        self.workers_log = Log(random.Random(f"{plan.seed} workers"))
        self._choices = random.Random(f"{plan.seed} rounds")

    def run(self) -> Result:
        """Run the stage, and judge what was written down."""
        plan = self.plan
        with ExitStack() as stack:
            channels = [*(PRESENT + room for room in plan.popularity), LEASES]
            rules = dict.fromkeys(channels, Rule(1, 1.0))
            topology = stack.enter_context(TOPOLOGIES[self.name](self.log, rules, Nothing()))
            topology.longest_pause = plan.longest_pause
            environment = self._environment(topology)
            args = ["--workers", str(plan.workers), "--graceful-timeout", "10"]
            site = stack.enter_context(
                gunicorn("testsite.wsgi:application", WORKER, cwd=SITE, env=environment, args=args)
            )
            crowd = Crowd(site.port, plan.seed, plan.popularity, plan.stay, plan.away)
            workers = Shift(self.workers_log, site, plan.longest_pause)
            asyncio.run(self._drive(crowd, topology, workers, environment))
            disturbances = self.disturbances
            crowd.seen.sort(key=lambda seen: seen.time)
            verdict = check(crowd.stays, crowd.seen, self.looks, disturbances, self.calms, plan.timing)
            if self.records:
                self._write_down(crowd, verdict, site.log)
            return Result(
                self.name,
                verdict,
                [*crowd.wrong, *tracebacks(site, wanted="Failure")],
                crowd.done,
                crowd.closes,
                Counter(one.kind for one in disturbances),
                [*self.log.failures, *self.workers_log.failures],
                [look.lasted for look in self.looks],
                sum(end - begin for begin, end in self.calms),
            )

    @property
    def disturbances(self) -> list[Disturbance]:
        """What was done to servers and workers."""
        return [disturbance(fault) for fault in (*self.log.faults, *self.workers_log.faults)]

    def _environment(self, topology: Topology) -> dict[str, str]:
        settings = {
            "WEBSOCKET_URLCONF": "testsite.presences",
            "WEBSOCKET_BROKER": topology.broker,
            "WEBSOCKET_DRAIN_WINDOW": 2.0,
        }
        timing = self.plan.timing
        graces = {"grace": timing.grace, "lease": timing.lease, "renewal": timing.renewal}
        return {
            **NOT_MEASURED,
            "TESTSITE_SETTINGS": json.dumps(settings),
            "TESTSITE_GRACES": json.dumps({} if timing == TIMING else graces),
            "DJANGO_SETTINGS_MODULE": "testsite.settings",
        }

    def _write_down(self, crowd: Crowd, verdict: Verdict, log: str) -> None:
        """Write everything to files, for those who look for the cause of something wrong."""
        folder = Path(self.records)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [(one.begin, f"fault {one}") for one in self.disturbances]
        rows += [(begin, f"calm until {end:.3f}") for begin, end in self.calms]
        rows += [(stay.began, f"stay {stay}") for stay in crowd.stays]
        rows += [(seen.time, str(seen)) for seen in crowd.seen]
        rows += [(look.time, f"look after {look.lasted:.1f} s") for look in self.looks]
        rows += [(one.time, f"WRONG {one}") for one in verdict.wrong]
        rows.sort(key=lambda row: row[0])
        (folder / "events.txt").write_text("".join(f"{time:.3f} {text}\n" for time, text in rows))
        (folder / "site.log").write_text(log)

    # --- how it goes ---------------------------------------------------------------------------------------------

    async def _drive(self, crowd: Crowd, topology: Topology, workers: Shift, environment: Mapping[str, str]) -> None:
        """Let everybody in, and go through rounds until the time is over."""
        plan, timing = self.plan, self.plan.timing
        clients = crowd_of(crowd, plan.tabs, random.Random(f"{plan.seed} users"))
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        asking = json.dumps({"channels": [*plan.popularity], "pause": 0.03})
        asker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "testsite.asking", asking),
            cwd=SITE,
            env={**inherited, **environment},
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
        )
        tasks = [asyncio.create_task(self.listen(crowd, asker))]
        tasks += [asyncio.create_task(client.run()) for client in clients]
        until = time.monotonic() + plan.seconds
        try:
            with ThreadPoolExecutor(4) as threads:
                await asyncio.sleep(min(plan.stay, plan.seconds / 8))
                for number in range(1000):
                    await self._storm(threads, topology, workers, number, until)
                    await self.be_quiet(crowd, topology, threads)
                    if time.monotonic() > until:
                        break
                    settled = max([one.end for one in self.disturbances], default=0.0) + timing.dead
                    await asyncio.sleep(max(1.0, settled - time.monotonic()))
                    begin = time.monotonic()
                    await asyncio.sleep(plan.calm)
                    self.calms.append((begin, time.monotonic()))
                    self.say(f"{begin:.3f} to {time.monotonic():.3f}: calm")
                    if time.monotonic() > until:
                        await self.be_quiet(crowd, topology, threads)
                        break
        finally:
            crowd.over = True
            done, pending = await asyncio.wait(tasks[1:], timeout=30)
            with suppress(ProcessLookupError):
                asker.terminate()
            await asyncio.wait_for(asker.wait(), LONGEST_WAIT)
            for task in [*pending, tasks[0]]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def listen(self, crowd: Crowd, asker: asyncio.subprocess.Process) -> None:
        """Write down what the process that asks has got."""
        assert asker.stdout is not None
        while line := await asker.stdout.readline():
            room, begin, end, users, count, error = json.loads(line)
            if error is None:
                crowd.say(Seen(end, ASKER, room, users, count=count, begin=begin))
            crowd.done["answers that failed" if error else "answers"] += 1

    async def _storm(
        self, threads: ThreadPoolExecutor, topology: Topology, workers: Shift, number: int, until: float
    ) -> None:
        """Cause faults for a while: everything, what happens to workers, or what costs the servers nothing."""
        plan, loop = self.plan, asyncio.get_running_loop()
        end = min(time.monotonic() + plan.storm, until)
        servers: dict[str, int] = dict(HARMLESS[self.name]) if number % 3 != 1 else {}
        if number % 3 == 0:
            servers = {**servers, **HARMFUL[self.name]}
        lanes = []
        if plan.script or plan.workers_script:
            names: Sequence[Sequence[str]] = (plan.script, plan.workers_script)
            lanes = [
                loop.run_in_executor(threads, self._follow, topology, self.log, plan.between, names[0]),
                loop.run_in_executor(threads, self._follow, workers, self.workers_log, plan.between_workers, names[1]),
            ]
        else:
            if servers:
                lanes.append(loop.run_in_executor(threads, self._cause, topology, self.log, plan.between, servers, end))
            if number % 3 != 2:
                of_workers = {cause.__name__: weight for cause, weight in workers.faults.items()}
                lanes.append(
                    loop.run_in_executor(
                        threads, self._cause, workers, self.workers_log, plan.between_workers, of_workers, end
                    )
                )
        await asyncio.gather(*lanes)

    def _cause(
        self,
        faulty: Topology | Workers,
        log: Log,
        between: tuple[float, float],
        weights: Mapping[str, int],
        until: float,
    ) -> None:
        """Cause one fault after the other."""
        while True:
            log.pause(*between)
            if time.monotonic() > until:
                return
            (name,) = log.random.choices([*weights], [*weights.values()])
            self._do(faulty, log, name)

    def _follow(
        self, faulty: Topology | Workers, log: Log, between: tuple[float, float], script: Sequence[str]
    ) -> None:
        """Cause the faults of a script."""
        for name in script:
            log.pause(*between)
            self._do(faulty, log, name)

    def _do(self, faulty: Topology | Workers, log: Log, name: str) -> None:
        begin = time.monotonic()
        try:
            getattr(faulty, name)()
        except Exception as error:
            log.failures.append(f"{name}: {type(error).__name__}: {error}")
        self.say(f"{begin:.3f} to {time.monotonic():.3f}: {name}")

    async def be_quiet(self, crowd: Crowd, topology: Topology, threads: ThreadPoolExecutor) -> None:
        """Have all stay where they are, until everybody sees exactly who is there, or long enough."""
        timing, loop = self.plan.timing, asyncio.get_running_loop()
        crowd.emptied = frozenset(self._choices.sample([*crowd.rooms], max(2, len(crowd.rooms) // 4)))
        crowd.quiet = True
        begin = time.monotonic()
        ends = begin + timing.dead
        while True:
            await asyncio.sleep(SETTLING)
            asked = time.monotonic()
            crowd.known.pop(ASKER, None)
            while len(crowd.known.get(ASKER, ())) < len(crowd.rooms) and time.monotonic() < asked + LONGEST_WAIT:
                await asyncio.sleep(0.05)
            keys = await loop.run_in_executor(threads, self._keys, topology)
            now = time.monotonic()
            look = Look(now, copy.deepcopy(crowd.known), keys, now - begin)
            truth = Truth([stay for stay in crowd.stays if stay.gone > begin - 120], self.disturbances, timing)
            complete = not crowd.unsettled and ASKER in look.seen
            if (complete and converged(truth, look)) or now > ends:
                break
        self.looks.append(look)
        crowd.wrong += [f"not connected after {now - begin:.1f} s of quiet: {name}" for name in crowd.unsettled]
        self.say(f"{begin:.3f} to {time.monotonic():.3f}: quiet; rooms to be empty: {sorted(crowd.emptied)}")
        crowd.emptied = frozenset()
        crowd.quiet = False

    def _keys(self, topology: Topology) -> frozenset[str]:
        """Return the rooms of which Redis keeps something."""
        servers = list(dict.fromkeys(map(topology.server_of, topology.rules)))
        keys = [key.decode() for server in servers for key in topology.ask(server, "KEYS", f"*{ROSTER}*")]
        return frozenset(key.partition(ROSTER)[2] for key in keys)


# --- the command -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    options = options_of(arguments, "scripts/presence", minutes=45)
    plan = Plan(seconds=options.minutes * 60 / len(options.stages), seed=options.seed)

    wrong = 0
    for name in options.stages:
        result = Stage(name, plan, options.say, options.records).run()
        print(result.text(), flush=True)
        for one in result.some_wrong(10):
            print(one, flush=True)
        wrong += len(result.wrong)
    print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Tries to break the promise of channels with history; scripts/history prepares its environment and runs this module.

    python -m tests.history.torture [--minutes N] [--seed N] [--stages single,sentinel,cluster]

The promise: a subscriber gets every message published behind its position in order, none twice, none missing without
being told. So for each stage there are real servers, workers, publishers and subscribers that come and go; servers and
workers are killed, paused, emptied and replaced at random; and everything that anybody published or got is written down
and judged by the checker, which also demands a reason for each subscriber that was told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ..support.servers import NOT_INHERITED, NOT_MEASURED, ROOT, WORKER, Server, gunicorn
from .checker import Event, Fault, Got, Key, Last, Life, Opened, Quiet, Rule, Sent, Verdict, check
from .faults import TOPOLOGIES, Log, Topology, Workers
from .subscribers import Crowd, crowd_of

SITE = ROOT / "tests" / "site"
OUTBOX_SIZE = 200_000  # bytes
LONGEST_QUIET = 60.0  # seconds


@dataclass(frozen=True)
class Kind:
    """Channels of a kind: their history, how many there are, and the sizes of their messages in bytes."""

    rule: Rule
    channels: int
    sizes: tuple[int, int]
    away: float  # seconds that a subscriber sometimes stays away


@dataclass(frozen=True)
class Plan:
    """How a stage goes."""

    seconds: float = 600.0
    seed: int = 1
    kinds: Mapping[str, Kind] = field(
        default_factory=lambda: {
            "long": Kind(Rule(2000, 3 * 3600.0), 24, (0, 400), 8),
            "short": Kind(Rule(15, 5.0), 8, (0, 400), 9),
            "large": Kind(Rule(100, 3 * 3600.0), 4, (10_000, 20_000), 12),
        }
    )
    workers: int = 3
    publishers: int = 3  # in each of two processes
    rate: float = 8.0  # messages that each publishes in a second
    subscribers: int = 2  # of each channel
    together: int = 8  # subscribers of several channels
    stay: float = 6.0  # seconds that a connection lasts on average
    longest_pause: float = 6.0  # seconds that a server hangs at most
    quiet: float = 4.0  # seconds without a message, after which none is expected any more
    between: tuple[float, float] = (1.0, 6.0)  # seconds between two faults of the servers
    between_workers: tuple[float, float] = (4.0, 12.0)
    script: Sequence[str] = ()  # the names of the servers' faults, one after the other, instead of random ones
    workers_script: Sequence[str] = ()

    @property
    def rules(self) -> dict[str, Rule]:
        """The history of each channel."""
        return {channel: self.kinds[channel.partition(":")[0]].rule for channel in self.channels}

    @property
    def channels(self) -> dict[str, tuple[int, int]]:
        """The sizes of each channel's messages."""
        return {f"{name}:{number}": kind.sizes for name, kind in self.kinds.items() for number in range(kind.channels)}


@dataclass
class Result:
    """What a stage has shown."""

    name: str
    verdict: Verdict
    published: Counter[str]
    faults: Counter[str]
    closes: Counter[str]
    lives: int
    connections: int
    refused: int
    failures: Sequence[str]  # faults that could not be caused

    @property
    def violations(self) -> list[str]:
        """What breaks the promise."""
        return self.verdict.violations

    def some_violations(self, count: int) -> list[str]:
        """Return a number of violations of each kind."""
        kinds = {kind: [one for one in self.violations if one.startswith(f"{kind}:")] for kind in self.verdict.kinds}
        return [violation for violations in kinds.values() for violation in violations[:count]]

    def text(self) -> str:
        """Return the figures."""
        published = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.published.items()))
        lines = [
            f"--- {self.name}",
            f"messages published        {sum(self.published.values())} ({published})",
            f"messages delivered        {self.verdict.delivered}; {self.verdict.compared} were owed and looked for",
            f"subscribers               {self.lives} in {self.connections} connections; {self.refused} refused",
            *table("closed by the server", self.closes),
            *table("resets, by their causes", self.verdict.resets),
            *table("faults", self.faults),
            *(f"could not be caused: {failure}" for failure in self.failures),
            *table("violations", self.verdict.kinds),
        ]
        return "\n".join(lines)


def table(title: str, counts: Counter[str]) -> Iterable[str]:
    """Return the lines of a table."""
    yield f"{title:25} {sum(counts.values())}"
    for name, count in counts.most_common():
        yield f"{count:12} {name}"


# --- publishers ------------------------------------------------------------------------------------------------------


class Publishers:
    """Processes that publish: one with threads, and one with greenlets."""

    def __init__(self, plan: Plan, directory: Path, environment: Mapping[str, str]) -> None:
        self.logs = [directory / f"{name}.log" for name in ("threads", "greenlets")]
        self.processes = []
        for log in self.logs:
            configuration = {
                "name": log.stem,
                "threads": plan.publishers,
                "gevent": log.stem == "greenlets",
                "seed": plan.seed,
                "rate": plan.rate,
                "log": str(log),
                "channels": plan.channels,
            }
            command = [sys.executable, "-m", "testsite.publishers", json.dumps(configuration)]
            process = subprocess.Popen(
                command, cwd=SITE, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self.processes.append(process)

    def _say(self, word: str) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{word}\n")
            process.stdin.flush()

    def hold(self) -> None:
        """Return when nothing is being published any more."""
        self._say("hold")
        for process in self.processes:
            assert process.stdout is not None
            answer = process.stdout.readline()
            assert answer == "held\n", answer

    def go(self) -> None:
        """Let them go on."""
        self._say("go")

    def keep(self) -> list[Life]:
        """Return what the histories have, as something that a subscriber was sent."""
        self._say("keep")
        lives = []
        for process in self.processes:
            assert process.stdout is not None
            for channel, (begin, end, position, messages) in json.loads(process.stdout.readline()).items():
                events: list[Event] = [Opened(begin, end, {channel: Last(10**9)})]
                for text, behind, _ in messages:
                    message = json.loads(text)
                    events.append(Got(end, channel, Key(message["p"], message["n"]), behind))
                lives.append(Life(f"history of {channel}", [*events, Quiet(end)]))
                if messages and messages[-1][1] != position:
                    raise AssertionError(f"{channel} is at {position}, but its history at {messages[-1][1]}")
        return lives

    def end(self) -> None:
        """End the processes."""
        for process in self.processes:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def sent(self) -> list[Sent]:
        """Return what they published."""
        sent = []
        for log in self.logs:
            for line in log.read_text().splitlines():
                channel, publisher, number, begin, end, size, error = json.loads(line)
                outcome = "certain" if not error else "refused" if "maxmemory" in error else "perhaps"
                sent.append(Sent(channel, Key(publisher, number), begin, end, outcome, size))  # type: ignore[arg-type]
        return sent

    def errors(self) -> Counter[str]:
        """Return the errors that publishing has raised."""
        rows = [json.loads(line) for log in self.logs for line in log.read_text().splitlines()]
        return Counter(row[-1] for row in rows if row[-1])


# --- a stage ---------------------------------------------------------------------------------------------------------


class Stage:
    """The servers of a topology, the site, publishers and subscribers."""

    def __init__(
        self, name: str, plan: Plan, say: Callable[[str], None] = lambda line: None, records: str = ""
    ) -> None:
        self.name = name
        self.plan = plan
        self.say = say
        self.records = records and f"{records}/{name}"  # where everything is written down, if anywhere

    def run(self) -> Result:
        """Run the stage, and judge what was written down."""
        plan = self.plan
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            log = Log(random.Random(f"{plan.seed} servers"))
            held = Held()
            topology = stack.enter_context(TOPOLOGIES[self.name](log, plan.rules, held))
            topology.longest_pause = plan.longest_pause
            environment = self._environment(topology)
            args = ["--workers", str(plan.workers), "--graceful-timeout", "5"]
            site = stack.enter_context(
                gunicorn("testsite.wsgi:application", WORKER, cwd=SITE, env=environment, args=args)
            )
            inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
            publishers = Publishers(plan, directory, {**inherited, **environment})
            stack.callback(publishers.end)
            held.publishers = publishers
            workers_log = Log(random.Random(f"{plan.seed} workers"))
            crowd = asyncio.run(self._drive(topology, Workers(workers_log, site), publishers))
            publishers.end()
            sent = publishers.sent()
            faults = [*log.faults, *workers_log.faults]
            if self.records:
                self._write_down(sent, crowd.lives, faults, site.log)
            verdict = check(sent, crowd.lives, faults, plan.rules, OUTBOX_SIZE * 0.9)
            verdict.violations += [*crowd.wrong, *tracebacks(site)]
            for error, count in publishers.errors().most_common():
                self.say(f"{count:6} times publish raised: {error}")
            return Result(
                self.name,
                verdict,
                Counter(message.outcome for message in sent),
                Counter(fault.kind for fault in faults),
                crowd.closes,
                len(crowd.lives),
                crowd.connections,
                crowd.refused,
                [*log.failures, *workers_log.failures],
            )

    def _write_down(self, sent: Sequence[Sent], lives: Sequence[Life], faults: Sequence[Fault], log: str) -> None:
        """Write everything to files, for those who look for the reason of a violation."""
        folder = Path(self.records)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [(fault.begin, f"fault {fault}") for fault in faults]
        rows += [(message.begin, f"sent {message}") for message in sent]
        rows += [
            (getattr(event, "time", 0) or getattr(event, "begin", 0), f"{life.name} {event}")
            for life in lives
            for event in life.events
        ]
        rows.sort(key=lambda row: row[0])
        (folder / "events.txt").write_text("".join(f"{time:.3f} {text}\n" for time, text in rows))
        (folder / "site.log").write_text(log)

    def _environment(self, topology: Topology) -> dict[str, str]:
        history = {
            f"{name}:*": {"messages": kind.rule.messages, "seconds": int(kind.rule.seconds)}
            for name, kind in self.plan.kinds.items()
        }
        settings = {
            "WEBSOCKET_URLCONF": "testsite.history",
            "WEBSOCKET_BROKER": topology.broker,
            "WEBSOCKET_HISTORY": history,
            "WEBSOCKET_OUTBOX_SIZE": OUTBOX_SIZE,
        }
        return {
            **NOT_MEASURED,
            "TESTSITE_SETTINGS": json.dumps(settings),
            "DJANGO_SETTINGS_MODULE": "testsite.settings",
        }

    async def _drive(self, topology: Topology, workers: Workers, publishers: Publishers) -> Crowd:
        """Let everybody in, cause faults, and wait until it is quiet."""
        plan = self.plan
        away = {name: kind.away for name, kind in plan.kinds.items()}
        crowd = Crowd(workers.site.port, plan.seed, plan.stay, away)
        choices = random.Random(f"{plan.seed} together")
        groups = [
            choices.sample([name for name in plan.channels if "large" not in name], 3) for _ in range(plan.together)
        ]
        subscribers = crowd_of(crowd, dict.fromkeys(plan.channels, plan.subscribers), groups)
        tasks = [asyncio.create_task(subscriber.run()) for subscriber in subscribers]
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(3) as threads:
            until = time.monotonic() + plan.seconds
            lanes = [
                loop.run_in_executor(threads, self._cause, topology, topology.log, plan.between, plan.script, until),
                loop.run_in_executor(
                    threads, self._cause, workers, workers.log, plan.between_workers, plan.workers_script, until
                ),
            ]
            await asyncio.gather(*lanes)
            crowd.ending.set()
            await asyncio.sleep(plan.quiet)  # everybody is there, and all goes well for a while
            await loop.run_in_executor(threads, publishers.hold)
            stopped = time.monotonic()
            while time.monotonic() < min(stopped + LONGEST_QUIET, max(stopped, crowd.latest) + plan.quiet):
                await asyncio.sleep(0.1)
            crowd.over.set()
            done, pending = await asyncio.wait(tasks, timeout=30)
            for task in pending:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()
            crowd.wrong += [f"not connected at the end: {one.name}" for one in subscribers if not one.there_at_the_end]
            crowd.lives += await loop.run_in_executor(threads, publishers.keep)
        return crowd

    def _cause(
        self,
        faulty: Topology | Workers,
        log: Log,
        between: tuple[float, float],
        script: Sequence[str],
        until: float,
    ) -> None:
        """Cause one fault after the other."""
        weights = faulty.faults
        names = iter(script)
        while time.monotonic() < until:
            log.pause(*between)
            if script:
                name = next(names, None)
                if name is None:
                    return
                cause: Callable[[], None] = getattr(faulty, name)
            else:
                (cause,) = log.random.choices([*weights], [*weights.values()])
            begin = time.monotonic()
            try:
                cause()
            except Exception as error:
                log.failures.append(f"{cause.__name__}: {type(error).__name__}: {error}")
            self.say(f"{begin:.3f} to {time.monotonic():.3f}: {cause.__name__}")


class Held:
    """Stands for the publishers before they are started."""

    publishers: Publishers | None = None

    def hold(self) -> None:
        """Return when nothing is being published any more."""
        if self.publishers is not None:
            self.publishers.hold()

    def go(self) -> None:
        """Let them go on."""
        if self.publishers is not None:
            self.publishers.go()


def tracebacks(site: Server, *, wanted: str = "") -> list[str]:
    """Return the last lines of the tracebacks in a site's log, each once, without those that have the name `wanted`."""
    found: Counter[str] = Counter()
    lines = iter(site.log.splitlines())
    for line in lines:
        if line.startswith("Traceback"):
            found[next((line for line in lines if line and not line.startswith((" ", "Traceback"))), "")] += 1
    told = [(line, count) for line, count in found.most_common() if not (wanted and wanted in line)]
    return [f"traceback: {line} ({count} times)" for line, count in told]


# --- the command -----------------------------------------------------------------------------------------------------


def options_of(arguments: Sequence[str], program: str, *, minutes: float) -> argparse.Namespace:
    """Return the options of a script that tortures: the numbers, the list of stages, and `say`, which names faults."""
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--minutes", type=float, default=minutes, help="how long all stages take together")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what decides about all that is random")
    parser.add_argument("--stages", default=",".join(TOPOLOGIES), help="which of them, with commas between them")
    parser.add_argument("--verbose", action="store_true", help="name each fault when it is over")
    parser.add_argument("--records", default="", help="a directory for what everybody did and saw, and the site's log")
    options = parser.parse_args(arguments)
    options.stages = options.stages.split(",")
    if not {*options.stages} <= {*TOPOLOGIES}:
        parser.error(f"--stages takes some of {','.join(TOPOLOGIES)}")
    print(f"The seed is {options.seed}.", flush=True)

    def say(line: str) -> None:
        if options.verbose:
            print(line, flush=True)

    options.say = say
    return options


def main(arguments: Sequence[str]) -> int:
    options = options_of(arguments, "scripts/history", minutes=60)
    plan = Plan(seconds=options.minutes * 60 / len(options.stages), seed=options.seed)

    violations = 0
    for name in options.stages:
        result = Stage(name, plan, options.say, options.records).run()
        print(result.text(), flush=True)
        for violation in result.some_violations(10):
            print(violation, flush=True)
        violations += len(result.violations)
    print(f"{violations} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

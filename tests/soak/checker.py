"""Judges what the clients of the soak have seen: each end has a cause, each message an answer, each group its order.

The checker knows nothing of the package. It compares what clients say happened to them with what was done to the
servers meanwhile. What subscribers of channels saw is judged by the checkers of tests/history and tests/presence. All
times are those of time.monotonic(), which the processes of a machine share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..history.checker import Fault

# What is done to the servers.
KILLED, RELOADED, NGINX, REDIS, CUT = (
    "worker killed",
    "reload",
    "nginx reloaded",
    "restart with its data",
    "CLIENT KILL TYPE pubsub",
)

# Seconds after a fault in which its effects may still be seen.
AT_ONCE = 3.0  # a killed process' connections end with it; the rest is for a client on a busy machine
DRAINING = 20.0  # a worker that is reloaded tells its clients, and ends their handshakes, before graceful_timeout
RECOVERING = 15.0  # processes connect to Redis again after at most 10 s
NGINX_ENDS = 25.0  # nginx keeps its old processes until worker_shutdown_timeout, which is 15 s here

STOOD_STILL = "machine stood still"
AWAITED = 15.0  # longer than a client has for the answer to a ping

# How a connection may end that its client has not ended, and what explains it: the beginning of its outcome, and the
# faults, each with the seconds in which it does so. Anything else is wrong: a close with 1011, for example.
EXPLAINED: Mapping[str, Mapping[str, float]] = {
    "closed 1012 restart": {RELOADED: DRAINING},
    "closed 1012 messages may have been missed": {REDIS: RECOVERING, CUT: RECOVERING},
    "closed 1013": {REDIS: RECOVERING},
    "closed 1006": {KILLED: AT_ONCE, NGINX: NGINX_ENDS},
    # The worker has got the request, and is killed before it has answered; nginx says 502, and gunicorn nothing.
    "refused 502": {KILLED: AT_ONCE},
    "refused: the connection ended": {KILLED: AT_ONCE},
    # A view that subscribes asks Redis first.
    "refused 503": {REDIS: RECOVERING},
    "closed 1011 no answer to a ping": {STOOD_STILL: AWAITED},
}

INTERRUPTED = ("closed 1006", "closed 1012", "ended", "no answer", "refused 502")  # of those who are rude

LONGEST_WAIT = 5.0  # seconds for an answer, whatever happens to other workers and to Redis, on a busy machine


class Visit(NamedTuple):
    """A connection of a client, from its point of view.

    `outcome` says how it ended: "left", if by the client; otherwise "closed" with the code and the reason (1006 if
    there was no close frame), or "refused" with the status. `expected` are outcomes that are right without any fault,
    by their beginnings.
    """

    client: str
    begin: float
    end: float
    outcome: str
    expected: Sequence[str] = ("left",)
    rude: bool = False
    reads_late: bool = False


class Waited(NamedTuple):
    """A client has waited for an answer."""

    client: str
    begin: float
    seconds: float


class Said(NamedTuple):
    """A message that a member has told its group; `heard` is whether it has come back to the member itself."""

    by: str
    number: int
    time: float
    heard: bool


@dataclass
class Hearing:
    """What a member has heard in one connection: the numbers of each member's messages, in order of arrival."""

    member: str
    heard: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class Verdict:
    """What a check has found."""

    wrong: list[str] = field(default_factory=list)
    explained: Counter[str] = field(default_factory=Counter)  # ends, by their outcomes and what explains them
    checked: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, time: float, text: str) -> None:
        """Take note of something wrong."""
        self.wrong.append(f"{kind}: at {time:.3f}: {text}")

    @property
    def kinds(self) -> Counter[str]:
        """What is wrong, by the first words."""
        return Counter(text.partition(":")[0] for text in self.wrong)


def explanation(outcome: str, begin: float, end: float, faults: Iterable[Fault]) -> str | None:
    """Return the fault that explains how a connection ended between two moments, if one does."""
    for beginning, kinds in EXPLAINED.items():
        if outcome.startswith(beginning):
            for fault in faults:
                if fault.kind in kinds and fault.meets(begin - kinds[fault.kind], end):
                    return fault.kind
    return None


def check_visits(visits: Iterable[Visit], faults: Sequence[Fault], verdict: Verdict) -> None:
    """Check that each connection ended as it should, or that a fault explains how it did."""
    for visit in visits:
        verdict.checked["ends of connections"] += 1
        if visit.outcome.startswith(tuple(visit.expected)):
            continue
        # What ended a connection happened when it ended; a refusal, while it was asked for.
        during = visit.reads_late or visit.outcome.startswith("refused")
        begin = visit.begin if during else visit.end
        cause = explanation(visit.outcome, begin, visit.end, faults)
        if cause is None and visit.rude and visit.outcome.startswith(INTERRUPTED):
            ends = (explanation(end, visit.begin, visit.end, faults) for end in ("closed 1006", "closed 1012 restart"))
            cause = next(filter(None, ends), None)
        if cause is None:
            expected = " or ".join(visit.expected)
            verdict.add("wrong end", visit.end, f"{visit.client}: {visit.outcome}, instead of {expected}")
        else:
            verdict.explained[f"{visit.outcome} ({cause})"] += 1


def check_waits(waits: Iterable[Waited], faults: Sequence[Fault], verdict: Verdict) -> None:
    """Check that no client waited for long, whatever happened to others, unless the machine stood still."""
    stills = [fault for fault in faults if fault.kind == STOOD_STILL]
    for wait in waits:
        stood = sum(fault.end - fault.begin for fault in stills if fault.meets(wait.begin, wait.begin + wait.seconds))
        if wait.seconds - stood > LONGEST_WAIT:
            verdict.add("late answer", wait.begin, f"{wait.client} waited for {wait.seconds:.1f} s")


def check_group(said: Iterable[Said], hearings: Iterable[Hearing], faults: Sequence[Fault], verdict: Verdict) -> None:
    """Check that members of a group heard each message of another once, in its order, and none was left out."""
    times: dict[tuple[str, int], float] = {}
    for one in said:
        verdict.checked["messages to a group"] += 1
        times[one.by, one.number] = one.time
        if not one.heard and not _away(one.time, faults):
            verdict.add("not heard", one.time, f"{one.by} has not heard its own number {one.number}")
    for hearing in hearings:
        for by, numbers in hearing.heard.items():
            verdict.checked["messages of a group"] += len(numbers)
            for before, number in zip(numbers, numbers[1:], strict=False):
                time = times.get((by, number), 0.0)
                if number <= before:
                    kind = "heard twice" if number == before else "out of order"
                    verdict.add(kind, time, f"{hearing.member} heard {number} of {by} after {before}")
                missing = [
                    other
                    for other in range(before + 1, number)
                    if (by, other) in times and not _away(times[by, other], faults)
                ]
                if missing:
                    verdict.add("left out", time, f"{hearing.member} has not heard {missing} of {by}")


def _away(time: float, faults: Iterable[Fault]) -> bool:
    """Whether a message that was said at a moment may be lost, because Redis was away."""
    return any(
        fault.kind in (REDIS, CUT) and fault.begin - AT_ONCE <= time <= fault.end + RECOVERING for fault in faults
    )

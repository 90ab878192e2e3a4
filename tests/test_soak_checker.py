"""The checkers of the soak: they find each fault that is planted in an account without any, and nothing else."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .history.checker import Event, Fault, Got, Key, Life, Live, Opened, Quiet, Sent, Told
from .history.checker import check as check_history
from .soak.checker import (
    CUT,
    KILLED,
    NGINX,
    REDIS,
    RELOADED,
    STOOD_STILL,
    Hearing,
    Said,
    Verdict,
    Visit,
    Waited,
    check_group,
    check_visits,
    check_waits,
)
from .soak.growth import LULLS, Lull, kendall, trends_of, what_grows, what_is_left
from .soak.run import LIVE
from .support.processes import stand_still
from .support.servers import ROOT
from .support.waiting import DEADLINE, eventually

# --- ends ------------------------------------------------------------------------------------------------------------


def verdict_of(*visits: Visit, faults: list[Fault] | None = None) -> Verdict:
    verdict = Verdict()
    check_visits(visits, faults or [], verdict)
    return verdict


def test_a_client_that_leaves_and_one_that_is_rude_end_as_they_should() -> None:
    verdict = verdict_of(
        Visit("chatty", 1.0, 2.0, "left"),
        Visit("rude", 1.0, 2.0, "closed 1002 it is not masked (unmasked)", ("closed 1002",)),
    )
    assert verdict.wrong == []
    assert verdict.checked["ends of connections"] == 2


@pytest.mark.parametrize(
    "visit",
    [
        Visit("chatty", 1.0, 2.0, "closed 1011"),
        Visit("chatty", 1.0, 2.0, "closed 1006"),
        Visit("chatty", 1.0, 2.0, "closed 1012 restart"),
        Visit("chatty", 1.0, 2.0, "refused 503"),
        Visit("rude", 1.0, 2.0, "closed 1008 (unmasked)", ("closed 1002",)),
        Visit("rude", 1.0, 2.0, "still open (unmasked)", ("closed 1002",)),
        Visit("rude", 1.0, 2.0, "closed 1002 (too large)", ("closed 1009",), rude=True),
    ],
)
def test_a_wrong_end_without_a_cause_is_found(visit: Visit) -> None:
    verdict = verdict_of(visit)
    assert {*verdict.kinds} == {"wrong end"}
    assert visit.outcome in verdict.wrong[0]


@pytest.mark.parametrize(
    ("outcome", "kind", "within"),
    [
        ("closed 1006", KILLED, 2.0),
        ("closed 1006", NGINX, 20.0),
        ("closed 1012 restart", RELOADED, 15.0),
        ("closed 1012 messages may have been missed", REDIS, 10.0),
        ("closed 1012 messages may have been missed", CUT, 10.0),
        ("refused 502", KILLED, 2.0),
    ],
)
def test_a_fault_explains_an_end_for_a_while(outcome: str, kind: str, within: float) -> None:
    for fault, wrong in (
        (Fault(kind, 100.0, 101.0), []),
        (Fault(kind, 100.0 - 60.0, 101.0 - 60.0), ["wrong end"]),
        (Fault(kind, 200.0, 201.0), ["wrong end"]),
        (Fault("another", 100.0, 101.0), ["wrong end"]),
    ):
        verdict = verdict_of(Visit("chatty", 90.0, 101.0 + within, outcome), faults=[fault])
        assert [*verdict.kinds] == wrong
        assert sum(verdict.explained.values()) == (not wrong)


def test_no_fault_explains_a_close_with_another_code() -> None:
    """A killed worker cannot send 1011, and a reload has to tell its clients."""
    faults = [Fault(kind, 100.0, 101.0) for kind in (KILLED, RELOADED, NGINX, REDIS, CUT)]
    for outcome in ("closed 1011", "closed 1000", "closed 1008 slow"):
        assert verdict_of(Visit("chatty", 90.0, 101.0, outcome), faults=faults).kinds["wrong end"] == 1
    assert verdict_of(Visit("chatty", 90.0, 101.0, "closed 1006"), faults=faults[1:2]).kinds["wrong end"] == 1


def test_who_reads_late_notices_a_fault_late() -> None:
    for reads_late, wrong in ((True, 0), (False, 1)):
        visit = Visit("slow", 99.0, 109.0, "closed 1006", reads_late=reads_late)
        assert len(verdict_of(visit, faults=[Fault(KILLED, 100.0, 100.1)]).wrong) == wrong
        assert len(verdict_of(visit, faults=[Fault(KILLED, 80.0, 80.1)]).wrong) == 1


def test_who_is_rude_may_be_interrupted_but_not_closed_with_a_wrong_code() -> None:
    for outcome, wrong in (
        ("ended (unmasked)", 0),
        ("closed 1012 restart (unmasked)", 0),
        ("closed 1008 (unmasked)", 1),
    ):
        visit = Visit("rude", 99.0, 101.0, outcome, ("closed 1002",), rude=True)
        assert len(verdict_of(visit, faults=[Fault(KILLED, 100.0, 100.1), Fault(RELOADED, 99.5, 99.6)]).wrong) == wrong
        assert len(verdict_of(visit).wrong) == 1


def test_a_late_answer_is_found() -> None:
    verdict = Verdict()
    check_waits([Waited("chatty", 1.0, 0.2), Waited("chatty", 5.0, 7.0)], [], verdict)
    assert [*verdict.kinds.elements()] == ["late answer"]


# --- the machine -----------------------------------------------------------------------------------------------------


def test_nobody_is_to_blame_while_the_machine_stands_still() -> None:
    stills = [Fault(STOOD_STILL, 100.0, 107.0)]
    for end, wrong in ((99.0, 1), (107.1, 0), (115.0, 0), (130.0, 1)):
        visit = Visit("idle", 90.0, end, "closed 1011 no answer to a ping")
        assert len(verdict_of(visit, faults=stills).wrong) == wrong
    for begin, seconds, wrong in ((100.0, 7.3, 0), (99.0, 13.0, 1), (80.0, 7.3, 1)):
        verdict = Verdict()
        check_waits([Waited("chatty", begin, seconds)], stills, verdict)
        assert len(verdict.wrong) == wrong


STANDS_STILL = """
from tests.support.standstills import standstills
lasted = []
with standstills(lambda begin, end: lasted.append(end - begin)):
    input()
    input()
print(sum(lasted))
"""


def test_a_standstill_is_noticed() -> None:
    command = [sys.executable, "-c", STANDS_STILL]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert eventually(lambda: len(list(Path(f"/proc/{process.pid}/task").iterdir())) == 2), "there is no thread"
        os.kill(process.pid, signal.SIGSTOP)
        lasted = stand_still(process.pid, 1.5)
        output, _ = process.communicate("\n", timeout=DEADLINE)
    assert float(output) >= lasted - 0.3


# --- groups ----------------------------------------------------------------------------------------------------------


def group(numbers: list[int], faults: list[Fault] | None = None, heard: bool = True) -> list[str]:
    said = [Said("ann", number, 100.0 + number, heard or number != 5) for number in range(1, 11)]
    verdict = Verdict()
    check_group(said, [Hearing("bob", {"ann": numbers})], faults or [], verdict)
    return [*verdict.kinds]


def test_a_member_hears_each_message_of_another_once_and_in_order() -> None:
    assert group([*range(3, 9)]) == []
    assert group([3, 4, 6, 7]) == ["left out"]
    assert group([3, 4, 4, 5]) == ["heard twice"]
    assert group([3, 5, 4, 6]) == ["left out", "out of order"]
    assert group([*range(3, 9)], heard=False) == ["not heard"]


def test_a_group_may_miss_what_was_said_while_redis_was_away() -> None:
    assert group([3, 4, 6, 7], [Fault(REDIS, 104.0, 106.0)], heard=False) == []
    assert group([3, 4, 6, 7], [Fault(REDIS, 10.0, 11.0)]) == ["left out"]
    assert group([3, 4, 6, 7], [Fault(KILLED, 104.0, 106.0)]) == ["left out"]


# --- channels without a history --------------------------------------------------------------------------------------

CHANNEL = "live:0"


def channel(numbers: list[int], *more: Event, faults: list[Fault] | None = None) -> set[str]:
    """Judge a listener that has got messages with these numbers; a second lies between two of ten messages."""
    sent = [Sent(CHANNEL, Key("ann", number), 100.0 + number, 100.1 + number, "certain") for number in range(10)]
    opened = Opened(102.5, 102.6, {CHANNEL: Live()})
    got = [Got(100.2 + number, CHANNEL, Key("ann", number)) for number in numbers]
    return {*check_history(sent, [Life("bob", [opened, *got, *more])], faults or [], {CHANNEL: LIVE}).kinds}


def test_a_listener_misses_nothing_while_it_is_connected() -> None:
    assert channel([*range(3, 10)], Quiet(120.0)) == set()
    assert channel([3, 4, 6, 7]) == {"missing"}
    assert channel([3, 4, 5], Quiet(120.0)) == {"missing"}
    assert channel([3, 4, 4, 5, 6]) == {"twice"}
    assert channel([3, 5, 4, 6]) == {"out of order"}


def test_a_listener_is_told_that_it_may_have_missed_something_only_when_redis_was_away() -> None:
    told = Told(105.9, [CHANNEL])
    assert channel([3, 4], told, faults=[Fault(REDIS, 105.0, 105.5, cuts=True)]) == set()
    assert channel([3, 4], told, faults=[Fault(KILLED, 105.0, 105.5)]) == {"unexplained reset"}
    assert channel([3, 4], told) == {"unexplained reset"}


# --- growth ----------------------------------------------------------------------------------------------------------

Shape = Callable[[float], float]
EVERY = 60.0  # seconds between two lulls
EACH = 150  # connections in the meantime


def grows(shape: Shape, name: str = "memory", noise: float = 100.0, lulls: int = 40, seed: int = 1) -> bool:
    """Whether a number is taken for growing; `shape` tells it for each hour of the process's life."""
    choices = random.Random(seed)
    points = [
        Lull(number * EVERY, number * EACH, {name: shape(number * EVERY / 3600) + choices.gauss(0, noise)})
        for number in range(1, lulls)
    ]
    trends = trends_of("worker 1", points, 0.0)
    assert len(trends) == 1
    assert bool(what_grows(trends)) == trends[0].grows
    return trends[0].grows


CONNECTIONS = EACH * 3600 / EVERY  # in an hour


@pytest.mark.parametrize("seed", range(20))
def test_what_does_not_grow_is_not_taken_for_growing(seed: int) -> None:
    assert not grows(lambda hours: 60_000, noise=300, seed=seed)
    # Allocators take and return much at once.
    assert not grows(lambda hours: 60_000, noise=1000, lulls=16, seed=seed)
    # Caches fill, and memory reaches the peak that it keeps.
    assert not grows(lambda hours: 60_000 - 8000 * 2 ** (-hours * 12), seed=seed)
    # Once, something is loaded late.
    assert not grows(lambda hours: 60_000 + 500 * (hours > 0.5), seed=seed)
    assert not grows(lambda hours: 20, "descriptors", noise=1, seed=seed)
    assert not grows(lambda hours: 60_000 - 3000 * hours, seed=seed)


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_is_found(seed: int) -> None:
    # In two hours, a KiB for each connection.
    assert grows(lambda hours: 60_000 + 1.0 * CONNECTIONS * hours, noise=1000, lulls=120, seed=seed)
    assert grows(lambda hours: 200_000 + CONNECTIONS * hours, "blocks", noise=500, seed=seed)
    assert grows(lambda hours: 20_000 + CONNECTIONS * hours, "objects", noise=300, seed=seed)
    assert grows(lambda hours: 20 + 0.01 * CONNECTIONS * hours, "descriptors", noise=1, seed=seed)
    assert grows(lambda hours: 10 + 10 * hours, "greenlets", noise=1, seed=seed)
    assert grows(lambda hours: 10 * hours, "databases", noise=0.2, seed=seed)


def test_a_leak_shows_in_ten_minutes() -> None:
    """The numbers of things show it before the memory does."""
    for number in range(1, 3):
        points = [
            Lull(at * 20.0, at * 60, {"objects": 9000 + number * at * 60, "greenlets": 12 + at // 2, "memory": 50_000})
            for at in range(1, 28)
        ]
        assert {trend.name for trend in trends_of("worker 1", points, 0.0) if trend.grows} == {"objects", "greenlets"}


def test_a_process_that_lived_too_short_is_not_judged() -> None:
    lulls = [Lull(number * EVERY, number, {"memory": 1000.0 * number}) for number in range(1, LULLS + 1)]
    assert trends_of("worker 1", lulls, 0.0) == []
    assert trends_of("worker 1", [], 0.0) == []


def test_what_is_left_when_everybody_has_left_is_found() -> None:
    clean = {"connections": 0.0, "views": 0.0, "databases": 0.0, "greenlets": 9.0}
    assert what_is_left("worker 1", [Lull(1.0, 1, clean)]) == []
    for name, text in (("connections", "1 connection"), ("views", "1 view"), ("databases", "1 database connection")):
        (found,) = what_is_left("worker 1", [Lull(1.0, 1, clean), Lull(2.0, 1, {**clean, name: 1.0})])
        assert found == f"left behind: worker 1 at 2.000: {text}"


def test_kendall_tells_how_sure_a_rise_is() -> None:
    assert kendall([1, 2, 3, 4, 5, 6, 7, 8]) > 3
    assert kendall([8, 7, 6, 5, 4, 3, 2, 1]) < -3
    assert kendall([1, 2, 1, 2, 1, 2, 1, 2]) < 1
    assert kendall([1, 1, 1, 1]) == 0

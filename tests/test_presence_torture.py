"""scripts/presence: a short run with short graces, with a fault of each kind of a single Redis, and its verdict."""

from __future__ import annotations

import subprocess
from collections import Counter

import pytest

from .presence.checker import Timing, Verdict, Wrong
from .presence.torture import Plan, Result, Stage, main
from .support.servers import ROOT

pytestmark = pytest.mark.slow

PLAN = Plan(
    seconds=24.0,  # behind which no other round begins
    seed=1,
    timing=Timing(grace=4.0, lease=6.0, renewal=1.5, slack=3.0),
    rooms=6,
    tabs=30,
    workers=2,
    stay=3.0,
    away=5.0,
    calm=4.0,
    between=(0.5, 1.2),
    between_workers=(1.5, 2.5),
    longest_pause=1.0,
    script=("subscribers_killed", "restarted", "scripts_forgotten", "paused", "clients_killed", "flushed"),
    workers_script=("paused", "killed", "stopped"),
)


@pytest.mark.timeout(120)
def test_the_promises_hold_through_a_little_of_everything() -> None:
    result = Stage("single", PLAN).run()
    assert result.wrong == [], "\n".join([result.text(), *result.some_wrong(5)])
    assert result.failures == []
    assert sum(result.faults.values()) == len(PLAN.script) + len(PLAN.workers_script), result.text()
    assert result.done["joins"] > 100
    assert result.done["reloads"] > 10
    assert result.calm >= PLAN.calm
    assert {"told", "missing", "answers", "quiet lists", "join in time", "leave in time"} <= {*result.verdict.checks}


@pytest.mark.parametrize("wrong", [[], [Wrong("flapped", 1.0, "room:1", "7", "somebody", "was told as left")] * 2])
def test_the_status_says_whether_something_was_wrong(
    wrong: list[Wrong], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(self: Stage) -> Result:
        none: Counter[str] = Counter()
        return Result(self.name, Verdict(wrong), [], none, none, none, [], [], 0.0)

    monkeypatch.setattr(Stage, "run", run)
    assert main(["--seed", "7", "--stages", "cluster,single"]) == bool(wrong)
    said = capsys.readouterr().out
    assert "The seed is 7." in said
    assert said.index("--- cluster") < said.index("--- single")
    assert ("flapped: 1.000 room:1 user 7 somebody: was told as left; and 1 more" in said) == bool(wrong)
    assert f"{2 * len(wrong)} wrong" in said


def test_the_usage_names_each_option() -> None:
    usage = subprocess.run([ROOT / "scripts" / "presence", "--help"], capture_output=True, text=True, check=True).stdout
    with pytest.raises(SystemExit) as ended:
        main(["--stages", "nonsense"])
    assert ended.value.code == 2
    for option in ("--minutes", "--seed", "--stages", "--verbose", "--records"):
        assert f" {option}" in usage

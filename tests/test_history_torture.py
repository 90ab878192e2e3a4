"""scripts/history: a short run, with each fault of a single Redis that takes little time, and its verdict."""

from __future__ import annotations

import subprocess
from collections import Counter

import pytest

from .history.checker import Rule, Verdict
from .history.torture import Kind, Plan, Result, Stage, main
from .support.servers import ROOT

pytestmark = pytest.mark.slow

PLAN = Plan(
    seconds=60.0,  # it ends sooner, with the scripts
    seed=1,
    kinds={
        "long": Kind(Rule(1000, 3 * 3600.0), 5, (0, 200), 2.0),
        "short": Kind(Rule(10, 3.0), 2, (0, 200), 4.0),
    },
    workers=2,
    publishers=2,
    rate=6.0,
    subscribers=2,
    together=2,
    stay=2.0,
    longest_pause=1.5,
    quiet=1.5,
    between=(0.3, 1.0),
    between_workers=(1.5, 2.5),
    script=(
        "subscribers_killed",
        "restarted",
        "scripts_forgotten",
        "paused",
        "trimmed",
        "out_of_memory",
        "subscribers_killed",
        "flushed",
        "clock_jumped",
    ),
    workers_script=("killed", "reloaded", "killed"),
)


@pytest.mark.alone  # a busy machine publishes too little for it to say much
@pytest.mark.timeout(180)
def test_the_promise_holds_through_a_little_of_everything() -> None:
    result = Stage("single", PLAN).run()
    assert result.violations == [], result.text()
    assert result.failures == []
    assert sum(result.faults.values()) == len(PLAN.script) + len(PLAN.workers_script), result.text()
    assert {"CLIENT KILL TYPE pubsub", "restart with its data", "pause", "out of memory", "FLUSHALL"} <= {
        *result.faults
    }
    assert result.faults["worker killed"] == 2
    assert result.published["certain"] > 100
    assert result.published["refused"] > 0
    assert result.connections > 50
    assert result.verdict.delivered > 300
    assert result.verdict.compared > 300
    assert sum(result.verdict.resets.values()) > 0


@pytest.mark.parametrize("violations", [[], ["twice: somebody got something again", "twice: and again"]])
def test_the_status_says_whether_something_was_wrong(
    violations: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(self: Stage) -> Result:
        none: Counter[str] = Counter()
        return Result(self.name, Verdict(violations), none, none, none, 0, 0, 0, [])

    monkeypatch.setattr(Stage, "run", run)
    assert main(["--seed", "7", "--stages", "cluster,single"]) == bool(violations)
    said = capsys.readouterr().out
    assert "The seed is 7." in said
    assert said.index("--- cluster") < said.index("--- single")
    for violation in violations:
        assert violation in said


def test_the_usage_names_each_option() -> None:
    usage = subprocess.run([ROOT / "scripts" / "history", "--help"], capture_output=True, text=True, check=True).stdout
    with pytest.raises(SystemExit) as ended:
        main(["--stages", "nonsense"])
    assert ended.value.code == 2
    for option in ("--minutes", "--seed", "--stages", "--verbose", "--records"):
        assert f" {option}" in usage

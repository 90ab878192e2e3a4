"""scripts/autobahn: a run of the suite where there is Python 2.7, and everywhere its verdict on results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from .support import autobahn
from .support.servers import ROOT

pytestmark = pytest.mark.slow

OK = {"behavior": "OK", "behaviorClose": "OK", "reportfile": "case.json"}

# Stands in for the suite's command, and reports the results that the test wants.
SUITE = """
import json, os, sys
spec = json.load(open(sys.argv[sys.argv.index("--spec") + 1]))
results = json.loads(os.environ["RESULTS"])
if results is not None:
    with open(os.path.join(spec["outdir"], "index.json"), "w") as index:
        json.dump({spec["servers"][0]["agent"]: results}, index)
print("the end of the output")
sys.exit(results is None)
"""


def script(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "WSTEST"} | environment
    environment["PYTHON"] = sys.executable  # the Python in which the package under test is installed
    command = [str(ROOT / "scripts" / "autobahn"), *args]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)


def has_python27() -> bool:
    command = [os.environ.get("PYTHON27") or "python2.7", "-c", "import sys; sys.exit(sys.version_info[:2] != (2, 7))"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.timeout(300)  # it may have to install the suite
def test_quick_cases_pass_or_without_python_2_7_the_output_says_how_to_run_them() -> None:
    result = script("--quick")
    if has_python27():
        assert result.returncode == 0, result.stdout + result.stderr
        assert "All 247 cases passed" in result.stdout
    else:
        assert result.returncode == 1
        assert "crossbario/autobahn-testsuite" in result.stderr


def test_without_python_2_7_the_container_image_is_named_with_the_cases() -> None:
    for python in ("/does/not/exist", sys.executable):
        result = script("5.*", "6.4.1", PYTHON27=python)
        assert result.returncode == 1
        assert f"which {python} is not" in result.stderr
        assert "crossbario/autobahn-testsuite wstest" in result.stderr
        assert "scripts/autobahn 5.* 6.4.1\n" in result.stderr


@pytest.mark.parametrize("args", [["--fast"], ["--quick", "5.*"]])
def test_wrong_option_is_refused(args: list[str]) -> None:
    result = script(*args)
    assert result.returncode == 1
    assert result.stderr.startswith("Usage: scripts/autobahn [--quick | CASES...]")


def verdict(behavior: str, closing: str = "OK") -> Mapping[str, str]:
    return OK | {"behavior": behavior, "behaviorClose": closing}


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | int | None]:
    """Runs the cases with a suite that reports these results, and returns the exit status."""
    (tmp_path / "wstest.py").write_text(SUITE)
    monkeypatch.setenv("WSTEST", f"{sys.executable} {tmp_path / 'wstest.py'}")
    monkeypatch.setattr(autobahn, "REPORT", tmp_path / "report")

    def run(results: Mapping[str, Mapping[str, str]] | None, *cases: str) -> str | int | None:
        monkeypatch.setenv("RESULTS", json.dumps(results))
        try:
            return autobahn.main(cases)
        except SystemExit as end:
            return end.code

    return run


def test_informational_cases_pass(
    suite: Callable[..., str | int | None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = {"1.1.1": OK, "7.1.6": verdict("INFORMATIONAL", "INFORMATIONAL")}
    assert suite(results, "1.*", "7.1.6") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "    1 OK",
        "    1 INFORMATIONAL",
        f"All 2 cases passed. The report is {tmp_path / 'report' / 'index.html'}",
    ]
    assert json.loads((tmp_path / "report" / "spec.json").read_text())["cases"] == ["1.*", "7.1.6"]


def test_each_shortfall_is_listed_in_the_order_of_the_cases(
    suite: Callable[..., str | int | None], capsys: pytest.CaptureFixture[str]
) -> None:
    results = {
        "12.1.1": verdict("UNIMPLEMENTED"),
        "6.4.1": verdict("NON-STRICT"),
        "10.1.1": verdict("OK", "UNCLEAN"),
        "6.4.2": verdict("FAILED", "FAILED"),
        "1.1.1": OK,
    }
    assert suite(results, "1.*", "6.*", "10.*", "12.*") == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[0] for line in lines if ", see " in line] == [
        "6.4.1: NON-STRICT",
        "6.4.2: FAILED",
        "10.1.1: UNCLEAN at the close",
        "12.1.1: UNIMPLEMENTED",
    ]
    assert lines[-1].startswith("Not all 5 cases passed.")


def test_all_groups_are_run_unless_cases_are_named(suite: Callable[..., str | int | None], tmp_path: Path) -> None:
    groups = [1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 13]  # there are no others
    assert suite({f"{group}.1.1": OK for group in groups}) == 0
    cases = json.loads((tmp_path / "report" / "spec.json").read_text())["cases"]
    assert cases == [f"{group}.*" for group in groups]


def test_cases_that_do_not_exist_are_a_failure(suite: Callable[..., str | int | None]) -> None:
    assert suite({"1.1.1": OK}, "1.*", "77.*") == "The suite ran no case that matches: 77.*"


def test_suite_that_fails_is_a_failure(suite: Callable[..., str | int | None]) -> None:
    end = suite(None, "1.*")
    assert isinstance(end, str)
    assert "ended with status 1" in end and end.endswith("the end of the output\n")

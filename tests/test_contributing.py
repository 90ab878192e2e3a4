"""CONTRIBUTING.md as it is followed: each command runs, and each name it gives is there. CI does what .ci/run does."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from .support.documentation import GUIDES, blocks, commands
from .support.servers import ROOT, unavailable

pytestmark = pytest.mark.slow

PAGE = "CONTRIBUTING.md"
BIN = Path(sys.executable).parent
WORKFLOW = ".github/workflows/ci.yml"
HOOKS = ".pre-commit-config.yaml"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in the tree, as its own process and not as one of pytest's workers."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)


# The page


def test_set_up_takes_two_commands() -> None:
    first = blocks(PAGE)[0]
    assert first.language == "sh"
    assert [shlex.split(line)[0] for line in first.code.splitlines()] == ["scripts/test", "scripts/demo"]


@pytest.mark.parametrize("line", dict.fromkeys(commands(PAGE)))
def test_command(line: str) -> None:
    words = shlex.split(line)
    variables = list(takewhile(re.compile(r"[A-Z]+=").match, words))
    program, *arguments = words[len(variables) :]
    script = ROOT / program
    assert os.access(script, os.X_OK)
    if program == "scripts/test" and arguments:  # in this environment; the script would prepare its own
        done = run(BIN / "pytest", "-q", "-n", "0", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout
    else:  # too long for a test; what it is given is an argument that its own comment explains
        usage = script.read_text().partition("\nset -")[0]
        for word in (*variables, *arguments):
            assert word in usage or (word.isdecimal() and re.search(r"\[(SECONDS|MINUTES)\]", usage)), (
                f"{program} does not explain {word!r}"
            )


def test_names_and_files_on_the_pages_are_there() -> None:
    code = [path.read_text() for folder in ("django_websocket", "tests") for path in (ROOT / folder).rglob("*.py")]
    words = {word for text in code for word in re.findall(r"\w+", text)}
    for page in GUIDES:
        prose = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
        for named in re.findall(r"`([^`\n]+)`", prose):
            if re.fullmatch(r"\w+", named):
                assert named in words, f"{page} names {named}"
            elif re.fullmatch(r"[\w.*/-]+", named) and ("/" in named or named.endswith(".py")):
                found = [*ROOT.glob(named), *(ROOT / "django_websocket").glob(named)]
                assert found or named == ".venv", f"{page} names {named}"


def test_pages_name_no_place_of_one_machine() -> None:
    for page in (*GUIDES, "docs/internals.md", WORKFLOW, HOOKS):
        assert not re.search(r"/(?:root|home|work|tmp)/", (ROOT / page).read_text()), page


# The linters, before a commit and in CI


def yaml(text: str) -> Any:
    """Read the part of YAML that the files here use: mappings, lists, lists in brackets, and scalars in one line.

    Raises:
        AssertionError: Something else stands there, or a key stands there twice.
    """
    lines = [
        (len(line) - len(line.lstrip()), line.strip())
        for line in text.splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    value, rest = _node(lines)
    assert not rest, f"the indentation is wrong from here on: {rest[0][1]}"
    return value


Lines = list[tuple[int, str]]


def _node(lines: Lines) -> tuple[Any, Lines]:
    column, first = lines[0]
    if first.startswith("- "):
        items = []
        while lines and lines[0][0] == column and lines[0][1].startswith("- "):
            inside = (column + 2, lines[0][1][2:])
            if re.match(r"[\w-]+:( |$)", inside[1]):
                item, lines = _node([inside, *lines[1:]])
            else:
                item, lines = _scalar(inside[1]), lines[1:]
            items.append(item)
        return items, lines
    mapping: dict[str, Any] = {}
    while lines and lines[0][0] == column:
        match = re.fullmatch(r"([\w-]+):(?: (.+))?", lines[0][1])
        assert match, f"this is no key with a value: {lines[0][1]}"
        assert match[1] not in mapping, f"{match[1]} stands there twice"
        lines = lines[1:]
        if match[2] is None:
            assert lines and lines[0][0] > column, f"{match[1]} has no value"
            mapping[match[1]], lines = _node(lines)
        else:
            mapping[match[1]] = _scalar(match[2])
    return mapping, lines


def _scalar(text: str) -> Any:
    if text.startswith("["):
        assert text.endswith("]"), text
        return [_scalar(item.strip()) for item in text[1:-1].split(",")]
    if text.startswith('"'):
        assert re.fullmatch(r'"[^"\\]*"', text), text
        return text[1:-1]
    assert text[0] not in "'&*!|>%@`{?" and ": " not in text and " #" not in text, f"this needs quotes: {text}"
    return {"true": True, "false": False}.get(text, text)


def usage() -> list[str]:
    """What scripts/lint takes, as it says itself."""
    done = run(ROOT / "scripts" / "lint", "nonsense")
    assert done.returncode == 1
    match = re.fullmatch(r"Usage: scripts/lint \[(.+)\]\n", done.stderr)
    assert match, done.stderr
    return match[1].split(" | ")


def test_hooks_run_each_linter_as_the_script_does() -> None:
    [repository] = yaml((ROOT / HOOKS).read_text())["repos"]
    assert repository["repo"] == "local"  # no version of a tool stands anywhere but in pyproject.toml
    assert [hook["entry"] for hook in repository["hooks"]] == [f"scripts/lint {name}" for name in usage()]
    for hook in repository["hooks"]:
        assert {*hook} == {"id", "name", "entry", "language", "types_or", "pass_filenames"}
        assert hook["language"] == "system" and hook["pass_filenames"] is False


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=lambda command: command[0])
def test_tree_passes_the_linters_that_are_quick(command: list[str]) -> None:
    if not (BIN / "ruff").exists():
        unavailable("ruff is not installed in this environment")
    done = run(BIN / "ruff", *command, "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def scripts_in(text: str) -> set[str]:
    """The scripts that a file calls; comments count for nothing."""
    text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    return {*re.findall(r"\bscripts/(\w+)", text)} - {"lib"}


def test_workflow_runs_what_ci_runs() -> None:
    wanted = scripts_in((ROOT / ".ci" / "run").read_text())
    assert "matrix" in wanted  # in the workflow, the jobs are the matrix
    wanted = wanted - {"matrix"} | scripts_in((ROOT / "scripts" / "matrix").read_text())
    workflow = yaml((ROOT / WORKFLOW).read_text())
    called: set[str] = set()
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            called |= scripts_in(step.get("run", ""))
    assert called == wanted
    assert workflow["env"]["CI"] == "true"  # a test that cannot run is a failure


def test_workflow_has_what_github_needs() -> None:
    workflow = yaml((ROOT / WORKFLOW).read_text())
    assert {"name", "on", "jobs", "permissions"} <= {*workflow}
    for job in workflow["jobs"].values():
        assert {"name", "runs-on", "steps", "timeout-minutes"} <= {*job}
        assert job["steps"][0]["uses"].startswith("actions/checkout@")
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if "run" in step:
                done = run("bash", "-n", "-c", step["run"])
                assert done.returncode == 0, done.stderr
    pythons = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons == re.findall(r'Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())

"""docs/on-call.md: what it says is in the log is what the code logs, and what it names exists."""

from __future__ import annotations

import inspect
import re

import gunicorn.arbiter
import pytest
from django.core.management import get_commands, load_command_class

from .support.servers import ROOT

TEXT = (ROOT / "docs/on-call.md").read_text()
PACKAGE = "\n".join(path.read_text() for path in sorted((ROOT / "django_websocket").rglob("*.py")))
OF_GUNICORN = {"WORKER TIMEOUT"}


def table(first: str) -> list[list[str]]:
    """Return the rows of the table whose first heading is this."""
    lines = TEXT[TEXT.index(f"| {first} |") :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def quoted(column: list[str]) -> set[str]:
    return {found for cell in column for found in re.findall(r"`([^`]+)`", cell)}


def in_pieces() -> str:
    """Return the package's source, with the strings that go over several lines joined."""
    return re.sub(r'"\s*\n\s*f?"', "", PACKAGE)


def test_lines_of_the_log_are_written_so() -> None:
    lines = quoted([row[0] for row in table("you see")] + [row[0] for row in table("code in the log")])
    assert len(lines) > 12
    source = in_pieces()
    assert {line for line in lines - OF_GUNICORN if line not in source} == set()
    for line in OF_GUNICORN & lines:
        assert line in inspect.getsource(gunicorn.arbiter)


def test_commands_know_the_options() -> None:
    commands = re.findall(r"^python manage.py (\w+)(.*?)(?:#.*)?$", TEXT, re.M)
    assert commands
    for name, rest in commands:
        parser = load_command_class(get_commands()[name], name).create_parser("manage.py", name)
        known = {option for action in parser._actions for option in action.option_strings}
        assert set(re.findall(r"--[\w-]+", rest)) <= known


def test_figures_are_those_of_the_metrics() -> None:
    of_metrics = (ROOT / "docs/metrics.md").read_text()
    names = quoted([row[1] for row in table("question")]) - {"status", "code", "by"}
    assert len(names) > 10
    assert {name for name in names if f"| `{name}` |" not in of_metrics} == set()


@pytest.mark.parametrize("first", ["you see", "code in the log", "question"])
def test_tables_have_no_empty_cells(first: str) -> None:
    assert all(all(row) and len(row) == len(table(first)[0]) for row in table(first))

"""Each rule of docs/protocol.md has tests, and each test that is named there exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
PAGE = TESTS.parent / "docs" / "protocol.md"
# The sections that a table must cover, by the RFC in its heading.
SECTIONS = {
    "RFC 6455": [
        *("4.1", "4.2.1", "4.2.2", "4.4", "5.1", "5.2", "5.3", "5.4", "5.5", "5.5.1", "5.5.2", "5.5.3", "5.6", "6.1"),
        *("6.2", "7.1.1", "7.1.2", "7.1.3", "7.1.5", "7.1.6", "7.1.7", "7.2.1", "7.4.1", "7.4.2", "8.1", "9.1", "10.2"),
        *("10.3", "10.4", "10.6", "11.3.1", "11.3.4", "11.3.5"),
    ],
    "RFC 7692": ["5", "5.1", "6", "6.1", "6.2", "7.1", *("7.1.1.1", "7.1.1.2", "7.1.2.1", "7.1.2.2"), "7.2.1", "7.2.2"],
}


def rows() -> list[tuple[str, str, str, str]]:
    """Return the RFC, the sections, the rule and the tests of each row."""
    found, heading = [], ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            heading = line[3:].split(":")[0]
        elif line.startswith("| ") and not line.startswith(("| section", "| ---")):
            section, rule, tests = line.strip("| ").split(" | ")
            found.append((heading, section, rule, tests))
    return found


def names(file: Path) -> set[str]:
    """Return what can follow the file in a test's id: functions, classes, and functions in classes."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{member.name}" for member in node.body if isinstance(member, ast.FunctionDef)}
    return {name for name in found if name.startswith("Test") or name.split("::")[-1].startswith("test_")}


@pytest.mark.parametrize(("rule", "tests"), [pytest.param(row[2], row[3], id=" ".join(row[:3])) for row in rows()])
def test_rule_has_tests_that_exist(rule: str, tests: str) -> None:
    ids = re.findall(r"`([^`]+)`", tests)
    assert ids, "no test checks this rule"
    assert ", ".join(f"`{name}`" for name in ids) == tests
    for name in ids:
        file, _, test = name.partition("::")
        assert (TESTS / file).is_file(), f"there is no tests/{file}"
        assert test in names(TESTS / file), f"there is no {test} in tests/{file}"


@pytest.mark.parametrize("rfc", SECTIONS)
def test_no_section_is_missing(rfc: str) -> None:
    listed = {number for row in rows() if row[0] == rfc for number in re.findall(r"\d+(?:\.\d+)*", row[1])}
    assert set(SECTIONS[rfc]) <= listed

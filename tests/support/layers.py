"""The package as docs/internals.md draws it, its source as it is installed, and which module imports which."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .servers import ROOT

PACKAGE = "django_websocket"
INTERNALS = "docs/internals.md"
NAME = re.compile(r"`([\w./]+)`")


@dataclass(frozen=True)
class Import:
    """One module of the package that imports another; names are without the package's own.

    `when` is "imported" at the top of the module, "called" inside a function, "typed" for the type checker alone.
    """

    module: str
    target: str
    when: str


def section(heading: str) -> str:
    """Return the text of a section of docs/internals.md."""
    text = (ROOT / INTERNALS).read_text()
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{INTERNALS} has no section {heading!r}"
    return found[1]


@cache
def floors() -> list[list[str]]:
    """Return the floors of the table in docs/internals.md, the lowest one first: modules, and folders with a slash."""
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", section("Floors"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(len(rows), 0, -1)), "the floors are not numbered in order"
    return [NAME.findall(names) for _, names in reversed(rows)]


@cache
def public_modules() -> list[str]:
    """Return the modules that docs/internals.md calls public."""
    rows = re.findall(r"^\| (`[^|]+) \|", section("Public modules"), re.MULTILINE)
    return [name for row in rows for name in NAME.findall(row)]


@cache
def sources() -> dict[str, ast.Module]:
    """Return the parsed source of each module of the package as it is installed, by its name without the package's."""
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None and found.origin is not None
    folder = Path(found.origin).parent
    parsed = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        parsed[name] = ast.parse(path.read_text())
    return parsed


def imports(modules: dict[str, ast.Module]) -> list[Import]:
    """Return every import of one module of the package by another."""
    folders = {name.rpartition(".")[0] for name in modules}
    found: dict[Import, None] = {}
    for module, tree in modules.items():
        for node, when in statements(tree):
            for full in imported_names(node, module, is_folder=module in folders):
                if full.partition(".")[0] == PACKAGE:
                    target = full.partition(".")[2]
                    while target not in modules:  # the last part is a function or a class
                        target = target.rpartition(".")[0]
                    found[Import(module, target, when)] = None
    return list(found)


def imported_names(node: ast.stmt, module: str = "", *, is_folder: bool = False) -> list[str]:
    """Return the full names that a statement imports; `module` says from where a relative one counts."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        parts = [PACKAGE, *module.split(".")] if module else [PACKAGE]
        parts = parts[: len(parts) - node.level + is_folder]
        base = ".".join([*parts, node.module] if node.module else parts)
    return [f"{base}.{alias.name}" for alias in node.names]


def statements(node: ast.AST, when: str = "imported") -> Iterator[tuple[ast.stmt, str]]:
    """Go through all statements, each with when it is run; see `Import`."""
    for child in ast.iter_child_nodes(node):
        inside = when
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = "called"
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for statement in child.body:
                yield statement, "typed"
            for statement in child.orelse:
                yield statement, when
            continue
        if isinstance(child, ast.stmt):
            yield child, when
        yield from statements(child, inside)


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Return a circle for each module from which the arrows lead back to it, the shortest ones, each once."""
    found: dict[frozenset[str], list[str]] = {}
    for start in arrows:
        paths = [[start]]
        seen = {start}
        while paths:
            path = paths.pop(0)
            for target in sorted(arrows.get(path[-1], ())):
                if target == start:
                    found.setdefault(frozenset(path), [*path, start])
                    paths = []
                    break
                if target not in seen:
                    seen.add(target)
                    paths.append([*path, target])
    return list(found.values())

"""The figures of benchmarks/FIGURES.md, for tests of pages that quote them."""

from __future__ import annotations

from .servers import ROOT


def tables(page: str) -> list[list[list[str]]]:
    """Return the tables of a page: for each, its rows as their cells, without the line below the head."""
    found: list[list[list[str]]] = [[]]
    for line in (ROOT / page).read_text().splitlines():
        if not line.startswith("|"):
            found.append([])
        elif set(line) - set("|-: "):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    return [table for table in found if table]


def measured(server: str, load: str) -> list[str]:
    """Return what a load has in the tables of servers, without ratios: first its own figure, then µs of CPU."""
    found = []
    for (first, *loads), *rows in tables("benchmarks/FIGURES.md"):
        if first == "server" and load in loads:
            found += [row[loads.index(load) + 1].partition(" ")[0] for row in rows if row[0] == server]
    return found


def growth(server: str, curve: str, at: str) -> str:
    """Return µs of CPU for a message at one size of a curve."""
    (table,) = [table for table in tables("benchmarks/FIGURES.md") if table[0][0] == curve]
    (row,) = [row for row in table if row[0] == server]
    return row[table[0].index(at)]

"""The comparison with other tools quotes no figure that this project has not measured."""

from __future__ import annotations

import re

from .support.servers import ROOT

SERVERS = ("django_websocket", "channels-uvicorn")  # in the columns of the page


def rows(page: str) -> list[list[str]]:
    """Return the rows of all tables of a page, as their cells."""
    lines = (ROOT / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def measured() -> dict[tuple[str, str], str]:
    """Return the first figure of docs/performance.md for each server and load, without its ratio."""
    found: dict[tuple[str, str], str] = {}
    loads: list[str] = []
    for first, *cells in rows("docs/performance.md"):
        if first == "server":
            loads = cells
        for load, cell in zip(loads, cells, strict=False):
            found.setdefault((first, load), cell.partition(" ")[0])
    return found


def test_every_figure_was_measured_by_this_project() -> None:
    figures = {row[0].split("`")[1]: row[1:] for row in rows("docs/comparison.md") if re.match(r"`\w+`: ", row[0])}
    assert len(figures) >= 5
    found = measured()
    assert figures == {load: [found[server, load] for server in SERVERS] for load in figures}


def test_no_cell_of_the_features_is_empty_or_says_nothing_of_its_source() -> None:
    table = [row for row in rows("docs/comparison.md") if len(row) == 6]
    assert [row[1:] for row in table[:1]] == [["this package", "Channels", "Flask-SocketIO", "AnyCable", "Centrifugo"]]
    assert all(all(row[1:]) for row in table)

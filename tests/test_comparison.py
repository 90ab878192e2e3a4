"""README.md and the documentation quote no figure that this project has not measured."""

from __future__ import annotations

import re

from .support.figures import measured, tables

PAGE = "docs/comparison.md"
SERVERS = ("django_websocket", "channels-uvicorn")  # in the columns of the page


def test_every_figure_was_measured_by_this_project() -> None:
    rows = [row for table in tables(PAGE) for row in table if re.match(r"`\w+`: ", row[0])]
    figures = {row[0].split("`")[1]: row[1:] for row in rows}
    assert len(figures) >= 5
    assert figures == {load: [measured(server, load)[0] for server in SERVERS] for load in figures}


def test_figures_for_readers_are_those_of_the_last_run() -> None:
    servers, costs = (table for table in tables("docs/performance.md") if table[0][0] in ("load", "what"))
    shown = {row[0].split("`")[1]: row[1:] for row in servers[1:]}
    assert len(shown) >= 8
    assert shown == {
        load: [measured(server, load)[0] for server in (SERVERS[0], "asgi-uvicorn", SERVERS[1])] for load in shown
    }
    cost = {row[0].split("`")[1]: row[1] for row in costs[1:]}
    assert cost == {load: measured(SERVERS[0], load)[1] for load in cost}


def test_figures_of_the_readme_are_those_of_the_comparison() -> None:
    loads = ("echo", "fanout1000", "connect_login", "idle2000")
    (_, *rows) = next(table for table in tables("README.md") if "Channels" in table[0][-1])
    assert [[figure.removesuffix(" KiB") for figure in row[1:]] for row in rows] == [
        [measured(server, load)[0] for server in SERVERS] for load in loads
    ]


def test_features_are_told_of_each_tool() -> None:
    (head, *rows) = next(table for table in tables(PAGE) if len(table[0]) == 6)
    assert head[1:] == ["this package", "Channels", "Flask-SocketIO", "AnyCable", "Centrifugo"]
    assert rows and all(all(row) for row in rows)

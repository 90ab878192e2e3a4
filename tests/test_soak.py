"""scripts/soak: a minute of it, with each fault, its verdict, and its picture."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from .soak.checker import CUT, KILLED, NGINX, REDIS, RELOADED
from .soak.picture import MOST, Line, Mark, Plot, picture
from .soak.report import BEGIN, END, Report
from .soak.run import Plan, Soak, main
from .support.documentation import commands
from .support.servers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# Few clients, and each fault once.
PLAN = Plan(
    seconds=25.0,
    lull_every=10.0,
    fault_every=3.5,
    sample_every=1.0,
    size=2,
    together=1,
    tabs=4,
    rooms=2,
    rate=3.0,
    reloads=(0.1,),
    script=("restarted", "killed", "nginx_reloaded", "subscribers_killed"),
)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report() -> Report:
    """A minute of everything."""
    return Soak(PLAN).run()


def test_nothing_is_lost_in_a_minute_of_everything(report: Report) -> None:
    assert report.wrong == [], report.text()
    assert {fault.kind for fault in report.soak.log.faults} == {KILLED, RELOADED, NGINX, REDIS, CUT}
    done = report.soak.scene.done
    assert done["answers"] > 200
    assert done["rude"] > 20
    assert done["additions"] > 5
    assert done["heard in a group"] > 10
    assert done["heard by listeners"] > 5
    assert report.history.compared > 50
    assert sum(report.presence.checks.values()) > 50
    assert {"closed 1012 restart", "closed 1006"} <= {end.partition(" (")[0] for end in report.verdict.explained}
    assert len(report.soak.lulls) >= 2
    assert "too short to tell what grows" in report.sentence()


def test_the_picture_and_the_figures_are_written(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path, records=True)
    svg = ElementTree.parse(tmp_path / "soak.svg")
    texts = {element.text for element in svg.iter(f"{SVG}text")}
    assert {"Connections", "Greenlets", "Descriptors", "Time until an answer, ms", "a worker", "redis"} <= texts
    figures = json.loads((tmp_path / "soak.json").read_text())
    assert figures["verdict"] == report.sentence()
    assert figures["wrong"] == list(report.wrong)
    assert "| connections |" in (tmp_path / "soak-figures.md").read_text()
    assert " fault Fault(kind=" in (tmp_path / "events.txt").read_text()


# --- the picture -----------------------------------------------------------------------------------------------------


def drawn(*plots: Plot) -> ElementTree.Element:
    return ElementTree.fromstring(picture("A <title>", 600.0, plots, [Mark("fault", 60.0)], [(120.0, 126.0)]))


def test_a_peak_stays_in_the_picture_whatever_the_number_of_points() -> None:
    points = [(number / 10, 1.0) for number in range(6000)]
    points[4321] = (432.1, 50.0)
    (line,) = [
        path
        for path in drawn(Plot("plot", [Line("line", points)])).iter(f"{SVG}path")
        if path.get("stroke-width") == "1.3"
    ]
    path = line.get("d") or ""
    assert path.count("L") < 1.1 * MOST
    heights = {float(point.split()[1]) for point in path.removeprefix("M").split("L")}
    assert len(heights) == 2


def test_a_line_breaks_where_nothing_was_measured() -> None:
    points = [(0.0, 1.0), (60.0, 2.0), (120.0, math.nan), (180.0, 2.0), (240.0, 900.0)]
    root = drawn(
        Plot("plot", [Line("line", points)], logarithmic=True),
        Plot("empty"),
        Plot("high", [Line("x", points)], from_zero=False),
    )
    lines = [path.get("d") or "" for path in root.iter(f"{SVG}path") if path.get("stroke-width") == "1.3"]
    assert [line.count("M") for line in lines] == [2, 2]
    assert "nan" not in ElementTree.tostring(root, "unicode")
    assert {"A <title>", "fault (1)", "everybody has left", "plot", "minutes"} <= {
        text.text for text in root.iter(f"{SVG}text")
    }


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [[], ["grows: memory of worker 1"]])
def test_the_status_says_whether_something_was_wrong(
    wrong: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plans = []

    def run(self: Soak) -> SimpleNamespace:
        plans.append(self.plan)
        return SimpleNamespace(wrong=wrong, text=lambda: "the text", write=lambda directory, records: directory.mkdir())

    monkeypatch.setattr(Soak, "run", run)
    assert main(["120", "--seed", "7", "--into", str(tmp_path / "here")]) == bool(wrong)
    assert capsys.readouterr().out == "The seed is 7.\nthe text\n"
    assert (tmp_path / "here").is_dir()
    assert (plans[0].seconds, plans[0].seed) == (7200.0, 7)


def test_the_usage_names_each_option() -> None:
    usage = subprocess.run([ROOT / "scripts" / "soak", "--help"], capture_output=True, text=True, check=True).stdout
    for option in ("[MINUTES]", "--into", "--docs", "--seed", "--verbose", "--records"):
        assert f" {option}" in usage


def test_the_page_has_a_place_for_the_figures_and_explains_the_commands() -> None:
    page = ROOT / "docs" / "project" / "soak.md"
    text = page.read_text()
    assert text.index(BEGIN) < text.index(END)
    assert page.with_suffix(".svg").read_text().startswith("<svg ")
    usage = (ROOT / "scripts" / "soak").read_text().partition("\nset -")[0]
    for line in commands("docs/project/soak.md"):
        program, *arguments = line.split()
        assert program == "scripts/soak"
        assert all(word in usage for word in arguments if word.startswith("-"))

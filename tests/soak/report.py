"""What a soak has shown: a verdict, figures for people and for programs, and the picture."""

from __future__ import annotations

import json
import math
import platform
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..history.checker import Got, Sent
from ..history.checker import Verdict as HistoryVerdict
from ..presence.checker import Verdict as PresenceVerdict
from ..support.servers import ROOT
from .checker import Verdict
from .growth import WARM_UP, Trend
from .picture import Line, Mark, Plot, Point, picture

if TYPE_CHECKING:
    from .run import Soak

BUCKETS = 160  # stretches of time for which the picture has a percentile or a rate
SOME = 10  # of each kind that is wrong are told in full
PACKAGES = ("django-gevent-websocket", "django", "gevent", "gunicorn", "redis", "channels")
UNITS = {"memory": "KiB"}
BEGIN, END = "<!-- figures: scripts/soak 120 --docs -->", "<!-- end of figures -->"
PUBLISHERS = {"threads": "publisher, threads", "greenlets": "publisher, greenlets"}


@dataclass
class Report:
    """The result of a soak."""

    soak: Soak
    lasted: float  # seconds, with the end
    verdict: Verdict
    history: HistoryVerdict
    presence: PresenceVerdict
    sent: Sequence[Sent]
    trends: Sequence[Trend]
    wrong: Sequence[str]
    own_processor_time: float
    log: str  # of the site

    @property
    def judged(self) -> list[str]:
        """The workers that lived long enough for a judgement about what grows."""
        return sorted({trend.process for trend in self.trends if trend.process.startswith("worker")})

    def sentence(self) -> str:
        """Return the verdict."""
        if self.wrong:
            return f"{len(self.wrong)} {'things are' if len(self.wrong) > 1 else 'thing is'} wrong."
        if not self.judged:
            return "Nothing promised was lost. It was too short to tell what grows."
        return "Nothing promised was lost, and nothing grew."

    def text(self) -> str:
        """Return the figures, and what is wrong."""
        lines = [f"{name:34} {value}" for name, value in self.counts().items()]
        for title, counts in self.tables().items():
            lines += ["", title, *(f"{count:8} {name}" for name, count in counts.most_common())]
        lines += ["", "what grew", *(f"  {sentence(trend)}" for trend in self.trends)]
        kinds = Counter(text.partition(":")[0] for text in self.wrong)
        told: Counter[str] = Counter()
        lines.append("")
        for text in self.wrong:
            kind = text.partition(":")[0]
            told[kind] += 1
            if told[kind] <= SOME:
                lines.append(f"WRONG {text}")
        lines += [f"WRONG {kind}: {count} of these in all" for kind, count in kinds.items() if count > SOME]
        return "\n".join([*lines, self.sentence()])

    def counts(self) -> dict[str, str]:
        """Return the figures by their names."""
        scene, soak = self.soak.scene, self.soak
        certain = sum(sent.outcome == "certain" for sent in self.sent)
        waits = sorted(scene.waited)
        answers = {
            name: f"{1000 * waits[min(len(waits) - 1, int(part * len(waits)))]:.1f} ms" if waits else "none"
            for name, part in (("half", 0.5), ("99 of 100", 0.99), ("all", 1.0))
        }
        servers = soak.samples.processor_time
        return {
            "minutes": f"{self.lasted / 60:.1f}",
            "connections": f"{soak.connections:,}",
            "messages answered": f"{scene.done['answers']:,}",
            "answered within": ", ".join(f"{name} {text}" for name, text in answers.items()),
            "messages published": f"{len(self.sent):,} ({certain:,} surely)",
            "messages delivered": f"{self.history.delivered:,}",
            "owed, looked for and found": f"{self.history.compared:,}",
            "told that messages may be missing": f"{sum(self.history.resets.values()):,}",
            "heard in groups of Channels": f"{self.verdict.checked['messages of a group']:,}",
            "additions in the database": f"{scene.done['additions']:,}",
            "rude clients": f"{scene.done['rude']:,}",
            "checks of who is there": f"{sum(self.presence.checks.values()):,}",
            "times that everybody left": f"{len(soak.lulls):,}",
            "processor time, servers": f"{servers:.0f} s, {100 * servers / self.lasted:.1f} % of a core",
            "processor time, clients": (
                f"{self.own_processor_time:.0f} s, {100 * self.own_processor_time / self.lasted:.1f} % of a core"
            ),
        }

    def tables(self) -> dict[str, Counter[str]]:
        """Return the counts that have several rows."""
        ends = Counter(f"{visit.outcome} as expected" for visit in self.soak.scene.visits if visit.outcome != "left")
        for explained in self.verdict.explained:
            ends.pop(f"{explained.rpartition(' (')[0]} as expected", None)
        return {
            "faults": Counter(fault.kind for fault in self.soak.log.faults),
            "ends that a fault explains": self.verdict.explained,
            "ends of the rude": ends,
        }

    # --- files ---------------------------------------------------------------------------------------------------

    def write(self, directory: Path, *, records: bool = False) -> None:
        """Write the picture, the figures as JSON and as Markdown, and maybe the records."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "soak.svg").write_text(self.drawn())
        (directory / "soak.json").write_text(json.dumps(self.figures(), indent=1) + "\n")
        (directory / "soak-figures.md").write_text(self.markdown())
        if records:
            self._write_down(directory)

    def put_into_docs(self) -> None:
        """Replace the picture and the figures of the documentation with these."""
        page = ROOT / "docs" / "project" / "soak.md"
        before, _, rest = page.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}\n\n{self.markdown()}\n{END}{after}")
        page.with_suffix(".svg").write_text(self.drawn())

    def figures(self) -> dict[str, Any]:
        """Return all figures."""
        return {
            "verdict": self.sentence(),
            "wrong": list(self.wrong),
            "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
            "seed": self.soak.plan.seed,
            "versions": versions(),
            "counts": self.counts(),
            **{title: dict(counts.most_common()) for title, counts in self.tables().items()},
            "growth": [{**trend._asdict(), "grows": trend.grows} for trend in self.trends],
            "types that became more": self.types(),
            "lulls": {
                name: [[round(lull.time - self.soak.began, 1), lull.connections, lull.values] for lull in lulls]
                for name, lulls in self.soak.samples.lulls.items()
            },
        }

    def types(self) -> dict[str, dict[str, int]]:
        """Return, for each worker, the types of which it has kept more objects, lull by lull, since it was warm."""
        found = {}
        for name, lulls in self.soak.samples.types.items():
            warm = lulls[int(len(lulls) * WARM_UP) :]
            if len(warm) > 1:
                rise = Counter(warm[-1])
                rise.subtract({kind: count for kind, count in warm[0].items() if kind in warm[-1]})
                found[name] = {kind: count for kind, count in rise.most_common(8) if count > 0}
        return found

    def markdown(self) -> str:
        """Return the figures as a part of a page."""
        rows = [
            "| what | how much |",
            "| --- | --- |",
            *(f"| {name} | {value} |" for name, value in self.counts().items()),
        ]
        faults = self.tables()["faults"]
        rows += [f"| {name} | {count} times |" for name, count in faults.most_common()]
        growth = [
            "| what a process holds when everybody has left | at first | at last | rise by the trend | no leak up to |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        growth += [
            f"| {trend.name} of {trend.process} | {number(trend, trend.first)} | {number(trend, trend.last)} | "
            f"{number(trend, trend.rise)} | {number(trend, trend.limit)} |"
            for trend in self.trends
        ]
        said = ", ".join(f"{name} {number}" for name, number in versions().items())
        date = time.strftime("%Y-%m-%d", time.gmtime())
        return "\n".join([f"**{self.sentence()}** ({date}; {said})", "", *rows, "", *growth, ""])

    def _write_down(self, directory: Path) -> None:
        """Write down what everybody did and saw, for those who look for the cause of something wrong."""
        soak = self.soak
        rows: list[tuple[float, str]] = [(fault.begin, f"fault {fault}") for fault in soak.log.faults]
        rows += [(begin, f"lull until {end:.3f}") for begin, end in soak.lulls]
        rows += [(visit.begin, str(visit)) for visit in soak.scene.visits]
        rows += [(sent.begin, str(sent)) for sent in self.sent]
        rows += [(stay.began, str(stay)) for stay in soak.present.stays]
        rows += [(seen.time, str(seen)) for seen in soak.present.seen]
        rows += [
            (getattr(event, "time", 0) or getattr(event, "begin", 0), f"{life.name} {event}")
            for life in [*soak.subscribers.lives, *soak.listeners]
            for event in life.events
        ]
        rows.sort(key=lambda row: row[0])
        (directory / "events.txt").write_text("".join(f"{at:.3f} {text}\n" for at, text in rows))
        (directory / "site.log").write_text(self.log)

    # --- the picture ---------------------------------------------------------------------------------------------

    def drawn(self) -> str:
        """Return the picture."""
        soak = self.soak
        began = soak.began
        workers = [name for name in soak.samples.values if name.startswith("worker")]

        def lines(names: Iterable[str], value: str, scale: float = 1.0) -> list[Line]:
            return [
                Line(
                    "a worker" if name.startswith("worker") else PUBLISHERS.get(name, name),
                    [
                        (at - began, values[value] * scale)
                        for at, values in soak.samples.values.get(name, ())
                        if value in values
                    ],
                    colours.get(name, ""),
                )
                for name in names
            ]

        # gunicorn replaces one worker by another: those that live at once have two colours.
        colours = {name: ("#0072B2", "#56B4E9")[number % 2] for number, name in enumerate(workers)}
        colours["gunicorn"] = "#000000"
        others = ["gunicorn", "nginx", "redis", *PUBLISHERS]
        held = [*lines(["redis"], "clients"), *lines(["redis"], "keys")]
        for line, name in zip(held, ("clients", "keys"), strict=True):
            line.name = name
        plots = [
            Plot("Connections", lines(workers, "connections")),
            Plot("Memory of workers, MiB", lines(workers, "memory", 1 / 1024), from_zero=False),
            Plot(
                "Pieces of memory that Python objects have, thousands", lines(workers, "blocks", 1e-3), from_zero=False
            ),
            Plot("Memory of the others, MiB", lines(others, "memory", 1 / 1024)),
            Plot("Descriptors", lines([*workers, "gunicorn"], "descriptors")),
            Plot("Greenlets", lines(workers, "greenlets")),
            Plot("Connections of the database", lines(workers, "databases")),
            Plot("Redis", held),
            Plot("Time until an answer, ms", self._latency(), logarithmic=True),
            Plot("In a second", self._rates()),
        ]
        marks = [Mark(fault.kind, fault.begin - began) for fault in soak.log.faults]
        lulls = [(begin - began, end - began) for begin, end in soak.lulls]
        title = f"{self.lasted / 60:.1f} minutes of everything at once. {self.sentence()}"
        return picture(title, self.lasted, plots, marks, lulls)

    def _latency(self) -> list[Line]:
        """Return the percentiles of the time until an answer."""
        scene, began = self.soak.scene, self.soak.began
        parts: dict[str, tuple[float, list[Point]]] = {
            "the slowest": (1.0, []),
            "99 of 100 are faster": (0.99, []),
            "half are faster": (0.5, []),
        }
        size = self.lasted / BUCKETS
        at = 0
        for number in range(BUCKETS):
            until = bisect_left(scene.answered, began + (number + 1) * size, at)
            waits = sorted(scene.waited[at:until])
            at = until
            for part, points in parts.values():
                wait = waits[min(len(waits) - 1, int(part * len(waits)))] if waits else math.nan
                points.append(((number + 0.5) * size, 1000 * wait))
        return [Line(name, points) for name, (_, points) in parts.items()]

    def _rates(self) -> list[Line]:
        """Return how much happened in a second."""
        soak = self.soak
        lives = [*soak.subscribers.lives, *soak.listeners]
        delivered = [event.time for life in lives for event in life.events if isinstance(event, Got)]
        began = [visit.begin for visit in soak.scene.visits] + [stay.began for stay in soak.present.stays]
        return [
            self._rate("answers", soak.scene.answered),
            self._rate("delivered", delivered),
            self._rate("published", [sent.begin for sent in self.sent]),
            self._rate("connections", began),
        ]

    def _rate(self, name: str, times: Iterable[float]) -> Line:
        size = self.lasted / BUCKETS
        counts = Counter(int((at - self.soak.began) / size) for at in times)
        return Line(name, [((number + 0.5) * size, counts[number] / size) for number in range(BUCKETS)])


def sentence(trend: Trend) -> str:
    """Return how a number has developed."""
    grows = "GROWS" if trend.grows else "no leak"
    return (
        f"{trend.name} of {trend.process}: {trend.first:.0f} to {trend.last:.0f} {UNITS.get(trend.name, '')}".rstrip()
        + f", trend {trend.rise:+.1f} of {trend.limit:.0f} ({trend.certainty:+.1f} sigma, {trend.lulls} lulls): {grows}"
    )


def number(trend: Trend, value: float) -> str:
    """Return a number with its unit."""
    return f"{value:,.0f} {UNITS.get(trend.name, '')}".rstrip()


def versions() -> dict[str, str]:
    """Return the versions of what runs."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

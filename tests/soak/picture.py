"""Draws what a soak has measured: one SVG of plots above each other, with the faults as lines through all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]  # seconds since the beginning, and a value

WIDTH, LEFT, RIGHT, TOP = 960, 64, 176, 78
HEIGHT, GAP = 104, 34  # of a plot, and between two
MOST = 400  # points of a line; more are not told apart at this width
# Okabe and Ito's colours, which those who see few colours can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")
OF_FAULTS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#8A6D00")


@dataclass
class Line:
    """A line of a plot; it breaks where a value is not a number."""

    name: str
    points: Sequence[Point]
    colour: str = ""


@dataclass
class Plot:
    """One of the plots."""

    title: str
    lines: list[Line] = field(default_factory=list)
    logarithmic: bool = False
    from_zero: bool = True  # otherwise from about the least value, so that a small rise shows


@dataclass
class Mark:
    """A moment in which something was done."""

    name: str
    time: float


def picture(
    title: str, seconds: float, plots: Sequence[Plot], marks: Sequence[Mark], lulls: Sequence[tuple[float, float]]
) -> str:
    """Return the SVG; `lulls` are the times in which nobody was connected."""
    height = TOP + len(plots) * (HEIGHT + GAP) + 28
    right = WIDTH - RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="11" fill="#333">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="15" font-weight="600" fill="#111">{escape(title)}</text>',
        _legend(marks, bool(lulls)),
    ]

    def x(time: float) -> float:
        return LEFT + (right - LEFT) * min(max(time, 0), seconds) / seconds

    bottom = TOP + len(plots) * (HEIGHT + GAP) - GAP
    bands = "".join(
        f"M{x(begin):.1f} {TOP}H{max(x(end), x(begin) + 1):.1f}V{bottom}H{x(begin):.1f}z" for begin, end in lulls
    )
    parts.append(f'<path d="{bands}" fill="#000" fill-opacity=".06"/>')
    for name, colour in _colours(marks).items():
        path = "".join(f"M{x(mark.time):.1f} {TOP}V{bottom}" for mark in marks if mark.name == name)
        parts.append(f'<path d="{path}" stroke="{colour}" stroke-opacity=".45" fill="none"/>')
    for number, plot in enumerate(plots):
        parts.append(_drawn(plot, TOP + number * (HEIGHT + GAP), x, right))
    for time in _round_steps(0, seconds / 60, 8):
        place = x(time * 60)
        parts.append(f'<text x="{place:.1f}" y="{bottom + 16}" text-anchor="middle">{time:g}</text>')
    parts.append(f'<text x="{right + 10}" y="{bottom + 16}">minutes</text>')
    parts.append("</svg>\n")
    return "\n".join(parts)


def _colours(marks: Sequence[Mark]) -> dict[str, str]:
    names = dict.fromkeys(sorted(mark.name for mark in marks))
    return {name: OF_FAULTS[number % len(OF_FAULTS)] for number, name in enumerate(names)}


def _legend(marks: Sequence[Mark], lulls: bool) -> str:
    """Return the names of the faults, each with its line."""
    parts, place = [], float(LEFT)
    for name, colour in _colours(marks).items():
        count = sum(mark.name == name for mark in marks)
        text = f"{name} ({count})"
        parts.append(f'<path d="M{place:.0f} 29v12" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{place + 6:.0f}" y="39">{escape(text)}</text>')
        place += 22 + 6.1 * len(text)
    if lulls:
        parts.append(f'<rect x="{place:.0f}" y="29" width="10" height="12" fill="#000" fill-opacity=".1"/>')
        parts.append(f'<text x="{place + 15:.0f}" y="39">everybody has left</text>')
    return "\n".join(parts)


def _scale(plot: Plot) -> tuple[float, float, dict[float, str]]:
    """Return what the lowest and the highest place of a plot stand for, and the steps in between, with their texts."""
    values = [value for line in plot.lines for _, value in line.points if not math.isnan(value)]
    highest = max(values, default=1.0) or 1.0
    if plot.logarithmic:
        least = min((value for value in values if value > 0), default=1.0)
        top = math.ceil(math.log10(highest))
        bottom = min(math.floor(math.log10(least)), top - 1)
        return bottom, top, {float(power): f"{10.0**power:,g}" for power in range(bottom, top + 1)}
    lowest = 0.0 if plot.from_zero else min(values, default=0.0)
    steps = _round_steps(lowest, highest, 4)
    if not plot.from_zero:
        lowest = min([lowest, *steps])
    return lowest, max([highest, *steps]), {step: f"{step:,g}" for step in steps}


def _drawn(plot: Plot, top: float, x: Callable[[float], float], right: float) -> str:
    """Return a plot."""
    lowest, highest, steps = _scale(plot)

    def y(value: float) -> float:
        if plot.logarithmic and not math.isnan(value):
            value = math.log10(value) if value > 0 else lowest
        return top + HEIGHT * (1 - (value - lowest) / (highest - lowest))

    parts = [f'<text x="{LEFT}" y="{top - 7}" font-weight="600" fill="#111">{escape(plot.title)}</text>']
    for step, text in steps.items():
        place = top + HEIGHT * (1 - (step - lowest) / (highest - lowest))
        parts.append(f'<path d="M{LEFT} {place:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{text}</text>')
    names: dict[str, str] = {}
    for number, line in enumerate(plot.lines):
        colour = line.colour or COLOURS[number % len(COLOURS)]
        path = _path([(x(time), y(value)) for time, value in _thinned(line.points)])
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.3" stroke-linejoin="round"/>')
        names.setdefault(line.name, colour)
    for row, (name, colour) in enumerate(names.items()):
        place = top + 8 + row * 14
        parts.append(f'<path d="M{right + 10} {place}h14" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'<text x="{right + 30}" y="{place + 4}">{escape(name)}</text>')
    return "\n".join(parts)


def _path(points: Sequence[Point]) -> str:
    """Return a line through points, which begins anew behind each one that is not a number."""
    parts = []
    begins = True
    for x, y in points:
        if math.isnan(y):
            begins = True
        else:
            parts.append(f"{'M' if begins else 'L'}{x:.1f} {y:.1f}")
            begins = False
    return "".join(parts)


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """Return fewer points, with the least and the greatest value of each stretch, so that no peak is lost."""
    if len(points) <= MOST:
        return points
    size = 2 * len(points) // MOST + 1
    thinned: list[Point] = []
    for at in range(0, len(points), size):
        stretch = points[at : at + size]
        if any(math.isnan(value) for _, value in stretch):
            thinned += stretch
            continue
        least, greatest = (choose(stretch, key=lambda point: point[1]) for choose in (min, max))
        thinned += sorted({least, greatest})
    return thinned


def _round_steps(lowest: float, highest: float, count: int) -> list[float]:
    """Return about so many round numbers from one to the other."""
    if highest <= lowest:
        return [lowest, lowest + 1]
    rough = (highest - lowest) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first = math.ceil(lowest / step)
    return [number * step for number in range(first, math.floor(highest / step + 1e-9) + 1)]

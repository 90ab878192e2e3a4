"""The pictures of a run, as SVG: bars that compare servers, and lines that show what growth costs."""

from html import escape
from statistics import median

from report import number

OURS, OTHERS = "#0c4b33", "#9fb8ad"
LINES = ("#0c4b33", "#d9822b", "#5b7db1", "#a3434c")
STYLE = "font-family='system-ui,sans-serif' font-size='12' fill='#222'"
BARS = ("echo", "echo_p16", "echo_64k", "connect", "fanout1000", "idle2000")
WIDTH, COLUMNS, GAP = 900, 3, 24
NAME_WIDTH, BAR_HEIGHT, TITLE_HEIGHT, AXIS_HEIGHT = 128, 17, 26, 22
PLOT_HEIGHT = 170
CURVES = {
    "clients": "an echo, by clients",
    "members": "a delivery, by members",
    "channels": "10 deliveries, by channels",
}


def text(x, y, content, anchor="start", more=""):
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {more}>{escape(content)}</text>"


def picture(height, parts):
    body = "\n".join(parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' {STYLE}>\n"
        f"<rect width='{WIDTH}' height='{height:.0f}' fill='#fff'/>\n{body}\n</svg>\n"
    )


def bars(results):
    """A panel for each load, with a bar for each server."""
    panels = []
    for load in (load for name in BARS for load in results.loads if load.name == name):
        found = [(server, results.figures(load, server).values()) for server in results.servers]
        figures = [(server, median(values)) for server, values in found if values and "bare-loop" not in server]
        figures.sort(key=lambda pair: pair[1], reverse=not load.less_is_better)
        if figures:
            panels.append((load, figures))
    width = (WIDTH - GAP * (COLUMNS + 1)) / COLUMNS
    parts, top = [], GAP
    for first in range(0, len(panels), COLUMNS):
        row = panels[first : first + COLUMNS]
        for index, (load, figures) in enumerate(row):
            parts += bar_panel(GAP + index * (width + GAP), top, width, load, figures)
        top += TITLE_HEIGHT + BAR_HEIGHT * max(len(figures) for _, figures in row) + GAP
    return picture(top, parts)


def bar_panel(left, top, width, load, figures):
    better = "less is better" if load.less_is_better else load.unit
    parts = [
        text(left, top + 8, f"{load.what}", more="font-weight='600'"),
        text(left, top + 21, better, more="fill='#777'"),
    ]
    room = width - NAME_WIDTH - 46
    most = max(figure for _, figure in figures)
    for index, (server, figure) in enumerate(figures):
        y = top + TITLE_HEIGHT + index * BAR_HEIGHT
        color = OURS if server.startswith("django_websocket") else OTHERS
        length = max(1, figure / most * room)
        parts += [
            text(
                left + NAME_WIDTH - 4,
                y + 12,
                name_of(server),
                "end",
                "font-size='11'",
            ),
            f"<rect x='{left + NAME_WIDTH:.1f}' y='{y + 3:.1f}' width='{length:.1f}' height='{BAR_HEIGHT - 5}' "
            f"fill='{color}'/>",
            text(left + NAME_WIDTH + length + 4, y + 12, number(figure), more="font-size='11'"),
        ]
    return parts


def growth(results):
    """A panel for each curve: µs of CPU for a message over the number of clients, members or channels."""
    curves = {}
    for load in results.loads:
        if load.curve:
            for server in results.servers:
                if values := results.figures(load, server).values():
                    curves.setdefault(load.curve, {}).setdefault(server, []).append((load.at, median(values)))
    if not curves:
        return None
    width = (WIDTH - GAP * (COLUMNS + 1)) / COLUMNS
    parts = []
    for index, (curve, servers) in enumerate(curves.items()):
        parts += line_panel(GAP + index * (width + GAP), GAP, width, curve, servers)
    return picture(GAP * 2 + TITLE_HEIGHT + PLOT_HEIGHT + AXIS_HEIGHT + 4, parts)


def line_panel(left, top, width, curve, servers):
    places = sorted({at for points in servers.values() for at, _ in points})
    most = max(value for points in servers.values() for _, value in points) * 1.1
    left_of_plot, bottom = left + 34, top + TITLE_HEIGHT + PLOT_HEIGHT
    step = (width - 50) / max(1, len(places) - 1)

    def x(at):
        return left_of_plot + places.index(at) * step

    def y(value):
        return bottom - value / most * PLOT_HEIGHT

    parts = [text(left, top, f"µs of CPU for {CURVES[curve]}", more="font-weight='600'")]
    for part in range(5):
        value = most * part / 4
        ends = f"x1='{left_of_plot:.1f}' x2='{left + width:.1f}' y1='{y(value):.1f}' y2='{y(value):.1f}'"
        parts += [
            f"<line {ends} stroke='#ddd'/>",
            text(left_of_plot - 4, y(value) + 4, f"{value:.1f}" if value else "0", "end", "font-size='10'"),
        ]
    parts += [text(x(at), bottom + 15, f"{at:,}", "middle", "font-size='10'") for at in places]
    for index, (server, points) in enumerate(servers.items()):
        color = LINES[index % len(LINES)]
        line = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)
        parts.append(f"<polyline points='{line}' fill='none' stroke='{color}' stroke-width='2'/>")
        place = (left + index * width / len(servers), top + 15)
        parts.append(text(*place, name_of(server), more=f"font-size='11' style='fill:{color}'"))
    return parts


def name_of(server):
    return server.replace("django_websocket", "this server")

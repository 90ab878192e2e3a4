"""The tables of a run, in Markdown, from its records."""

from statistics import median

from goals import GOALS
from loads import LOADS, faults, generator_bound, overloaded

NONE = "–"


class Results:
    """The results of a run, by load, server and round."""

    def __init__(self, records):
        self.about = next((record["about"] for record in records if "about" in record), {})
        self.results = {}
        self.skips = {}
        self.servers = []  # in the order of the first round
        for record in records:
            if "result" in record:
                found = self.results.setdefault((record["load"], record["server"]), {})
                found[record["round"]] = record["result"]
                if record["server"] not in self.servers:
                    self.servers.append(record["server"])
            elif record.get("skip"):
                self.skips[record["load"], record["server"]] = record["skip"]
        self.loads = [load for load in LOADS if any(name == load.name for name, _ in self.results)]

    def of(self, load, server):
        return list(self.results.get((load.name, server), {}).values())

    def figures(self, load, server):
        """{round: figure}, without those that failed."""
        found = self.results.get((load.name, server), {})
        return {number: figure for number, result in found.items() if (figure := load.figure(result))}

    def costs(self, load, server):
        """{round: seconds of CPU for a message}."""
        found = self.results.get((load.name, server), {})
        return {number: result["cpu_per_message"] for number, result in found.items() if result.get("cpu_per_message")}

    def baseline(self, load, names):
        return next((name for name in names if self.figures(load, name)), None)

    def ratios(self, load, server, names):
        """To the baseline, in each round that has both."""
        theirs = self.figures(load, self.baseline(load, names))
        return [figure / theirs[number] for number, figure in self.figures(load, server).items() if number in theirs]

    def mark(self, load, server):
        """≥ where the generator, not the server, may have set the figure; † where something went wrong."""
        found = self.of(load, server)
        bound = load.value == "rate" and any(map(generator_bound, found))
        return ("≥" if bound else "") + ("†" if any(map(faults, found)) or any(map(overloaded, found)) else "")


def summary(results, baselines):
    """What a reader wants to know: goals, and the figures of all servers."""
    parts = [about_text(results.about), goal_table(results)]
    parts += [family(results, *of, baselines) for of in families(results)]
    return "\n\n".join([*filter(None, parts), growth_table(results), NOTES])


def tables(records, baselines):
    """The summary, and the details of each load."""
    results = Results(records)
    parts = [summary(results, baselines)]
    parts += [load_table(results, load, baselines) for load in results.loads if not load.curve]
    return "\n\n".join(parts) + "\n"


NOTES = (
    "≥: the load generator had no time left; the server can do more. †: something went wrong, or the server did not "
    "keep up with the rate: see the details."
)


def about_text(about):
    lines = [f"- {name}: {value}" for name, value in about.items() if name != "ours"]
    lines += [f"- {name}: {revision}" for name, revision in about.get("ours", {}).items()]
    return "\n".join(lines)


def goal_table(results):
    rows = []
    for goal in GOALS:
        row = goal_row(results, goal)
        if row:
            rows.append(row)
    if not rows:
        return ""
    text = "The rounds' median [least, most]. By CPU: by what a message costs the server, which varies less."
    return f"### Goals\n\n{text}\n\n" + table(["load", "compared with", "goal", "reached", "by CPU", ""], rows)


def goal_row(results, goal):
    load = next((load for load in results.loads if load.name == goal.load), None)
    of_others = next((load for load in results.loads if load.name == (goal.load_of_others or goal.load)), None)
    if load is None or of_others is None:
        return None
    ours = results.figures(load, goal.server)
    by_cpu = []
    if goal.others:
        choose = min if load.less_is_better else max
        theirs = best_of(results.figures, of_others, goal.others, choose)
        reached = [figure / theirs[number] for number, figure in ours.items() if number in theirs]
        costs = best_of(results.costs, of_others, goal.others, min)
        if not load.less_is_better:
            by_cpu = [
                costs[number] / cost for number, cost in results.costs(load, goal.server).items() if number in costs
            ]
    else:
        reached = list(ours.values())
    if not reached:
        return None
    wanted = f"≥ {goal.least:g}" if goal.least is not None else f"≤ {goal.most:g}"
    met = median(reached) >= goal.least if goal.least is not None else median(reached) <= goal.most
    whom = " or ".join(goal.others) or load.unit
    if goal.load_of_others:
        whom = f"{whom}, {goal.load_of_others}"
    name = load.what if goal.server == "django_websocket" else f"{load.what}, {goal.server}"
    return [name, whom, wanted, spread(reached), spread(by_cpu), "reached" if met else "**missed**"]


def best_of(values, load, servers, choose):
    """{round: the best of the servers' values}."""
    rounds = [values(load, server) for server in servers]
    numbers = {number for found in rounds for number in found}
    return {number: choose(found[number] for found in rounds if number in found) for number in numbers}


def families(results):
    """The title and the loads of each table."""
    loads = [load for load in results.loads if not load.curve]
    yield "Messages", [load for load in loads if load.mode == "echo" and not load.rated]
    yield "At one rate", [load for load in loads if load.rated]
    yield "Handshakes and memory", [load for load in loads if load.mode == "connect" or load.measures_memory]
    yield "Fan-out", [load for load in loads if load.mode == "fanout" and not load.measures_memory]


def family(results, title, loads, baselines):
    """Figures with their ratios; under them, what a message costs."""
    if not loads:
        return ""
    if loads[0].rated:
        return rate_table(results, title, loads[0])
    legend = "\n".join(f"- `{load.name}`: {load.what} ({load.unit})" for load in loads)
    names = [load.name for load in loads]
    figures, costs = [], []
    for server in results.servers:
        cells = [figure_cell(results, load, server, baselines) for load in loads]
        if any(cell != NONE for cell in cells):
            figures.append([server, *cells])
        cells = [cost_cell(results, load, server) for load in loads]
        if any(cell != NONE for cell in cells):
            costs.append([server, *cells])
    parts = [
        f"### {title}\n\n{legend}\n\nIn brackets: the ratio to {baselines[0]}.\n\n{table(['server', *names], figures)}"
    ]
    if costs:
        headers = ["server", *(load.name for load in loads if not load.measures_memory)]
        rows = [
            [row[0], *(c for c, load in zip(row[1:], loads, strict=True) if not load.measures_memory)] for row in costs
        ]
        what = "handshake with its close" if any(load.mode == "connect" for load in loads) else "message"
        parts.append(f"µs of the server's CPU for a {what}:\n\n{table(headers, rows)}")
    return "\n\n".join(parts)


def figure_cell(results, load, server, baselines):
    figures = results.figures(load, server)
    if not figures:
        return NONE
    text = results.mark(load, server) + number(median(figures.values()))
    if server == results.baseline(load, baselines):
        return text
    ratios = results.ratios(load, server, baselines)
    return f"{text} ({ratio(median(ratios))})" if ratios else text


def cost_cell(results, load, server):
    costs = results.costs(load, server).values()
    return number(median(costs) * 1e6) if costs and not load.measures_memory else NONE


def rate_table(results, title, load):
    rows = []
    for server in results.servers:
        found = [result for result in results.of(load, server) if "failed" not in result]
        if not found:
            continue
        cells = [middle(found, key, scale) for key, scale in (("p50_us", 1e-3), ("p99_us", 1e-3), ("max_us", 1e-3))]
        rows.append([results.mark(load, server) + server, *cells, middle(found, "cpu_per_message", 1e6)])
    asked = max(
        (result.get("asked", 0) for server in results.servers for result in results.of(load, server)), default=0
    )
    text = f"### {title}\n\n{load.what}, {asked:,.0f} messages/s.\n\n"
    return text + table(["server", "p50 ms", "p99 ms", "max ms", "µs of CPU for a message"], rows)


def growth_table(results):
    """What a message costs as clients, members and channels become more."""
    parts = []
    for curve in dict.fromkeys(load.curve for load in results.loads if load.curve):
        loads = [load for load in results.loads if load.curve == curve]
        rows = []
        for server in results.servers:
            cells = [figure_cell(results, load, server, (server,)) for load in loads]
            if any(cell != NONE for cell in cells):
                rows.append([server, *cells])
        parts.append(table([curve, *(f"{load.at:,}" for load in loads)], rows))
    if not parts:
        return ""
    legend = "`clients` echo 64 B; `members` of one channel get what is published; `channels` have 10 members each."
    return "\n\n".join([f"### Growth\n\nµs of the server's CPU for a message. {legend}", *parts])


def load_table(results, load, baselines):
    title = f"## {load.name}: {load.what}, {load.unit}\n\n`wsload {load.mode} {' '.join(map(str, load.arguments))}`\n\n"
    columns = MEMORY_COLUMNS if load.measures_memory else TIME_COLUMNS
    if load.mode == "fanout" and not load.measures_memory:
        columns = columns | REDIS_COLUMN
    rows, notes = [], []
    for server in ranked(results, load):
        found = results.of(load, server)
        figures = list(results.figures(load, server).values())
        row = [server, results.mark(load, server) + number(median(figures)) if figures else NONE]
        row.append(spread(results.ratios(load, server, baselines)))
        row += [middle(found, key, scale) for key, scale in columns.values()]
        if not load.measures_memory:
            row += [share(found, server_share), share(found, generator_share)]
        row.append("; ".join(sorted(set(filter(None, map(faults, found))))) or "0")
        rows.append(row)
    for (name, server), reason in results.skips.items():
        if name == load.name:
            notes.append(f"\n\n{server}: {reason}.")
    busy = [] if load.measures_memory else ["server's core", "generator's core"]
    headers = ["server", load.unit, "ratio [least, most]", *columns, *busy, "faults"]
    return title + table(headers, rows) + "".join(notes)


# column -> (key in the result, factor)
TIME_COLUMNS = {
    "p50 ms": ("p50_us", 1e-3),
    "p99 ms": ("p99_us", 1e-3),
    "max ms": ("max_us", 1e-3),
    "CPU ms for 1,000": ("cpu_per_message", 1e6),
    "in the kernel": ("kernel_per_message", 1e6),
}
REDIS_COLUMN = {"Redis CPU ms for 1,000": ("redis_cpu_per_message", 1e6)}
MEMORY_COLUMNS = {
    "KiB RSS a client": ("rss_kib_per_client", 1),
    "MiB without clients": ("base_mib", 1),
    "s to open all": ("open_s", 1),
    "alive": ("alive", 1),
}


def ranked(results, load):
    """The servers that were put under the load, the best first, those without a figure last."""
    sign = 1 if load.less_is_better else -1

    def rank(server):
        figures = results.figures(load, server).values()
        return (not figures, sign * median(figures) if figures else 0)

    return sorted((server for server in results.servers if results.of(load, server)), key=rank)


def middle(found, key, scale):
    values = [result[key] * scale for result in found if result.get(key) is not None]
    return number(median(values)) if values else NONE


def server_share(result):
    return result["cpu_server_s"] / result["window_s"]


def generator_share(result):
    return result["gen_cpu_frac"]


def share(found, of):
    """The share of a core, in percent."""
    shares = [of(result) for result in found if "failed" not in result]
    return f"{median(shares):.0%}" if shares else NONE


def spread(ratios):
    if not ratios:
        return NONE
    return f"{ratio(median(ratios))} [{ratio(min(ratios))}, {ratio(max(ratios))}]"


def ratio(value):
    if value >= 9.95:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"


def number(value):
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def table(headers, rows):
    lines = [headers, ["---"] + ["---:"] * (len(headers) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

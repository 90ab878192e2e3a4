"""The tables of a run, in Markdown, from its records."""

from statistics import median

from loads import LOADS, faults, generator_bound

NONE = "–"


class Results:
    """What was measured, by load, server and round."""

    def __init__(self, records):
        self.about = next((record["about"] for record in records if "about" in record), {})
        self.results = {}
        self.skips = {}
        for record in records:
            if "result" in record:
                found = self.results.setdefault((record["load"], record["server"]), {})
                found[record["round"]] = record["result"]
            elif record.get("skip"):
                self.skips[record["load"], record["server"]] = record["skip"]
        self.servers = sorted({server for _, server in self.results})
        self.loads = [load for load in LOADS if any(name == load.name for name, _ in self.results)]

    def of(self, load, server):
        return list(self.results.get((load.name, server), {}).values())

    def values(self, load, server):
        """{round: value}, without those that failed."""
        found = self.results.get((load.name, server), {})
        return {number: value for number, result in found.items() if (value := load.figure(result))}

    def baseline(self, load, names):
        return next((name for name in names if self.values(load, name)), None)

    def ratios(self, load, server, names):
        """To the baseline, in each round that has both."""
        theirs = self.values(load, self.baseline(load, names))
        return [value / theirs[number] for number, value in self.values(load, server).items() if number in theirs]

    def bounded(self, load, server):
        """Whether the generator may have set the figure."""
        return not load.measures_memory and any(map(generator_bound, self.of(load, server)))

    def ratio_mark(self, load, server, names):
        ours, theirs = (self.bounded(load, name) for name in (server, self.baseline(load, names)))
        if server == self.baseline(load, names):
            return ""
        return {(True, False): "≥", (False, True): "≤", (True, True): "~"}.get((ours, theirs), "")


def tables(records, baselines):
    results = Results(records)
    parts = [about_text(results.about), ratio_table(results, baselines)]
    parts += [load_table(results, load, baselines) for load in results.loads]
    return "\n\n".join(parts) + "\n"


def about_text(about):
    lines = [f"- {name}: {value}" for name, value in about.items() if name != "ours"]
    lines += [f"- {name}: {revision}" for name, revision in about.get("ours", {}).items()]
    return "\n".join(lines)


def ratio_table(results, baselines):
    title = (
        f"## Ratios to {' (or, without a figure of that, to '.join(baselines)}{')' * (len(baselines) - 1)}\n\n"
        "Median of the rounds' ratios. Memory (idle): less is better; all others: more is better."
        " ≥, ≤, ~: the load generator had no time left, here, in the baseline, in both.\n\n"
    )
    rows = []
    for server in results.servers:
        row = [server]
        for load in results.loads:
            ratios = results.ratios(load, server, baselines)
            row.append(f"{results.ratio_mark(load, server, baselines)}{ratio(median(ratios))}" if ratios else NONE)
        rows.append(row)
    return title + table(["server", *(load.name for load in results.loads)], rows)


def load_table(results, load, baselines):
    title = f"## {load.name}: {load.unit}\n\n`wsload {load.mode} {' '.join(map(str, load.arguments))}`\n\n"
    columns = MEMORY_COLUMNS if load.measures_memory else TIME_COLUMNS
    if load.mode == "fanout":
        columns = columns | REDIS_COLUMN
    rows, notes = [], []
    for server in ranked(results, load):
        found = results.of(load, server)
        values = list(results.values(load, server).values())
        mark = "≥ " if results.bounded(load, server) else ""
        row = [server, mark + number(median(values)) if values else NONE]
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
}
REDIS_COLUMN = {"Redis CPU ms for 1,000": ("redis_cpu_per_message", 1e6)}
MEMORY_COLUMNS = {
    "KiB RSS a client": ("rss_kib_per_client", 1),
    "MiB without clients": ("base_mib", 1),
    "opened/s": ("rate", 1),
    "answered": ("echo_ok", 1),
}


def ranked(results, load):
    """The servers that were put under the load, the best first, those without a figure last."""
    sign = 1 if load.measures_memory else -1

    def rank(server):
        values = results.values(load, server).values()
        return (not values, sign * median(values) if values else 0)

    return sorted((server for server in results.servers if results.of(load, server)), key=rank)


def middle(found, key, scale):
    values = [result[key] * scale for result in found if result.get(key) is not None]
    return number(median(values)) if values else NONE


def server_share(result):
    return result["cpu_server_s"] / result["window_s"]


def generator_share(result):
    return result["gen_cpu_frac"]


def share(found, of):
    """Of a core, in per cent."""
    shares = [of(result) for result in found if "failed" not in result]
    return f"{median(shares):.0%}" if shares else NONE


def spread(ratios):
    if not ratios:
        return NONE
    return f"{ratio(median(ratios))} [{ratio(min(ratios))}, {ratio(max(ratios))}]"


def ratio(value):
    return f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"


def number(value):
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.3f}"


def table(headers, rows):
    lines = [headers, ["---"] + ["---:"] * (len(headers) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

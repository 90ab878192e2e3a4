"""Measures WebSocket servers side by side. README.md says how to read the results."""

import argparse
import fcntl
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import chart
import report
import selftest
import smoke
from bench import Bench
from environment import HERE, compile_programs, given_bin, imported_from, versions
from loads import LOADS, faults, generator_bound
from processes import pick_cores
from servers import INSTALLED, PEERS, ours, parse_ours

MAX_OPEN_FILES = 65536
RATE = 0.5  # the share of what the first peer carries, for the loads at a fixed rate
DOCS = HERE.parent / "docs"
BEGIN, END = "<!-- figures: scripts/bench --docs -->", "<!-- end of figures -->"


def turns(servers, number):
    """The order of the servers: each pair of rounds begins with another one, and its second round is reversed."""
    first = number // 2 % max(1, len(servers))
    order = servers[first:] + servers[:first]
    return order[::-1] if number % 2 else order


def due(server, load, number):
    """Whether the server gets the load in this round. Less important servers never get less important loads."""
    if server.rounds == 1 and load.rounds == 1:
        return False
    return all(limit is None or number < limit for limit in (server.rounds, load.rounds))


def compare(bench, servers, loads, options, keep):
    """Measure all servers, load by load and side by side, and call `keep` with each record."""
    end = time.monotonic() + options.max_minutes * 60
    for number in range(options.rounds):
        for load in loads:
            for server in turns(
                [server for server in servers if server.takes(load) and due(server, load, number)], number
            ):
                record = {"round": number, "server": server.name, "load": load.name}
                if load.name in server.skips:
                    keep(record | {"skip": server.skips[load.name]})
                elif time.monotonic() > end:
                    print(f"stopped after {options.max_minutes:g} minutes (--max-minutes)", flush=True)
                    return
                else:
                    result = bench.measure(server, load)
                    keep(record | {"result": result})
                    print(progress(number, server, load, result), flush=True)


def progress(number, server, load, result):
    value = load.figure(result)
    figure = "" if value is None else f"{value:,.1f} {load.unit}"
    mark = ", the generator was busy" if generator_bound(result) else ""
    wrong = faults(result)
    return f"[{number + 1}] {server.name:24} {load.name:12} {figure}{mark}{'  FAULTS: ' + wrong if wrong else ''}"


def describe_run(bin_directory, checkouts, cores):
    """Return what somebody who reads the figures later will want to know."""
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.split(":")[1].strip() for line in cpu_lines if line.startswith("model name")]
    about = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": f"{cpu[0] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "cores": f"server {cores[0]}, load {cores[1]}, Redis {cores[2]}",
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions(bin_directory),
    }
    about["ours"] = {name: revision(directory) for name, directory in checkouts.items()}
    return about


def revision(directory):
    if directory == INSTALLED:
        return INSTALLED
    command = ["git", "-C", directory, "describe", "--always", "--dirty", "--tags"]
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "?"
    return found.stdout.strip() or "not in git"


@contextmanager
def only_run():
    """Let no other run measure meanwhile: two at a time would spoil both."""
    with open(HERE / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another run is measuring; waiting for it to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def measure_and_report(bin_directory, servers, loads, checkouts, options):
    cores = options.cores or pick_cores()
    if cores[0] == cores[1]:
        print("there is only one core: server and load share it, and the figures say little", flush=True)
    baselines = options.baseline or default_baselines(checkouts)
    results = HERE / "results"
    logs = results / options.name
    if logs.exists():
        raise SystemExit(f"--name {options.name}: a run of that name is in {results}")
    logs.mkdir(parents=True)
    records = [{"about": describe_run(bin_directory, checkouts, cores)}]
    tables = results / f"{options.name}.md"
    with ExitStack() as stack:
        lines = stack.enter_context((results / f"{options.name}.jsonl").open("w"))
        lines.write(json.dumps(records[0]) + "\n")

        def keep(record):
            records.append(record)
            lines.write(json.dumps(record) + "\n")
            lines.flush()

        stack.enter_context(only_run())
        bench = Bench(bin_directory, logs, cores=cores, seconds=options.time, idle_seconds=options.idle)
        stack.enter_context(bench.services())
        if not options.no_peers and any(load.rated for load in loads):
            bench.calibrate(PEERS[0], RATE)
        try:
            compare(bench, servers, loads, options, keep)
        finally:
            write_report(records, baselines, results / options.name)
    if options.docs:
        update_docs(records, baselines)
    print(f"\n{tables.read_text()}\ntables: {tables}; single results: {lines.name}; the servers' output: {logs}")


def write_report(records, baselines, path):
    """Write NAME.md, and the pictures beside it."""
    path.with_suffix(".md").write_text(report.tables(records, baselines))
    for name, picture in pictures(records):
        path.with_name(f"{path.name}-{name}.svg").write_text(picture)


def pictures(records):
    results = report.Results(records)
    drawn = [("servers", chart.bars(results)), ("growth", chart.growth(results))]
    return [(name, picture) for name, picture in drawn if picture]


def update_docs(records, baselines):
    """Replace the figures of FIGURES.md and the pictures of docs/performance.md with those of a run."""
    page = HERE / "FIGURES.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no place for figures between {BEGIN} and {END}")
    for name, picture in pictures(records):
        (DOCS / f"performance-{name}.svg").write_text(picture)
    page.write_text(f"{before}{BEGIN}\n\n{report.summary(report.Results(records), baselines)}\n\n{END}{after}")
    print(f"updated {page} and the pictures; the tables of README.md and docs/ quote its figures, as their tests say")


def default_baselines(checkouts):
    """Two checkouts are compared with each other; a single one with the bare server, or else with the stock one."""
    first = next(iter(checkouts), None)
    return [first] if len(checkouts) > 1 else ["asgi-uvicorn", "gevent-websocket"]


def choose(things, names, what):
    """Return the things that have one of the comma-separated `names`, or contain it; all, if there are no names."""
    if not names:
        return things
    known = [thing.name for thing in things]
    chosen = set()
    for name in names.split(","):
        found = [name] if name in known else [other for other in known if name in other]
        if not found:
            raise SystemExit(f"{what} {name}: there are {', '.join(known)}")
        chosen.update(found)
    return [thing for thing in things if thing.name in chosen]


def raise_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def core_list(text):
    numbers = [int(number) for number in text.split(",")]
    if not 2 <= len(numbers) <= 3:
        raise argparse.ArgumentTypeError("two or three cores, as in 0,1")
    return numbers if len(numbers) == 3 else [*numbers, numbers[1]]


def parse_options():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    add = parser.add_argument
    add("--ours", action="append", metavar="DIR[=NAME]",
        help="a checkout of our package to measure; may be repeated, to compare them. 'installed' is the one in the "
        "environment. Default: the checkout of these benchmarks")  # fmt: skip
    add("--no-peers", action="store_true", help="only ours")
    add("--servers", metavar="A,B", help="only these, by name or part of it")
    add("--loads", metavar="A,B", help="only these, by name or part of it")
    add("--quick", action="store_true", help="the most important servers and loads, in two short rounds: 8 minutes")
    add("--rounds", type=int, metavar="N", help="default: 5; some loads take part in the first ones only")
    add("--time", type=float, metavar="S", help="seconds for each load, default: 1.5")
    add("--idle", type=float, metavar="S", help="seconds for which idle clients stay, default: 2")
    add("--max-minutes", type=float, metavar="N", help="start nothing after that, default: 24")
    add("--baseline", type=lambda text: text.split(","), metavar="A,B",
        help="servers that ratios refer to: for each load the first that has a figure")  # fmt: skip
    add("--cores", type=core_list, metavar="A,B[,C]", help="cores for the server, the load and Redis")
    add("--bin", type=Path, metavar="DIR", default=Path(sys.executable).parent,
        help="bin directory of the environment that the servers run in, default: that of this Python")  # fmt: skip
    add("--name", default=time.strftime("%Y%m%d-%H%M%S"), help="name of the files in results/, default: date and time")
    add("--docs", action="store_true", help="put the figures into FIGURES.md")
    add("--report", type=Path, metavar="JSONL", help="print the tables of an earlier run; measure nothing")
    add("--smoke", action="store_true", help="measure nothing: does every message arrive, once, whole, in order?")
    add("--selftest", action="store_true", help="measure nothing: does the load generator notice a server's faults?")
    options = parser.parse_args()
    for name, (usual, quick) in {"rounds": (5, 2), "time": (1.5, 1), "idle": (2, 1.2), "max_minutes": (24, 8)}.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    return options


def report_again(path, options):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    baselines = options.baseline or default_baselines(records[0]["about"]["ours"])
    print(report.tables(records, baselines))
    if options.docs:
        update_docs(records, baselines)


def find_checkouts(texts):
    """{name: directory or INSTALLED} of --ours."""
    checkouts = {}
    for directory, name in map(parse_ours, texts or [f"{HERE.parent}=django_websocket"]):
        if name in checkouts:
            raise SystemExit(f"--ours: two are called {name}; give one another name with DIR=NAME")
        checkouts[name] = directory
    return checkouts


def check_import(bin_directory, server, directory):
    """Fail if a checkout other than the named one would be measured: nothing is more misleading."""
    found = imported_from(bin_directory, server.environ)
    if directory not in (INSTALLED, found):
        raise SystemExit(f"{server.name}: django_websocket is imported from {found}, not from {directory}")


def main():
    options = parse_options()
    if options.report:
        report_again(options.report, options)
        return 0
    if not sys.platform.startswith("linux"):
        raise SystemExit("benchmarks need Linux: epoll and /proc")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # raises an exception, so that all processes are ended
    raise_open_files()
    compile_programs()
    bin_directory = given_bin(options.bin)
    if options.selftest:
        return selftest.run(bin_directory)

    checkouts = find_checkouts(options.ours)
    servers = []
    for name, directory in checkouts.items():
        check_import(bin_directory, ours(directory, name)[0], directory)
        servers += ours(directory, name)
    if options.smoke:
        return smoke.run(bin_directory, servers)
    servers = choose(servers + ([] if options.no_peers else PEERS), options.servers, "--servers")
    loads = choose(LOADS, options.loads, "--loads")
    if options.quick:
        servers, loads = ([thing for thing in things if thing.rounds != 1] for things in (servers, loads))
    measure_and_report(bin_directory, servers, loads, checkouts, options)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

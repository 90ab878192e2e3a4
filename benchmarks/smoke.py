"""Does every load still run, and does every message arrive, once, whole and in order? Nothing is measured."""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import chart
import report
from bench import Bench
from loads import faults, smoke_loads
from servers import C_EPOLL, STOCK


def run(bin_directory, ours):
    """Try `ours`, our servers, and those that need nothing else installed. Return 0 if all is well, else 1."""
    servers = [*ours, STOCK, C_EPOLL]
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(len(servers)) as threads:
        shared = Bench(bin_directory, directory)
        shared.make_database()
        tried = threads.map(lambda server: try_one(bin_directory, server, shared), servers)
        records = [record for some in tried for record in some]
    report.tables(records, [ours[0].name])
    results = report.Results(records)
    for picture in chart.bars(results), chart.growth(results):
        ElementTree.fromstring(picture)
    return int(any(faults(record["result"]) for record in records))


def try_one(bin_directory, server, shared):
    """Return the records of its loads. Each server has a Redis of its own, where no other uses the same channels."""
    with tempfile.TemporaryDirectory() as logs:
        bench = Bench(bin_directory, logs, seconds=0.1, idle_seconds=0.1, smoke=True)
        bench.take_database_of(shared)
        with bench.services():
            return measure(bench, server)


def measure(bench, server):
    records = []
    for load in smoke_loads():
        if server.takes(load) and load.name not in server.skips:
            result = bench.measure(server, load)
            records.append({"round": 0, "server": server.name, "load": load.name, "result": result})
            print(f"{server.name:26} {load.name:14} {faults(result) or 'ok'}", flush=True)
    if any(faults(record["result"]) for record in records) and bench.log(server).exists():
        print(f"output of {server.name}:\n{bench.log(server).read_text(errors='replace')[-10000:]}", file=sys.stderr)
    return records

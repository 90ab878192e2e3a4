"""The Autobahn TestSuite against the test site; scripts/autobahn prepares its environment and runs this module.

    WSTEST=.../wstest python -m tests.support.autobahn [--quick | CASES...]

A case passes when its behavior and its way of closing are OK or, where the suite only looks on, INFORMATIONAL.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from .servers import ROOT, gunicorn

REPORT = ROOT / "autobahn-report"
ALL = [f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 13)]  # the suite has no cases in 8 and 11
# Without the slow groups: large messages (9) and compression (12 and 13).
QUICK = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
LARGEST_MESSAGE = 16 * 1024 * 1024  # bytes; in group 9
AGENT = "django_websocket"
PASSED = ("OK", "INFORMATIONAL")

Results = Mapping[str, Mapping[str, str]]


def run(cases: Sequence[str], report: Path, wstest: Sequence[str]) -> Results:
    """Run the cases against `/echo/`, and return what the suite says of each; its report goes to `report`.

    Raises:
        SystemExit: The suite did not finish, or there is no such case.
    """
    shutil.rmtree(report, ignore_errors=True)
    report.mkdir()
    log, spec = report / "wstest.log", report / "spec.json"
    with (
        gunicorn(env={"WEBSOCKET_MAX_MESSAGE_SIZE": str(LARGEST_MESSAGE)}) as server,
        log.open("w") as output,
    ):
        servers = [{"agent": AGENT, "url": f"ws://{server.address}/echo/"}]
        spec.write_text(json.dumps({"outdir": str(report), "servers": servers, "cases": list(cases)}))
        command = [*wstest, "--mode", "fuzzingclient", "--spec", str(spec)]
        status = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
    index = report / "index.json"
    if status or not index.exists():
        sys.exit(f"{shlex.join(command)} ended with status {status}; its output ends:\n{log.read_text()[-2000:]}")
    results: Results = json.loads(index.read_text()).get(AGENT, {})
    missing = [pattern for pattern in cases if not any(fnmatchcase(case, pattern) for case in results)]
    if missing:
        sys.exit(f"The suite ran no case that matches: {' '.join(missing)}")
    return results


def shortfalls(results: Results) -> dict[str, str]:
    """Return the cases that did not pass, and what the suite says of them."""
    return {
        case: verdict
        for case in sorted(results, key=lambda case: [int(part) for part in case.split(".")])
        if (verdict := judge(results[case])) not in PASSED
    }


def judge(result: Mapping[str, str]) -> str:
    """Return the worse of the suite's two verdicts, on the answers and on how the connection was closed."""
    behavior, closing = result["behavior"], result["behaviorClose"]
    return behavior if behavior not in PASSED or closing in PASSED else f"{closing} at the close"


def main(arguments: Sequence[str]) -> int:
    cases = QUICK if arguments == ["--quick"] else arguments or ALL
    print(f"Running the cases {' '.join(cases)} ...", flush=True)
    results = run(cases, REPORT, shlex.split(os.environ["WSTEST"]))
    for verdict, count in Counter(map(judge, results.values())).most_common():
        print(f"{count:5} {verdict}")
    failed = shortfalls(results)
    for case, verdict in failed.items():
        print(f"{case}: {verdict}, see {REPORT / results[case]['reportfile']}".replace(".json", ".html"))
    print(f"{'Not all' if failed else 'All'} {len(results)} cases passed. The report is {REPORT / 'index.html'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Does the load generator notice each mistake of a server, and nothing where there is none?"""

import tempfile
from pathlib import Path

from environment import APPS
from loads import faults, run_wsload
from processes import Process, free_port, wait_until_accepts

SHORT = ("-t", 0.2, "--warm", 0, "--drain", 0.5, "--connect-timeout", 3)
ECHO = ("-c", 5, "-p", 4)
CHAT = ("-c", 10, "-s", 128, "--rate", 300)

# mode of wsload, fault of the server, arguments, what must be reported ("": nothing)
CASES = [
    ("echo", "none", ECHO, ""),
    ("echo", "none", (*ECHO, "-s", 70000), ""),
    ("echo", "none", (*ECHO, "-s", 5001, "--utf8"), ""),
    ("echo", "none", (*ECHO, "-s", 3000, "--deflate"), ""),
    ("echo", "none", (*ECHO, "--binary"), ""),
    ("echo", "none", (*ECHO, "--json", "-s", 200), ""),
    ("echo", "none", ("-c", 5, "--rate", 500), ""),
    ("echo", "truncate", ECHO, "payload"),
    ("echo", "truncate", (*ECHO, "--deflate"), "payload"),
    ("echo", "corrupt", ECHO, "payload"),
    ("echo", "corrupt", (*ECHO, "--json", "-s", 200), "payload"),
    ("echo", "binary", ECHO, "type"),
    ("echo", "swap", ECHO, "sequence"),
    ("echo", "duplicate", ECHO, "sequence"),
    ("echo", "drop", ECHO, "sequence"),
    ("echo", "drop", ("-c", 5), "lost"),
    ("echo", "drop", ("-c", 5, "--rate", 1000), "sequence"),
    ("echo", "close", ECHO, "closed"),
    ("echo", "refuse", ECHO, "connect"),
    ("idle", "none", ("-c", 50), ""),
    ("connect", "none", ("-c", 5), ""),
    ("connect", "refuse", ("-c", 5), "bad"),
    ("fanout", "none", CHAT, ""),
    ("fanout", "none", (*CHAT, "--deflate"), ""),
    ("fanout", "none", ("-c", 10, "-s", 128), ""),
    ("fanout", "drop", CHAT, "lost"),
    ("fanout", "duplicate", CHAT, "dup"),
    ("fanout", "swap", CHAT, "sequence"),
]


def run(bin_directory):
    """Return 0 if every case is as it should be, else 1."""
    failed = 0
    port = free_port()
    with tempfile.TemporaryDirectory() as logs:
        command = [bin_directory / "python", APPS / "faulty_server.py", port]
        with Process(command, log=Path(logs) / "faulty_server.log") as server:
            if not wait_until_accepts(server, port, 10):
                raise SystemExit(f"the faulty server does not start: {server.last_words()}")
            for mode, fault, arguments, wanted in CASES:
                path = f"/{fault}/{'chat' if mode == 'fanout' else 'echo'}/"
                result = run_wsload(mode, ("--port", port, "--path", path, *SHORT, *arguments))
                found = faults(result)
                if "without zlib" in found:
                    verdict = "skipped"
                elif f"{wanted}=" in found if wanted else not found:
                    verdict = "ok"
                else:
                    verdict = "WRONG"
                    failed += 1
                described = " ".join(map(str, arguments))
                print(f"{verdict:8} {mode:8} {fault:10} {described:32} {found or 'no fault'}", flush=True)
    return 1 if failed else 0

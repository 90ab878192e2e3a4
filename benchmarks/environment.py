"""What a run needs on the machine: the compiled programs, the peers, Redis."""

import os
import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
APPS = HERE / "apps"
REQUIREMENTS = HERE / "requirements.txt"


def compile_programs():
    """Run `make`, which does nothing if nothing has changed."""
    if not shutil.which("make"):
        raise SystemExit("benchmarks need make and a C compiler (Debian: apt-get install build-essential)")
    made = subprocess.run(["make", "-C", HERE], capture_output=True, text=True)
    if made.returncode:
        raise SystemExit(f"{made.stdout}{made.stderr}benchmarks need a C compiler (Debian: build-essential)")


def given_bin(directory):
    """Check and return the bin directory that --bin names."""
    directory = directory.absolute()
    if not (directory / "python").exists():
        raise SystemExit(f"--bin {directory}: it has no python; give the bin directory of a virtual environment")
    return directory


def redis_server():
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("benchmarks need redis-server (Debian: apt-get install redis-server)")
    return program


def imported_from(bin_directory, environ):
    """The directory in which `import django_websocket` finds the package."""
    code = "import os, django_websocket; print(os.path.dirname(os.path.dirname(django_websocket.__file__)))"
    found = subprocess.run(
        [bin_directory / "python", "-c", code], capture_output=True, text=True, env={**os.environ, **environ}, cwd=APPS
    )
    if found.returncode:
        raise SystemExit(f"{found.stderr}django_websocket cannot be imported with {bin_directory / 'python'}")
    return Path(found.stdout.strip()).resolve()


def versions(bin_directory):
    """Names and installed versions of the packages that requirements.txt lists."""
    names = [re.split(r"[\[>]", line)[0] for line in REQUIREMENTS.read_text().splitlines() if line and line[0] != "#"]
    code = (
        "import platform, sys\nfrom importlib.metadata import PackageNotFoundError, version\n"
        "print('python', platform.python_version())\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, version(name))\n"
        "    except PackageNotFoundError: pass\n"
    )
    found = subprocess.run([bin_directory / "python", "-c", code, *names], capture_output=True, text=True)
    return ", ".join(found.stdout.splitlines())

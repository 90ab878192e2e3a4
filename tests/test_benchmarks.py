"""The benchmarks still run: each load once and briefly, with every message checked and nothing timed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import django_websocket

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("option", ["--smoke", "--selftest"])
def test_benchmarks_run(option: str) -> None:
    command = [sys.executable, "benchmarks/run.py", option, "--bin", str(Path(sys.executable).parent)]
    if option == "--smoke" and not Path(django_websocket.__file__).is_relative_to(ROOT / "django_websocket"):
        command += ["--ours", "installed"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stdout + run.stderr

"""A test is run again if it failed while the machine stood still, with all that it needs made anew; no other is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .support.processes import stand_still
from .support.servers import ROOT
from .support.waiting import DEADLINE

TESTS = """
import os, signal
import pytest

runs = []

@pytest.fixture(scope="module")
def made():
    return len(runs)

def test_stands_still(made):
    runs.append(made)
    if len(runs) == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
        assert not "in time"
    assert runs == [0, 1]

def test_fails():
    with open("fails", "a") as file:
        file.write("once")
    assert not "right"
"""


def test_what_failed_while_the_machine_stood_still_is_run_again(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").touch()
    plugins = ("tests.support.again", "no:cacheprovider", "no:django", "no:xdist")
    command = [sys.executable, "-m", "pytest", *(f"-p{plugin}" for plugin in plugins), "test_it.py"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        stand_still(process.pid, 1.5)
        output, _ = process.communicate(timeout=DEADLINE)
    assert "1 failed, 1 passed, 1 warning" in output
    assert "It failed while the machine stood still, and was run again." in output
    assert (tmp_path / "fails").read_text() == "once"

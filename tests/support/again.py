"""A plugin of pytest that runs a test again if it failed while the machine stood still: its deadlines meant nothing.

It says so among the warnings. A test that fails otherwise has failed.
"""

from __future__ import annotations

import time
import warnings
from contextlib import ExitStack, suppress

import pytest
from _pytest.runner import runtestprotocol

from .standstills import PAUSE, standstills

ends: list[float] = []  # of standstills, in seconds of time.monotonic()


def pytest_configure(config: pytest.Config) -> None:
    """Look for standstills until pytest ends."""
    stack = ExitStack()
    stack.enter_context(standstills(lambda begin, end: ends.append(end)))
    config.add_cleanup(stack.close)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run a test, with all that it needs made anew the second time."""
    begin = time.monotonic()
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    failed = any(report.failed for report in reports)
    if failed:
        time.sleep(2 * PAUSE)  # the test may be quicker to go on than the thread that looks
    if failed and any(end > begin for end in ends):
        with suppress(Exception, pytest.fail.Exception):
            item.session._setupstate.teardown_exact(None)
        tell(item, "It failed while the machine stood still, and was run again.")
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def tell(item: pytest.Item, sentence: str) -> None:
    """Say something among the warnings at the end of the run."""
    warning = warnings.WarningMessage(sentence, pytest.PytestWarning, str(item.path), 1)
    arguments = {"warning_message": warning, "when": "runtest", "nodeid": item.nodeid, "location": None}
    item.ihook.pytest_warning_recorded.call_historic(kwargs=arguments)

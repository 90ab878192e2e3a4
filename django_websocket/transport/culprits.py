"""Which code a thread is in the middle of, and for which client, as its frames tell it to another thread."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from types import FrameType
from typing import Any, NamedTuple, Protocol

__all__ = ["Culprit", "Worker", "culprit_of"]

OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
PATHS = sysconfig.get_paths()
STANDARD = tuple(PATHS[name] + os.sep for name in ("stdlib", "platstdlib"))
INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
GEVENT = (f"{os.sep}gevent{os.sep}", f"{os.sep}greenlet{os.sep}")  # behind one of `INSTALLED`
PROJECT, LIBRARY, STANDARD_LIBRARY = range(3)  # kinds of code, that which is likeliest to be at fault first
LOCALS = ("self", "current")  # variables of this package's functions that may hold a `Worker`


class Worker(Protocol):
    """Something whose methods run code of the project."""

    @property
    def works_for(self) -> tuple[str, str]:
        """The client as the log names it, and what runs for it, such as "the view chat.views.room".

        Read from another thread: it may only look at attributes.
        """


class Culprit(NamedTuple):
    """What a thread is in the middle of. `client` and `what` are empty if nothing of this package called it."""

    client: str
    what: str
    place: str  # files with their lines: of the project, and where the call has led from there

    def __str__(self) -> str:
        return f"in {self.what}, at {self.place}" if self.what else f"at {self.place}"


def culprit_of(innermost: FrameType | None) -> Culprit:
    """Return what a thread is in the middle of, whose innermost frame is given. For any thread."""
    client = what = ""
    found: dict[int, FrameType] = {}
    for frame in callers(innermost):
        kind = kind_of(frame.f_code.co_filename)
        if kind is None:
            if not what:
                client, what = work_of(frame)
            kind = LIBRARY
            if LIBRARY in found or PROJECT in found:
                continue
        found.setdefault(kind, frame)
    project = found.get(PROJECT) or found.get(LIBRARY) or innermost
    place = place_of(project)
    if innermost is not None and project is not innermost:
        place = f"{place}, which has led to {place_of(innermost)}"
    return Culprit(client, what, place)


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame, and those that have led to it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


@cache  # for as many files as the project has
def kind_of(file: str) -> int | None:
    """Return what kind of code a file has; None for this package's."""
    if file.startswith(OURS):
        return None
    installed = any(folder in file for folder in INSTALLED)
    if file.startswith("<") or (file.startswith(STANDARD) and not installed):
        return STANDARD_LIBRARY
    if installed:
        return STANDARD_LIBRARY if any(library in file for library in GEVENT) else LIBRARY
    return PROJECT


def work_of(frame: FrameType) -> tuple[str, str]:
    """Return what the `Worker` in a frame of this package works for; empty texts if there is none."""
    variables = frame.f_locals
    for name in LOCALS:
        found: Any = variables.get(name)
        if hasattr(type(found), "works_for"):  # a lazy object, asked itself, might run code
            with suppress(Exception):  # the other thread may be in the middle of making or ending it
                client, what = found.works_for
                return client, what
    return "", ""


def place_of(frame: FrameType | None) -> str:
    """Return the file, the line and the function of a frame."""
    if frame is None:
        return "an unknown place"
    code = frame.f_code
    name = code.co_qualname if sys.version_info >= (3, 11) else code.co_name
    return f"{code.co_filename}:{frame.f_lineno} in {name}"

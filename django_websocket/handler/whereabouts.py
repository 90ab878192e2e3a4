"""Which line of a project's code is being executed, or waits, as the frames of a greenlet or a coroutine tell it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from types import FrameType
from typing import NamedTuple

from django_websocket.transport.culprits import PROJECT, kind_of

__all__ = ["Place", "place_among"]


class Place(NamedTuple):
    """A line of code. The file is given as it is imported: "chat/views.py"."""

    file: str
    line: int
    function: str


NOWHERE = Place("", 0, "")


def place_among(frames: Iterable[FrameType], view_module: str) -> Place:
    """Return where the innermost frame of the project is; `frames` are those of the calls, the outermost first.

    A project may be installed like a library: then it is whatever has the top package of `view_module`. Without such a
    frame, it is nowhere.
    """
    package = view_module.partition(".")[0]
    found: FrameType | None = None
    of_package: FrameType | None = None
    for frame in frames:
        kind = kind_of(frame.f_code.co_filename)
        if kind == PROJECT:
            found = frame
        elif kind is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == package:
            of_package = frame
    found = found or of_package
    if found is None:
        return NOWHERE
    code = found.f_code
    name = code.co_qualname if sys.version_info >= (3, 11) else code.co_name
    return Place(as_imported(code.co_filename), found.f_lineno or 0, name)


@lru_cache(1000)
def as_imported(file: str) -> str:
    """Return the path of a file from the directory where Python looks for its top package."""
    places = [os.path.join(os.path.abspath(place), "") for place in sys.path]
    longest = max((place for place in places if file.startswith(place)), key=len, default="")
    return file[len(longest) :]

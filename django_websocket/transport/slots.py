"""A piece of memory that the workers of one gunicorn share, in which each leaves its figures.

The master makes it, and every worker inherits it: it has no name by which another gunicorn could find it, and it ends
with the last process that has it. A worker writes into a slot of its own. Its figures stay there when it ends, however
it ends, and the worker that gets the slot next goes on counting from them.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import ref

__all__ = ["Slots", "share", "shared"]

SLOTS = 128  # memory that nobody has written to takes no room; beyond so many workers, some are not counted
HALF = 32 * 1024  # bytes for one state of the figures; they are compressed, and some KiB even with many views
# Which half is valid, and the process that writes, 0 when it has ended. Eight bytes in their place are copied in one
# step; `pack_into` would first fill them with zeros, which a reader might see.
HEADER = struct.Struct("=Bxxxi")
STATE = struct.Struct("=II")  # the length of what follows, and its checksum
SIZE = HEADER.size + 2 * HALF
STALE = 60.0  # seconds without a new state, after which a process number is taken for that of another program
FORMAT = 1  # of the figures; another version of the package, which a reload may bring, cannot read them otherwise
ATTEMPTS = 3  # to read a slot; its owner overwrites what is being read once in two seconds


class Left(NamedTuple):
    """What a worker has left in its slot, and the number of its process, 0 if that has ended."""

    figures: Any
    process: int


class Slots:
    """The slots of one gunicorn's workers."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SLOTS * SIZE)
        self._owners: list[ref[object] | None] = [None] * SLOTS  # known to the process that makes the workers

    def reserve(self, owner: object) -> int | None:
        """Return the number of a slot for `owner`, until that is freed; None if all are taken.

        To be called in the master, before it forks: there, one worker after the other gets its slot.
        """
        for number, taken in enumerate(self._owners):
            if taken is None or taken() is None:
                self._owners[number] = ref(owner)
                return number
        return None

    def write(self, number: int, figures: Any) -> bool:
        """Replace the figures in a slot; return False if they are too large. A reader never sees a part of them."""
        return self._write(number, os.getpid(), figures)

    def leave(self, number: int, figures: Any) -> bool:
        """Write for the last time: the process ends."""
        return self._write(number, 0, figures)

    def _write(self, number: int, process: int, figures: Any) -> bool:
        data = zlib.compress(json.dumps([FORMAT, time.monotonic(), figures]).encode(), 1)
        if STATE.size + len(data) > HALF:
            return False
        begin = number * SIZE
        half = 1 - HEADER.unpack_from(self._memory, begin)[0]
        at = begin + HEADER.size + half * HALF
        self._memory[at : at + STATE.size + len(data)] = STATE.pack(len(data), zlib.crc32(data)) + data
        self._memory[begin : begin + HEADER.size] = HEADER.pack(half, process)
        return True

    def read(self, number: int) -> Left | None:
        """Return what is in a slot; None if nobody has written there."""
        for _ in range(ATTEMPTS):
            begin = number * SIZE
            half, process = HEADER.unpack(self._memory[begin : begin + HEADER.size])
            at = begin + HEADER.size + half * HALF
            size, checksum = STATE.unpack_from(self._memory, at)
            data = self._memory[at + STATE.size : at + STATE.size + size]
            if not size:
                return None
            if zlib.crc32(data) == checksum:
                version, *found = json.loads(zlib.decompress(data))
                if version != FORMAT:
                    return None
                written, figures = found
                return Left(figures, process if time.monotonic() - written < STALE and runs(process) else 0)
        return None

    def read_all(self, *, without: int | None = None) -> Iterator[Left]:
        """Yield what is in each slot but one."""
        for number in range(SLOTS):
            found = None if number == without else self.read(number)
            if found is not None:
                yield found


def runs(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        if process:
            os.kill(process, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return process != 0


_shared: Slots | None = None


def share() -> Slots:
    """Return the slots of this process and of those that it forks from now on."""
    global _shared
    if _shared is None:
        _shared = Slots()
    return _shared


def shared() -> Slots | None:
    """Return the slots, None if nobody has made any: the server has only this process, as far as can be known."""
    return _shared

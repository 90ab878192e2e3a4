"""Mishaps of the operating system that a test can cause in a server that it starts, by means of mishaps.c."""

from __future__ import annotations

import functools
import struct
import subprocess
import tempfile
from pathlib import Path

from .servers import executable

SOURCE = Path(__file__).with_name("mishaps.c")
FIELDS = struct.Struct("=qqq")


@functools.cache
def library() -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    """Build the library for LD_PRELOAD; return its path and its directory, which lasts as long as this process."""
    directory = tempfile.TemporaryDirectory()
    path = Path(directory.name, "mishaps.so")
    command = [executable("cc"), "-Wall", "-Werror", "-shared", "-fPIC", "-O1", "-o", str(path), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return path, directory


class Mishaps:
    """The mishaps of all servers that have `env` in their environment.

    Args:
        path: The file that tells the servers of mishaps; it is overwritten.
    """

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(FIELDS.size))
        self._path = path
        self.env = {"LD_PRELOAD": str(library()[0]), "MISHAPS": str(path)}

    def happen(self, *, seconds: int = 0, accept: int = 0, socket: int = 0) -> None:
        """From now on, set the time of day off by `seconds`, and make `accept` and `socket` fail with these errors."""
        with self._path.open("r+b") as file:
            file.write(FIELDS.pack(seconds, accept, socket))

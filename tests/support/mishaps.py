"""Mishaps of the system that a test can have whenever it likes, in a server that it starts: mishaps.c does them."""

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
    """What LD_PRELOAD is to name, with the directory that it is in for as long as this process runs."""
    directory = tempfile.TemporaryDirectory()
    path = Path(directory.name, "mishaps.so")
    command = [executable("cc"), "-Wall", "-Werror", "-shared", "-fPIC", "-O1", "-o", str(path), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return path, directory


class Mishaps:
    """Those of the servers that have `env` in their environment.

    Args:
        path: A file for it, which is written anew.
    """

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(FIELDS.size))
        self._path = path
        self.env = {"LD_PRELOAD": str(library()[0]), "MISHAPS": str(path)}

    def happen(self, *, seconds: int = 0, accept: int = 0, socket: int = 0) -> None:
        """From now on the time of day differs by so many seconds, and `accept` and `socket` have these errors."""
        with self._path.open("r+b") as file:
            file.write(FIELDS.pack(seconds, accept, socket))

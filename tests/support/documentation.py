"""The examples of README.md and docs/, and a project with each of them in the file that it names.

A block of code begins with a comment that names its file: `# chat/views.py`, or `// chat/static/chat/live.js`, replaces
the whole file, and `# chat/views.py: add` is added at its end. Blocks in `sh` are commands, one on each line, and
blocks in `text` are the output of a program.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .servers import HTTP_PROBE, NOT_INHERITED, ROOT, Server, free_port

RECIPES = tuple(sorted(f"docs/recipes/{path.name}" for path in (ROOT / "docs" / "recipes").glob("*.md")))
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")), *RECIPES)
TUTORIAL = "docs/tutorial.md"  # whose blocks replace each other from step to step; test_tutorial.py follows it
GUIDES = ("CONTRIBUTING.md", "SECURITY.md")  # for people who work on the package: their commands run in its tree
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?:#|<!--|//) (\S+\.\w+)(: add)?(?: -->)?\n")

ENVIRONMENT = {
    "PYTHONDONTWRITEBYTECODE": "1",
    # Every gunicorn of one user has the same default path.
    "GUNICORN_CMD_ARGS": "--no-control-socket",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    code: str

    @property
    def file(self) -> str:
        """The path in the project that the block's first line names."""
        return self._named[1]

    @property
    def adds(self) -> bool:
        """Whether the block is added at the end of its file."""
        return bool(self._named[2])

    @property
    def _named(self) -> re.Match[str]:
        match = FILE.match(self.code)
        assert match, f"{self.page}: the first line of this block names no file:\n{self.code}"
        return match


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    return blocks_in((ROOT / page).read_text(), page)


def blocks_in(text: str, page: str) -> list[Block]:
    """Return the fenced blocks of a part of a page in order."""
    found = [Block(page, match[2], textwrap.dedent(match[3])) for match in BLOCK.finditer(text)]
    assert len(found) * 2 == text.count("```"), f"{page} has a fence that is not closed"
    return found


def commands(page: str) -> list[str]:
    """Return the shell commands of a page."""
    return [line for block in blocks(page) if block.language == "sh" for line in block.code.splitlines() if line]


def command(page: str, *parts: str) -> str:
    """Return the one command of a page that contains all of `parts`."""
    found = {line for line in commands(page) if all(part in line for part in parts)}
    assert len(found) == 1, f"{page} has {len(found)} commands with {parts}: {found}"
    return found.pop()


class Project:
    """A Django project in a directory, made from the pages' commands and files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, page: str, replacements: Mapping[str, str] | None = None) -> None:
        """Write a page's blocks to the files that they name, with some strings replaced."""
        for block in blocks(page):
            if block.language in ("sh", "text"):
                continue
            code = block.code
            for old, new in (replacements or {}).items():
                code = code.replace(old, new)
            self.write(block.file, code, add=block.adds)

    def write(self, file: str, code: str, *, add: bool = False) -> None:
        """Write a file, or add to its end."""
        path = self.directory / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.read_text()}\n\n{code}" if add else code)

    def run(self, line: str, *, cwd: Path | None = None, errors: bool = False) -> str:
        """Run a command and return its standard output, with `errors` its standard error, too."""
        result = subprocess.run(
            arguments(line),
            cwd=cwd or self.directory,
            env={name: value for name, value in os.environ.items() if name not in NOT_INHERITED} | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if errors else subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, f"{line} ended with {result.returncode}:\n{result.stdout}{result.stderr}"
        return result.stdout

    def shell(self, code: str) -> str:
        """Run code in the project's `manage.py shell`, and return what it prints."""
        return self.run(f"python manage.py shell --no-imports -c {shlex.quote(textwrap.dedent(code))}")

    def gunicorn(self, line: str, port: int | None = None, args: Sequence[str] = ()) -> Server:
        """Return a gunicorn that a page's command starts, on a port of its own and with further arguments."""
        port = port or free_port()
        words = arguments(line)
        assert words[0].endswith("gunicorn")
        if "-b" in words:
            words[words.index("-b") + 1] = f"127.0.0.1:{port}"
        else:
            words += ["-b", f"127.0.0.1:{port}"]
        return Server([*words, *args], port=port, probe=HTTP_PROBE, cwd=self.directory, env=ENVIRONMENT)

    def runserver(self, line: str, port: int) -> Server:
        """Return a development server on a port of its own that does not watch for changes."""
        words = [*arguments(line), f"127.0.0.1:{port}", "--noreload"]
        return Server(words, port=port, probe=HTTP_PROBE, cwd=self.directory, env=ENVIRONMENT)

    def copy(self, directory: Path) -> Project:
        """Return a copy of the project."""
        return Project(Path(shutil.copytree(self.directory, directory)))


def arguments(line: str) -> list[str]:
    """Return the words of a command, with the full paths of programs of this Python environment."""
    program, *rest = shlex.split(line)
    if program == "python":
        return [sys.executable, *rest]
    if program in ("gunicorn", "django-admin", "pytest"):
        return [str(Path(sys.executable).parent / program), *rest]
    return [program, *rest]


def readme_project(directory: Path) -> Project:
    """Follow README.md: make the project, and write each block to the file that it names."""
    start, change, app = (
        line for line in commands("README.md") if line.startswith(("django-admin", "cd", "python manage.py startapp"))
    )
    project = Project(directory / change.removeprefix("cd "))
    project.run(start, cwd=directory)
    project.run(app)
    project.put("README.md")
    return project

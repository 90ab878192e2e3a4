"""The JavaScript packages that tests load into pages, in the versions of tests/frontend/package.json."""

from __future__ import annotations

import sys
from pathlib import Path

from .servers import unavailable

# Where scripts/test installs them. Commands that npm runs, such as a bundler, find all packages from here.
FRONTEND = Path(sys.prefix) / "frontend"


def package_file(name: str) -> Path:
    """Return the path of a package's file, as in "vue/dist/vue.esm-browser.prod.js"."""
    path = FRONTEND / "node_modules" / name
    if not path.exists():
        unavailable(f"{name} is not installed; scripts/test installs it with npm")
    return path

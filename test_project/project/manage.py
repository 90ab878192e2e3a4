#!/usr/bin/env python
"""The manage.py of the directory above, under the path that version 0.2 of the package documents."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    manage = Path(__file__).resolve().parent.parent / "manage.py"
    sys.path[0] = str(manage.parent)  # and not this directory, which is the package
    sys.argv[0] = str(manage)  # so that the reloader starts it
    runpy.run_path(sys.argv[0], run_name="__main__")

"""The coverage-guided search of scripts/fuzz; the arguments are libFuzzer's."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["django_websocket"]):
    from .fuzz import check_input

if __name__ == "__main__":
    atheris.Setup(sys.argv, check_input)
    atheris.Fuzz()

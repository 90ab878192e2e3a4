"""Values as JSON text, and back: strict JSON (RFC 8259), with the types that Django knows."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_NESTING = 100  # the limit of Ruby's JSON; str() and other recursive code fails at about a thousand
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON escapes it


def as_json(value: Any) -> str:
    """Return the text of `value` in JSON, with the types that Django knows: dates, decimals, UUIDs, lazy translations.

    Raises TypeError or ValueError for a value that JSON cannot express, NaN included, and for one that is nested too
    deeply. A lone surrogate (half a character) raises UnicodeEncodeError, a ValueError, only when the text is encoded.
    """
    from django.core.serializers.json import DjangoJSONEncoder

    try:
        return json.dumps(value, cls=DjangoJSONEncoder, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError("The value is nested too deeply for JSON.") from None


def from_json(message: str | bytes) -> Any:
    """Return the value that a message holds as JSON. `as_json` takes every value that this returns.

    Raises ValueError for a message that is not JSON (RFC 8259; NaN and Infinity are not), for a number too large for a
    float, for a lone surrogate (half a character), and for a value nested more than `MAX_NESTING` times.
    """
    text = message if isinstance(message, str) else message.decode(json.detect_encoding(message))
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > MAX_NESTING and _nesting_exceeds(value, MAX_NESTING):
        raise _too_deep()
    if SURROGATE.search(text):  # usually one of a pair; encoding finds a lone one
        as_json(value).encode()
    return value


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError("A number in the JSON is too large.")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON.")


def _too_deep() -> ValueError:
    return ValueError(f"The JSON is nested more than {MAX_NESTING} times.")


def _nesting_exceeds(value: Any, limit: int) -> bool:
    """Whether lists and dicts stand in one another more than `limit` times."""
    level = [value]
    for _ in range(limit + 1):
        level = [thing for thing in level if type(thing) in (list, dict)]
        if not level:
            return False
        level = [inner for thing in level for inner in (thing.values() if type(thing) is dict else thing)]
    return True

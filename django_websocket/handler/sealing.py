"""What processes of a project tell each other, signed, so that nobody else who can publish can do so in their name.

The key is the project's `SECRET_KEY`; what was signed with one of `SECRET_KEY_FALLBACKS` is read, too.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from django.core.signing import BadSignature, Signer

__all__ = ["Sealed", "opened", "sealed"]

SALT = "django_websocket.processes."


class Sealed(NamedTuple):
    """What a process has said, and when: in seconds since the epoch, by the clock of its machine."""

    time: float
    value: Any


def sealed(value: Any, purpose: str, *, compress: bool = False) -> str:
    """Return what tells other processes of `value`, which JSON can express, for this `purpose` alone."""
    return Signer(salt=SALT + purpose).sign_object([time.time(), value], compress=compress)


def opened(message: str | bytes, purpose: str) -> Sealed:
    """Return what `sealed` was given. Raises ValueError if no process of this project has said that."""
    if not isinstance(message, str):
        raise ValueError("a binary message")
    try:
        moment, value = Signer(salt=SALT + purpose).unsign_object(message)
    except BadSignature as error:
        raise ValueError(str(error)) from None
    return Sealed(moment, value)

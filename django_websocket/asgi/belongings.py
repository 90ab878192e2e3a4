"""What a conversation's code opens and the conversation closes, without a word between the two."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

__all__ = ["Belonging", "belongings"]


class Belonging(Protocol):
    """Something to close at the end of a conversation."""

    def close(self) -> None:
        """End it; never waits."""


belongings: ContextVar[set[Belonging] | None] = ContextVar("belongings", default=None)

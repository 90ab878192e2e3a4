"""What code opens for the client of a conversation, which closes it at its end: neither has to know the other."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

__all__ = ["Belonging", "Owner", "owner"]


class Belonging(Protocol):
    """Something that ends with a conversation."""

    def close(self) -> None:
        """End it; never waits."""


class Owner(Protocol):
    """A conversation."""

    def own(self, belonging: Belonging) -> bool:
        """Close something at the end; return False if that was before."""


owner: ContextVar[Owner | None] = ContextVar("owner", default=None)  # of what the running code opens

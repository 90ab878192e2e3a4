"""What `@websocket(...)` sets for one view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from django_websocket import conf

from .protocol.deflate import Compression
from .transport.limits import Limits


@dataclass(frozen=True)
class Options:
    """The options of a WebSocket view; see `decorators.websocket` for their meaning."""

    origins: tuple[str, ...] = ()
    subprotocols: tuple[str, ...] = ()
    max_message_size: int | None = None
    receive: bool = True
    compression: bool = True
    refuse: str | None = None
    until_logout: bool = True

    def limits(self) -> Limits:
        """Return the project's limits, with those that the view sets itself."""
        limits = conf.current().limits
        if self.max_message_size is None:
            return limits
        return replace(limits, max_message_size=self.max_message_size)

    def refuses_by_closing(self) -> bool:
        """Whether a refusal is to be a close code, which a page can read, in place of an HTTP status."""
        return (self.refuse or conf.current().refuse) == "close"

    def wanted_compression(self) -> Compression | None:
        """Return what the project wants of compression; None where it or the view wants none."""
        return conf.current().wanted_compression if self.compression else None


def options_of(view: Callable[..., Any]) -> Options | None:
    """Return the options of a view of the urlconf; None for one that no `@websocket` is seen on."""
    handler = getattr(getattr(view, "view_class", None), "get", None)  # of a class; each handshake is a GET
    options: Options | None = getattr(view, "websocket_options", None) or getattr(handler, "websocket_options", None)
    return options

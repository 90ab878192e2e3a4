"""Whether there may be consumers of Channels to recognise: projects without Channels do not have it imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any


def recognised(application: Callable[..., Any]) -> Callable[..., Any]:
    """Return an ASGI application whose consumers run as views do; see the module `consumers`."""
    if "channels" not in sys.modules:
        return application
    from .consumers import recognise

    return recognise(application)


def unserved(application: Callable[..., Any]) -> Iterable[str]:
    """Return a sentence for each part of an ASGI application that this server does not run."""
    if "channels" not in sys.modules:
        return ()
    from . import consumers

    return consumers.unserved(application)


def checks_origin(application: Callable[..., Any]) -> bool:
    """Whether an ASGI application checks the origin of each page itself, by Channels' `OriginValidator`."""
    if "channels" not in sys.modules:
        return False
    from . import consumers

    return consumers.checks_origin(application)

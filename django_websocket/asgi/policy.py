"""Which loops asyncio makes in the worker: those that run on gevent's. Whoever uses none never imports them."""

from __future__ import annotations

import asyncio
import warnings
from functools import wraps

from django_websocket import compat

__all__ = ["foreign_policy", "install"]

with warnings.catch_warnings():  # Python 3.14 deprecates policies, and has nothing in their place yet
    warnings.simplefilter("ignore", DeprecationWarning)
    from asyncio import DefaultEventLoopPolicy, get_event_loop_policy, set_event_loop_policy


class HubLoopPolicy(DefaultEventLoopPolicy):
    """Has `asyncio.run()`, and whatever else makes a loop, make one that lets gevent's hub wait for it."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """Return a new loop for the running thread."""
        from .loop import HubLoop

        return HubLoop()


run_forever = asyncio.BaseEventLoop.run_forever


@wraps(run_forever)
def run_forever_unseen(loop: asyncio.BaseEventLoop) -> None:
    """Run a loop of asyncio's own classes, which a project may make by their names, unseen by other greenlets."""
    from .loop import hide_running_loops

    hide_running_loops()
    run_forever(loop)


def install() -> None:
    """Have asyncio make loops for greenlets from now on, and have no greenlet see which loop another one runs.

    See the module `loop`. Raises `compat.Incompatible` where that cannot be done.
    """
    compat.verify("asyncio")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        set_event_loop_policy(HubLoopPolicy())
    asyncio.BaseEventLoop.run_forever = run_forever_unseen  # type: ignore[method-assign, assignment]


def foreign_policy() -> str | None:
    """Return the name of the policy that makes loops here, None if it is asyncio's own or ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        policy = type(get_event_loop_policy())
    known = policy.__module__.partition(".")[0] in ("asyncio", __name__.partition(".")[0])
    return None if known else f"{policy.__module__}.{policy.__qualname__}"

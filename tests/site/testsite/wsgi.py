"""What gunicorn serves."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testsite.settings")

from django.core.wsgi import get_wsgi_application

from django_websocket.wsgi import get_wsgi_websocket_application

websocket = get_wsgi_websocket_application()
application = get_wsgi_websocket_application(http=get_wsgi_application())


class Monitored:
    """A response as monitoring wraps it: with an object of its own."""

    def __init__(self, response: Iterable[bytes]) -> None:
        self.response = response

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.response)

    def close(self) -> None:
        if hasattr(self.response, "close"):
            self.response.close()


def monitored(environ: dict[str, Any], start_response: Callable[..., Any]) -> Monitored:
    """The application within somebody else's."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        return start_response(status, [*headers, ("X-Monitored", "yes")], exc_info)

    return Monitored(application(environ, start))


def late(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    """The same within one that begins when its answer is asked for, and passes on a copy of the environment."""
    yield from monitored({**environ}, start_response)


def generating(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The application within one that calls it at once, and passes its answer on by a generator."""
    response = application(environ, start_response)

    def body() -> Iterator[bytes]:
        try:
            yield from response
        finally:
            getattr(response, "close", bool)()
            print(f"body of {environ['PATH_INFO']} is over", file=sys.stderr, flush=True)

    return body()


class FailsAtTheEnd(Monitored):
    """A response that cannot be closed."""

    def close(self) -> None:
        super().close()
        raise ValueError("raised when the response was closed")


def failing_at_the_end(environ: dict[str, Any], start_response: Callable[..., Any]) -> Monitored:
    """The application within one that is no more than that."""
    return FailsAtTheEnd(application(environ, start_response))

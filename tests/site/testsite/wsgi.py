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
    """A response in a wrapper of its own, as monitoring tools make it."""

    def __init__(self, response: Iterable[bytes]) -> None:
        self.response = response

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.response)

    def close(self) -> None:
        if hasattr(self.response, "close"):
            self.response.close()


def monitored(environ: dict[str, Any], start_response: Callable[..., Any]) -> Monitored:
    """The application inside another one, as monitoring tools wrap it."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        return start_response(status, [*headers, ("X-Monitored", "yes")], exc_info)

    return Monitored(application(environ, start))


def late(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    """The same inside a generator, which begins only when iterated, and which passes on a copy of the environment."""
    yield from monitored({**environ}, start_response)


def generating(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The application inside one that calls it at once and passes its answer on through a generator."""
    response = application(environ, start_response)

    def body() -> Iterator[bytes]:
        try:
            yield from response
        finally:
            getattr(response, "close", bool)()
            print(f"body of {environ['PATH_INFO']} is over", file=sys.stderr, flush=True)

    return body()


class FailsAtTheEnd(Monitored):
    """A response whose `close()` raises."""

    def close(self) -> None:
        super().close()
        raise ValueError("raised when the response was closed")


def failing_at_the_end(environ: dict[str, Any], start_response: Callable[..., Any]) -> Monitored:
    """The application inside one whose responses fail when closed."""
    return FailsAtTheEnd(application(environ, start_response))


def echoes_the_path(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """An application that knows nothing of Django, nor of WebSockets."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode()]

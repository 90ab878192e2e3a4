"""The decorators that make a function a WebSocket view."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, cast, overload

import gevent
from asgiref.sync import iscoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponseBase

from django_websocket import conf

from .protocol.deflate import Compression
from .protocol.handshake import TOKEN
from .transport.limits import Limits
from .transport.rates import OVER, Rate
from .transport.turns import let_others_run
from .websocket import WebSocket

__all__ = ["websocket", "websocket_loop"]

DRF = "rest_framework.decorators"
LEFT = (
    "{} was called for a message, but did not receive it: call websocket.receive() once, "
    "or use @websocket and write the loop yourself."
)

P = ParamSpec("P")
R = TypeVar("R", bound=HttpRequest)
Over = Literal["wait", "drop", "close"]
View = Callable[Concatenate[R, WebSocket, P], HttpResponseBase | None]
Decorated = Callable[Concatenate[R, P], HttpResponseBase]

if TYPE_CHECKING:
    from django.urls import URLPattern

    from .asgi.websocket import AsyncWebSocket

    AsyncView = Callable[Concatenate[R, AsyncWebSocket, P], Coroutine[Any, Any, HttpResponseBase | None]]
    AsyncDecorated = Callable[Concatenate[R, P], Coroutine[Any, Any, HttpResponseBase]]

    class Decorator(Protocol):
        """What `@websocket` with options returns."""

        @overload
        def __call__(self, view: View[R, P], /) -> Decorated[R, P]: ...
        @overload
        def __call__(self, view: AsyncView[R, P], /) -> AsyncDecorated[R, P]: ...


@dataclass(frozen=True)
class Options:
    """What `@websocket(...)` sets for one view; see there for the meaning."""

    origins: tuple[str, ...] = ()
    subprotocols: tuple[str, ...] = ()
    max_message_size: int | None = None
    receive: bool = True
    compression: bool = True
    refuse: str | None = None
    until_logout: bool = True
    rate: Rate | None = None

    def limits(self) -> Limits:
        """Return the project's limits, with those that the view sets itself."""
        limits = conf.current().limits
        if self.max_message_size is None:
            return limits
        return replace(limits, max_message_size=self.max_message_size)

    def refuses_by_closing(self) -> bool:
        """Return whether a refusal is to be a close code, which a page can read, in place of an HTTP status."""
        return (self.refuse or conf.current().refuse) == "close"

    def wanted_compression(self) -> Compression | None:
        """Return the project's wishes for compression; None if it or the view wants none."""
        return conf.current().wanted_compression if self.compression else None


def options_of(view: Callable[..., Any]) -> Options | None:
    """Return the options of a view of the urlconf; None for one that no `@websocket` is seen on."""
    inner: Callable[..., Any] | None = view
    while inner is not None:
        options: Options | None = getattr(inner, "websocket_options", None)
        if options is not None:
            return options
        inner = inside(inner)
    return None


def inside(view: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return what a view calls for a handshake, as far as it says so; None for one that is an end in itself."""
    if isinstance(view, functools.partial):
        return view.func
    view_class = getattr(view, "view_class", None) or getattr(view, "cls", None)  # a ViewSet of DRF has the latter
    if view_class is not None:
        return getattr(view_class, getattr(view, "actions", {}).get("get", "get"), None)  # each handshake is a GET
    wrapped: Callable[..., Any] | None = getattr(view, "__wrapped__", None)
    if wrapped is not None:
        return wrapped
    if inspect.isfunction(view):
        # @api_view makes a class whose methods know the function, but not its attributes.
        return inspect.getclosurevars(view).nonlocals.get("func") if view.__module__ == DRF else None
    return None if inspect.isroutine(view) else type(view).__call__


def is_asgi(view: Callable[..., Any]) -> bool:
    """Return whether a callable is an ASGI application: it takes `scope`, `receive` and `send`, by these names."""
    if inspect.isclass(view):
        return False
    for follow_wrapped in (False, True):  # Channels' `as_asgi()` seems to wrap its class, a decorator does wrap
        try:
            names = list(inspect.signature(view, follow_wrapped=follow_wrapped).parameters)
        except (TypeError, ValueError):
            return False
        if names[:3] == ["scope", "receive", "send"]:
            return True
    return False


def without_as_asgi(view: Any) -> str | None:
    """Return what to tell who lists the class of a Channels consumer in place of its application; None for all else."""
    if not (inspect.isclass(view) and hasattr(view, "as_asgi")):
        return None
    return f"The route to the consumer {name_of(view)} has the class itself: write {view.__name__}.as_asgi() instead."


def misnamed(pattern: URLPattern) -> str | None:
    """Return what is wrong with the arguments of a pattern's view, a function that misses what `@websocket` gives."""
    view = pattern.callback
    decorated = options_of(view) is not None
    while (wrapped := getattr(view, "__wrapped__", None)) is not None:
        if not decorated:
            return None  # the decorator may be one of the project's that gives it the WebSocket
        view = wrapped
    if not inspect.isfunction(view):
        return None
    names = [*inspect.signature(view).parameters]
    if not decorated:
        has_it = "websocket" in names
        return "has an argument named websocket, but no @websocket above it." if has_it else None
    from_url = getattr(pattern.pattern, "converters", {})
    if names[1:2] and names[1] in from_url:
        return f"gets the WebSocket as its second argument, but that is {names[1]}: write it behind websocket."
    return None


def name_of(view: Callable[..., Any]) -> str:
    """Return where a view is defined, for a message: its function or class."""
    while isinstance(view, functools.partial):
        view = view.func
    named = getattr(view, "view_class", view)
    if not hasattr(named, "__qualname__"):  # an object that can be called
        named = type(named)
    return f"{named.__module__}.{named.__qualname__}"


@overload
def websocket(view: View[R, P], /) -> Decorated[R, P]: ...
@overload
def websocket(view: AsyncView[R, P], /) -> AsyncDecorated[R, P]: ...
@overload
def websocket(
    *,
    origins: Sequence[str] = ...,
    subprotocols: Sequence[str] = ...,
    max_message_size: int | None = ...,
    receive: bool = ...,
    compression: bool = ...,
    refuse: str | None = ...,
    until_logout: bool = ...,
    rate: tuple[int, float] | None = ...,
    over: Over = ...,
) -> Decorator: ...
def websocket(
    view: Callable[..., Any] | None = None,
    /,
    *,
    origins: Sequence[str] = (),
    subprotocols: Sequence[str] = (),
    max_message_size: int | None = None,
    receive: bool = True,
    compression: bool = True,
    refuse: str | None = None,
    until_logout: bool = True,
    rate: tuple[int, float] | None = None,
    over: Over = "wait",
) -> Any:
    """Give the view the client's `WebSocket` as its second argument: `view(request, websocket, ...)`.

    Use it bare, `@websocket`, or with options:

    - `origins`: other sites whose pages may connect, such as "https://example.com".
    - `subprotocols`: the subprotocols that the view speaks, the preferred one first (RFC 6455, section 1.9).
    - `max_message_size`: bytes, in place of `WEBSOCKET_MAX_MESSAGE_SIZE`.
    - `receive=False`: read and drop what the client sends, for a view that only sends.
    - `compression=False`: compress nothing, whatever the setting says.
    - `refuse`: "close" to refuse with a close code that the page can read, such as 4403, or "http" to refuse with the
      HTTP status, whatever the setting says.
    - `until_logout=False`: leave the connection open when the login of its user ends.
    - `rate`: how many messages a client may send in how many seconds, `(5, 1.0)`: five at once after a pause, and five
      a second in the long run.
    - `over`: what happens to a client that sends more. With "wait", no more is read from it until its time has come;
      with "drop", the excess messages are dropped; with "close", it is closed with 1008.

    Django's own decorators may stand above it. Raises TypeError, ValueError or ImproperlyConfigured for an option that
    makes no sense.
    """
    for option, value in (("origins", origins), ("subprotocols", subprotocols)):
        if isinstance(value, str):
            raise TypeError(f"{option} is {value!r}, but must be a list: {option}=[{value!r}]")
    for name in subprotocols:
        if not TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of a subprotocol: use no spaces, commas or quotes")
    if max_message_size is not None and (not isinstance(max_message_size, int) or max_message_size <= 0):
        raise ValueError(f"max_message_size is {max_message_size!r}, but must be a number of bytes above 0")
    if refuse is not None:
        conf.check_refuse(refuse)
    options = Options(
        tuple(origins),
        tuple(subprotocols),
        max_message_size,
        receive,
        compression,
        refuse,
        until_logout,
        rate_of(rate, over),
    )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        wrapper: Callable[..., Any] = (
            with_async_websocket(function) if iscoroutinefunction(function) else with_websocket(function)
        )
        vars(wrapper)["websocket_options"] = options
        return wrapper

    return decorate if view is None else decorate(view)


def rate_of(rate: Any, over: Any) -> Rate | None:
    """Return the rate that two options of `@websocket` give a view. Raises ValueError if they make no sense."""
    if over not in OVER:
        raise ValueError(f'over is {over!r}, but must be "wait", "drop" or "close"')
    if rate is None:
        if over != "wait":
            raise ValueError(f"over={over!r} says what happens beyond a rate: give one too, such as rate=(5, 1.0)")
        return None
    if isinstance(rate, (tuple, list)) and len(rate) == 2:
        messages, seconds = rate
        if (
            isinstance(messages, int)
            and isinstance(seconds, (int, float))
            and bool not in (type(messages), type(seconds))
            and messages > 0
            and 0 < seconds < math.inf
        ):
            return Rate(messages, float(seconds), over)
    raise ValueError(
        f"rate is {rate!r}, but must be a whole number of messages and the seconds in which a client may send so many, "
        f"both above 0: rate=(5, 1.0)"
    )


def with_websocket(function: Callable[..., HttpResponseBase | None]) -> Callable[..., HttpResponseBase]:
    """Return a view that gives `function` its `WebSocket`."""

    @functools.wraps(function)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        client = request.META.get("wsgi.websocket")
        if not isinstance(client, WebSocket):
            raise misplaced(function, client)
        # Before Python 3.12, each call with stars costs a greenlet that waits half a KiB of C stack.
        starred = args or kwargs
        answer = function(request, client, *args, **kwargs) if starred else function(request, client)
        # Decorators above expect a response.
        return client.response if answer is None else answer

    return wrapper


def with_async_websocket(
    function: Callable[..., Coroutine[Any, Any, HttpResponseBase | None]],
) -> Callable[..., Coroutine[Any, Any, HttpResponseBase]]:
    """Return a view that gives `function`, a coroutine function, its `AsyncWebSocket`."""
    from .asgi.websocket import AsyncWebSocket

    @functools.wraps(function)
    async def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        client = request.META.get("wsgi.websocket")
        if not isinstance(client, AsyncWebSocket):
            raise misplaced(function, client)
        answer = await function(request, client, *args, **kwargs)
        return client.response if answer is None else answer

    return wrapper


def misplaced(function: Callable[..., Any], client: object) -> ImproperlyConfigured:
    """Return the error of a view that does not get the kind of WebSocket that it needs."""
    if client is None:
        return ImproperlyConfigured(
            f"{name_of(function)} is a WebSocket view, but was called for an ordinary request: list it in "
            f"the module that WEBSOCKET_URLCONF names, not in ROOT_URLCONF."
        )
    kinds = ("async def", "a plain def") if iscoroutinefunction(function) else ("a plain def", "async def")
    return ImproperlyConfigured(
        f"{name_of(function)} is {kinds[0]}, but a decorator above @websocket makes it {kinds[1]}: use one that "
        f"keeps an `async def` asynchronous and a plain `def` synchronous, as Django's own decorators do."
    )


@overload
def websocket_loop(view: View[R, P]) -> Decorated[R, P]: ...
@overload
def websocket_loop(view: AsyncView[R, P]) -> AsyncDecorated[R, P]: ...
def websocket_loop(view: Callable[..., Any]) -> Any:
    """Call `view(request, websocket, ...)` each time there is a message to `receive()`, until there will be no more.

    A view that leaves its message unreceived again and again ends with a RuntimeError: it would be called for ever. A
    view that returns a refusal is not called again; other responses are lost.
    """
    if iscoroutinefunction(view):
        return async_loop(view)

    @functools.wraps(view)
    def loop(request: HttpRequest, client: WebSocket, *args: Any, **kwargs: Any) -> HttpResponseBase | None:
        source = client.readiness
        current: Any = gevent.getcurrent()
        left = False  # whether the view seems to have taken nothing; further messages may have come meanwhile
        certain = False  # whether it has taken nothing
        response = None  # the last one, about which the log has a warning at the end

        def asked() -> None:
            current.message_is_there = False

        while not source.at_end:
            if source.ready():
                waiting = len(source.inbox)
                current.message_is_there = True
                if left and source.before_taking is None:
                    source.before_taking = asked  # else the hook of the databases does the same
                answer = view(request, client, *args, **kwargs)
                if answer is not None:
                    response = answer
                    if getattr(answer, "status_code", 0) >= 300:
                        break
                if left:
                    if current.message_is_there and source.before_taking is not None and not source.at_end:
                        if certain:
                            raise RuntimeError(LEFT.format(name_of(view)))
                        certain = True
                    else:
                        certain = False
                    if source.before_taking is asked:
                        source.before_taking = None
                left = len(source.inbox) >= waiting
                if left:
                    let_others_run()  # a view that spins must not stop other clients
            else:
                source._wait()
        return response

    return websocket(loop)


def async_loop(view: Callable[..., Coroutine[Any, Any, HttpResponseBase | None]]) -> Callable[..., Any]:
    """Return what `websocket_loop` makes of a coroutine function."""
    from .asgi.waiting import until_ready

    @functools.wraps(view)
    async def loop(request: HttpRequest, client: AsyncWebSocket, *args: Any, **kwargs: Any) -> HttpResponseBase | None:
        await client.accept()
        source = client.connection
        assert source is not None
        response = None  # the last one, about which the log has a warning at the end
        while not source.at_end:
            if not source.ready():
                await until_ready(source)
                continue
            received = client.received
            answer = await view(request, client, *args, **kwargs)
            if answer is not None:
                response = answer
                if answer.status_code >= 300:
                    break
            if client.received == received and not source.at_end:
                raise RuntimeError(LEFT.format(name_of(view)))
        return response

    return websocket(cast(Any, loop))

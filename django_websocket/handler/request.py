"""The request of a handshake, as the view has it for as long as its client is connected."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject, empty

from django_websocket import conf
from django_websocket.compat import naming

with naming("application"):
    from django.core.handlers.wsgi import WSGIRequest

MESSAGES = "django.contrib.messages.storage."  # the modules of Django's own storages
AUTHENTICATION = "django.contrib.auth.middleware"  # the module of the function behind `request.auser`
FORGOTTEN = {name: f"forgotten {name}" for name in ("auser", "_messages")}  # where what makes them anew is kept
TIED = (*FORGOTTEN, *FORGOTTEN.values())  # what refers to its request, or makes what does


class Forgotten:
    """An attribute that a middleware sets and a request may forget: whoever asks for it then has a new one.

    `make` makes it, from what was kept in its place and the request. Without the middleware, there is none.
    """

    def __init__(self, name: str, make: Callable[[Any, HttpRequest], Any]) -> None:
        self._name = name
        self._key = FORGOTTEN[name]
        self._make = make

    def __get__(self, request: HttpRequest | None, kind: type) -> Any:
        if request is None:
            return self
        attributes = vars(request)
        if self._key not in attributes:
            raise AttributeError(f"{kind.__name__!r} object has no attribute {self._name!r}")
        value = attributes[self._name] = self._make(attributes.pop(self._key), request)
        return value


class WebSocketRequest(WSGIRequest):
    """The request of a handshake."""

    _messages = Forgotten("_messages", lambda storage, request: storage(request))
    auser = Forgotten("auser", partial)
    is_handshake = True  # for receivers of signals that pages send, too
    _allowed_host: str | None = None

    @property
    def scheme(self) -> str | None:
        """The scheme of the page: what Django's own says, and "https" where a proxy says "wss" of the WebSocket."""
        name, secure = conf.current().secure_proxy_ssl_header or ("", "")
        if secure == "https" and self.META.get(name, "").partition(",")[0].strip() == "wss":
            return "https"
        return super().scheme

    def get_host(self) -> str:
        """Return the host that the request names, which Django validates once. Raises DisallowedHost as Django does."""
        host: str = self._get_raw_host()  # type: ignore[attr-defined]
        if host != self._allowed_host:
            host = self._allowed_host = super().get_host()
        return host

    def build_absolute_uri(self, location: str | None = None) -> str:
        """Return the absolute address of `location`; that of the request itself begins with ws.

        The site-wide cache goes by it, and so never answers a handshake with a page of the same path.
        """
        if location is None:
            return super().build_absolute_uri().replace("http", "ws", 1)
        return super().build_absolute_uri(location)

    def forget_unused(self) -> None:
        """Forget what Django's middleware has made and hardly any view uses after its 101.

        These are the messages of `django.contrib.messages`, the way to the user who is known already, and `auser`: one
        and a half KiB for each client that is connected, in seventeen objects for the garbage collector to look at.
        """
        attributes = vars(self)
        storage: Any = attributes.get("_messages")
        if type(storage).__module__.startswith(MESSAGES) and not (storage.used or storage.added_new):
            attributes[FORGOTTEN["_messages"]] = type(storage)
            del attributes["_messages"]
        fetch = attributes.get("auser")
        if type(fetch) is partial and fetch.func.__module__ == AUTHENTICATION and fetch.args == (self,):
            attributes[FORGOTTEN["auser"]] = fetch.func
            del attributes["auser"]
        forget_way_to(attributes.get("user"))


def forget_way_to(user: object) -> None:
    """Forget how a user was looked up; that refers to the request, and has done its work."""
    if isinstance(user, SimpleLazyObject) and user._wrapped is not empty:
        vars(user)["_setupfunc"] = None

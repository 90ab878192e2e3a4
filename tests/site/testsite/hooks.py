"""Middleware of the kinds that people write, with every hook that Django has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.decorators import sync_and_async_middleware

from . import probe

GetResponse = Callable[[HttpRequest], HttpResponse]


class Outer:
    """Notes each call of a hook, and answers in place of the view or of an exception if the query says so."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self.name = type(self).__name__

    def __call__(self, request: HttpRequest) -> HttpResponse:
        self._note(request, "request")
        response = self.get_response(request)
        self._note(request, f"response {response.status_code}")
        response[f"X-{self.name}"] = "was here"
        return response

    def _note(self, request: HttpRequest, text: str) -> None:
        if "hooks" in request.GET:
            probe.note(request, f"{self.name}: {text}")

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> HttpResponse | None:
        self._note(request, f"view {view.__name__} {kwargs}")
        return HttpResponse("answered by process_view", status=409) if self._is_asked(request, "view") else None

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        self._note(request, f"exception {exception}")
        return HttpResponse(f"answered: {exception}", status=418) if self._is_asked(request, "exception") else None

    def process_template_response(self, request: HttpRequest, response: TemplateResponse) -> TemplateResponse:
        self._note(request, "template response")
        response.context_data = {**(response.context_data or {}), self.name: "was here"}
        return response

    def _is_asked(self, request: HttpRequest, hook: str) -> bool:
        return request.GET.get("hooks") == f"{self.name}-{hook}"


class Inner(Outer):
    """The same, inside `Outer`."""


@sync_and_async_middleware
def both(get_response: GetResponse) -> GetResponse:
    """Can be async, but need not."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["X-Both"] = "was here"
        return response

    return middleware


def local_time(get_response: GetResponse) -> GetResponse:
    """Set the time zone that the query names for the duration of the request."""

    def middleware(request: HttpRequest) -> HttpResponse:
        with timezone.override(request.GET.get("zone")):
            return get_response(request)

    return middleware


def sees_queries(get_response: GetResponse) -> GetResponse:
    """See the queries of the request, as profilers do."""

    def middleware(request: HttpRequest) -> HttpResponse:
        def see(execute: Any, *args: Any) -> Any:
            request.seen.append("middleware")  # type: ignore[attr-defined]
            return execute(*args)

        request.seen = []  # type: ignore[attr-defined]
        with connection.execute_wrapper(see):
            return get_response(request)

    return middleware


def plain_session(get_response: GetResponse) -> GetResponse:
    """Have a dict for a session, as for a client that shall not get a cookie."""

    def middleware(request: HttpRequest) -> HttpResponse:
        request.session = {}  # type: ignore[assignment]
        return get_response(request)

    return middleware


def urlconf(get_response: GetResponse) -> GetResponse:
    """Serve other pages under another host name, as middleware for subdomains does."""

    def middleware(request: HttpRequest) -> HttpResponse:
        if request.get_host() == "testserver":
            request.urlconf = "testsite.other_urls"  # type: ignore[assignment]
        return get_response(request)

    return middleware


def tenant(get_response: GetResponse) -> GetResponse:
    """Set the tenant on the database wrapper (tenants/base.py)."""

    def middleware(request: HttpRequest) -> HttpResponse:
        connection.tenant = request.GET.get("tenant", "public")  # type: ignore[attr-defined]
        return get_response(request)

    return middleware

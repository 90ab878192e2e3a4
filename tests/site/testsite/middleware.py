"""Middleware of the kinds that people write."""

from collections.abc import Callable
from contextvars import ContextVar

from django.contrib.auth import get_user_model
from django.http import HttpRequest, HttpResponse

GetResponse = Callable[[HttpRequest], HttpResponse]

current_tenant: ContextVar[str] = ContextVar("current_tenant", default="nobody")


def mark(get_response: GetResponse) -> GetResponse:
    """Set a header on every response."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["X-Marked"] = str(response.status_code)
        return response

    return middleware


def tenant(get_response: GetResponse) -> GetResponse:
    """Keep something of the request in a context variable."""

    def middleware(request: HttpRequest) -> HttpResponse:
        token = current_tenant.set(request.GET.get("tenant", "nobody"))
        try:
            return get_response(request)
        finally:
            current_tenant.reset(token)

    return middleware


def bearer(get_response: GetResponse) -> GetResponse:
    """Identify the user by a header and without a session, as an API does."""

    def middleware(request: HttpRequest) -> HttpResponse:
        scheme, _, name = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer":
            request.user = get_user_model().objects.get_or_create(username=name)[0]
        return get_response(request)

    return middleware


def interfere(get_response: GetResponse) -> GetResponse:
    """Replace the view's 101 by another answer if the query says so."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if response.status_code == 101:
            if request.GET.get("interfere") == "replace":
                return HttpResponse("something else", status=409)
            if request.GET.get("interfere") == "raise":
                raise LookupError("raised by a middleware")
        return response

    return middleware

"""Pages beside the WebSockets of `monitored.py`: those of the test site, and the admin under a strict policy."""

from __future__ import annotations

from collections.abc import Callable

from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.http import HttpRequest, HttpResponseBase
from django.urls import include, path

urlpatterns = [
    path("staff/", admin.site.urls),
    path("static/<path:path>", serve, {"insecure": True}),
    path("", include("testsite.urls")),
]

ALLOWED = ("script-src", "style-src", "img-src", "connect-src", "form-action")
POLICY = "; ".join(["default-src 'none'", *(f"{kind} 'self'" for kind in ALLOWED)])


def policy(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """Have browsers run nothing but files of this site."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        response["Content-Security-Policy"] = POLICY
        return response

    return middleware

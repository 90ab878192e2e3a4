"""WebSocket views that do what ordinary views do, under the decorators of ordinary views."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required, permission_required, user_passes_test
from django.contrib.auth.mixins import LoginRequiredMixin
from django.contrib.sites.shortcuts import get_current_site
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.middleware.csrf import get_token
from django.template import engines
from django.template.response import TemplateResponse
from django.urls import include, path, reverse
from django.utils.decorators import method_decorator
from django.utils.formats import date_format
from django.utils.timezone import get_current_timezone_name, localtime
from django.utils.translation import get_language, gettext
from django.views import View
from django.views.decorators.cache import cache_control, cache_page, never_cache
from django.views.decorators.clickjacking import xframe_options_deny
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.gzip import gzip_page
from django.views.decorators.http import etag, require_GET
from django.views.decorators.vary import vary_on_cookie

from django_websocket.decorators import websocket
from django_websocket.websocket import WebSocket

from . import probe

# --- the request -----------------------------------------------------------------------------------------------------


def describe(request: HttpRequest) -> dict[str, Any]:
    """Return what a view finds in its request and in what middleware has set for it."""
    match = request.resolver_match
    assert match is not None
    return {
        "address": request.META["REMOTE_ADDR"],
        "cookies": sorted(request.COOKIES),
        "host": request.get_host(),
        "kwargs": match.kwargs,
        "language": [get_language(), request.LANGUAGE_CODE, gettext("Monday")],
        "method": request.method,
        "names": [match.view_name, match.url_name, match.namespaces, match.app_names, match.route],
        "page": [reverse("page"), reverse("ordinary:first:page", kwargs={"number": 7, "slug": "x"})],
        "path": request.get_full_path(),
        "scheme": request.scheme,
        "session": request.session.get("colour"),
        "site": [request.site.domain, get_current_site(request).domain],
        "time": [get_current_timezone_name(), date_format(localtime(datetime(2026, 1, 1, tzinfo=timezone.utc)), "H:i")],
        "token": len(get_token(request)),
        "user": [request.user.get_username(), request.user.is_authenticated],
    }


def described(request: HttpRequest, number: int, slug: str) -> JsonResponse:
    """Describe the request of a page."""
    return JsonResponse(describe(request))


@websocket
def describes(request: HttpRequest, websocket: WebSocket, number: int, slug: str) -> None:
    """Describe the request before the first message, and again for each message."""
    websocket.send_json(describe(request))
    for _ in websocket:
        websocket.send_json(describe(request))


@websocket
def says_where(request: HttpRequest, websocket: WebSocket) -> None:
    """Send the address of a page under this host name, before and after a wait."""
    websocket.send(reverse("page"))
    websocket.receive()
    websocket.send(reverse("page"))


@websocket
def tells(request: HttpRequest, websocket: WebSocket) -> None:
    """Take the messages that Django keeps for the user, and leave one."""
    websocket.response["X-Messages"] = ",".join(map(str, messages.get_messages(request)))
    messages.success(request, "from the WebSocket")
    websocket.accept()


@websocket
def tells_later(request: HttpRequest, websocket: WebSocket) -> None:
    """For each message of the client, tell whether the request has its messages yet, and take them."""
    for _ in websocket:
        has = "_messages" in vars(request)
        websocket.send_json([has, *map(str, messages.get_messages(request))])
        messages.info(request, "from the WebSocket")


# --- classes ---------------------------------------------------------------------------------------------------------

OPTIONS = {"origins": ["https://partner.example"], "subprotocols": ["v1.example"], "max_message_size": 100}


class OnMethod(View):
    """Sets options on a method."""

    @method_decorator(websocket(**OPTIONS))  # type: ignore[call-overload]
    def get(self, request: HttpRequest, websocket: WebSocket) -> None:
        for message in websocket:
            websocket.send(message)


@method_decorator(websocket(**OPTIONS), name="dispatch")  # type: ignore[call-overload]
class OnDispatch(View):
    """Sets options on the class, through `dispatch`."""

    def get(self, request: HttpRequest, websocket: WebSocket) -> None:
        for message in websocket:
            websocket.send(message)


@method_decorator(websocket(**OPTIONS), name="get")  # type: ignore[call-overload]
class OnNamedMethod(View):
    """Sets options on a method from outside it."""

    def get(self, request: HttpRequest, websocket: WebSocket) -> None:
        for message in websocket:
            websocket.send(message)


@method_decorator(login_required, name="dispatch")
class MembersOnly(View):
    """Has a decorator around the whole class and one on the method."""

    @method_decorator(websocket)
    def get(self, request: HttpRequest, websocket: WebSocket) -> None:
        websocket.send(f"hello {request.user.get_username()}")


class MembersOnlyByMixin(LoginRequiredMixin, View):
    """Does the same with Django's mixin."""

    @method_decorator(websocket)
    def get(self, request: HttpRequest, websocket: WebSocket) -> None:
        websocket.send(f"hello {request.user.get_username()}")


# --- decorators ------------------------------------------------------------------------------------------------------


def greet(request: HttpRequest, websocket: WebSocket) -> None:
    websocket.send(f"hello {request.user.get_username()}")


GUARDS: dict[str, Callable[[Any], Any]] = {
    "login": login_required,
    "permission": permission_required("testsite.add_note"),
    "permission-403": permission_required("testsite.add_note", raise_exception=True),
    "test": user_passes_test(lambda user: user.get_username() == "ann"),
}

# Decorators that change the response, or look at it.
CHANGES: dict[str, Callable[[Any], Any]] = {
    "never-cache": never_cache,
    "cache-control": cache_control(private=True),
    "vary": vary_on_cookie,
    "frames": xframe_options_deny,
    "csrf-cookie": ensure_csrf_cookie,
    "gzip": gzip_page,
    "etag": etag(lambda request, how: '"1"'),
    "cache-page": cache_page(600),
    "get": require_GET,
}


@websocket
def changed(request: HttpRequest, websocket: WebSocket, how: str) -> HttpResponseBase | None:
    """Refuse, answer, accept by returning, or converse."""
    if how == "refuse":
        raise PermissionDenied
    if how == "answer":
        return HttpResponse("x" * 1000, status=404)
    if how == "converse":
        for message in websocket:
            websocket.send(message)
        probe.note(request, "over")
    return None


@transaction.atomic
@websocket
def whole_in_atomic(request: HttpRequest, websocket: WebSocket) -> None:
    """Send inside a transaction around the whole view, which is an error."""
    websocket.send("hello")


# --- middleware ------------------------------------------------------------------------------------------------------


@websocket
def hooked(request: HttpRequest, websocket: WebSocket, how: str) -> HttpResponseBase | None:
    """Answer in each of the possible ways."""
    if how == "template":
        template = engines["django"].from_string("{{ View }}, {{ Inner }}, {{ Outer }}")
        return TemplateResponse(request, template, {"View": "was here"}, status=404)
    if how == "raise":
        raise ValueError("raised by the view")
    if how == "accept":
        websocket.accept()
        probe.note(request, "accepted")
        websocket.receive()
        raise ValueError("raised in the conversation")
    return HttpResponse("refused", status=403)


# --- monitoring ------------------------------------------------------------------------------------------------------


@websocket
def reports(request: HttpRequest, websocket: WebSocket) -> None:
    """Report each message to Sentry, or raise an exception."""
    import sentry_sdk

    sentry_sdk.set_tag("client", request.GET["client"])
    if "refuse" in request.GET:
        raise ValueError("raised in the handshake")
    for message in websocket:
        if message == "raise":
            raise ValueError("raised in the conversation")
        sentry_sdk.capture_message(str(message))
        websocket.send("reported")


in_rooms = (
    [path("room-<slug:slug>/", describes, name="page"), path("where/", says_where)],
    "rooms",
)
urlpatterns = [
    path("in/<int:number>/", include(in_rooms, namespace="first")),
    path("where/", says_where),
    path("tells/", tells),
    path("tells-later/", tells_later),
    path("options/method/", OnMethod.as_view()),
    path("options/dispatch/", OnDispatch.as_view()),
    path("options/named-method/", OnNamedMethod.as_view()),
    path("guarded/class/", MembersOnly.as_view()),
    path("guarded/mixin/", MembersOnlyByMixin.as_view()),
    *(path(f"guarded/{name}-above/", guard(websocket(greet))) for name, guard in GUARDS.items()),
    *(path(f"guarded/{name}-below/", websocket(guard(greet))) for name, guard in GUARDS.items()),
    *(path(f"changed/{name}/<str:how>/", change(changed)) for name, change in CHANGES.items()),
    path("hooked/<str:how>/", hooked),
    path("reports/", reports),
    path("whole-in-atomic/", whole_in_atomic),
]


@never_cache
def message(request: HttpRequest) -> HttpResponse:
    """Show the messages that Django keeps for the user, and leave one."""
    answer = HttpResponse(",".join(map(str, messages.get_messages(request))))
    messages.info(request, "from the page")
    return answer


def post(request: HttpRequest) -> HttpResponse:
    """Answer a POST, for which Django wants a CSRF token."""
    return HttpResponse("posted")


pages = [
    path(
        "in/<int:number>/", include(([path("room-<slug:slug>/", described, name="page")], "rooms"), namespace="first")
    ),
    path("message/", message),
    path("post/", post),
]

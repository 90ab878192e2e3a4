"""The pages: some share their path with a WebSocket, and some let a test look into the process."""

import time
from collections.abc import Iterator
from typing import Any, cast

from django.contrib.auth import get_user_model, login, logout
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt

from django_websocket.exceptions import BrokerError
from django_websocket.logins import disconnect
from django_websocket.pubsub import publish
from django_websocket.transport.connection import Connection
from django_websocket.transport.shared import open_connections

from . import asynchronous, children, client, ordinary, pasts, presence, probe, queries, sessions
from .models import Note


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"page {request.path}", content_type="text/plain")


def enter(request: HttpRequest) -> HttpResponse:
    """Log in."""
    user, _ = get_user_model().objects.get_or_create(username=request.GET.get("name", "ann"))
    login(request, user, backend=request.GET.get("backend", "django.contrib.auth.backends.ModelBackend"))
    return HttpResponse("welcome")


def leave(request: HttpRequest) -> HttpResponse:
    """Log out."""
    logout(request)
    return HttpResponse("good-bye")


def change(request: HttpRequest, what: str) -> HttpResponse:
    """End the login of the user `name` in some other way."""
    user = get_user_model().objects.get(username=request.GET["name"])
    if what == "password":
        user.set_password("another")
        user.save()
    elif what == "deactivate":
        get_user_model().objects.filter(pk=user.pk).update(is_active=False)
    elif what == "fail":
        get_user_model().objects.filter(pk=user.pk).update(first_name="faulty")
    elif what == "delete":
        user.delete()
    elif what == "expire":
        request.session.set_expiry(-1)
    else:
        disconnect(user=user, reason="go away")
    return HttpResponse("changed")


def end(request: HttpRequest) -> HttpResponse:
    """Disconnect those whom the query names, and answer with their number."""
    whom: dict[str, Any] = request.GET.dict()
    if "user" in whom:
        whom["user"] = get_user_model().objects.get(username=whom["user"])
    if "code" in whom:
        whom["code"] = int(whom["code"])
    try:
        return HttpResponse(str(disconnect(**whom)))
    except BrokerError:
        return HttpResponse("BrokerError")
    except ValueError:
        return HttpResponse("-1")


def session(request: HttpRequest) -> JsonResponse:
    """Put the query into the session, and show it."""
    if "broken" in request.GET:
        sessions.broken = bool(request.GET["broken"])
        return JsonResponse({})
    for name, value in request.GET.items():
        request.session[name] = value
    return JsonResponse(dict(request.session))


def publish_page(request: HttpRequest, channel: str) -> HttpResponse:
    """Publish as an ordinary view does."""
    publish(channel, request.GET["text"] * int(request.GET.get("times", "1")))
    return HttpResponse("published")


@csrf_exempt
def upload(request: HttpRequest, how: str) -> HttpResponseBase:
    """Answer with the size of the request's body."""
    if how == "answer-first":
        return StreamingHttpResponse(begun_and_then(request))
    if how == "pause":
        return HttpResponse(str(len(request.read(1000)) + sleep(2.5) + len(request.read())))
    try:
        return HttpResponse(str(len(request.read())))
    finally:
        probe.note(request, "finally")


def begun_and_then(request: HttpRequest) -> Iterator[str]:
    yield "begun"
    yield str(len(request.read()))


def sleep(seconds: float) -> int:
    time.sleep(seconds)
    return 0


def hang_up(request: HttpRequest) -> HttpResponse:
    """End all WebSockets of the process, even if something is still to be read from them."""
    for connection in tuple(open_connections()):
        cast(Connection, connection)._close_socket()
    return HttpResponse("done")


def notes(request: HttpRequest, key: str, count: int) -> JsonResponse:
    return JsonResponse(probe.notes(key, count), safe=False)


def gate(request: HttpRequest, key: str) -> HttpResponse:
    probe.open_gate(key)
    return HttpResponse("open")


def state(request: HttpRequest) -> JsonResponse:
    return JsonResponse(probe.state())


def census(request: HttpRequest) -> JsonResponse:
    return JsonResponse(probe.census())


def database(request: HttpRequest, key: str) -> JsonResponse:
    """Tell whether a view's greenlet holds a database connection, and how many of its notes others see."""
    wrapper = probe.databases.get(key)
    held = wrapper is not None and wrapper.connection is not None
    return JsonResponse({"held": held, "notes": Note.objects.filter(text=key).count()})


def keeps_a_copy(request: HttpRequest) -> HttpResponse:
    """Leave a copy of the connection open."""
    children.keep_a_copy(request)
    return HttpResponse("kept")


def forks(request: HttpRequest, how: str) -> HttpResponse:
    """Start a child process."""
    children.start(request, how)
    return HttpResponse("over")


urlpatterns = [
    path("keeps-a-copy/", keeps_a_copy),
    path("forks/<str:how>/", forks),
    path("upload/<str:how>/", upload),
    path("hang-up/", hang_up),
    path("", page, name="home"),
    path("page/", page, name="page"),
    path("echo/", page),
    path("refuse/403/", page),
    path("login/", page, name="login"),
    path("enter/", enter),
    path("leave/", leave),
    path("change/<str:what>/", change),
    path("end/", end),
    path("session/", session),
    path("publish/<str:channel>/", publish_page),
    path("notes/<str:key>/<int:count>/", notes),
    path("gate/<str:key>/", gate),
    path("state/", state),
    path("census/", census),
    path("database/<str:key>/", database),
    path("queries/", include(queries.pages)),
    path("asynchronous/", include(asynchronous.pages)),
    path("pasts/", include(pasts.pages)),
    path("presence/", include(presence.pages)),
    path("", include(client.pages)),
    path("ordinary/", include((ordinary.pages, "ordinary"))),
]

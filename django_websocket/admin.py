"""The page of Django's admin that shows who is connected, and disconnects them. Private to this package.

The list comes over a WebSocket, whose address lies beside that of the page: `wsgi.py` finds it there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import DELETION, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from . import addresses, monitoring
from .decorators import websocket
from .exceptions import BrokerError
from .handler.users import named
from .models import Connection
from .websocket import WebSocket

NAME = ("django_websocket", "connection")  # of the model, as Django's admin has it in URLs and their names
FILTERS = ("user", "path", "view", "channel", "id")
LONGEST = 400  # characters of a filter; a path has up to 300
ROWS = 100  # of the list; the figures are of all
CONFIRMED = 20  # of those that are about to be disconnected, as examples
PAUSE = 2.0  # seconds between two looks
SETTLING = 0.2  # seconds without a new filter, since somebody types it

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Connection]
else:
    ModelAdmin = admin.ModelAdmin


class Unknown(ValueError):
    """A filter names a user who does not exist."""


class WhichForm(forms.Form):
    """Which connections are meant; all filters that are given apply."""

    user = forms.CharField(required=False, max_length=LONGEST)
    path = forms.CharField(required=False, max_length=LONGEST)
    view = forms.CharField(required=False, max_length=LONGEST)
    channel = forms.CharField(required=False, max_length=LONGEST)
    id = forms.CharField(required=False, max_length=LONGEST)

    @property
    def given(self) -> dict[str, str]:
        """The filters that say something, as they were written."""
        return {name: self.cleaned_data[name] for name in FILTERS if self.cleaned_data[name]}


class DisconnectForm(WhichForm):
    """How to disconnect them."""

    code = forms.TypedChoiceField(
        choices=[(4401, "They stay away"), (1012, "Their pages connect again at once")], coerce=int, initial=4401
    )
    reason = forms.CharField(required=False, max_length=30)  # of which each may have four bytes


def arguments(given: Mapping[str, str]) -> dict[str, Any]:
    """Return filters as `monitoring` takes them. Raises Unknown."""
    which: dict[str, Any] = {**given}
    if "user" in which:
        which["user"] = named(which["user"])
        if which["user"] is None:
            raise Unknown(f"There is no user {given['user']!r}.")
    return which


@admin.register(Connection)
class ConnectionAdmin(ModelAdmin):
    """Shows the connections of all processes to those who may view them."""

    def get_urls(self) -> list[URLPattern]:
        """Return the page, and the WebSocket beside it."""
        site = self.admin_site

        @websocket(refuse="close", max_message_size=24 * LONGEST)
        def live(request: HttpRequest, websocket: WebSocket) -> None:
            Watching(self, request, websocket).run()

        live.__qualname__ = "live"  # as the list calls it that it is a part of

        def page(request: HttpRequest) -> HttpResponseBase:
            return site.admin_view(self.changelist_view)(request)

        def upgrade_required(request: HttpRequest) -> HttpResponse:
            response = HttpResponse("This is the address of a WebSocket.\n", "text/plain", 426)
            response["Upgrade"] = "websocket"
            return response

        page.model_admin = self  # type: ignore[attr-defined]  # as Django's own pages have it
        upgrade_required.websocket_beside_pages = live  # type: ignore[attr-defined]
        return [
            path("", page, name="_".join((*NAME, "changelist"))),
            path("live/", upgrade_required, name="_".join((*NAME, "live"))),
        ]

    # --- who may do what -----------------------------------------------------------------------------------------

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False: clients connect by themselves."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Connection | None = None) -> bool:
        """Return False."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Connection | None = None) -> bool:
        """Return False: see `may_disconnect`."""
        return False

    def may_view(self, request: HttpRequest) -> bool:
        """Whether the user of a request may see the connections."""
        return self.admin_site.has_permission(request) and self.has_view_permission(request)

    def may_disconnect(self, request: HttpRequest) -> bool:
        """Whether the user of a request may close connections."""
        user: Any = request.user
        return bool(user.has_perm("django_websocket.disconnect_connection"))

    # --- the page ------------------------------------------------------------------------------------------------

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the page, or disconnect those whom a form names."""
        if not self.may_view(request):
            raise PermissionDenied
        if request.method == "POST":
            return self.disconnect(request)
        form = WhichForm(request.GET)
        context = {
            "form": WhichForm(initial=form.given if form.is_valid() else {}),
            "may_disconnect": self.may_disconnect(request),
            "address": addresses.address_of(reverse(self.name("live")), request),
        }
        return self.render(request, "connections", "WebSockets", {**context, **(extra_context or {})})

    def disconnect(self, request: HttpRequest) -> HttpResponse:
        """Disconnect, once that is confirmed, and record it."""
        if not self.may_disconnect(request):
            raise PermissionDenied
        form = DisconnectForm({"code": 4401, **request.POST.dict()})
        if not form.is_valid() or not form.given:
            return self.refuse(request, "Fill in at least one filter, so that it is clear who is to be disconnected.")
        given = form.given
        code, reason = form.cleaned_data["code"], form.cleaned_data["reason"]
        try:
            which = arguments(given)
            if "confirmed" not in request.POST:
                found = monitoring.connections(**which, limit=CONFIRMED)
                names = usernames(found)
                examples = [(each, names.get(each.id) or each.user) for each in found]
                context = {"form": form, "given": given, "found": found, "examples": examples}
                return self.render(request, "disconnect", "Disconnect WebSockets", context)
            closed = monitoring.disconnect(**which, code=code, reason=reason)
        except (BrokerError, TypeError, ValueError) as error:
            return self.refuse(request, str(error))
        what = ", ".join(f"{name} {value}" for name, value in given.items())
        LogEntry.objects.create(
            user_id=request.user.pk,
            content_type_id=ContentType.objects.get_for_model(Connection).pk,
            object_repr=what[:200],
            action_flag=DELETION,
            change_message=f"Disconnected {closed} with {code}{f' ({reason})' if reason else ''}: {what}",
        )
        count = "1 WebSocket was" if closed == 1 else f"{closed} WebSockets were"
        self.message_user(request, f"{count} disconnected.", messages.SUCCESS)
        return HttpResponseRedirect(reverse(self.name("changelist")))

    def refuse(self, request: HttpRequest, why: str) -> HttpResponse:
        """Go back to the page, and say what is wrong."""
        self.message_user(request, why, messages.ERROR)
        return HttpResponseRedirect(reverse(self.name("changelist")))

    def render(self, request: HttpRequest, name: str, title: str, context: dict[str, Any]) -> TemplateResponse:
        """Return a page of the admin."""
        request.current_app = self.admin_site.name
        common = {**self.admin_site.each_context(request), "title": title, "opts": Connection._meta}
        page = {"page": reverse(self.name("changelist")), **context}
        return TemplateResponse(request, f"admin/django_websocket/{name}.html", {**common, **page})

    def name(self, what: str) -> str:
        """Return the name of one of the URLs."""
        return f"{self.admin_site.name}:{'_'.join((*NAME, what))}"


class Watching:
    """Tells one page what is going on, until its user leaves or may not see it any more."""

    def __init__(self, page: ConnectionAdmin, request: HttpRequest, websocket: WebSocket) -> None:
        self._page = page
        self._request = request
        self._websocket = websocket
        self._given: dict[str, str] = {}
        self._carried: dict[str, int] = {}  # messages of each process, when they were counted last
        self._counted = 0.0  # when that was, in seconds of time.monotonic()

    def run(self) -> None:
        """Look again and again. Raises PermissionDenied before the acceptance."""
        if not self._page.may_view(self._request):
            raise PermissionDenied
        self._websocket.accept()
        pause = SETTLING  # for the page to say what it wants to see
        while True:
            try:
                message = self._websocket.receive_json(pause)
            except TimeoutError:
                pass
            except ValueError:
                self._websocket.close(4400, "no JSON")
                return
            else:
                if message is None:
                    return
                form = WhichForm(message if isinstance(message, dict) else {})
                self._given = form.given if form.is_valid() else {}
                pause = SETTLING
                continue
            if not self._may_still_view():
                self._websocket.close(4403, "Forbidden")
                return
            self._websocket.send_json(self._look())
            pause = PAUSE

    def _may_still_view(self) -> bool:
        """Ask the database again: permissions may be withdrawn while the page is open."""
        user: Any = self._request.user
        try:
            self._request.user = get_user_model()._base_manager.get(pk=user.pk)
            return self._page.may_view(self._request)
        except get_user_model().DoesNotExist:
            return False
        except DatabaseError:  # it is out of order, and somebody wants to see what that does to the clients
            self._request.user = user
            return True

    def _look(self) -> dict[str, Any]:
        """Return what the page shows."""
        try:
            found = monitoring.connections(**arguments(self._given), limit=ROWS)
        except (BrokerError, DatabaseError, ValueError) as error:
            return {"problem": str(error)}
        names = usernames(found)
        outbox = sum(process.outbox for process in found.processes)
        latencies = [process.latency for process in found.processes if process.latency is not None]
        return {
            "problem": "",
            "total": found.total,
            "silent": found.silent,
            "processes": len(found.processes),
            "connections": [{**asdict(each), "where": each.where, "name": names.get(each.id, "")} for each in found],
            "figures": {
                "connections": sum(process.connections for process in found.processes),
                "messages": self._rate(found.processes),
                "latency": max(latencies, default=None),
                "outbox": outbox,
            },
        }

    def _rate(self, processes: tuple[monitoring.Process, ...]) -> float | None:
        """Return the messages of a second since the last look; None at the first one."""
        now = time.monotonic()
        carried = {each.name: each.received_messages + each.sent_messages for each in processes}
        before, since = self._carried, self._counted
        self._carried, self._counted = carried, now
        new = sum(max(0, count - before[name]) for name, count in carried.items() if name in before)
        return new / (now - since) if before else None


def usernames(found: monitoring.Connections) -> dict[str, str]:
    """Return the names of the users, as far as they are known."""
    try:
        return monitoring.usernames(found)
    except DatabaseError:
        return {}

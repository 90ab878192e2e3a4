"""The page of the notifications. Its buttons are ordinary forms: publishing needs no WebSocket."""

from django.contrib.auth import get_user_model
from django.contrib.auth.decorators import login_required
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST

from .notify import mark_as_read, notify


@login_required
def notifications(request):
    others = get_user_model().objects.filter(is_active=True).exclude(pk=request.user.pk)
    latest = request.user.notifications.select_related("sender")[:20]
    return render(request, "notifications/notifications.html", {"others": others, "latest": latest})


@login_required
@require_POST
def send(request, username):
    user = get_object_or_404(get_user_model(), username=username, is_active=True)
    notify(user, request.user, "waves at you", reverse("notifications"))
    return redirect("notifications")


@login_required
@require_POST
def read(request):
    mark_as_read(request.user)
    return redirect("notifications")

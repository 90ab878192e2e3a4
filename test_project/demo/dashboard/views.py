"""The page of the dashboard, and its button."""

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_POST

from django_websocket.pubsub import publish

from .ticker import TRAFFIC

BURST = 300


def dashboard(request):
    return render(request, "dashboard/dashboard.html", {"burst": BURST})


@require_POST
def burst(request):
    for number in range(BURST):
        publish(TRAFFIC, {"number": number, "of": BURST})
    return HttpResponse(status=204)  # the browser stays on its page

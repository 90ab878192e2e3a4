"""The button that stops the server."""

import os
import signal

from django.conf import settings
from django.http import Http404, HttpResponse
from django.views.decorators.http import require_POST


@require_POST
def stop(request):
    if not settings.SUPERVISOR:
        raise Http404
    os.kill(settings.SUPERVISOR, signal.SIGUSR1)  # demonstrate.py ends this process, and starts another one
    return HttpResponse(status=204)  # the browser stays on its page

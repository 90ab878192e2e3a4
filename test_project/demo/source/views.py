"""The source of the pages. What can be shown is listed here; nothing else is read."""

from django.conf import settings
from django.http import Http404
from django.shortcuts import render

from .highlight import highlighted

FILES = {
    "home": ["demo/people/views.py", "demo/people/people.py", "demo/templates/demo/home.html"],
    "rooms": [
        "demo/rooms/websockets.py",
        "demo/rooms/rooms.py",
        "demo/rooms/forms.py",
        "demo/rooms/views.py",
        "demo/rooms/templates/rooms/room.html",
        "demo/rooms/static/rooms/room.js",
    ],
    "dashboard": [
        "demo/dashboard/ticker.py",
        "demo/dashboard/websockets.py",
        "demo/dashboard/views.py",
        "demo/dashboard/templates/dashboard/dashboard.html",
        "demo/dashboard/static/dashboard/dashboard.js",
        "demo/dashboard/static/dashboard/plot.js",
    ],
    "notifications": [
        "demo/notifications/notify.py",
        "demo/notifications/websockets.py",
        "demo/notifications/views.py",
        "demo/notifications/models.py",
        "demo/notifications/templates/notifications/notifications.html",
        "demo/notifications/static/notifications/notifications.js",
    ],
    "together": [
        "demo/together/websockets.py",
        "demo/together/templates/together/together.html",
        "demo/together/static/together/together.js",
    ],
    "poll": [
        "demo/poll/consumers.py",
        "demo/poll/models.py",
        "demo/poll/views.py",
        "demo/poll/templates/poll/poll.html",
        "demo/poll/static/poll/poll.js",
    ],
    "staff": [
        "demo/people/migrations/0002_staff.py",
        "demo/urls.py",
        "demo/staff/templates/staff/staff.html",
    ],
    "outage": ["demonstrate.py", "demo/outage/views.py", "demo/static/demo/site.js"],
    "site": [
        "demo/settings.py",
        "demo/urls.py",
        "demo/websocket_urls.py",
        "demo/csp.py",
        "demo/templates/demo/base.html",
        "demo/source/views.py",
        "demo/source/highlight.py",
    ],
}


def source(request, page):
    if page not in FILES:
        raise Http404
    files = [(name, highlighted(name, (settings.BASE_DIR / name).read_text())) for name in FILES[page]]
    return render(request, "source/source.html", {"page": page, "pages": FILES, "files": files})

"""Settings of the demonstration: those of the test project, and the apps of this directory."""

import os

from project.settings import *  # noqa: F403
from project.settings import (
    BASE_DIR,
    DATABASES,
    INSTALLED_APPS,
    MIDDLEWARE,
    TEMPLATES,
    WEBSOCKET_BROKER,
    WEBSOCKET_HISTORY,
)

ROOT_URLCONF = "demo.urls"
WSGI_APPLICATION = "demo.wsgi.application"
INSTALLED_APPS = [
    *INSTALLED_APPS,
    "django.contrib.admin",
    "channels",
    "demo",
    "demo.people",
    "demo.rooms",
    "demo.notifications",
    "demo.dashboard",
    "demo.together",
    "demo.poll",
    "demo.staff",
    "demo.outage",
    "demo.source",
]
MIDDLEWARE = [*MIDDLEWARE, "demo.csp.content_security_policy"]
TEMPLATES[0]["OPTIONS"]["context_processors"] += [
    "django.contrib.auth.context_processors.auth",
    "django.contrib.messages.context_processors.messages",
    "demo.people.context.second_window",
    "demo.notifications.context.unread",
    "demo.outage.context.outage",
]
DATABASES["default"]["NAME"] = os.environ.get("DATABASE_NAME") or BASE_DIR / "demo.sqlite3"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGIN_URL = "home"

# WebSockets

WEBSOCKET_URLCONF = "demo.websocket_urls"
WEBSOCKET_HISTORY = {
    **WEBSOCKET_HISTORY,
    "room:*": {"messages": 100, "seconds": 3600},
    "user:*": {"messages": 50, "seconds": 3600},
    "dashboard": {"messages": 120, "seconds": 180},
}
WEBSOCKET_HEALTH = True
CHANNEL_LAYERS = {"default": {"BACKEND": "django_websocket.channels.ChannelLayer"}}

# What scripts/demo starts

# With Redis, other processes can publish while the server is stopped, and nothing that they say is lost.
SHARED_BROKER = not WEBSOCKET_BROKER.startswith("memory:")
# The process that stops the server and starts it again; 0 if there is none.
SUPERVISOR = int(os.environ.get("SUPERVISOR") or 0)

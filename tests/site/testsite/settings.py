"""Settings of the test site; a JSON object in the environment variable TESTSITE_SETTINGS replaces some of them."""

import json
import os
import sys

CHANGES = json.loads(os.environ.get("TESTSITE_SETTINGS", "{}"))
if "TESTSITE_WITHOUT" in os.environ:  # a package that must seem not to be installed
    sys.modules[os.environ["TESTSITE_WITHOUT"]] = None  # type: ignore[assignment]

SECRET_KEY = "for-tests-only"
DEBUG = False
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "testserver"]

WEBSOCKET_URLCONF = "testsite.websocket_urls"
WEBSOCKET_ALLOWED_ORIGINS = ["https://friend.example"]
WEBSOCKET_DRAIN_WINDOW = 0.2
WEBSOCKET_CLOSE_TIMEOUT = 1.0  # for raw clients, which do not answer a close frame

ROOT_URLCONF = "testsite.urls"
LOGIN_URL = "login"  # a name, which resolves among the pages and not among the WebSockets
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.sites",
    "django_websocket",
    "testsite",
]
MIDDLEWARE = [
    "testsite.middleware.mark",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "testsite.middleware.bearer",
    "testsite.middleware.tenant",
    "testsite.middleware.interfere",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE_NAME") or ":memory:",
        "ATOMIC_REQUESTS": CHANGES.pop("ATOMIC_REQUESTS", False),
        "OPTIONS": {"timeout": 10},
    }
}
SITE_ID = 1
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGES = [("en", "English"), ("de", "German")]
TIME_ZONE = "UTC"

# Warnings and errors go to standard error, Python's default; Django would mail them.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"django": {"handlers": []}},
}

if "TESTSITE_SETTINGS" in os.environ and not CHANGES.pop("LOGS_STALLS", False):
    # In a server. On a busy machine, anything may take long, and tests read the log.
    from django_websocket.transport import stalls

    stalls.LONGEST = 60.0

globals().update(CHANGES)

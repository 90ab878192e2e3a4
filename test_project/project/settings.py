"""Settings of the test site. It runs as it is; environment variables adapt it to tests, demos and proxies."""

import os
import sys
from pathlib import Path


def listed(variable: str) -> list[str]:
    """The items of a comma-separated environment variable."""
    return [item.strip() for item in os.environ.get(variable, "").split(",") if item.strip()]


BASE_DIR = Path(__file__).resolve().parent.parent
COMMAND = sys.argv[1] if Path(sys.argv[0]).name == "manage.py" and len(sys.argv) > 1 else ""

# Public, and good enough for a site without secrets.
SECRET_KEY = os.environ.get("SECRET_KEY") or "for-tests-only-set-the-environment-variable-elsewhere"
DEBUG = COMMAND in ("runserver", "runwebsocket") or os.environ.get("DEBUG", "").lower() not in ("", "0", "false")
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", *listed("ALLOWED_HOSTS")]

# WebSockets

WEBSOCKET_URLCONF = "project.websocket_urls"
# Beside runserver, which serves pages only, the WebSocket server has a port of its own. Empty: the page's own host.
WEBSOCKET_SERVER = os.environ.get("WEBSOCKET_SERVER", ":8001" if COMMAND == "runserver" else "")
# Redis connects several processes; memory:// is enough for one.
WEBSOCKET_BROKER = os.environ.get("REDIS_URL") or "memory://"
# Whoever was away for less than an hour gets what was said in the chat meanwhile, up to a hundred lines.
WEBSOCKET_HISTORY = {"CHAT": {"messages": 100, "seconds": 3600}}
# runserver's pages connect to a server on another port, and so come from another origin.
WEBSOCKET_ALLOWED_ORIGINS = [
    "http://localhost:8000",
    "http://127.0.0.1:8000",
    "http://[::1]:8000",
    *listed("WEBSOCKET_ALLOWED_ORIGINS"),
]
if "WEBSOCKET_MAX_MESSAGE_SIZE" in os.environ:  # bytes; scripts/autobahn sends larger messages than the default allows
    WEBSOCKET_MAX_MESSAGE_SIZE = int(os.environ["WEBSOCKET_MAX_MESSAGE_SIZE"])

# Django, as startproject sets it up, without the admin

ROOT_URLCONF = "project.urls"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_websocket",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        # {% websocket_url %} takes host and scheme from the request.
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    },
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE_NAME") or BASE_DIR / "db.sqlite3",
    },
}
TIME_ZONE = "UTC"
STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
STATIC_ROOT = os.environ.get("STATIC_ROOT") or BASE_DIR / "static_root"

if not DEBUG:  # Django would mail errors to the admins, of whom there are none, and drop warnings.
    LOGGING = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "[{asctime}] {levelname} {name}: {message}", "style": "{"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "level": "WARNING", "formatter": "line"}},
        "loggers": {name: {"handlers": ["stderr"]} for name in ("django", "django_websocket")},
    }

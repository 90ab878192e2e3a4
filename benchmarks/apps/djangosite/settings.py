"""What all Django servers here share: the middleware of `startproject`, sessions in the database, one Redis.

Variables of the environment: REDIS_URL; CHANNEL, the name of the chat; HISTORY, how many of its messages are kept;
EXTRA_APPS, the application that a server needs;
DATABASE, the path of a sqlite file, or, for PostgreSQL, PGDATABASE and the others that libpq knows, and CONN_MAX_AGE,
without which Django's pool is used.
"""

import os

REDIS_URL = os.environ["REDIS_URL"]
CHANNEL = os.environ["CHANNEL"]

SECRET_KEY = "only for benchmarks, where nothing is secret"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    *os.environ.get("EXTRA_APPS", "").split(),
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
ROOT_URLCONF = "djangosite.urls"
if "PGDATABASE" in os.environ:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": os.environ["PGDATABASE"],
            "CONN_MAX_AGE": int(os.environ.get("CONN_MAX_AGE", "0")),
            "OPTIONS": {} if "CONN_MAX_AGE" in os.environ else {"pool": True},
        }
    }
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ["DATABASE"],
        }
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
}

# ours
WEBSOCKET_URLCONF = os.environ.get("WEBSOCKET_URLCONF", "djangosite.ours_urls")
WEBSOCKET_BROKER = REDIS_URL
WEBSOCKET_HISTORY = {"*": {"messages": int(os.environ["HISTORY"]), "seconds": 3600}} if "HISTORY" in os.environ else {}

# Channels
CHANNEL_LAYERS = (
    {"default": {"BACKEND": os.environ["CHANNEL_LAYER"]}}
    if "CHANNEL_LAYER" in os.environ
    else {
        name: {"BACKEND": f"channels_redis.{backend}", "CONFIG": {"hosts": [REDIS_URL], "prefix": CHANNEL}}
        for name, backend in [("default", "pubsub.RedisPubSubChannelLayer"), ("core", "core.RedisChannelLayer")]
    }
)

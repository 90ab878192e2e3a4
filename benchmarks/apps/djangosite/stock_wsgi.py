"""Django under gevent-websocket's own worker: a WSGI handler with another urlconf for requests that are upgrades."""

import os

import django
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "djangosite.settings")


class Request(WSGIRequest):
    def __init__(self, environ):
        super().__init__(environ)
        self.urlconf = "djangosite.stock_urls"


class Handler(WSGIHandler):
    request_class = Request


django.setup(set_prefix=False)
application = Handler()

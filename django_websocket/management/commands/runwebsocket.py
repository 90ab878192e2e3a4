"""`manage.py runwebsocket [addr:port]`: `runserver`, with WebSockets on the port of the pages."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from argparse import ArgumentParser
from typing import Any

from django.apps import apps
from django.core.management.base import CommandError
from django.db import connections

from django_websocket import conf
from django_websocket.compat import Incompatible, naming, verify
from django_websocket.wsgi import WSGIApplication, get_wsgi_websocket_application

with naming("runwebsocket"):
    from django.core.management.commands.runserver import Command as RunserverCommand
    from django.core.servers.basehttp import get_internal_wsgi_application

# Nothing of the project may be imported before gevent has patched the standard library, so a new process begins.
OPTIONS = "DJANGO_WEBSOCKET_OPTIONS"  # in the environment of that process, until it has read it
START = (
    f"import json, os, sys; options = json.loads(os.environ.pop({OPTIONS!r})); sys.path[:] = options['path']; "
    "sys.argv.pop(0); from django_websocket.management.server import serve; serve(options)"
)
PROBLEMS = {
    errno.EACCES: "You don't have permission to access that port.",
    errno.EADDRINUSE: "That port is already in use.",
    errno.EADDRNOTAVAIL: "That IP address can't be assigned to.",
}


class Command(RunserverCommand):
    """Starts gunicorn with the worker, for development."""

    help = "Starts a web server for development that serves pages and WebSockets."
    use_ipv6: bool

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments of `runserver` that have a meaning here."""
        parser.add_argument("addrport", nargs="?", help="Optional port number, or ipaddr:port")
        parser.add_argument("--ipv6", "-6", action="store_true", dest="use_ipv6", help="Use an IPv6 address.")
        parser.add_argument(
            "--noreload", action="store_false", dest="use_reloader", help="Do not restart when the code changes."
        )
        parser.add_argument(
            "--nostatic",
            action="store_false",
            dest="use_static_handler",
            help="Do not serve static files at STATIC_URL.",
        )

    def run(self, **options: Any) -> None:
        """Become gunicorn."""
        try:
            verify("connections", "application", "worker", "runwebsocket")
        except Incompatible as error:
            raise CommandError(str(error)) from error
        family = socket.AF_INET6 if self.use_ipv6 else socket.AF_INET
        try:
            host = str(socket.getaddrinfo(self.addr, None, family, socket.SOCK_STREAM)[0][4][0])
            with socket.socket(family) as sock:  # a trial: gunicorn would try for five seconds before it gives up
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((host, int(self.port)))
                sock.listen()
        except (OSError, OverflowError) as error:
            raise CommandError(PROBLEMS.get(getattr(error, "errno", 0) or 0, str(error))) from error
        names = ("use_reloader", "use_static_handler", "skip_checks", "no_color", "force_color")
        for_server = {
            "path": sys.path,
            "bind": f"[{host}]:{self.port}" if self.use_ipv6 else f"{host}:{self.port}",
            "address": [self.addr, self.port, self._raw_ipv6],
            **{name: options[name] for name in names},
        }
        interpreter = [sys.executable, *(f"-W{option}" for option in sys.warnoptions)]
        interpreter += [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
        os.environ[OPTIONS] = json.dumps(for_server)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [*interpreter, "-c", START, *sys.argv])  # the project's settings may read sys.argv

    def application(self, options: dict[str, Any]) -> WSGIApplication:
        """Check the project as `runserver` does, and return its application; called in gunicorn's worker."""
        if not options["skip_checks"]:
            self.stdout.write("Performing system checks...\n\n")
            self.check(display_num_errors=True)
        self.check_migrations()
        for connection in connections.all(initialized_only=True):
            connection.close()
        conf.serve_pages_too()
        pages = get_internal_wsgi_application()
        if options["use_static_handler"] and conf.current().debug and apps.is_installed("django.contrib.staticfiles"):
            from django.contrib.staticfiles.handlers import StaticFilesHandler

            pages = StaticFilesHandler(pages)
        application = get_wsgi_websocket_application(http=pages)
        self.addr, self.port, self._raw_ipv6 = options["address"]
        self.on_bind(self.port)
        self.stdout.flush()
        return application

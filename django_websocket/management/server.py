"""The process that `manage.py runwebsocket` becomes: gunicorn with one worker, which ends when the code changes.

Django is not imported here before the worker has patched the standard library.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
from gunicorn.app.base import BaseApplication

from django_websocket.worker import GeventWebSocketWorker

STOP_TIMEOUT = 4  # seconds; views that do not end with their clients get half of it
NOT_LOADED = b"The project could not be loaded. The terminal says why. Fix the code, and it is loaded again.\n"


def serve(options: dict[str, Any]) -> None:
    """Serve until Ctrl-C; `options` are those of the management command."""
    Server(options).run()


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn without a configuration file, which is for production."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        super().__init__()

    def load_config(self) -> None:
        """Configure gunicorn for one developer."""
        settings = {
            "bind": self.options["bind"],
            "worker_class": Worker,
            "workers": 1,
            "timeout": 0,  # a debugger may stop a view for as long as it likes
            "graceful_timeout": STOP_TIMEOUT,
            "loglevel": "warning",
            "accesslog": "-",
            "access_log_format": '%(t)s "%(r)s" %(s)s',
            "control_socket_disable": True,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Load the project, in the worker."""
        import django

        django.setup()
        from django_websocket.management.commands.runwebsocket import Command

        command = Command(no_color=self.options["no_color"], force_color=self.options["force_color"])
        return command.application(self.options)


class Worker(GeventWebSocketWorker):
    """Ends when Django's autoreloader sees a change; gunicorn then starts another one."""

    logs_at_end = False
    serves_many = False
    _drain_window = 0.0  # also where the project could not be loaded

    def load_wsgi(self) -> None:
        """Load the project; if that fails, wait until it is changed."""
        broken = None
        try:
            super().load_wsgi()
        except Exception as error:
            if not self.app.options["use_reloader"]:
                raise
            from django.core.management.base import CommandError

            from django_websocket import conf

            broken = error
            if isinstance(error, CommandError):  # a system check's
                print(error, file=sys.stderr)
            else:
                traceback.print_exception(error)
            self._settings = conf.Settings()
            self.wsgi = not_loaded
        if self.app.options["use_reloader"]:
            gevent.spawn(watch, broken)


def watch(broken: Exception | None) -> None:
    """End the process when the project's code changes. `broken` is the error with which it was loaded, if any."""
    from django.utils import autoreload

    reloader = autoreload.get_reloader()
    autoreload.logger.info("Watching for file changes with %s", type(reloader).__name__)
    try:
        if broken is None:
            reloader.run(threading.Thread())  # a thread that never runs: there is nothing to wait for
        else:
            reloader.extra_files |= set(filter(Path.exists, map(Path, involved(broken))))
            reloader.run_loop()
    except SystemExit:
        sys.exit(0)  # gunicorn takes the autoreloader's status, 3, for a failure


def involved(error: BaseException | None) -> Iterator[str]:
    """Return the files that took part in `error`: those that failed to be imported are not among the modules."""
    while error is not None:
        yield from (frame.filename for frame in traceback.extract_tb(error.__traceback__))
        if isinstance(error, SyntaxError) and error.filename is not None:
            yield error.filename
        error = error.__cause__ or error.__context__


def not_loaded(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Answer every request while the project is broken."""
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(NOT_LOADED)))]
    start_response("500 Internal Server Error", headers)
    return [NOT_LOADED]

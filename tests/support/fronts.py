"""What stands in front of a site, and what it reaches there: HAProxy and Apache with the files of deploy/."""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .servers import ROOT, Server, executable, free_port

MODULES = ("mpm_event", "authz_core", "alias", "headers", "rewrite", "proxy", "proxy_http")


def get(server: Server, path: str, headers: dict[str, str] | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    """Send one GET request, with the path exactly as given."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


@contextmanager
def recorder(name: str) -> Iterator[int]:
    """An HTTP server that answers each request with its own name and the request's path and headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"server": name, "path": self.path, "headers": dict(self.headers)}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def changed(file: str, changes: Mapping[str, str]) -> str:
    """Return a file of deploy/ with some of its text replaced, each of which it must have."""
    text = (ROOT / "deploy" / file).read_text()
    for old, new in changes.items():
        assert old in text, f"deploy/{file} has no {old!r}"
        text = text.replace(old, new)
    return text


@contextmanager
def haproxy(pages: int, websockets: int, changes: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run HAProxy with deploy/haproxy.cfg; change only ports, the limit of open files, and what `changes` has."""
    port = free_port()
    text = changed(
        "haproxy.cfg",
        {
            **(changes or {}),
            "maxconn 32768": "maxconn 200",
            "bind :80": f"bind 127.0.0.1:{port}",
            "127.0.0.1:8000": f"127.0.0.1:{pages}",
            "server one 127.0.0.1:8001": f"server one 127.0.0.1:{websockets}",
        },
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "haproxy.cfg")
        path.write_text(text)
        with Server([executable("haproxy"), "-db", "-f", path], port=port) as server:
            yield server


@contextmanager
def apache(pages: int, websockets: int) -> Iterator[Server]:
    """Run Apache with deploy/apache.conf, in which only ports and paths are changed, and a folder of static files."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)  # Apache serves files as another user
        static = directory / "static"
        static.mkdir()
        (static / "site.css").write_text("body { color: black }")
        text = changed(
            "apache.conf",
            {
                "*:80": f"127.0.0.1:{port}",
                "127.0.0.1:8000": f"127.0.0.1:{pages}",
                "127.0.0.1:8001": f"127.0.0.1:{websockets}",
                "/srv/example/static": str(static),
            },
        )
        program = executable("apache2")
        where = Path("/usr/lib/apache2/modules")
        lines = [f"LoadModule {module}_module {where}/mod_{module}.so" for module in MODULES]
        lines += [f'ServerRoot "{directory}"', "PidFile apache.pid", "ErrorLog /dev/stderr"]
        lines += [f"Listen 127.0.0.1:{port}", "ServerName localhost"]
        if os.getuid() == 0:
            lines += ["User www-data", "Group www-data"]
        path = directory / "apache2.conf"
        path.write_text("\n".join([*lines, text]))
        with Server([program, "-D", "FOREGROUND", "-f", path], port=port) as server:
            yield server

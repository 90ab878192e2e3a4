"""The recipes for forms, tenants, rate limits and uploads: their own tests, their pages in a browser, and nginx.

All four stand in one project. Their tests run in one process, with PostgreSQL for the schemas and Redis for the cache.
"""

from __future__ import annotations

import ast
import http.client
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .support.browser import Browser, Window
from .support.documentation import Project, blocks, command, commands
from .support.fixtures import Connect
from .support.postgres import settings_of
from .support.servers import ROOT, Server, configured_nginx, free_port
from .support.waiting import eventually

PAGES = [f"docs/recipes/{name}.md" for name in ("forms", "tenants", "limits", "uploads")]
TESTS = "python manage.py test"
SIZE = 5 * 2**20 + 12_345  # bytes of the file to upload

SETTINGS = """
ALLOWED_HOSTS += ["127.0.0.1"]
"""
POSTGRES = """
from mysite.settings import *

DATABASES = {"default": %r}
"""
PEOPLE = """
import json
from django.contrib.auth.models import Group, User
from django.test import Client

lobby = Group.objects.create(name="lobby")
Group.objects.create(name="<b>board</b>")
sessions = {}
for name in ("ann", "bob"):
    user = User.objects.create(username=name)
    user.groups.add(lobby)
    client = Client()
    client.force_login(user)
    sessions[name] = client.cookies["sessionid"].value
print(json.dumps(sessions))
"""

# What the pages say, and their own tests do not show.
MORE_TESTS = """
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from chat.connections import LIMIT
from chat.models import Tenant
from chat.quotas import allowed
from django.contrib.auth.models import Group, User
from django.core.cache import cache
from django.test import TestCase, override_settings
from django_websocket.testing import Client, HandshakeRefused
from django_websocket.websocket import WebSocket

TABLE = %r


class MoreTests(TestCase):
    client_class = Client

    def setUp(self):
        self.user = User.objects.create_user("ann")
        self.client.force_login(self.user)

    def test_answers_are_those_of_the_table(self):
        self.user.groups.add(Group.objects.create(name="lobby"))
        Group.objects.create(name="board")
        with self.client.websocket("/talk/") as ws:
            for messages, answer in TABLE:
                for message in messages:
                    with self.subTest(message):
                        ws.send(message)
                        received = [ws.receive_json()]
                        if not answer["errors"]:
                            received.append(ws.receive_json())  # what was published
                        self.assertIn(answer, received)
            ws.send(" " * 4097)
            self.assertEqual(ws.close_code, 1009)

    def test_strangers_are_refused_everywhere(self):
        paths = "talk polls lobby shop notices files upload rooms/lobby t/acme/rooms/lobby customers"
        for path in paths.split():
            with self.subTest(path), self.assertRaises(HandshakeRefused) as refused:
                Client(headers={"Host": "example.com"}).websocket(f"/{path}/")
            self.assertEqual(refused.exception.response.status_code, 302)

    def test_member_who_is_removed_during_the_handshake_is_refused(self):
        tenant = Tenant.objects.create(slug="acme", host="acme.example.com")
        subscribe = WebSocket.subscribe

        def removed_before(websocket, *channels):
            tenant.members.clear()
            return subscribe(websocket, *channels)

        def removed_after(websocket, *channels):
            result = subscribe(websocket, *channels)
            tenant.members.clear()
            return result

        for around in (removed_before, removed_after):
            tenant.members.add(self.user)
            with (
                patch.object(WebSocket, "subscribe", around),
                self.client.websocket("/rooms/lobby/", headers={"Host": "acme.example.com"}) as ws,
            ):
                self.assertEqual(ws.close_code, 4404)

    def test_connection_that_was_one_too_many_does_not_count_any_more(self):
        def connect(session):  # as the package's client does, which counts for 15 seconds when it is closed
            ws = self.client.websocket("/notices/", subprotocols=["django-websocket.1"])
            ws.send_json({"hello": {"positions": {}, "session": f"session-{session}"}})
            return ws

        connections = [connect(number) for number in range(LIMIT)]
        for number in range(3):
            with connect(f"late-{number}") as ws:
                self.assertEqual(ws.close_code, 4429)
        connections.pop().close(1000)
        connections.append(connect("later"))
        self.assertEqual({ws.close_code for ws in connections}, {None})
        for ws in connections:
            ws.close()

    def test_file_is_not_sent_again_after_an_error_of_the_storage(self):
        begin = {"name": "a.jpg", "size": 3, "sha256": sha256(b"abc").hexdigest()}
        with TemporaryDirectory() as directory:
            with override_settings(MEDIA_ROOT=directory, UPLOAD_PARTS=Path(directory) / "parts"):
                with (
                    patch("chat.uploads.default_storage.save", side_effect=OSError("full")),
                    self.assertRaisesMessage(OSError, "full"),
                    self.client.websocket("/upload/") as ws,
                ):
                    ws.send_json(begin)
                    ws.send(b"abc")
                with self.client.websocket("/upload/") as ws:
                    ws.send_json(begin)
                    self.assertEqual(ws.receive_json(), {"received": 3})
                    self.assertIn("saved", ws.receive_json())

    def test_action_is_allowed_when_the_cache_has_dropped_its_count(self):
        with patch.object(cache, "add"):
            self.assertTrue(allowed(self.user, "order", limit=1, seconds=60))
"""


@dataclass
class Recipes:
    """The project of the README with the recipes, and the sessions of some users by their names."""

    project: Project
    sessions: dict[str, str]


@pytest.fixture(scope="module")
def recipes(readme: Project, redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Recipes:
    project = readme.copy(tmp_path_factory.mktemp("recipes") / "mysite")
    for page in PAGES:
        project.put(page, {"localhost:6379": redis.address})
    project.write("mysite/settings.py", SETTINGS, add=True)
    lines = [line.split()[2:] for page in PAGES for line in commands(page) if line != TESTS]
    assert lines == [["makemigrations", "chat"], ["migrate"]]
    call = f"from django.core.management import call_command\nfor words in {lines}: call_command(*words, verbosity=0)"
    return Recipes(project, json.loads(project.shell(call + PEOPLE)))


def test_each_page_needs_the_readme_and_no_other_recipe() -> None:
    for page in PAGES:
        python = [block for block in blocks(page) if block.language == "python"]
        own = {block.file.removesuffix(".py").replace("/", ".") for block in python}
        for block in python:
            for node in ast.walk(ast.parse(block.code)):
                if isinstance(node, ast.ImportFrom):
                    module = f"chat.{node.module}" if node.level else node.module or ""
                    assert not module.startswith("chat.") or module in own, f"{page}, {block.file}: {module}"
                    if module == "chat.views":
                        assert block.file.startswith("chat/"), f"{page}: {block.file} needs the README's view"


def table_of_forms() -> list[tuple[list[str | bytes], object]]:
    """Return the messages and the answers of the table on the page about forms."""
    rows = re.findall(r"^\| (.+) \| `({\"errors\".+})` \|$", Path(ROOT / PAGES[0]).read_text(), re.MULTILINE)
    in_words: list[str | bytes] = [b"\xff", "[" * 101 + "]" * 101]  # in the first row
    return [
        (re.findall("`(.+?)`", cell) + (in_words if number == 0 else []), json.loads(answer))
        for number, (cell, answer) in enumerate(rows)
    ]


def test_tests_of_the_pages_and_of_this_file_pass(recipes: Recipes, postgres: Server) -> None:
    project = recipes.project
    project.write("mysite/on_postgres.py", POSTGRES % settings_of(postgres, "recipes"))
    more = MORE_TESTS % table_of_forms()
    project.write("chat/test_more.py", more)
    code = "\n".join([more, *(block.code for page in PAGES for block in blocks(page))])
    assert all(commands(page)[-1] == TESTS for page in PAGES)
    output = project.run(f"{TESTS.replace('python', 'python -W error')} --settings mysite.on_postgres", errors=True)
    assert f"Ran {len(re.findall('def test_', code))} tests" in output
    assert "skipped" not in output


@pytest.fixture(scope="module")
def served(recipes: Recipes) -> Iterator[Server]:
    """The project under a development server, which is killed, since to stop takes it a second."""
    with recipes.project.runserver(command("README.md", "runwebsocket"), free_port()) as server:
        yield server
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@dataclass
class Site:
    """The project with a browser."""

    server: Server
    sessions: dict[str, str]
    browser: Browser

    def open(self, user: str, path: str, host: str = "127.0.0.1", language: str = "en") -> Window:
        """Open a page as a user; another host has cookies of its own."""
        window = self.browser.open(f"http://{host}:{self.server.port}/none/")  # no page, but it may have cookies
        for name, value in (("sessionid", self.sessions[user]), ("django_language", language)):
            window.driver.add_cookie({"name": name, "value": value})
        window.driver.get(f"http://{host}:{self.server.port}{path}")
        return window

    def errors(self) -> list[str]:
        """Return the errors in the consoles, without those of pages and icons that the project does not have."""
        return [error for error in self.browser.errors() if not re.search("/none/|favicon", error)]


@pytest.fixture
def site(recipes: Recipes, served: Server, browser: Browser) -> Site:
    return Site(served, recipes.sessions, browser)


@pytest.mark.slow
def test_page_shows_errors_and_messages_in_its_language(site: Site, connect: Connect) -> None:
    ann = site.open("ann", "/talk/")
    bob = site.open("bob", "/talk/", "localhost", "de")
    assert "/en/talk/" in ann.driver.page_source and "/de/talk/" in bob.driver.page_source
    for window, error in ((ann, "This field is required."), (bob, "Dieses Feld ist zwingend erforderlich.")):
        window["button"].click()
        window.wait_for_texts("#errors li", [f"Room: {error}", f"Text: {error}"])
    ann["[name=room]"].send_keys("lobby")
    ann.fill("[name=text]", "<b>Hello</b>")
    ann["button"].click()
    for window in (ann, bob):
        window.wait_for_texts("#log li", ["ann: <b>Hello</b>"])
    ann.wait_for_texts("#errors li", [])
    cookie = {"Cookie": f"sessionid={site.sessions['ann']}"}
    program = connect(site.server, "/talk/", additional_headers=cookie)
    program.send('{"type": "meet", "room": "lobby", "day": "2026-12-24"}')
    ann.wait_for_last_text("#log li", "ann: Date: Thursday, December 24, 2026")
    bob.wait_for_last_text("#log li", "ann: Datum: Donnerstag, 24. Dezember 2026")
    assert site.errors() == []


# Has a connection break after 40 chunks, once, and counts the bytes that were sent.
BREAK = """
    const send = WebSocket.prototype.send;
    let chunks = 0;
    window.sent = 0;
    WebSocket.prototype.send = function (data) {
        if (!(data instanceof Blob)) return send.call(this, data);
        window.sent += data.size;
        return ++chunks === 40 ? this.close(3999) : send.call(this, data);
    };
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["post", "socket"])
def test_file_of_5_mb_arrives_as_it_is(site: Site, recipes: Recipes, tmp_path: Path, way: str) -> None:
    file = tmp_path / "holiday.jpg"
    file.write_bytes(os.urandom(SIZE))
    window = site.open("ann", "/files/")
    window["#file"].send_keys(str(file))
    if way == "socket":
        window.driver.execute_script(BREAK)
    window[f"[value={way}]"].click()

    def arrived() -> bool:
        window.driver.execute_script("dispatchEvent(new Event('online'))")  # a broken connection comes back at once
        return window["#state"].text.startswith("saved")

    window.wait(arrived)
    found = re.fullmatch(r"saved as (uploads/1/\w+\.jpg), SHA-256 \w+", window["#state"].text)
    assert found, window["#state"].text
    assert (recipes.project.directory / "media" / found[1]).read_bytes() == file.read_bytes()
    if way == "post":
        window.wait(lambda: window["#state"].get_attribute("data-checked") == f"{SIZE} of {SIZE}")
    else:
        assert SIZE < window.driver.execute_script("return window.sent") < SIZE + 5 * 2**16
        assert window["#sent"].get_attribute("value") == "1"
    assert site.errors() == []


@pytest.mark.slow
def test_file_that_is_not_allowed_is_refused_with_a_reason(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("<script>")
    window = site.open("ann", "/files/")
    window["#file"].send_keys(str(file))
    window["[value=socket]"].click()
    window.wait_for_texts("#state", ["Only these kinds of files: gif, jpeg, jpg, pdf, png, zip."])
    window["[value=post]"].click()
    window.wait(lambda: "html" in window["#state"].text)
    [error] = site.errors()
    assert "400" in error


@pytest.mark.slow
def test_nginx_refuses_handshakes_that_are_too_many(served: Server, tmp_path: Path) -> None:
    zone, limits = (block.code for block in blocks("docs/recipes/limits.md") if block.language == "text")
    begin = "# limit_conn_zone $binary_remote_addr"
    changes = {begin: f"{zone}    {begin}", "# limit_conn websockets 20;": limits}
    with configured_nginx(served.port, served.port, tmp_path, changes) as front:
        for _ in range(21):
            assert status(front, UPGRADE) == 404
        assert eventually(lambda: status(front, UPGRADE) == 429)
        assert status(front, {}) == 404  # of pages there may be more


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def status(server: Server, headers: dict[str, str]) -> int:
    """Return the status of an address that does not exist."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", "/none/", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()

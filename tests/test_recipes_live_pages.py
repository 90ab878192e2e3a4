"""The recipes for notifications, dashboards, progress bars and rooms: their commands, tests and pages, in one project.

The pages' own tests and those below in TESTS run in one process, and the scripts of the pages in a browser.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.core.management import call_command
from django.test import override_settings
from selenium.webdriver.common.keys import Keys

from django_websocket.pubsub import publish

from .support.browser import Browser, Window
from .support.clients import RawClient
from .support.documentation import ENVIRONMENT, Project, arguments, blocks, command, commands
from .support.fixtures import Raw
from .support.servers import NOT_INHERITED, Server, free_port, redis_server

PAGES = [f"docs/recipes/{name}.md" for name in ("index", "notifications", "dashboard", "progress", "rooms")]
DEADLINE = 30  # seconds

# Where the pages suppose something in the project: a site with Celery.
CELERY = """
from celery import Celery

app = Celery("mysite")
app.config_from_object("django.conf:settings", namespace="CELERY")
"""
SETTINGS = """
WEBSOCKET_BROKER = "{broker}"
WEBSOCKET_HISTORY = {{}}
CELERY_TASK_ALWAYS_EAGER = True
import mysite.celery
"""

# What the pages say beside what their own tests show.
TESTS = """
from importlib import import_module
from io import StringIO
from unittest.mock import patch

import django
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import TestCase
from django_websocket.exceptions import BrokerError
from django_websocket.logins import disconnect
from django_websocket.testing import Client
from django_websocket.websocket import WebSocket
from jobs.models import Job
from jobs.progress import progress
from jobs.tasks import in_celery
from notifications.models import Notification
from rooms.models import Membership, Room


class RecipeTests(TestCase):
    client_class = Client

    def setUp(self):
        self.ann = User.objects.create_user("ann")
        self.client.force_login(self.ann)

    def notified(self):
        return list(Notification.objects.values_list("user__username", "text"))

    def test_login_of_the_page_about_recipes(self):
        User.objects.create_user("carl", password="secret")
        self.client.logout()
        self.assertContains(self.client.get("/accounts/login/"), "Log in")
        answer = self.client.post("/accounts/login/?next=/rooms/", {"username": "carl", "password": "secret"})
        self.assertRedirects(answer, "/rooms/")

    def test_notification_of_a_view(self):
        bob = User.objects.create_user("bob")
        self.assertEqual(self.client.get(f"/invite/{bob.pk}/").status_code, 405)
        self.assertContains(self.client.post(f"/invite/{bob.pk}/"), "You have invited bob.")
        self.assertEqual(self.notified(), [("bob", "ann invites you")])
        self.assertEqual(self.client.post("/invite/12345/").status_code, 404)

    def test_notification_of_a_command(self):
        with self.assertRaisesMessage(CommandError, "There is no user bob."):
            call_command(*COMMANDS["notify"])
        User.objects.create_user("bob")
        User.objects.create_user("eve")
        call_command(*COMMANDS["notify"])
        text = "The site will be down at noon"
        self.assertEqual(self.notified(), [("ann", text), ("bob", text)])

    def test_notification_of_a_celery_task(self):
        from notifications.tasks import report

        with self.client.websocket("/notifications/") as ws:
            ws.receive()
            with self.captureOnCommitCallbacks(execute=True):
                report.delay_on_commit(self.ann.pk)
            self.assertEqual(ws.receive_json()["text"], "Your report is ready")

    def test_notification_of_a_task_of_django(self):
        if django.VERSION < (6,):
            with self.assertRaises(ModuleNotFoundError):
                import_module("django.tasks")
            return
        from notifications.background import report

        with self.client.websocket("/notifications/") as ws:
            ws.receive()
            with self.captureOnCommitCallbacks(execute=True):
                report.enqueue(self.ann.pk)
            self.assertEqual(ws.receive_json()["text"], "Your report is ready")

    def test_notification_that_is_rolled_back_is_not_sent(self):
        with self.client.websocket("/notifications/") as ws:
            ws.receive()
            with self.captureOnCommitCallbacks(execute=True), self.assertRaises(KeyError), transaction.atomic():
                Notification.objects.create(user=self.ann, text="never")
                raise KeyError
            with self.assertRaises(TimeoutError):
                ws.receive(timeout=0)

    def test_what_is_no_id_of_a_notification_changes_nothing(self):
        Notification.objects.create(user=self.ann, text="unread")
        with self.client.websocket("/notifications/") as ws:
            for wrong in ("", "x", "-1", "1.0", b"1", "9" * 20, "\\u0661" * 10, "\\u00b2"):
                ws.send(wrong)
            self.assertIsNone(ws.close_code)
        self.assertFalse(Notification.objects.get().read)

    def test_dashboard_is_refused_after_the_staff_has_changed(self):
        self.ann.is_staff = True
        self.ann.save()
        with self.client.websocket("/dashboard/") as ws:
            self.ann.is_staff = False
            self.ann.save()
            disconnect(channel="dashboard", code=1012)
            self.assertEqual(ws.close_code, 1012)
        with self.client.websocket("/dashboard/") as ws:
            self.assertEqual(ws.close_code, 4403)

    def test_progress_is_reported_seldom_and_the_last_of_it_always(self):
        job = Job.objects.create(user=self.ann)
        with self.client.websocket(f"/jobs/{job.pk}/") as ws:
            with self.captureOnCommitCallbacks(execute=True), progress(job, 100_000) as step:
                for _ in range(100_000):
                    step()
            reports = []
            while not reports or reports[-1]["state"] != "done":
                reports.append(ws.receive_json())
        self.assertEqual(reports[-1], {"state": "done", "done": 100_000, "total": 100_000})
        self.assertLess(len(reports), 20)

    def test_job_goes_on_without_a_broker(self):
        job = Job.objects.create(user=self.ann)
        with patch("django_websocket.pubsub.memory.MemoryBroker.publish", side_effect=BrokerError("away")):
            with self.assertLogs("django_websocket"), self.captureOnCommitCallbacks(execute=True):
                with progress(job, 1) as step:
                    step()
        self.assertEqual(Job.objects.get().state, "done")

    def test_job_of_a_command_and_of_celery(self):
        with patch("time.sleep"):
            call_command(*COMMANDS["resize"], stdout=(output := StringIO()))
            job = Job.objects.get()
            self.assertIn(f"/jobs/{job.pk}/", output.getvalue())
            self.assertEqual((job.user, job.state, job.done), (self.ann, "done", 20))
            job = Job.objects.create(user=self.ann)
            with self.captureOnCommitCallbacks(execute=True):
                in_celery.delay_on_commit(job.pk)
            job.refresh_from_db()
            self.assertEqual(job.state, "done")

    def test_pages_of_jobs_and_rooms_are_for_their_users(self):
        job = Job.objects.create(user=self.ann)
        room = Room.objects.create(name="Kitchen", slug="kitchen")
        Membership.objects.create(room=room, user=self.ann)
        paths = [f"/jobs/{job.pk}/", "/rooms/kitchen/"]
        self.assertEqual([self.client.get(path).status_code for path in paths], [200, 200])
        self.client.force_login(User.objects.create_user("eve"))
        self.assertEqual([self.client.get(path).status_code for path in paths], [404, 404])
        self.assertNotContains(self.client.get("/rooms/"), "Kitchen")

    def test_removal_during_the_handshake_is_seen(self):
        room = Room.objects.create(name="Kitchen", slug="kitchen")
        subscribe = WebSocket.subscribe
        removed = []

        def remove():
            with self.captureOnCommitCallbacks(execute=True):
                removed.append(room.members.remove(self.ann))

        def removed_before(websocket, *channels, **options):
            if channels[0].startswith("door:"):
                remove()
            return subscribe(websocket, *channels, **options)

        def removed_after(websocket, *channels, **options):
            result = subscribe(websocket, *channels, **options)
            if channels[0].startswith("door:"):
                remove()
            return result

        for around in (removed_before, removed_after):
            Membership.objects.create(room=room, user=self.ann)
            with patch.object(WebSocket, "subscribe", around), self.client.websocket("/rooms/kitchen/") as ws:
                self.assertIn(ws.close_code, (4403, 4404), around)
        self.assertEqual(len(removed), 2)

    def test_list_of_rooms_needs_no_broker(self):
        room = Room.objects.create(name="Kitchen", slug="kitchen")
        Membership.objects.create(room=room, user=self.ann, seen="1.unknown")
        self.assertContains(self.client.get("/rooms/"), "many new")
        Membership.objects.update(seen="")
        with patch("django_websocket.pubsub.memory.MemoryBroker.read", side_effect=BrokerError("away")):
            self.assertNotContains(self.client.get("/rooms/"), "new")

    def test_room_that_is_deleted_is_closed(self):
        room = Room.objects.create(name="Kitchen", slug="kitchen")
        Membership.objects.create(room=room, user=self.ann)
        with self.client.websocket("/rooms/kitchen/") as ws:
            with self.captureOnCommitCallbacks(execute=True):
                Room.objects.all().delete()
            self.assertEqual(ws.close_code, 4403)
"""

# Pages of the test: one who is removed from all rooms, as somebody does in the admin.
URLS = """
from django.http import HttpResponse
from rooms.models import Membership

def remove_bob(request):
    Membership.objects.filter(user__username="bob").delete()
    return HttpResponse()

urlpatterns += [path("remove-bob/", remove_bob)]
"""

PEOPLE = """
import json
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from rooms.models import Membership, Room

for words in {commands}:
    call_command(*words)
room = Room.objects.create(name="Kitchen", slug="kitchen")
sessions = {{}}
for name in ("ann", "bob", "boss"):
    user = User.objects.create(username=name, is_staff=name == "boss")
    Membership.objects.create(room=room, user=user)
    client = Client()
    client.force_login(user)
    sessions[name] = client.cookies["sessionid"].value
print(json.dumps(sessions))
"""


@dataclass
class Recipes:
    """The project of the README, with the four recipes as somebody has it who follows them, and some users."""

    project: Project
    sessions: dict[str, str]  # by the names of users


def words_of(page: str) -> list[list[str]]:
    """Return the words of the page's commands that follow `python manage.py`."""
    lines = [shlex.split(line) for line in commands(page)]
    assert all(words[:2] == ["python", "manage.py"] for words in lines)
    return [words[2:] for words in lines]


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    """A Redis of its own, since the recipes choose the names of the channels."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def recipes(readme: Project, redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Recipes:
    project = readme.copy(tmp_path_factory.mktemp("recipes") / "mysite")
    lines = [words for page in PAGES for words in words_of(page)]
    for name, app in [words for words in lines if words[0] == "startapp"]:
        directory = project.directory / app
        directory.mkdir()
        call_command(name, app, str(directory))
    project.write("mysite/celery.py", CELERY)
    project.write("mysite/settings.py", SETTINGS.format(broker=f"redis://{redis.address}/0"), add=True)
    for page in PAGES:
        project.put(page, {"WEBSOCKET_HISTORY = ": "WEBSOCKET_HISTORY |= "})
    work = project.directory / "jobs/work.py"
    assert work.read_text().endswith("            step()\n")
    with work.open("a") as file:
        file.write(f"            while __import__('os').path.exists({str(gate_of(project))!r}):\n")
        file.write("                time.sleep(0.02)\n")
    project.write("mysite/urls.py", URLS, add=True)
    by_name = {words[0]: words for words in lines}
    project.write("chat/tests.py", f"COMMANDS = {by_name}\n{TESTS}")
    migrations = [words for words in lines if words[0] == "makemigrations"] + [by_name["migrate"]]
    people = project.shell(PEOPLE.format(commands=[[*words, "--verbosity=0"] for words in migrations]))
    return Recipes(project, json.loads(people))


def gate_of(project: Project) -> Path:
    """Return the file that holds up a job of docs/recipes/progress.md while it exists."""
    return project.directory / "gate"


def test_tests_of_the_pages_and_of_this_file_pass(recipes: Recipes) -> None:
    code = "\n".join([TESTS, *(block.code for page in PAGES for block in blocks(page))])
    output = recipes.project.run("python manage.py test", errors=True)
    assert f"Ran {len(re.findall('def test_', code))} tests" in output


@dataclass
class Site:
    """The project under a development server."""

    server: Server
    sessions: dict[str, str]
    browser: Browser

    def open(self, user: str, path: str, host: str = "127.0.0.1") -> Window:
        """Open a page as a user; another host has sessions of its own."""
        window = self.browser.open(f"http://{host}:{self.server.port}/none/")  # no page, but it may have cookies
        window.driver.add_cookie({"name": "sessionid", "value": self.sessions[user]})
        window.driver.get(f"http://{host}:{self.server.port}{path}")
        return window


@pytest.fixture(scope="module")
def served(recipes: Recipes) -> Iterator[Server]:
    with recipes.project.runserver("python manage.py runwebsocket", free_port()) as server:
        yield server


@pytest.fixture
def site(recipes: Recipes, served: Server, browser: Browser) -> Iterator[Site]:
    yield Site(served, recipes.sessions, browser)
    assert [error for error in browser.errors() if "/favicon" not in error and "/none/" not in error] == []


@pytest.mark.slow
def test_badge_of_each_user_counts_what_is_unread_in_all_tabs(site: Site, recipes: Recipes) -> None:
    ann, bob = site.open("ann", "/page/"), site.open("bob", "/page/", "localhost")
    for window in (ann, bob):
        window.wait_for_texts("#notifications output", ["0"])
    recipes.project.run(command("docs/recipes/notifications.md", "notify").replace("The site", "<b>The site</b>"))
    for window in (ann, bob):
        window.wait_for_texts("#notifications output", ["1"])
        assert window.texts("#notifications li") == ["<b>The site</b> will be down at noon"]
    ann["summary"].click()
    ann["#notifications button"].click()
    ann.wait_for_texts("#notifications li", [])
    assert not ann["#notifications output"].is_displayed()
    assert bob.texts("#notifications output") == ["1"]
    for window, count in ((ann, "0"), (bob, "1")):
        window.driver.refresh()
        window.wait_for_texts("#notifications output", [count])


@pytest.mark.slow
def test_dashboard_goes_on_when_the_process_that_ticks_dies(site: Site, recipes: Recipes) -> None:
    line = arguments(command("docs/recipes/dashboard.md", "tick"))
    with ExitStack() as stack:
        tickers = [stack.enter_context(process(line, recipes.project.directory)) for _ in range(2)]
        window = site.open("boss", "/dashboard/")
        window.wait_for_texts("#users", ["3"])
        wait_for_points(window, 3)
        owner = lease(recipes.project)
        [first] = [ticker for ticker in tickers if f" {ticker.pid} " in owner]
        first.kill()
        first.wait()
        points = len(points_of(window))
        wait_for_points(window, points + 3)
        assert lease(recipes.project) != owner
        window.driver.refresh()
        wait_for_points(window, points)  # at once, from the history


@pytest.mark.slow
def test_page_that_is_too_slow_for_the_dashboard_gets_the_newest_numbers(
    recipes: Recipes, served: Server, redis: Server, raw: Raw
) -> None:
    slow = raw(served, receive_buffer=4096)
    cookie = f"sessionid={recipes.sessions['boss']}"
    slow.open("/dashboard/", {"Host": served.address, "Cookie": cookie})
    quick = raw(served)
    quick.open("/dashboard/", {"Host": served.address, "Cookie": cookie})
    history = {"dashboard": {"messages": 60, "seconds": 120}}
    with override_settings(WEBSOCKET_BROKER=f"redis://{redis.address}/0", WEBSOCKET_HISTORY=history):
        for number in range(100):
            publish("dashboard", {"number": number, "filler": "x" * 300_000})  # more in all than the kernel buffers

    def numbers(client: RawClient) -> list[int]:
        """Return those that a client gets, up to the last one."""
        seen: list[int] = []
        while seen[-1:] != [99]:
            message = json.loads(client.frame().text)
            if "filler" in message:
                seen.append(message["number"])
        return seen

    numbers(quick)  # by then, the server has had them all
    assert len(numbers(slow)) < 90


def points_of(window: Window) -> list[str]:
    return str(window["polyline"].get_attribute("points") or "").split()


def wait_for_points(window: Window, count: int) -> None:
    window.wait(lambda: len(points_of(window)) >= count, f"the plot has fewer than {count} points")


def lease(project: Project) -> str:
    """Return who ticks."""
    with closing(sqlite3.connect(project.directory / "db.sqlite3", timeout=DEADLINE)) as database:
        [[owner]] = database.execute("SELECT owner FROM dashboard_lease")
    return str(owner)


@contextmanager
def process(words: list[str], directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the end of the block."""
    env = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED} | ENVIRONMENT
    with subprocess.Popen(words, cwd=directory, env=env) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.slow
def test_bar_shows_how_far_the_job_is(recipes: Recipes, site: Site) -> None:
    window = site.open("ann", "/jobs/")
    gate = gate_of(recipes.project)
    gate.touch()
    window["button"].click()
    window.wait_for_texts("#state", ["running"])
    gate.unlink()
    window.wait_for_texts("#state", ["done"])
    assert window["#bar"].get_attribute("value") == window["#bar"].get_attribute("max") == "20"
    window.driver.refresh()
    window.wait_for_texts("#state", ["done"])


@pytest.mark.slow
def test_room_shows_who_is_here_and_who_is_typing(site: Site) -> None:
    ann = site.open("ann", "/rooms/kitchen/")
    bob = site.open("bob", "/rooms/kitchen/", "localhost")
    for window in (ann, bob):
        window.wait_for_texts("#here", ["ann, bob"])
    ann["#text"].send_keys("h")
    bob.wait_for_texts("#typing", ["Typing: ann"])
    ann["#text"].send_keys("<i>")
    bob.wait_for_texts("#typing", [""])  # after some seconds without a key
    ann["#text"].send_keys(Keys.ENTER)
    for window in (ann, bob):
        window.wait_for_texts("#log li", ["ann: h<i>"])
    ann.driver.get(f"http://{site.server.address}/remove-bob/")
    bob.wait_for_texts("#state", ["You are no longer a member"])
    ann.driver.get(f"http://{site.server.address}/rooms/kitchen/")
    ann.wait_for_texts("#log li", ["ann: h<i>"])

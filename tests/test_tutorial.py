"""The tutorial, followed word for word: each file is written, each command is run, and what the page says happens.

The steps share a project, which goes from one to the next. A step that runs alone first has the files and the commands
of all earlier ones.
"""

from __future__ import annotations

import base64
import html
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from redis import Redis
from selenium.webdriver.common.keys import Keys
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from .support.browser import Browser, Window
from .support.documentation import ENVIRONMENT, TUTORIAL, Block, Project, blocks_in
from .support.servers import HTTP_PROBE, NOT_INHERITED, ROOT, Server, configured_nginx, free_port, redis_server
from .support.waiting import DEADLINE, eventually

pytestmark = pytest.mark.slow

TROUBLE = "### If it does not work"
SIZE = (720, 400)  # of the pictures, in pixels
HEAVIEST = 40_000  # bytes
PICTURES = ROOT / "docs" / "tutorial"

# The environment in which the tests run stands for the one that these commands make.
ENVIRONMENT_OF_ITS_OWN = [
    "python3 -m venv tutorial",
    ". tutorial/bin/activate",
    'pip install "./django-gevent-websocket[speed]"',
    'sudo nginx -t -c "$PWD/nginx.conf"',  # `configured_nginx` starts it without root
]
HURRY = """
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
WEBSOCKET_LOGIN_CHECK_INTERVAL = 0.5
WEBSOCKET_DRAIN_WINDOW = 0.1
"""
PASSWORD = "correct horse"
SETTINGS = "mysite/settings.py"
VIEWS = "chat/views.py"
BASE = "chat/templates/chat/base.html"
ROOM = "chat/templates/chat/room.html"
SERVERS = ("python manage.py runserver", "python manage.py runwebsocket", "gunicorn ", "sudo nginx -c ")


class Step:
    """A section of the page: what is to be done in it, in order."""

    def __init__(self, number: int, title: str, text: str) -> None:
        self.number = number
        self.title = title
        work, _, trouble = text.partition(TROUBLE)
        self.todo: list[Block | str] = []  # files, commands, and what is shown
        for block in blocks_in(work, TUTORIAL):
            self.todo += filter(None, block.code.splitlines()) if block.language == "sh" else [block]
        self.errors = [block.code for block in blocks_in(trouble, TUTORIAL)]


def steps() -> dict[int, Step]:
    """Return the steps of the page by their numbers."""
    text = (ROOT / TUTORIAL).read_text()
    parts = re.split(r"^## (\d+)\. (.+)\n", text, flags=re.MULTILINE)
    numbers = map(int, parts[1::3])
    return {number: Step(number, *rest) for number, *rest in zip(numbers, parts[2::3], parts[3::3], strict=True)}


class Tutorial:
    """Somebody who follows the tutorial in a directory."""

    def __init__(self, directory: Path, redis: Server) -> None:
        (directory / "django-gevent-websocket").symlink_to(ROOT)
        self.project = Project(directory)
        self.port = free_port()
        self.redis_port = redis.port
        self.environment = {"DJANGO_SUPERUSER_PASSWORD": PASSWORD}
        self.steps = steps()
        self.done = 0  # the last step that is finished
        self.step = self.steps[1]
        self.output: str | None = None  # of the command that has just been run
        self.shown: list[str] = []  # texts of the step that are not the output of a command

    def begin(self, number: int) -> Step:
        """Go to the begin of a step."""
        if number > 1:
            self.after(number - 1)
        self.step = self.steps[number]
        return self.step

    def after(self, number: int) -> list[str]:
        """Go to the end of a step, unless the tests have done so; return the errors that it quotes."""
        for number_of_step in range(self.done + 1, number + 1):
            self.step = self.steps[number_of_step]
            self.follow(serve=False)
            if number_of_step == 5:  # whose reader adds the rooms in the admin
                names = [("Lobby", "lobby"), ("Kitchen", "kitchen")]
                code = f"for name, slug in {names}: Room.objects.get_or_create(name=name, slug=slug)"
                self.project.shell(f"from chat.models import Room\n{code}")
            self.finish()
        return self.steps[number].errors

    def follow(self, until: str | None = None, *, serve: bool = True) -> str:
        """Do what the page says, up to the command that begins with `until` or to the end of the step.

        Returns that command. The test starts the servers itself, so it names their commands as `until`; with
        `serve=False` they are left out.
        """
        while self.step.todo:
            item = self.step.todo.pop(0)
            if isinstance(item, Block):
                self._take(item)
                self.output = None
            elif until is not None and item.startswith(until):
                return item
            elif item.startswith(SERVERS):
                assert not serve, f"the test does not start {item}"
            else:
                self.output = self.run(item) or None
        assert until is None, f"step {self.step.number} has no command {until!r}"
        return ""

    def _take(self, block: Block) -> None:
        if block.language == "text":
            if self.output is None:
                self.shown.append(self.adapted(block.code))
            else:
                assert_quoted(block.code, self.output)
        else:
            hurry = HURRY if block.file == SETTINGS else ""
            self.project.write(block.file, self.adapted(block.code) + hurry, add=block.adds)

    def adapted(self, text: str) -> str:
        """Put the ports of the test in place of the usual ones."""
        text = text.replace("8000", str(self.port)).replace("localhost:6379", f"localhost:{self.redis_port}")
        text = text.replace("redis-cli", f"redis-cli -p {self.redis_port}")
        return text.replace('["chat.example.com"]', '["127.0.0.1", "localhost"]')

    def run(self, line: str, *, status: int = 0, project: Project | None = None) -> str:
        """Run a command as a shell does, and return its output."""
        word, _, rest = line.partition(" ")
        if line in ENVIRONMENT_OF_ITS_OWN:
            return ""
        if word == "cd":
            self.project = Project(self.project.directory / rest)
            return ""
        if "createsuperuser" in line:  # it takes the password from the environment
            line += " --noinput"
        own = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        result = subprocess.run(
            ["bash", "-c", self.adapted(line)],
            cwd=(project or self.project).directory,
            env=own | ENVIRONMENT | self.environment | {"PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == status, f"{line} ended with {result.returncode}:\n{result.stdout}"
        return result.stdout

    @contextmanager
    def serve(self, name: str = "runwebsocket", project: Project | None = None) -> Iterator[Server]:
        """Run a development server that does not watch for changes; it is killed, since to stop takes it a second."""
        words = [sys.executable, "manage.py", name, f"127.0.0.1:{self.port}", "--noreload"]
        directory = (project or self.project).directory
        with Server(words, port=self.port, probe=HTTP_PROBE, cwd=directory, env=ENVIRONMENT) as server:
            try:
                yield server
            finally:
                if server.running:
                    os.killpg(server.pid, signal.SIGKILL)
                    server.wait()

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        """Return the address of a page; another host has sessions of its own."""
        return f"http://{host}:{self.port}{path}"

    @contextmanager
    def mistake(self, files: Mapping[str, str]) -> Iterator[Project]:
        """Give a copy of the project in which some files are different."""
        copy = self.project.copy(self.project.directory.with_name("mistake"))
        for file, code in files.items():
            copy.write(file, code)
        try:
            yield copy
        finally:
            shutil.rmtree(copy.directory)

    def changed(self, file: str, old: str, new: str) -> str:
        """Return a file of the project in which something that is there once is different."""
        text = (self.project.directory / file).read_text()
        assert text.count(old) == 1
        return text.replace(old, new)

    def finish(self) -> None:
        """Say that the step has been followed to its end."""
        assert not self.step.todo, f"nothing has done {self.step.todo}"
        self.done = self.step.number
        self.shown.clear()


def plain(text: str) -> str:
    """Make what changes from run to run the same: times, and ports of the tests."""
    text = re.sub(r"\b(127\.0\.0\.1|localhost):\d+", r"\1:PORT", text)
    text = re.sub(r"\b[\d.]+(s|ms| seconds)\b", "SOME TIME", text)
    return " ".join(text.split())


def assert_quoted(quotation: str, text: str) -> None:
    """Check that each line of a quotation is in a text; the browser's log leaves out the middle of long lines."""
    shortened = [re.escape(plain(line)).replace("…", ".*") for line in text.splitlines() if "…" in line]
    for line in map(plain, quotation.splitlines()):
        found = line in plain(text) or any(re.fullmatch(pattern, line) for pattern in shortened)
        assert found, f"{line!r} is not in\n{text}"


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    """A Redis of its own, since a test stops it."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory, redis: Server) -> Tutorial:
    return Tutorial(tmp_path_factory.mktemp("tutorial"), redis)


# --- pictures --------------------------------------------------------------------------------------------------------

BAR = 28  # pixels, for the address
COMPOSITION = """
const [shots, done] = arguments;
document.body.style = "margin: 0; display: flex; gap: 8px; background: #cdd5df; font: 13px/28px sans-serif";
Promise.all(shots.map(([address, data]) => {
  const window = document.body.appendChild(document.createElement("div"));
  window.style = "outline: 1px solid #b4bfcc; outline-offset: -1px";
  const bar = window.appendChild(document.createElement("div"));
  bar.textContent = address;
  bar.style = "padding: 0 12px; color: #456; background: #e9edf2; height: 28px; overflow: hidden; white-space: nowrap";
  const image = window.appendChild(document.createElement("img"));
  image.style = "display: block";
  image.src = `data:image/png;base64,${data}`;
  return image.decode();
})).then(() => done());
"""


def take_picture(browser: Browser, name: str, *windows: Window) -> None:
    """Put the windows side by side into a picture of the page, if the environment asks for that."""
    if not os.environ.get("TUTORIAL_PICTURES"):
        return
    width = (SIZE[0] - 8 * (len(windows) - 1)) // len(windows)
    shots = []
    for window in windows:
        address = re.sub(r"^http://[\w.]+:\d+", "127.0.0.1:8000", window.driver.current_url)
        shots.append([address, screenshot(window, width, SIZE[1] - BAR)])
    composition = browser.open("about:blank")
    composition.driver.execute_async_script(COMPOSITION, shots)
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / f"{name}.png").write_bytes(base64.b64decode(screenshot(composition, *SIZE)))


def screenshot(window: Window, width: int, height: int) -> str:
    """Return what a window of this size shows, as a PNG in base64."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    window.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    window.driver.execute_script("scrollTo(0, document.body.scrollHeight)")
    data: str = window.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    window.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return data


# --- the steps -------------------------------------------------------------------------------------------------------


def test_the_page_names_its_steps() -> None:
    text = (ROOT / TUTORIAL).read_text()
    listed = re.findall(r"^(\d+)\. \[(.+)\]\(#", text, re.MULTILINE)
    assert listed == [(str(step.number), step.title) for step in steps().values()]
    assert all(step.errors for step in steps().values())


def console(browser: Browser) -> str:
    """Return the errors in the console since the last call."""
    errors = [error for error in browser.errors() if "favicon" not in error]
    return "\n".join(re.sub(r"^\S+ \d+:\d+ ", "", error) for error in errors)


def test_step_1_shows_a_page(tutorial: Tutorial, browser: Browser) -> None:
    tutorial.begin(1)
    tutorial.follow(until="python manage.py runserver")
    with tutorial.serve("runserver"):
        window = browser.open(tutorial.url())
        window.wait_for_texts("h1", ["Lobby"])
        assert window["p"].text == "Nobody can talk here yet."
        take_picture(browser, "1-page", window)
        assert console(browser) == ""
    tutorial.follow()
    tutorial.finish()


def test_errors_of_step_1(tutorial: Tutorial) -> None:
    no_template, port_in_use = tutorial.after(1)
    files = {SETTINGS: tutorial.changed(SETTINGS, 'INSTALLED_APPS += ["chat"]', "")}
    with tutorial.mistake(files) as project:
        assert_quoted(no_template, shell_with_client(project, "print(client.get('/').content.decode())"))
    with socket.create_server(("127.0.0.1", tutorial.port)):
        assert_quoted(port_in_use, tutorial.run(f"python manage.py runserver {tutorial.port}", status=1))


def test_step_2_echoes_what_is_sent(tutorial: Tutorial, browser: Browser) -> None:
    tutorial.begin(2)
    tutorial.follow(until="python manage.py runwebsocket")
    with tutorial.serve() as server:
        window = browser.open(tutorial.url())
        window.wait_for_texts("#state", ["open"])
        window.say("Hello")
        window.wait_for_texts("#log li", ["Hello"])
        window.say("Is there an echo?")
        window.wait_for_texts("#log li", ["Hello", "Is there an echo?"])
        take_picture(browser, "2-echo", window)
        assert console(browser) == ""
        tutorial.follow()
        request, response, log = tutorial.shown
        assert_quoted(response, answer(server, request))
        assert_quoted(log, server.log)
    tutorial.finish()


def answer(server: Server, request: str) -> str:
    """Return the answer to a request, up to the end of the connection or of a handshake."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as sock:
        sock.sendall(request.replace("\n", "\r\n").encode() + b"\r\n")
        received = b""
        while not (received.startswith(b"HTTP/1.1 101 ") and b"\r\n\r\n" in received) and (data := sock.recv(4096)):
            received += data
    return received.decode()


def test_errors_of_step_2(tutorial: Tutorial, browser: Browser) -> None:
    refused, unknown_module, unknown_command = tutorial.after(2)
    with tutorial.serve("runserver"):
        window = browser.open(tutorial.url())
        window.wait_for_texts("#state", ["waiting"])
        assert_quoted(refused, console(browser))
    with (
        tutorial.mistake({BASE: tutorial.changed(BASE, "{% websocket_client %}", "")}) as project,
        tutorial.serve("runserver", project),
    ):
        window.driver.refresh()
        assert window.texts("#state") == [""]
        assert_quoted(unknown_module, console(browser))
    settings = tutorial.changed(SETTINGS, 'INSTALLED_APPS += ["django_websocket"]', "")
    with tutorial.mistake({SETTINGS: settings}) as project:
        assert_quoted(unknown_command, tutorial.run("python manage.py runwebsocket", status=1, project=project))


def test_step_3_connects_two_windows(tutorial: Tutorial, browser: Browser) -> None:
    tutorial.begin(3)
    tutorial.follow()
    with tutorial.serve():
        one, other = (browser.open(tutorial.url()) for _ in range(2))
        for window in (one, other):
            window.wait_for_texts("#state", ["open"])
        said = ["Hello, is anybody there?", "Yes, in the other window."]
        for window, text in zip((one, other), said, strict=True):
            window.say(text)
            for reader in (one, other):
                reader.wait_for_last_text("#log li", text)
        assert one.texts("#log li") == other.texts("#log li") == said
        take_picture(browser, "3-two-windows", one, other)
        assert console(browser) == ""
    tutorial.finish()


def test_errors_of_step_3(tutorial: Tutorial) -> None:
    memory, wrong_host = tutorial.after(3)
    said = shell_with_client(
        tutorial.project,
        """
        from django_websocket.pubsub import publish
        publish("lobby", "hello")
        client.get("/", headers={"Host": "mymachine:8000"})
        """,
    )
    assert_quoted(memory, said)
    assert_quoted(wrong_host, said)


def shell_with_client(project: Project, code: str, settings: str = "mysite.settings") -> str:
    """Run code in the project's shell with `client`, of Django's tests; return its output and log without markup."""
    code = f"""
from django.contrib.auth.models import User
from django.test import Client
client = Client(raise_request_exception=False, HTTP_HOST="127.0.0.1")
{textwrap.dedent(code)}
"""
    output = project.run(f"python manage.py shell --settings {settings} -c {shlex.quote(code)}", errors=True)
    return html.unescape(re.sub(r"<[^>]*>", "", output))


def open_as(browser: Browser, tutorial: Tutorial, name: str, path: str = "/") -> Window:
    """Open a page as a user, who logs in if asked to: ann and bob at hosts of their own, which share no cookies."""
    window = browser.open(tutorial.url(path, "127.0.0.1" if name == "ann" else "localhost"))
    if window.texts("[name=username]"):  # Django's own form or that of the admin
        window.fill("[name=username]", name)
        window.fill("[name=password]", PASSWORD + Keys.ENTER)
        window.wait(lambda: not window.texts("[name=username]"))
    return window


def say_hello(ann: Window, bob: Window) -> list[str]:
    """Have two windows greet each other, and return what both show."""
    for window in (ann, bob):
        window.wait_for_texts("#state", ["open"])
    said = ["ann: Hello, Bob", "bob: Hello, Ann"]
    for window, line in zip((ann, bob), said, strict=True):
        window.say(line.partition(": ")[2])
        for reader in (ann, bob):
            reader.wait_for_last_text("#log li", line)
    return said


def websocket(tutorial: Tutorial, path: str, window: Window | None = None) -> ClientConnection:
    """Open a WebSocket with the login of a window, or as a stranger."""
    cookie = window.driver.get_cookie("sessionid") if window else None
    headers = {"Cookie": f"sessionid={cookie['value']}"} if cookie else {}
    return connect(f"ws://127.0.0.1:{tutorial.port}{path}", additional_headers=headers, proxy=None)


def refusal(tutorial: Tutorial, path: str, window: Window | None = None) -> int | None:
    """Return the close code with which a WebSocket is refused."""
    with websocket(tutorial, path, window) as client, pytest.raises(ConnectionClosed):
        client.recv(timeout=DEADLINE)
    return client.close_code


def log_out_elsewhere(window: Window) -> None:
    """Log a user out as in a second tab, so that the page is not left."""
    form = "document.querySelector('form[action*=logout]')"
    window.driver.execute_script(f"fetch({form}.action, {{ method: 'POST', body: new FormData({form}) }})")


def hurry(*windows: Window) -> None:
    """Have pages connect again at once, as when a network is back."""
    for window in windows:
        window.driver.execute_script("dispatchEvent(new Event('online'))")


def test_step_4_asks_for_the_login_and_shows_names(tutorial: Tutorial, browser: Browser) -> None:
    tutorial.begin(4)
    tutorial.follow()
    with tutorial.serve():
        assert refusal(tutorial, "/chat/") == 4401
        ann, bob = (open_as(browser, tutorial, name) for name in ("ann", "bob"))
        assert say_hello(ann, bob) == ann.texts("#log li") == bob.texts("#log li")
        assert console(browser) == ""
        log_out_elsewhere(bob)
        bob.wait_for_texts("h1", ["Log in"])
        take_picture(browser, "4-logins", bob, ann)
    tutorial.finish()


def test_errors_of_step_4(tutorial: Tutorial) -> None:
    no_tables, no_template, no_token = tutorial.after(4)
    with tutorial.mistake({}) as project:
        said = shell_with_client(
            project,
            """
            from pathlib import Path
            strict = Client(enforce_csrf_checks=True, HTTP_HOST="127.0.0.1")
            print(strict.post("/accounts/login/").content.decode())
            Path("chat/templates/registration/login.html").rename("login.html")
            print(client.get("/accounts/login/").content.decode())
            Path("db.sqlite3").unlink()
            print(client.post("/accounts/login/", {"username": "ann", "password": "secret"}).content.decode())
            """,
        )
    for error in (no_tables, no_template, no_token):
        assert_quoted(error, said)


def test_step_5_has_rooms(tutorial: Tutorial, browser: Browser) -> None:
    tutorial.begin(5)
    tutorial.follow()
    with tutorial.serve():
        admin = open_as(browser, tutorial, "ann", "/admin/chat/room/add/")
        for name in ("Lobby", "Kitchen"):
            admin.wait(lambda: admin.texts("#id_name") == [""])
            admin.fill("#id_name", name)
            admin.wait(lambda: admin["#id_slug"].get_attribute("value") == name.lower())  # noqa: B023
            admin["[name=_addanother]"].click()
            admin.wait_for_texts(".success a", [name])
        bob = open_as(browser, tutorial, "bob")
        assert bob.texts("h1, li") == ["Rooms", "Kitchen", "Lobby"]
        take_picture(browser, "5-rooms", bob)
        bob["a[href='/rooms/lobby/']"].click()
        bob.wait_for_texts("h1", ["Lobby"])
        ann = admin
        ann.driver.get(tutorial.url("/rooms/lobby/"))
        other = browser.open(tutorial.url("/rooms/kitchen/"))
        said = say_hello(ann, bob)
        other.wait_for_texts("#state", ["open"])
        other.say("Is anybody here?")
        other.wait_for_texts("#log li", ["ann: Is anybody here?"])
        assert ann.texts("#log li") == bob.texts("#log li") == said
        assert console(browser) == ""
        assert refusal(tutorial, "/rooms/cellar/", ann) == 4404
        ann.driver.get(tutorial.url("/rooms/cellar/"))
        assert "Page not found (404)" in ann["body"].text
    tutorial.finish()


def test_errors_of_step_5(tutorial: Tutorial) -> None:
    no_table, no_slug = tutorial.after(5)
    with tutorial.mistake({ROOM: tutorial.changed(ROOM, " slug=room.slug", "")}) as project:
        said = shell_with_client(
            project,
            """
            from django.db import connection
            client.force_login(User.objects.get(username="ann"))
            print(client.get("/rooms/lobby/").content.decode())
            connection.cursor().execute("DROP TABLE chat_room")
            print(client.get("/").content.decode())
            """,
        )
    for error in (no_table, no_slug):
        assert_quoted(error, said)


def test_step_6_misses_nothing(tutorial: Tutorial, browser: Browser) -> None:
    tutorial.begin(6)
    command = tutorial.follow(until="python manage.py shell")
    with tutorial.serve() as server:
        ann, bob = (open_as(browser, tutorial, name, "/rooms/lobby/") for name in ("ann", "bob"))
        said = say_hello(ann, bob)
        bob.driver.refresh()
        bob.wait_for_texts("#log li", said)
        server.stop(signal.SIGINT)
        for window in (ann, bob):
            window.wait_for_texts("#state", ["waiting"])
        ann.say("Are you still there?")
        tutorial.run(command)
        tutorial.follow(until="python manage.py runwebsocket")
        server.start()
        hurry(ann, bob)
        for window in (ann, bob):
            window.wait_for_texts("#log li", [*said, "shell: The server is away.", "ann: Are you still there?"])
        take_picture(browser, "6-history", ann, bob)
    console(browser)
    tutorial.follow()
    tutorial.finish()


def test_errors_of_step_6(tutorial: Tutorial, browser: Browser, redis: Server) -> None:
    no_redis, no_pattern = tutorial.after(6)
    with tutorial.mistake({SETTINGS: tutorial.changed(SETTINGS, '"room:*"', '"rooms:*"')}) as project:
        assert_quoted(no_pattern, log_of_lobby(project))
    redis.stop()
    with tutorial.serve() as server:
        window = open_as(browser, tutorial, "ann", "/rooms/lobby/")
        window.wait_for_texts("#state", ["waiting"])
        assert_quoted(no_redis, server.log)
    redis.start()
    console(browser)


def log_of_lobby(project: Project) -> str:
    """Return what the terminal says when ann connects to the lobby."""
    return shell_with_client(
        project,
        """
        from django.test.utils import setup_test_environment
        from django_websocket.testing import Client
        setup_test_environment()
        client = Client(raise_request_exception=False)
        client.force_login(User.objects.get(username="ann"))
        client.websocket("/rooms/lobby/")
        """,
    )


def test_step_7_shows_who_is_here(tutorial: Tutorial, browser: Browser) -> None:
    tutorial.begin(7)
    tutorial.follow()
    with tutorial.serve():
        ann, bob = (open_as(browser, tutorial, name, "/rooms/lobby/") for name in ("ann", "bob"))
        for window in (ann, bob):
            window.wait_for_texts("#here", ["ann, bob"])
        ann.say("Hello, Bob")
        bob.wait_for_last_text("#log li", "ann: Hello, Bob")
        bob.driver.refresh()
        bob.wait_for_texts("#here", ["ann, bob"])
        assert ann.texts("#here") == ["ann, bob"]
        take_picture(browser, "7-who-is-here", ann, bob)
        assert console(browser) == ""
        log_out_elsewhere(bob)
        ann.wait_for_texts("#here", ["ann"])
    tutorial.finish()


def test_errors_of_step_7(tutorial: Tutorial) -> None:
    (no_id,) = tutorial.after(7)
    with tutorial.mistake({VIEWS: tutorial.changed(VIEWS, '"id": request.user.pk, ', "")}) as project:
        assert_quoted(no_id, log_of_lobby(project))


def test_step_8_announces_a_room(tutorial: Tutorial, browser: Browser) -> None:
    tutorial.begin(8)
    command = tutorial.follow(until="python manage.py shell")
    with tutorial.serve() as server:
        ann = open_as(browser, tutorial, "ann", "/rooms/lobby/")
        ann.wait_for_texts("#state", ["open"])
        assert eventually(lambda: '"GET /notices/' in server.log)
        assert not ann["#notice"].is_displayed()
        tutorial.run(command)
        ann.wait(lambda: ann["#notice"].is_displayed())
        take_picture(browser, "8-notice", ann)
        ann["#notice a"].click()
        ann.wait_for_texts("h1", ["Garden"])
        assert console(browser) == ""
    tutorial.finish()


def test_errors_of_step_8(tutorial: Tutorial) -> None:
    (not_json,) = tutorial.after(8)
    code = "from chat.models import Room; from django_websocket.pubsub import publish; publish('notices', Room())"
    assert_quoted(not_json, tutorial.run(f'python manage.py shell -c "{code}"', status=1))


def test_step_9_has_tests_that_pass(tutorial: Tutorial) -> None:
    tutorial.begin(9)
    tutorial.follow()
    tutorial.finish()


def test_errors_of_step_9(tutorial: Tutorial) -> None:
    no_method, no_message = tutorial.after(9)
    tests = (tutorial.project.directory / "chat/tests.py").read_text()
    slow = re.sub(r"( +)with self.captureOnCommitCallbacks\(execute=True\):\n +", r"\1", tests)
    slow = slow.replace('"/notices/"', '"/notices/", timeout=0.2')
    with tutorial.mistake(
        {
            "chat/tests.py": tutorial.changed("chat/tests.py", "    client_class = Client\n", ""),
            "chat/test_notices.py": slow,
        }
    ) as project:
        output = tutorial.run("python manage.py test", status=1, project=project)
    assert_quoted(no_method, output)
    assert_quoted(no_message, output)


class Deployment:
    """The servers of the last step."""

    def __init__(self, pages: Server, websockets: Server, front: Server) -> None:
        self.pages = pages
        self.websockets = websockets
        self.front = front


@pytest.fixture(scope="module")
def deployment(tutorial: Tutorial) -> Iterator[Deployment]:
    """The tutorial's project, deployed as its last step says, up to the part on TLS."""
    tutorial.begin(10)
    project = tutorial.project
    pages_line = tutorial.follow(until="gunicorn mysite.wsgi:application")
    websockets_line = tutorial.follow(until="gunicorn -c websocket.conf.py")
    tutorial.follow(until="sudo nginx -c")
    *_, lines = tutorial.shown
    configuration = (project.directory / "nginx.conf").read_text()
    assert configuration == (ROOT / "deploy/nginx.conf").read_text()
    marked = {int(number): line for line, number in re.findall(r"^ *(.+?) +# \((\d)\)", configuration, re.MULTILINE)}
    for number, line in enumerate(lines.splitlines(), 1):
        assert line.split()[0] == marked[number].split()[0]  # the same directive
    name = {"server_name example.com;": "server_name 127.0.0.1 localhost;"}
    with (
        project.gunicorn(pages_line) as pages,
        project.gunicorn(websockets_line) as websockets,
        configured_nginx(pages.port, websockets.port, project.directory / "static", name) as front,
    ):
        tutorial.port = front.port
        yield Deployment(pages, websockets, front)


def test_step_10_works_behind_nginx(
    tutorial: Tutorial, browser: Browser, deployment: Deployment, redis: Server
) -> None:
    ann, bob = (open_as(browser, tutorial, name, "/rooms/kitchen/") for name in ("ann", "bob"))
    said = say_hello(ann, bob)
    assert ann.texts("#log li")[-2:] == bob.texts("#log li")[-2:] == said
    for window in (ann, bob):
        window.wait_for_texts("#here", ["ann, bob"])
    with Redis(port=redis.port) as asked, ExitStack() as stack:
        channel = "room:2"  # of the kitchen, which is the second room
        for _ in range(50):  # until both workers have somebody in the room
            if asked.pubsub_numsub(channel) == [(channel.encode(), 2)]:
                break
            stack.enter_context(websocket(tutorial, "/rooms/kitchen/", bob))
        else:
            pytest.fail("only one worker has clients")
        ann.say("Is everybody here?")
        bob.wait_for_last_text("#log li", "ann: Is everybody here?")
        deployment.websockets.stop()
    for window in (ann, bob):
        window.wait_for_texts("#state", ["waiting"])
    ann.say("Are you still there?")
    deployment.websockets.start()
    hurry(ann, bob)
    bob.wait_for_last_texts("#log li", [*said, "ann: Is everybody here?", "ann: Are you still there?"])
    console(browser)


def test_errors_of_step_10(tutorial: Tutorial, browser: Browser, deployment: Deployment) -> None:
    not_running, wrong_host, no_script, memory = tutorial.steps[10].errors
    answered = answer(deployment.front, "GET / HTTP/1.1\nHost: mymachine\nConnection: close\n")
    assert_quoted(wrong_host, re.sub("<[^>]*>", "", answered))
    script = tutorial.project.directory / "static/django_websocket/client.js"
    script.rename(script.with_name("elsewhere.js"))
    ann = open_as(browser, tutorial, "ann", "/rooms/kitchen/")
    assert_quoted(no_script, console(browser))
    assert ann.texts("#state") == [""]
    script.with_name("elsewhere.js").rename(script)
    deployment.pages.stop()
    ann.driver.refresh()
    assert ann["h1"].text == "502 Bad Gateway"
    assert_quoted(not_running, deployment.front.log)
    production = (tutorial.project.directory / "mysite/production.py").read_text() + 'WEBSOCKET_BROKER = "memory://"\n'
    with tutorial.mistake({"mysite/production.py": production}) as project:
        line = "gunicorn -c websocket.conf.py mysite.wsgi:websocket -w 2"
        with project.gunicorn(line) as server:
            assert eventually(lambda: "There are 2 workers" in server.log)
            assert_quoted(memory, server.log)
    console(browser)


def test_step_10_uses_tls_in_the_end(tutorial: Tutorial) -> None:
    tutorial.after(10)
    said = shell_with_client(
        tutorial.project,
        """
        client.force_login(User.objects.get(username="ann"))
        print(client.get("/rooms/kitchen/")["Location"])
        print(client.get("/rooms/kitchen/", secure=True).content.decode())
        """,
        settings="mysite.production",
    )
    assert "https://127.0.0.1/rooms/kitchen/" in said
    assert 'connect("wss://127.0.0.1/rooms/kitchen/' in said


def test_pictures_are_there_and_say_what_is_to_be_seen() -> None:
    used = re.findall(r"!\[([^\]]*)\]\(tutorial/([^)]+)\)", (ROOT / TUTORIAL).read_text())
    assert sorted(name for _, name in used) == sorted(path.name for path in PICTURES.iterdir())
    for alt, name in used:
        assert len(alt) > 30, name
        data = (PICTURES / name).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n"), name
        assert struct.unpack(">II", data[16:24]) == SIZE, name
        assert len(data) <= HEAVIEST, name

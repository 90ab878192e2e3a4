"""The demonstration, started as scripts/demo starts it, in two windows of one browser: those of Ann and of Ben."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import sqlite3
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from .support.browser import Browser, Window
from .support.frontend import package_file
from .support.servers import HTTP_PROBE, NOT_INHERITED, ROOT, TEST_PROJECT, Server, executable, free_port

pytestmark = pytest.mark.slow

LOBBY = "/rooms/lobby/"
ADMIN = "/admin/django_websocket/connection/"
PAGES = ["/", LOBBY, "/dashboard/", "/together/", "/poll/", "/notifications/", "/staff/", "/source/together/"]
PICTURES = {scheme: ROOT / "docs" / f"demonstration-{scheme}.png" for scheme in ("light", "dark")}
SIZE = (960, 600)  # of the pictures, in pixels of CSS
SCALE = 1.5
HEAVIEST = 150_000  # bytes


def demonstration(directory: Path) -> Server:
    port = free_port()
    command: list[str | Path] = [sys.executable, TEST_PROJECT / "demonstrate.py", f"127.0.0.1:{port}"]
    environment = {"DATABASE_NAME": str(directory / "db.sqlite3")}
    return Server(command, port=port, probe=HTTP_PROBE, cwd=Path("/"), env=environment, start_timeout=90)


class Person:
    """One of the users, in a window of a host name of its own, or all would have one login."""

    def __init__(self, browser: Browser, server: Server, host: str, name: str) -> None:
        self.site = f"http://{host}:{server.port}"
        self.name = name
        self.window = browser.open("about:blank")
        emulate(self.window, "light")
        self.window.driver.get(f"{self.site}/")
        self.come_in()

    def come_in(self) -> None:
        """Log in on the first page."""
        self.press(f".people form[action$='/{self.name.lower()}/'] button")
        self.window.wait(lambda: self.window.driver.current_url == self.site + LOBBY)

    def visit(self, path: str) -> Window:
        """Open a page, and wait until it is connected."""
        self.window.driver.get(self.site + path)
        self.wait_for_connection("open")
        return self.window

    def enter(self, room: str = LOBBY) -> Window:
        """Enter a room, and wait until everybody is seen there who is."""
        self.visit(room)
        self.window.wait(lambda: f"{self.name} (you)" in self.people())
        return self.window

    def wait_for_connection(self, state: str) -> None:
        script = "return document.documentElement.dataset.connection"
        self.window.wait(lambda: self.window.driver.execute_script(script) == state, f"not {state}")

    def press(self, selector: str) -> None:
        """Press a button or a link, as soon as it is there."""
        click = "const found = document.querySelector(arguments[0]); found?.click(); return Boolean(found)"
        self.window.wait(lambda: self.window.driver.execute_script(click, selector), f"there is no {selector}")

    def say(self, text: str) -> None:
        self.window["#text"].send_keys(text, Keys.ENTER)

    def people(self) -> list[str]:
        """Return who is in the room, by their names."""
        return [text[1:] for text in self.window.texts("#people li")]  # behind the letter of the picture

    def unread(self) -> str:
        """Return what the badge shows; the page may replace it at any time."""
        return "".join(self.window.texts("#unread:not([hidden])"))

    def hears(self, *texts: str) -> None:
        self.window.wait_for_last_texts(".message .text", list(texts))


class Demonstration:
    def __init__(self, server: Server, ann: Person, ben: Person) -> None:
        self.server = server
        self.ann = ann
        self.ben = ben


@pytest.fixture(scope="module")
def demo(one_browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demonstration]:
    executable("redis-server")
    with demonstration(tmp_path_factory.mktemp("demonstration")) as server:
        ann, ben = (Person(one_browser, server, *each) for each in (("127.0.0.1", "Ann"), ("localhost", "Ben")))
        yield Demonstration(server, ann, ben)


@pytest.fixture
def ann(demo: Demonstration) -> Person:
    return demo.ann


@pytest.fixture
def ben(demo: Demonstration) -> Person:
    return demo.ben


@pytest.fixture(autouse=True)
def no_errors_in_the_console(one_browser: Browser) -> Iterator[None]:
    """See that no page has an error, such as something that the Content Security Policy has stopped."""
    yield
    assert one_browser.errors() == []


def emulate(window: Window, scheme: str, width: int = 0, height: int = 0, scale: float = 1) -> None:
    """Give a window a size, unless it is 0, the light or the dark, and no movements."""
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}  # movements take a lot of time here
    media = [{"name": name, "value": value} for name, value in features.items()]
    window.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": 0 < width < 500}
    window.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


# --- what people do ---------------------------------------------------------------------------------------------------


def test_one_click_logs_in_and_two_windows_are_two_people(ann: Person, ben: Person) -> None:
    for person in (ann, ben):
        assert f"You are {person.name}." in person.window.texts(".account .hidden")
    home = ann.visit("/")
    second = home["a.person[target=_blank]"].get_attribute("href")
    assert second == f"{ben.site}/?next=/"


def test_room_shows_what_is_said_and_who_is_here_and_typing(ann: Person, ben: Person) -> None:
    ann.enter()
    ann.say("Good morning! The new version is ready.")
    ann.hears("Good morning! The new version is ready.")
    ben.enter()
    ben.hears("Good morning! The new version is ready.")  # said before he came
    for person in (ann, ben):
        person.window.wait(lambda: {name.split()[0] for name in person.people()} >= {"Ann", "Ben"})  # noqa: B023
    ben.say("Wonderful. Who writes the news?")
    ann.hears("Good morning! The new version is ready.", "Wonderful. Who writes the news?")
    ann.say("I do, and @ben reads it.")
    ben.hears("Wonderful. Who writes the news?", "I do, and @ben reads it.")
    assert ben.window.texts(".message:last-child .mention") == ["@ben"]
    assert ben.window.texts(".message:last-child .avatar") == ["A"]
    assert re.search(r"\d:\d\d", ben.window.texts(".message:last-child time")[0])
    ben.window["#text"].send_keys("Gladly")
    ann.window.wait_for_texts("#typing", ["Ben is typing…"])
    ben.window["#text"].clear()
    ann.window.wait_for_texts("#typing", [""])


FRAME = """
    document.activeElement.blur();
    const frame = document.body.appendChild(document.createElement("div"));
    Object.assign(frame.style, { position: "fixed", inset: 0, zIndex: 9, border: "1px solid var(--line)" });
"""


def take_pictures(window: Window) -> None:
    """Put what the README shows into docs/, if the environment asks for that."""
    if os.environ.get("DEMONSTRATION_PICTURES"):
        window.driver.execute_script(FRAME)
        window.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        for scheme, path in PICTURES.items():
            emulate(window, scheme, *SIZE, SCALE)
            shot = window.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            path.write_bytes(base64.b64decode(shot["data"]))
        window.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": False})
        emulate(window, "light")


def test_mention_reaches_whatever_page_the_user_is_on(ann: Person, ben: Person) -> None:
    ben.visit("/poll/")
    unread = f"{int(ben.unread().split()[0] if ben.unread() else 0) + 1} unread"
    ann.enter("/rooms/kitchen/")
    ann.say("What do you vote for, @Ben and @ann?")
    ben.window.wait_for_texts(".toast a", ["Ann mentioned you: What do you vote for, @Ben and @ann?"])
    assert ben.unread() == unread
    ben.press(".toast a")
    ben.window.wait_for_texts("h1", ["Kitchen"])
    ben.wait_for_connection("open")
    assert ben.unread() == unread
    assert ben.window.texts(".toast") == []  # it has been seen
    assert ann.unread() == ""  # nobody is told of a mention of one's own


def test_button_of_an_ordinary_view_notifies(ann: Person, ben: Person) -> None:
    ann.visit("/together/")
    ben.visit("/notifications/")
    ben.press("form[action$='/ann/'] button")
    ann.window.wait_for_texts(".toast a", ["Ben waves at you"])
    ann.press(".toast button")
    ann.window.wait_for_texts(".toast", [])
    ann.visit("/notifications/")
    assert ann.window.texts("#notifications .new a") == ["Ben waves at you"]
    ben.window.wait_for_texts("h1", ["Notifications"])
    ben.press("form[action$='/ann/'] button")
    ann.window.wait_for_texts("#notifications .new a", ["Ben waves at you"] * 2)
    ann.press("form[action$='/read/'] button")
    ann.window.wait(lambda: ann.unread() == "")
    ann.window.wait_for_texts("#notifications .new", [])


def test_dashboard_draws_what_one_ticker_measures(ann: Person) -> None:
    window = ann.visit("/dashboard/")
    curves = (
        "return Array.from(document.querySelectorAll('.curve'), (curve) => curve.getAttribute('d').split('L').length)"
    )
    window.wait(lambda: len(window.driver.execute_script(curves)) == 3)
    before = window.driver.execute_script(curves)
    window.wait(lambda: all(now > then for now, then in zip(window.driver.execute_script(curves), before, strict=True)))
    window.wait(lambda: float(window.texts("[data-value=people] output")[0]) >= 1)
    trips: list[str] = []

    def is_measured() -> bool:
        trips[:] = window.texts("[data-value=trip] output")
        return trips != ["–"]

    window.wait(is_measured)
    assert 0 < float(trips[0]) < 60_000
    ann.press("#burst button")
    window.wait(lambda: window["#received"].text.startswith("300 of 300 messages have arrived"))
    window.wait(lambda: int(window.texts("[data-value=messages] .top-of-scale")[0]) >= 100)


def test_async_view_streams_answers_as_they_come(ann: Person) -> None:
    window = ann.visit("/together/")
    window.driver.execute_script("""
        window.seen = [];
        const count = (name) => document.querySelectorAll(name).length;
        new MutationObserver(() => seen.push([count(".running"), count(".answered")])).observe(
          document.getElementById("services"), { attributes: true, subtree: true });
    """)
    ann.press("#ask")
    window.wait(lambda: window["#summary"].text.startswith("All six have answered"))
    assert len(window.texts(".answered")) == 6
    seen = window.driver.execute_script("return seen")
    assert any(running and answered for running, answered in seen)
    took, alone = map(float, re.findall(r"([\d.]+) s", window["#summary"].text))
    assert took < alone
    window.driver.execute_script("for (const id of ['ask', 'cancel']) document.getElementById(id).click()")
    window.wait(lambda: window["#summary"].text.startswith("Cancelled"))


def test_consumer_tells_everybody_the_results(ann: Person, ben: Person) -> None:
    for person in (ann, ben):
        person.visit("/poll/").wait(lambda: "–" not in person.window.texts("output"))  # noqa: B023
    ann.window["input[value=nothing]"].send_keys(Keys.SPACE)
    ben.window["input[value=channels]"].send_keys(Keys.SPACE)
    for person in (ann, ben):
        person.window.wait_for_texts("output", ["1", "0", "1"])
    ben.window["input[value=channels]"].send_keys(Keys.ARROW_DOWN)
    ann.window.wait_for_texts("output", ["0", "1", "1"])


def test_small_pages_are_there_under_the_same_policy(ann: Person) -> None:
    for path in ("/echo/", "/ping/", "/chat/"):
        ann.window.driver.get(ann.site + path)
        ann.window.wait_for_state("open")
    ann.window.say("hello")
    ann.window.wait_for_last_text(".message .body", "hello")


# --- the outage -------------------------------------------------------------------------------------------------------


OUTAGE = """
    const [text, done] = arguments;
    const found = (selector) => Array.from(document.querySelectorAll(selector));
    const root = document.documentElement;
    new MutationObserver((changes, observer) => {
      if (root.dataset.connection === "open") return;
      observer.disconnect();
      document.getElementById("text").value = text;
      document.getElementById("form").requestSubmit();
      setTimeout(() => done([
        document.getElementById("connection").textContent,
        document.getElementById("stop").ariaDisabled,
        found(".waiting .text").map(({ textContent }) => textContent),
        document.getAnimations().length,
      ]));
    }).observe(root, { attributes: true });
    document.getElementById("stop").click();
"""


def test_nothing_is_missed_when_the_server_is_stopped(one_browser: Browser, ann: Person, ben: Person) -> None:
    ann.enter()
    ben.visit("/dashboard/")
    ann.say("I'm stopping the server for a moment.")
    ann.hears("I'm stopping the server for a moment.")
    ann.window.wait_for_texts(".message.waiting", [])  # until it has come back from the server
    assert ann.window.driver.execute_async_script(OUTAGE, "I wrote this while it was down.") == [
        "Server stopped. Reconnecting…",
        "true",  # it cannot be stopped again
        ["I wrote this while it was down."],
        0,  # animations, which this browser does not want
    ]
    for person in (ann, ben):
        person.wait_for_connection("open")
    ann.hears(
        "I'm stopping the server for a moment.",
        "The server is down. I'm a different process, so I can still talk.",
        "I wrote this while it was down.",
    )
    assert ann.window.texts(".divider") == ["While you were away"]
    ann.window.wait_for_texts(".message.waiting", [])  # until the server has it, too
    assert ann.window["#connection"].text == "Connected"
    ben.window.wait(lambda: ben.window.driver.execute_script("return document.querySelectorAll('.down').length") > 0)
    ben.enter()
    ben.window["#text"].send_keys("Nothing is")
    ann.window.wait_for_texts("#typing", ["Ben is typing…"])
    take_pictures(ann.window)
    refused = [error for error in one_browser.errors() if "ERR_CONNECTION_REFUSED" not in error]
    assert [error for error in refused if "WebSocket connection to" not in error] == []


# --- the staff --------------------------------------------------------------------------------------------------------


def is_at(person: Person, url: str) -> None:
    person.window.wait(lambda: person.window.driver.current_url == url, f"not at {url}")


LOG_OUT = "const { action } = arguments[0]; fetch(action, { method: 'POST', body: new FormData(arguments[0]) })"
NOTE_STATES = """
    const line = document.getElementById("connection");
    window.noted = [];
    new MutationObserver(() => noted.push(line.textContent)).observe(line, { childList: true });
"""


def test_staff_see_who_is_connected_and_disconnect_them(demo: Demonstration, ann: Person, ben: Person) -> None:
    ann.visit("/staff/")
    assert ann.window["a.button"].get_attribute("href") == ben.site + ADMIN
    ann.window.driver.get(ann.site + ADMIN)
    is_at(ann, f"{ann.site}/staff/")  # she is not on the staff, and has no password
    ann.enter()

    ben.enter()
    ben.window.driver.execute_script(LOG_OUT, ben.window[".account form"])
    is_at(ben, f"{ben.site}/?next={LOBBY}")  # the page has noticed
    cleo = ben
    cleo.press(".cards form button")
    is_at(cleo, cleo.site + ADMIN)
    page = cleo.window
    page.wait_for_texts("#websockets-state", ["Live"])
    page.fill("[name=user]", "ann")
    page.wait(lambda: sorted(page.texts("#websockets-list .path")) == [LOBBY, "/site/"])
    page.fill("[name=path]", LOBBY)
    page.wait_for_texts("#websockets-list .path", [LOBBY])
    [where] = page.texts("#websockets-list .where")
    name, _, number = where.partition(":")
    assert name == "demo/rooms/websockets.py"
    assert "websocket.receive_json()" in (TEST_PROJECT / name).read_text().splitlines()[int(number) - 1]

    page["#websockets-list .end"].click()
    page.wait_for_texts("h1", ["Disconnect WebSockets"])
    page["[name=reason]"].send_keys("too loud")
    cleo.press("[name=confirmed]")
    ann.wait_for_connection("refused")
    assert ann.window["#connection"].text == "Disconnected by staff: too loud. Come back"
    ann.press("#connection a")
    ann.window.wait(lambda: "Ann (you)" in ann.people())
    ann.wait_for_connection("open")

    ann.window.driver.execute_script(NOTE_STATES)
    page.wait_for_texts("#websockets-state", ["Live"])
    page.fill("[name=user]", "ann")
    cleo.press("#websockets-disconnect")
    page.wait_for_texts("h1", ["Disconnect WebSockets"])
    page["[name=code]"].send_keys("Their pages")
    cleo.press("[name=confirmed]")
    ann.window.wait(lambda: ann.window.driver.execute_script("return noted") == ["Reconnecting…", "Connected"])

    page.wait(lambda: [text.strip() for text in page.texts(".messagelist li")] == ["2 WebSockets were disconnected."])
    cleo.visit("/staff/")
    assert page.texts(".staff .button") == ["See who is connected"]
    page.driver.get(f"{cleo.site}/readyz")
    assert json.loads(page["body"].text) == {"ready": True, "broker": "up"}
    cleo.visit("/staff/")
    cleo.press(".account form button")
    page.wait(lambda: page.texts(".account a.plain") == ["Log in"], "not logged out")
    # The page may have heard of it, and loaded itself anew, before the form was answered.
    assert page.driver.current_url in (f"{cleo.site}/", f"{cleo.site}/staff/")
    page.driver.get(f"{ben.site}/")
    ben.come_in()


def test_staff_may_do_nothing_else(demo: Demonstration) -> None:
    query = """
        SELECT username, codename FROM auth_user LEFT JOIN auth_user_user_permissions ON auth_user.id = user_id
        LEFT JOIN auth_permission ON auth_permission.id = permission_id
        WHERE is_staff OR is_superuser OR codename IS NOT NULL ORDER BY codename
    """
    with closing(sqlite3.connect(demo.server.env["DATABASE_NAME"])) as database:
        found = database.execute(query).fetchall()
        permissions = database.execute("SELECT codename, name FROM auth_permission WHERE codename LIKE '%_connection'")
        assert sorted(permissions) == [
            ("disconnect_connection", "Can disconnect WebSocket"),
            ("view_connection", "Can view WebSocket"),
        ]
    assert found == [("cleo", "disconnect_connection"), ("cleo", "view_connection")]


# --- the source -------------------------------------------------------------------------------------------------------


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            assert "'unsafe" not in response.headers["Content-Security-Policy"]
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def test_each_page_leads_to_its_source(demo: Demonstration) -> None:
    address = f"http://{demo.server.address}/source"
    pages = re.findall(r'href="/source/(\w+)/"', fetch(f"{address}/home/")[1])
    assert len(pages) >= 7
    shown = set()
    for page in pages:
        text = fetch(f"{address}/{page}/")[1]
        files = re.findall(r"<h2[^>]*><code>([^<]+)</code></h2>\s*<pre[^>]*><code>(.*?)</code></pre>", text, re.DOTALL)
        assert files, page
        for name, code in files:
            assert re.fullmatch(r"(?:</?span(?: class=\"(?:keyword|string|comment)\")?>|[^<>])*", code), name
            assert html.unescape(re.sub("<[^>]+>", "", code)) == (TEST_PROJECT / name).read_text()
            shown.add(TEST_PROJECT / name)
    features = ("people", "rooms", "notifications", "dashboard", "together", "poll", "staff", "outage")
    views = {path for feature in features for path in (TEST_PROJECT / "demo" / feature).glob("*s.py")}
    assert {path.name for path in views - shown} <= {"urls.py", "forms.py", "views.py", "models.py"}
    for path in PAGES[:-1]:
        assert re.search(r'href="/source/\w+/"', fetch(f"http://{demo.server.address}{path}")[1])


@pytest.mark.parametrize("path", ["settings", "..", "%2e%2e%2fproject%2fsettings.py", "demo/settings.py", "rooms/../x"])
def test_no_other_file_can_be_read(demo: Demonstration, path: str) -> None:
    assert fetch(f"http://{demo.server.address}/source/{path}/")[0] == 404


# --- for everybody ----------------------------------------------------------------------------------------------------

FOCUS = """
    const focused = document.activeElement;
    const outlined = ["", "::after"].some((part) => {
      const { outlineStyle, outlineWidth } = getComputedStyle(focused, part);
      return outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
    });
    return [focused.id || focused.textContent.trim() || focused.tagName, outlined];
"""


def press_tab(window: Window) -> str:
    """Go to the next element, see that it shows the focus, and return what it is."""
    ActionChains(window.driver).send_keys(Keys.TAB).perform()
    what, outlined = window.driver.execute_script(FOCUS)
    assert outlined, f"the focus of {what} cannot be seen"
    return str(what)


def test_keyboard_is_enough(ann: Person) -> None:
    window = ann.enter("/rooms/garden/")
    assert press_tab(window) == "Skip to the content"
    ActionChains(window.driver).send_keys(Keys.ENTER).perform()
    found = [press_tab(window) for _ in range(7)]
    assert found[:3] == ["Lobby", "Kitchen", "Garden"]
    assert found[-3:] == ["Open a second window", "log", "text"]
    ActionChains(window.driver).send_keys("From the <b>keyboard</b>", Keys.ENTER).perform()
    ann.hears("From the <b>keyboard</b>")
    assert window.texts("#log b") == []
    assert [press_tab(window) for _ in range(2)] == ["Send", "stop"]
    home = ann.visit("/")
    found = []
    while found[-1:] != ["stop"]:
        found.append(press_tab(home))
    assert {"django_websocket", "Rooms", "Log out"} < set(found)


@pytest.mark.parametrize("path", PAGES)
def test_pages_suit_everybody(ann: Person, path: str) -> None:
    window = ann.visit(path)
    if path == "/together/":
        ann.press("#ask")
        window.wait(lambda: window.texts("#services li"))
    window.driver.execute_script(package_file("axe-core/axe.min.js").read_text())
    for scheme, rules in (("light", []), ("dark", ["color-contrast"])):  # the others say the same again
        emulate(window, scheme)
        found = window.driver.execute_async_script(AXE, rules)
        assert found == [], json.dumps(found, indent=1)
    for width in (360, 768):
        emulate(window, "light", width, 740)
        script = "const { scrollWidth, clientWidth } = document.documentElement; return scrollWidth - clientWidth"
        assert window.driver.execute_script(script) <= 0, width
    emulate(window, "light")


AXE = """
    const [rules, done] = arguments;
    const options = rules.length ? { runOnly: rules } : {};
    // Colours that change softly would be looked at halfway.
    Promise.allSettled(document.getAnimations().filter(({ transitionProperty }) => transitionProperty)
      .map(({ finished }) => finished))
      .then(() => axe.run(document, { ...options, resultTypes: ["violations"] }))
      .then(({ violations }) => done(violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)])));
"""


# --- where it must not be used, and with less -------------------------------------------------------------------------


def run_in_site(directory: Path, code: str) -> list[str]:
    """Run code in a process of the site that has no Redis, and return what it prints, line by line."""
    environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    environment |= {"DJANGO_SETTINGS_MODULE": "demo.settings", "DATABASE_NAME": str(directory / "db.sqlite3")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=TEST_PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_one_click_needs_debug_mode_and_without_redis_the_site_says_what_is_lost(tmp_path: Path) -> None:
    code = """
import os
import django
django.setup()
from django.conf import settings
from django.core.management import call_command
from django.test import Client
call_command("migrate", verbosity=0)
client = Client(SERVER_NAME="localhost")
paths = ["/people/log-in/ann/", "/people/log-in/nobody/", "/outage/stop/"]
print([client.post(path).status_code for path in paths], client.session.keys())
settings.DEBUG = True
print([client.post(path).status_code for path in paths], client.get("/people/log-in/ann/").status_code)
print(client.post("/people/log-in/ann/", {"next": "https://example.com/"})["Location"])
print(Client(SERVER_NAME="localhost", enforce_csrf_checks=True).post("/people/log-in/ann/").status_code)

os.environ["PATH"] = "/nowhere"
from demonstrate import private_redis
with private_redis() as broker:
    print(repr(broker), settings.WEBSOCKET_BROKER)
print("There is no Redis on this machine" in client.get("/").content.decode())
from django_websocket.pubsub import subscribe
with subscribe("dashboard") as samples:
    import demo.wsgi  # starts the ticker in this process
    print('"up":true' in samples.get(30), flush=True)
os._exit(0)  # the ticker still runs
"""
    assert run_in_site(tmp_path, code) == [
        "[404, 404, 404] dict_keys([])",
        "[302, 404, 404] 405",
        LOBBY,
        "403",
        "'' memory://",
        "True",
        "True",
    ]


def test_pictures_are_there_and_light_enough() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in PICTURES.values():
        assert f"docs/{path.name}" in readme
        data = path.read_bytes()
        assert struct.unpack(">II", data[16:24]) == tuple(int(SCALE * side) for side in SIZE)
        assert len(data) <= HEAVIEST

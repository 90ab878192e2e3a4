"""The recipes for front ends: their pages in Chromium with the real libraries, on one development server."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .support.browser import Browser, Window
from .support.clients import fetch_json
from .support.documentation import Project, blocks, command, commands
from .support.frontend import FRONTEND, package_file
from .support.servers import HTTP_PROBE, ROOT, Server, free_port

pytestmark = pytest.mark.slow

HTMX = "docs/recipes/htmx.md"
FRONTENDS = "docs/recipes/frontends.md"
FLASK = "docs/recipes/from-flask-socketio.md"
WS4REDIS = "docs/recipes/from-django-websocket-redis.md"
PAGES = (HTMX, FRONTENDS, FLASK, WS4REDIS)

VENDOR = {
    "htmx.min.js": "htmx.org/dist/htmx.min.js",
    "htmx4.min.js": "htmx4/dist/htmx.min.js",
    "ws.min.js": "htmx-ext-ws/dist/ws.min.js",
    "hx-ws.min.js": "htmx4/dist/ext/hx-ws.min.js",
    "turbo.js": "@hotwired/turbo/dist/turbo.es2017-umd.js",
    "vue.esm-browser.prod.js": "vue/dist/vue.esm-browser.prod.js",
}

# What the tests serve beside the pages: the same pages with another library, who is in a channel, and a view that does
# what happens while pages are away.
URLS = """
from uuid import uuid4

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django_websocket.logins import disconnect
from django_websocket.pubsub import present, publish

from chat.models import Note


def template(name):
    return login_required(lambda request: render(request, name, {"notes": notes.latest(), "form": notes.NoteForm()}))


def who(request, channel):
    return JsonResponse({"names": sorted(member["name"] for member in present(channel))})


@login_required
def away(request, code):
    closed = disconnect(user=request.user, code=code)  # each page waits 0.6 seconds at least before it comes back
    text = request.GET["text"]
    if "template" in request.GET:
        note = Note.objects.create(author=request.user, text=text)
        publish(request.GET["channel"], render_to_string(f"chat/{request.GET['template']}.html", {"note": note}))
    elif "raw" in request.GET:
        publish(request.GET["channel"], text)
    else:
        publish(request.GET["channel"], {"id": str(uuid4()), "by": request.user.get_username(), "text": text})
    return HttpResponse(str(closed))


urlpatterns[:0] = [
    path("board/htmx4/", template("chat/board_htmx4.html")),
    path("board/extension/", template("chat/board_extension.html")),
    path("board/extension4/", template("chat/board_extension4.html")),
    path("vue/switch/", template("chat/room_switch.html")),
    path("who/<channel>/", who),
    path("away/<int:code>/", away),
]
"""

# The component of React with an address that changes.
SWITCH_HTML = """
<!doctype html>
<div id="root"></div>
<script type="module" src="/src/switch.jsx"></script>
"""
SWITCH = """
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Room } from "./Room.jsx";

const root = createRoot(document.getElementById("root"));
window.show = (url) => root.render(<StrictMode>{url && <Room url={url} />}</StrictMode>);
"""

# The same for the composable of Vue.
SWITCH_VUE = """
const done = arguments[0];
Promise.all([import("vue"), import("chat/useSocket")]).then(([{ createApp, h, ref }, { useSocket }]) => {
  const address = ref("/rooms/kitchen/");
  const app = createApp({
    setup() {
      const { state, messages } = useSocket(address);
      return () => h("main", { "data-state": state.value.name }, messages.value.map(({ text }) => h("li", text)));
    },
  });
  app.mount("#room");
  window.show = (url) => (url ? (address.value = url) : app.unmount());
  done();
}).catch((error) => done(String(error)));
"""

PREPARE = """
import json
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client

call_command("makemigrations", "chat", verbosity=0)
call_command("migrate", verbosity=0)
cookies = {}
for name in ("ann", "bob"):
    client = Client()
    client.force_login(User.objects.create(username=name))
    cookies[name] = client.cookies["sessionid"].value
print(json.dumps(cookies))
"""


def variant(project: Project, name: str, new_name: str, replacements: dict[str, str]) -> None:
    """Write a template again with other words, each of which is in it."""
    text = (project.directory / "chat/templates/chat" / name).read_text()
    for old, new in replacements.items():
        assert old in text
        text = text.replace(old, new)
    project.write(f"chat/templates/chat/{new_name}", text)


@pytest.fixture(scope="module")
def project(migrated_readme: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The README's project with the files of all pages."""
    project = migrated_readme.copy(tmp_path_factory.mktemp("recipes") / "mysite")
    project.write("mysite/settings.py", "WEBSOCKET_HISTORY = {}", add=True)
    for page in PAGES:
        project.put(page, {"WEBSOCKET_HISTORY = {": "WEBSOCKET_HISTORY |= {"})
    project.write("mysite/urls.py", URLS, add=True)
    vendor = project.directory / "chat/static/vendor"
    vendor.mkdir(parents=True)
    for name, file in VENDOR.items():
        shutil.copy(package_file(file), vendor / name)
    variant(project, "board.html", "board_htmx4.html", {"htmx.min.js": "htmx4.min.js", "htmx2": "htmx4"})
    variant(
        project,
        "board_extension.html",
        "board_extension4.html",
        {
            "htmx.min.js": "htmx4.min.js",
            "ws.min.js": "hx-ws.min.js",
            "ws-connect": "hx-ws:connect",
            ' hx-ext="ws"': "",
            "note_form.html": "note_form4.html",
        },
    )
    variant(project, "note_form.html", "note_form4.html", {"ws-send": "hx-ws:send"})
    module = '<script type="module" src="{% static \'chat/room.js\' %}"></script>'
    variant(project, "room_vue.html", "room_switch.html", {module: "", "room=room": "room='kitchen'"})
    return project


@pytest.fixture(scope="module")
def cookies(project: Project) -> dict[str, str]:
    """The sessions of the users ann and bob."""
    found: dict[str, str] = json.loads(project.shell(PREPARE))
    return found


@pytest.fixture(scope="module")
def server(project: Project, cookies: dict[str, str]) -> Iterator[Server]:
    with project.runserver(command("README.md", "runwebsocket"), free_port()) as server:
        yield server
        os.killpg(server.pid, signal.SIGKILL)  # to stop it takes a second
        server.wait()


HOSTS = {"ann": "127.0.0.1", "bob": "localhost"}  # whose cookies differ


class Site:
    """The development server, and a window for each user, which all tests share: a new one takes half a second."""

    def __init__(self, browser: Browser, server: Server, cookies: dict[str, str]) -> None:
        self.browser = browser
        self.server = server
        self.windows = {user: browser.open("about:blank") for user in cookies}
        for user, cookie in cookies.items():
            arguments = {"name": "sessionid", "value": cookie, "url": self.url("/", user)}
            browser.driver.execute_cdp_cmd("Network.setCookie", arguments)

    def url(self, path: str, user: str = "ann") -> str:
        """Return the address of a page."""
        return f"http://{HOSTS[user]}:{self.server.port}{path}"

    def open(self, path: str, user: str = "ann") -> Window:
        """Show a page to a user."""
        window = self.windows[user]
        window.driver.get(self.url(path, user))
        return window

    def who(self, channel: str) -> list[str]:
        """Return the names of those who are in a channel."""
        found: list[str] = fetch_json(self.server.port, f"/who/{channel}/")["names"]
        return found

    def errors(self) -> list[str]:
        """Return the errors in the consoles since the last call."""
        return [error for error in self.browser.errors() if "favicon" not in error]


@pytest.fixture(scope="module")
def one_site(one_browser: Browser, server: Server, cookies: dict[str, str]) -> Site:
    return Site(one_browser, server, cookies)


@pytest.fixture
def site(one_site: Site) -> Site:
    one_site.errors()
    return one_site


# --- docs/recipes/htmx.md --------------------------------------------------------------------------------------------

MARKUP = "<img src=x onerror=\"document.title = 'markup'\">"
FETCH = "const [path, done] = arguments; fetch(path).then((answer) => answer.text()).then(done)"


def wait_until_open(window: Window) -> None:
    script = "return document.querySelector('[data-state=open]')"
    window.wait(lambda: window.driver.execute_script(script), "the connection is not open")


def add_note(window: Window, text: str) -> None:
    window.fill("[name=text]", text)
    window["form button"].click()


def notes(window: Window) -> list[str]:
    """Return the notes that the page shows, none of which is there twice."""
    ids = window.driver.execute_script("return Array.from(document.querySelectorAll('#notes li'), (note) => note.id)")
    assert len(ids) == len(set(ids))
    return window.texts("#notes li")


def wait_for_last_note(window: Window, text: str) -> None:
    window.wait(lambda: notes(window)[-1:] == [text], f"the last note is not {text}")


def lose_connection(window: Window, path: str) -> None:
    """End the connections of the user, whose page is told nothing of what happens just after that; it comes back."""
    assert int(window.driver.execute_async_script(FETCH, path)) > 0
    window.driver.execute_script("dispatchEvent(new Event('online'))")  # it need not wait


FOLLOW_LINK = """
const link = document.createElement("a");
link.href = location.href;
link.setAttribute("hx-boost", "true");
document.body.append(link);
window.htmx?.process(link);
document.querySelector("live-socket").left = true;
link.click();
"""


def follow_link(window: Window) -> None:
    """Go to the same page by a link, which the library follows by exchanging the body."""
    window.driver.execute_script(FOLLOW_LINK)
    window.wait(lambda: window.driver.execute_script("return !document.querySelector('live-socket').left"))


LIBRARIES = {"/board/": "htmx2", "/board/htmx4/": "htmx4", "/board/turbo/": "turbo"}


@pytest.mark.parametrize("path", LIBRARIES, ids=LIBRARIES.values())
def test_board_shows_each_note_once_on_all_pages(site: Site, path: str) -> None:
    channel, template = ("streams", "note_stream") if "turbo" in path else ("board", "note_message")
    ann, bob = (site.open(path, user) for user in ("ann", "bob"))
    for window in (ann, bob):
        wait_until_open(window)
    add_note(ann, MARKUP)
    for window in (ann, bob):
        wait_for_last_note(window, f"ann {MARKUP}")
        assert window.texts("#notes img") == []
        assert window.driver.title == "Notes"
    ann.wait(lambda: ann["[name=text]"].get_attribute("value") == "")

    # A page that has just been made has the note in its list, and gets it from the history as well.
    follow_link(bob)
    wait_until_open(bob)
    add_note(bob, "a second one")
    for window in (ann, bob):
        wait_for_last_note(window, "bob a second one")

    # What happens while a page is away arrives when it is back.
    lose_connection(ann, f"/away/1012/?channel={channel}&template={template}&text=missed")
    for window in (ann, bob):
        wait_for_last_note(window, "ann missed")

    # Whoever may not come back by itself asks for the page again, and so comes to the login page.
    wait_until_open(ann)
    address = f"/away/4401/?channel={channel}&template={template}&text=again"
    ann.driver.execute_script("window.loaded = 'before'; fetch(arguments[0], { keepalive: true })", address)
    ann.wait(lambda: ann.driver.execute_script("return window.loaded") is None)
    wait_for_last_note(ann, "ann again")
    assert [error for error in site.errors() if "WebSocket" not in error] == []


@pytest.mark.parametrize("path", [path for path in LIBRARIES if "turbo" not in path])
def test_form_comes_back_with_its_errors(site: Site, path: str) -> None:
    window = site.open(path)
    wait_until_open(window)
    window.driver.execute_script("document.querySelector('[name=text]').removeAttribute('maxlength')")
    before = notes(window)
    add_note(window, "x" * 201)
    window.wait_for_texts(".errorlist li", ["Ensure this value has at most 200 characters (it has 201)."])
    assert window["[name=text]"].get_attribute("value") == "x" * 201
    assert notes(window) == before


@pytest.mark.parametrize("path", ["/board/extension/", "/board/extension4/"], ids=["htmx2", "htmx4"])
def test_extension_of_htmx_begins_anew_after_an_interruption(site: Site, path: str) -> None:
    ann, bob = (site.open(path, user) for user in ("ann", "bob"))
    add_note(ann, f"by the extension of {path}")
    for window in (ann, bob):
        wait_for_last_note(window, f"ann by the extension of {path}")
    lose_connection(ann, "/away/1012/?channel=board&template=note_message&text=missed")
    for window in (ann, bob):
        wait_for_last_note(window, "ann missed")


def test_turbo_takes_messages_from_a_websocket_of_its_own(site: Site) -> None:
    window = site.open("/board/turbo/")
    window.driver.execute_script(
        """
        const element = document.querySelector("live-socket");
        const url = element.getAttribute("url");
        element.remove();
        document.body.append(document.createElement("ul"));
        document.querySelector("ul").id = "notes";
        const socket = new WebSocket(url);
        socket.onopen = () => (document.title = "open");
        Turbo.connectStreamSource(socket);
        """
    )
    window.wait(lambda: window.driver.title == "open")
    add_note(window, "by Turbo")
    wait_for_last_note(window, "ann by Turbo")


def test_page_says_when_the_extensions_connect_again() -> None:
    [row] = [line for line in (ROOT / HTMX).read_text().splitlines() if line.startswith("| connects again")]
    _, htmx2, htmx4 = ([int(code) for code in re.findall(r"\d{4}", cell)] for cell in row.split("|")[2:5])
    assert f"{htmx2}.indexOf(e.code)" in package_file("htmx-ext-ws/ws.js").read_text()
    listed = package_file("htmx4/dist/ext/hx-ws.js").read_text().partition("reconnectCodes: [")[2].partition("]")[0]
    assert htmx4 == [int(code) for code in re.findall(r"\d{4}", listed)]


# --- docs/recipes/frontends.md ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vite(project: Project) -> list[str]:
    """The command of Vite, after the page's commands have been run; the packages are those of the tests."""
    init, packages, client, build, _ = commands(FRONTENDS)
    assert packages.startswith("npm install ")
    asked = json.loads((ROOT / "tests/frontend/package.json").read_text())["dependencies"]
    assert {*packages.split()[2:]} <= {*asked}
    package_file("vite/bin/vite.js")
    (project.directory / "node_modules").symlink_to(FRONTEND / "node_modules")
    prepare = f'export PATH="{Path(sys.executable).parent}:$PATH" npm_config_offline=true'
    vite = ["node", str(project.directory / "node_modules/vite/bin/vite.js")]  # npx takes as long as building does
    line = "; ".join(("set -e", prepare, init, client, build.replace("npx vite", shlex.join(vite))))
    project.run(f"bash -c {shlex.quote(line)}", cwd=project.directory / "frontend")
    return vite


def say(window: Window, text: str) -> None:
    window.fill("[name=text]", text)
    window["form button"].click()


@pytest.mark.parametrize("library", ["react", "vue"])
def test_room_shows_what_is_said_and_who_is_there(site: Site, vite: list[str], library: str) -> None:
    ann, bob = (site.open(f"/{library}/lobby/", user) for user in ("ann", "bob"))
    for window in (ann, bob):
        wait_until_open(window)
        window.wait_for_texts("p", ["Here: ann, bob"])
    for number, text in enumerate([MARKUP, f"by {library}"], 1):
        say(ann, text)
        for window in (ann, bob):
            window.wait_for_last_texts("li.new", [f"ann: {MARKUP}", f"ann: by {library}"][:number])
            assert window.texts("li img") == []
    assert ann["[name=text]"].get_attribute("value") == ""
    bob.driver.refresh()
    bob.wait_for_last_texts("li.earlier", [f"ann: {MARKUP}", f"ann: by {library}"])
    lose_connection(ann, "/away/1012/?channel=room:lobby&text=missed")
    ann.wait_for_last_texts("li.new, li.earlier", [f"ann: by {library}", "ann: missed"])
    assert ann.texts("li.earlier")[-1] == "ann: missed"
    assert site.errors() == []


def test_component_of_vue_closes_its_connection(site: Site) -> None:
    window = site.open("/vue/switch/")
    assert window.driver.execute_async_script(SWITCH_VUE) is None
    assert_connection_follows_the_component(site, window)


def assert_connection_follows_the_component(site: Site, window: Window) -> None:
    """Show one room, another one, and none: whoever closes the connection has left at once."""
    show = "window.show(arguments[0])"
    window.driver.execute_script(show, "/rooms/kitchen/")
    window.wait(lambda: site.who("room:kitchen") == ["ann"])
    window.driver.execute_script(show, "/rooms/garden/")
    window.wait(lambda: site.who("room:kitchen") == [] and site.who("room:garden") == ["ann"])
    window.driver.execute_script(show, None)
    window.wait(lambda: site.who("room:garden") == [])


def test_component_of_react_on_the_development_server_of_vite(site: Site, project: Project, vite: list[str]) -> None:
    config = project.directory / "frontend/vite.config.mjs"
    config.write_text(config.read_text().replace("8000", str(site.server.port)))
    project.write("frontend/switch.html", SWITCH_HTML)
    project.write("frontend/src/switch.jsx", SWITCH)
    port = free_port()
    line = [*vite, "--host", "127.0.0.1", "--port", str(port), "--strictPort"]
    with Server(line, port=port, probe=HTTP_PROBE, cwd=project.directory / "frontend") as server:
        window = site.open("/static/vendor/turbo.js")
        window.driver.get(f"http://{server.address}/")
        wait_until_open(window)
        say(window, "in strict mode")
        window.wait_for_last_texts("li.new", ["ann: in strict mode"])
        assert window.texts("li").count("ann: in strict mode") == 1
        window.driver.get(f"http://127.0.0.1:{port}/switch.html")
        assert_connection_follows_the_component(site, window)
        window.driver.get("about:blank")
    assert [error for error in site.errors() if "before the connection is established" not in error] == []


def test_address_comes_from_the_api(site: Site, project: Project) -> None:
    window = site.open("/vue/lobby/")
    code = (project.directory / "frontend/src/lobby.js").read_text().replace("export async", "async")
    window.driver.execute_async_script(
        f"""{code}
        const done = arguments[0];
        import("django_websocket").then(({{ connect }}) => {{
          connect(lobby).on("message", (text) => (document.title = JSON.parse(text).text));
          done();
        }});
        """
    )
    wait_until_open(window)
    say(window, "from the API")
    window.wait(lambda: window.driver.title == "from the API")


# --- docs/recipes/from-flask-socketio.md -----------------------------------------------------------------------------


def test_example_of_flask_does_what_the_page_says(project: Project) -> None:
    spec = importlib.util.spec_from_file_location("flask_chat", project.directory / "flask_chat.py")
    assert spec and spec.loader
    before = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(before)
    ann, bob, eve = (before.socketio.test_client(before.app) for _ in range(3))
    for client in (ann, bob):
        client.emit("join", "lobby")
    eve.emit("join", "cellar")
    assert ann.emit("say", "hello", callback=True) == {"ok": True}
    assert ann.emit("say", "", callback=True) == {"error": "Write 1 to 500 characters."}
    for client, heard in ((ann, ["hello"]), (bob, ["hello"]), (eve, [])):
        received = client.get_received()
        assert [(each["name"], each["args"][0]["text"]) for each in received] == [("said", text) for text in heard]


def test_events_in_place_of_those_of_socket_io(site: Site) -> None:
    ann, bob = (site.open("/events/lobby/", user) for user in ("ann", "bob"))
    bob.say("here")
    bob.wait_for_last_text("#said li", "bob: here")
    for text in (MARKUP, "hello"):
        ann.say(text)
        for window in (ann, bob):
            window.wait_for_last_text("#said li", f"ann: {text}")
            assert window.texts("#said img") == []
    ann.say("x" * 501)
    ann.wait_for_texts("#error", ["Write 1 to 500 characters."])
    ann.say("short")
    ann.wait_for_texts("#error", [""])
    assert site.errors() == []


# --- docs/recipes/from-django-websocket-redis.md ---------------------------------------------------------------------


def test_page_of_a_facility_begins_with_the_latest_news(site: Site) -> None:
    ann = site.open("/facilities/news/")
    ann.wait_for_texts("#state", ["open"])
    for channel, texts in (("user:ann:news", ["one"]), ("broadcast:news", ["two", "three"])):
        for text in texts:
            lose_connection(ann, f"/away/1012/?channel={channel}&raw=1&text={text}")
            ann.wait_for_last_text("#news li", text)
            ann.wait_for_texts("#state", ["open"])
    assert ann.texts("#news li") == ["one", "two", "three"]
    ann.driver.refresh()
    ann.wait(lambda: sorted(ann.texts("#news li")) == ["one", "three"])  # the latest of each channel
    assert site.errors() == []


# --- the tests that the pages have for their readers -----------------------------------------------------------------


def test_tests_of_the_pages_pass(project: Project, cookies: dict[str, str]) -> None:
    output = project.run("python manage.py test", errors=True)
    expected = sum(block.code.count("    def test_") for page in PAGES for block in blocks(page))
    assert f"Ran {expected} tests" in output

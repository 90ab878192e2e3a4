"""The test site and the documentation's pages in headless Chromium."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.by import By

from .support.browser import Browser, Window
from .support.documentation import ENVIRONMENT, Project, command
from .support.fixtures import StartSite
from .support.servers import HTTP_PROBE, TEST_PROJECT, Server, free_port, gunicorn

pytestmark = pytest.mark.slow

PAGES = ("/", "/chat/", "/echo/", "/ping/")


class Site:
    """The test project: the server of its pages, and that of its WebSockets."""

    def __init__(self, pages: Server, websockets: Server) -> None:
        self.pages = pages
        self.websockets = websockets

    def url(self, path: str) -> str:
        """Return the address of a page."""
        return f"http://{self.pages.address}{path}"

    def kill_websockets(self) -> None:
        """Kill the server of the WebSockets, so that it cannot say goodbye to its clients."""
        os.killpg(self.websockets.pid, signal.SIGKILL)
        self.websockets.wait()

    def stop_websockets(self) -> None:
        """Stop the server of the WebSockets as an administrator does."""
        self.websockets.stop()


@contextmanager
def one_port(directory: Path) -> Iterator[Site]:
    """Serve pages and WebSockets from one gunicorn, as scripts/demo does."""
    environment = ENVIRONMENT | {"DEBUG": "1", "DATABASE_NAME": str(directory / "db.sqlite3")}
    with gunicorn("project.wsgi:application", env=environment) as server:
        yield Site(server, server)


@contextmanager
def two_shells(directory: Path) -> Iterator[Site]:
    """Serve the pages from runserver and the WebSockets from gunicorn."""
    port, websocket_port = free_port(), free_port()
    environment = ENVIRONMENT | {
        "DATABASE_NAME": str(directory / "db.sqlite3"),
        "WEBSOCKET_SERVER": f":{websocket_port}",
        "WEBSOCKET_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",
    }
    line = [sys.executable, "manage.py", "runserver", f"127.0.0.1:{port}", "--noreload"]
    with (
        Server(line, port=port, probe=HTTP_PROBE, cwd=TEST_PROJECT, env=environment) as pages,
        gunicorn(port=websocket_port, env=environment) as websockets,
    ):
        yield Site(pages, websockets)


@pytest.fixture(scope="module", params=[one_port, two_shells], ids=["one port", "two shells"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with request.param(tmp_path_factory.mktemp("site")) as site:
        yield site


def test_index_leads_to_the_pages(browser: Browser, site: Site) -> None:
    window = browser.open(site.url("/"))
    links = {link.get_attribute("href") for link in window.driver.find_elements(By.CSS_SELECTOR, "main a")}
    assert links == {site.url(path) for path in PAGES[1:]}
    for path in PAGES[1:]:
        window.driver.get(site.url("/"))
        window[f'main a[href="{path}"]'].click()
        window.wait_for_state("open")
        assert urlsplit(window.driver.current_url).path == path
        assert window["#state"].text == "Connected"
        address = window["#address"].get_attribute("data-url") or ""
        assert re.fullmatch(rf"ws://{site.websockets.address}{path}\?django-websocket-since=\d+", address)
        assert window["#address"].text == f"ws://{site.websockets.address}{path}"
        assert window["nav [aria-current=page]"].get_attribute("href") == site.url(path)
    window[".brand"].click()
    window.wait(lambda: window.driver.current_url == site.url("/"))
    assert browser.errors() == []


def test_two_windows_chat(browser: Browser, site: Site) -> None:
    ann, bob = (browser.open(site.url("/chat/")) for _ in range(2))
    for window, name in ((ann, "Ann"), (bob, "Bob")):
        window.wait_for_state("open")
        window.fill("#user", name)
    said = ["Hello, Bob", "Hello, Ann", "Grüße 🙂"]
    for number, (window, text) in enumerate(zip((ann, bob, ann), said, strict=True), 1):
        window.say(text)
        for reader in (ann, bob):  # which may have lines of a moment ago, too
            reader.wait_for_last_texts(".message .body", said[:number])
    for window in (ann, bob):
        assert window.texts(".message .user")[-3:] == ["Ann", "Bob", "Ann"]
        assert all(window.texts(".message .time"))
        assert window["#text"].get_attribute("value") == ""
    assert browser.errors() == []


def test_name_and_colour_can_be_changed_and_are_kept_for_the_window(browser: Browser, site: Site) -> None:
    ann, bob = (browser.open(site.url("/chat/")) for _ in range(2))
    for window in (ann, bob):
        window.wait_for_state("open")
    ann.fill("#user", "Ann")
    for name, color, shown in (("Ann", "#123456", "rgb(18, 52, 86)"), ("Anna", "#00ff00", "rgb(0, 255, 0)")):
        ann.fill("#user", name)
        ann.driver.execute_script(
            "const [input, value] = arguments; input.value = value; input.dispatchEvent(new Event('input'))",
            ann["#color"],
            color,
        )
        ann.say(f"I am {name}")
        bob.wait_for_last_text(".message .body", f"I am {name}")
        assert bob.texts(".message .user")[-1] == name
        style = "return getComputedStyle(document.querySelector('.message:last-child .user')).color"
        assert bob.driver.execute_script(style) == shown
    ann.driver.refresh()
    ann.wait_for_state("open")
    assert ann["#user"].get_attribute("value") == "Anna"
    assert ann["#color"].get_attribute("value") == "#00ff00"
    assert bob["#user"].get_attribute("value") != "Anna"
    assert browser.errors() == []


def test_markup_is_shown_as_text(browser: Browser, site: Site) -> None:
    ann, bob = (browser.open(site.url("/chat/")) for _ in range(2))
    for window in (ann, bob):
        window.wait_for_state("open")
    title = bob.driver.title
    markup = "<img src=x onerror=\"document.title = 'markup'\"><b>&lt;bold&gt;</b>"
    ann.fill("#user", "<i>Ann</i>")
    ann.say(markup)
    for window in (ann, bob):
        window.wait_for_last_text(".message .body", markup)
        assert window.texts(".message .user")[-1] == "<i>Ann</i>"
        assert window.texts("#log img, #log b, #log i") == []
    assert bob.driver.title == title
    assert browser.errors() == []


def people(window: Window) -> list[str]:
    """Return who is here, as the chat shows it."""
    return window.texts("#people li")


def chatting(browser: Browser, site: Site, key: str, *names: str) -> list[Window]:
    """Open windows of people who see each other; whoever has left lately may be here as well."""
    windows = [browser.open(site.url("/chat/")) for _ in names]
    whole = [f"{name} {key[:6]}" for name in names]
    for window, name in zip(windows, whole, strict=True):
        window.wait_for_state("open")
        window.fill("#user", name)
    for window, own in zip(windows, whole, strict=True):
        expected = {f"{name} (you)" if name == own else name for name in whole}
        window.wait(lambda: expected.issubset(people(window)), f"{own} does not see everybody")  # noqa: B023
        assert people(window)[0] == f"{own} (you)"
        window.wait(lambda: window["#count"].text == f"{len(people(window))} here", "the number is wrong")  # noqa: B023
    return windows


def test_chat_shows_who_is_here(browser: Browser, site: Site, key: str) -> None:
    ann, bob = chatting(browser, site, key, "Ann", "Bob")
    color = "return getComputedStyle(document.querySelector('#people li:first-child .user')).color"
    colors = [window.driver.execute_script(color) for window in (ann, bob)]
    script = "const [color] = arguments; color.value = '#123456'; color.dispatchEvent(new Event('input'))"
    bob.driver.execute_script(script, bob["#color"])
    bob.fill("#user", f"Robert {key}")
    ann.wait(lambda: f"Robert {key}" in people(ann))
    bob.wait(lambda: f"Robert {key} (you)" in people(bob))
    assert f"Bob {key[:6]}" not in people(ann)
    assert [window.driver.execute_script(color) for window in (ann, bob)] == [colors[0], "rgb(18, 52, 86)"]
    assert browser.errors() == []


def test_chat_shows_who_is_typing(browser: Browser, site: Site, key: str) -> None:
    ann, bob = chatting(browser, site, key, "Ann", "Bob")
    places = (
        "return ['log', 'typing', 'form'].map((id) => JSON.stringify(document.getElementById(id).getClientRects()))"
    )
    before = ann.driver.execute_script(places)
    bob.fill("#text", "I am")
    ann.wait_for_texts("#typing", [f"Bob {key[:6]} is typing…"])
    assert ann.driver.execute_script(places) == before  # nothing jumps
    assert bob.texts("#typing") == [""]
    ann.fill("#text", "I, too")
    bob.wait_for_texts("#typing", [f"Ann {key[:6]} is typing…"])
    ann.say("here")
    bob.wait_for_texts("#typing", [""])
    ann.wait_for_texts("#typing", [""])  # Bob has not typed for three seconds
    assert bob["#text"].get_attribute("value") == "I am"
    assert browser.errors() == []


def test_reloaded_chat_page_has_not_left(browser: Browser, site: Site, key: str) -> None:
    ann, bob = chatting(browser, site, key, "Ann", "Bob")
    bob.driver.execute_script("""
        window.seen = [];
        const list = document.getElementById("people");
        new MutationObserver(() => seen.push(list.textContent)).observe(list, { childList: true });
    """)
    for _ in range(2):
        ann.driver.refresh()
        ann.wait_for_state("open")
        ann.wait(lambda: f"Bob {key[:6]}" in people(ann))
        assert people(ann)[0] == f"Ann {key[:6]} (you)"
    bob.fill("#user", f"Robert {key}")
    ann.wait(lambda: f"Robert {key}" in people(ann))
    bob.wait(lambda: people(bob)[0] == f"Robert {key} (you)")
    seen = bob.driver.execute_script("return seen")
    assert seen and all(f"Ann {key[:6]}" in each for each in seen)


def test_names_are_shown_as_text(browser: Browser, site: Site, key: str) -> None:
    ann, bob = chatting(browser, site, key, "Ann", "Bob")
    title = ann.driver.title
    markup = "<img src=x onerror=document.title='x'>"
    assert len(markup) <= 40  # the view cuts off the rest
    bob.fill("#user", markup)
    ann.wait(lambda: markup in people(ann))
    bob.fill("#text", "I am")
    ann.wait_for_texts("#typing", [f"{markup} is typing…"])
    assert ann.texts(".here img, #typing img") == []
    assert (ann.driver.title, browser.errors()) == (title, [])


def test_echo_of_text_and_binary(browser: Browser, site: Site) -> None:
    window = browser.open(site.url("/echo/"))
    window.wait_for_state("open")
    window.say("text")
    window.wait_for_texts(".message .body", ["text"])
    window["#binary"].click()
    window.say("Grüße")
    window.wait_for_texts(".message .body", ["text", "Grüße"])
    window["#binary"].click()
    window.say("")  # an empty message is a message
    window.wait_for_texts(".message .body", ["text", "Grüße", ""])
    notes = window.texts(".message .note")
    assert notes[0].endswith(" ms") and "binary" not in notes[0]
    assert notes[1].startswith("binary, 7 bytes, ")
    assert browser.errors() == []


def test_ping(browser: Browser, site: Site) -> None:
    window = browser.open(site.url("/ping/"))
    window.wait_for_state("open")
    window["#ping"].click()
    window.wait_for_texts(".message .body", ["pong"])
    window["#pong"].click()
    window.wait_for_texts(".message .body", ["pong", "ping"])
    window.say("something else")
    assert "something else" in window["#sent"].text
    window["#ping"].click()
    window.wait_for_texts(".message .body", ["pong", "ping", "pong"])  # something else has no answer
    assert browser.errors() == []


@pytest.mark.parametrize("end", [Site.kill_websockets, Site.stop_websockets], ids=["killed", "stopped"])
@pytest.mark.parametrize("path", ["/chat/", "/echo/"])
def test_page_connects_again_when_the_server_is_back(
    browser: Browser, site: Site, path: str, end: Callable[[Site], None]
) -> None:
    window = browser.open(site.url(path))
    window.wait_for_state("open")
    window.say("before")
    window.wait_for_last_text(".message .body", "before")
    end(site)
    look = """
        const { dataset, textContent } = document.getElementById("state");
        return [dataset.state, textContent.startsWith("Reconnecting"), document.querySelector("form button").disabled];
    """
    window.wait(lambda: window.driver.execute_script(look) == ["waiting", True, True])
    site.websockets.start()
    window.wait_for_state("open")
    window.say("after")
    window.wait_for_last_texts(".message .body", ["before", "after"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 1280])
def test_pages_fit_into_the_window(browser: Browser, site: Site, width: int, scheme: str) -> None:
    window = browser.open(site.url("/"))
    metrics = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 500}
    feature = {"name": "prefers-color-scheme", "value": scheme}
    for path in PAGES:
        window.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        window.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        window.driver.get(site.url(path))
        if path != "/":
            window.wait_for_state("open")
        widths = window.driver.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert widths == [width, width], path
        background = window.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(", "))) < 3 * 128) == (scheme == "dark")
    assert browser.errors() == []


# The examples of the documentation


def test_readme_page_in_two_windows(browser: Browser, readme: Project, tmp_path: Path) -> None:
    port = free_port()
    project = readme.copy(tmp_path / "mysite")
    with project.runserver(command("README.md", "runwebsocket"), port):
        ann, bob = (browser.open(f"http://127.0.0.1:{port}/chat/lobby/") for _ in range(2))
        for window in (ann, bob):
            window.say("here")
            window.wait_for_last_text("#log li", "here")
        ann.say("<b>Hello</b>")
        for window in (ann, bob):
            window.wait_for_last_text("#log li", "<b>Hello</b>")
        assert ann["#text"].get_attribute("value") == ""
        # Before the server stops: then the pages try to connect again.
        assert [error for error in browser.errors() if "favicon" not in error] == []


def test_examples_of_the_page_about_pages(browser: Browser, readme: Project, tmp_path: Path) -> None:
    project = readme.copy(tmp_path / "mysite")
    project.put("docs/pages.md")
    views = """
from chat.news import news
from django_websocket.pubsub import publish
from django_websocket.servers.echo import echo
from django_websocket.decorators import websocket

@websocket
def tell(request, websocket):
    for text in websocket:
        publish("news:weather", text)

urlpatterns += [path("echo/", echo, name="echo"), path("news/<topic>/", news, name="news"), path("tell/", tell)]
"""
    project.write("mysite/websocket_urls.py", views, add=True)
    names = ["echo", "reconnect", "news"]
    pages = "".join(f'path("{name}/", TemplateView.as_view(template_name="chat/{name}.html")),' for name in names)
    project.write("mysite/urls.py", f"urlpatterns += [{pages}]", add=True)
    with project.runserver(command("README.md", "runwebsocket"), free_port()) as server:
        window = browser.open(f"http://{server.address}/echo/")
        window.wait(lambda: "hello" in window["body"].text)
        window.driver.get(f"http://{server.address}/reconnect/")
        window.wait_for_texts("#state", ["open"])
        window.wait(lambda: window["body"].text.endswith("hello"))
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        window.wait(lambda: window.texts("#state") != ["open"])
        server.start()
        window.wait_for_texts("#state", ["open"])
        window.wait(lambda: window["body"].text.endswith("hellohello"))
        window.driver.get(f"http://{server.address}/news/")
        tell = "const done = arguments[0], s = new WebSocket(`ws://${location.host}/tell/`);"
        tell += "s.onopen = () => { s.send('rain'); s.close(); done(); }"
        window.driver.execute_async_script(tell)
        window.wait_for_texts("#news li", ["rain"])
        window.driver.get(f"http://{server.address}/news/")
        window.wait_for_texts("#news li", ["rain"])  # it was published just before the page was made
    browser.errors()  # of the attempts


def test_page_that_shows_who_is_here(browser: Browser, migrated_readme: Project, tmp_path: Path) -> None:
    project = migrated_readme.copy(tmp_path / "mysite")
    project.put("docs/pages.md")
    room = 'from chat.rooms import room\nurlpatterns += [path("room/<name>/", room, name="room")]'
    project.write("mysite/websocket_urls.py", room, add=True)
    pages = """
from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.shortcuts import render

def here(request, username):
    login(request, User.objects.get_or_create(username=username)[0])
    return render(request, "chat/here.html")

def leave(request):
    logout(request)
    return HttpResponse()

urlpatterns += [path("here/<username>/", here), path("leave/", leave)]"""
    project.write("mysite/urls.py", pages, add=True)
    with project.runserver(command("README.md", "runwebsocket"), free_port()) as server:
        # Two hosts, or both would have the same session.
        ann = browser.open(f"http://127.0.0.1:{server.port}/here/ann/")
        ann.wait_for_texts("#here li", ["ann"])
        bob = browser.open(f"http://localhost:{server.port}/here/bob/")
        for window in (ann, bob):
            window.wait(lambda: sorted(window.texts("#here li")) == ["ann", "bob"])  # noqa: B023
            window.wait_for_texts("#count", ["2"])
        bob.driver.execute_script("fetch('/leave/')")
        ann.wait_for_texts("#here li", ["ann"])
        ann.wait_for_texts("#count", ["1"])
        # Before the server stops: then the page tries to connect again.
        assert [error for error in browser.errors() if "favicon" not in error] == []


def test_pages_with_a_token(browser: Browser, readme: Project, tmp_path: Path) -> None:
    project = readme.copy(tmp_path / "mysite")
    project.put("docs/tokens.md")
    views = """
from chat import views as examples
urlpatterns += [
    path("by-subprotocol/", examples.by_subprotocol, name="by-subprotocol"),
    path("by-message/", examples.by_message, name="by-message"),
]"""
    project.write("mysite/websocket_urls.py", views, add=True)
    page = """
from chat.tokens import make_token
from django.contrib.auth.models import User
from django.shortcuts import render

def page(request, name, seconds):
    user = User.objects.get_or_create(username="ann")[0]
    return render(request, f"chat/{name}.html", {"token": make_token(user, int(seconds))})

urlpatterns += [path("<name>/<seconds>/", page)]"""
    project.write("mysite/urls.py", page, add=True)
    project.run("python manage.py migrate --verbosity 0")
    with project.runserver(command("README.md", "runwebsocket"), free_port()) as server:
        for name, refusal in (("by_subprotocol", "4401 Unauthorized"), ("by_message", "4401 invalid token")):
            window = browser.open(f"http://{server.address}/{name}/8/")
            window.wait(lambda: window["body"].text == "Welcome, annhello")  # noqa: B023
            window.wait(lambda: window["body"].text == "Welcome, annhello 4401 expired")  # noqa: B023
            window.driver.get(f"http://{server.address}/{name}/-1/")
            window.wait(lambda: window["body"].text == refusal)  # noqa: B023
    assert [error for error in browser.errors() if "favicon" not in error] == []


def test_page_reads_why_it_was_refused(browser: Browser, start_site: StartSite) -> None:
    with start_site() as server:
        window = browser.open(f"http://{server.address}/page/")
        script = """
            const [path, done] = arguments;
            new WebSocket(`ws://${location.host}${path}`).onclose = ({ code, reason }) => done([code, reason]);
        """
        for how, expected in (("login", [4401, "Log in first"]), ("limit", [4429, "Too Many Requests"])):
            assert window.driver.execute_async_script(script, f"/refuse-by-closing/{how}/") == expected
        assert window.driver.execute_async_script(script, "/refuse-by-status/403/") == [1006, ""]
        browser.errors()  # forget the browser's error about the last refusal

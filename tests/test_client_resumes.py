"""The browser's client misses nothing in channels with a history: in Chromium, against real servers and Redis."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import django_websocket

from .support.browser import OPTIONS, Browser, Window, chromium
from .support.client_page import Page, kill
from .support.clients import fetch, fetch_json
from .support.documentation import ENVIRONMENT
from .support.fixtures import STOCK_WORKER, StartSite
from .support.servers import Server, gunicorn, redis_server

pytestmark = pytest.mark.slow

HISTORY = {"WEBSOCKET_HISTORY": {"kept:*": {"messages": 10, "seconds": 3600}}}
PACKAGE = Path(django_websocket.__file__).parent / "static" / "django_websocket" / "package.json"


def site_settings(redis: Server, **more: Any) -> dict[str, Any]:
    return {**HISTORY, "WEBSOCKET_BROKER": f"redis://{redis.address}/0", **more}


@pytest.fixture(scope="module")
def own_redis() -> Iterator[Server]:
    """A Redis that tests stop, and that has its data when it is back."""
    with redis_server(args=["--appendonly", "yes", "--appendfsync", "always"]) as redis:
        yield redis


@pytest.fixture(scope="module")
def publisher(own_redis: Server, start_site: StartSite) -> Iterator[Server]:
    """A server that stays, for what is published while the other one is away."""
    with start_site(site_settings(own_redis)) as server:
        yield server


@pytest.fixture
def server(own_redis: Server, start_site: StartSite) -> Iterator[Server]:
    """The server of the page and its WebSocket."""
    with start_site(site_settings(own_redis)) as server:
        yield server


def publish(server: Server, channel: str, *messages: str) -> None:
    for message in messages:
        assert fetch(server.port, f"/publish/{quote(channel)}/?text={quote(message)}").status == 200


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_what_was_published_while_the_server_was_away_comes(
    browser: Browser, server: Server, publisher: Server, key: str, how: str
) -> None:
    page = Page(browser, server).begin_and_subscribe(f"/listen/kept:{key}/")
    publish(publisher, f"kept:{key}", "before")
    page.wait_for_messages("before")
    (server.stop if how == "stop" else lambda: kill(server))()
    publish(publisher, f"kept:{key}", "one", "two", "three")
    server.start()
    page.wait_for("open")
    publish(publisher, f"kept:{key}", "after")
    page.wait_for_messages("before", "one", "two", "three", "after")
    channel = f"kept:{key}"
    assert page.origins == [{"channel": channel, "replayed": replayed} for replayed in (False, *[True] * 3, False)]
    assert page.resets == []
    browser.errors()


def test_page_without_a_message_so_far_goes_on_from_its_beginning(
    browser: Browser, server: Server, publisher: Server, key: str
) -> None:
    page = Page(browser, server).begin_and_subscribe(f"/listen/kept:{key}/")
    kill(server)
    publish(publisher, f"kept:{key}", "first")
    server.start()
    page.wait_for_messages("first")
    browser.errors()


def test_page_is_told_when_its_past_is_not_all_there(
    browser: Browser, server: Server, publisher: Server, key: str
) -> None:
    page = Page(browser, server).begin_and_subscribe(f"/listen/kept:{key}/?and=kept:{key}-2")
    publish(publisher, f"kept:{key}", "before")
    page.wait_for_messages("before")
    kill(server)
    publish(publisher, f"kept:{key}", *map(str, range(30)))
    server.start()
    page.window.wait(lambda: page.resets)
    assert page.resets == [[f"kept:{key}", f"kept:{key}-2"]]
    publish(publisher, f"kept:{key}", "after")
    page.wait_for_messages("before", "after")
    kill(server)
    publish(publisher, f"kept:{key}", "again")
    server.start()
    page.wait_for_messages("before", "after", "again")  # it goes on behind the reset
    assert len(page.resets) == 1
    browser.errors()


def test_reset_that_nobody_listens_to_is_in_the_console(
    browser: Browser, server: Server, publisher: Server, key: str
) -> None:
    page = Page(browser, server)
    positions = {"positions": {f"kept:{key}": "7.AAAAAAAAAAA"}}
    page.run("connect(`ws://${location.host}${arguments[0]}`, arguments[1])", f"/listen/kept:{key}/", positions)
    page.window.wait(lambda: any(f"Messages of kept:{key} are lost" in warning for warning in browser.errors()))


def test_resets_that_go_on_come_ever_later(browser: Browser, server: Server, publisher: Server, key: str) -> None:
    page = Page(browser, server)
    pauses = []
    for _ in range(3):
        page.window.driver.get(page.window.driver.current_url)
        page.window.wait(lambda: page.run("return window.begin !== undefined"))
        page.begin(f"/listen/kept:{key}/", {"positions": {f"kept:{key}": "7.AAAAAAAAAAA"}})
        page.window.wait(lambda: page.resets)
        pauses.append(page.run("return Number(sessionStorage.getItem('django-websocket.1.0').split(',')[1])"))
    assert pauses == [10_000, 20_000, 40_000]
    publish(publisher, f"kept:{key}", "after")
    page.wait_for_messages("after")


def test_resets_of_two_sockets_of_a_page_do_not_wait_for_each_other(browser: Browser, server: Server, key: str) -> None:
    page = Page(browser, server)
    positions = {"positions": {f"kept:{key}": "7.AAAAAAAAAAA"}}
    page.run(
        """window.told = [];
        for (const number of [0, 1]) {
          const socket = connect(`ws://${location.host}${arguments[0]}`, arguments[1]);
          socket.on("reset", () => told.push([number, performance.now()]));
        }""",
        f"/listen/kept:{key}/",
        positions,
    )
    page.window.wait(lambda: len(page.run("return told")) == 2)
    (_, first), (_, second) = page.run("return told")
    assert second - first < 9_000


def test_page_begins_at_the_positions_that_it_is_given(
    browser: Browser, server: Server, publisher: Server, key: str
) -> None:
    position = fetch_json(publisher.port, f"/pasts/ends/kept:{key}/")["position"]
    publish(publisher, f"kept:{key}", "one", "two")
    page = Page(browser, server)
    page.begin(f"/listen/kept:{key}/", {"positions": {f"kept:{key}": position}})
    page.wait_for_messages("one", "two")
    assert [origin["replayed"] for origin in page.origins] == [True, True]


def test_page_from_the_back_forward_cache_goes_on(
    browser: Browser, server: Server, publisher: Server, key: str
) -> None:
    page = Page(browser, server).begin_and_subscribe(f"/listen/kept:{key}/")
    page.run("addEventListener('pageshow', ({ persisted }) => (window.persisted = persisted))")
    page.window.driver.get(f"http://{server.address}/page/")
    publish(publisher, f"kept:{key}", "meanwhile")
    page.window.driver.back()
    page.window.wait(lambda: page.run("return window.persisted"), "the browser has not kept the page")
    page.wait_for_messages("meanwhile")


def test_redis_that_was_away_is_not_noticed(
    browser: Browser, own_redis: Server, server: Server, publisher: Server, key: str
) -> None:
    page = Page(browser, server).begin_and_subscribe(f"/listen/kept:{key}/")
    publish(publisher, f"kept:{key}", "before")
    own_redis.stop()
    own_redis.start()
    publish(publisher, f"kept:{key}", "after")
    page.wait_for_messages("before", "after")
    assert page.names == ["connecting", "open"]


@pytest.mark.parametrize("kind", ["arraybuffer", "blob"])
def test_binary_messages_of_a_channel_and_of_a_view(browser: Browser, server: Server, key: str, kind: str) -> None:
    page = Page(browser, server)
    page.begin(f"/pasts/sync/subscribes/kept:{key}/", {"binaryType": kind}).wait_for("open")
    page.run("socket.send(new Uint8Array([0, 255, 58]))")
    page.window.wait(lambda: page.messages)
    assert page.messages == [[0, 255, 58] if kind == "arraybuffer" else "a Blob of 3"]
    page.run(
        """
        const echo = connect(`ws://${location.host}/echo/`, { binaryType: arguments[0] });
        echo.on("message", (data) => (window.echoed = data.byteLength ?? data.size));
        echo.send(new Uint8Array([1, 2]), { queue: true });""",
        kind,
    )
    page.window.wait(lambda: page.run("return window.echoed") == 2)


def test_subprotocol_of_the_application_inside(browser: Browser, server: Server) -> None:
    page = Page(browser, server)
    page.begin("/subprotocols/", {"protocols": ["v1.example", "v3.example"]})
    page.wait_for("connecting", "open", "closed")
    assert page.run("return socket.protocol") == "v1.example"
    page.wait_for_messages("v1.example, v3.example")  # what the view sees as offered


def test_restart_advises_when_to_come_back(browser: Browser, server: Server) -> None:
    page = Page(browser, server, query="")
    page.run("""
        window.opened = 0;
        window.waits = [];
        for (let count = 0; count < 40; count++) {
          connect(`ws://${location.host}/echo/`).on("state", ({ name, wait, code }) => {
            if (name === "open") opened += 1;
            if (name === "waiting" && code === 1012) waits.push(wait);
          });
        }""")
    page.window.wait(lambda: page.run("return opened") == 40)
    server.stop()
    page.window.wait(lambda: page.run("return waits.length") == 40)
    waits = sorted(page.run("return waits"))
    assert 1000 <= waits[0] < waits[-1] <= 3000, waits
    assert waits[-1] - waits[0] > 800, waits
    browser.errors()


def test_server_that_has_fallen_silent_is_left(browser: Browser, own_redis: Server, start_site: StartSite) -> None:
    with start_site(site_settings(own_redis, WEBSOCKET_PING_INTERVAL=1)) as server:
        page = Page(browser, server).begin("/echo/")
        page.wait_for("open")
        os.killpg(server.pid, signal.SIGSTOP)  # its connections stay
        try:
            page.window.wait(lambda: ("open", "connecting") in zip(page.names, page.names[1:], strict=False))
        finally:
            os.killpg(server.pid, signal.SIGCONT)
        page.wait_for("open")
        names = page.names
        page.run("window.glances = 0; setInterval(() => glances++, 5000)")
        page.window.wait(lambda: page.run("return glances") >= 16)  # four seconds in which only the heart beats
        assert page.names == names
        browser.errors()


def test_frozen_page_goes_on_when_it_is_thawed(browser: Browser, server: Server, publisher: Server, key: str) -> None:
    page = Page(browser, server).begin_and_subscribe(f"/listen/kept:{key}/")
    driver = page.window.driver
    driver.execute_cdp_cmd("Page.setWebLifecycleState", {"state": "frozen"})
    kill(server)
    publish(publisher, f"kept:{key}", "while it was frozen")
    server.start()

    def has_gone_on() -> bool:
        driver.execute_cdp_cmd("Page.setWebLifecycleState", {"state": "active"})  # the browser may have ignored it
        return bool(page.messages == ["while it was frozen"])

    page.window.wait(has_gone_on)
    browser.errors()


def test_tab_in_the_background_comes_back(
    tmp_path: Path, server: Server, publisher: Server, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chromium holds up the timers of a tab that is hidden."""
    throttling = [option for option in OPTIONS if "background" not in option and "occluded" not in option]
    monkeypatch.setattr("tests.support.browser.OPTIONS", throttling)
    with chromium(tmp_path) as browser:
        page = Page(browser, server, query="").begin_and_subscribe(f"/listen/kept:{key}/")
        page.run("socket.on('state', () => localStorage.setItem('names', states.map(({ name }) => name)))")
        browser.driver.switch_to.new_window("tab")
        kill(server)
        publish(publisher, f"kept:{key}", "while it was hidden")
        server.start()
        front = Window(browser.driver, browser.driver.current_window_handle, f"http://{server.address}/page/")
        names = "return localStorage.getItem('names') ?? ''"
        front.wait(lambda: front.driver.execute_script(names).endswith("connecting,open"), "the tab has not come back")
        page.wait_for_messages("while it was hidden")
        assert page.names[-1] == "open" and page.run("return hidden.at(-1)"), page.states


def test_package_json_has_the_version_of_the_package() -> None:
    package = json.loads(PACKAGE.read_text())
    assert package["version"] == django_websocket.__version__
    assert all((PACKAGE.parent / name).is_file() for name in package["files"])
    assert {package["exports"]["."]["default"], package["exports"]["."]["types"]} == {"./client.js", "./client.d.ts"}


def test_worker_of_gevent_websocket_serves_the_client(
    browser: Browser, own_redis: Server, publisher: Server, start_site: StartSite, key: str
) -> None:
    with start_site(site_settings(own_redis), worker=STOCK_WORKER) as server:
        page = Page(browser, server).begin_and_subscribe(f"/listen/kept:{key}/")
        publish(publisher, f"kept:{key}", "one")
        page.wait_for_messages("one")
        kill(server)
        publish(publisher, f"kept:{key}", "two")
        server.start()
        page.wait_for_messages("one", "two")
        browser.errors()


# --- the chat of the test project ------------------------------------------------------------------------------------


WAYS = ("stop the server", "kill the worker", "Redis away")


@pytest.mark.parametrize("how", WAYS)
def test_chat_misses_no_line_and_sees_nobody_leave(
    browser: Browser, own_redis: Server, tmp_path: Path, how: str
) -> None:
    environment = ENVIRONMENT | {
        "DEBUG": "1",
        "DATABASE_NAME": str(tmp_path / "db.sqlite3"),
        "REDIS_URL": f"redis://{own_redis.address}/{WAYS.index(how) + 1}",
    }
    with (
        gunicorn("project.wsgi:application", env=environment) as server,
        gunicorn("project.wsgi:application", env=environment) as other,
    ):
        ann, bob = (browser.open(f"http://{each.address}/chat/") for each in (server, other))
        for window, name in ((ann, "Ann"), (bob, "Bob")):
            window.wait_for_state("open")
            window.fill("#user", name)
        for window, people in ((ann, ["Ann (you)", "Bob"]), (bob, ["Bob (you)", "Ann"])):
            window.wait_for_texts("#people li", people)
            window.driver.execute_script("""
                window.seen = [];
                const list = document.getElementById("people");
                new MutationObserver(() => seen.push(list.textContent)).observe(list, { childList: true });
            """)
        lines = ["one", "two"]
        for line in lines:
            bob.say(line)
            bob.wait_for_last_text(".message .body", line)
        ann.wait_for_texts(".message .body", lines)
        if how == "Redis away":
            own_redis.stop()
            own_redis.start()
        else:
            (server.stop if how == "stop the server" else lambda: kill(server))()
            for line in ("three", "four"):
                bob.say(line)
                bob.wait_for_last_text(".message .body", line)
                lines.append(line)
            server.start()

        def is_back() -> bool:
            ann.driver.execute_script("dispatchEvent(new Event('online'))")  # it need not wait for its turn
            return ann["#state"].get_attribute("data-state") == "open"

        bob.wait_for_state("open")
        ann.wait(is_back)
        bob.say("last")
        bob.wait_for_last_text(".message .body", "last")
        ann.wait_for_last_text(".message .body", "last")
        ann.wait_for_texts(".message .body", [*lines, "last"])
        for window in (ann, bob):
            window["#user"].send_keys("a")  # news, behind all that was told before
        for window, partner in ((ann, "Bob"), (bob, "Ann")):
            window.wait(lambda: f"{partner}a" in window.texts("#people li"))  # noqa: B023
            seen = window.driver.execute_script("return seen")
            assert seen and all(partner in each for each in seen)
        browser.errors()

"""The browser's client, in Chromium, against real servers."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.template import Context, Template
from django.test import RequestFactory, override_settings
from django.utils.safestring import SafeString

import django_websocket

from .support.browser import Browser
from .support.client_page import Page, kill
from .support.clients import fetch
from .support.fixtures import StartSite
from .support.servers import Server, redis_server

pytestmark = pytest.mark.slow

CLIENT = Path(django_websocket.__file__).parent / "static" / "django_websocket" / "client.js"


@pytest.fixture(scope="module")
def server(site: Server) -> Server:
    return site


@pytest.fixture
def page(browser: Browser, server: Server) -> Page:
    return Page(browser, server)


@pytest.fixture
def restarted(start_site: StartSite) -> Iterator[Server]:
    """A server that a test stops and starts."""
    with start_site() as server:
        yield server


def test_client_is_small() -> None:
    assert len(gzip.compress(CLIENT.read_bytes(), 9, mtime=0)) <= 5 * 1024


def test_messages_go_both_ways(page: Page) -> None:
    page.begin("/echo/").wait_for("connecting", "open")
    assert page.send("hello") is True
    assert page.run("return socket.send(new Uint8Array([0, 255, 7]))") is True
    page.wait_for_messages("hello", [0, 255, 7])
    page.run("socket.close()")
    page.wait_for("connecting", "open", "closed")
    assert page.send("too late", queue=True) is False
    page.run("socket.close()")
    assert page.names == ["connecting", "open", "closed"]
    assert page.run("return socket.state") == {"name": "closed", "code": 1000, "reason": ""}


def test_wrong_close_code_is_an_error_and_closes_nothing(page: Page) -> None:
    page.begin("/echo/").wait_for("open")
    with pytest.raises(Exception, match="1001"):
        page.run("socket.close(1001)")
    page.send("still there")
    page.wait_for_messages("still there")
    page.run("socket.close(4000, 'enough')")
    assert page.states[-1] == {"name": "closed", "code": 4000, "reason": "enough"}


def test_handlers_can_be_taken_away(page: Page) -> None:
    page.begin("/echo/").wait_for("open")
    page.run("window.heard = []; window.off = socket.on('message', (data) => heard.push(data))")
    page.send("one")
    page.wait_for_messages("one")
    page.run("off()")
    page.send("two")
    page.wait_for_messages("one", "two")
    assert page.run("return heard") == ["one"]
    with pytest.raises(Exception, match='There is no event "open", only message, reset, state, present, join, leave'):
        page.run("socket.on('open', () => 0)")


def test_handler_that_fails_does_not_keep_others_from_being_called(browser: Browser, page: Page) -> None:
    page.run("""
        begin("/echo/");
        states = [];
        socket.on("state", ({ name }) => { if (name === "open") throw new Error("a fault of the page"); });
        socket.on("state", (state) => states.push(state));
    """)
    page.wait_for("open")
    page.run("socket.on('message', () => { throw new Error('another'); })")
    page.send("one")
    page.send("two")
    page.wait_for_messages("one", "two")
    [first, *others] = browser.errors()
    assert "a fault of the page" in first
    assert len(others) == 2 and all("another" in error for error in others)


def test_subprotocol_of_the_application(page: Page) -> None:
    page.begin("/subprotocols/", {"protocols": ["v1.example", "v3.example"]})
    page.wait_for("connecting", "open", "closed")
    page.wait_for_messages("v1.example, v3.example")  # what was offered


@pytest.mark.parametrize("code", [4401, 4403, 4404])
def test_refusal_is_final_and_says_why(page: Page, server: Server, key: str, code: int) -> None:
    page.begin(f"/client/ends/{code}/?key={key}").wait_for("connecting", "open", "refused")
    assert page.states[-1] == {"name": "refused", "code": code, "reason": "said so"}
    page.run("dispatchEvent(new Event('online'))")
    assert page.names[-1] == "refused"
    assert calls(server, key) == 1


def test_view_that_has_ended_is_not_called_again(page: Page, server: Server, key: str) -> None:
    page.begin(f"/client/ends/1000/?key={key}").wait_for("connecting", "open", "closed")
    assert page.states[-1] == {"name": "closed", "code": 1000, "reason": "said so"}
    assert calls(server, key) == 1


@pytest.mark.parametrize("code", [1011, 1012, 1013, 4000, 4429, 4500, 4503])
def test_other_ends_are_not_final(page: Page, server: Server, key: str, code: int) -> None:
    page.begin(f"/client/ends/{code}/?key={key}")
    page.wait_for("open", "waiting", "connecting", "open", "waiting")
    waits = [state for state in page.states if state["name"] == "waiting"]
    assert {(state["code"], state["reason"]) for state in waits} == {(code, "said so")}
    assert calls(server, key) >= 2


def calls(server: Server, key: str) -> int:
    return int(fetch(server.port, f"/called/{key}/").body)


@pytest.mark.parametrize("end", [Server.stop, kill], ids=["stopped", "killed"])
def test_client_comes_back_with_its_server(browser: Browser, restarted: Server, end: Callable[[Server], None]) -> None:
    page = Page(browser, restarted)
    page.begin("/echo/").wait_for("open")
    end(restarted)
    page.window.wait(lambda: page.names[-2:] in (["connecting", "waiting"], ["waiting", "connecting"]))
    restarted.start()
    page.wait_for("open")
    page.send("after")
    page.wait_for_messages("after")
    browser.errors()  # of the attempts


def test_client_comes_back_with_redis(browser: Browser, start_site: StartSite, key: str) -> None:
    with redis_server() as redis, start_site({"WEBSOCKET_BROKER": f"redis://{redis.address}/0"}) as server:
        redis.stop()
        page = Page(browser, server)
        page.begin(f"/listen/{key}/").wait_for("connecting", "waiting")
        redis.start()
        page.wait_for("open")
        page.window.wait(lambda: fetch(server.port, f"/publish/{key}/?text=back") and page.messages[-1:] == ["back"])
        browser.errors()


def fails_at_once(page: Page) -> list[float]:
    """Let a client have failures only, at the earliest; return the waits in seconds."""
    page.run("Math.random = () => 0")
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    page.run("begin(() => arguments[0])", f"ws://127.0.0.1:{port}/")
    page.window.wait(lambda: page.names.count("waiting") >= 7)
    return [state["wait"] / 1000 for state in page.states if state["name"] == "waiting"]


def test_view_that_fails_at_once_is_called_at_most_six_times_in_15_seconds(browser: Browser, page: Page) -> None:
    waits = fails_at_once(page)
    assert waits[:5] == [0.667, 1.333, 2.667, 5, 5]  # so that the seventh attempt comes behind 5 more
    assert sum(1 for count in range(len(waits)) if sum(waits[:count]) <= 15) <= 6
    browser.errors()


def test_connection_that_has_lasted_makes_failures_forgotten(browser: Browser, server: Server, key: str) -> None:
    page = Page(browser, server, query="?hurry=5")  # a second counts as lasting, and most of these end at once
    page.run("Math.random = () => 0")
    page.begin(f"/client/ends/1012/?key={key}&lasting=4")  # the fourth connection
    page.window.wait(lambda: page.names.count("waiting") >= 5)
    waits = [state["wait"] for state in page.states if state["name"] == "waiting"]
    assert waits[:5] == [667, 1333, 2667, 667, 1333]


def test_pages_of_a_restarted_server_do_not_come_back_in_the_same_second(browser: Browser, page: Page) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    page.run(
        """
        window.waits = [];
        for (let count = 0; count < 200; count++) {
          const socket = connect(`ws://127.0.0.1:${arguments[0]}/`);
          socket.on("state", ({ wait }) => {
            if (wait === undefined) return;
            waits.push(wait);
            socket.close();
          });
        }""",
        port,
    )
    page.window.wait(lambda: page.run("return waits.length") == 200)
    waits: list[float] = sorted(page.run("return waits"))
    assert waits[0] > 600 and waits[-1] <= 4000
    assert max(sum(1 for other in waits if 0 <= other - wait < 1000) for wait in waits) < 120  # 60 are expected
    browser.errors()


def test_what_is_queued_arrives_in_order_when_there_is_a_connection(browser: Browser, restarted: Server) -> None:
    page = Page(browser, restarted)
    restarted.stop()
    page.begin("/echo/").wait_for("waiting")
    assert page.send("not queued") is False
    assert [page.send(text, queue=True) for text in ("one", "two", "three")] == [True] * 3
    assert page.run("return socket.send('x'.repeat(1024 * 1024), { queue: true })") is False
    restarted.start()
    page.wait_for("open")
    page.send("four")
    page.wait_for_messages("one", "two", "three", "four")
    browser.errors()


def test_address_is_asked_for_anew_at_each_attempt(browser: Browser, page: Page) -> None:
    page.run("""
        let attempts = 0;
        begin(async () => {
          attempts += 1;
          if (attempts === 1) throw new Error("the token is not there");
          return `ws://${location.host}/client/ends/${attempts < 4 ? 4503 : 4403}/?key=address`;
        });
    """)
    page.wait_for("refused")
    waiting = [state["reason"] for state in page.states if state["name"] == "waiting"]
    assert waiting == ["The address could not be determined.", "said so", "said so"]
    assert ["the token is not there" in error for error in browser.errors()] == [True]


def test_address_that_is_none_is_an_error_of_the_caller(page: Page) -> None:
    with pytest.raises(Exception, match="is invalid"):
        page.run("connect('ws://%')")


def test_attempt_without_an_answer_is_given_up(browser: Browser, server: Server) -> None:
    page = Page(browser, server, query="?hurry=20&impatient")
    with closing(socket.create_server(("127.0.0.1", 0))) as deaf:
        page.run("begin(() => arguments[0])", f"ws://127.0.0.1:{deaf.getsockname()[1]}/")
        page.wait_for("connecting", "waiting", "connecting")
        assert page.states[1]["reason"] == "The server did not answer."
    browser.errors()


@pytest.mark.parametrize("event", ["online", "visibilitychange"])
def test_waiting_ends_when_network_or_window_are_back(browser: Browser, restarted: Server, event: str) -> None:
    page = Page(browser, restarted, query="?hurry=0.01")  # waits of minutes
    restarted.stop()
    page.begin("/echo/").wait_for("waiting")
    restarted.start()
    page.run("(arguments[0] === 'online' ? window : document).dispatchEvent(new Event(arguments[0]))", event)
    page.wait_for("waiting", "connecting", "open")
    browser.errors()


def test_network_that_is_off_is_told(browser: Browser, restarted: Server) -> None:
    page = Page(browser, restarted)
    page.begin("/echo/").wait_for("open")
    network = partial(page.window.driver.execute_cdp_cmd, "Network.emulateNetworkConditions")
    speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.window.driver.execute_cdp_cmd("Network.enable", {})
    network({"offline": True, **speed})
    restarted.stop()
    page.window.wait(lambda: "offline" in page.names)
    restarted.start()
    network({"offline": False, **speed})
    page.wait_for("open")
    browser.errors()


def test_device_that_has_slept_connects_anew(page: Page) -> None:
    page.begin("/echo/").wait_for("open")
    page.run("const now = Date.now; Date.now = () => now() + 200_000")
    page.wait_for("open", "connecting", "open")
    page.send("awake")
    page.wait_for_messages("awake")


def test_page_from_the_back_forward_cache_connects_anew(browser: Browser, server: Server) -> None:
    page = Page(browser, server)
    page.run("addEventListener('pageshow', ({ persisted }) => (window.persisted = persisted))")
    page.begin("/echo/").wait_for("open")
    page.window.driver.get(f"http://{server.address}/page/")
    page.window.driver.back()
    page.window.wait(lambda: page.run("return window.persisted"), "the browser has not kept the page")
    page.wait_for("open", "waiting", "connecting", "open")
    page.send("back")
    page.wait_for_messages("back")


def test_two_windows(browser: Browser, server: Server, key: str) -> None:
    windows = [Page(browser, server).begin(f"/listen/{key}/") for _ in range(2)]
    for each in windows:
        each.wait_for("open")
    fetch(server.port, f"/publish/{key}/?text=both")
    for each in windows:
        each.wait_for_messages("both")


def rendered(request: Any = None, **context: Any) -> str:
    template = Template("{% load websockets %}{% websocket_client %}")
    return template.render(Context({"request": request, **context}))


def test_tag_is_an_import_map() -> None:
    assert rendered() == (
        '<script type="importmap">{"imports": {"django_websocket": "/static/django_websocket/client.js"}}</script>'
    )


@pytest.mark.parametrize("nonce", ["abc", 'a"b'])
def test_tag_bears_the_nonce_of_the_page(nonce: str) -> None:
    expected = f' nonce="{nonce.replace(chr(34), "&quot;")}">'
    assert expected in rendered(csp_nonce=nonce)
    request: Any = RequestFactory().get("/")
    request.csp_nonce = nonce  # as django-csp does
    assert expected in rendered(request)
    assert isinstance(rendered(request), SafeString)


def test_tag_has_the_name_that_the_storage_gives(tmp_path: Path) -> None:
    storage = {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"}
    (tmp_path / "staticfiles.json").write_text(
        '{"version": "1.1", "hash": "", "paths": {"django_websocket/client.js": "django_websocket/client.1234.js"}}'
    )
    apps = [*settings.INSTALLED_APPS, "django.contrib.staticfiles"]
    with override_settings(STORAGES={"staticfiles": storage}, STATIC_ROOT=str(tmp_path), INSTALLED_APPS=apps):
        assert "/static/django_websocket/client.1234.js" in rendered()


def test_tag_cannot_end_its_script() -> None:
    with override_settings(STATIC_URL="/</script>/"):
        assert rendered().count("<") == 2

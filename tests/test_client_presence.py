"""The browser's client knows who is in a channel: in Chromium, against a server that says what a test wants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .support.browser import Browser, Window
from .support.client_page import Page
from .support.scripted import ScriptedServer, scripted_server
from .support.servers import Server

pytestmark = pytest.mark.slow

ANN = {"id": 1, "name": "ann"}
BOB = {"id": 2, "name": "bob"}
EVE = {"id": "1", "name": "eve"}  # an id that is not Ann's
ROOM = "room:1"


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with scripted_server() as script:
        yield script


@pytest.fixture
def page(browser: Browser, site: Server, script: ScriptedServer) -> Page:
    """A page that is connected to the script."""
    return begin(Page(browser, site), script)


def begin(page: Page, script: ScriptedServer) -> Page:
    """Connect the page."""
    count = len(script.hellos) + 1
    page.run("const [url] = arguments; begin(() => url)", script.url)
    script.wait_for_client(count)
    page.wait_for("open")
    return page


def told(page: Page, script: ScriptedServer, **control: Any) -> list[list[Any]]:
    """Say something, and return the events that the page gets."""
    script.say(**control)
    script.send("sdone")
    page.window.wait(lambda: page.run("return messages.pop()") == "done")
    found: list[list[Any]] = page.run("return presence.splice(0)")
    return found


def here(members: list[Any], count: int | None = None, channel: str = ROOM) -> list[Any]:
    """Return the event of who is there."""
    return ["present", {"channel": channel, "members": members, "count": len(members) if count is None else count}]


def moved(name: str, members: list[Any], count: int, channel: str = ROOM) -> list[Any]:
    """Return the event of those who have come or gone."""
    return [name, members, {"channel": channel, "count": count}]


def known(page: Page, channel: str = ROOM) -> tuple[list[Any], int]:
    """Return who is there as the page can ask it."""
    members, count = page.run("return [socket.present(arguments[0]), socket.count(arguments[0])]", channel)
    return members, count


def sub(*channels: str) -> dict[str, list[Any]]:
    return {channel: [number, None, None] for number, channel in enumerate(channels, 1)}


def test_list_join_and_leave(page: Page, script: ScriptedServer) -> None:
    assert known(page) == ([], 0)
    assert told(page, script, sub=sub(ROOM)) == []
    assert told(page, script, present={ROOM: [ANN]}, count={ROOM: 1}) == [here([ANN])]  # nobody has joined just now
    assert known(page) == ([ANN], 1)
    joined = told(page, script, join={ROOM: [BOB, EVE]}, count={ROOM: 3})
    assert joined == [moved("join", [BOB, EVE], 3), here([ANN, BOB, EVE])]
    left = told(page, script, leave={ROOM: [1]}, count={ROOM: 2})
    assert left == [moved("leave", [ANN], 2), here([BOB, EVE])]  # the number, and not the text
    both = told(page, script, leave={ROOM: ["1"]}, join={ROOM: [ANN]}, count={ROOM: 2})
    assert both == [moved("leave", [EVE], 2), moved("join", [ANN], 2), here([BOB, ANN])]
    assert known(page) == ([BOB, ANN], 2)
    assert known(page, "room:2") == ([], 0)


def test_other_information_is_no_join(page: Page, script: ScriptedServer) -> None:
    told(page, script, present={ROOM: [ANN, BOB]}, count={ROOM: 2})
    typing = {**ANN, "typing": True}
    assert told(page, script, join={ROOM: [typing]}, count={ROOM: 2}) == [here([typing, BOB])]  # in the same place
    assert told(page, script, leave={ROOM: [1]}, join={ROOM: [ANN]}, count={ROOM: 2}) == [here([BOB, ANN])]


def test_list_is_a_copy(page: Page, script: ScriptedServer) -> None:
    told(page, script, present={ROOM: [ANN]}, count={ROOM: 1})
    page.run("socket.present(arguments[0]).length = 0", ROOM)
    assert known(page) == ([ANN], 1)


def test_events_come_when_everything_is_known(page: Page, script: ScriptedServer) -> None:
    page.run("""
        window.seen = [];
        for (const name of ["present", "join", "leave"]) {
          socket.on(name, (first, { channel } = first) => {
            seen.push([socket.present(channel).length, socket.count(channel)]);
          });
        }""")
    told(page, script, present={ROOM: [ANN, BOB]}, count={ROOM: 2})
    told(page, script, leave={ROOM: [1, 2]}, join={ROOM: [EVE]}, count={ROOM: 1})
    assert page.run("return seen") == [[2, 2], [1, 1], [1, 1], [1, 1]]


def test_handlers_can_be_taken_away(page: Page, script: ScriptedServer) -> None:
    page.run("window.off = socket.on('present', () => (window.called = (window.called ?? 0) + 1))")
    told(page, script, present={ROOM: [ANN]}, count={ROOM: 1})
    page.run("off()")
    told(page, script, join={ROOM: [BOB]}, count={ROOM: 2})
    assert page.run("return called") == 1


def test_only_the_difference_is_told_after_a_reconnection(page: Page, script: ScriptedServer) -> None:
    told(page, script, sub=sub(ROOM), present={ROOM: [ANN, BOB]}, count={ROOM: 2})
    script.close()
    page.wait_for("waiting", "connecting", "open")
    assert known(page) == ([ANN, BOB], 2)  # what the page knew, until it is told better
    script.wait_for_client(2)
    assert script.sessions[0] == script.sessions[1]
    assert told(page, script, sub=sub(ROOM)) == []
    again = told(page, script, present={ROOM: [EVE, {**BOB, "name": "rob"}]}, count={ROOM: 2})
    assert again == [moved("leave", [ANN], 2), moved("join", [EVE], 2), here([EVE, {**BOB, "name": "rob"}])]
    script.close()
    page.wait_for("waiting", "connecting", "open")
    script.wait_for_client(3)
    same = told(page, script, sub=sub(ROOM), present={ROOM: [BOB, EVE]}, count={ROOM: 2})
    assert same == [here([BOB, EVE])]


def test_list_in_the_midst_of_a_connection_is_compared(page: Page, script: ScriptedServer) -> None:
    told(page, script, present={ROOM: [ANN, BOB]}, count={ROOM: 2})
    again = told(page, script, present={ROOM: [BOB, EVE]}, count={ROOM: 2})
    assert again == [moved("leave", [ANN], 2), moved("join", [EVE], 2), here([BOB, EVE])]


def test_channel_that_is_left_is_forgotten(page: Page, script: ScriptedServer) -> None:
    told(page, script, sub=sub(ROOM, "room:2"), present={ROOM: [ANN], "room:2": [BOB]}, count={ROOM: 1, "room:2": 1})
    assert told(page, script, unsub=[ROOM]) == [here([])]  # so that a page that shows them shows nobody
    assert known(page) == ([], 0)
    assert known(page, "room:2") == ([BOB], 1)
    assert told(page, script, join={ROOM: [EVE]}, count={ROOM: 2}) == []  # it was on its way
    assert told(page, script, unsub=["never subscribed"]) == []
    assert told(page, script, sub=sub(ROOM), present={ROOM: [EVE]}, count={ROOM: 1}) == [here([EVE])]


def test_channels_are_told_apart(page: Page, script: ScriptedServer) -> None:
    first = told(page, script, present={ROOM: [ANN], "room:2": [ANN, BOB]}, count={ROOM: 1, "room:2": 2})
    assert first == [here([ANN]), here([ANN, BOB], channel="room:2")]
    changes = told(page, script, leave={"room:2": [1]}, join={ROOM: [BOB]}, count={ROOM: 2, "room:2": 1})
    assert changes == [
        *[moved("join", [BOB], 2), here([ANN, BOB])],
        *[moved("leave", [ANN], 1, "room:2"), here([BOB], channel="room:2")],
    ]


@pytest.mark.parametrize("name", ["__proto__", "constructor", "toString", "10", ""])
def test_any_name_of_a_channel_and_any_id(page: Page, script: ScriptedServer, name: str) -> None:
    stranger = {"id": name, "name": name}
    for channel in (name, ROOM):
        first = told(page, script, present={channel: [stranger]}, count={channel: 1}, leave={}, join={})
        assert first == [here([stranger], channel=channel)]
    assert known(page, name) == ([stranger], 1)
    joined = told(page, script, join={name: [ANN]}, count={name: 2})
    assert joined == [moved("join", [ANN], 2, name), here([stranger, ANN], channel=name)]
    left = told(page, script, leave={name: [name]}, count={name: 1})
    assert left == [moved("leave", [stranger], 1, name), here([ANN], channel=name)]
    assert known(page) == ([stranger], 1)
    assert page.run("return [{}.id, {}.name, {}.count]") == [None] * 3


def test_more_than_a_thousand_members(page: Page, script: ScriptedServer) -> None:
    many = [{"id": number} for number in range(1, 1002)]
    told(page, script, present={ROOM: many[:999]}, count={ROOM: 999})
    two = told(page, script, join={ROOM: many[999:]}, count={ROOM: 1001})
    assert two == [moved("join", many[999:], 1001), here(many[:1000], 1001)]  # the last one is not remembered
    gone = told(page, script, leave={ROOM: [1001, 1]}, count={ROOM: 999})
    assert gone == [moved("leave", [{"id": 1}, {"id": 1001}], 999), here(many[1:1000])]
    stranger = told(page, script, leave={ROOM: ["never seen"]}, count={ROOM: 999})
    assert stranger == [moved("leave", [{"id": "never seen"}], 999), here(many[1:1000])]


def test_lists_of_a_large_channel_move_nobody(page: Page, script: ScriptedServer) -> None:
    """The server names any thousand, perhaps others than before."""
    many = [{"id": number} for number in range(1500)]
    told(page, script, present={ROOM: many[:1000]}, count={ROOM: 1500})
    assert told(page, script, present={ROOM: many[500:]}, count={ROOM: 1500}) == [here(many[500:], 1500)]
    assert told(page, script, present={ROOM: many[:700]}, count={ROOM: 700}) == [here(many[:700])]
    few = told(page, script, present={ROOM: many[1:701]}, count={ROOM: 700})
    assert few == [moved("leave", many[:1], 700), moved("join", many[700:701], 700), here(many[1:701])]


def test_handler_may_close_the_socket(page: Page, script: ScriptedServer) -> None:
    page.run("socket.on('join', () => socket.close())")
    told(page, script, present={ROOM: [ANN]}, count={ROOM: 1})
    script.say(join={ROOM: [BOB]}, count={ROOM: 2})
    page.wait_for("open", "closed")
    assert known(page) == ([ANN, BOB], 2)


# --- the session of a tab --------------------------------------------------------------------------------------------


def test_session_is_the_same_after_a_reload(page: Page, script: ScriptedServer) -> None:
    for _ in range(2):
        page.window.driver.refresh()
        page.wait_until_loaded()
        begin(page, script)
    assert len(script.sessions) == 3
    [session] = set(script.sessions)
    assert 20 <= len(session) <= 64
    assert stored(page) is None  # while the page is there, for a duplicate gets a copy


def stored(page: Page) -> str | None:
    found: str | None = page.run("return sessionStorage.getItem('django-websocket.1.session')")
    return found


def test_each_tab_has_a_session_of_its_own(browser: Browser, site: Server, page: Page, script: ScriptedServer) -> None:
    begin(Page(browser, site), script)
    handles = set(browser.driver.window_handles)
    page.run("window.open(location.href)")  # which copies the storage, as duplicating a tab does
    page.window.wait(lambda: len(browser.driver.window_handles) > len(handles))
    [handle] = set(browser.driver.window_handles) - handles
    duplicate = begin(Page.in_window(Window(browser.driver, handle)), script)
    assert len(set(script.sessions)) == 3
    for each, session in ((page, script.sessions[0]), (duplicate, script.sessions[2])):
        each.window.driver.refresh()
        each.wait_until_loaded()
        begin(each, script)
        assert script.sessions[-1] == session


def test_each_socket_of_a_page_has_a_session_of_its_own(page: Page, script: ScriptedServer) -> None:
    def sessions() -> list[str]:
        count = len(script.hellos) + 1
        page.run("const [url] = arguments; connect(url)", script.url)
        script.wait_for_client(count)
        return script.sessions[-2:]

    before = sessions()
    assert before[0] != before[1]
    page.window.driver.refresh()
    page.wait_until_loaded()
    begin(page, script)
    assert sessions() == before


@pytest.mark.parametrize("between", ["/client/", "/page/"], ids=["page with the client", "page without"])
def test_session_goes_with_the_tab_to_other_pages_and_back(
    site: Server, page: Page, script: ScriptedServer, between: str
) -> None:
    page.run("addEventListener('pageshow', ({ persisted }) => (window.persisted = persisted))")
    page.window.driver.get(f"http://{site.address}{between}?other")
    if between == "/client/":
        page.wait_until_loaded()
        begin(page, script)
    page.window.driver.back()
    page.window.wait(lambda: page.run("return window.persisted"), "the browser has not kept the page")
    page.wait_for("waiting", "connecting", "open")
    script.wait_for_client(3 if between == "/client/" else 2)
    page.window.wait(lambda: stored(page) is None, "a duplicate of the tab would have the session, too")
    page.window.driver.get(f"http://{site.address}/client/?third")
    page.wait_until_loaded()
    begin(page, script)
    assert len(set(script.sessions)) == 1


def test_session_that_lies_there_for_long_is_not_taken(page: Page, script: ScriptedServer) -> None:
    """The tab may have been duplicated meanwhile."""
    page.run("addEventListener('pagehide', () => { const now = Date.now(); Date.now = () => now; })")
    page.run("Date.now = ((now) => () => now() - 70_000)(Date.now)")
    page.window.driver.refresh()
    page.wait_until_loaded()
    begin(page, script)
    assert len(set(script.sessions)) == 2


def test_client_works_where_storage_is_forbidden(browser: Browser, site: Server, script: ScriptedServer) -> None:
    page = Page(browser, site)
    forbid = "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('forbidden'); } })"
    page.window.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": forbid})
    for _ in range(2):
        page.window.driver.refresh()
        page.wait_until_loaded()
        begin(page, script)
    assert len(set(script.sessions)) == 2
    assert browser.errors() == []

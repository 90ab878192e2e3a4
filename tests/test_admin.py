"""The page of Django's admin that shows who is connected, in a browser and without one."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from django_websocket import __file__ as package_file
from django_websocket.pubsub import publish

from .support.brokers import in_use
from .support.browser import Browser, Window
from .support.clients import RawClient, Response, fetch, request
from .support.fixtures import SITE, Raw, StartSite
from .support.frames import PING, PONG, frame
from .support.servers import ROOT, Server
from .support.waiting import DEADLINE
from .test_demonstration import HEAVIEST, emulate
from .test_logins import get_id, log_in
from .test_monitoring import LAYER, clients_of_both_processes, line, seen

pytestmark = [pytest.mark.slow, pytest.mark.covers]

PAGE = "/staff/django_websocket/connection/"
LIVE = f"{PAGE}live/"
PICTURES = {scheme: ROOT / "docs" / f"monitoring-{scheme}.png" for scheme in ("light", "dark")}


def settings(broker: Any) -> dict[str, Any]:
    from testsite import settings

    return {
        "WEBSOCKET_URLCONF": "testsite.monitored",
        "WEBSOCKET_BROKER": broker,
        "WEBSOCKET_LOGIN_CHECK_INTERVAL": 0.3,
        # Only for the pictures do clients answer pings.
        **({} if os.environ.get("MONITORING_PICTURES") else {"WEBSOCKET_PING_INTERVAL": 300.0}),
        "ROOT_URLCONF": "testsite.monitored_pages",
        "CHANNEL_LAYERS": LAYER,
        "INSTALLED_APPS": ["django.contrib.admin", "django.contrib.staticfiles", *settings.INSTALLED_APPS],
        "MIDDLEWARE": [
            "testsite.monitored_pages.policy",
            *(each for each in settings.MIDDLEWARE if not each.startswith("testsite.")),
        ],
        "TEMPLATES": [
            {
                **settings.TEMPLATES[0],
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
    }


def manage(server: Server, *words: str) -> str:
    """Run a command of the site's."""
    env = {**server.env, "DJANGO_SETTINGS_MODULE": "testsite.settings", "PYTHONPATH": str(SITE)}
    command = [sys.executable, "-m", "django", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture(scope="module")
def server(start_site: StartSite, redis_url: str) -> Iterator[Server]:
    broker = {"url": redis_url, "prefix": "admin:"}
    server = start_site(settings(broker), args=["--workers", "2", "--graceful-timeout", "1"])
    manage(server, "migrate", "--verbosity", "0")
    with server, in_use(broker):
        yield server


def query(server: Server, text: str, *values: object) -> list[tuple[Any, ...]]:
    """Ask the server's database."""
    with closing(sqlite3.connect(server.env["DATABASE_NAME"])) as database, database:
        return database.execute(text, values).fetchall()


def employ(server: Server, name: str, *permissions: str) -> dict[str, str]:
    """Log a member of staff in with permissions; return the headers that prove it."""
    headers = log_in(server, name)
    query(server, "UPDATE auth_user SET is_staff = 1 WHERE username = ?", name)
    query(server, "DELETE FROM auth_user_user_permissions WHERE user_id = ?", get_id(server, name))
    for permission in permissions:
        query(
            server,
            "INSERT INTO auth_user_user_permissions (user_id, permission_id) "
            "SELECT ?, id FROM auth_permission WHERE codename = ?",
            get_id(server, name),
            permission,
        )
    return headers


def post(server: Server, headers: dict[str, str], form: dict[str, str]) -> Response:
    """Send a form to the page."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    with closing(connection):
        sent = {"Host": "localhost", "Content-Type": "application/x-www-form-urlencoded", **headers}
        connection.request("POST", PAGE, urlencode(form), sent)
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Response(answer.status, names, answer.read(), {})


def fill(server: Server, headers: dict[str, str], **form: str) -> Response:
    """Send a form to the page, as the page itself does."""
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', fetch(server.port, PAGE, headers).body.decode())
    assert token
    cookies = {"Cookie": f"{headers['Cookie']}; csrftoken={token[1]}"}  # as good as the form of it that is kept
    return post(server, cookies, {"csrfmiddlewaretoken": token[1], **form})


def told(client: RawClient) -> dict[str, Any]:
    """Return what a page is told next."""
    found: dict[str, Any] = json.loads(str(client.frame().text))
    return found


ALL = ("view_connection", "disconnect_connection")


def test_only_staff_with_the_permission_see_the_page_and_its_websocket(server: Server, raw: Raw, key: str) -> None:
    nobody = log_in(server, f"{key}-nobody")
    staff = employ(server, f"{key}-staff")
    viewer = employ(server, f"{key}-viewer", "view_connection")
    for headers, status in (({}, 302), (nobody, 302), (staff, 403), (viewer, 200)):
        assert fetch(server.port, PAGE, headers).status == status
        client = raw(server)
        client.open(LIVE, headers)  # a page could not read the status of a refusal
        if status == 200:
            assert told(client)["total"] >= 1
        else:
            assert client.closing() == (4403, "Forbidden")
    assert b"WebSockets" not in fetch(server.port, "/staff/", staff).body
    assert PAGE.encode() in fetch(server.port, "/staff/", viewer).body
    assert b"websockets-disconnect" not in fetch(server.port, PAGE, viewer).body
    assert fill(server, viewer, path="*").status == 403
    chief = employ(server, f"{key}-chief", *ALL)
    assert b"websockets-disconnect" in fetch(server.port, PAGE, chief).body
    assert post(server, chief, {"path": "*", "confirmed": "yes"}).status == 403  # without the token against forgery
    assert fetch(server.port, LIVE, viewer).status == 426


def test_websocket_of_the_page_ends_with_the_login_and_the_permission(server: Server, raw: Raw, key: str) -> None:
    headers = employ(server, key, "view_connection")
    leaving, losing = raw(server), raw(server)
    leaving.open(LIVE, headers)
    losing.open(LIVE, employ(server, f"{key}-other", "view_connection"))
    for client in (leaving, losing):
        assert told(client)["problem"] == ""
    assert fetch(server.port, "/leave/", headers).status == 200
    assert leaving.closing() == (4401, "logged out")
    query(server, "DELETE FROM auth_user_user_permissions WHERE user_id = ?", get_id(server, f"{key}-other"))
    assert losing.closing() == (4403, "Forbidden")


def test_websocket_of_the_page_tells_what_a_filter_finds(server: Server, raw: Raw, key: str) -> None:
    talking = raw(server)
    talking.open(f"/room/{key}/", log_in(server, f"%3Cb%3E{key}"))
    seen(1, path=f"/room/{key}/")
    client = raw(server)
    client.open(LIVE, employ(server, key, "view_connection"))
    filters: list[tuple[Any, int | None]] = [({"path": f"/room/{key}*"}, 1), ({"path": "/none/"}, 0)]
    for wanted, count in (*filters, ({"user": f"<b>{key}"}, 1), ([1], None)):
        client.send(frame(json.dumps(wanted)))
        while (answer := told(client))["total"] != count and count is not None:
            pass
        if count:
            [connection] = answer["connections"]
            assert (connection["name"], connection["path"]) == (f"<b>{key}", f"/room/{key}/")
    client.send(frame(json.dumps({"user": "nobody of this name"})))
    while not (problem := told(client)["problem"]):
        pass
    assert problem == "There is no user 'nobody of this name'."
    figures: dict[str, Any] = {}
    client.send(frame("{}"))
    while not figures or figures["messages"] is None:
        figures = told(client).get("figures", {})
    assert figures["connections"] >= 2 and figures["outbox"] >= 0
    client.send(frame("no JSON"))
    assert client.closing() == (4400, "no JSON")


def test_staff_disconnect_after_a_confirmation_which_the_log_records(server: Server, raw: Raw, key: str) -> None:
    chief = employ(server, key, *ALL)
    clients = [raw(server) for _ in range(2)]
    for number, client in enumerate(clients):
        client.open(f"/room/{key}-{number}/", log_in(server, f"%3Cb%3E{key}"))
    seen(2, path=f"/room/{key}-*")
    asked = fill(server, chief, path=f"/room/{key}-*", user=f"<b>{key}")
    assert asked.status == 200 and b"2 WebSockets match what" in asked.body
    assert f"&lt;b&gt;{key}".encode() in asked.body and f"<b>{key}".encode() not in asked.body
    assert len(seen(2, path=f"/room/{key}-*")) == 2  # nothing has happened yet
    done = fill(
        server, chief, path=f"/room/{key}-*", user=f"<b>{key}", code="1012", reason="by hand", confirmed="Disconnect"
    )
    assert (done.status, done.headers["location"]) == (302, PAGE)
    for client in clients:
        assert client.closing() == (1012, "by hand")
    [(what, message, flag)] = query(
        server,
        "SELECT object_repr, change_message, action_flag FROM django_admin_log WHERE user_id = ?",
        get_id(server, key),
    )
    assert what == f"user <b>{key}, path /room/{key}-*" and flag == 3
    assert message == f"Disconnected 2 with 1012 (by hand): {what}"
    assert what.encode() not in (history := fetch(server.port, "/staff/", chief).body)
    assert f"user &lt;b&gt;{key}, path".encode() in history


VAGUE = [{"path": ""}, {"user": "nobody of this name"}, {"path": "*", "code": "999"}, {"id": "x" * 999}]


def test_form_that_does_not_say_whom_disconnects_nobody(server: Server, raw: Raw, key: str) -> None:
    client = raw(server)
    client.open(f"/room/{key}/")
    chief = employ(server, key, *ALL)
    for form in VAGUE:
        assert fill(server, chief, confirmed="Disconnect", **form).status == 302
    assert client.frame().text == "welcome"
    assert len(seen(1, path=f"/room/{key}/")) == 1


def test_model_of_the_permissions_has_no_table_and_needs_no_migration(server: Server) -> None:
    names = {name for (name,) in query(server, "SELECT codename FROM auth_permission")}
    assert {name for name in names if name.endswith("_connection")} == {*ALL}
    tables = {name for (name,) in query(server, "SELECT name FROM sqlite_master")}
    assert not any("connection" in name for name in tables)
    code = "from django.core.management import call_command as call\n"
    code += "call('makemigrations', check=True, dry_run=True)\n"
    # With the default manager, and with the one that knows of everything.
    code += "for all in (False, True): print(); call('dumpdata', 'django_websocket', use_base_manager=all)"
    printed = manage(server, "shell", "--verbosity", "0", "-c", code)
    assert printed.split() == ["No", "changes", "detected", "[]", "[]"], printed


def test_address_is_nobodys_without_the_admin(site: Server, raw: Raw) -> None:
    client = raw(site)
    client.send(request(LIVE))
    assert client.response().status == 404


def test_page_works_where_static_files_have_hashed_names_alone(server: Server, key: str) -> None:
    page = fetch(server.port, PAGE, employ(server, key, "view_connection")).body.decode()
    scripts = re.findall(r'(?:src|data-\w+)="/static/(django_websocket/[^"]+\.js)"', page)  # as the storage names them
    assert len(scripts) == 3
    for script in scripts:
        source = (Path(package_file).parent / "static" / script).read_text()
        assert not re.search(r"""^import |import\(["']""", source, re.MULTILINE), script  # of what the storage renames


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def window(server: Server, browser: Browser, key: str) -> Window:
    """The page, as somebody sees it who may do everything."""
    window = browser.open("about:blank")
    emulate(window, "light")
    window.driver.get(f"http://127.0.0.1:{server.port}/static/django_websocket/client.js")
    session = employ(server, key, *ALL)["Cookie"].partition("=")[2]
    window.driver.add_cookie({"name": "sessionid", "value": session})
    window.driver.get(f"http://127.0.0.1:{server.port}{PAGE}")
    window.wait_for_texts("#websockets-state", ["Live"])
    return window


WIDTHS = (390, 767, 768, 1000, 1024, 1025, 1150, 1280)  # where the admin's own layout changes, and between


def overflow(window: Window) -> int:
    """Return by how many pixels something is wider than the window."""
    script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    return int(window.driver.execute_script(script))


CLICK = """
    const [selector, text] = arguments;
    Array.from(document.querySelectorAll(selector)).find(({ textContent }) => textContent === text).click();
"""


def test_page_shows_the_list_and_disconnects(
    server: Server, raw: Raw, key: str, window: Window, browser: Browser
) -> None:
    others = clients_of_both_processes(server, raw, "/idles/")
    hostile = f"<img src=x onerror=alert(1)>{key[:8]}"
    room, script, long = f"/room/{key[:8]}/", f"/any/<script>{key[:8]}", f"/any/{key[:8]}-{'long-' * 99}"
    clients = {path: raw(server) for path in (room, script, long)}
    for path, client in clients.items():
        client.open(quote(path), log_in(server, quote(hostile)))
    window.fill("[name=path]", f"*{key[:8]}*")
    paths = "#websockets-list .path"
    window.wait(lambda: set(window.texts(paths)) == {room, script, long[:300]})
    users = window.texts("#websockets-list .user")
    assert sorted(users) == sorted([hostile, "–", "–"])  # the other views have not looked at the user
    assert line("here waits the room") in window.texts("#websockets-list .where")
    assert window.texts("#websockets-count")[0].startswith("3 WebSockets in ")
    for scheme in ("dark", "light"):
        for width in WIDTHS:
            emulate(window, scheme, width, 800)
            assert overflow(window) == 0, width
    window.wait(lambda: len(window.texts(".curve")) >= 3)  # all but the latency, for which clients have to be silent
    window.driver.execute_script(CLICK, f"{paths} button", room)
    window.wait_for_texts(paths, [room])
    assert quote(room, safe="") in window.driver.current_url
    log_in(server, str(get_id(server, hostile)))  # whose name is the primary key of somebody else
    window.driver.execute_script(CLICK, "#websockets-list .user button", hostile)
    window.wait(lambda: "user=" in window.driver.current_url)
    window.wait_for_texts("#websockets-count", ["1 WebSocket in 2 processes"])
    assert window.texts("#websockets-list .user") == [hostile]
    window["#websockets-list .end"].click()
    window.wait_for_texts("h1", ["Disconnect WebSockets"])
    assert window.texts(".websockets-examples td") == [hostile, room, "testsite.monitored.room"]
    for width in WIDTHS:
        emulate(window, "light", width, 800)
        assert overflow(window) == 0, width
    window["input[name=confirmed]"].click()
    window.wait(lambda: [text.strip() for text in window.texts(".messagelist li")] == ["1 WebSocket was disconnected."])
    assert clients[room].frame().text == "welcome"
    assert clients[room].closing() == (4401, "")
    window.wait_for_texts("#websockets-state", ["Live"])
    errors = [error for error in browser.errors() if "favicon.ico" not in error]
    assert errors == []  # nothing in the pages is inline, or comes from elsewhere
    for client in others:
        client.sock.close()
    take_pictures(server, raw, window)


PEOPLE = [
    ("ann", "/room/lobby/"),
    ("ben", "/room/lobby/"),
    ("cleo", "/room/kitchen/"),
    ("", "/idles/"),
    ("", "/listen/prices/"),
    ("dave", "/stays/"),
    ("", "/listen/prices/"),
    ("eve", "/room/help/"),
]


def answer_pings(client: RawClient) -> None:
    """Be a client that reads, until the connection ends."""
    client.sock.settimeout(None)
    with contextlib.suppress(OSError, AssertionError):
        while True:
            received = client.frame()
            if received.opcode == PING:
                time.sleep(random.uniform(0.005, 0.03))
                client.send(frame(received.payload, PONG))


def take_pictures(server: Server, raw: Raw, window: Window) -> None:
    """Put what the documentation shows into docs/, if the environment asks for that; it takes four minutes."""
    if not os.environ.get("MONITORING_PICTURES"):
        return
    window.driver.get(f"http://127.0.0.1:{server.port}/static/django_websocket/client.js")
    session = employ(server, "admin", *ALL)["Cookie"].partition("=")[2]
    window.driver.add_cookie({"name": "sessionid", "value": session})
    window.driver.get(f"http://127.0.0.1:{server.port}{PAGE}")
    come = 0
    slow: RawClient | None = None
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < 240:
        if come < len(PEOPLE) and passed > 12 * come:
            name, path = PEOPLE[come]
            come += 1
            client = raw(server)
            client.open(path, log_in(server, name) if name else None)
            threading.Thread(target=answer_pings, args=(client,), daemon=True).start()
        for _ in range(random.randrange(2, 5 + int(passed / 15))):
            publish(random.choice(["room:lobby", "prices", "news"]), "x" * 100)
        if passed > 210 and slow is None:
            slow = raw(server, receive_buffer=4096, segment=536)
            slow.open("/room/lobby/", log_in(server, "fred"))
        if slow is not None:
            publish("room:lobby", "x" * 10_000)
        time.sleep(random.uniform(0.2, 0.5))
    window.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    for scheme, file in PICTURES.items():
        emulate(window, scheme, 1280, 800, 1.2)
        shot = window.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        file.write_bytes(base64.b64decode(shot["data"]))


def test_pictures_are_there_and_light_enough() -> None:
    for file in PICTURES.values():
        assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size < HEAVIEST, file

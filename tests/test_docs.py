"""Each example and each command that a reader of README.md and docs/ may copy is executed.

`documentation.py` says how an example names its file.
"""

from __future__ import annotations

import ast
import http.client
import importlib.util
import json
import os
import re
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, fields
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from django_websocket.conf import PREFIX, Settings
from django_websocket.protocol.frames import CloseCode, check_close
from django_websocket.pubsub import redis_address
from django_websocket.pubsub.broker import Listener, Subscriber
from django_websocket.pubsub.encryption import EncryptedBroker
from django_websocket.pubsub.factory import SCHEMES

from .support.browser import OPTIONS as CHROMIUM
from .support.certificates import Authority
from .support.documentation import GUIDES, PAGES, RECIPES, TUTORIAL, Project, arguments, blocks, command, commands
from .support.postgres import settings_of
from .support.servers import ROOT, Cluster, Sentinel, Server, executable, free_port, redis_server, unavailable
from .support.waiting import eventually

pytestmark = pytest.mark.slow

DEADLINE = 20  # seconds
DEFAULT_REDIS = "redis://localhost:6379/0"
# test_tutorial.py runs what stands in the tutorial, and the files test_recipes_*.py what stands in the recipes.
OTHERS = tuple(page for page in PAGES if page not in (TUTORIAL, *RECIPES))


# These reach servers on this machine whatever proxies the environment names.
open_websocket = partial(connect, open_timeout=DEADLINE, proxy=None)
open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@contextmanager
def client(
    server: Server, path: str, cookie: str = "", origin: str | None = None, **options: Any
) -> Iterator[ClientConnection]:
    """Open a WebSocket as a page of the same server does."""
    headers = {"Cookie": cookie} if cookie else {}
    origin = origin or f"http://{server.address}"
    url = f"ws://{server.address}{path}"
    with open_websocket(url, origin=origin, additional_headers=headers, **options) as websocket:
        yield websocket


def receive(websocket: ClientConnection) -> str | bytes:
    return websocket.recv(timeout=DEADLINE)


def refusal(server: Server, path: str, cookie: str = "", origin: str = "") -> tuple[int, str]:
    """Return the status and the Location header with which a handshake is refused."""
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Cookie": cookie,
        "Origin": origin or f"http://{server.address}",
    }
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers.get("Location", "")
    finally:
        connection.close()


def fetch(url: str) -> str:
    with open_url(url, timeout=DEADLINE) as response:
        text: str = response.read().decode()
        return text


def close_code(websocket: ClientConnection) -> int:
    """Wait for the end of a conversation, and return the server's close code."""
    with pytest.raises(ConnectionClosed):
        receive(websocket)
    assert websocket.close_code is not None
    return websocket.close_code


# The README, step by step


@pytest.fixture(scope="module")
def original(readme: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project of the README."""
    return readme.copy(tmp_path_factory.mktemp("readme") / "mysite")


def test_following_the_readme_step_by_step_gives_a_chat(original: Project) -> None:
    with original.runserver(command("README.md", "runwebsocket"), free_port()) as server:
        assert_is_a_chat(server, server)


def assert_is_a_chat(pages: Server, server: Server) -> None:
    """Open pages of the README's project, and chat through the WebSockets that they open."""

    def open_page(room: str) -> str:
        found = re.search(r'connect\("([^"]+)"\)', fetch(f"http://{pages.address}/chat/{room}/"))
        assert found
        return found[1]

    url = open_page("lobby")
    assert url == f"ws://{server.address}/chat/lobby/"
    origin = f"http://{pages.address}"
    with (
        open_websocket(url, origin=origin) as ann,
        open_websocket(url, origin=origin) as bob,
        open_websocket(open_page("other"), origin=origin) as eve,
    ):
        for number, sender in enumerate([ann, bob, bob, ann]):
            sender.send(f"<b>{number}</b> Grüße")
            assert receive(ann) == receive(bob) == f"<b>{number}</b> Grüße"
        eve.send("alone")
        assert receive(eve) == "alone"
    with pytest.raises(InvalidStatus) as foreign, open_websocket(url, origin="https://evil.example"):
        pass
    assert foreign.value.response.status_code == 403


def test_links_of_the_readme_and_the_docs_lead_somewhere() -> None:
    for page in (*PAGES, *GUIDES):
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists(), f"{page}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert unquote(anchor) in anchors, f"{page}: {target}"


def test_readme_and_pages_name_only_files_that_exist() -> None:
    for page in (*PAGES, *GUIDES):
        for path in re.findall(r"`((?:deploy|scripts|docs|test_project)/[\w./-]*)`", (ROOT / page).read_text()):
            assert (ROOT / path).exists(), f"{page}: {path}"


# Every command


def without_effect_on_this_machine(project: Project, line: str) -> bool:
    """Check a command that installs something or that another test runs; return whether the command is one."""
    words = arguments(line)
    if words[:2] == ["pip", "install"]:
        # Of a clone: what is on PyPI is version 0.2.0 of 2017.
        name, extra = re.fullmatch(r"([.\w-]+)(?:\[(\w+)\])?", words[2]).groups()  # type: ignore[union-attr]
        pyproject = (ROOT / "pyproject.toml").read_text()
        assert name == "."
        assert extra is None or f"\n{extra} = [" in pyproject.partition("[project.optional-dependencies]")[2]
    elif words[0] in ("scripts/demo", "scripts/bench"):  # tested in test_scripts.py and test_benchmarks.py
        assert os.access(ROOT / words[0], os.X_OK)
    elif words[0] in ("npm", "npx"):  # tested in test_recipes_frontend.py
        assert "docs/recipes/frontends.md" in PAGES
    elif words[0] == "nginx":  # tested in test_nginx.py
        assert (ROOT / "deploy" / "nginx.conf").exists()
    else:
        return False
    return True


TESTED_BELOW = {
    "gunicorn -k django_websocket.worker.GeventWebSocketWorker mysite.asgi:application -b 127.0.0.1:8001": (
        "test_asgi_py_in_place_of_wsgi_py"
    ),
    "django-admin startproject mysite": "test_following_the_readme_step_by_step_gives_a_chat",
    "cd mysite": "test_following_the_readme_step_by_step_gives_a_chat",
    "python manage.py startapp chat": "test_following_the_readme_step_by_step_gives_a_chat",
    "redis-cli PUBLISH news hello": "test_publishing_from_pages_shell_and_redis_cli",
    **{line: "test_redis_users_need_no_more_than_the_page_says" for line in commands("docs/redis.md") if "ACL" in line},
    command("docs/history.md", "ACL"): "test_users_of_redis_need_no_more_than_the_page_of_histories_says",
    command("docs/presence.md", "ACL"): "test_users_of_redis_need_no_more_than_the_page_of_presence_says",
    command("docs/deployment.md", "curl"): "test_health_checks_are_answered_as_the_page_shows",
    "kill -HUP $(cat gunicorn.pid)": "test_hup_tells_the_clients_and_starts_a_new_worker",
    "python manage.py test": "test_examples_of_tests_pass",
    "pytest --ds mysite.settings": "test_examples_of_tests_pass",
}


@pytest.fixture(scope="module")
def project(original: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The README's project with the additions of the deployment page, but without Redis and gunicorn.conf.py."""
    copy = original.copy(tmp_path_factory.mktemp("deployment") / "mysite")
    copy.put("docs/deployment.md", {DEFAULT_REDIS: "memory://"})
    (copy.directory / "gunicorn.conf.py").rename(copy.directory / "preload.conf.py")
    (copy.directory / "deploy").symlink_to(ROOT / "deploy")
    return copy


@pytest.mark.parametrize(
    ("page", "line"),
    [pytest.param(page, line, id=f"{page}: {line}") for page in OTHERS for line in dict.fromkeys(commands(page))],
)
def test_command(project: Project, page: str, line: str) -> None:
    if without_effect_on_this_machine(project, line):
        return
    if line in TESTED_BELOW:
        assert TESTED_BELOW[line] in globals()
    elif line.startswith("gunicorn"):
        with project.gunicorn(line) as server:
            assert_serves_websockets(server)
            if "mysite.wsgi:application" in line:
                assert 'connect("ws' in fetch(f"http://{server.address}/chat/lobby/")
            else:
                with pytest.raises(urllib.error.HTTPError, match="426"):
                    fetch(f"http://{server.address}/chat/lobby/")
    elif line.startswith("python manage.py run"):
        with project.runserver(line, free_port()) as server:
            assert 'connect("ws' in fetch(f"http://{server.address}/chat/lobby/")
    elif line.startswith("python"):
        project.run(line)
    else:
        pytest.fail(f"{page}: no test runs {line!r}")


def assert_serves_websockets(server: Server) -> None:
    with client(server, "/chat/lobby/") as websocket:
        websocket.send("hello")
        assert receive(websocket) == "hello"


# Every example


@pytest.mark.parametrize("page", OTHERS)
def test_examples_of_a_page_are_right_as_they_stand(original: Project, page: str, tmp_path: Path) -> None:
    copy = original.copy(tmp_path / "mysite")
    if page != "README.md":  # whose files are there already
        copy.put(page)
    (copy.directory / "gunicorn.conf.py").unlink(missing_ok=True)
    lines = ["from django.core.management import call_command", "call_command('check')"]
    for block in blocks(page):
        if block.language == "html" and "/templates/" in block.file:
            name = block.file.partition("/templates/")[2]
            lines.append(f"from django.template.loader import get_template; get_template({name!r})")
        elif block.language == "python":
            ast.parse(block.code, feature_version=(3, 10))
            if block.file != "gunicorn.conf.py":  # gunicorn reads this file, in a test below
                lines.append(f"import {block.file.removesuffix('.py').replace('/', '.')}")
        else:  # test_recipes_frontend.py runs JavaScript, in a browser
            assert block.language in ("html", "js", "jsx", "sh", "text"), f"{page}: unknown language {block.language!r}"
    copy.shell("\n".join(lines))


# docs/views.md

VIEWS = """
from chat import views as examples
from chat.asynchronous import clock
from chat.current import current
from django.urls import include, path
from django_websocket.decorators import websocket
from django_websocket.pubsub import publish

@websocket
def publisher(request, websocket, channel):
    for message in websocket:
        publish(channel, message)
        websocket.send("published")

@websocket
def knows_nobody(request, websocket):
    websocket.send(str(hasattr(current, "user")))

urlpatterns += [
    path("staff/", examples.staff),
    path("cart/", examples.cart),
    path("say/", examples.say),
    path("inbox/", examples.inbox, name="inbox"),
    path("partner/", examples.partner),
    path("ping/", examples.ping),
    path("undecorated/", examples.undecorated),
    path("room/<slug:room>/", examples.room),
    path("notifications/", examples.notifications),
    path("shout/", examples.shout),
    path("numbers/", examples.Numbers.as_view()),
    path("whoami/", examples.whoami),
    path("whoami/without-the-decorator/", knows_nobody),
    path("publish/<channel>/", publisher),
    path("clock/", clock),
    path("more/", include("chat.websocket_urls")),
]
"""


ASGI_PY = """
from chat.pingpong import application as pingpong

django_application = application

async def application(scope, receive, send):
    if scope["type"] == "websocket":
        await pingpong({**scope, "user": "nobody"}, receive, send)
    else:
        await django_application(scope, receive, send)
"""


@pytest.fixture(scope="module")
def views_project(migrated_readme: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    copy = migrated_readme.copy(tmp_path_factory.mktemp("views") / "mysite")
    copy.put("docs/views.md", {"[], [], 60)": "[], [], 2)"})
    copy.put("docs/async.md")
    copy.write("mysite/websocket_urls.py", VIEWS, add=True)
    more = 'MIDDLEWARE.insert(2, "django.middleware.locale.LocaleMiddleware")\n'
    more += 'MIDDLEWARE.append("chat.current.remember_user")'
    copy.write("mysite/settings.py", more, add=True)
    return copy


@pytest.fixture(scope="module")
def views(views_project: Project) -> Iterator[Server]:
    with views_project.gunicorn(command("README.md", "gunicorn")) as server:
        yield server


@pytest.fixture(scope="module")
def cookies(views_project: Project) -> dict[str, str]:
    """The session cookies of a member (user 1) and of a member of staff (user 2)."""
    output = views_project.shell(
        """
        import json
        from django.contrib.auth.models import User
        from django.test import Client
        cookies = {}
        for name, is_staff in (("member", False), ("staff", True)):
            client = Client()
            client.force_login(User.objects.create(username=name, is_staff=is_staff))
            cookies[name] = "sessionid=" + client.cookies["sessionid"].value
        print(json.dumps(cookies))
        """
    )
    found: dict[str, str] = json.loads(output)
    return found


def test_echo(views: Server) -> None:
    with client(views, "/echo/") as websocket:
        for message in ("text", "", b"\0\xff", b""):
            websocket.send(message)
            assert receive(websocket) == message
    assert refusal(views, "/missing/") == (404, "")


def test_refusals_are_real_answers_and_the_session_is_saved(
    views: Server, views_project: Project, cookies: dict[str, str]
) -> None:
    assert refusal(views, "/staff/") == (302, "/accounts/login/?next=/staff/")
    assert refusal(views, "/staff/", cookies["member"]) == (403, "")
    for _ in range(2):
        with client(views, "/staff/", cookies["staff"]) as websocket:
            assert receive(websocket) == "Welcome, staff"
            assert close_code(websocket) == CloseCode.NORMAL
    key = cookies["staff"].removeprefix("sessionid=")
    visits = views_project.shell(
        f"from django.contrib.sessions.backends.db import SessionStore; print(SessionStore({key!r})['visits'])"
    )
    assert visits.strip() == "2"


def test_refusal_that_a_page_can_read(views: Server, cookies: dict[str, str]) -> None:
    with client(views, "/inbox/") as websocket:
        assert close_code(websocket) == 4401
    with client(views, "/inbox/", cookies["member"]) as websocket:
        assert receive(websocket) == "You have no mail."


def test_session_is_updated(views: Server) -> None:
    with client(views, "/cart/") as websocket:
        for number, item in enumerate(("apple", "pear"), 1):
            websocket.send(item)
            assert receive(websocket) == f"{number} items"


def test_form_answers_in_the_language_of_the_user(views: Server) -> None:
    headers = {"Accept-Language": "de"}
    url = f"ws://{views.address}/say/"
    with (
        open_websocket(url, origin=f"http://{views.address}", additional_headers=headers) as websocket,
    ):
        websocket.send('{"room": "a room", "text": ""}')
        answer = json.loads(receive(websocket))
        assert answer["ok"] is False
        assert answer["errors"]["text"] == ["Dieses Feld ist zwingend erforderlich."]
        websocket.send('{"room": "lobby", "text": "hello"}')
        assert json.loads(receive(websocket)) == {"ok": True}
        websocket.send("no JSON")
        assert close_code(websocket) == 4400


def test_form_withstands_any_input(views: Server) -> None:
    begin = len(views.log)
    with client(views, "/room/lobby/") as member, client(views, "/room/news/") as other:
        for number, listener in enumerate((member, other)):
            listener.send(f"{number}")
            assert receive(listener) == f"{number}"  # so it is subscribed
        with client(views, "/say/") as websocket:
            for data in ("[1]", '"a"', "5", "true", "{}", '{"room": ["lobby"], "text": "x"}', '{"room": null}'):
                websocket.send(data)
                answer = json.loads(receive(websocket))
                assert answer["ok"] is False
                assert "room" in answer["errors"]
            for room in ("news", "room:news", "user:1", "lobby "):
                websocket.send(json.dumps({"room": room, "text": "not here"}))
                assert json.loads(receive(websocket))["ok"] is False
            nested = '{"room": "lobby", "text": ' + "[" * 90 + "]" * 90 + "}"
            websocket.send(nested)
            assert json.loads(receive(websocket))["ok"] is True  # to a form this is just text
            websocket.send('{"room": "lobby", "text": "hello"}')
            assert json.loads(receive(websocket)) == {"ok": True}
        assert [receive(member) for _ in range(2)] == ["[" * 90 + "]" * 90, "hello"]
        other.send("last")
        assert receive(other) == "last"
    for broken in ("[" * 30_000, "[NaN]", r'"\ud83d"', b"\xff\xfe\xfd"):
        with client(views, "/say/") as websocket:
            websocket.send(broken)
            assert close_code(websocket) == 4400
    with client(views, "/say/") as websocket:
        websocket.send("null")
        assert close_code(websocket) == CloseCode.NORMAL
    assert "Traceback" not in views.log[begin:]


def test_items_that_do_not_fit_into_a_session_are_refused(views: Server) -> None:
    begin = len(views.log)
    for item in (b"\xff", "x" * 51):
        with client(views, "/cart/") as websocket:
            websocket.send(item)
            assert close_code(websocket) == 4400
    with client(views, "/undecorated/"):
        pass  # the client leaves without sending anything
    assert "Traceback" not in views.log[begin:]


def test_user_is_thrown_out(views: Server, views_project: Project, cookies: dict[str, str]) -> None:
    with client(views, "/staff/", cookies["staff"]) as websocket:
        assert receive(websocket) == "Welcome, staff"
    names = views_project.shell(
        """
        from chat.bans import ban
        from django.contrib.auth.models import User
        user = User.objects.create(username="noisy")
        ban(user)
        print(User.objects.get(username="noisy").is_active)
        """
    )
    assert names.strip().endswith("False")


def test_receivers_of_signals(original: Project, tmp_path: Path) -> None:
    copy = original.copy(tmp_path / "mysite")
    copy.put("docs/views.md")
    copy.write("mysite/websocket_urls.py", "import chat.receivers", add=True)
    logging = """
LOGGING = {
    "version": 1,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"visits": {"handlers": ["console"], "level": "INFO"}},
}"""
    copy.write("mysite/settings.py", logging, add=True)
    with copy.gunicorn(command("README.md", "gunicorn -k")) as server:
        begin = time.monotonic()
        with client(server, "/echo/") as websocket:
            assert receive(websocket) == "Welcome to /echo/"

        def is_said() -> bool:
            longest = round(time.monotonic() - begin)  # 0, unless the machine is busy
            return any(f"'/echo/': 1000 after {seconds} seconds" in server.log for seconds in range(longest + 1))

        assert eventually(is_said)


def test_options(views: Server) -> None:
    partner = "https://partner.example"
    assert refusal(views, "/echo/", origin=partner)[0] == 403
    with client(views, "/partner/", origin=partner, subprotocols=["chat.v1", "chat.v2"]) as websocket:
        assert websocket.subprotocol == "chat.v2"
        websocket.send("hello")
        assert receive(websocket) == "HELLO"
        websocket.send("x" * 4096)
        assert receive(websocket) == "X" * 4096
        websocket.send("x" * 4097)
        assert close_code(websocket) == CloseCode.MESSAGE_TOO_BIG


def test_websocket_loop(views: Server) -> None:
    with client(views, "/ping/") as websocket:
        for message in ("ping", "something else", "ping"):
            websocket.send(message)
        assert receive(websocket) == receive(websocket) == "pong"


def test_asynchronous_view(views: Server, cookies: dict[str, str]) -> None:
    with client(views, "/clock/", cookies["member"]) as websocket:
        assert receive(websocket) == "hello member"
        assert receive(websocket) == "tick"
        websocket.send("shout")
        assert "SHOUT" in (receive(websocket), receive(websocket))


def test_asgi_applications(views: Server, cookies: dict[str, str]) -> None:
    with client(views, "/more/pingpong/", cookies["member"]) as websocket:
        websocket.send("ping")
        assert receive(websocket) == "pong, member!"
    with client(views, "/more/api/greet", cookies["member"]) as websocket:
        assert receive(websocket) == "hello member"
        assert close_code(websocket) == CloseCode.NORMAL


def test_asgi_py_in_place_of_wsgi_py(views_project: Project) -> None:
    views_project.write("mysite/asgi.py", ASGI_PY, add=True)
    with views_project.gunicorn(command("docs/async.md", "gunicorn")) as server:
        with client(server, "/anywhere/") as websocket:
            websocket.send("ping")
            assert receive(websocket) == "pong, nobody!"
        assert "Django" in fetch(f"http://{server.address}/admin/login/")


@pytest.mark.parametrize("way", ["asgi.py", "WEBSOCKET_URLCONF"])
def test_coming_from_channels(migrated_readme: Project, redis: Server, way: str, tmp_path: Path) -> None:
    project = migrated_readme.copy(tmp_path / "mysite")
    project.put("docs/channels.md")
    project.write("mysite/settings.py", f"WEBSOCKET_BROKER = 'redis://127.0.0.1:{redis.port}/0'", add=True)
    line = command("docs/channels.md", "gunicorn") if way == "asgi.py" else command("README.md", "gunicorn")
    with project.gunicorn(line) as server:
        with client(server, "/chat/lobby/") as ann, client(server, "/chat/lobby/") as bob:
            ann.send('{"text": "hello"}')
            for websocket in (ann, bob):
                assert json.loads(receive(websocket)) == {"text": "hello", "by": "AnonymousUser"}
            project.shell("from chat.notify import notify; notify('lobby', 'news')")
            for websocket in (ann, bob):
                assert json.loads(receive(websocket)) == {"text": "news", "by": "the site"}
        if way == "asgi.py":
            assert "Django" in fetch(f"http://{server.address}/admin/login/")


# The lines of the tables in docs/channels.md, by how they begin, each with the test that holds it.
LINES = {
    "consumers": "test_consumers.py::test_consumer_of_each_kind_echoes",
    "a consumer's `__call__`": "test_consumers.py::test_consumer_may_be_called_in_any_way",
    "one message at a time": "test_consumers.py::test_nothing_is_handled_while_a_handler_waits",
    "any method can be a handler": "test_consumers.py::test_any_method_may_be_called_by_a_message",
    "refusing": "test_consumers.py::test_close_before_the_acceptance_is_a_403",
    "errors": "test_consumers.py::test_exception_after_the_acceptance_closes_with_1011",
    "leaving": "test_consumers.py::test_disconnect_is_told_the_code",
    "`accept(subprotocol, headers)`": "test_consumers.py::test_subprotocol_and_headers_travel_with_the_acceptance",
    "routing": "test_consumers.py::test_routers_may_be_nested",
    "the scope": "test_consumers.py::test_scope_belongs_to_a_connection",
    "`database_sync_to_async`": "test_articles.py::test_consumer_reads_the_database",
    "messages of the layer": "test_channel_layer.py::test_values_arrive",
    "`ChannelFull`": "test_channel_layer.py::test_direct_message_over_the_capacity_raises",
    "tests": "test_channel_layer.py::test_communicators_chat",
    "order": "test_consumers.py::test_order_holds_across_groups_and_direct_messages",
    "logout": "test_consumers.py::test_connection_ends_with_the_login_of_its_user",
    "a restart": "test_consumers.py::test_server_that_ends_tells_its_consumers",
    "after an error": "test_consumers.py::test_memberships_end_with_the_connection",
    "lost messages": "test_channel_layer.py::test_what_a_member_loses_is_logged_once",
    "slow clients": "test_consumers.py::test_clients_that_do_not_read_hold_up_nobody_and_are_given_up",
    "databases": "test_consumers.py::test_hundreds_of_consumers_query_at_once",
    "an unknown path": "test_consumers.py::test_unknown_path_is_a_404",
    "the page's origin": "test_consumers.py::test_foreign_page_is_refused",
    "`group_add` and": "test_consumers.py::test_another_process_sends_and_changes_groups",
    "worker channels": "test_channel_layer.py::test_general_name_that_nobody_receives_is_not_implemented",
    "HTTP consumers": "test_consumers.py::test_log_names_what_of_an_application_is_not_called",
    "routes to a class": "test_consumers.py::test_class_in_a_router_is_an_error_at_the_start",
    "`accept()` inside": "test_rough_consumers.py::test_acceptance_within_a_transaction_names_the_mistake",
    "groups that expire": "test_channel_layer.py::test_channel_that_was_forgotten_leaves_no_subscription",
    "several `hosts`": "test_channel_layer.py::test_config_that_means_something_else_here_names_the_setting",
    "Daphne's live server": "test_consumer_testing.py::test_live_server_has_consumers",
    "uvloop": "test_checks.py::test_policy_whose_loops_make_all_clients_wait_is_named",
}


def test_each_line_about_channels_has_a_test() -> None:
    _, _, compared = (ROOT / "docs/channels.md").read_text().partition("## The same")
    tables = re.findall(r"^\| (?!-)(.+?) \| .+ \|$", compared, re.MULTILINE)
    assert len(tables) == len(LINES)
    for line, (begin, test) in zip(tables, LINES.items(), strict=True):
        assert line.startswith(begin)
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), test


def test_view_without_a_decorator(views: Server) -> None:
    with client(views, "/undecorated/") as websocket:
        websocket.send("hello")
        assert receive(websocket) == "hello"
        assert close_code(websocket) == CloseCode.NORMAL


def test_rooms_are_separate(views: Server) -> None:
    with client(views, "/room/a/") as ann, client(views, "/room/a/") as bob, client(views, "/room/b/") as eve:
        eve.send("b")
        assert receive(eve) == "b"
        ann.send("a")
        assert receive(ann) == receive(bob) == "a"


def test_class_based_view(views: Server, cookies: dict[str, str]) -> None:
    assert refusal(views, "/numbers/") == (302, "/accounts/login/?next=/numbers/")
    with client(views, "/numbers/", cookies["member"]) as websocket:
        for number in (1, 2):
            websocket.send("hello")
            assert receive(websocket) == f"{number} hello"


def test_value_that_a_middleware_keeps_in_a_thread_local(views: Server, cookies: dict[str, str]) -> None:
    for cookie, name in (("", "nobody"), (cookies["member"], "member")):
        with client(views, "/whoami/", cookie) as websocket:
            assert receive(websocket) == name
    with client(views, "/whoami/without-the-decorator/") as websocket:
        assert receive(websocket) == "False"


def test_a_view_that_only_forwards(views: Server, cookies: dict[str, str]) -> None:
    assert refusal(views, "/notifications/")[0] == 302
    with (
        client(views, "/notifications/", cookies["member"]) as websocket,
        client(views, "/publish/user:1/") as publisher,
    ):
        for message in ("text", b"\xff\0"):
            websocket.send("is dropped")
            publisher.send(message)
            assert receive(websocket) == message


def test_select_with_two_sources_and_a_timeout(views: Server) -> None:
    with client(views, "/shout/") as ann, client(views, "/shout/") as bob:
        for text in ("one", "two"):
            ann.send(text)
        assert [receive(bob), receive(bob)] == [receive(ann), receive(ann)] == ["ONE", "TWO"]
        assert receive(ann) == "Is anybody there?"


# docs/publish.md


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def publish_project(migrated_readme: Project, redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Project:
    copy = migrated_readme.copy(tmp_path_factory.mktemp("publish") / "mysite")
    copy.put("docs/publish.md", {"localhost:6379": redis.address})
    urls = "from chat import board, desk, prices, views\nfrom django.urls import path\n"
    paths = 'path("news/", views.news), path("prices/", prices.prices), path("board/", board.board)'
    paths += ', path("desk/", desk.desk)'
    copy.write("mysite/websocket_urls.py", f"{urls}urlpatterns = [{paths}]")
    copy.write("mysite/urls.py", f'{urls}urlpatterns += [path("announce/", views.announce)]', add=True)
    return copy


@pytest.fixture(scope="module")
def publishing(publish_project: Project) -> Iterator[Server]:
    with publish_project.gunicorn(command("README.md", "gunicorn"), args=["-w", "2"]) as server:
        yield server


def redis_cli(redis: Server, line: str) -> str:
    program, *words = arguments(line)
    result = subprocess.run(
        [executable(program), "-p", str(redis.port), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    return result.stdout


def test_publishing_from_pages_shell_and_redis_cli(publish_project: Project, publishing: Server, redis: Server) -> None:
    with client(publishing, "/news/") as ann, client(publishing, "/news/") as bob:
        with publish_project.runserver(command("docs/deployment.md", "runserver"), free_port()) as pages:
            assert fetch(f"http://{pages.address}/announce/") == "announced"
        assert receive(ann) == receive(bob) == "hello"
        publish_project.shell("from django_websocket.pubsub import publish; publish('news', b'binary')")
        assert receive(ann) == receive(bob) == b"binary"
        redis_cli(redis, command("docs/publish.md", "redis-cli"))
        assert receive(ann) == receive(bob) == "hello"


def test_notification_leaves_when_the_transaction_is_committed(publish_project: Project, redis: Server) -> None:
    watcher = subprocess.Popen(
        [executable("redis-cli"), "-p", str(redis.port), "SUBSCRIBE", "user:7"], stdout=subprocess.PIPE, text=True
    )
    assert watcher.stdout is not None
    try:
        lines = iter(watcher.stdout.readline, "")
        assert [next(lines).strip() for _ in range(3)] == ["subscribe", "user:7", "1"]
        publish_project.shell(
            """
            from chat.notify import notify
            from django.contrib.auth.models import User
            from django.db import transaction
            from django_websocket.pubsub import publish
            with transaction.atomic():
                notify(User(pk=7), "hello")
                publish("user:7", "first")
            try:
                with transaction.atomic():
                    notify(User(pk=7), "never")
                    raise KeyError
            except KeyError:
                publish("user:7", "last")
            """
        )
        messages = [[next(lines).strip() for _ in range(3)][2] for _ in range(3)]
        assert messages == ["first", '{"text":"hello"}', "last"]
    finally:
        watcher.terminate()
        watcher.wait(DEADLINE)
        watcher.stdout.close()


def test_members_are_told_of_missed_messages(publishing: Server, redis: Server) -> None:
    with (
        client(publishing, "/prices/") as prices,
        client(publishing, "/news/") as news,
        client(publishing, "/board/") as board,
    ):
        assert receive(prices) == "42.00"
        redis_cli(redis, "redis-cli PUBLISH prices 43.00")
        assert receive(prices) == "43.00"
        redis_cli(redis, "redis-cli CLIENT KILL TYPE pubsub")
        assert receive(prices) == "42.00"
        assert close_code(news) == CloseCode.SERVICE_RESTART
        assert [receive(board), receive(board)] == ["43.00", '{"type":"reload"}']
        redis_cli(redis, "redis-cli PUBLISH prices 44.00")
        assert receive(prices) == receive(board) == "44.00"


def test_messages_come_with_their_channels(publishing: Server, redis: Server) -> None:
    with client(publishing, "/desk/") as desk:
        for channel in ("orders", "alarms", "orders"):
            redis_cli(redis, f"redis-cli PUBLISH {channel} hello")
            assert receive(desk) == f'{{"from":"{channel}","message":"hello"}}'


def test_who_has_no_client_open_gets_an_e_mail(publish_project: Project, publishing: Server, redis: Server) -> None:
    code = """
        from chat.alerts import alert
        from django.contrib.auth.models import User
        from django.test.utils import override_settings
        with override_settings(EMAIL_BACKEND="django.core.mail.backends.console.EmailBackend"):
            alert(User(pk=7, email="ann@example.com"), "hello")
    """
    watcher = subprocess.Popen(
        [executable("redis-cli"), "-p", str(redis.port), "SUBSCRIBE", "user:7"], stdout=subprocess.PIPE, text=True
    )
    assert watcher.stdout is not None
    try:
        assert watcher.stdout.readline() == "subscribe\n"
        assert publish_project.shell(code) == ""
    finally:
        watcher.terminate()
        watcher.wait(DEADLINE)
        watcher.stdout.close()
    assert "\nTo: ann@example.com\n" in publish_project.shell(code)


# docs/redis.md

ROUND_TRIP = """
from gevent import monkey
monkey.patch_all()
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
import django
django.setup()
from django.core.management import call_command
call_command("check", stdout=sys.stderr)
from django_websocket.pubsub import publish, subscribe
with subscribe("news") as messages:
    publish("news", "hello")
    print(messages.get(timeout=10))
"""


def assert_carries(project: Project, broker: str) -> None:
    """Add these lines to the settings, and check that the broker they name passes the checks and carries a message."""
    project.write("mysite/settings.py", broker, add=True)
    assert project.run(f"python -c {shlex.quote(ROUND_TRIP)}") == "hello\n"


@pytest.mark.parametrize("number", range(6), ids=["a server", "a dict", "TLS", "Sentinel", "Cluster", "encryption"])
def test_redis_settings(
    original: Project,
    redis: Server,
    tls_redis: Server,
    authority: Authority,
    sentinel: Sentinel,
    cluster: Cluster,
    tmp_path: Path,
    number: int,
) -> None:
    broker = [block for block in blocks("docs/redis.md") if block.language == "python"][number]
    assert broker.file == "mysite/settings.py"
    certificate, key = authority.sign("documented")
    code = broker.code
    for documented, real in {
        ":password@localhost:6379": redis.address,
        "localhost:6379": redis.address,
        ":password@redis.example.com:6379": f":s3cret@{tls_redis.address}",
        "/etc/mysite/redis/ca.pem": str(authority.certificate),
        "/etc/mysite/redis/mysite.pem": str(certificate),
        "/etc/mysite/redis/mysite.key": str(key),
        ":password@sentinel1:26379,sentinel2:26379,sentinel3:26379/mymaster": (
            f":{sentinel.password}@{','.join(server.address for server in sentinel.sentinels)}/{sentinel.service}"
        ),
        '"sentinel_password": "password"': f'"sentinel_password": "{sentinel.password * 2}"',
        ":password@node1:6379,node2:6379,node3:6379": ",".join(node.address for node in cluster.nodes[:3]),
    }.items():
        code = code.replace(documented, real)
    assert "example" not in code and "node1" not in code and "/etc" not in code
    assert_carries(original.copy(tmp_path / "mysite"), code)


def test_redis_page_has_a_block_for_each_of_these() -> None:
    assert sum(block.language == "python" for block in blocks("docs/redis.md")) == 6


def test_redis_page_has_every_option_and_every_url() -> None:
    first_cells = [row[0] for row in tables("docs/redis.md")]
    documented = {name for cell in first_cells for name in re.findall(r"`([a-z_]+)`", cell)}
    assert documented == {"url", "class", "encryption_keys", *redis_address.OPTIONS}
    schemes = {found for cell in first_cells for found in re.findall(r"`([a-z+]+)://", cell)}
    assert schemes - {"rediss"} == {scheme.replace("rediss", "redis") for scheme in SCHEMES} - {"memory"}


def test_redis_users_need_no_more_than_the_page_says(
    original: Project, sentinel: Sentinel, cluster: Cluster, tmp_path: Path
) -> None:
    with redis_server() as server:
        redis_cli(server, command("docs/redis.md", "ACL", "+publish"))
        for name, url in (("plain", server.address), ("database", f"{server.address}/3")):
            copy = original.copy(tmp_path / name / "mysite")
            assert_carries(copy, f'WEBSOCKET_BROKER = "redis://mysite:password@{url}?prefix=mysite:"')
        with pytest.raises(AssertionError, match="BrokerError: Redis at .* cannot be used"):
            assert_carries(
                original.copy(tmp_path / "other" / "mysite"),
                f'WEBSOCKET_BROKER = "redis://mysite:password@{server.address}?prefix=other:"',
            )
    for server in sentinel.servers:
        sentinel.ask(server, *arguments(command("docs/redis.md", "ACL", "+publish"))[1:])
    broker = sentinel.broker()
    url = broker["url"].replace(f":{sentinel.password}@", "mysite:password@")
    copy = original.copy(tmp_path / "sentinel" / "mysite")
    assert_carries(copy, f"WEBSOCKET_BROKER = { ({**broker, 'url': url, 'prefix': 'mysite:'}) }")
    for server in cluster.nodes:
        redis_cli(server, command("docs/redis.md", "ACL", "+spublish"))
    copy = original.copy(tmp_path / "cluster" / "mysite")
    url = f"redis+cluster://mysite:password@{cluster.nodes[0].address}?prefix=mysite:"
    assert_carries(copy, f'WEBSOCKET_BROKER = "{url}"')


def test_redis_limits_what_it_keeps_for_a_process_as_the_page_says(redis: Server) -> None:
    (limits,) = re.findall(r"client-output-buffer-limit (pubsub .+)", (ROOT / "docs/redis.md").read_text())
    default = redis_cli(redis, "redis-cli CONFIG GET client-output-buffer-limit").split()[-4:]
    assert default == [re.sub(r"(\d+)mb", lambda match: str(int(match[1]) << 20), word) for word in limits.split()]


class Wire:
    """A broker that keeps the last message."""

    sent = ("", b"")

    def publish(self, channel: str, payload: bytes) -> None:
        self.sent = channel, payload

    def subscriber(self, listener: Listener) -> Subscriber:
        listener.deliver([self.sent])
        raise NotImplementedError

    def close(self) -> None:
        """Do nothing, since there is nothing to close."""


def hears(reader: list[str], publisher: list[str]) -> bool:
    """Whether a reader with some keys understands a publisher with others."""
    wire = Wire()
    heard: list[Sequence[tuple[str, bytes]]] = []
    EncryptedBroker(wire, publisher).publish("news", b"hello")
    with pytest.raises(NotImplementedError):
        EncryptedBroker(wire, reader).subscriber(
            SimpleNamespace(deliver=heard.append, lost=None, missed=None, closed=None)
        )
    return heard == [[("news", b"hello")]]


def test_all_processes_understand_each_other_while_keys_change_step_by_step() -> None:
    rows = [row for row in tables("docs/redis.md") if row[0] in ("before", "1", "2", "3")]
    steps = [[key * 11 for key in re.findall("OLD|NEW", row[1])] for row in rows]
    assert [len(keys) for keys in steps] == [1, 2, 2, 1]
    for before, after in zip(steps, steps[1:], strict=False):  # some processes are one step ahead of others
        assert hears(before, after) and hears(after, before)
    assert not hears(steps[0], steps[2])


# docs/security.md


def test_view_for_browsers_only(original: Project, tmp_path: Path) -> None:
    copy = original.copy(tmp_path / "mysite")
    copy.put("docs/security.md")
    copy.write(
        "mysite/websocket_urls.py",
        "from chat.views import browsers_only\nurlpatterns += [path('browsers/', browsers_only)]",
        add=True,
    )
    with copy.gunicorn(command("README.md", "gunicorn -k")) as server:
        with client(server, "/browsers/") as websocket:
            assert receive(websocket) == "hello"
        with pytest.raises(InvalidStatus) as refused, open_websocket(f"ws://{server.address}/browsers/"):
            pass
        assert refused.value.response.status_code == 403


def test_documented_log_lines_are_those_that_the_package_writes() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "django_websocket").rglob("*.py"))
    (block,) = [block for block in blocks("docs/security.md") if block.language == "text"]
    for line in block.code.splitlines():
        cause = re.fullmatch(r"(?:\S+ \S+|\d+ more in 60 seconds): \d+ ([a-z ]+)(?:: .*)?", line)
        assert cause is not None, line
        assert f'"{cause[1]}"' in sources, line


# docs/history.md


@pytest.fixture(scope="module")
def history_project(publish_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    copy = publish_project.copy(tmp_path_factory.mktemp("history") / "mysite")
    copy.put("docs/history.md")
    urls = "from chat import archive, feeds, pages, rooms, scores\nfrom django.urls import path\n"
    sockets = {
        "room": "rooms.room",
        "from": "pages.room_from",
        "feed": "feeds.feed",
    }
    paths = [f'path("{name}/<name>/", {view})' for name, view in sockets.items()]
    paths.append('path("scores/", scores.scores)')
    copy.write("mysite/websocket_urls.py", f"{urls}urlpatterns = [{', '.join(paths)}]")
    pages = 'path("state/<name>/", pages.room_state), path("recent/<name>/", archive.recent)'
    copy.write("mysite/urls.py", f"{urls}urlpatterns += [{pages}]", add=True)
    both = "application = get_wsgi_websocket_application(http=application)"
    copy.write("mysite/wsgi.py", f"from django_websocket.wsgi import get_wsgi_websocket_application\n{both}", add=True)
    return copy


@pytest.fixture(scope="module")
def with_history(history_project: Project) -> Iterator[Server]:
    with history_project.gunicorn(command("docs/deployment.md", "mysite.wsgi:application"), args=["-w", "2"]) as server:
        yield server


def test_a_room_begins_with_what_was_said_last(with_history: Server) -> None:
    with client(with_history, "/room/lobby/") as ann:
        for number in range(25):
            ann.send(f"message {number}")
            assert receive(ann) == f"message {number}"
    with client(with_history, "/room/lobby/") as bob:
        assert [receive(bob) for _ in range(20)] == [f"message {number}" for number in range(5, 25)]
    recent = json.loads(fetch(f"http://{with_history.address}/recent/lobby/"))["recent"]
    assert [message for message, _, _ in recent] == [f"message {number}" for number in range(15, 25)]


def test_a_socket_begins_where_its_page_was(with_history: Server) -> None:
    state = json.loads(fetch(f"http://{with_history.address}/state/page/"))
    with client(with_history, "/room/page/") as ann:
        ann.send("between")
        assert receive(ann) == "between"
        with client(with_history, f"/from/page/?since={state['since']}") as bob:
            assert receive(bob) == "between"
            ann.send("later")
            assert receive(bob) == "later"
        with client(with_history, "/from/page/?since=17.invented") as eve:
            assert receive(eve) == "reload"


def test_a_feed_goes_on_where_its_client_was(with_history: Server) -> None:
    with client(with_history, "/room/feed/") as ann:
        with client(with_history, "/feed/feed/") as bob:
            ann.send("one")
            found = json.loads(receive(bob))
        ann.send("two")
        assert [receive(ann), receive(ann)] == ["one", "two"]
        with client(with_history, f"/feed/feed/?since={found['since']}") as bob:
            assert json.loads(receive(bob))["message"] == "two"
        with client(with_history, "/feed/feed/?since=5.old") as bob:
            assert json.loads(receive(bob)) == {"reset": True}


def test_the_present_state_comes_first(with_history: Server, redis: Server) -> None:
    with client(with_history, "/scores/") as ann:
        assert receive(ann) == '{"scores":{"home":2,"away":1}}'
        redis_cli(redis, "redis-cli PUBLISH scores 3:1")
        assert receive(ann) == "3:1"


def test_users_of_redis_need_no_more_than_the_page_of_histories_says(history_project: Project) -> None:
    with redis_server() as server:
        begin = next(line for line in commands("docs/redis.md") if "ACL" in line and "+publish" in line)
        redis_cli(server, begin.replace("&mysite:*", "&*"))
        code = """
            from django_websocket.pubsub import history, publish, subscribe
            publish("room:acl", "hello")
            with subscribe("room:acl", last=1) as messages:
                print(messages.get(5), len(history("room:acl", last=5)))
        """
        url = f"redis://mysite:password@{server.address}"
        project = history_project.copy(history_project.directory.with_name("acl"))
        project.write("mysite/settings.py", f'WEBSOCKET_BROKER = "{url}"', add=True)
        with pytest.raises(AssertionError, match="Allow this user the command"):
            project.shell(code)
        redis_cli(server, command("docs/history.md", "ACL"))
        assert project.shell(code) == "hello 1\n"


# docs/presence.md


@pytest.fixture(scope="module")
def presence_project(publish_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    copy = publish_project.copy(tmp_path_factory.mktemp("presence") / "mysite")
    copy.put("docs/presence.md")
    urls = "from chat import greeter, notices, pages, rooms, typing\nfrom django.urls import path\n"
    sockets = {"room": "rooms.room", "typing": "typing.room_with_typing", "door": "greeter.door"}
    paths = [f'path("{name}/<name>/", {view})' for name, view in sockets.items()]
    paths.append('path("notices/", notices.notices)')
    copy.write("mysite/websocket_urls.py", f"{urls}urlpatterns = [{', '.join(paths)}]")
    copy.write("mysite/urls.py", f'{urls}urlpatterns += [path("who/<name>/", pages.who)]', add=True)
    both = "application = get_wsgi_websocket_application(http=application)"
    copy.write("mysite/wsgi.py", f"from django_websocket.wsgi import get_wsgi_websocket_application\n{both}", add=True)
    return copy


@pytest.fixture(scope="module")
def with_presence(presence_project: Project) -> Iterator[Server]:
    line = command("docs/deployment.md", "mysite.wsgi:application")
    with presence_project.gunicorn(line, args=["-w", "2"]) as server:
        yield server


@pytest.fixture(scope="module")
def people(presence_project: Project) -> dict[str, str]:
    """The session cookies of two users."""
    output = presence_project.shell(
        """
        import json
        from django.contrib.auth.models import User
        from django.test import Client
        cookies = {}
        for name in ("ann", "bob"):
            client = Client()
            client.force_login(User.objects.create(username=name, email=f"{name}@example.com"))
            cookies[name] = "sessionid=" + client.cookies["sessionid"].value
        print(json.dumps(cookies))
        """
    )
    found: dict[str, str] = json.loads(output)
    return found


def test_pages_and_views_know_who_is_in_a_room(with_presence: Server, people: dict[str, str]) -> None:
    def who() -> Any:
        return json.loads(fetch(f"http://{with_presence.address}/who/lobby/"))

    assert who() == {"users": [], "count": 0}
    with client(with_presence, "/door/lobby/") as door, ExitStack() as stack:
        assert json.loads(receive(door)) == {"joined": [], "left": [], "count": 0}
        ann = stack.enter_context(client(with_presence, "/room/lobby/", people["ann"]))
        assert json.loads(receive(door)) == {"joined": [{"id": 1, "name": "ann"}], "left": [], "count": 1}
        bob = stack.enter_context(client(with_presence, "/typing/lobby/", people["bob"]))
        assert json.loads(receive(door)) == {"joined": [{"id": 2, "name": "bob"}], "left": [], "count": 2}
        assert sorted(user["name"] for user in who()["users"]) == ["ann", "bob"]
        bob.send("typing")
        assert json.loads(receive(door))["joined"] == [{"id": 2, "name": "bob", "typing": True}]
        bob.send("hello")
        assert receive(ann) == "hello"
        assert json.loads(receive(door))["joined"] == [{"id": 2, "name": "bob", "typing": False}]
        ann.close()
        assert json.loads(receive(door)) == {"joined": [], "left": [{"id": 1, "name": "ann"}], "count": 1}
        assert who()["count"] == 1


def test_users_who_are_not_there_get_an_e_mail(
    presence_project: Project, with_presence: Server, people: dict[str, str]
) -> None:
    code = """
        from django.conf import settings
        from django.contrib.auth.models import User
        from chat.notices import notify
        settings.EMAIL_BACKEND = "django.core.mail.backends.console.EmailBackend"
        for user in User.objects.order_by("pk"):
            notify(user, "news")
    """
    with client(with_presence, "/notices/", people["ann"]) as ann:
        assert re.findall("^To: (.*)$", presence_project.shell(code), re.MULTILINE) == ["bob@example.com"]
        assert receive(ann) == "news"


def test_users_of_redis_need_no_more_than_the_page_of_presence_says(presence_project: Project) -> None:
    with redis_server() as server:
        begin = next(line for line in commands("docs/redis.md") if "ACL" in line and "+publish" in line)
        redis_cli(server, begin.replace("&mysite:*", "&*"))
        code = """
            import gevent
            from django_websocket.pubsub import count, present
            from django_websocket.pubsub.presence import Attendance, presence_of, user_from
            from django_websocket.pubsub.process import current_hub
            presence = presence_of(current_hub())
            attendance = Attendance(presence, ["room:acl"], user_from({"id": 1}))
            attendance.enter(None)
            [room] = attendance._rooms
            room.check()
            room.remove_dead()
            print(present("room:acl"), count("room:acl"))
            attendance.close(None)
            while count("room:acl") or presence._lease_ends:
                gevent.sleep(0.01)
            print(present("room:acl"))
        """
        url = f"redis://mysite:password@{server.address}"
        project = presence_project.copy(presence_project.directory.with_name("acl-presence"))
        project.write("mysite/settings.py", f'WEBSOCKET_BROKER = "{url}"', add=True)
        with pytest.raises(AssertionError, match="Allow this user the command"):
            project.shell(code)
        redis_cli(server, command("docs/presence.md", "ACL"))
        assert project.shell(code) == "[{'id': 1}] 1\n[]\n"
        assert redis_cli(server, "redis-cli KEYS *").split() == []


# docs/brokers.md


def test_broker_of_the_documentation_connects_processes(
    publish_project: Project, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = publish_project.copy(tmp_path_factory.mktemp("brokers") / "mysite")
    project.put("docs/brokers.md", {"/run/mysite": str(tmp_path)})
    project.run("python manage.py check")
    with project.gunicorn(command("README.md", "gunicorn"), args=["-w", "2"]) as server, ExitStack() as stack:
        clients = [stack.enter_context(client(server, "/news/")) for _ in range(10)]
        project.shell(
            "from django_websocket.pubsub import publish; publish('news', 'hello'); publish('news', b'again')"
        )
        for one in clients:
            assert [receive(one), receive(one)] == ["hello", b"again"]


# docs/settings.md


def tables(page: str) -> list[list[str]]:
    """Return the rows of a page's tables as lists of cells."""
    rows = re.findall(r"^\| (.+) \|$", (ROOT / page).read_text(), re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows]


def test_settings_page_has_every_setting_with_its_default() -> None:
    documented = {
        row[0].strip("`"): ast.literal_eval(row[1].strip("`"))
        for row in tables("docs/settings.md")
        if row[0].startswith(f"`{PREFIX}")
    }
    settings = {
        PREFIX + field.name.upper(): list(default) if isinstance(default, tuple) else default
        for field in fields(Settings)
        if field.init
        for default in [field.default if field.default is not MISSING else field.default_factory()]  # type: ignore[operator]
    }
    assert documented == settings
    assert [type(value) for value in documented.values()] == [type(settings[name]) for name in documented]


def test_pages_name_only_settings_that_exist() -> None:
    settings = {PREFIX + field.name.upper() for field in fields(Settings) if field.init}
    settings |= {
        "WEBSOCKET_URL",
        "WEBSOCKET_URI",
    }  # of django-websocket-redis, in the recipe for those who come from it
    for page in (*PAGES, "CHANGELOG.md"):
        named = set(re.findall(r"\bWEBSOCKET_[A-Z_]+[A-Z]", (ROOT / page).read_text()))
        assert named <= settings, page


def test_settings_page_has_every_close_code() -> None:
    documented = {int(row[0]) for row in tables("docs/settings.md") if row[0].isdecimal() and int(row[0]) < 3000}
    source = "".join(path.read_text() for path in (ROOT / "django_websocket").rglob("*.py"))
    used = {code.value for code in CloseCode if re.search(rf"CloseCode\.{code.name}\b", source)}
    assert documented == used - {CloseCode.GOING_AWAY, CloseCode.NO_STATUS, CloseCode.UNSUPPORTED_DATA}


def test_close_codes_that_a_view_is_told_to_use_may_be_sent() -> None:
    (row,) = [row[1] for row in tables("docs/views.md") if row[0].startswith("`close(")]
    codes = {int(code) for code in re.findall(r"\b[0-9]{4}\b", row)}
    assert codes == {1000, 1001, 1008, 1011, 1012, 1013, 3000, 4999}
    for code in codes:
        check_close(code)


def test_settings_page_has_every_system_check() -> None:
    documented = [row[0].strip("`") for row in tables("docs/settings.md") if row[0].startswith("`websocket.")]
    source = (ROOT / "django_websocket" / "checks.py").read_text()
    assert documented == sorted(set(re.findall(r'id="(\S+)"', source)))


def test_check_names_a_mistake_in_the_settings(original: Project, tmp_path: Path) -> None:
    copy = original.copy(tmp_path / "mysite")
    copy.write("mysite/settings.py", 'WEBSOCKET_URLCONF = "mysite.misspelled"', add=True)
    with pytest.raises(AssertionError, match=r"websocket\.E003"):
        copy.run(command("docs/settings.md", "check"))


# docs/pages.md


def test_template_tag_gives_the_addresses_of_the_table(original: Project, tmp_path: Path) -> None:
    copy = original.copy(tmp_path / "mysite")
    copy.put("docs/pages.md")
    echo = 'from django_websocket.servers.echo import echo\nurlpatterns += [path("echo/", echo, name="echo")]'
    copy.write("mysite/websocket_urls.py", echo, add=True)
    servers = {row[0]: row[1] for row in tables("docs/pages.md") if row[1].startswith(("`ws:", "`wss:"))}
    assert len(servers) == 4
    output = copy.shell(
        f"""
        import json
        from django.shortcuts import render
        from django.test import RequestFactory, override_settings
        pages = []
        for server in {[ast.literal_eval(re.findall("`([^`]*)`", cell)[0]) for cell in servers]}:
            with override_settings(WEBSOCKET_SERVER=server, WEBSOCKET_HISTORY={{}}, ALLOWED_HOSTS=["example.com"]):
                request = RequestFactory().get("/", HTTP_HOST="example.com:8000")
                pages.append([render(request, f"chat/{{name}}.html").content.decode() for name in ("tags", "echo")])
        print(json.dumps(pages))
        """
    )
    for address, (tags, echo_page) in zip(servers.values(), json.loads(output), strict=True):
        url = address.strip("`")
        assert re.findall(r"wss?://\S+/", tags) == [url] * 3
        assert f'new WebSocket("{url.replace("/chat/lobby/", "/echo/")}")' in echo_page


def test_template_tag_in_python(original: Project) -> None:
    call = re.search(r"`django_websocket\.addresses\.(websocket_url\(.+\))`", (ROOT / "docs/pages.md").read_text())
    assert call
    output = original.shell(
        f"""
        from django.test import RequestFactory, override_settings
        from django_websocket.addresses import websocket_url
        request = RequestFactory().get("/", HTTP_HOST="localhost", secure=True)
        with override_settings(WEBSOCKET_SERVER=""):
            print({call[1]})
        """
    )
    assert output.strip() == "wss://localhost/chat/lobby/"


# docs/deployment.md


@pytest.mark.parametrize("name", ["runwebsocket", "websockets"])
def test_reference_has_every_option_of_a_command(name: str) -> None:
    from django.core.management import load_command_class
    from django.core.management.base import BaseCommand

    def options(command: BaseCommand) -> set[str]:
        actions = command.create_parser("manage.py", name)._actions
        return {option for action in actions for option in action.option_strings}

    text = (ROOT / "docs/reference/commands.md").read_text()
    section = text.partition(f"## `{name}`\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`-[^|]+) \|", section, re.M)
    documented = {option for row in rows for option in re.findall(r"`(-[^`]+)`", row)}
    assert documented == options(load_command_class("django_websocket", name)) - options(BaseCommand()) - {"--noinput"}


def test_worker_has_the_entry_point_that_the_page_names(project: Project) -> None:
    text = (ROOT / "docs/deployment.md").read_text()
    uri = re.search(r"`(egg:(\S+)#(\S+))`", text)
    assert uri
    try:
        metadata.distribution(uri[2])
    except metadata.PackageNotFoundError:
        unavailable(f"{uri[2]} is not installed")
    line = command("docs/deployment.md", "gunicorn", "--no-control-socket").replace(
        "django_websocket.worker.GeventWebSocketWorker", uri[1]
    )
    assert uri[1] in line
    with project.gunicorn(line) as server:
        assert_serves_websockets(server)


def test_gunicorn_beside_runserver(original: Project, tmp_path: Path) -> None:
    copy = original.copy(tmp_path / "mysite")
    port = free_port()
    copy.put("docs/deployment.md", {'":8001" if DEBUG': f'":{port}" if DEBUG', DEFAULT_REDIS: "memory://"})
    (copy.directory / "gunicorn.conf.py").unlink()
    with (
        copy.runserver(command("docs/deployment.md", "runserver"), free_port()) as pages,
        copy.gunicorn(command("docs/deployment.md", "--reload"), port) as server,
    ):
        assert_is_a_chat(pages, server)


def test_reload_starts_the_worker_again_when_the_code_changes(original: Project, tmp_path: Path) -> None:
    copy = original.copy(tmp_path / "mysite")
    views = copy.directory / "chat" / "views.py"
    with copy.gunicorn(command("docs/deployment.md", "--reload")) as server:
        with client(server, "/chat/lobby/") as websocket:
            views.write_text(views.read_text().replace('", text)', '", text.upper())'))
            assert close_code(websocket) == CloseCode.SERVICE_RESTART
        assert http_status(server) == 426  # the new worker answers
        with client(server, "/chat/lobby/") as websocket:
            websocket.send("changed")
            assert receive(websocket) == "CHANGED"


def http_status(server: Server) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    finally:
        connection.close()


def test_hup_tells_the_clients_and_starts_a_new_worker(project: Project) -> None:
    hangup = command("docs/deployment.md", "kill -HUP")
    with project.gunicorn(command("docs/deployment.md", "--pid")) as server:
        with client(server, "/chat/lobby/") as websocket:
            subprocess.run(["bash", "-c", hangup], cwd=project.directory, check=True, timeout=DEADLINE)
            assert close_code(websocket) == CloseCode.SERVICE_RESTART
        assert_serves_websockets(server)


def test_health_checks_are_answered_as_the_page_shows(project: Project) -> None:
    (shown,) = [block.code for block in blocks("docs/deployment.md") if block.code.startswith('{"ready"')]
    with project.gunicorn(command("docs/deployment.md", "gunicorn", "--no-control-socket")) as server:
        address = command("docs/deployment.md", "curl").split()[-1].replace("127.0.0.1:8001", server.address)
        with client(server, "/chat/lobby/"):
            assert eventually(lambda: fetch(address) == shown)


def test_preload_app_needs_the_lines_that_the_page_gives(project: Project) -> None:
    line = command("docs/deployment.md", "gunicorn", "--no-control-socket")
    with project.gunicorn(f"{line} -c preload.conf.py") as server:
        assert_serves_websockets(server)
    with pytest.raises(RuntimeError, match="patch"), project.gunicorn(f"{line} --preload"):
        pass


def test_stock_worker_closes_with_4000_and_the_status(project: Project) -> None:
    with project.gunicorn(command("docs/deployment.md", "geventwebsocket")) as server:
        with client(server, "/missing/") as websocket:
            assert close_code(websocket) == 4404
        with client(server, "/chat/lobby/", origin="https://evil.example") as websocket:
            assert close_code(websocket) == 4403


# docs/testing.md


@pytest.fixture(scope="module")
def tested(original: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The README's project with all tests of the page, and a browser that also runs as root."""
    copy = original.copy(tmp_path_factory.mktemp("testing") / "mysite")
    options = f"""options.binary_location = {executable("chromium")!r}
        for option in {CHROMIUM!r}:
            options.add_argument(option)"""
    copy.put("docs/testing.md", {'options.add_argument("--headless=new")': options})
    return copy


@pytest.mark.parametrize(
    ("line", "count"), [("python manage.py test", 9), ("pytest --ds mysite.settings", 4)], ids=["Django", "pytest"]
)
def test_examples_of_tests_pass(tested: Project, line: str, count: int) -> None:
    line = command("docs/testing.md", line)
    if line.startswith("pytest") and importlib.util.find_spec("pytest_django") is None:
        unavailable("pytest-django is not installed")
    output = tested.run(line, errors=True)
    assert f"Ran {count} tests" in output or f"{count} passed" in output


@pytest.mark.parametrize("where", ["in a file", "in PostgreSQL", "in a file, with gevent's patches"])
def test_examples_of_tests_pass_elsewhere(
    request: pytest.FixtureRequest, tested: Project, tmp_path: Path, where: str
) -> None:
    """They run with databases to which each thread has its own connection, and in a process patched by gevent."""
    copy = tested.copy(tmp_path / "mysite")
    if where == "in PostgreSQL":
        databases = {"default": settings_of(request.getfixturevalue("postgres"), "tests")}
        copy.write("mysite/settings.py", f"DATABASES = {databases!r}", add=True)
    else:
        database = '{"NAME": BASE_DIR / "test.sqlite3"}'
        copy.write("mysite/settings.py", f'DATABASES["default"]["TEST"] = {database}', add=True)
    line = command("docs/testing.md", "python manage.py test")
    if "patches" in where:
        line = line.replace("python", "python -m gevent.monkey")
    assert "Ran 9 tests" in copy.run(line, errors=True)


# docs/upgrading.md


@pytest.mark.parametrize(
    "line",
    [command("docs/deployment.md", "geventwebsocket.gunicorn"), command("README.md", "gunicorn")],
    ids=["stock worker", "our worker"],
)
def test_a_view_in_the_style_of_version_0_2(original: Project, redis: Server, tmp_path: Path, line: str) -> None:
    copy = original.copy(tmp_path / "mysite")
    copy.put("docs/upgrading.md", {"StrictRedis(": f'StrictRedis("127.0.0.1", {redis.port}, '})
    with copy.gunicorn(line) as server, client(server, "/chat/a/") as ann:
        assert_heard(ann, [ann])
        with client(server, "/chat/b/") as bob:  # all rooms share one channel
            assert_heard(bob, [ann, bob])
            assert_heard(ann, [ann, bob])
        assert_heard(ann, [ann])


def assert_heard(sender: ClientConnection, members: list[ClientConnection]) -> None:
    """Send until all members receive: redis-py keeps the second of two replies that come together for later."""
    for number in range(DEADLINE):
        said = f"{sender.id} {number}"
        sender.send(said)
        try:
            for member in members:
                while member.recv(timeout=1) != said:
                    pass
            return
        except TimeoutError:
            continue
    pytest.fail("not all members have received it")

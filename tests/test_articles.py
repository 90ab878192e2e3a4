"""The projects of three articles on Django Channels, served by this package; `articles` has their code."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from .articles import corrected
from .support.browser import Browser
from .support.clients import Client, fetch
from .support.documentation import ENVIRONMENT, Project
from .support.fixtures import Connect
from .support.processes import worker_of
from .support.servers import HTTP_PROBE, Server, free_port, gunicorn, redis_server
from .support.waiting import DEADLINE

pytestmark = pytest.mark.slow

THEIRS = "channels_redis.core.RedisChannelLayer"  # which the articles have
OURS = "django_websocket.channels.ChannelLayer"
# channels_redis has Redis wait 5 seconds for a message, and redis-py 8 gives up after as many: a consumer that hears
# nothing fails, under Daphne as here. https://github.com/django/channels_redis/issues/422
PATIENCE = """
[host] = CHANNEL_LAYERS["default"]["CONFIG"]["hosts"]
where = {"address": host} if isinstance(host, str) else dict(zip(("host", "port"), host))
CHANNEL_LAYERS["default"]["CONFIG"]["hosts"] = [{**where, "socket_timeout": 60}]
"""
PASSWORD = "s3cret"  # of the Redis that the second article asks for


def new_project(directory: Path, name: str, apps: list[str]) -> Project:
    """Return a new project with empty apps, and with Channels and daphne installed as their documentation says."""
    project = Project(directory)
    project.run(f"django-admin startproject {name} .")
    for app in apps:
        project.write(f"{app}/__init__.py", "")
    project.write(
        f"{name}/settings.py", f"INSTALLED_APPS = ['daphne', 'channels', *{apps!r}, *INSTALLED_APPS]\n", add=True
    )
    return project


def use(project: Project, settings: str, backend: str) -> None:
    """Put a backend into `CHANNEL_LAYERS`, which has the article's."""
    path = project.directory / settings
    text = path.read_text()
    assert text.count(THEIRS) == 1
    path.write_text(text.replace(THEIRS, backend))
    if backend == THEIRS:
        project.write(settings, PATIENCE, add=True)


def say(client: Client, text: str) -> None:
    """Send a message as the articles' pages do."""
    client.send(json.dumps({"message": text}))


def heard(client: Client) -> Any:
    """Return the next message."""
    return json.loads(client.recv())


def chat(ann: Client, bob: Client, eve: Client) -> None:
    """Check that Ann and Bob, who share a room, hear each other, and that Eve, in another room, hears neither."""
    for speaker, text in ((ann, "Hello, Bob"), (bob, "Grüße 🙂")):
        say(speaker, text)
        assert [heard(client) for client in (ann, bob)] == [{"message": text}] * 2
    say(eve, "Is anybody here?")
    assert heard(eve) == {"message": "Is anybody here?"}
    bob.close()
    say(ann, "Are you still here?")
    assert heard(ann) == {"message": "Are you still here?"}


# --- consumers -------------------------------------------------------------------------------------------------------

# The article gives each of its consumers the place of the one before. Here they are side by side.
ROUTES = """
from channels.generic.websocket import AsyncWebsocketConsumer
from django.urls import path

from . import asynchronous, database_by_call, database_by_decorator, echo


class NameConsumer(AsyncWebsocketConsumer):
    async def connect(self):
        await self.find_name()
        await self.accept()
        await self.send(self.username)


class CallingConsumer(NameConsumer):
    find_name = database_by_call.connect
    get_name = database_by_call.get_name


class DecoratedConsumer(NameConsumer):
    find_name = database_by_decorator.connect
    get_name = database_by_decorator.get_name


class UserConsumer(AsyncWebsocketConsumer):
    async def connect(self):
        await self.accept()
        await self.send(self.scope["user"].username)


websocket_urlpatterns += [
    path("ws/echo/", echo.ChatConsumer.as_asgi()),
    path("ws/asynchronous/<room_name>/", asynchronous.ChatConsumer.as_asgi()),
    path("ws/by_call/", CallingConsumer.as_asgi()),
    path("ws/by_decorator/", DecoratedConsumer.as_asgi()),
    path("ws/user/", UserConsumer.as_asgi()),
]
"""
PAGES = """
from django.contrib.auth import login
from django.contrib.auth.models import User
from django.http import HttpResponse


def log_in(request):
    login(request, User.objects.get(username="ann"))
    return HttpResponse()


urlpatterns += [path("login/", log_in)]
"""
# The article is from before Django made this file. Channels' documentation had it like this then.
ASGI = """
import os

import django
from channels.routing import get_default_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django.setup()
application = get_default_application()
"""
USERS = """
from django.contrib.auth.models import User
from django.core.management import call_command

call_command("migrate", verbosity=0)
User.objects.create_user("ann")
"""


@pytest.fixture(scope="module")
def consumers_project(redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project of the article on consumers, with a user."""
    project = Project(tmp_path_factory.mktemp("consumers"))
    project.run("django-admin startproject mysite .")
    for block in ("installed_apps", "asgi_application", "channel_layers"):
        project.write("mysite/settings.py", corrected(f"consumers/{block}", redis.port), add=True)
    project.write("mysite/settings.py", "INSTALLED_APPS += ['django_websocket']\n", add=True)  # for runwebsocket
    for block in ("empty_routing", "root_routing"):  # the second one replaces the first one
        project.write("mysite/routing.py", corrected(f"consumers/{block}"))
    project.write("mysite/asgi.py", ASGI)
    project.write("mysite/urls.py", PAGES, add=True)
    project.write("chat/__init__.py", "")
    project.write("chat/consumers.py", corrected("consumers/chat"))
    for block in ("echo", "asynchronous", "database_by_call", "database_by_decorator"):
        project.write(f"chat/{block}.py", corrected(f"consumers/{block}"))
    project.write("chat/routing.py", corrected("consumers/chat_routing"))
    project.write("chat/routing.py", ROUTES, add=True)
    project.shell(USERS)
    return project


def by_gunicorn(project: Project) -> Server:
    """Return the server for production."""
    return gunicorn("mysite.asgi:application", cwd=project.directory)


def by_runwebsocket(project: Project) -> Server:
    """Return the server for development, which takes the place of the one that the article names."""
    port = free_port()
    words = [sys.executable, "manage.py", "runwebsocket", f"127.0.0.1:{port}"]
    return Server(words, port=port, probe=HTTP_PROBE, cwd=project.directory, env=ENVIRONMENT)


@pytest.fixture(
    scope="module",
    params=[(THEIRS, by_runwebsocket), (OURS, by_gunicorn)],
    ids=["channels_redis, runwebsocket", "ours, gunicorn"],
)
def consumers(
    request: pytest.FixtureRequest, consumers_project: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The article on consumers, with either backend and by either server."""
    backend, by = request.param
    project = consumers_project.copy(tmp_path_factory.mktemp("consumers") / "copy")
    use(project, "mysite/settings.py", backend)
    with by(project) as server:
        yield server
        assert "Traceback" not in server.log


def test_echo_answers_its_client_alone(consumers: Server, connect: Connect) -> None:
    ann, bob = (connect(consumers, "/ws/echo/") for _ in range(2))
    for client, text in ((ann, "hello"), (ann, "Grüße"), (bob, "I am Bob")):
        say(client, text)
        assert heard(client) == {"message": text}


@pytest.mark.parametrize(
    "paths",
    [("chat", "chat"), ("asynchronous", "asynchronous"), ("chat", "asynchronous")],
    ids=["synchronous", "asynchronous", "both"],
)
def test_chat_reaches_the_clients_of_its_room(
    consumers: Server, connect: Connect, key: str, paths: tuple[str, str]
) -> None:
    of_ann, of_bob = paths
    ann, bob = connect(consumers, f"/ws/{of_ann}/{key}/"), connect(consumers, f"/ws/{of_bob}/{key}/")
    chat(ann, bob, connect(consumers, f"/ws/{of_ann}/{key}-2/"))


@pytest.mark.parametrize("how", ["by_call", "by_decorator"])
def test_consumer_reads_the_database(consumers: Server, connect: Connect, how: str) -> None:
    assert connect(consumers, f"/ws/{how}/").recv() == "ann"


def test_scope_has_the_user_of_the_session(consumers: Server, connect: Connect) -> None:
    cookies = fetch(consumers.port, "/login/").cookies
    logged_in = connect(consumers, "/ws/user/", additional_headers={"Cookie": f"sessionid={cookies['sessionid']}"})
    assert logged_in.recv() == "ann"
    assert connect(consumers, "/ws/user/").recv() == ""


# --- push ------------------------------------------------------------------------------------------------------------

# The article leaves open what is read from the database, and what is done with it.
DATA = """

class DataConsumer(BaseConsumer):
    async def receive(self, text_data):
        text_data_json = json.loads(text_data)
{block}
        await self.msg_send(self.labels)

    def get_data(self, wanted):
        from django.contrib.contenttypes.models import ContentType

        self.labels = sorted(ContentType.objects.filter(**wanted).values_list("model", flat=True))
"""
DATA_ROUTE = r"""
websocket_urlpatterns += [re_path(r"^data/(?P<room_name>\w+)/$", consumers.DataConsumer.as_asgi())]
"""
PUSH_PAGE = """
from asgiref.sync import async_to_sync
from django.http import HttpResponse
from ws.push import SendMessage


def push(request, room):
    async_to_sync(SendMessage(room).send)({"chat_type": "chat_data", **request.GET.dict()})
    return HttpResponse("sent")


urlpatterns += [path("push/<room>/", push)]
"""


@pytest.fixture(scope="module")
def redis_with_password() -> Iterator[Server]:
    """A Redis that asks for a password."""
    with redis_server(args=["--requirepass", PASSWORD]) as server:
        yield server


@pytest.fixture(scope="module")
def push_project(redis_with_password: Server, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project of the article on messages from the server."""
    project = new_project(tmp_path_factory.mktemp("push"), "project", ["ws"])
    names = f"redis_password, redis_host, redis_port = {PASSWORD!r}, '127.0.0.1', {redis_with_password.port}"
    project.write("project/settings.py", f"{names}\n{corrected('push/settings')}", add=True)
    project.write("project/asgi.py", corrected("push/asgi"))
    project.write("project/urls.py", PUSH_PAGE, add=True)
    project.write("ws/routings.py", corrected("push/routings"))
    project.write("ws/routings.py", DATA_ROUTE, add=True)
    project.write("ws/consumers.py", corrected("push/consumers"))
    block = textwrap.indent(textwrap.dedent(corrected("push/database")), " " * 8)
    project.write("ws/consumers.py", DATA.format(block=block), add=True)
    project.write("ws/push.py", corrected("push/send_message"))
    project.run("python manage.py migrate contenttypes --verbosity 0")
    return project


@pytest.fixture(scope="module", params=[THEIRS, OURS], ids=["channels_redis", "ours"])
def pushing_project(
    request: pytest.FixtureRequest, push_project: Project, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """That project with either backend."""
    project = push_project.copy(tmp_path_factory.mktemp("push") / "copy")
    use(project, "project/settings.py", request.param)
    return project


@pytest.fixture(scope="module")
def pushing(pushing_project: Project) -> Iterator[Server]:
    """Its server."""
    with pushing_project.gunicorn(corrected("push/deployment")) as server:
        yield server
        assert "Traceback" not in server.log


def heartbeat(client: Client) -> None:
    """Receive what a consumer sends to its room when somebody connects."""
    assert heard(client) == {"msg": "heartbeat", "code": 200, "data": []}


def test_room_learns_who_connects_and_what_they_say(pushing: Server, connect: Connect, key: str) -> None:
    ann = connect(pushing, f"/heartbeat/{key}/")
    heartbeat(ann)
    bob = connect(pushing, f"/heartbeat/{key}/")
    for client in (ann, bob):
        heartbeat(client)
    eve = connect(pushing, f"/heartbeat/{key}2/")
    heartbeat(eve)
    chat(ann, bob, eve)


def test_page_pushes_to_a_room(pushing: Server, connect: Connect, key: str) -> None:
    ann, eve = connect(pushing, f"/heartbeat/{key}/"), connect(pushing, f"/heartbeat/{key}2/")
    for client in (ann, eve):
        heartbeat(client)
    assert fetch(pushing.port, f"/push/{key}/?text=news").body == b"sent"
    assert heard(ann) == {"data": {"text": "news"}, "msg": "success", "code": 200}
    assert fetch(pushing.port, f"/push/{key}/?code=404&text=gone").body == b"sent"
    assert heard(ann) == {"code": "404", "text": "gone"}
    say(eve, "Is anybody here?")
    assert heard(eve) == {"message": "Is anybody here?"}


def test_another_process_pushes_to_a_room(
    pushing: Server, pushing_project: Project, connect: Connect, key: str
) -> None:
    ann = connect(pushing, f"/heartbeat/{key}/")
    heartbeat(ann)
    pushing_project.shell(
        f"""
        from asgiref.sync import async_to_sync
        from ws.push import SendMessage

        async_to_sync(SendMessage("{key}").send)({{"chat_type": "chat.data", "numbers": [1, 2.5, None]}})
        """
    )
    assert heard(ann) == {"data": {"numbers": [1, 2.5, None]}, "msg": "success", "code": 200}


def test_consumer_sends_what_it_has_read_from_the_database(pushing: Server, connect: Connect, key: str) -> None:
    ann = connect(pushing, f"/data/{key}/")
    heartbeat(ann)
    ann.send(json.dumps({"app_label": "contenttypes"}))
    assert heard(ann) == {"msg": "success", "code": 200, "data": ["contenttype"]}


def test_redis_cannot_read_the_messages(
    pushing: Server, redis_with_password: Server, connect: Connect, key: str
) -> None:
    ann = connect(pushing, f"/heartbeat/{key}/")
    heartbeat(ann)
    commands: list[str] = []
    with (
        Redis("127.0.0.1", redis_with_password.port, password=PASSWORD, socket_timeout=DEADLINE) as client,
        client.monitor() as monitor,  # it sees all that comes, whether it is kept or published
    ):
        say(ann, "attack at dawn")
        assert heard(ann) == {"message": "attack at dawn"}
        client.echo("the end")
        while "ECHO the end" not in commands:
            commands.append(monitor.next_command()["command"])
    assert any(f"chat_{key}" in command for command in commands), commands
    assert not any("attack" in command or "chat_data" in command for command in commands), commands


# --- heroku ----------------------------------------------------------------------------------------------------------

# The article has no settings and no pages. Heroku has the address of Redis in the environment.
LAYERS = """
import os

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {"hosts": [os.environ["REDIS_URL"]]},
    },
}
ASGI_APPLICATION = "myproject.asgi.application"
"""
CHAT_PAGE = '''
import os

from django.http import HttpResponse

PAGE = """<!doctype html>
<link rel="icon" href="data:,">
<form id="form"><input id="text" autocomplete="off"></form>
<ul id="log"></ul>
<script>
  const socket = new WebSocket(`ws://${location.host}/ws/chat/${location.pathname.split("/")[2]}/`);
  socket.onopen = () => { document.body.dataset.state = "open" };
  socket.onmessage = ({ data }) => {
    log.appendChild(document.createElement("li")).textContent = JSON.parse(data).message;
  };
  form.onsubmit = (event) => {
    event.preventDefault();
    socket.send(JSON.stringify({ message: text.value }));
    form.reset();
  };
</script>"""


def chat(request, room):
    return HttpResponse(PAGE, headers={"Process": os.getpid()})


urlpatterns += [path("chat/<room>/", chat)]
'''


@pytest.fixture(scope="module", params=[THEIRS, OURS], ids=["channels_redis", "ours"])
def dyno(request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The article on Heroku with either backend, started as Heroku does it."""
    project = new_project(tmp_path_factory.mktemp("heroku"), "myproject", [])
    project.write("myproject/settings.py", LAYERS, add=True)
    use(project, "myproject/settings.py", request.param)
    project.write("myproject/asgi.py", corrected("heroku/asgi"))
    project.write("myproject/consumers.py", corrected("heroku/consumers"))
    project.write("myproject/urls.py", CHAT_PAGE, add=True)
    process, _, line = corrected("heroku/procfile").partition(": ")
    assert process == "web"
    port = free_port()
    env = {
        **ENVIRONMENT,
        "DJANGO_SETTINGS_MODULE": "myproject.settings",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PORT": str(port),
        "REDIS_URL": redis_url,
    }
    words = ["sh", "-c", f"exec {line.replace('0.0.0.0', '127.0.0.1')}"]
    with Server(words, port=port, probe=HTTP_PROBE, cwd=project.directory, env=env) as server:
        yield server
        assert "Traceback" not in server.log


def test_pages_and_chat_share_a_process(dyno: Server, connect: Connect, key: str) -> None:
    ann, bob, eve = (connect(dyno, f"/ws/chat/{room}/") for room in (key, key, f"{key}2"))
    chat(ann, bob, eve)
    assert fetch(dyno.port, f"/chat/{key}/").headers["process"] == str(worker_of(dyno))  # there is no other


def test_two_windows_chat(dyno: Server, browser: Browser, key: str) -> None:
    ann, bob, eve = (browser.open(f"http://{dyno.address}/chat/{room}/") for room in (key, key, f"{key}2"))
    for window in (ann, bob, eve):
        window.wait(lambda window=window: window["body"].get_attribute("data-state") == "open")  # type: ignore[misc]
    said: list[str] = []
    for speaker, text in ((ann, "Hello, Bob"), (bob, "Hallo Ann, schöne Grüße"), (ann, "<b>Bye</b>")):
        speaker.say(text)
        said.append(text)
        for window in (ann, bob):
            window.wait_for_texts("#log li", said)
    eve.say("Is anybody here?")
    eve.wait_for_texts("#log li", ["Is anybody here?"])
    assert browser.errors() == []

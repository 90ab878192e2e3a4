"""Users whom a token names, by the views and the page of docs/tokens.md: they come in, and their WebSockets end."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import jwt
import pytest
from django.contrib.auth.models import AnonymousUser, User
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from django_websocket.handler import login_checks, users
from django_websocket.handler.surroundings import Surroundings
from django_websocket.logins import login
from django_websocket.protocol.frames import CloseCode

from .support.brokers import in_use
from .support.documentation import Project, command
from .support.servers import Server
from .support.waiting import until
from .support.wire import Pairs
from .test_docs import client, open_websocket, receive

AT_LEISURE = 60.0  # seconds between two checks of the logins
SOON = 0.3
LIFE = 3.0  # seconds of a token that is to expire
PATHS = ["by-header", "by-subprotocol", "by-message"]
EVERY_PATH = ["by-drf", *PATHS]

VIEWS = """
import time

import gevent
from chat import api, views as examples
from chat.tokens import log_in
from django.contrib.auth.models import User
from django.urls import path
from django_websocket.decorators import websocket
from django_websocket.logins import disconnect, login
from rest_framework.authentication import TokenAuthentication
from rest_framework.decorators import api_view, authentication_classes

@websocket
def change(request, websocket):
    for text in websocket:
        what, name = text.split()
        user = User.objects.get(username=name)
        if what == "disconnect":
            websocket.send(str(disconnect(user=user)))
        elif what == "delete":
            user.delete()
            websocket.send("done")
        else:
            user.is_active = False
            user.save()
            websocket.send("done")

def renew(request, websocket):
    for token in websocket:
        websocket.send(str(log_in(request, token)))

@websocket
def early(request, websocket):
    log_in(request, request.headers["X-Token"])
    return websocket.listen("news")

@websocket(until_logout=False)
def stays(request, websocket):
    log_in(request, request.headers["X-Token"])
    renew(request, websocket)

@websocket
def in_a_thread(request, websocket):
    for token in websocket:
        websocket.send(str(gevent.get_hub().threadpool.apply(log_in, (request, token))))

class Expiring(TokenAuthentication):
    def authenticate_credentials(self, key):
        user, _ = super().authenticate_credentials(key)
        return user, {"exp": time.time() + 3}

@api_view()
@authentication_classes([Expiring])
@websocket
def drf_with_expiry(request, websocket):
    login(request, request.user, expires=request.auth["exp"])
    renew(request, websocket)

@websocket
def of_a_middleware(request, websocket):
    websocket.send(f"Welcome, {request.user.get_username()}")
    renew(request, websocket)

def by_token(get_response):
    def middleware(request):
        if request.path == "/of-a-middleware/":
            log_in(request, request.headers["X-Token"])
        return get_response(request)

    return middleware

@websocket(subprotocols=["bearer"])
def mistaken(request, websocket):
    log_in(request, websocket.protocol.partition(", ")[2])
    websocket.accept(subprotocol="chat")

@websocket(subprotocols=["bearer"])
def raises(request, websocket):
    websocket.receive()
    raise LookupError("a mistake of the view")

urlpatterns += [
    path("by-drf/", api.by_drf),
    path("by-header/", examples.by_header),
    path("by-subprotocol/", examples.by_subprotocol, name="by-subprotocol"),
    path("by-message/", examples.by_message, name="by-message"),
    path("change/", change),
    path("renew/", websocket(renew)),
    path("early/", early),
    path("stays/", stays),
    path("in-a-thread/", in_a_thread),
    path("drf-with-expiry/", drf_with_expiry),
    path("of-a-middleware/", of_a_middleware),
    path("mistaken/", mistaken),
    path("raises/", raises),
]
"""


class Site(NamedTuple):
    """The project of the page, its server, and what makes tokens of its users."""

    server: Server
    keys: dict[str, int]  # of the users, by name
    of_drf: dict[str, str]  # the tokens of Django REST framework, by name
    made: str  # a token that the page's own `make_token` has made for "ann"
    secret: str

    def token(self, name: str, seconds: float = 300, **changed: Any) -> str:
        """Return a JWT as `make_token` makes them, with some claims changed."""
        secret = changed.pop("secret", self.secret)
        key = self.keys.get(name, 10_000)
        claims = {"sub": str(key), "exp": math.ceil(time.time() + seconds), "aud": "websocket", **changed}
        return jwt.encode({name: value for name, value in claims.items() if value is not None}, secret, "HS256")

    def open(self, path: str, headers: dict[str, str], offered: Any = None) -> ClientConnection:
        """Open a WebSocket as a program does."""
        url = f"ws://{self.server.address}/{path}/"
        return open_websocket(url, additional_headers=headers, subprotocols=offered)

    @contextmanager
    def connect(self, path: str, token: str) -> Iterator[ClientConnection]:
        """Open a WebSocket with a token."""
        headers: dict[str, str] = {}
        if path in ("by-drf", "by-header", "drf-with-expiry"):
            headers["Authorization"] = f"{'Bearer' if path == 'by-header' else 'Token'} {token}"
        elif path in ("early", "stays", "of-a-middleware"):
            headers["X-Token"] = token
        offered: Any = ["bearer", token] if path == "by-subprotocol" else None
        with self.open(path, headers, offered) as websocket:
            if path == "by-message":
                websocket.send(token)
            yield websocket

    def valid(self, path: str, name: str) -> str:
        """Return a token that the view of a path takes."""
        return self.of_drf[name] if path == "by-drf" else self.token(name)

    def change(self, what: str, name: str) -> str:
        """Change a user, or have the user disconnected."""
        with client(self.server, "/change/") as websocket:
            websocket.send(f"{what} {name}")
            return str(receive(websocket))


NAMES = ["ann", "bob", "inactive", "gone"]
NAMES += [f"{what}-{path}" for what in ("deactivate", "delete", "disconnect") for path in (*EVERY_PATH, "early")]


@pytest.fixture(scope="module")
def start(readme: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Site]]:
    """Starts the project of the page with an interval between checks of the logins."""
    project = readme.copy(tmp_path_factory.mktemp("tokens") / "mysite")
    project.put("docs/tokens.md", {"timeout=5": "timeout=1"})
    project.write("mysite/websocket_urls.py", VIEWS, add=True)
    project.write("mysite/settings.py", "MIDDLEWARE += ['mysite.websocket_urls.by_token']", add=True)
    project.run("python manage.py migrate --verbosity 0")
    made = json.loads(
        project.shell(
            f"""
            import json
            from chat.tokens import make_token
            from django.conf import settings
            from django.contrib.auth.models import User
            from rest_framework.authtoken.models import Token
            users = [User.objects.create(username=name, is_active=name != "inactive") for name in {NAMES}]
            made = {{
                "keys": {{user.username: user.pk for user in users}},
                "of_drf": {{user.username: Token.objects.create(user=user).key for user in users}},
                "made": make_token(users[0]),
                "secret": settings.SECRET_KEY,
            }}
            User.objects.get(username="gone").delete()
            print(json.dumps(made))
            """
        )
    )
    with ExitStack() as stack:
        started: dict[tuple[float, str], Site] = {}

        def start(interval: float, page: str = "README.md", worker: str = "gunicorn") -> Site:
            if (interval, worker) not in started:
                copy = project.copy(Path(tmp_path_factory.mktemp("tokens")) / "mysite")
                copy.write("mysite/settings.py", f"WEBSOCKET_LOGIN_CHECK_INTERVAL = {interval}", add=True)
                line = command(page, worker)
                server = stack.enter_context(copy.gunicorn(line, args=["--access-logfile", "-"]))
                started[interval, worker] = Site(server, **made)
            return started[interval, worker]

        yield start


@pytest.fixture
def quick(start: Callable[..., Site]) -> Site:
    return start(SOON)


@pytest.fixture
def slow(start: Callable[..., Site]) -> Site:
    return start(AT_LEISURE)


def says(websocket: ClientConnection, name: str) -> bool:
    """Return whether the view answers, and knows the user."""
    websocket.send("hello")
    return [receive(websocket), receive(websocket)] == [f"Welcome, {name}", "hello"]


def closing(websocket: ClientConnection) -> tuple[int | None, str | None]:
    with pytest.raises(ConnectionClosed):
        receive(websocket)
    return websocket.close_code, websocket.close_reason


# --- coming in --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EVERY_PATH)
def test_user_of_a_valid_token_comes_in(slow: Site, path: str) -> None:
    with slow.connect(path, slow.valid(path, "ann")) as websocket:
        assert says(websocket, "ann")
        assert websocket.subprotocol == ("bearer" if path == "by-subprotocol" else None)
    if path != "by-drf":
        with slow.connect(path, slow.made) as websocket:
            assert says(websocket, "ann")


WRONG: dict[str, Callable[[Site], str]] = {
    "of another key": lambda site: site.token("ann", secret="of somebody else, and long enough for HMAC"),
    "expired": lambda site: site.token("ann", -1),
    "for another use": lambda site: site.token("ann", aud="e-mail"),
    "without an end": lambda site: site.token("ann", exp=None),
    "without a user": lambda site: site.token("ann", sub=None),
    "of no number": lambda site: site.token("ann", sub="ann"),
    "of a user who may not log in": lambda site: site.token("inactive"),
    "of a user who is gone": lambda site: site.token("gone"),
    "unsigned": lambda site: jwt.encode({"sub": "1", "exp": time.time() + 300, "aud": "websocket"}, "", "none"),
    "no token": lambda site: "no-token",
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("token", WRONG.values(), ids=WRONG)
def test_wrong_token_is_refused(slow: Site, path: str, token: Callable[[Site], str]) -> None:
    begin = len(slow.server.log)
    if path == "by-header":
        with pytest.raises(InvalidStatus) as refused, slow.connect(path, token(slow)):
            pass
        assert refused.value.response.status_code == 401
        assert refused.value.response.headers["WWW-Authenticate"] == "Bearer"
    else:
        with slow.connect(path, token(slow)) as websocket:
            # Without the subprotocol a browser would not let its page see the code.
            assert websocket.subprotocol == ("bearer" if path == "by-subprotocol" else None)
            assert closing(websocket)[0] == 4401
    assert "Traceback" not in slow.server.log[begin:]


@pytest.mark.parametrize("name", ["inactive", "gone", "nobody"])
def test_wrong_token_of_django_rest_framework_is_refused(slow: Site, name: str) -> None:
    with pytest.raises(InvalidStatus) as refused, slow.connect("by-drf", slow.of_drf.get(name, "0" * 40)):
        pass
    assert refused.value.response.status_code == 401


def test_client_without_a_token_is_refused(slow: Site) -> None:
    for path in ("by-drf", "by-header"):
        with pytest.raises(InvalidStatus) as refused, client(slow.server, f"/{path}/"):
            pass
        assert refused.value.response.status_code == 401
    for offered in (None, ["bearer"], ["chat"], ["chat", "bearer"]):
        with client(slow.server, "/by-subprotocol/", subprotocols=cast(Any, offered)) as websocket:
            assert closing(websocket)[0] == 4401


def test_silence_or_anything_else_than_a_token_in_the_first_message_is_refused(slow: Site) -> None:
    begin = len(slow.server.log)
    with client(slow.server, "/by-message/") as websocket:
        assert closing(websocket) == (4401, "invalid token")
    for message in ("", b"", b"\xff\x00", "\0é", "a.b.c", "{}", b"a.b.c"):
        with client(slow.server, "/by-message/") as websocket:
            websocket.send(message)
            assert closing(websocket) == (4401, "invalid token")
    with client(slow.server, "/by-message/") as websocket:
        websocket.send("a" * 4097)
        assert closing(websocket)[0] == CloseCode.MESSAGE_TOO_BIG
    with client(slow.server, "/by-message/"):
        pass  # the client leaves without a word
    assert "Traceback" not in slow.server.log[begin:]


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PATHS, "early"])
def test_websocket_ends_when_its_token_expires(slow: Site, path: str) -> None:
    with slow.connect(path, slow.token("ann", LIFE)) as websocket, slow.connect(path, slow.token("ann")) as other:
        begin = time.monotonic()
        if path != "early":
            assert says(websocket, "ann")
        assert closing(websocket) == (4401, "expired")
        assert LIFE - 0.5 < time.monotonic() - begin < LIFE + 3  # not at the next check of the logins
        if path != "early":
            assert says(other, "ann")


@pytest.mark.parametrize("path", [*EVERY_PATH, "early"])
@pytest.mark.parametrize("what", ["deactivate", "delete"])
def test_websocket_ends_when_the_user_of_its_token_may_not_log_in(quick: Site, path: str, what: str) -> None:
    name = f"{what}-{path}"
    with quick.connect(path, quick.valid(path, name)) as websocket, quick.connect("by-header", quick.made) as other:
        if path != "early":
            assert says(websocket, name)
        assert quick.change(what, name) == "done"
        assert closing(websocket) == (4401, "logged out")
        assert says(other, "ann")


@pytest.mark.parametrize("path", [*EVERY_PATH, "early"])
def test_user_of_a_token_can_be_disconnected(slow: Site, path: str) -> None:
    name = f"disconnect-{path}"
    with slow.connect(path, slow.valid(path, name)) as websocket, slow.connect("by-header", slow.made) as other:
        if path != "early":
            assert says(websocket, name)
        assert slow.change("disconnect", name) == "1"
        assert closing(websocket)[0] == 4401
        assert says(other, "ann")


def renews(websocket: ClientConnection, token: str) -> bool:
    websocket.send(token)
    return receive(websocket) == "True"


def test_newer_token_replaces_the_time_and_the_user_of_the_former_one(slow: Site) -> None:
    with slow.connect("renew", "") as later, slow.connect("renew", "") as sooner, slow.connect("renew", "") as first:
        assert renews(later, slow.token("ann", LIFE / 2)) and renews(sooner, slow.token("ann"))
        assert renews(later, slow.token("bob")) and renews(sooner, slow.token("ann", LIFE / 2))
        assert renews(first, slow.token("ann", LIFE))
        assert closing(sooner) == (4401, "expired")
        assert closing(first) == (4401, "expired")
        assert slow.change("disconnect", "ann") == "0"
        assert renews(later, slow.token("bob"))
        assert slow.change("disconnect", "bob") == "1"
        assert closing(later)[0] == 4401


def test_websocket_of_a_view_that_may_go_on_outlives_its_token(quick: Site) -> None:
    with quick.connect("stays", quick.token("bob", 3)) as websocket, quick.connect("renew", "") as other:
        assert renews(websocket, quick.token("bob", 3)) and renews(other, quick.token("bob", 3))
        assert closing(other) == (4401, "expired")
        assert quick.change("disconnect", "bob") == "0"
        assert renews(websocket, quick.token("bob"))


@pytest.mark.parametrize("path", ["drf-with-expiry", "of-a-middleware", "in-a-thread"])
def test_login_is_watched_wherever_it_is_called(slow: Site, path: str) -> None:
    token = slow.of_drf["ann"] if path == "drf-with-expiry" else slow.token("ann", 3)
    with slow.connect(path, token) as websocket, slow.connect(path, token) as renewed:
        for each in (websocket, renewed):
            if path == "of-a-middleware":
                assert receive(each) == "Welcome, ann"
            elif path == "in-a-thread":
                assert renews(each, token)
        assert renews(renewed, slow.token("bob"))
        assert closing(websocket) == (4401, "expired")
        assert slow.change("disconnect", "bob") == "1"
        assert closing(renewed)[0] == 4401


def test_user_of_a_session_and_a_token_is_counted_once(key: str, pairs: Pairs) -> None:
    with in_use(f"memory://{key}", WEBSOCKET_LOGIN_CHECK_INTERVAL=AT_LEISURE):
        watched = login_checks.Logins()
        connection, _ = pairs()
        for session, add in (("session", watched.add), ("", watched.replace)):
            one = login_checks.Login(session, users.identify("1"), "", "", time.time() + 60)
            add(one, connection, cast(Surroundings, None))
        assert watched.of_user(users.identify("1")) == [connection]


def test_renewals_leave_nothing_behind(key: str, pairs: Pairs) -> None:
    with in_use(f"memory://{key}", WEBSOCKET_LOGIN_CHECK_INTERVAL=AT_LEISURE):
        watched = login_checks.Logins()
        connection, peer = pairs()
        callbacks = set()
        for number in range(5):
            one = login_checks.Login("", users.identify(str(number)), "", "", time.time() + 60 + number, False)
            watched.replace(one, connection, cast(Surroundings, None))
            assert watched.of_user(one.user) == [connection]
            callbacks.add(len(connection.on_end))
            assert sum(len(watched.of_user(users.identify(str(each)))) for each in range(5)) == 1
        assert len(callbacks) == 1
        peer.sock.close()
        until(lambda: not connection.connected)
        assert not watched.needed()


def test_token_may_be_valid_for_ever(key: str, pairs: Pairs) -> None:
    with in_use(f"memory://{key}", WEBSOCKET_LOGIN_CHECK_INTERVAL=AT_LEISURE):
        watched = login_checks.Logins()
        connection, peer = pairs()
        for expires in (sys.float_info.max, math.inf):
            one = login_checks.Login("", users.identify("1"), "", "", expires)
            watched.replace(one, connection, cast(Surroundings, None))
            assert watched.of_user(one.user) == [connection]
        peer.sock.close()
        until(lambda: not connection.connected)
        assert not watched.needed()


def test_login_that_has_expired_already_closes_at_once(key: str, pairs: Pairs) -> None:
    with in_use(f"memory://{key}", WEBSOCKET_LOGIN_CHECK_INTERVAL=AT_LEISURE):
        watched = login_checks.Logins()
        connection, _ = pairs()
        one = login_checks.Login("", users.identify("1"), "", "", time.time() - 1)
        watched.replace(one, connection, cast(Surroundings, None))
        assert connection.at_end
        assert connection.close_code == 4401
        assert not watched.needed()


def test_tokens_work_with_the_stock_worker_too(start: Callable[..., Site]) -> None:
    site = start(AT_LEISURE, "docs/deployment.md", "geventwebsocket")
    with (
        site.connect("by-message", site.token("ann", LIFE)) as websocket,
        site.connect("by-header", site.made) as other,
    ):
        assert says(websocket, "ann")
        assert closing(websocket) == (4401, "expired")
        assert says(other, "ann")
        assert site.change("disconnect", "ann") == "1"
        assert closing(other)[0] == 4401
    for path in ("by-drf", "by-header", "by-message"):
        with site.connect(path, "no-token") as websocket:
            assert closing(websocket)[0] == 4401
    assert "no-token" not in site.server.log


# --- login() ----------------------------------------------------------------------------------------------------------


def test_login_sets_the_user_and_takes_each_form_of_a_time() -> None:
    noon = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=1)))
    for expires, expected in ((noon, noon.timestamp()), (1_900_000_000, 1_900_000_000.0), (None, math.inf)):
        request: Any = SimpleNamespace(META={}, user=AnonymousUser())
        user = User(pk=5)
        login(request, user, expires=cast(Any, expires))
        assert request.user is user
        assert request.META[login_checks.KEY].expires == expected


@pytest.mark.parametrize(
    ("user", "expires"), [(AnonymousUser(), None), (User(), None), (None, None), (User(pk=1), math.nan)]
)
def test_login_of_nobody_or_until_no_time_is_an_error(user: Any, expires: float | None) -> None:
    request: Any = SimpleNamespace(META={}, user="former")
    with pytest.raises(ValueError):
        login(request, user, expires=expires)
    assert request.user == "former"
    assert request.META == {}


# --- the log ----------------------------------------------------------------------------------------------------------


def test_no_token_is_in_the_log(quick: Site) -> None:
    tokens = []
    for path in EVERY_PATH:
        good = quick.valid(path, "ann")
        wrong = (
            "0" * 40 if path == "by-drf" else quick.token("ann", secret="of somebody else, and long enough for HMAC")
        )
        for token in (good, wrong, quick.token("inactive"), quick.token("ann", 1)):
            tokens.append(token)
            try:
                with quick.connect(path, token) as websocket:
                    websocket.send("hello")
                    receive(websocket)
            except (ConnectionClosed, InvalidStatus):
                pass
    for path, status in (("mistaken", 500), ("by-subprotocol", 400)):
        token = quick.token("ann") + ("" if path == "mistaken" else "(")  # the last cannot be a subprotocol
        tokens.append(token)
        headers = {"Sec-WebSocket-Protocol": f"bearer, {token}"}
        with pytest.raises(InvalidStatus) as refused, quick.open(path, headers):
            pass
        assert refused.value.response.status_code == status
    token = quick.token("ann")
    tokens.append(token)
    with client(quick.server, "/raises/", subprotocols=cast(Any, ["bearer", token])) as websocket:
        websocket.send(token)
        assert closing(websocket)[0] == CloseCode.INTERNAL_ERROR
    assert "the client did not offer it" in quick.server.log
    assert "LookupError: a mistake of the view" in quick.server.log
    assert "/by-header/" in quick.server.log
    for token in tokens:
        for part in token.split("."):
            assert len(part) < 10 or part == token.split(".")[0] or part not in quick.server.log
        assert token not in quick.server.log

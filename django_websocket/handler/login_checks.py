"""Logins that end: a user who logs out, changes the password or is deactivated is disconnected with 4401.

Each process checks all its logins together every few seconds, with one query for the sessions and one for the users.
"""

from __future__ import annotations

import contextvars
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache as cache_results
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, TypeVar, cast

from asgiref.sync import sync_to_async
from django.apps import apps
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model, load_backend
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.sessions.backends import cache, cached_db, db, signed_cookies
from django.core.cache import caches
from django.db import InterfaceError, OperationalError, connections
from django.db.models import Model
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.utils.functional import SimpleLazyObject, empty
from gevent.hub import get_hub

from django_websocket import conf
from django_websocket.transport.connection import Connection
from django_websocket.transport.deadlines import sweep_of_loop
from django_websocket.transport.log import report
from django_websocket.transport.loops import PerLoop
from django_websocket.transport.turns import let_others_run_if_spent

from .orders import hash_of_session, orders
from .rounds import Rounds
from .surroundings import Surroundings
from .users import LOGGED_OUT, User, identify

__all__ = ["log_in", "watch"]

K = TypeVar("K", bound=Hashable)

BATCH = 500  # logins in one query
DAY = 86_400.0  # seconds
EXPIRED = "expired"
KEY = "django_websocket.login"  # in the WSGI environment: a Login until the acceptance, then a Watched


class Login(NamedTuple):
    """A user's login by a session; without a session key, by a token or the like that a middleware knows."""

    session_key: str
    user: User
    auth_hash: str
    backend: str
    expires: float  # seconds since the epoch; of a token, and of a session that its store does not end
    checked: bool = True  # False for a user that is in no database, whom only disconnect() can end


def watch(request: HttpRequest, connection: Connection, surroundings: Surroundings) -> None:
    """Close `connection` when a login of `request` ends, which is checked in `surroundings`.

    A lazy `request.user` is watched from when it is first used.
    """
    if not connection.connected:
        return
    logins = logins_of_loop()
    attributes = vars(request)
    user, auser = attributes.get("user"), attributes.get("auser")
    login = request.META.get(KEY)
    request.META[KEY] = Watched(logins, weakref.ref(connection))
    if login is not None:
        logins.replace(login, connection, surroundings)
        user = None
    if isinstance(user, SimpleLazyObject) and user._wrapped is empty:
        fetch = vars(user)["_setupfunc"]
        if not fetches_known_login(fetch, request):
            vars(user)["_setupfunc"] = FirstLook(fetch, request, connection, logins, get_hub().loop)
        user = None
    if user is None and auser is not None and not fetches_known_login(auser, request):
        request.auser = FirstLook(auser, request, connection, logins, get_hub().loop).fetch_asynchronously
    logins.add_all(surroundings.run(logins_of, request, user), connection, surroundings)


def fetches_known_login(fetch: Callable[..., Any], request: HttpRequest) -> bool:
    """Return whether a function fetches the user of the session, as Django's does, and the session was read already."""
    of_session = getattr(getattr(fetch, "func", fetch), "__module__", "") == AuthenticationMiddleware.__module__
    return of_session and getattr(getattr(request, "session", None), "accessed", False)


class Watched(NamedTuple):
    """Where the logins of a request are watched. A view that goes on after the logout has none."""

    logins: Logins
    connection: weakref.ref[Connection]  # the connection may refer to the request, which has this


def log_in(request: HttpRequest, user: Any, expires: float) -> None:
    """Close the WebSocket when `user`, whom a token names, may no longer log in, and at the time `expires`.

    Before the acceptance, the login is kept for `watch()`.
    """
    login = Login("", identify(user), "", "", expires, is_stored(user))
    watched = request.META.get(KEY)
    if not isinstance(watched, Watched):
        request.META[KEY] = login
    elif (connection := watched.connection()) is not None:
        surroundings = Surroundings(contextvars.copy_context(), connections.all(initialized_only=True))
        watched.logins.replace_from_anywhere(login, connection, surroundings)


class FirstLook:
    """Replaces the function that fetches a lazy `request.user`, to have the login watched from then on.

    Its method `fetch_asynchronously` does so for `request.auser`.
    """

    __slots__ = ("_connection", "_fetch", "_logins", "_loop", "_request")

    def __init__(
        self, fetch: Callable[[], Any], request: HttpRequest, connection: Connection, logins: Logins, loop: Any
    ) -> None:
        self._fetch = fetch
        self._request = weakref.ref(request)
        self._connection = weakref.ref(connection)
        self._logins = logins
        self._loop = loop

    def __call__(self) -> Any:
        """Fetch the user, in the calling thread."""
        user = self._fetch()
        self._watch(user)
        return user

    async def fetch_asynchronously(self) -> Any:
        """Fetch the user; later calls go to the original function."""
        user = await self._fetch()
        request = self._request()
        if request is not None:
            await sync_to_async(self._watch)(user)  # where the view's databases are, and a session may be loaded
            request.auser = self._fetch  # not before: the call may be cancelled
        return user

    def _watch(self, user: Any) -> None:
        request, connection = self._request(), self._connection()
        if request is not None and connection is not None:
            found = logins_of(request, user)
            surroundings = Surroundings(contextvars.copy_context(), connections.all(initialized_only=True))
            self._loop.run_callback_threadsafe(self._logins.add_all, found, connection, surroundings)


def logins_of(request: HttpRequest, user: Any) -> list[Login]:
    """Return the logins of `request`: that of its session, and that of its `user` if the session has another one."""
    login = login_of(request)
    found = [] if login is None else [login]
    if getattr(user, "is_authenticated", False) and getattr(user, "pk", None) is not None:
        known = identify(user)
        if login is None or login.user != known:
            found.append(Login("", known, "", "", math.inf, is_stored(user)))
    return found


def is_stored(user: Any) -> bool:
    """Return whether a database has the user, and can say whether it is active."""
    return isinstance(user, Model) and not user._state.adding


def login_of(request: HttpRequest) -> Login | None:
    """Return the login of the session; None without one, or if nothing read the session."""
    session: Any = getattr(request, "session", None)  # it may be a plain dict of some middleware's
    if not getattr(session, "accessed", False) or SESSION_KEY not in session:
        return None
    if session.get(BACKEND_SESSION_KEY) not in conf.current().authentication_backends:
        return None  # for Django such a session is nobody's
    return Login(
        session.session_key or "",
        identify(session[SESSION_KEY]),
        session.get(HASH_SESSION_KEY, ""),
        session.get(BACKEND_SESSION_KEY, ""),
        time.time() + session.get_expiry_age() if isinstance(session, signed_cookies.SessionStore) else math.inf,
    )


class Expiry:
    """Closes a connection when its token expires, whatever the databases are doing."""

    __slots__ = ("_connection", "_expires", "_sweep", "due")

    def __init__(self, connection: Connection, expires: float) -> None:
        self._connection = connection
        self._expires = expires
        self._sweep = sweep_of_loop()
        self.due = 0
        self._wait()

    def _wait(self) -> None:
        seconds = min(self._expires - time.time(), DAY)  # somebody's "never" may be more than there are ticks
        self._sweep.look_after(self, seconds)

    def on_due(self) -> None:
        """See `Due`. The clock may have been set back meanwhile."""
        if time.time() < self._expires:
            self._wait()
        else:
            self._connection.close(LOGGED_OUT, EXPIRED)

    def cancel(self) -> None:
        """Leave the connection open."""
        self._sweep.forget(self)


class Logins(Rounds):
    """Checks the logins of the connections of one loop."""

    def __init__(self) -> None:
        super().__init__()
        self._connections: dict[Login, dict[Connection, Surroundings]] = {}
        self._loop = get_hub().loop
        self._thread = threading.get_native_id()
        self._replaceable: dict[Connection, tuple[Login, Expiry | None]] = {}  # what `replace()` has added last
        self._faulty: set[Login] = set()  # not checked because of an error, which was logged
        self._unanswered: set[tuple[str, ...]] = set()  # tables that could not be read, which was logged

    def add_all(self, logins: Iterable[Login], connection: Connection, surroundings: Surroundings) -> None:
        """Watch the logins as long as `connection` is open."""
        for login in logins:
            self.add(login, connection, surroundings)

    def add(self, login: Login, connection: Connection, surroundings: Surroundings) -> None:
        """Watch `login`, as it is seen in `surroundings`, as long as `connection` is open."""
        if not connection.connected or connection in self._connections.get(login, ()):
            return
        self._connections.setdefault(login, {})[connection] = surroundings
        connection.call_on_end(partial(self._remove, login, connection))
        self.changed()

    def replace_from_anywhere(self, login: Login, connection: Connection, surroundings: Surroundings) -> None:
        """Do what `replace()` does; called in any thread."""
        if threading.get_native_id() == self._thread:
            self.replace(login, connection, surroundings)
        else:
            self._loop.run_callback_threadsafe(self.replace, login, connection, surroundings)

    def replace(self, login: Login, connection: Connection, surroundings: Surroundings) -> None:
        """Watch `login` in place of the one for which this was called before."""
        if not connection.connected:
            return
        if login.expires <= time.time():
            connection.close(LOGGED_OUT, EXPIRED)
            return
        if connection in self._replaceable:
            self._remove_replaceable(connection)
        else:
            connection.call_on_end(partial(self._remove_replaceable, connection))
        expiry = None if login.expires == math.inf else Expiry(connection, login.expires)
        self._replaceable[connection] = login, expiry
        self._connections.setdefault(login, {})[connection] = surroundings
        self.changed()

    def _remove_replaceable(self, connection: Connection) -> None:
        login, expiry = self._replaceable.pop(connection)
        if expiry is not None:
            expiry.cancel()
        self._remove(login, connection)

    def _remove(self, login: Login, connection: Connection) -> None:
        of_login = self._connections.get(login)
        if of_login is None:  # another login has replaced it
            return
        of_login.pop(connection, None)
        if not of_login:
            del self._connections[login]
            self._faulty.discard(login)
        self.changed()

    def needed(self) -> bool:
        """See `Rounds`."""
        return bool(self._connections)

    def round(self) -> None:
        """Check all logins, and close the connections of those that have ended."""
        try:
            for logins in grouped(self._connections, lambda login: login.user[1:]).values():
                for begin in range(0, len(logins), BATCH):
                    self._check_batch(logins[begin : begin + BATCH])
        finally:
            for wrapper in connections.all(initialized_only=True):
                if not wrapper.in_atomic_block:  # that of a test, which has no others
                    wrapper.close()

    def _check_batch(self, logins: Sequence[Login]) -> None:
        """Check all in the surroundings of one of them, and those that seem to have ended again in their own."""
        faults: dict[Login, Exception] = {}
        table = logins[0].user[1:]
        try:
            ended = self._ended(logins, faults)
            raise_outage([faults.get(login) for login in logins if login in self._connections])
        except Exception as error:  # the project's databases may raise anything; the next round may succeed
            if table not in self._unanswered:
                report("logins", None, "they cannot be checked at present", repr(error), logging.ERROR)
            self._unanswered.add(table)
            return
        if table in self._unanswered:
            self._unanswered.remove(table)
            report("logins", None, "they can be checked again")
        if len(logins) > 1:
            ended = self._ended_for_themselves(ended, faults)
        # One line for all that have the same error, such as that of a backend's own database.
        for login, *others in grouped(faults.keys() - self._faulty, lambda login: repr(faults[login])).values():
            report(
                f"the login of user {login.user.key}" + (f" and {len(others)} more" if others else ""),
                None,
                "it cannot be checked, and its WebSockets stay open",
                repr(faults[login]),
                logging.ERROR,
            )
        self._faulty.difference_update(logins)
        self._faulty.update(faults.keys() & self._connections.keys())
        self._close(ended)

    def _ended(self, logins: Sequence[Login], faults: dict[Login, Exception]) -> set[Login]:
        """Return which of the logins do not hold in the surroundings of the first one that is still connected."""
        present = [login for login in logins if login in self._connections]
        if not present:
            return set()
        surroundings = next(iter(self._connections[present[0]].values()))
        return set(present) - surroundings.run(valid, present, faults) - faults.keys()

    def _ended_for_themselves(self, logins: Iterable[Login], faults: dict[Login, Exception]) -> set[Login]:
        """Return which of the logins do not hold in their own surroundings."""
        ended: set[Login] = set()
        for login in logins:
            try:
                ended |= self._ended([login], faults)
            except Exception as error:
                faults[login] = error
            let_others_run_if_spent()
        return ended

    def _close(self, logins: Iterable[Login]) -> None:
        now = time.time()
        for login in logins:
            reason = "logged out" if login.session_key or login.expires > now else EXPIRED
            for connection in tuple(self._connections.get(login, ())):
                connection.close(LOGGED_OUT, reason)
                let_others_run_if_spent()

    def users(self) -> dict[Connection, User]:
        """Return the user of each connection; that of a token rather than that of a session."""
        found: dict[Connection, User] = {}
        for login, of_login in tuple(self._connections.items()):
            for connection in of_login:
                if not login.session_key or connection not in found:
                    found[connection] = login.user
        return found

    def of_user(self, name: tuple[str, ...]) -> list[Connection]:
        """Return the connections of a user."""
        found = (each for login, found in self._connections.items() if login.user == name for each in found)
        return list(dict.fromkeys(found))  # a session and a token may be of one user

    def of_session(self, name: tuple[str, ...]) -> list[Connection]:
        """Return the connections of a session, of which an order has the hash."""
        found: list[Connection] = []
        for login, of_login in tuple(self._connections.items()):
            if login.session_key and hash_of_session(login.session_key) == name[0]:
                found += of_login
            let_others_run_if_spent()
        return found


def make_logins() -> Logins:
    """Return new logins for the running loop, which orders to disconnect can name from then on."""
    logins = Logins()
    orders().know(logins.users, user=logins.of_user, session=logins.of_session)
    return logins


logins_of_loop = PerLoop(make_logins).get


# --- whether logins hold ----------------------------------------------------------------------------------------------


def grouped(logins: Iterable[Login], key: Callable[[Login], K]) -> dict[K, list[Login]]:
    """Return the logins by their keys."""
    groups: dict[K, list[Login]] = {}
    for login in logins:
        groups.setdefault(key(login), []).append(login)
    return groups


def of_each(
    groups: Mapping[K, list[Login]],
    faults: dict[Login, Exception],
    holding: Callable[[K, list[Login]], Iterable[Login]],
) -> set[Login]:
    """Return what `holding` returns for each group; an error of the project's code concerns one group alone."""
    found: set[Login] = set()
    for key, logins in groups.items():
        try:
            found.update(holding(key, logins))
        except Exception as error:
            faults.update(dict.fromkeys(logins, error))
    return found


def raise_outage(errors: Sequence[Exception | None]) -> None:
    """Raise the first of the errors if a database failed for all logins: it is out, perhaps since the last query."""
    if errors and all(isinstance(error, OperationalError | InterfaceError) for error in errors):
        raise cast(Exception, errors[0])


def valid(logins: Sequence[Login], faults: dict[Login, Exception]) -> set[Login]:
    """Return those of `logins` that still hold, and add those to `faults` for which a backend raises an error."""
    of_session = [login for login in logins if login.session_key]
    others = [login for login in logins if not login.session_key]
    found = with_session(of_session, faults) & with_user(of_session, faults) if of_session else set()
    return found | without_session(others, faults)


def without_session(logins: Sequence[Login], faults: dict[Login, Exception]) -> set[Login]:
    """Return the logins that have not expired, and whose users exist and are active.

    A middleware knows them by a token, for example.
    """

    def active(label: str, of_model: list[Login]) -> Iterator[Login]:
        model = apps.get_model(label)
        users = fetch(model, model._base_manager, of_model, faults)
        return (login for login in of_model if getattr(users.get(login), "is_active", login in users))

    now = time.time()
    logins = [login for login in logins if login.expires > now]
    checked = [login for login in logins if login.checked]
    return {login for login in logins if not login.checked} | of_each(
        grouped(checked, lambda login: login.user.model), faults, active
    )


def with_session(logins: Sequence[Login], faults: dict[Login, Exception]) -> set[Login]:
    """Return the logins whose sessions exist and have not expired."""
    store = import_module(conf.current().session_engine).SessionStore
    keys = [login.session_key for login in logins]
    present: set[str]
    if issubclass(store, signed_cookies.SessionStore):  # the client keeps it, and nobody else can end it
        return {login for login in logins if login.expires > time.time()}
    if issubclass(store, (db.SessionStore, cached_db.SessionStore)):
        sessions = store.get_model_class().objects.filter(session_key__in=keys, expire_date__gt=timezone.now())
        present = set(sessions.values_list("session_key", flat=True))
    elif issubclass(store, cache.SessionStore):
        prefix = store.cache_key_prefix
        values = caches[conf.current().session_cache_alias].get_many([prefix + key for key in keys])
        present = {key.removeprefix(prefix) for key in values}
    else:
        return {login for login in logins if _holds(login, faults, lambda each: SESSION_KEY in store(each.session_key))}
    return {login for login in logins if login.session_key in present}


def with_user(logins: Sequence[Login], faults: dict[Login, Exception]) -> set[Login]:
    """Return the logins whose users may log in, and have not changed their password."""

    def allowed(path: str, of_backend: list[Login]) -> Iterator[Login]:
        backend = load_backend(path)
        users = users_of(backend, of_backend, faults)
        get_user = cache_results(backend.get_user)  # several sessions may be of one user
        return (login for login in of_backend if _holds(login, faults, partial(_has_user, backend, get_user, users)))

    return of_each(grouped(logins, lambda login: login.backend), faults, allowed)


def _holds(login: Login, faults: dict[Login, Exception], question: Callable[[Login], bool]) -> bool:
    """Ask about one login; an error of the project's code concerns this login alone."""
    try:
        return question(login)
    except Exception as error:
        faults[login] = error
        return False


def users_of(backend: Any, logins: Sequence[Login], faults: dict[Login, Exception]) -> Mapping[Login, Any] | None:
    """Return the users of the logins, fetched in one query; None if only `backend` knows how to fetch them."""
    if type(backend).get_user is not ModelBackend.get_user:
        return None
    model = get_user_model()
    return fetch(model, model._default_manager, logins, faults)


def fetch(
    model: type[Model], manager: Any, logins: Sequence[Login], faults: dict[Login, Exception]
) -> dict[Login, Any]:
    """Return the users that exist, with one query."""
    keys: dict[Login, Any] = {}
    for login in logins:
        try:
            keys[login] = model._meta.pk.to_python(login.user.key)
        except Exception as error:
            faults[login] = error
    found = manager.in_bulk(set(keys.values()))
    return {login: found[key] for login, key in keys.items() if key in found}


def _has_user(backend: Any, get_user: Callable[[str], Any], fetched: Mapping[Login, Any] | None, login: Login) -> bool:
    if fetched is None:
        user = get_user(login.user.key)
    else:
        user = fetched.get(login)
        if user is not None and not backend.user_can_authenticate(user):
            return False
    return user is not None and has_hash(user, login.auth_hash)


def has_hash(user: Any, auth_hash: str) -> bool:
    """Return whether `auth_hash`, a session's, is that of the user's present password."""
    if not hasattr(user, "get_session_auth_hash"):
        return True
    hashes = [user.get_session_auth_hash()]
    if hasattr(user, "get_session_auth_fallback_hash"):
        hashes += user.get_session_auth_fallback_hash()
    return any(constant_time_compare(auth_hash, each) for each in hashes)

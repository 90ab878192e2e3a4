"""Changing the session in a view long after its request has loaded it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.contrib.sessions.backends import signed_cookies
from django.contrib.sessions.backends.base import SessionBase, UpdateError
from django.http import HttpRequest

__all__ = ["update_session"]


@contextmanager
def update_session(request: HttpRequest) -> Iterator[SessionBase]:
    """Load the session again, let the block change it, and save it: what others have stored in it meanwhile stays.

        with update_session(request) as session:
            session["messages"] = session.get("messages", 0) + 1

    `request.session` is the new one afterwards. It is saved if it was changed and the block raises nothing. Raises
    `django.contrib.sessions.backends.base.UpdateError` if the session is gone, as after a logout, and RuntimeError if
    the client has no session, or keeps it in a cookie, which cannot be changed after the handshake.
    """
    key = request.session.session_key
    if key is None:
        raise RuntimeError(
            "The client has no session to update. Create it before the WebSocket is accepted, while the handshake can "
            "still set its cookie: request.session[...] = ..."
        )
    session = type(request.session)(key)
    if isinstance(session, signed_cookies.SessionStore):
        raise RuntimeError("Sessions that are kept in cookies can only be changed before the WebSocket is accepted.")
    session.keys()  # loads it
    if session.session_key != key:
        raise UpdateError("The session is gone: the user has logged out, or it has expired.")
    yield session
    if session.modified:
        session.save()
    request.session = session

"""The WebSocket that every page has: it brings the user's notifications, and tells who is on the site."""

from demo.people.people import person
from django_websocket.decorators import websocket

from .notify import channel_of

SITE = "site"


@websocket
def site(request, websocket):
    # The view returns at once. The connection stays open, and costs no greenlet.
    if request.user.is_authenticated:
        return websocket.listen(SITE, channel_of(request.user), present=person(request.user))
    return websocket.listen(SITE)

"""The view of the chat page: what the visitors write, who of them is here, and who is typing."""

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest

from django_websocket.decorators import websocket
from django_websocket.pubsub import publish
from django_websocket.websocket import WebSocket

CHANNEL = "CHAT"
NAME_LENGTH = 40  # characters
ID = re.compile(r"[0-9a-z-]{8,64}", re.IGNORECASE)
COLOR = re.compile(r"#[0-9a-f]{6}", re.IGNORECASE)


@websocket
def chat(request: HttpRequest, websocket: WebSocket) -> None:
    """Publish what the visitors write, and show each of them the others.

    The page says in the query, and later in messages as `{"present": {"name": "Ann", "typing": true}}`, how the visitor
    is shown. Everything else that it sends is published.
    """
    # Each tab makes up an id and keeps it. Everybody can see it, and could use it: with logins, take request.user.pk.
    wished = request.GET.get("id", "")
    visitor = wished if ID.fullmatch(wished) else secrets.token_hex(8)
    with websocket.subscribe(CHANNEL, present=described(visitor, request.GET)) as forwarding:
        for message in websocket:
            said = said_of_the_visitor(message)
            if said is None:
                publish(CHANNEL, message)
            else:
                forwarding.update_present(described(visitor, said))


def described(visitor: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all are told of a visitor, whatever the page has said."""
    name, color = said.get("name"), said.get("color")
    printable = "".join(filter(str.isprintable, name)) if isinstance(name, str) else ""
    return {
        "id": visitor,
        "name": " ".join(printable.split())[:NAME_LENGTH].strip() or "Guest",
        "color": color if isinstance(color, str) and COLOR.fullmatch(color) else "",
        "typing": said.get("typing") is True,
    }


def said_of_the_visitor(message: str | bytes) -> dict[str, Any] | None:
    """Return what a message of the page says of the visitor; None if the message is to be published."""
    try:
        said = json.loads(message)["present"] if isinstance(message, str) else None
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return said if isinstance(said, dict) else None

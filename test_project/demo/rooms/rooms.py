"""The rooms, and how something is said in one, by a WebSocket or any other code."""

from django.utils import timezone

from django_websocket.pubsub import publish

ROOMS = {"lobby": "Lobby", "kitchen": "Kitchen", "garden": "Garden"}  # a real site has a table


def channel_of(slug):
    return f"room:{slug}"


def say(slug, author, text, key=""):
    """Say something in a room. `key` is what the author's page knows the message by."""
    publish(channel_of(slug), {"author": author, "text": text, "key": key, "at": timezone.now()})

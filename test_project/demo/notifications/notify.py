"""Notifying a user, from any code of the site: a row in the database, and news for the user's open pages."""

import re

from django.contrib.auth import get_user_model

from demo.people.people import person
from django_websocket.pubsub import publish

MENTION = re.compile(r"@(\w+)")


def channel_of(user):
    return f"user:{user.pk}"


def notify(recipient, sender, text, url):
    """Tell a user something that another one has done."""
    notification = recipient.notifications.create(sender=sender, text=text[:200], url=url)
    publish(
        channel_of(recipient),
        {
            "id": notification.pk,
            "by": person(sender),
            "text": notification.text,
            "url": url,
            "unread": recipient.notifications.filter(read=False).count(),
        },
        on_commit=True,
    )


def mention(sender, text, url):
    """Notify each user whom a text mentions, as in "Good morning, @ben"."""
    names = {name.lower() for name in MENTION.findall(text)}
    if names:
        for user in get_user_model().objects.filter(username__in=names, is_active=True).exclude(pk=sender.pk):
            notify(user, sender, f"mentioned you: {text}", url)


def mark_as_read(user):
    """Mark all notifications of a user, and tell the user's open pages."""
    user.notifications.filter(read=False).update(read=True)
    publish(channel_of(user), {"unread": 0}, on_commit=True)

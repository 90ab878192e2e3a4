"""Channels' channel layer on the project's broker, for `CHANNEL_LAYERS`:

    CHANNEL_LAYERS = {"default": {"BACKEND": "django_websocket.channels.ChannelLayer"}}

Needs Channels itself: `pip install "django-gevent-websocket[channels]"`. The other modules of this folder are private.
"""

from .layer import ChannelLayer

__all__ = ["ChannelLayer"]

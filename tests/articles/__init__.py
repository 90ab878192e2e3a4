"""The code of three Chinese articles on Django Channels, and what has to be changed before it runs today.

Each folder has the blocks of code of one article, in files that hold them word for word, mistakes included:

- `consumers/`: "channels使用", for Channels 2: an echo, a chat in both styles, and the database
- `push/`: "django实现websocket实时数据推送", for Channels 3: messages from the server to its clients
- `heroku/`: "ASGI Proc 文件与 Heroku 上的 WebSocket", for Channels 3: pages and a chat from one process

`corrected()` applies `CORRECTIONS`. Each of them is needed: without it, tests/test_articles.py fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent


class Correction(NamedTuple):
    """A piece of a block, what replaces it, and why. In `new`, `{redis_port}` is the port of the test's Redis."""

    block: str
    old: str
    new: str
    why: str


CORRECTIONS = (
    Correction(
        "consumers/echo",
        "            'message': message\n",
        "            'message': message\n        }))\n",
        "The article breaks off before the end of the call.",
    ),
    Correction(
        "consumers/chat_routing",
        "from django.conf.urls import url\n",
        "from django.urls import re_path\n",
        "Django 4.0 removed url().",
    ),
    Correction("consumers/chat_routing", "    url(", "    re_path(", "Django 4.0 removed url()."),
    Correction(
        "consumers/chat_routing",
        "consumers.ChatConsumer)",
        "consumers.ChatConsumer.as_asgi())",
        "Since Channels 3 a route has an application, and no longer the class of a consumer.",
    ),
    Correction(
        "consumers/channel_layers",
        "('127.0.0.1', 6379)",
        "('127.0.0.1', {redis_port})",
        "The tests have a Redis of their own on a free port.",
    ),
    Correction(
        "consumers/database_by_call",
        "from channels.db import database_sync_to_async\n",
        "from channels.db import database_sync_to_async\nfrom django.contrib.auth.models import User\n",
        "The article uses User without its import.",
    ),
    Correction(
        "consumers/database_by_call", "[0].name", "[0].username", "A user of Django has a username, and no name."
    ),
    Correction(
        "consumers/database_by_decorator",
        "from channels.db import database_sync_to_async\n",
        "from channels.db import database_sync_to_async\nfrom django.contrib.auth.models import User\n",
        "The article uses User without its import.",
    ),
    Correction(
        "consumers/database_by_decorator", "[0].name", "[0].username", "A user of Django has a username, and no name."
    ),
    Correction(
        "push/consumers",
        "from channels.generic.websocket import AsyncWebsocketConsumer\n",
        "import json\n\nfrom channels.generic.websocket import AsyncWebsocketConsumer\n",
        "The article uses json without its import.",
    ),
    Correction(
        "push/send_message",
        "class SendMessage:\n",
        "from channels.layers import get_channel_layer\n\n\nclass SendMessage:\n",
        "The article uses get_channel_layer without its import.",
    ),
    Correction(
        "push/deployment",
        "daphne -b 0.0.0.0 -p 8010 --proxy-headers ",
        "gunicorn -k django_websocket.worker.GeventWebSocketWorker -b 0.0.0.0:8010 ",
        "This package's server takes the place of daphne.",
    ),
    Correction(
        "heroku/procfile",
        "daphne myproject.asgi:application --port $PORT --bind 0.0.0.0 -v2",
        "gunicorn -k django_websocket.worker.GeventWebSocketWorker --bind 0.0.0.0:$PORT myproject.asgi:application",
        "This package's server takes the place of daphne.",
    ),
)


def corrected(block: str, redis_port: int = 0) -> str:
    """Return a block, such as "push/asgi", with its corrections, each of which must fit in exactly one place."""
    code = (FOLDER / f"{block}.txt").read_text(encoding="utf-8")
    for correction in CORRECTIONS:
        if correction.block == block:
            assert code.count(correction.old) == 1, correction
            code = code.replace(correction.old, correction.new.replace("{redis_port}", str(redis_port)))
    return code

"""Makes the broker that `WEBSOCKET_BROKER` asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl

from .broker import Broker
from .entries import keeps
from .roster import keeps_rosters

SCHEMES = {
    "memory": "django_websocket.pubsub.memory.MemoryBroker",
    "redis": "django_websocket.pubsub.redis.RedisBroker",
    "rediss": "django_websocket.pubsub.redis.RedisBroker",
    "unix": "django_websocket.pubsub.redis.RedisBroker",
    "redis+sentinel": "django_websocket.pubsub.sentinel.SentinelBroker",
    "rediss+sentinel": "django_websocket.pubsub.sentinel.SentinelBroker",
    "redis+cluster": "django_websocket.pubsub.cluster.ClusterBroker",
    "rediss+cluster": "django_websocket.pubsub.cluster.ClusterBroker",
}
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://[^/?#]*([^?#]*)(?:\?([^#]*))?")


def import_for(setting: str | Mapping[str, Any]) -> None:
    """Import what the broker for a value of `WEBSOCKET_BROKER` needs. Raises ValueError or ImportError."""
    options = _options(setting)
    if "encryption_keys" in options:
        from . import encryption  # noqa: F401
    _class(options)


def broker_from(setting: str | Mapping[str, Any]) -> Broker:
    """Return the broker for a value of `WEBSOCKET_BROKER`: a URL, or a dict of options.

    Raises ValueError with a text that names the mistake and, for an unknown name, lists the known ones. The text never
    repeats anything that could be a password.
    """
    options = _options(setting)
    kind = _class(options)
    encrypted = "encryption_keys" in options
    keys = options.pop("encryption_keys", None)
    names = ["url", *getattr(kind, "OPTIONS", ())]
    unknown = [name for name in options if name not in names]
    if unknown:
        known = ", ".join(["class", "encryption_keys", *names])
        raise ValueError(
            f"WEBSOCKET_BROKER has the unknown option {unknown[0]!r}. The options of its broker are {known}."
        )
    broker: Broker = kind(**options)
    if not encrypted:
        return broker
    try:
        from .encryption import EncryptedBroker, EncryptedKeepingBroker, EncryptedPresenceBroker
    except ModuleNotFoundError as error:
        raise ValueError(
            "WEBSOCKET_BROKER has encryption_keys, which need the library cryptography: "
            'pip install "django-gevent-websocket[encryption]"'
        ) from error
    if keeps(broker) and keeps_rosters(broker):
        return EncryptedPresenceBroker(broker, keys)
    return EncryptedKeepingBroker(broker, keys) if keeps(broker) else EncryptedBroker(broker, keys)


def _options(setting: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"url": setting} if isinstance(setting, str) else dict(setting)


def _class(options: dict[str, Any]) -> Any:
    """Return the broker's class. Removes `class` from the options, and adds the parameters in the URL's query."""
    path = options.pop("class", None)
    known = ", ".join(f"{name}://" for name in SCHEMES)
    if "url" in options:
        url = options["url"]
        match = URL.fullmatch(url) if isinstance(url, str) else None
        if match is None or "@" in f"{match[2]}{match[3]}":  # what precedes the @ may be part of a password
            raise ValueError(
                f"WEBSOCKET_BROKER must be a URL such as redis://:password@localhost:6379/0, or a dict with one as its "
                f"url; the brokers are {known}. Percent-encode each of / ? # @ % in a password, or give the "
                f"password in a dict, as the option password."
            )
        options["url"] = url.partition("?")[0]
        options.update({**dict(parse_qsl(match[3] or "", keep_blank_values=True)), **options})
        if path is None:
            path = SCHEMES.get(match[1].lower())
            if path is None:
                raise ValueError(
                    f"WEBSOCKET_BROKER is a URL that begins with {match[1]}://, but the brokers are {known}"
                )
    if path is None:
        raise ValueError(f"WEBSOCKET_BROKER is a dict without a url: add one that names one of the brokers {known}")
    try:
        return _named(str(path))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"The class of WEBSOCKET_BROKER, {path}, cannot be imported: {error}") from error


@lru_cache(maxsize=16)  # in Python 3.10, import_module() waits for a lock even if the module is there
def _named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)

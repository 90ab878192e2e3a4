"""The `CONFIG` of `CHANNEL_LAYERS` as other backends have it: what has the same meaning here, and what has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured

from django_websocket.pubsub.factory import broker_from
from django_websocket.pubsub.process import current_settings

INSTEAD = "Remove this from CHANNEL_LAYERS, and name the Redis in the setting WEBSOCKET_BROKER: {}"
FORM = 'WEBSOCKET_BROKER = "redis://localhost:6379/0"'
SENTINEL = 'WEBSOCKET_BROKER = "redis+sentinel://host:26379,host:26379/master/0"'
CLUSTER = 'WEBSOCKET_BROKER = "redis+cluster://host:6379,host:6379"'
IGNORED = ("group_expiry", "on_connect", "on_disconnect")  # groups do not expire here, and the broker's log tells
# Of redis-py's clients: the broker has fixed times, checks its connections, and has as many as it needs.
IGNORED_OF_HOSTS = (
    "health_check_interval",
    "max_connections",
    "retry",
    "retry_on_error",
    "retry_on_timeout",
    "single_connection_client",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_timeout",
    "timeout",
)


class OwnBroker(NamedTuple):
    """A broker for the channel layer alone."""

    broker: str | Mapping[str, Any]
    broker_key: str


def own_broker(hosts: Iterable[Any] | None, keys: Iterable[Any] | None, unknown: Mapping[str, Any]) -> OwnBroker | None:
    """Return the broker that options of `CONFIG` name; None for the project's. Raises ImproperlyConfigured."""
    for name in unknown:
        if name not in IGNORED:
            raise ImproperlyConfigured(
                f"CHANNEL_LAYERS has the option {name!r} in CONFIG, which django_websocket.channels.ChannelLayer does "
                f"not have. " + INSTEAD.format(FORM)
            )
    if hosts is None and keys is None:
        return None
    named: Any = current_settings().broker if hosts is None else one_of(list(hosts))
    options: dict[str, Any] = {"url": named} if isinstance(named, str) else dict(named)
    if keys is not None:
        options["encryption_keys"] = [key.decode() if isinstance(key, bytes) else key for key in keys]
    try:
        broker_from(options)  # connects when it is used
    except ValueError as error:
        raise ImproperlyConfigured(
            f"The hosts and symmetric_encryption_keys of CHANNEL_LAYERS are used like {FORM} and its option "
            f"encryption_keys, and cannot be: {error}"
        ) from None
    return OwnBroker(options, repr(options))


def one_of(hosts: list[Any]) -> str | Mapping[str, Any]:
    """Return the broker that the only one of `hosts` names, as a value of `WEBSOCKET_BROKER`."""
    if len(hosts) != 1:
        raise ImproperlyConfigured(
            f"CHANNEL_LAYERS has {len(hosts)} hosts. channels_redis would divide the channels among them; this channel "
            f"layer has one broker. " + INSTEAD.format(f"{FORM}, or {CLUSTER}")
        )
    host = hosts[0]
    if isinstance(host, str):
        address, _, query = host.partition("?")
        kept = [part for part in query.split("&") if part and part.partition("=")[0] not in IGNORED_OF_HOSTS]
        return "?".join(filter(None, (address, "&".join(kept))))
    if isinstance(host, (list, tuple)) and len(host) == 2:
        return f"redis://{host[0]}:{host[1]}/0"
    if isinstance(host, Mapping) and "sentinels" in host:
        raise ImproperlyConfigured("CHANNEL_LAYERS has sentinels among its hosts. " + INSTEAD.format(SENTINEL))
    if isinstance(host, Mapping) and ("address" in host or "host" in host):
        options = {name: value for name, value in host.items() if name not in IGNORED_OF_HOSTS}
        named = options.pop("address", None) or (options.pop("host"), options.pop("port", 6379))
        return {"url": one_of([named]), **options}
    raise ImproperlyConfigured("CHANNEL_LAYERS has a host in an unknown form. " + INSTEAD.format(FORM))

"""The names of channels: which ones a project may use."""

from __future__ import annotations

from collections.abc import Sequence

RESERVED = "django_websocket."  # begins the names of the channels on which processes of this package talk


def check_channels(channels: Sequence[str]) -> None:
    """Raise TypeError or ValueError unless there is at least one name, and each may be used."""
    if not channels:
        raise TypeError("Name at least one channel to subscribe to")
    for channel in channels:
        check_channel(channel)


def check_channel(channel: str) -> None:
    """Raise TypeError or ValueError for a name that the project may not use."""
    if not isinstance(channel, str) or not channel:
        raise TypeError(f"The name of a channel must be a str that is not empty, not {channel!r}")
    if channel.startswith(RESERVED):
        raise ValueError(
            f"The channel {channel!r} is reserved: names that begin with {RESERVED!r} belong to the package itself. "
            f"Choose another name, and put a prefix of your own before names that clients choose."
        )
    channel.encode()  # raises UnicodeEncodeError, a ValueError, for a name that no broker could carry

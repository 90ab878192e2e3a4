"""Messages on their way to clients: decoded once, and encoded once for all clients that agreed on the same."""

from __future__ import annotations

from collections.abc import Sequence

from django_websocket.protocol.deflate import Agreement, encode_compressed
from django_websocket.protocol.frames import encode_message
from django_websocket.transport.log import report
from django_websocket.transport.shared import shared_of_loop

from .broker import from_wire

Variant = tuple[int, int] | None  # of compression: window bits and threshold; None is without

_variants: dict[tuple[int, int], tuple[int, int]] = {}


class Publication:
    """Messages of one channel that arrived together; decoded once, and encoded once for all receivers of a kind."""

    def __init__(self, channel: str, payloads: Sequence[bytes]) -> None:
        self.messages: list[str | bytes] = []
        for payload in payloads:
            try:
                self.messages.append(from_wire(payload))
            except UnicodeDecodeError:
                report(
                    f"Channel {channel}",
                    None,
                    "a message was dropped that is neither UTF-8 nor marked as binary by a first byte FF",
                )
        self.channel = channel
        self._single: dict[Variant, list[bytes]] = {}
        self._frames: dict[Variant, bytes] = {}

    def frames(self, variant: Variant) -> bytes:
        """Return all messages as one piece for clients of this `variant`, encoded once for all of them."""
        frames = self._frames.get(variant)
        if frames is None:
            frames = self._frames[variant] = b"".join(self.single_frames(variant))
        return frames

    def single_frames(self, variant: Variant) -> list[bytes]:
        """Return the frame of each message for clients of this `variant`."""
        frames = self._single.get(variant)
        if frames is None:
            if variant is None:
                frames = list(map(encode_message, self.messages))
            else:
                allowance = shared_of_loop().encoder.allowance
                frames = [encode_compressed(message, *variant, allowance) for message in self.messages]
            self._single[variant] = frames
        return frames


def variant_for(agreement: Agreement | None) -> Variant:
    """Return how a client's frames are encoded: the same object for all clients with an equal agreement."""
    return None if agreement is None else _variants.setdefault(v := (agreement.window_bits, agreement.threshold), v)

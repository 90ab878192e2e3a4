"""Frames for a client that the kernel does not take yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

WRITE_SIZE = 64 * 1024  # bytes; small frames are joined up to it

Source = Callable[[], bytes]


class Tail:
    """Frames of what a client has missed, and those that were pushed behind them: in the outbox a few at a time.

    Only those behind the past count against the limit.
    """

    __slots__ = ("_frames", "_size")

    def __init__(self) -> None:
        self._frames: deque[tuple[bytes, int]] = deque()  # with the bytes that count
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    def extend(self, frames: Sequence[bytes]) -> None:
        """Put frames of the past behind the others."""
        self._frames.extend((frame, 0) for frame in frames)

    def append(self, frames: bytes) -> int:
        """Put frames that were pushed behind the others; return how many bytes of those there are."""
        self._frames.append((frames, len(frames)))
        self._size += len(frames)
        return self._size

    def take(self, most: int) -> bytes:
        """Take what leaves next, joined: not much more than `most` bytes."""
        found = []
        size = 0
        while self._frames and size < most:
            frame, counted = self._frames.popleft()
            self._size -= counted
            found.append(frame)
            size += len(frame)
        return b"".join(found)


class Outbox:
    """Frames in the order in which they will leave, and sources of more for when there are none.

    `size` is how many bytes of frames it holds, `taken` how many bytes the kernel has taken from it. Only the first
    frame may have left in part.
    """

    __slots__ = ("_frames", "_pong_last", "_sources", "size", "taken")

    def __init__(self) -> None:
        self._frames: deque[bytes | memoryview] = deque()
        self._sources: dict[Source, None] = {}  # an ordered set
        self._pong_last = False  # whether the last frame is a pong that has not begun to leave
        self.size = 0
        self.taken = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    def append(self, frame: bytes) -> None:
        """Put a frame behind the others."""
        self._pong_last = False
        self._frames.append(frame)
        self.size += len(frame)

    def append_pong(self, frame: bytes) -> None:
        """Put a pong behind the others, or replace the last frame if it is a pong (RFC 6455, section 5.5.3)."""
        if self._pong_last:
            self.size -= len(self._frames.pop())
        self.append(frame)
        self._pong_last = True

    def put_back(self, data: bytes | memoryview, taken: int) -> None:
        """Put `data` in front, without the first `taken` bytes, which the kernel has."""
        rest = memoryview(data)[taken:] if taken else data
        self._frames.appendleft(rest)
        self.size += len(rest)

    def take(self) -> bytes | memoryview:
        """Take what leaves next; small frames are joined."""
        frames = self._frames
        data = frames.popleft()
        size = len(data)
        if frames and size < WRITE_SIZE:
            parts = [data]
            while frames and size < WRITE_SIZE:
                part = frames.popleft()
                parts.append(part)
                size += len(part)
            data = b"".join(parts)
        self.size -= size
        if not frames:
            self._pong_last = False
        return data

    def withdraw(self, frames: Sequence[bytes]) -> int:
        """Take back those of `frames` that have not begun to leave; they were put here last, as one.

        Returns how many have left, the last one perhaps in part.
        """
        last = self._frames.pop()
        rest = len(last)
        begun = len(frames)
        while begun and len(frames[begun - 1]) <= rest:
            begun -= 1
            rest -= len(frames[begun])
        if rest:
            self._frames.append(last[:rest])
        self.size -= len(last) - rest
        return begun

    def add_source(self, source: Source) -> None:
        """Call `source` each time there are no frames, until it returns nothing; it returns frames, joined."""
        self._sources.setdefault(source)

    def refill(self) -> bool:
        """Append what one of the sources has next; return whether there was anything."""
        sources = self._sources
        while sources:
            source = next(iter(sources))
            del sources[source]
            frames = source()
            if frames:
                sources[source] = None  # now behind the other sources
                self.append(frames)
                return True
        return False

    def keep_begun(self) -> None:
        """Drop everything but the first frame, which may have left in part."""
        begun = self._frames.popleft() if self._frames else None
        self.clear()
        if begun is not None:
            self._frames.append(begun)
            self.size = len(begun)

    def clear(self) -> None:
        """Drop everything."""
        self._frames.clear()
        self._sources.clear()
        self._pong_last = False
        self.size = 0

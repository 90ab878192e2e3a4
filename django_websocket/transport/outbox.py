"""What a client is sent and the kernel does not take yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

WRITE_SIZE = 64 * 1024  # bytes; small frames are joined up to it

Source = Callable[[], bytes]


class Outbox:
    """Frames in the order in which they are to leave, and sources of more for when it is empty.

    `size` is how many bytes of frames it holds, `taken` how many the kernel has taken of them so far. Only the first
    frame may have left in part.
    """

    __slots__ = ("_frames", "_pong_last", "_sources", "size", "taken")

    def __init__(self) -> None:
        self._frames: deque[bytes | memoryview] = deque()
        self._sources: dict[Source, None] = {}  # an ordered set
        self._pong_last = False  # whether the last frame is a pong, of which nothing has left
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
        """Put a pong behind the others, in the place of one that is the last: the newest is enough (section 5.5.3)."""
        if self._pong_last:
            self.size -= len(self._frames.pop())
        self.append(frame)
        self._pong_last = True

    def put_back(self, data: bytes | memoryview, taken: int) -> None:
        """Put `data` in front again, or for the first time, without the bytes that the kernel has taken."""
        rest = memoryview(data)[taken:] if taken else data
        self._frames.appendleft(rest)
        self.size += len(rest)

    def take(self) -> bytes | memoryview:
        """Take what is to leave next, several small frames as one."""
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
        """Take back those of `frames`, the last that were put here as one, of which nothing has left.

        Returns how many have left, if only in part.
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
        """Have `source` called each time this is empty, for frames as one, until it returns nothing."""
        self._sources.setdefault(source)

    def refill(self) -> bool:
        """Append what is next of one of the sources; return whether there was anything."""
        sources = self._sources
        while sources:
            source = next(iter(sources))
            del sources[source]
            frames = source()
            if frames:
                sources[source] = None  # behind the others
                self.append(frames)
                return True
        return False

    def keep_begun(self) -> None:
        """Drop everything except what may have left in part."""
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

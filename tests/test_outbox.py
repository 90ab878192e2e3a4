"""The outbox of frames that the kernel has not taken yet: their order, and which are joined, dropped or replaced."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from django_websocket.transport.outbox import WRITE_SIZE, Outbox


def outbox(*frames: bytes) -> Outbox:
    made = Outbox()
    for frame in frames:
        made.append(frame)
    return made


def rest(box: Outbox) -> list[bytes]:
    """Take everything that is left."""
    taken = []
    while box or box.refill():
        taken.append(bytes(box.take()))
    assert box.size == 0
    return taken


def source(*frames: bytes) -> Callable[[], bytes]:
    left = [*frames]
    return lambda: left.pop(0) if left else b""


def test_an_empty_outbox_is_false_and_has_no_size() -> None:
    box = Outbox()
    assert not box
    box.append(b"frame")
    assert box
    assert box.size == 5


def test_small_frames_leave_as_one_and_a_large_one_alone() -> None:
    large = bytes(WRITE_SIZE)
    assert rest(outbox(b"a", b"b", b"c")) == [b"abc"]
    assert rest(outbox(large, b"a", b"b")) == [large, b"ab"]
    assert rest(outbox(b"a", large, b"b")) == [b"a" + large, b"b"]


def test_the_rest_of_a_partial_write_stays_in_front() -> None:
    box = outbox(b"first", b"second")
    data = box.take()
    box.append(b"third")
    box.put_back(data, 3)
    assert box.size == len("stsecondthird")
    assert rest(box) == [b"stsecondthird"]


def test_a_pong_replaces_an_unsent_pong_at_the_end() -> None:
    box = outbox(b"frame,")
    for pong in (b"one,", b"two,"):
        box.append_pong(pong)
    box.append(b"another,")
    box.append_pong(b"three")
    assert box.size == len("frame,two,another,three")
    assert rest(box) == [b"frame,two,another,three"]


def test_a_partly_sent_pong_is_kept() -> None:
    box = outbox()
    box.append_pong(b"one,")
    data = box.take()
    box.put_back(data, 1)
    box.append_pong(b"two")
    assert rest(box) == [b"ne,two"]


@pytest.mark.parametrize(
    ("taken", "begun", "left"), [(0, 0, b""), (1, 1, b"a"), (2, 1, b""), (3, 2, b"b"), (5, 3, b"c")]
)
def test_only_frames_that_have_not_begun_are_withdrawn(taken: int, begun: int, left: bytes) -> None:
    frames = [b"aa", b"bb", b"cc"]
    box = outbox()
    box.put_back(b"".join(frames), taken)
    assert box.withdraw(frames) == begun
    assert b"".join(rest(box)) == left


def test_sources_are_asked_in_turn_until_they_have_nothing() -> None:
    box = outbox(b"first")
    both = source(b"a1", b"a2", b"a3"), source(b"b1")
    for each in (*both, both[0]):
        box.add_source(each)
    assert rest(box) == [b"first", b"a1", b"b1", b"a2", b"a3"]
    assert not box.refill()


def test_dropping_keeps_a_frame_that_has_begun() -> None:
    box = outbox(b"first", b"second")
    box.add_source(source(b"third"))
    box.keep_begun()
    assert box.size == 5
    assert rest(box) == [b"first"]
    box.keep_begun()
    assert rest(box) == []


def test_a_cleared_outbox_is_empty() -> None:
    box = outbox(b"frame")
    box.append_pong(b"pong")
    box.add_source(source(b"more"))
    box.clear()
    assert rest(box) == []
    box.append_pong(b"another")
    assert rest(box) == [b"another"]

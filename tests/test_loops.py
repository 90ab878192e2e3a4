"""What each event loop has one of."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
from gevent.hub import get_hub

from django_websocket.transport.loops import PerLoop


class Thing:
    """Something of which a loop needs one."""


@pytest.fixture
def things() -> PerLoop[Thing]:
    return PerLoop(Thing)


def in_another_loop(things: PerLoop[Thing]) -> Thing:
    """What a thread with a loop of its own gets; the loop is gone afterwards."""

    def get() -> Thing:
        try:
            assert things.get() is things.get()
            return things.get()
        finally:
            get_hub().destroy(destroy_loop=True)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(get).result()


def test_a_loop_always_gets_the_same_object_and_another_loop_its_own(things: PerLoop[Thing]) -> None:
    assert things.get() is things.get()
    assert in_another_loop(things) is not things.get()


def test_the_object_of_a_loop_goes_with_its_hub(things: PerLoop[Thing]) -> None:
    in_another_loop(things)
    gc.collect()
    assert not things


def test_it_is_true_once_a_loop_has_an_object(things: PerLoop[Thing]) -> None:
    assert not things
    things.get()
    assert things


def test_cleared_objects_are_returned_by_hub_and_made_anew(things: PerLoop[Thing]) -> None:
    old = things.get()
    assert things.clear() == {get_hub(): old}
    assert not things
    assert things.get() is not old

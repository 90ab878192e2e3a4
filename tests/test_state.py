"""The states of a connection, from the handshake to the end of its socket."""

from __future__ import annotations

import pytest

from django_websocket.transport.deadlines import TICK, sweep_of_loop
from django_websocket.transport.limits import Limits
from django_websocket.transport.state import ANSWERING, CLOSED, CLOSING, FOLLOWING, OPEN, State

from .support.frames import CONTINUATION, close_frame, frame
from .support.waiting import until
from .support.wire import Pairs


def test_every_state_is_followed_by_later_ones_only() -> None:
    order = list(State)
    assert {*FOLLOWING} == {*order}
    for state, following in FOLLOWING.items():
        assert following <= {*order[order.index(state) + 1 :]}
        assert state is CLOSED or CLOSED in following, "a client may vanish at any time"


def test_a_connection_closes_when_both_ends_have_said_so(pairs: Pairs) -> None:
    connection, peer = pairs()
    assert connection.state is OPEN and connection.connected and not connection.at_end
    connection.close()
    assert connection.state is CLOSING and connection.connected and connection.at_end
    peer.close_frame(1000)
    until(lambda: connection.state is CLOSED)
    assert not connection.connected and connection.at_end


@pytest.mark.parametrize(
    ("end", "code"),
    [(close_frame(1000), 1000), (frame("continues nothing", CONTINUATION), 1002)],
    ids=["closes", "errs"],
)
def test_the_view_may_answer_what_came_before_the_client_ended(pairs: Pairs, end: bytes, code: int) -> None:
    connection, peer = pairs(limits=Limits(close_timeout=4 * TICK))
    peer.write(frame("question") + end)
    until(lambda: connection.state is ANSWERING)
    assert not connection.at_end
    assert connection.receive() == "question"
    connection.send("answer")
    assert connection.state is ANSWERING and connection.at_end
    assert connection.receive() is None
    assert connection.state is not ANSWERING
    answer, last = peer.until_end()
    assert (answer.payload, last.close[0]) == (b"answer", code)
    until(lambda: connection.state is CLOSED)


def test_a_view_that_answers_nothing_is_waited_for_until_the_close_timeout(pairs: Pairs) -> None:
    connection, peer = pairs(limits=Limits(close_timeout=2 * TICK))
    sweep = sweep_of_loop()
    begin = sweep.now
    peer.write(frame("question") + close_frame(1000))
    until(lambda: connection.state is CLOSED)
    assert sweep.now - begin > 2  # in ticks, for the first of them may come soon
    assert peer.until_end()[-1].close[0] == 1000


@pytest.mark.parametrize("state", [OPEN, ANSWERING, CLOSING], ids=lambda state: state.value)
def test_a_client_may_vanish_in_any_state(pairs: Pairs, state: State) -> None:
    connection, peer = pairs()
    if state is ANSWERING:
        peer.write(frame("question") + close_frame(1000))
    elif state is CLOSING:
        connection.close()
    until(lambda: connection.state is state)
    peer.abort()
    if state is ANSWERING:  # the socket is looked at again when it is written to
        connection.send("answer")
        connection.receive()
        connection.receive()
    until(lambda: connection.state is CLOSED)

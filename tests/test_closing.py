"""The end of a connection at any moment: by a close frame of either side or both, by a half-close, or by a reset.

Each time `close_code` and the frame on the wire must be right, and nothing may be left behind (`Pairs` checks that).
Sections are those of RFC 6455.
"""

from __future__ import annotations

import select
from collections.abc import Callable

import gevent
import pytest

from django_websocket.exceptions import ConnectionClosed
from django_websocket.transport.connection import Connection
from django_websocket.transport.limits import Limits
from django_websocket.transport.shared import open_connections

from .support.frames import CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, close, close_frame, frame, text
from .support.waiting import until
from .support.wire import Pairs, Peer, tcp_pair

MAY_BE_SENT = [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999]
MAY_NOT_BE_SENT = [0, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2000, 2999, 5000, 65535]


def consumed(connection: Connection) -> bool:
    """Whether the kernel holds no input, or the connection no longer reads."""
    if not connection.connected or not connection._reader.active:
        return True
    poll = select.poll()
    poll.register(connection._sock, select.POLLIN)
    return not poll.poll(0)


def settle(connection: Connection) -> None:
    until(lambda: consumed(connection))
    gevent.sleep(0)


def drain(connection: Connection) -> None:
    """Receive to the end; a view may be receiving as well."""
    until(lambda: connection.at_end or connection.inbox and connection.receive() is None)
    assert connection.receive() is None


# --- the moments ------------------------------------------------------------------------------------------------

# Each function brings a connection to such a moment, and returns the rest of a frame that the client has begun.


def idle(connection: Connection, peer: Peer) -> bytes:
    return b""


def received(connection: Connection, peer: Peer) -> bytes:
    gevent.spawn(lambda: [*iter(connection.receive, None)])
    gevent.sleep(0)
    return b""


def in_a_frame(connection: Connection, peer: Peer) -> bytes:
    whole = frame("half a frame")
    peer.write(whole[:9])
    return whole[9:]


def in_a_header(connection: Connection, peer: Peer) -> bytes:
    whole = frame("x" * 200)
    peer.write(whole[:3])
    return whole[3:]


def in_a_message(connection: Connection, peer: Peer) -> bytes:
    peer.write(frame(b"half a message", TEXT, fin=False))
    return b""


def in_a_ping(connection: Connection, peer: Peer) -> bytes:
    whole = frame(b"half", PING)
    peer.write(whole[:8])
    return whole[8:]


def message_waiting(connection: Connection, peer: Peer) -> bytes:
    peer.text("waits")
    until(lambda: connection.inbox)
    return b""


def inbox_full(connection: Connection, peer: Peer) -> bytes:
    peer.text("a", "b", "c", "d")
    until(lambda: connection._engine.paused)
    return b""


def answer_queued(connection: Connection, peer: Peer) -> bytes:
    peer.text("a", "b")
    until(lambda: connection.inbox)
    connection.receive()
    connection.send("answer")
    return b""


def sending(connection: Connection, peer: Peer) -> bytes:
    def view() -> None:
        with pytest.raises(ConnectionClosed):
            while True:
                connection.send("x" * 1_000_000)

    gevent.spawn(view)
    until(lambda: connection._drained is not None)
    return b""


Moment = Callable[[Connection, Peer], bytes]
LIMITS = Limits(inbox_messages=2, send_buffer_size=1000)
MOMENTS = [
    idle,
    received,
    in_a_frame,
    in_a_header,
    in_a_message,
    in_a_ping,
    message_waiting,
    inbox_full,
    answer_queued,
    sending,
]
any_moment = pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)


def begin(pairs: Pairs, moment: Moment) -> tuple[Connection, Peer, bytes]:
    connection, peer = pairs(sockets=tcp_pair, narrow=moment is sending, limits=LIMITS)
    unfinished = moment(connection, peer)
    settle(connection)
    return connection, peer, unfinished


def close_frames(peer: Peer) -> list[Frame]:
    """Return the server's close frames, and check that nothing follows the first."""
    at = next((at for at, frame in enumerate(peer.frames) if frame.opcode == CLOSE), len(peer.frames))
    return peer.frames[at:]


# --- closing ----------------------------------------------------------------------------------------------------


@any_moment
def test_the_server_closes_at_any_moment(pairs: Pairs, moment: Moment) -> None:  # sections 5.5.1 and 7.1.2
    connection, peer, unfinished = begin(pairs, moment)
    connection.close(4000, "enough")
    assert connection.at_end
    until(lambda: peer.pump() and close_frames(peer) or close_frames(peer))
    assert connection.connected  # the client has not closed
    peer.write(unfinished + close_frame(4000))
    peer.until_end()
    assert close_frames(peer) == [close(4000, "enough")]
    assert not peer.reset
    until(lambda: not connection.connected)
    assert (connection.close_code, connection.close_reason) == (4000, "enough")


@any_moment
def test_the_client_closes_at_any_moment(pairs: Pairs, moment: Moment) -> None:  # sections 5.5.1, 7.1.5 and 7.1.6
    connection, peer, unfinished = begin(pairs, moment)
    peer.write(unfinished + close_frame(3001, "leaving"))
    drain(connection)
    peer.until_end()
    assert close_frames(peer) == [close(3001, "leaving")]
    assert not peer.reset
    until(lambda: not connection.connected)
    assert (connection.close_code, connection.close_reason) == (3001, "leaving")


@any_moment
def test_both_close_at_once_at_any_moment(pairs: Pairs, moment: Moment) -> None:  # section 7.1.5
    """Each side sends its close frame before it sees the other's, and neither sends a second one."""
    connection, peer, unfinished = begin(pairs, moment)
    peer.write(unfinished + close_frame(3001, "leaving"))
    connection.close(4000, "enough")
    peer.until_end()
    assert close_frames(peer) == [close(4000, "enough")]
    assert not peer.reset
    until(lambda: not connection.connected)
    assert (connection.close_code, connection.close_reason) == (4000, "enough")


@any_moment
def test_the_client_half_closes_at_any_moment(pairs: Pairs, moment: Moment) -> None:  # sections 7.1.4 and 7.1.5
    for closing in (False, True):
        connection, peer, _ = begin(pairs, moment)
        if closing:
            connection.close(4000, "enough")
        peer.half_close()
        drain(connection)
        peer.until_end()
        until(lambda connection=connection: not connection.connected)  # type: ignore[misc]
        assert (connection.close_code, connection.close_reason) == ((4000, "enough") if closing else (1006, ""))
        # There is none if the kernel had not taken it before.
        assert close_frames(peer) in ([], [close(4000, "enough")] * closing)


@any_moment
def test_the_client_resets_at_any_moment(pairs: Pairs, moment: Moment) -> None:  # sections 7.1.4 and 7.1.5
    for closing, code in ((None, 1006), ("server", 4000), ("client", 3001)):
        connection, peer, unfinished = begin(pairs, moment)
        open_connections().discard(connection)  # so that no deadline helps
        if closing == "server":
            connection.close(4000)
        elif closing == "client":
            peer.write(unfinished + close_frame(3001))
            settle(connection)
        peer.abort()
        drain(connection)
        until(lambda connection=connection: not connection.connected)  # type: ignore[misc]
        assert connection.close_code == code
        with pytest.raises(ConnectionClosed):
            connection.send("nobody")


# --- at any byte ------------------------------------------------------------------------------------------------


def conversation() -> tuple[bytes, bytes]:
    """Return what a client may send before its close frame, and the close frame."""
    stream = frame("text") + frame(b"?", PING) + frame(b"be", fin=False)
    return stream + frame(b"gun", CONTINUATION), close_frame(3001, "bye")


@pytest.mark.parametrize("how", [Peer.half_close, Peer.abort], ids=["half-close", "reset"])
def test_the_client_ends_after_any_byte(
    pairs: Pairs, how: Callable[[Peer], None]
) -> None:  # section 7.1.5: 1006, unless its close frame has come
    stream, last = conversation()
    for cut in range(len(stream + last) + 1):
        connection, peer = pairs(sockets=tcp_pair)
        peer.write((stream + last)[:cut])
        settle(connection)
        how(peer)
        messages = list(iter(connection.receive, None))
        assert messages == ["text", b"begun"][: (cut >= 10) + (cut >= len(stream))], cut
        until(lambda connection=connection: not connection.connected)  # type: ignore[misc]
        whole = cut == len(stream + last)
        assert (connection.close_code, connection.close_reason) == ((3001, "bye") if whole else (1006, "")), cut
        if how is Peer.half_close:
            pong = [Frame(PONG, b"?")] if cut >= 17 else []
            assert peer.until_end() == [*pong, close(3001, "bye")][: None if whole else len(pong)], cut


def test_the_server_closes_after_any_byte(pairs: Pairs) -> None:  # section 5.5.1
    stream, last = conversation()
    for cut in range(len(stream) + 1):
        connection, peer = pairs(sockets=tcp_pair)
        peer.write(stream[:cut])
        settle(connection)
        connection.close(1001)
        peer.write(stream[cut:] + last)
        frames = peer.until_end()
        assert frames[-1] == close(1001) and frames[:-1] == [Frame(PONG, b"?")] * (cut >= 17), cut
        assert not peer.reset
        assert connection.close_code == 1001
        assert not connection.connected


# --- close codes ------------------------------------------------------------------------------------------------


def test_a_code_that_may_be_sent_is_answered_with_itself(pairs: Pairs) -> None:  # sections 5.5.1 and 7.4
    for code in MAY_BE_SENT:
        connection, peer = pairs()
        peer.close_frame(code, "why")
        assert peer.until_end() == [close(code, "why")]
        assert (connection.close_code, connection.close_reason) == (code, "why")


def test_a_reserved_code_of_the_client_is_1002(pairs: Pairs) -> None:  # sections 7.4.1 and 7.4.2
    for code in MAY_NOT_BE_SENT:
        connection, peer = pairs()
        peer.write(frame(code.to_bytes(2, "big"), CLOSE))
        [answer] = peer.until_frames(1)
        assert answer.opcode == CLOSE and answer.payload[:2] == (1002).to_bytes(2, "big"), code
        assert connection.close_code == 1002
        assert connection.receive() is None
        peer.half_close()
        assert peer.until_end() == [answer]


def test_the_server_may_send_each_code_that_may_be_sent(pairs: Pairs) -> None:  # section 7.4
    for code in MAY_BE_SENT:
        connection, peer = pairs()
        connection.close(code, "why")
        assert peer.until_frames(1) == [close(code, "why")]
        assert connection.close_code == code


def test_a_reserved_code_is_not_sent_and_the_connection_goes_on(pairs: Pairs) -> None:  # sections 7.4.1 and 7.4.2
    connection, peer = pairs()
    for code in MAY_NOT_BE_SENT:
        if code != 1005:  # 1005 means a frame without a code
            with pytest.raises(ValueError, match=f"^{code} "):
                connection.close(code)
    connection.send("still here")
    assert peer.until_frames(1) == [text("still here")]
    assert connection.close_code is None and not connection.at_end


def test_a_malformed_close_frame_is_answered_with_the_code_of_its_fault(pairs: Pairs) -> None:  # sections 5.5.1 and 8.1
    for payload, code in ((b"\x03", 1002), (b"\x03\xe8\xff", 1007), (b"\x03\xe8\xed\xa0\x80", 1007)):
        connection, peer = pairs()
        peer.write(frame(payload, CLOSE))
        [answer] = peer.until_frames(1)
        assert answer.payload[:2] == code.to_bytes(2, "big")
        assert connection.close_code == code


@pytest.mark.parametrize(("reason", "error"), [("\ud800", ValueError), (b"bytes", TypeError), (None, TypeError)])
def test_a_reason_that_cannot_be_sent_changes_nothing(pairs: Pairs, reason: str, error: type[Exception]) -> None:
    connection, peer = pairs()
    peer.write(frame("first") + frame("second"))
    until(lambda: len(connection.inbox) == 2)
    with pytest.raises(error):
        connection.close(4000, reason)
    assert (connection.close_code, connection.receive(), connection.receive()) == (None, "first", "second")
    connection.close(4000, "why")
    assert peer.until_end()[-1] == close(4000, "why")

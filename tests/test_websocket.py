"""What a view holds: the first call accepts, messages keep their types, and gevent-websocket's attributes are there."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import gevent
import pytest
from django.http import HttpResponse
from django.test import override_settings
from django.utils.safestring import mark_safe
from geventwebsocket.exceptions import WebSocketError as StockWebSocketError

from django_websocket.exceptions import ConnectionClosed, HandshakeFailed
from django_websocket.pubsub import publish
from django_websocket.select import select
from django_websocket.transport.connection import Connection
from django_websocket.transport.state import OPEN
from django_websocket.websocket import WebSocket

from .support.frames import BINARY, PONG, TEXT, Frame, close, close_frame, frame, text
from .support.waiting import until
from .support.wire import Pairs, Peer


@pytest.fixture
def memory(pairs: Pairs, key: str) -> Iterator[None]:
    """A broker of the test's own."""
    with override_settings(WEBSOCKET_BROKER=f"memory://{key}"):
        yield


ENVIRON = {
    "PATH_INFO": "/chat/lobby/",
    "HTTP_ORIGIN": "https://example.com",
    "HTTP_SEC_WEBSOCKET_PROTOCOL": "chat, superchat",
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
}


class Handshake:
    """Accepts whenever it is called, and keeps the subprotocols."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.accepted: list[str | None] = []

    def __call__(self, subprotocol: str | None) -> Connection:
        self.accepted.append(subprotocol)
        return self.connection


def websocket(pairs: Pairs, environ: dict[str, Any] | None = None) -> tuple[WebSocket, Peer, Handshake]:
    connection, peer = pairs()
    handshake = Handshake(connection)
    return WebSocket(ENVIRON if environ is None else environ, HttpResponse(), handshake), peer, handshake


# --- the handshake ----------------------------------------------------------------------------------------------


def test_reading_attributes_does_not_accept(pairs: Pairs) -> None:
    ws, _, handshake = websocket(pairs)
    assert ws.closed is False
    assert ws.close_code is None
    assert ws.close_reason == ""
    assert ws.connection is None
    assert isinstance(ws.response, HttpResponse)
    assert (ws.path, ws.origin, ws.version, ws.protocol) == (
        "/chat/lobby/",
        "https://example.com",
        "13",
        "chat, superchat",
    )
    assert ws.handler.socket is ws
    assert ws.environ is ENVIRON
    repr(ws)
    assert handshake.accepted == []


FIRST_CALLS: dict[str, Callable[[WebSocket], Any]] = {
    "accept": lambda ws: ws.accept(),
    "receive": lambda ws: ws.receive(),
    "receive with a timeout": lambda ws: ws.receive(timeout=5),
    "receive_json": lambda ws: ws.receive_json(),
    "send": lambda ws: ws.send("x"),
    "send_json": lambda ws: ws.send_json([]),
    "iteration": lambda ws: next(iter(ws)),
    "fileno": lambda ws: ws.fileno(),
    "fileno of the handler's socket": lambda ws: ws.handler.socket.fileno(),
    "select": lambda ws: select([ws], [], [], 5),
    "select over the handler's socket": lambda ws: select([ws.handler.socket], [], [], 5),
    "subscribe": lambda ws: ws.subscribe("a channel").close(),
    "listen": lambda ws: ws.listen("a channel"),
    "close with a code": lambda ws: ws.close(4000),
    "close with a reason": lambda ws: ws.close(reason="go"),
}


@pytest.mark.parametrize("call", FIRST_CALLS.values(), ids=FIRST_CALLS.keys())
def test_the_first_call_that_needs_the_client_accepts(
    pairs: Pairs, memory: None, call: Callable[[WebSocket], Any]
) -> None:
    ws, peer, handshake = websocket(pairs)
    peer.text("1")
    call(ws)
    assert handshake.accepted == [None]
    ws.accept()
    ws.accept("other")
    assert handshake.accepted == [None]
    assert ws.connection is handshake.connection


def test_accept_takes_a_subprotocol(pairs: Pairs) -> None:
    ws, _, handshake = websocket(pairs)
    ws.accept(subprotocol="superchat")
    assert handshake.accepted == ["superchat"]


def test_a_failed_handshake_raises_gevent_websockets_error() -> None:
    def refuse(subprotocol: str | None) -> Connection:
        raise HandshakeFailed("the client has left")

    ws = WebSocket(ENVIRON, HttpResponse(), refuse)
    with pytest.raises(StockWebSocketError, match="has left"):
        ws.send("x")
    assert ws.connection is None


# --- sending ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message, binary, frame",
    [
        ("text", None, text("text")),
        ("", None, text("")),
        ("\u00e9\U0001f600", None, text("\u00e9\U0001f600")),
        ("text", False, text("text")),
        ("\u00e9", True, Frame(BINARY, "\u00e9".encode())),
        (mark_safe("&lt;"), None, text("&lt;")),
        (b"bytes", None, Frame(BINARY, b"bytes")),
        (b"", None, Frame(BINARY, b"")),
        (b"bytes", True, Frame(BINARY, b"bytes")),
        ("\u00e9".encode(), False, text("\u00e9")),
        (bytearray(b"array"), None, Frame(BINARY, b"array")),
        (bytearray(b"array"), False, text("array")),
        (memoryview(b"a view")[2:], None, Frame(BINARY, b"view")),
        (memoryview(b"abcdef")[::2], True, Frame(BINARY, b"ace")),
    ],
)
def test_messages_are_sent_by_their_type_or_as_binary_says(
    pairs: Pairs, message: Any, binary: bool | None, frame: Frame
) -> None:
    ws, peer, _ = websocket(pairs)
    ws.send(message, binary=binary)
    ws.send("behind")
    assert peer.until_frames(2) == [frame, text("behind")]


@pytest.mark.parametrize("message", [None, 1, 1.5, ["x"], {"x": 1}, object()])
@pytest.mark.parametrize("binary", [None, True, False])
def test_other_types_are_refused_before_anything_is_sent(pairs: Pairs, message: Any, binary: bool | None) -> None:
    ws, peer, _ = websocket(pairs)
    with pytest.raises(TypeError, match="send_json"):
        ws.send(message, binary=binary)
    ws.send("still open")
    assert peer.until_frames(1) == [text("still open")]


def test_invalid_utf8_cannot_be_sent_as_text(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    with pytest.raises(ValueError):
        ws.send(b"\xff", binary=False)
    with pytest.raises(ValueError):
        ws.send("\ud800")
    ws.send("still open")
    assert peer.until_frames(1) == [text("still open")]


def test_sending_to_a_closed_websocket_raises_gevent_websockets_error(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    ws.accept()
    peer.close_frame(1001, "bye")
    until(lambda: ws.closed)
    with pytest.raises(StockWebSocketError) as error:
        ws.send("x")
    assert isinstance(error.value, ConnectionClosed)
    assert (error.value.code, error.value.reason) == (1001, "bye")
    assert "1001" in str(error.value) and "bye" in str(error.value)


# --- receiving --------------------------------------------------------------------------------------------------


def test_messages_keep_their_types_and_the_end_is_none(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    peer.text("text", b"bytes", "", b"")
    peer.close_frame()
    assert [ws.receive() for _ in range(6)] == ["text", b"bytes", "", b"", None, None]
    assert ws.closed is True


def test_iteration_yields_all_messages_and_can_be_resumed(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    peer.text("a", "", "b", b"c", "d")
    peer.close_frame()
    for message in ws:
        if message == "b":
            break
    assert ws.receive() == b"c"
    assert list(ws) == ["d"]
    assert list(ws) == []


def test_iteration_waits_for_messages_that_come_later(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    seen = []

    def view() -> None:
        for message in ws:
            seen.append(message)
            ws.send(message)

    running = gevent.spawn(view)
    for number in range(100):
        peer.text(f"{number}", f"{number}b")
        peer.until_frames(2 * number + 2)
    peer.close_frame()
    running.get(timeout=5)
    assert seen == [f"{number}{letter}" for number in range(100) for letter in ("", "b")]


def test_iteration_goes_beyond_the_inbox(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    messages = [str(number) for number in range(1000)]
    peer.write(b"".join(map(frame, messages)) + close_frame())
    assert list(ws) == messages


def test_the_answers_of_an_iteration_are_sent_before_the_close(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    peer.write(b"".join(map(frame, "abc")) + close_frame(1000))
    for message in ws:
        ws.send(message)
    assert peer.until_end() == [text("a"), text("b"), text("c"), close(1000)]


def test_receive_raises_after_its_timeout(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    with pytest.raises(TimeoutError):
        ws.receive(timeout=0.01)
    with pytest.raises(TimeoutError):
        ws.receive_json(timeout=0.01)
    peer.text("a")
    assert ws.receive(timeout=5) == "a"


# --- JSON -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True]}, [], "\u00e9\u2028", 0, None, {"deep": {"er": ["x"]}}])
def test_json_is_sent_as_text_and_comes_back(pairs: Pairs, value: Any) -> None:
    ws, peer, _ = websocket(pairs)
    ws.send_json(value)
    (frame,) = peer.until_frames(1)
    assert frame.opcode == TEXT
    assert json.loads(frame.payload) == value
    peer.text(frame.payload.decode())
    assert ws.receive_json() == value
    peer.text(frame.payload)  # a binary message will do
    assert ws.receive_json(timeout=5) == value


def test_dates_and_decimals_are_sent_in_djangos_json_form(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    ws.send_json({"day": date(2026, 1, 2), "price": Decimal("1.10")})
    assert peer.until_frames(1) == [text('{"day":"2026-01-02","price":"1.10"}')]


def test_values_without_a_json_form_are_refused(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    for value in (object(), {1, 2}, b"bytes", {(1, 2): 3}):
        with pytest.raises(TypeError):
            ws.send_json(value)
    for number in (float("nan"), float("inf")):  # a browser's JSON.parse would fail
        with pytest.raises((TypeError, ValueError)):
            ws.send_json({"number": number})
    ws.send_json(1)
    assert peer.until_frames(1) == [text("1")]


NOT_USABLE = {
    "NaN": "[NaN]",
    "Infinity": "Infinity",
    "-Infinity": '{"a": -Infinity}',
    "a number beyond floats": "1e999",
    "a negative one": "[-1e999]",
    "a number of many digits": "1" * 400 + ".0",
    "half a character": r'"\ud83d"',
    "its other half": r'{"\uDE00": 1}',
    "halves in the wrong order": r'["\ude00\ud83d"]',
    "half a character in bytes": b'"\xed\xa0\xbd"',
    "bytes that are not UTF-8": b'"\xff"',
    "nesting": "[" * 30_000,
    "nesting that is closed": "[" * 500 + "]" * 500,
    "nesting of objects": '{"a":' * 101 + "1" + "}" * 101,
    "nesting of both": "[1," + '[{"a":' * 50 + "[]" + "}]" * 50 + "]",
    "an integer of many digits": "1" * 10_000,
    "nothing": "",
}


@pytest.mark.parametrize("message", NOT_USABLE.values(), ids=NOT_USABLE)
def test_unusable_json_is_an_error_of_the_message(pairs: Pairs, message: str | bytes) -> None:
    ws, peer, _ = websocket(pairs)
    peer.text(message, "[1]")
    with pytest.raises(ValueError):
        ws.receive_json()
    assert ws.receive_json() == [1]


@pytest.mark.parametrize(
    "message",
    [
        r'"\ud83d\ude00"',
        r'"\\ud83d"',
        "[" * 100 + "]" * 100,
        '{"a":' * 100 + "1e308" + "}" * 100,
        "[" + "[[]]," * 1000 + "-0.5]",
        b'\xef\xbb\xbf"\xf0\x9f\x98\x80"',
    ],
    ids=ascii,
)
def test_json_that_is_received_can_be_sent(pairs: Pairs, message: str | bytes) -> None:
    ws, peer, _ = websocket(pairs)
    peer.text(message)
    value = ws.receive_json()
    ws.send_json(value)
    assert json.loads(peer.until_frames(1)[0].payload) == value


def test_json_that_cannot_be_received_is_not_sent(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    for value in (float("nan"), float("inf"), "\ud83d", {"\ude00": 1}, nested):
        with pytest.raises(ValueError):
            ws.send_json(value)
        with pytest.raises(ValueError):
            publish("channel", value)
    while nested:  # level by level: freeing all at once would recurse as deeply
        nested = nested[0]
    ws.send_json(1)
    assert peer.until_frames(1)[0].payload == b"1"


def test_malformed_json_is_an_error_of_the_message_not_of_the_connection(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    for bad in ("{", "", b"\xff\xfe"):
        peer.text(bad)
        with pytest.raises(ValueError):
            ws.receive_json()
    peer.text("[1]")
    assert ws.receive_json() == [1]
    peer.close_frame()
    assert ws.receive_json() is None
    assert ws.closed


# --- the end ----------------------------------------------------------------------------------------------------


def test_close_says_why(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    ws.accept()
    assert ws.close_code is None
    ws.close(4001, "go")
    assert ws.closed is True
    assert (ws.close_code, ws.close_reason) == (4001, "go")  # type: ignore[comparison-overlap]
    assert peer.until_frames(1) == [close(4001, "go")]
    assert ws.receive() is None
    ws.close()
    ws.close(4002)
    assert ws.close_code == 4001


def test_close_before_acceptance_leaves_the_answer_to_the_view(pairs: Pairs) -> None:
    ws, peer, handshake = websocket(pairs)
    ws.close()
    with pytest.raises(ValueError):
        ws.close(1006)
    assert handshake.accepted == []
    assert ws.closed is False
    ws.close(4001, "go")
    assert peer.until_frames(1) == [close(4001, "go")]


def test_close_without_arguments_is_1000(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    ws.accept()
    ws.close()
    assert peer.until_frames(1) == [close(1000)]
    assert ws.close_code == 1000


def test_close_refuses_codes_that_may_not_be_sent(pairs: Pairs) -> None:
    ws, _, _ = websocket(pairs)
    ws.accept()
    for code in (1, 1006, 1015, 2999, 5000):
        with pytest.raises(ValueError, match=str(code)):
            ws.close(code)
    assert ws.closed is False


def test_close_codes_are_plain_numbers(pairs: Pairs) -> None:
    ws, _, _ = websocket(pairs)
    ws.accept()
    ws.close()
    assert f"{ws.close_code}" == "1000" and str(ws.close_code) == "1000"


def test_closed_is_false_while_a_message_waits(pairs: Pairs) -> None:
    ws, peer, handshake = websocket(pairs)
    ws.accept()
    peer.write(frame("last") + close_frame(1000))
    until(lambda: handshake.connection.state is not OPEN)
    assert ws.closed is False
    assert ws.receive() == "last"
    assert ws.closed is True
    assert ws.close_code == 1000


def test_a_vanished_client_is_1006(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    ws.accept()
    peer.sock.close()
    assert ws.receive() is None
    assert ws.close_code == 1006


# --- channels ---------------------------------------------------------------------------------------------------


def test_subscribe_forwards_until_it_is_closed(pairs: Pairs, memory: None) -> None:
    ws, peer, _ = websocket(pairs)
    with ws.subscribe("news", "weather"):
        publish("news", "a")
        publish("weather", b"b")
        assert peer.until_frames(2) == [text("a"), Frame(BINARY, b"b")]
    publish("news", "c")
    gevent.sleep(0.001)
    ws.send("behind")
    assert peer.until_frames(3)[2:] == [text("behind")]


def test_listen_returns_the_response_and_drops_what_the_client_sends(pairs: Pairs, memory: None) -> None:
    ws, peer, handshake = websocket(pairs)
    assert ws.listen("news") is ws.response
    assert ws.listening
    publish("news", "a")
    peer.text("unheard")
    peer.ping(b"1")
    assert peer.until_frames(2) == [text("a"), Frame(PONG, b"1")]
    assert not handshake.connection.inbox


# --- as gevent-websocket has it ---------------------------------------------------------------------------------


def test_headers_that_were_not_sent_are_none(pairs: Pairs) -> None:
    ws, _, _ = websocket(pairs, {})
    assert (ws.path, ws.origin, ws.version, ws.protocol) == (None, None, None, None)


def test_the_handlers_socket_has_the_same_descriptor(pairs: Pairs) -> None:
    ws, _, _ = websocket(pairs)
    assert ws.handler.socket.fileno() == ws.fileno()


def test_repr_shows_path_and_state(pairs: Pairs) -> None:
    ws, peer, _ = websocket(pairs)
    assert "/chat/lobby/" in repr(ws) and "handshake" in repr(ws)
    ws.accept()
    assert "open" in repr(ws)
    peer.close_frame()
    until(lambda: ws.closed)
    assert "closed" in repr(ws)


def test_a_websocket_can_be_in_a_weak_set_and_is_freed_with_its_view(pairs: Pairs) -> None:
    ws, _, _ = websocket(pairs)
    everybody = weakref.WeakSet([ws])
    assert ws in everybody
    del ws
    assert len(everybody) == 0

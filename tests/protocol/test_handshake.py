"""The opening handshake: what is accepted, and each refusal.

Sections are those of RFC 6455 unless another document is named.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from typing import Any

import pytest

from django_websocket.protocol.handshake import (
    ClientHandshake,
    ClientRequest,
    HandshakeError,
    accept_headers,
    accept_value,
    check_request,
    choose_subprotocol,
    is_upgrade,
    tokens,
    upgrade_required,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # from the example in section 1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
REQUEST = {
    "host": "server.example.com",
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec-websocket-key": KEY,
    "sec-websocket-version": "13",
}
UPGRADE_REQUIRED = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}


def request(**headers: str | None) -> dict[str, str]:
    """Return the headers of a handshake, some of them replaced; None leaves one out."""
    changed = {**REQUEST, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return {name: value for name, value in changed.items() if value is not None}


def refusal(headers: Mapping[str, str], method: str = "GET", http_version: str = "HTTP/1.1") -> HandshakeError:
    """Return the error with which a handshake is refused."""
    with pytest.raises(HandshakeError) as caught:
        check_request(method, http_version, headers)
    assert caught.value.reason
    assert str(caught.value) == f"{caught.value.status}: {caught.value.reason}"
    return caught.value


# --- what a server accepts --------------------------------------------------------------------------------------------


def test_handshake_of_section_1_2_is_accepted() -> None:
    headers = request(origin="http://example.com", sec_websocket_protocol="chat, superchat")
    assert check_request("GET", "HTTP/1.1", headers) == ClientHandshake(KEY, ["chat", "superchat"], [])


def test_handshake_without_subprotocols_is_accepted() -> None:  # section 4.2.1, 8
    assert check_request("GET", "HTTP/1.1", REQUEST) == ClientHandshake(KEY, [], [])


@pytest.mark.parametrize(
    "value", ["websocket", "WebSocket", "WEBSOCKET", " websocket\t", "h2c, websocket", "a,,websocket"]
)
def test_upgrade_is_a_case_insensitive_list(value: str) -> None:  # section 4.2.1, 3; RFC 9110, section 7.8
    assert is_upgrade(value)
    assert check_request("GET", "HTTP/1.1", request(upgrade=value)).key == KEY


@pytest.mark.parametrize(
    "value",
    [
        "Upgrade",
        "upgrade",
        "UPGRADE",
        "keep-alive, Upgrade",
        "Upgrade, keep-alive",
        "keep-alive,Upgrade",
        "keep-alive ,\tUpgrade ",
        ", ,Upgrade,",
        "Upgrade, Upgrade",
    ],
)
def test_connection_is_a_case_insensitive_list(value: str) -> None:  # section 4.2.1, 4; RFC 9110, section 7.6.1
    assert check_request("GET", "HTTP/1.1", request(connection=value)).key == KEY


@pytest.mark.parametrize("value", ["13", " 13", "13\t"])
def test_version_is_13(value: str) -> None:  # section 4.2.1, 6
    assert check_request("GET", "HTTP/1.1", request(sec_websocket_version=value)).key == KEY


@pytest.mark.parametrize("key", [KEY, base64.b64encode(bytes(16)).decode(), base64.b64encode(b"\xff" * 16).decode()])
def test_key_is_16_bytes_in_base64(key: str) -> None:  # section 4.2.1, 5
    for value in (key, f" {key}", f"{key}\t "):
        assert check_request("GET", "HTTP/1.1", request(sec_websocket_key=value)).key == key


@pytest.mark.parametrize("host", ["example.com", "example.com:8001", "[::1]:8001", " 127.0.0.1 "])
def test_any_host_is_accepted(host: str) -> None:  # section 4.2.1, 2: the framework knows which hosts are allowed
    assert check_request("GET", "HTTP/1.1", request(host=host)).key == KEY


@pytest.mark.parametrize("length", ["0", " 0 "])
def test_body_of_zero_bytes_is_accepted(length: str) -> None:  # RFC 9110, section 8.6
    assert check_request("GET", "HTTP/1.1", request(content_length=length)).key == KEY


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("chat", ["chat"]),
        ("chat, superchat", ["chat", "superchat"]),
        ("superchat,chat", ["superchat", "chat"]),
        (" chat\t,\tsuperchat ", ["chat", "superchat"]),
        (",chat,, superchat,", ["chat", "superchat"]),
        ("Chat, chat", ["Chat", "chat"]),  # case matters (section 4.2.2, 5)
        (
            "v1.chat.example.com, graphql-ws, !#$%&'*+-.^_`|~9Az",
            ["v1.chat.example.com", "graphql-ws", "!#$%&'*+-.^_`|~9Az"],
        ),
        ("", []),
        (" , ", []),
    ],
)
def test_subprotocols_are_a_list_of_tokens(value: str, names: list[str]) -> None:  # section 4.2.1, 8; 11.3.4
    assert check_request("GET", "HTTP/1.1", request(sec_websocket_protocol=value)).subprotocols == names


def test_subprotocols_in_two_headers_are_one_list() -> None:  # section 11.3.4; RFC 9110, section 5.3
    value = ",".join(["chat", "superchat, mqtt"])
    headers = request(sec_websocket_protocol=value)
    assert check_request("GET", "HTTP/1.1", headers).subprotocols == ["chat", "superchat", "mqtt"]


def test_unknown_extensions_and_other_headers_are_ignored() -> None:  # sections 4.2.1, 9 and 10, and 9.1
    headers = request(sec_websocket_extensions="x-unknown; nonsense=1", cookie="a=b", x_unknown="\xff")
    assert check_request("GET", "HTTP/1.1", headers).key == KEY


@pytest.mark.parametrize(
    ("value", "extensions"),
    [
        ("", []),
        (" , ", []),
        ("foo", [("foo", [])]),
        ("foo, bar,foo", [("foo", []), ("bar", []), ("foo", [])]),
        (" foo ;a;\tb = 1 ; a=2 ,bar", [("foo", [("a", None), ("b", "1"), ("a", "2")]), ("bar", [])]),
        ('foo; a="10"; b="x\\1"', [("foo", [("a", "10"), ("b", "x1")])]),
        ("mux; max=4; flow, deflate", [("mux", [("max", "4"), ("flow", None)]), ("deflate", [])]),
    ],
)
def test_extensions_are_a_list_with_parameters(value: str, extensions: list[Any]) -> None:  # section 9.1
    assert check_request("GET", "HTTP/1.1", request(sec_websocket_extensions=value)).extensions == extensions


@pytest.mark.parametrize(
    "value",
    [
        "foo bar",
        "foo;",
        "; a",
        "foo; a=",
        "foo; =1",
        "foo; a=1 2",
        "foo; a b",
        "foo=1",
        'foo; a="',
        'foo; a=""',
        'foo; a="1 2"',
        'foo; a="1,2"',
        'foo; a="1\\"',
        'foo; a="1"2',
        "foo; a=b=c",
        "f\xf6\xf6",
        "foo/bar",
        "foo, b@r",
        '"foo"',
        "foo" + " ; a" * 3000 + " =" * 3000,
    ],
)
def test_malformed_list_of_extensions_is_400(value: str) -> None:  # section 9.1
    begin = time.process_time()
    assert refusal(request(sec_websocket_extensions=value)).status == 400
    assert time.process_time() - begin < 1


def test_extensions_that_were_agreed_on_are_in_the_answer() -> None:  # section 4.2.2, 5
    assert accept_headers(KEY, None, "foo; a=1")["Sec-WebSocket-Extensions"] == "foo; a=1"
    assert "Sec-WebSocket-Extensions" not in accept_headers(KEY)


def test_client_takes_extensions_that_it_offered() -> None:  # section 9.1
    client = ClientRequest({"Sec-WebSocket-Extensions": "foo; a, bar"})
    client.check_response(101, response(client, sec_websocket_extensions="bar; b=1"))
    client.check_response(101, response(client))


# --- what a server refuses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [None, "", "h2c", "websocket/13", "websockets", "web socket", "websocket;q=1", '"websocket"', "TLS/1.0, h2c"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_request_that_is_not_an_upgrade_is_426(value: str | None, method: str) -> None:
    """This holds whatever else is wrong with it (section 4.2.1, 3; RFC 9110, section 15.5.22)."""
    error = refusal(request(upgrade=value), method=method)
    assert (error.status, error.headers) == (426, UPGRADE_REQUIRED)
    assert not is_upgrade(value or "")


@pytest.mark.parametrize("value", ["HTTP/1.0", "HTTP/0.9", "HTTP/2", "HTTP/2.0", "HTTP/3", "", "http/1.1", "HTTP/1.10"])
def test_http_version_that_is_not_1_1_is_400(value: str) -> None:  # section 4.2.1, 1; RFC 9110, section 7.8
    error = refusal(REQUEST, http_version=value)
    assert (error.status, error.headers) == (400, {})


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "get", ""])
def test_method_that_is_not_get_is_405(method: str) -> None:  # section 4.2.1, 1; RFC 9110, section 15.5.6
    error = refusal(REQUEST, method=method)
    assert (error.status, error.headers) == (405, {"Allow": "GET"})


BAD_REQUESTS = {
    "4.2.1, 2 no host": {"host": None},
    "4.2.1, 2 empty host": {"host": ""},
    "4.2.1, 2 host of spaces": {"host": " \t"},
    "RFC 9112 3.2 two hosts": {"host": "server.example.com, evil.example.com"},
    "RFC 9112 3.2 the same host twice": {"host": "server.example.com,server.example.com"},
    "4.2.1, 4 no connection": {"connection": None},
    "4.2.1, 4 empty connection": {"connection": ""},
    "4.2.1, 4 connection close": {"connection": "close"},
    "4.2.1, 4 connection keep-alive": {"connection": "keep-alive"},
    "4.2.1, 4 upgrade is part of a word": {"connection": "Upgrades"},
    "4.2.1, 4 upgrade is part of words": {"connection": "no upgrade"},
    "4.2.1, 4 separated by a semicolon": {"connection": "keep-alive; Upgrade"},
    "4.2.1, 4 space that is none in HTTP": {"connection": "keep-alive,\xa0Upgrade"},
    "4.2.1, 5 no key": {"sec_websocket_key": None},
    "4.2.1, 5 empty key": {"sec_websocket_key": ""},
    "4.2.1, 5 key of 15 bytes": {"sec_websocket_key": base64.b64encode(bytes(15)).decode()},
    "4.2.1, 5 key of 17 bytes": {"sec_websocket_key": base64.b64encode(bytes(17)).decode()},
    "4.2.1, 5 key of 18 bytes": {"sec_websocket_key": base64.b64encode(bytes(18)).decode()},
    "4.2.1, 5 key without padding": {"sec_websocket_key": KEY.rstrip("=")},
    "4.2.1, 5 key with more padding": {"sec_websocket_key": KEY + "="},
    "4.2.1, 5 key with padding inside": {"sec_websocket_key": "dGhlIHNhbXBsZSBub25j=Q=="},
    "4.2.1, 5 key of other letters": {"sec_websocket_key": "dGhlIHNhbXBsZSBub25j!Q=="},
    "4.2.1, 5 key for URLs": {"sec_websocket_key": base64.urlsafe_b64encode(b"\xff" * 16).decode()},
    "4.2.1, 5 key that is not ASCII": {"sec_websocket_key": "dGhlIHNhbXBsZSBub25j\xe4Q=="},
    "4.2.1, 5 space inside the key": {"sec_websocket_key": "dGhlIHNhbXBs ZSBub25jZQ=="},
    "4.2.1, 5 space that is none in HTTP": {"sec_websocket_key": KEY + "\xa0"},
    "4.2.1, 5 control character": {"sec_websocket_key": "\x1c" + KEY},
    "11.3.1 two keys": {"sec_websocket_key": f"{KEY}, {KEY}"},
    "4.1, 10 subprotocol twice": {"sec_websocket_protocol": "chat, superchat, chat"},
    "11.3.4 subprotocol twice in two headers": {"sec_websocket_protocol": "chat,chat"},
    "4.1, 10 subprotocol of two words": {"sec_websocket_protocol": "super chat"},
    "4.1, 10 subprotocol with a parameter": {"sec_websocket_protocol": "chat;v=1"},
    "4.1, 10 subprotocol in quotes": {"sec_websocket_protocol": '"chat"'},
    "4.1, 10 subprotocol with a slash": {"sec_websocket_protocol": "chat/1"},
    "4.1, 10 subprotocol that is not ASCII": {"sec_websocket_protocol": "ch\xe4t"},
    "4.1, 10 subprotocol with a line's end": {"sec_websocket_protocol": "chat\r\nSet-Cookie: a=b"},
    "4.1, 10 subprotocol with a line's end behind": {"sec_websocket_protocol": "chat\n"},
    "4.1, 10 subprotocol with NUL": {"sec_websocket_protocol": "chat\x00"},
    "RFC 9110 9.3.1 content": {"content_length": "1"},
    "RFC 9110 8.6 two lengths": {"content_length": "0, 0"},
    "RFC 9110 8.6 negative length": {"content_length": "-0"},
    "RFC 9110 8.6 empty length": {"content_length": ""},
    "RFC 9110 8.6 space that is none in HTTP": {"content_length": "0\x85"},
    "RFC 9112 6.1 chunks": {"transfer_encoding": "chunked"},
    "RFC 9112 6.1 identity": {"transfer_encoding": "identity"},
    "RFC 9112 6.1 empty": {"transfer_encoding": ""},
    "RFC 9112 6.3 length and chunks": {"content_length": "0", "transfer_encoding": "chunked"},
}


@pytest.mark.parametrize("headers", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_handshake_is_400(headers: dict[str, str | None]) -> None:
    error = refusal(request(**headers))
    assert (error.status, error.headers) == (400, {})


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "12",
        "14",
        "8",
        "0",
        "013",
        "1 3",
        "+13",
        "13.0",
        "13, 13",
        "13, 8",
        "8, 13",
        "13\xa0",
        "\x0b13",
        "\u0661\u0663",
    ],
    ids=ascii,
)
def test_version_that_is_not_13_is_426_and_names_13(value: str | None) -> None:  # sections 4.2.1, 6, 4.2.2, 4 and 4.4
    error = refusal(request(sec_websocket_version=value))
    assert (error.status, error.headers) == (426, UPGRADE_REQUIRED)


def test_refusals_share_no_headers() -> None:
    upgrade_required().headers["X-Seen"] = "yes"
    assert upgrade_required().headers == UPGRADE_REQUIRED
    headers = {"Allow": "GET"}
    HandshakeError(405, "no", headers).headers.clear()
    assert headers == {"Allow": "GET"}


@pytest.mark.parametrize(
    ("value", "members"),
    [
        ("", []),
        (",", []),
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        (" a ,\tb\t", ["a", "b"]),
        (",, a ,, ,b,", ["a", "b"]),
        ("a b, c", ["a b", "c"]),
        ("A, a", ["A", "a"]),
        ("a\xa0, \x0bb", ["a\xa0", "\x0bb"]),  # only space and tab are white space
    ],
    ids=ascii,
)
def test_members_of_a_list_are_separated_by_commas(value: str, members: list[str]) -> None:  # RFC 9110, section 5.6.1
    assert tokens(value) == members


# --- what a server answers --------------------------------------------------------------------------------------------


def test_accept_value_is_that_of_section_1_3() -> None:
    assert accept_value(KEY) == ACCEPT


@pytest.mark.parametrize("key", [KEY, "x3JJHMbDL1EzLkh9GBhXDw==", "AAAAAAAAAAAAAAAAAAAAAA=="])
def test_accept_value_is_made_of_the_key_as_it_was_sent(key: str) -> None:  # section 4.2.2, 5
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    assert accept_value(key) == base64.b64encode(digest).decode()


def test_accepting_headers() -> None:  # section 4.2.2, 5
    expected = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": ACCEPT}
    assert accept_headers(KEY) == expected
    assert accept_headers(KEY, "chat") == {**expected, "Sec-WebSocket-Protocol": "chat"}


@pytest.mark.parametrize(
    ("offered", "supported", "chosen"),
    [
        ([], [], None),
        (["chat"], [], None),
        ([], ["chat"], None),
        (["chat"], ["chat"], "chat"),
        (["chat", "superchat"], ["superchat", "chat"], "superchat"),  # the server's order
        (["mqtt", "chat"], ["superchat", "chat"], "chat"),
        (["mqtt"], ["superchat", "chat"], None),
        (["Chat"], ["chat"], None),  # case matters
    ],
)
def test_subprotocol_is_one_that_both_speak(
    offered: list[str], supported: list[str], chosen: str | None
) -> None:  # section 4.2.2, 4
    assert choose_subprotocol(offered, supported) == chosen


# --- the client -------------------------------------------------------------------------------------------------------


def response(client: ClientRequest, **headers: str | None) -> dict[str, str]:
    """Return the headers with which a server accepts, some of them replaced; None leaves one out."""
    right = {name.lower(): value for name, value in accept_headers(client.key).items()}
    changed = {**right, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return {name: value for name, value in changed.items() if value is not None}


def test_request_of_a_client_is_accepted_by_a_server() -> None:  # sections 4.1 and 4.2.1
    client = ClientRequest({"Sec-WebSocket-Protocol": "chat, superchat"})
    headers = request(sec_websocket_key=client.key, sec_websocket_protocol="chat, superchat")
    handshake = check_request("GET", "HTTP/1.1", headers)
    assert handshake == ClientHandshake(client.key, ["chat", "superchat"], [])
    answer = {name.lower(): value for name, value in accept_headers(handshake.key, "superchat").items()}
    assert client.check_response(101, answer) == "superchat"


def test_each_client_has_a_key_of_16_random_bytes(monkeypatch: pytest.MonkeyPatch) -> None:  # section 4.1, 7
    nonces = iter([b"the sample nonce", bytes(16)])
    monkeypatch.setattr("os.urandom", lambda size: next(nonces)[:size])
    assert [ClientRequest().key, ClientRequest().key] == [KEY, "AAAAAAAAAAAAAAAAAAAAAA=="]


@pytest.mark.parametrize("name", ["Sec-WebSocket-Protocol", "sec-websocket-protocol", "SEC-WEBSOCKET-PROTOCOL"])
def test_client_knows_what_it_offered(name: str) -> None:  # RFC 9110, section 5.1: names are case-insensitive
    client = ClientRequest({name: "chat, superchat"})
    for chosen in ("chat", "superchat", None):
        assert client.check_response(101, response(client, sec_websocket_protocol=chosen)) == chosen


GOOD_RESPONSES = {
    "4.1, 2 upgrade has no case": {"upgrade": "WebSocket"},
    "4.1, 2 spaces around upgrade": {"upgrade": " websocket\t"},
    "4.1, 3 connection has no case": {"connection": "upgrade"},
    "4.1, 3 connection is a list": {"connection": "keep-alive, Upgrade"},
    "4.1, 3 spaces in the list": {"connection": " , keep-alive ,\tUPGRADE "},
    "other headers": {"server": "nginx", "date": "now", "set-cookie": "a=b"},
}


@pytest.mark.parametrize("headers", GOOD_RESPONSES.values(), ids=GOOD_RESPONSES)
def test_client_accepts_any_spelling_that_http_allows(headers: dict[str, str]) -> None:
    client = ClientRequest()
    assert client.check_response(101, response(client, **headers)) is None


def test_client_ignores_spaces_around_the_accept_value() -> None:  # section 4.1, 4
    client = ClientRequest()
    answer = response(client, sec_websocket_accept=f" {accept_value(client.key)}\t")
    assert client.check_response(101, answer) is None


@pytest.mark.parametrize("status", [100, 200, 204, 301, 302, 400, 401, 403, 404, 426, 500, 503])
def test_client_reports_a_status_that_is_not_101(status: int) -> None:  # section 4.1, 1
    client = ClientRequest()
    with pytest.raises(HandshakeError) as caught:
        client.check_response(status, response(client))
    assert caught.value.status == status
    assert str(caught.value).startswith(f"{status}: ")


BAD_RESPONSES = {
    "4.1, 2 no upgrade": {"upgrade": None},
    "4.1, 2 empty upgrade": {"upgrade": ""},
    "4.1, 2 upgrade to something else": {"upgrade": "h2c"},
    "4.1, 2 upgrade to two things": {"upgrade": "h2c, websocket"},
    "4.1, 3 no connection": {"connection": None},
    "4.1, 3 connection close": {"connection": "close"},
    "4.1, 3 upgrade is part of a word": {"connection": "Upgrades"},
    "4.1, 4 no accept value": {"sec_websocket_accept": None},
    "4.1, 4 empty accept value": {"sec_websocket_accept": ""},
    "4.1, 4 somebody else's accept value": {"sec_websocket_accept": ACCEPT},
    "4.1, 5 extension that was not offered": {"sec_websocket_extensions": "permessage-deflate"},
    "9.1 extensions that are no list": {"sec_websocket_extensions": "x-offered; ="},
    "9.1 extensions one of which was not offered": {"sec_websocket_extensions": "x-offered, permessage-deflate"},
    "4.1, 6 subprotocol that was not offered": {"sec_websocket_protocol": "mqtt"},
    "4.1, 6 subprotocols that were offered": {"sec_websocket_protocol": "chat, superchat"},
    "4.1, 6 subprotocol in another case": {"sec_websocket_protocol": "Chat"},
    "4.1, 6 empty subprotocol": {"sec_websocket_protocol": ""},
}


@pytest.mark.parametrize("headers", BAD_RESPONSES.values(), ids=BAD_RESPONSES)
def test_client_fails_on_a_bad_response(headers: dict[str, str | None]) -> None:
    offers = {"Sec-WebSocket-Protocol": "chat, superchat", "Sec-WebSocket-Extensions": "x-offered"}
    client = ClientRequest(offers)
    with pytest.raises(HandshakeError) as caught:
        client.check_response(101, response(client, **headers))
    assert caught.value.status == 101


def test_client_fails_when_the_accept_value_differs_in_case() -> None:  # section 4.1, 4: case matters in base64
    client = ClientRequest()
    wrong = accept_value(client.key).swapcase()
    with pytest.raises(HandshakeError):
        client.check_response(101, response(client, sec_websocket_accept=wrong))

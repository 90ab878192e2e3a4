"""What holds in an ordinary view holds in a WebSocket view: request, decorators, middleware, whatever stands around."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .clients import RawClient, frame
from .clients import request as handshake
from .servers import Server

Raw = Callable[..., RawClient]


# --- class-based views -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["method", "dispatch", "named-method"])
def test_options_of_a_class_based_view_hold(site: Server, raw: Raw, where: str) -> None:
    client = raw(site)
    response = client.open(
        f"/ordinary/options/{where}/", {"Origin": "https://partner.example", "Sec-WebSocket-Protocol": "v1.example"}
    )
    assert response.headers["sec-websocket-protocol"] == "v1.example"
    client.send(frame("x" * 100), frame("x" * 101))
    assert client.frame().text == "x" * 100
    assert client.closing()[0] == 1009
    foreign = raw(site)
    foreign.send(handshake(f"/ordinary/options/{where}/", {"Origin": "https://evil.example"}))
    assert foreign.response().status == 403

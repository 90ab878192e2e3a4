"""The states of a connection, and which may follow which."""

from __future__ import annotations

from enum import Enum

__all__ = ["ANSWERING", "CLOSED", "CLOSING", "FOLLOWING", "OPEN", "State"]


class State(Enum):
    """How far the close handshake has come (RFC 6455, section 7.1).

        OPEN -> ANSWERING -> CLOSING -> CLOSED

    A connection may skip states, but never goes back.
    """

    __hash__ = object.__hash__  # Enum's own is written in Python

    OPEN = "open"
    """Both ends may send messages."""

    ANSWERING = "answering"
    """The client has closed or broken the protocol. The view may still answer the messages that came before."""

    CLOSING = "closing"
    """This end has closed. The socket stays until the client has closed too, or its time to do so is over."""

    CLOSED = "closed"
    """The socket is closed."""


OPEN, ANSWERING, CLOSING, CLOSED = State  # in Python 3.10 and 3.11 a member costs more to look up in its class

FOLLOWING = {
    OPEN: {
        ANSWERING,  # a close frame or a failure of the client
        CLOSING,  # close(), or a client that is given up
        CLOSED,  # the client vanished
    },
    ANSWERING: {
        CLOSING,  # everything that came before was received, or the time for that is over
        CLOSED,
    },
    CLOSING: {CLOSED},
    CLOSED: set(),
}

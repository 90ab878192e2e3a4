"""The chat of the test project, for clients of any kind: what they say of themselves comes from strangers."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from .support.fixtures import Connect
from .support.resuming import ResumingClient
from .support.servers import Server

pytestmark = pytest.mark.slow

ID = "0123456789abcdef"


class Visitor(ResumingClient):
    """A client of the chat that sees who is there."""

    def sees(self, of: str) -> dict[str, Any]:
        """Return what it was told last of a visitor, and wait until it is told anything."""
        while True:
            for control in reversed(self.controls):
                for member in (*control.get("join", {}).get("CHAT", ()), *control.get("present", {}).get("CHAT", ())):
                    if member["id"] == of:
                        return dict(member)
            self.wait()

    def sees_next(self, of: str) -> dict[str, Any]:
        """Return what it is told of a visitor from now on."""
        self.controls.clear()
        return self.sees(of)

    def says(self, **said: Any) -> None:
        self.send(json.dumps({"present": said}))


def visit(connect: Connect, project: Server, **query: str) -> Visitor:
    """Enter the chat."""
    path = "/chat/?" + "&".join(f"{name}={quote(value)}" for name, value in query.items())
    visitor = Visitor(connect, project, path)
    visitor.connect()
    return visitor


def test_visitors_see_what_others_say_of_themselves(project: Server, connect: Connect, key: str) -> None:
    ann = visit(connect, project, id=key, name="Ann", color="#aB3456")
    expected = {"id": key, "name": "Ann", "color": "#aB3456", "typing": False}
    assert ann.sees(key) == expected
    bob = visit(connect, project, id=f"{key}-2", name="Bob")
    assert bob.sees(key) == expected
    ann.says(name="Anna", typing=True)
    assert bob.sees_next(key) == {"id": key, "name": "Anna", "color": "", "typing": True}
    ann.send("hello")
    for reader in (ann, bob):
        assert reader.receive().data == "hello"  # what was said before was no line


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"name": "x" * 3000}, "x" * 40),
        ({"name": "\U0001f642" * 300}, "\U0001f642" * 40),
        ({"name": "  \u202eAnn\0 \n\t B. "}, "Ann B."),
        ({"name": " \t"}, "Guest"),
        ({"name": "__proto__", "color": "red"}, "__proto__"),
        ({"name": "Ann", "color": "#12345g"}, "Ann"),
        ({"name": "Ann", "color": "#123456\n"}, "Ann"),
        ({"name": "Ann", "typing": "true", "id": ID, "more": "x" * 2000}, "Ann"),
        ({}, "Guest"),
    ],
    ids=["long", "emoji", "controls", "blank", "prototype", "color", "newline", "others", "nothing"],
)
def test_whatever_is_said_is_shown_within_limits(
    project: Server, connect: Connect, key: str, said: dict[str, str], shown: str
) -> None:
    ann = visit(connect, project, **{"id": key, **{name: said[name] for name in said if name != "id"}})
    expected = {"id": key, "name": shown, "color": "", "typing": False}
    assert ann.sees(key) == expected
    ann.says(name="somebody else")
    assert ann.sees_next(key)["name"] == "somebody else"
    ann.says(**said)
    assert ann.sees_next(key) == expected


@pytest.mark.parametrize("wished", ["", "short", "x" * 65, "with spaces in it", "<script>alert(1)</script>", "\0" * 8])
def test_visitor_without_an_id_gets_one(project: Server, connect: Connect, wished: str, key: str) -> None:
    ann = visit(connect, project, id=wished, name=key)
    while not (found := [member for control in ann.controls for member in control.get("present", {}).get("CHAT", ())]):
        ann.wait()
    [own] = [member for member in found if member["name"] == key]
    assert own["id"] != wished and len(own["id"]) == 16


@pytest.mark.parametrize(
    "message",
    [
        '{"present": {"name": 5, "color": [], "typing": null}}',
        '{"present": {"name": "\\ud800", "color": "\\ud800"}}',
    ],
)
def test_nonsense_about_a_visitor_is_no_line(project: Server, connect: Connect, message: str) -> None:
    with connect(project, "/chat/") as client:
        client.send(message)
        client.send("a line")
        assert client.recv(10) == "a line"


@pytest.mark.parametrize(
    "message",
    [
        "plain",
        '{"user": "Ann", "color": "#123456", "text": "hello"}',
        '{"present": null}',
        '{"present": "Ann"}',
        '["present"]',
        '"present"',
        "5",
        "[" * 100_000,
        "9" * 10_000,
        '{"present": {"name": "Ann"',
        b'{"present": {"name": "Ann"}}',
        b"\xff",
    ],
)
def test_everything_else_is_a_line_as_it_is(project: Server, connect: Connect, message: str | bytes) -> None:
    with connect(project, "/chat/") as client:
        client.send(message)
        assert client.recv(10) == message

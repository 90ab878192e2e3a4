"""The test site's page for the browser's client, in Chromium."""

from __future__ import annotations

import os
import signal
from typing import Any

from .browser import Browser, Window
from .servers import Server

QUICK = "?hurry=20"  # see testsite.client


class Page:
    """The page in a window, and what its client tells."""

    def __init__(self, browser: Browser, server: Server, query: str = QUICK) -> None:
        self.window: Window = browser.open(f"http://{server.address}/client/{query}")
        self.wait_until_loaded()

    @classmethod
    def in_window(cls, window: Window) -> Page:
        """Take a window that has the page already."""
        page = cls.__new__(cls)
        page.window = window
        page.wait_until_loaded()
        return page

    def wait_until_loaded(self) -> None:
        """Wait until the page can connect, as after a reload."""
        self.window.wait(lambda: self.run("return window.begin !== undefined"))

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page."""
        return self.window.driver.execute_script(script, *arguments)

    def begin(self, path: str, options: dict[str, Any] | None = None) -> Page:
        """Connect."""
        self.run("begin(arguments[0], arguments[1] ?? undefined)", path, options)
        return self

    def begin_and_subscribe(self, path: str) -> Page:
        """Connect, and wait until the page knows where its channels begin."""
        self.run(
            """window.told = [];
            window.WebSocket = class extends WebSocket {
              constructor(...args) {
                super(...args);
                this.addEventListener("message", ({ data }) => told.push(data));
              }
            };"""
        )
        self.begin(path)
        self.window.wait(lambda: any('"sub"' in data for data in self.run("return told")), "it is not subscribed")
        return self

    def send(self, data: str, **options: bool) -> bool:
        """Send a text."""
        sent: bool = self.run("return socket.send(arguments[0], arguments[1])", data, options)
        return sent

    @property
    def states(self) -> list[dict[str, Any]]:
        """All states since the beginning, in order."""
        found: list[dict[str, Any]] = self.run("return states")
        return found

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [state["name"] for state in self.states]

    @property
    def origins(self) -> list[dict[str, Any]]:
        """Where the messages come from."""
        found: list[dict[str, Any]] = self.run("return origins")
        return found

    @property
    def resets(self) -> list[list[str]]:
        """The channels of each reset."""
        found: list[list[str]] = self.run("return resets")
        return found

    @property
    def presence(self) -> list[list[Any]]:
        """All events about who is there, in order: each with its name and its values."""
        found: list[list[Any]] = self.run("return presence")
        return found

    @property
    def messages(self) -> list[Any]:
        """All messages, in order; the bytes of binary ones."""
        found: list[Any] = self.run("return messages")
        return found

    def wait_for(self, *names: str) -> None:
        """Wait until the last states are these."""
        self.window.wait(lambda: tuple(self.names[-len(names) :]) == names, f"the states do not end with {names}")

    def wait_for_messages(self, *messages: Any) -> None:
        """Wait until there are these messages, and no others."""
        self.window.wait(lambda: self.messages == list(messages), f"the messages are not {messages}")


def kill(server: Server) -> None:
    """Kill a server with its workers, so that it cannot say goodbye."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()

"""`manage.py websockets`: who is connected, what they are doing, and how to disconnect them."""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from django_websocket import conf, metrics, monitoring
from django_websocket.exceptions import BrokerError
from django_websocket.handler.users import named

FILTERS = ("user", "path", "view", "channel", "id")
PAUSE = 2.0  # seconds between two looks
CLEAR = "\033[H\033[2J"  # what clears a terminal (ECMA-48)
WIDEST = 48  # characters of a cell, except the last, which somebody may want to copy
HEAD = ("USER", "PATH", "AGE", "IN", "OUT", "OUTBOX", "LATENCY", "AT", "CHANNELS", "PROCESS", "ID")
UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (0.0, "s"))


class Command(BaseCommand):
    """Asks all processes, through the broker."""

    help = "Lists the WebSockets of all processes, and disconnects them with --kick. In filters, * stands for any text."
    requires_system_checks: list[str] = []  # it is for moments in which something is wrong

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the filters, and what to do with what they find."""
        parser.add_argument("--user", help="those of a user, by name or primary key")
        parser.add_argument("--path", help='those with such a path: "/chat/*"')
        parser.add_argument("--view", help='those of such a view: "chat.views.*"')
        parser.add_argument("--channel", help='those that are subscribed to such a channel: "room:*"')
        parser.add_argument("--id", help="a single one")
        parser.add_argument("--limit", type=int, default=1000, help="list no more than so many (1000)")
        parser.add_argument(
            "--watch", type=float, nargs="?", const=PAUSE, metavar="SECONDS", help="look again and again, until Ctrl-C"
        )
        parser.add_argument("--json", action="store_true", help="print JSON, one line for each look")
        parser.add_argument("--metrics", action="store_true", help="print the figures of the server on this machine")
        parser.add_argument("--kick", action="store_true", help="disconnect those that the filters find")
        parser.add_argument("--code", type=int, default=4401, help="the close code for --kick (4401)")
        parser.add_argument("--reason", default="", help="the reason for --kick")
        parser.add_argument(
            "--no-input", "--noinput", action="store_false", dest="interactive", help="do not ask before --kick"
        )

    def handle(self, **options: Any) -> None:
        """List, watch or disconnect."""
        which = {name: options[name] for name in FILTERS if options[name] is not None}
        if options["kick"] and (not which or options["watch"] is not None):
            raise CommandError("--kick needs to know whom: give at least one filter, and no --watch.")
        if options["limit"] < 0 or (options["watch"] is not None and not options["watch"] > 0):
            raise CommandError("--limit and --watch take positive numbers.")
        try:
            if options["metrics"]:
                self.stdout.write(metrics.fetch(), ending="")
                return
            if "user" in which:
                which["user"] = named(which["user"])
                if which["user"] is None:
                    raise CommandError(f"There is no user {options['user']!r}.")
            if str(conf.current().broker).startswith("memory:"):
                self.stderr.write("WEBSOCKET_BROKER is memory://, so the WebSockets of other processes are not seen.")
            if options["watch"] is not None:
                self.watch(which, **options)
            elif options["kick"]:
                self.kick(which, **options)
            else:
                self.show(monitoring.connections(**which, limit=options["limit"]), options["json"])
        except (BrokerError, DatabaseError, ImproperlyConfigured, TypeError, ValueError) as error:
            raise CommandError(str(error)) from error

    def watch(self, which: dict[str, Any], *, limit: int, watch: float, json: bool, **options: Any) -> None:
        """Look again and again."""
        clear = CLEAR if self.stdout.isatty() and not json else ""
        try:
            while True:
                found = monitoring.connections(**which, limit=limit)
                self.stdout.write(clear, ending="")
                self.show(found, json)
                self.stdout.flush()
                time.sleep(watch)
        except KeyboardInterrupt:
            return

    def kick(self, which: dict[str, Any], *, json: bool, **options: Any) -> None:
        """Disconnect, once somebody has agreed."""
        if options["interactive"]:
            found = monitoring.connections(**which, limit=options["limit"])
            self.show(found, json)
            if not found.total:
                return
            try:
                answer = input(f"Disconnect {counted(found.total, 'WebSocket')}? [y/N] ")
            except EOFError:
                raise CommandError("There is nobody to ask: --no-input disconnects without a question.") from None
            if answer.strip().lower() not in ("y", "yes"):
                raise CommandError("Nobody was disconnected.")
        closed = monitoring.disconnect(**which, code=options["code"], reason=options["reason"])
        verb = "was" if closed == 1 else "were"
        self.stdout.write(f"{counted(closed, 'WebSocket')} {verb} disconnected.")

    def show(self, found: monitoring.Connections, as_json: bool) -> None:
        """Print what was found."""
        if as_json:
            told = {
                "total": found.total,
                "silent": found.silent,
                "processes": [asdict(process) for process in found.processes],
                "connections": [{**asdict(each), "where": each.where} for each in found],
            }
            self.stdout.write(json.dumps(told))
            return
        if found:
            self.stdout.write("\n".join(table(found)))
        some = f"the first {len(found)} of " if len(found) < found.total else ""
        self.stdout.write(f"{some}{counted(found.total, 'WebSocket')} in {counted(len(found.processes), 'process')}")
        if found.silent:
            self.stderr.write(f"{counted(found.silent, 'process')} did not answer within a second", self.style.WARNING)


def table(found: monitoring.Connections) -> list[str]:
    """Return the lines of a table."""
    try:
        names = monitoring.usernames(found)
    except (DatabaseError, ImproperlyConfigured):  # the rest can be told without the names
        names = {}
    rows: list[Sequence[str]] = [HEAD, *(row(each, names) for each in found)]
    *cells, last = zip(*rows, strict=True)
    widths = [min(WIDEST, max(map(len, column))) for column in cells]
    lines = []
    for *texts, id in rows:
        padded = [cut(text, width).ljust(width) for text, width in zip(texts, widths, strict=True)]
        lines.append("  ".join([*padded, id]))
    return lines


def row(each: monitoring.Connection, names: dict[str, str]) -> Sequence[str]:
    """Return the cells of one connection."""
    more = f" +{each.more_channels}" if each.more_channels else ""
    cells = (
        names.get(each.id) or f"{each.tenant} {each.user}".strip(),
        each.path,
        duration(each.age),
        str(each.received_messages),
        str(each.sent_messages),
        size(each.outbox),
        "" if each.latency is None else f"{each.latency * 1000:.0f} ms",
        each.where or each.view,
        " ".join(each.channels) + more,
        f"{each.host}:{each.pid}",
        each.id,
    )
    return [shown(cell) or "-" for cell in cells]


def shown(text: str) -> str:
    """Return a text for a terminal, to which clients must not give orders."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def cut(text: str, width: int) -> str:
    """Return as much of a text as a cell has room for."""
    return text if len(text) <= width else text[: width - 1] + "…"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, name in UNITS:
        if seconds >= unit:
            return f"{seconds / (unit or 1):.0f} {name}"
    return "0 s"


def size(number: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    return f"{number} B" if number < 1024 else f"{number / 1024:.0f} KiB"


def counted(number: int, what: str) -> str:
    """Return a number of things."""
    return f"{number} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"

"""A process that asks again and again who is in channels, and how many, and prints the answers as JSON.

    python -m testsite.asking '{"channels": ["room:1"], "pause": 0.05}'

Each line has the channel, when it was asked and answered, who is there, how many, and an error; what does not apply is
null. It ends when nobody reads that any more.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    CONFIGURATION: dict[str, Any] = json.loads(sys.argv[1])

    import django

    django.setup()

from django_websocket.exceptions import BrokerError
from django_websocket.pubsub import count, present

from .graces import shorten


def ask(question: Callable[[str], Any], channel: str) -> tuple[float, float, Any, str | None]:
    """Return when something was asked and answered, the answer, and an error."""
    begin = time.monotonic()
    try:
        answer, error = question(channel), None
    except BrokerError as problem:
        answer, error = None, str(problem)
    return begin, time.monotonic(), answer, error


def main(configuration: dict[str, Any]) -> None:
    """Ask until nobody reads the answers."""
    shorten()
    while True:
        for channel in configuration["channels"]:
            begin, end, users, error = ask(present, channel)
            print(json.dumps([channel, begin, end, users, None, error]), flush=True)
            begin, end, number, error = ask(count, channel)
            print(json.dumps([channel, begin, end, None, number, error]), flush=True)
            time.sleep(configuration["pause"])


if __name__ == "__main__":
    main(CONFIGURATION)

"""One ticker for all clients: it measures, and publishes a sample every second."""

import threading
import time

from demo.notifications.websockets import SITE
from demo.rooms.rooms import ROOMS, channel_of
from django_websocket.exceptions import BrokerError, MessagesMissed
from django_websocket.pubsub import count, publish, subscribe

SAMPLES = "dashboard"
TRAFFIC = "traffic"
PROBE = "probe"


def tick(is_up=lambda: True, end=None):
    """Publish samples until the event `end` is set. `is_up` tells whether the WebSocket server runs."""
    end = end or threading.Event()
    while not end.is_set():
        try:
            with subscribe(PROBE, TRAFFIC, *map(channel_of, ROOMS)) as messages:
                while not end.is_set():
                    publish(SAMPLES, {**sample(messages), "up": is_up()})
        except (BrokerError, MessagesMissed):
            time.sleep(1)


def sample(messages):
    """Watch the messages of the site for a second."""
    begin = time.perf_counter()
    seen, trip = 0, None
    publish(PROBE, "")
    while (left := begin + 1 - time.perf_counter()) > 0:
        try:
            channel, _ = messages.get_with_channel(left)
        except TimeoutError:
            break
        if channel == PROBE:  # our own message has come back
            trip = 1000 * (time.perf_counter() - begin)
        else:
            seen += 1
    return {"at": time.time(), "messages": seen, "people": count(SITE), "trip": trip}

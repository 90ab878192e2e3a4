"""How long presence waits, where a test has less time: by a JSON object in the environment variable TESTSITE_GRACES."""

from __future__ import annotations

import json
import os

from django_websocket.pubsub import presence, room


def shorten() -> None:
    """Have the package wait for as many seconds as TESTSITE_GRACES says of grace, lease and renewal."""
    graces = json.loads(os.environ.get("TESTSITE_GRACES", "{}"))
    if graces:
        room.GRACE = presence.GRACE = graces["grace"]
        presence.LEASE = graces["lease"]
        presence.RENEWAL = graces["renewal"]
        presence.RETRY = presence.LEASES_LAST = graces["renewal"] / 4

"""The site under the eyes of Sentry's SDK, whose reports stay in the log; gunicorn serves `application`."""

from __future__ import annotations

import json
import sys

import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware
from sentry_sdk.transport import Transport


class Log(Transport):
    """Writes what would be sent."""

    def capture_envelope(self, envelope: Envelope) -> None:
        for item in envelope.items:
            if item.payload.json is not None:
                print(f"sentry {json.dumps(item.payload.json)}", file=sys.stderr, flush=True)


sentry_sdk.init(dsn="http://key@localhost/1", transport=Log, traces_sample_rate=1.0, send_default_pii=True)

from . import wsgi  # noqa: E402

application = SentryWsgiMiddleware(wsgi.application)  # for what is not Django's; of the rest the SDK sees to itself

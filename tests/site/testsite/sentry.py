"""The site with Sentry's SDK, whose reports go to the log; gunicorn serves `application`."""

from __future__ import annotations

import json
import sys

import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware
from sentry_sdk.transport import Transport


class Log(Transport):
    """Writes reports to the log instead of sending them."""

    def capture_envelope(self, envelope: Envelope) -> None:
        for item in envelope.items:
            if item.payload.json is not None:
                print(f"sentry {json.dumps(item.payload.json)}", file=sys.stderr, flush=True)


sentry_sdk.init(dsn="http://key@localhost/1", transport=Log, traces_sample_rate=1.0, send_default_pii=True)

from . import wsgi  # noqa: E402

application = SentryWsgiMiddleware(wsgi.application)  # reports what fails outside Django

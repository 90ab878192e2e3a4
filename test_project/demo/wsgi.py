"""What the server serves: the pages."""

import os
import threading

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "demo.settings")

from django.conf import settings
from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()

if not settings.SHARED_BROKER:  # nothing that another process publishes would arrive here
    from demo.dashboard.ticker import tick

    threading.Thread(target=tick, daemon=True).start()

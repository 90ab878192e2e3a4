"""What gunicorn serves: `websocket` takes WebSockets only, `application` pages and WebSockets on one port."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

from django.conf import settings
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application

from django_websocket.wsgi import get_wsgi_websocket_application

pages = get_wsgi_application()
if settings.DEBUG:  # as runserver does; elsewhere static files are nginx's work
    pages = StaticFilesHandler(pages)

websocket = get_wsgi_websocket_application()
application = get_wsgi_websocket_application(http=pages)

import os

from django_websocket.wsgi import get_wsgi_websocket_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "djangosite.settings")

application = get_wsgi_websocket_application()

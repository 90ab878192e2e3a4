"""WebSockets for Django from plain, synchronous views, on gunicorn and gevent."""

__version__ = "1.0.0.dev0"

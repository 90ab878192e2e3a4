"""The WebSocket endpoints of the test site, and a consumer beside them."""

from django.urls import path

from .stalls import Consumer
from .websocket_urls import urlpatterns as others

urlpatterns = [*others, path("consumer/", Consumer.as_asgi())]

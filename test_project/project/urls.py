"""The pages. Each has the path of the WebSocket endpoint it talks to (websocket_urls.py)."""

from django.urls import path
from django.views.generic import TemplateView

urlpatterns = [
    path("", TemplateView.as_view(template_name="index.html"), name="index"),
    path("chat/", TemplateView.as_view(template_name="chat.html"), name="chat_page"),
    path("echo/", TemplateView.as_view(template_name="echo.html"), name="echo_page"),
    path("ping/", TemplateView.as_view(template_name="ping.html"), name="ping_page"),
]

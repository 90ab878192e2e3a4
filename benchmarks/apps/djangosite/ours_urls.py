from django.urls import path

from . import ours_views

urlpatterns = [
    path("echo/", ours_views.echo),
    path("chat/", ours_views.chat),
    path("chat-select/", ours_views.chat_select),
]

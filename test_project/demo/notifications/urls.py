from django.urls import path

from .views import notifications, read, send

urlpatterns = [
    path("", notifications, name="notifications"),
    path("send/<slug:username>/", send, name="send_notification"),
    path("read/", read, name="read_notifications"),
]

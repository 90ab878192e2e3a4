"""The WebSockets: the views of each app, and a consumer among them."""

from django.urls import path
from project.websocket_urls import urlpatterns as small_ones

from demo.dashboard.websockets import dashboard
from demo.notifications.websockets import site
from demo.poll.consumers import PollConsumer
from demo.rooms.websockets import room
from demo.together.websockets import together

urlpatterns = [
    path("site/", site, name="site"),
    path("rooms/<slug:slug>/", room, name="room"),
    path("dashboard/", dashboard, name="dashboard"),
    path("together/", together, name="together"),
    path("poll/", PollConsumer.as_asgi(), name="poll"),
    *small_ones,
]

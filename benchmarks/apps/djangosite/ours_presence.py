"""A room whose members are told who is there, in a urlconf of its own: earlier versions do not know presence."""

from django.urls import path

from django_websocket.decorators import websocket

from .ours_views import echo


@websocket
def room(request, websocket, user):
    _ = request.user.is_authenticated  # as every Django server here does before it accepts
    return websocket.listen("room", present={"id": user, "name": f"user {user}"})


urlpatterns = [path("echo/", echo), path("presence/<int:user>/", room)]

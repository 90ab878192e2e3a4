"""Views that are coroutines, in a urlconf of their own: versions from before they existed cannot import them."""

from django.urls import path

from django_websocket.decorators import websocket


@websocket
async def echo(request, websocket):
    await request.auser()  # as every Django server here does before it accepts
    async for message in websocket:
        await websocket.send(message)


urlpatterns = [path("echo/", echo)]

"""What is asynchronous, in a urlconf of its own: versions from before there was such a thing cannot import it."""

from django.urls import path

from django_websocket.decorators import websocket


@websocket
async def echo(request, websocket):
    await request.auser()  # as every Django server here does before it accepts
    async for message in websocket:
        await websocket.send(message)


async def application(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        if event["text"] is not None:
            await send({"type": "websocket.send", "text": event["text"]})
        else:
            await send({"type": "websocket.send", "bytes": event["bytes"]})


urlpatterns = [path("echo/", echo), path("asgi/", application)]

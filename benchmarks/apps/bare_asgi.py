"""A bare ASGI function, without Django or any framework: what the server below it allows.

The chat has one Redis subscriber in the process and sends to a set of members.
"""

import asyncio
import os

import redis.asyncio

CHANNEL = os.environ["CHANNEL"]

client = redis.asyncio.Redis.from_url(os.environ["REDIS_URL"])
members = set()
subscriber = None


async def forward(subscribed):
    async with client.pubsub() as messages:
        await messages.subscribe(CHANNEL)
        subscribed.set()
        async for message in messages.listen():
            if message["type"] == "message":
                event = {"type": "websocket.send", "text": message["data"].decode()}
                for send in list(members):
                    try:
                        await send(event)
                    except Exception:  # whatever the server raises for a client that has left
                        members.discard(send)


async def ensure_subscribed():
    global subscriber
    if subscriber is None:
        subscribed = asyncio.Event()
        subscriber = asyncio.create_task(forward(subscribed))
        await subscribed.wait()


async def echo(receive, send):
    while (event := await receive())["type"] == "websocket.receive":
        text = event.get("text")
        if text is not None:
            await send({"type": "websocket.send", "text": text})
        else:
            await send({"type": "websocket.send", "bytes": event["bytes"]})


async def chat(receive, send):
    await ensure_subscribed()
    members.add(send)
    try:
        while (event := await receive())["type"] == "websocket.receive":
            await client.publish(CHANNEL, event["text"])
    finally:
        members.discard(send)


async def application(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    await (chat if scope["path"] == "/chat/" else echo)(receive, send)

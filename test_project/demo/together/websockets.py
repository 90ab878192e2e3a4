"""An asynchronous view: it asks several slow services at once, and sends each answer as soon as it is there."""

import asyncio
import random
import time

from django_websocket.decorators import websocket

SERVICES = ("Weather", "Trains", "Exchange rates", "Stock", "Translation", "Maps")


@websocket
async def together(request, websocket):
    asking = None
    try:
        async for text in websocket:
            if text == "ask" and (asking is None or asking.done()):
                asking = asyncio.create_task(ask_all(websocket))
            elif text == "stop" and asking is not None and not asking.done():
                asking.cancel()
                await websocket.send_json({"stopped": True})
    finally:
        if asking is not None:
            asking.cancel()  # the client has left


async def ask_all(websocket):
    begin = time.monotonic()
    await websocket.send_json({"asked": SERVICES})
    waits = await asyncio.gather(*(ask(websocket, service) for service in SERVICES))
    await websocket.send_json({"took": time.monotonic() - begin, "sum": sum(waits)})


async def ask(websocket, service):
    """Ask a service. This one only sleeps, where httpx or asyncpg would wait for an answer."""
    wait = random.uniform(0.5, 3)
    await asyncio.sleep(wait)
    await websocket.send_json({"answered": service, "after": wait})
    return wait

"""faulty_server.py PORT: an echo and a chat that make mistakes on purpose, to see whether wsload notices them.

The path says which: /FAULT/echo/ or /FAULT/chat/. Without a fault (none) it is an ordinary server, with
permessage-deflate. Every twentieth message is treated wrongly.
"""

import asyncio
import sys
from collections import defaultdict
from http import HTTPStatus

from websockets.asyncio.server import serve

rooms = defaultdict(list)


async def echo(connection, fault):
    held = None
    number = 0
    async for message in connection:
        number += 1
        wrong = number % 20 == 0
        if not wrong or fault == "none":
            await connection.send(message)
            if held is not None:
                await connection.send(held)
                held = None
        elif fault == "truncate":
            await connection.send(message[:-1])
        elif fault == "corrupt":
            await connection.send(message[:-1] + "~")
        elif fault == "binary":
            await connection.send(message.encode())
        elif fault == "swap":
            held = message
        elif fault == "duplicate":
            await connection.send(message)
            await connection.send(message)
        elif fault == "close":
            await connection.close(1011, "on purpose")
        # drop: nothing


async def chat(connection, fault):
    room = rooms[fault]
    room.append(connection)
    held = None
    number = 0
    try:
        async for message in connection:
            number += 1
            wrong = number % 20 == 0
            for index, member in enumerate(list(room)):
                if index == 3 and wrong and fault == "drop":
                    continue
                if index == 3 and wrong and fault == "swap":
                    held = message
                    continue
                await member.send(message)
                if index == 3 and wrong and fault == "duplicate":
                    await member.send(message)
                if index == 3 and held is not None:
                    await member.send(held)
                    held = None
    finally:
        room.remove(connection)


async def handle(connection):
    _, fault, kind, _ = connection.request.path.split("/")
    await (chat if kind == "chat" else echo)(connection, fault)


def refuse(connection, request):
    if request.path.startswith("/refuse/"):
        return connection.respond(HTTPStatus.FORBIDDEN, "on purpose\n")
    return None


async def main(port):
    async with serve(handle, "127.0.0.1", port, process_request=refuse, backlog=1024) as server:
        await server.serve_forever()


asyncio.run(main(int(sys.argv[1])))

"""picows_server.py PORT: WebSocket frames in Cython on asyncio and uvloop, without Django or any framework.

The chat has one Redis subscriber in the process and sends to a set of members.
"""

import asyncio
import os
import sys

import redis.asyncio
import uvloop
from picows import WSListener, WSMsgType, ws_create_server

CHANNEL = os.environ["CHANNEL"]

client = redis.asyncio.Redis.from_url(os.environ["REDIS_URL"])
members = set()
publishing = set()  # tasks, which nothing else would hold


class Echo(WSListener):
    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.CLOSE:
            close(transport, frame)
        elif frame.msg_type in (WSMsgType.TEXT, WSMsgType.BINARY):
            transport.send(frame.msg_type, frame.get_payload_as_bytes())


class Chat(WSListener):
    def on_ws_connected(self, transport):
        members.add(transport)

    def on_ws_disconnected(self, transport):
        members.discard(transport)

    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.CLOSE:
            close(transport, frame)
        elif frame.msg_type == WSMsgType.TEXT:
            task = asyncio.ensure_future(client.publish(CHANNEL, frame.get_payload_as_bytes()))
            publishing.add(task)
            task.add_done_callback(publishing.discard)


def close(transport, frame):
    transport.send_close(frame.get_close_code(), frame.get_close_message())
    transport.disconnect()


async def main(port):
    async with client.pubsub() as messages:
        await messages.subscribe(CHANNEL)
        await ws_create_server(
            lambda request: Chat() if request.path == b"/chat/" else Echo(), "127.0.0.1", port, backlog=2048
        )
        async for message in messages.listen():
            if message["type"] == "message":
                for transport in list(members):
                    transport.send(WSMsgType.TEXT, message["data"])


uvloop.run(main(int(sys.argv[1])))

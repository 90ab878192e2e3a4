"""flask-sock, with a greenlet for each client.

The chat has one Redis subscriber in the process and sends to a set of members.
"""

import os
import threading

import redis
from flask import Flask
from flask_sock import Sock
from simple_websocket import ConnectionClosed

CHANNEL = os.environ["CHANNEL"]

application = Flask(__name__)
sock = Sock(application)
client = redis.Redis.from_url(os.environ["REDIS_URL"])
members = set()
subscribing = threading.Lock()
subscriber = None


def forward(messages):
    for message in messages.listen():
        if message["type"] == "message":
            text = message["data"].decode()
            for member in list(members):
                try:
                    member.send(text)
                except ConnectionClosed:
                    members.discard(member)


def ensure_subscribed():
    global subscriber
    with subscribing:
        if subscriber is None:
            messages = client.pubsub()
            messages.subscribe(CHANNEL)
            subscriber = threading.Thread(target=forward, args=(messages,), daemon=True)
            subscriber.start()


@sock.route("/echo/")
def echo(websocket):
    while True:
        websocket.send(websocket.receive())


@sock.route("/chat/")
def chat(websocket):
    ensure_subscribed()
    members.add(websocket)
    try:
        while True:
            client.publish(CHANNEL, websocket.receive())
    finally:
        members.discard(websocket)

"""A consumer of Django Channels, with not a line that knows which server runs it."""

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from django.db.models import Count

from .models import Vote


class PollConsumer(AsyncJsonWebsocketConsumer):
    async def connect(self):
        await self.channel_layer.group_add("poll", self.channel_name)
        await self.accept()
        await self.send_json(await self.results())

    async def receive_json(self, content):
        user = self.scope["user"]
        choice = content.get("choice") if isinstance(content, dict) else None
        if user.is_authenticated and choice in Vote.Choice:
            await self.vote(user, choice)
            await self.channel_layer.group_send("poll", {"type": "poll.results", "results": await self.results()})

    async def poll_results(self, event):
        await self.send_json(event["results"])

    async def disconnect(self, code):
        await self.channel_layer.group_discard("poll", self.channel_name)

    @database_sync_to_async
    def vote(self, user, choice):
        Vote.objects.update_or_create(user=user, defaults={"choice": choice})

    @database_sync_to_async
    def results(self):
        counted = Vote.objects.values_list("choice").annotate(Count("pk"))
        return dict.fromkeys(Vote.Choice.values, 0) | dict(counted)

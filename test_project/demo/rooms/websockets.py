"""The WebSocket of a room: its history, who is here, who is typing, and what is said."""

from django.contrib.auth.decorators import login_required
from django.http import Http404
from django.urls import reverse

from demo.notifications.notify import mention
from demo.people.people import person
from django_websocket.decorators import websocket

from .forms import MessageForm
from .rooms import ROOMS, channel_of, say


@login_required
@websocket(refuse="close", max_message_size=4096)
def room(request, websocket, slug):
    if slug not in ROOMS:
        raise Http404
    me = person(request.user)
    with websocket.subscribe(channel_of(slug), last=50, present=me) as presence:
        for data in objects_from(websocket):
            if "typing" in data:
                presence.update_present({**me, "typing": data["typing"] is True})
                continue
            form = MessageForm(data)
            if form.is_valid():
                text = form.cleaned_data["text"]
                say(slug, me, text, form.cleaned_data["key"])
                mention(request.user, text, reverse("room", args=[slug]))


def objects_from(websocket):
    """Yield the JSON objects that the client sends, until it leaves or sends something else."""
    while True:
        try:
            data = websocket.receive_json()
        except ValueError:
            data = "no JSON"
        if data is None:
            return
        if not isinstance(data, dict):
            websocket.close(4400, "not a JSON object")
            return
        yield data

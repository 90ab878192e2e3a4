"""The page of a room."""

from django.contrib.auth.decorators import login_required
from django.http import Http404
from django.shortcuts import render

from .rooms import ROOMS


@login_required
def room(request, slug):
    if slug not in ROOMS:
        raise Http404
    return render(request, "rooms/room.html", {"rooms": ROOMS, "slug": slug, "name": ROOMS[slug]})

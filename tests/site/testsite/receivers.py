"""Receivers of the package's signals that note what they were told."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from django.dispatch import receiver

from django_websocket.signals import websocket_connected, websocket_disconnected
from django_websocket.websocket import WebSocket

from . import asynchronous, probe, views
from .models import Note


@receiver(websocket_connected, sender=views.observed)
def connected(websocket: WebSocket, request: Any, **kwargs: Any) -> None:
    Note.objects.create(text="connected")
    probe.note(request, f"connected {websocket.path}")
    websocket.send("welcome")


@receiver(websocket_disconnected, sender=views.observed)
def disconnected(request: Any, **told: Any) -> None:
    Note.objects.create(text="disconnected")
    time.sleep(float(request.GET.get("slow", 0)))
    probe.note(
        request, f"{told['code']} {told['reason']} {told['received']} {told['sent']} {0 < told['duration'] < 60}"
    )


@receiver(websocket_connected, sender=asynchronous.observed)
def connected_asynchronously(request: Any, **kwargs: Any) -> None:
    Note.objects.create(text="connected")
    probe.note(request, "connected")


@receiver(websocket_disconnected, sender=asynchronous.observed)
def disconnected_asynchronously(request: Any, **told: Any) -> None:
    Note.objects.create(text="disconnected")
    probe.note(request, f"{told['code']} {told['reason']} {told['received']} {told['sent']}")


@receiver(websocket_connected, sender=views.observed_by_coroutines)
@receiver(websocket_disconnected, sender=views.observed_by_coroutines)
async def coroutine(request: Any, **kwargs: Any) -> None:
    await asyncio.sleep(0.05)
    await Note.objects.acreate(text="by a coroutine")
    probe.note(request, "a coroutine was told")


@receiver(websocket_connected, sender=views.observed)
@receiver(websocket_disconnected, sender=views.observed)
def broken(**kwargs: Any) -> None:
    raise ValueError("a receiver that is broken")


@receiver(websocket_connected, sender=views.observed)
@receiver(websocket_disconnected, sender=views.observed)
def exits(request: Any, **kwargs: Any) -> None:
    if "exit" in request.GET:
        sys.exit("a receiver calls sys.exit()")

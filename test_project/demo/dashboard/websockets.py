"""The WebSocket of the dashboard: the samples of the last two minutes, those to come, and the traffic of the button."""

from django_websocket.decorators import websocket

from .ticker import SAMPLES, TRAFFIC


@websocket(receive=False)
def dashboard(request, websocket):
    with websocket.subscribe(SAMPLES, last=120), websocket.subscribe(TRAFFIC):
        websocket.receive()  # until the client leaves

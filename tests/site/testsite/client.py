"""The page that the client of the package is tested in, and endpoints that end as a test wants."""

from collections import Counter
from pathlib import Path

from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.urls import path
from django.views.static import serve

import django_websocket
from django_websocket.decorators import websocket
from django_websocket.websocket import WebSocket

STATIC = Path(django_websocket.__file__).parent / "static"

# With ?hurry=20, timers run twenty times as fast as the client believes, but not that by which it gives up an attempt
# after ten seconds: a busy machine may need half a second. With &impatient, that one too.
PAGE = """<!doctype html>
<title>Client</title>
<link rel="icon" href="data:,">
{% load websockets %}{% websocket_client %}
<script>
  const query = new URLSearchParams(location.search);
  const hurry = Number(query.get("hurry") ?? 1);
  const patient = hurry > 1 && !query.has("impatient");
  for (const name of ["setTimeout", "setInterval"]) {
    const original = window[name];
    window[name] = (call, ms) => original.call(window, call, patient && ms === 10_000 ? ms : ms / hurry);
  }
</script>
<script type="module">
  import { connect } from "django_websocket";
  const plain = (data) => {
    if (typeof data === "string") return data;
    return data instanceof Blob ? `a Blob of ${data.size}` : Array.from(new Uint8Array(data));
  };
  window.connect = connect;
  window.begin = (path, options) => {
    const url = typeof path === "string" ? `ws://${location.host}${path}` : path;
    window.states = [];
    window.hidden = [];
    window.messages = [];
    window.origins = [];
    window.resets = [];
    window.presence = [];
    window.socket = connect(url, options);
    socket.on("state", (state) => {
      states.push(state);
      hidden.push(document.hidden);
    });
    socket.on("message", (data, origin) => {
      messages.push(plain(data));
      origins.push(origin);
    });
    socket.on("reset", ({ channels }) => resets.push(channels));
    for (const name of ["present", "join", "leave"]) {
      socket.on(name, (...values) => presence.push([name, ...values]));
    }
  };
</script>
"""

calls: Counter[str] = Counter()


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(engines["django"].from_string(PAGE).render({}, request))


def called(request: HttpRequest, key: str) -> HttpResponse:
    """Tell how often an endpoint was called."""
    return HttpResponse(str(calls[key]))


@websocket
def ends(request: HttpRequest, websocket: WebSocket, code: int) -> None:
    """Accept, and close at once, but three seconds later the time that `lasting` says."""
    key = request.GET["key"]
    calls[key] += 1
    if calls[key] == int(request.GET.get("lasting", 0)):
        websocket.receive(timeout=3)
    websocket.close(code, "said so")


pages = [
    path("client/", page),
    path("called/<str:key>/", called),
    path("static/<path:path>", serve, {"document_root": STATIC}),
]
urlpatterns = [path("ends/<int:code>/", ends)]

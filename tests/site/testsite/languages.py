"""WebSocket endpoints with the language in their paths, which no page has."""

from django.conf.urls.i18n import i18n_patterns
from django.http import HttpRequest
from django.urls import path
from django.utils.translation import get_language, gettext

from django_websocket.decorators import websocket
from django_websocket.websocket import WebSocket


@websocket
def speaks(request: HttpRequest, websocket: WebSocket) -> None:
    for _ in websocket:
        websocket.send(
            f"{get_language()} {getattr(request, 'LANGUAGE_CODE', None)} {gettext('This field is required.')}"
        )


urlpatterns = i18n_patterns(path("speaks/", speaks))

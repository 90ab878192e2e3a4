from django.urls import path
from django.views.generic import RedirectView

from .views import room

urlpatterns = [
    path("", RedirectView.as_view(url="lobby/")),
    path("<slug:slug>/", room, name="room"),
]

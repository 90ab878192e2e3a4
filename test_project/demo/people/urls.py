from django.contrib.auth.views import LogoutView
from django.urls import path

from .views import log_in

urlpatterns = [
    path("log-in/<slug:username>/", log_in, name="log_in"),
    path("log-out/", LogoutView.as_view(next_page="home"), name="log_out"),
]

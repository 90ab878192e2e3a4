"""The pages under another host name."""

from django.urls import path

from .urls import page

urlpatterns = [path("other/", page, name="page")]

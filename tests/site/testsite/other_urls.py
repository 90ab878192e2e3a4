"""The pages under another name of the host."""

from django.urls import path

from .urls import page

urlpatterns = [path("other/", page, name="page")]

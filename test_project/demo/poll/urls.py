from django.urls import path

from .views import poll

urlpatterns = [path("", poll, name="poll_page")]

from django.urls import path

from . import stock_views

urlpatterns = [
    path("echo/", stock_views.echo),
    path("lookup/", stock_views.lookup),
    path("chat/", stock_views.chat),
]

from django.urls import path

from . import ours_views

urlpatterns = [
    path("echo/", ours_views.echo),
    path("lookup/", ours_views.lookup),
    path("chat/", ours_views.chat),
    path("chat-select/", ours_views.chat_select),
    path("listen/", ours_views.listen),
    path("room/<int:number>/", ours_views.room),
    path("bare-loop/", ours_views.bare_loop),
]

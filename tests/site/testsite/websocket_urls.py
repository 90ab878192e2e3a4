"""The WebSocket endpoints."""

from django.urls import URLPattern, URLResolver, include, path

from . import ordinary, queries, receivers, views

__all__ = ["receivers", "urlpatterns"]

urlpatterns: list[URLPattern | URLResolver] = [
    path("echo/", views.echo, name="echo"),
    path("observed/<str:how>/", views.observed),
    path("undecorated/", views.undecorated),  # type: ignore[arg-type] # it returns nothing, as in 2017
    path("class/<str:name>/", views.Echo.as_view()),
    path("loop/<str:name>/", views.loop),
    path("returns-nothing/", views.returns_nothing),
    path("about/<int:number>/", views.about, name="about"),
    path("end/<str:how>/", views.end),
    path("receive-within/", views.receive_within),
    path("send-after-the-end/", views.send_after_the_end),
    path("busy/", views.busy),
    path("deaf/", views.deaf),
    path("flood/", views.flood),
    path("computes/", views.computes),
    path("crowd/<str:channel>/", views.crowd),
    path("subprotocols/", views.subprotocols),
    path("chooses/", views.chooses),
    path("partners/", views.partners),
    path("small/", views.small),
    path("uncompressed/", views.uncompressed),
    path("sends-only/", views.sends_only),
    path("refuse/<str:how>/", views.refuse),
    path("refuse-by-closing/<str:how>/", views.refuse_by_closing),
    path("refuse-by-status/<str:how>/", views.refuse_by_status),
    path("members-who-listen/", views.members_who_listen),
    path("members-who-stay/", views.members_who_stay),
    path("updates-the-session/", views.updates_the_session),
    path("members/", views.members),
    path("accepts-again/", views.accepts_again),
    path("counts-requests/", views.counts_requests),
    path("sets-cookies/", views.sets_cookies),
    path("accepts/", views.accepts),
    path("hesitates/", views.hesitates),
    path("takes-its-time/", views.takes_its_time),
    path("listen/<str:channel>/", views.listen),
    path("forward/<str:channel>/", views.forward),
    path("selects/<str:channel>/", views.selects),
    path("by-number/<str:channel>/", views.by_number),
    path("as-in-2017/", views.as_in_2017),
    path("waits/loop/", views.waits_in_a_loop),
    path("waits/<str:how>/", views.waits),
    path("writes/<str:how>/", views.writes),
    path("inside-atomic/<str:what>/", views.inside_atomic),
    path("keeps-the-session/", views.keeps_the_session),
    path("keeps-a-copy/", views.keeps_a_copy),
    path("forks/<str:how>/", views.forks),
    path("queries/", include(queries.urlpatterns)),
    path("ordinary/", include((ordinary.urlpatterns, "ordinary"))),
]

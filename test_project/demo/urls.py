"""The pages: one urlconf for each app, and the three small pages of the test project."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView, TemplateView
from project.urls import urlpatterns as small_pages

from demo.people.people import USERNAMES

urlpatterns = [
    path("", TemplateView.as_view(template_name="demo/home.html", extra_context={"usernames": USERNAMES}), name="home"),
    path("people/", include("demo.people.urls")),
    path("rooms/", include("demo.rooms.urls")),
    path("notifications/", include("demo.notifications.urls")),
    path("dashboard/", include("demo.dashboard.urls")),
    path("together/", include("demo.together.urls")),
    path("poll/", include("demo.poll.urls")),
    path("staff/", include("demo.staff.urls")),
    path("admin/login/", RedirectView.as_view(pattern_name="staff")),  # nobody here has a password
    path("admin/", admin.site.urls),
    path("favicon.ico", RedirectView.as_view(url=static("icon.svg"))),  # the pages of the admin name no other
    path("outage/", include("demo.outage.urls")),
    path("source/", include("demo.source.urls")),
    *small_pages,
]

from django.urls import path

from .views import burst, dashboard

urlpatterns = [
    path("", dashboard, name="dashboard_page"),
    path("burst/", burst, name="burst"),
]

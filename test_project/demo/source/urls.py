from django.urls import path

from .views import source

urlpatterns = [path("<slug:page>/", source, name="source")]

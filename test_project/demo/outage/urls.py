from django.urls import path

from .views import stop

urlpatterns = [path("stop/", stop, name="stop")]

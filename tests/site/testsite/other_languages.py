"""The same with the language in the path where it is not the default one."""

from django.conf.urls.i18n import i18n_patterns
from django.urls import path

from .languages import speaks

urlpatterns = i18n_patterns(path("speaks/", speaks), prefix_default_language=False)

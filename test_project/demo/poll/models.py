from django.conf import settings
from django.db import models


class Vote(models.Model):
    class Choice(models.TextChoices):
        CHANNELS = "channels", "Django Channels"
        OTHER = "other", "Something else"
        NOTHING = "nothing", "Nothing yet"

    user = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE, primary_key=True)
    choice = models.CharField(max_length=10, choices=Choice)

    def __str__(self):
        return f"{self.user}: {self.choice}"

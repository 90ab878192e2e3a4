"""Something to write into the database."""

from django.db import models


class Note(models.Model):
    """A text."""

    text = models.CharField(max_length=100)

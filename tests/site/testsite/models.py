"""A model for tests that write to the database."""

from django.db import models


class Note(models.Model):
    """A text."""

    text = models.CharField(max_length=100)

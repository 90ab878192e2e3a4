"""A model for tests that write to the database."""

from django.db import models


class Note(models.Model):
    """A text."""

    text = models.CharField(max_length=100)


class Tally(models.Model):
    """How often somebody has added one."""

    name = models.CharField(max_length=100, unique=True)
    count = models.PositiveIntegerField(default=0)

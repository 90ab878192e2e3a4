"""What the permissions of the admin's page are for: a model without a table. Private to this package.

Django makes content types and permissions for the models of an app, whether or not it makes their tables.
"""

from __future__ import annotations

from django.db import models


class NoRows(models.Manager["Connection"]):
    """Finds nothing, without asking the database: `dumpdata` and others go through all models."""

    def get_queryset(self) -> models.QuerySet[Connection]:
        """Return an empty queryset."""
        return super().get_queryset().none()


class Connection(models.Model):
    """A WebSocket, as far as Django's permissions know of it; `monitoring.Connection` is what it does."""

    id = models.CharField(primary_key=True, max_length=32)

    objects = NoRows()

    class Meta:
        managed = False
        default_permissions = ("view",)
        permissions = (("disconnect_connection", "Can disconnect WebSocket"),)
        base_manager_name = "objects"
        verbose_name = "WebSocket"
        verbose_name_plural = "WebSockets"

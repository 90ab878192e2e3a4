"""A database router for a site whose tenants each have a database."""

from typing import Any

from django.db import connections

from .middleware import current_tenant


class ByTenant:
    """Uses the context variable that a middleware has set, as many packages for tenants do."""

    def db_for_read(self, model: type, **hints: Any) -> str | None:
        tenant = current_tenant.get()
        return tenant if tenant in connections.settings else None

    db_for_write = db_for_read

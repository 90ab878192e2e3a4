"""A router of a site whose tenants have a database each."""

from typing import Any

from django.db import connections

from .middleware import current_tenant


class ByTenant:
    """Goes by the context variable that a middleware has set, as many a package for tenants does."""

    def db_for_read(self, model: type, **hints: Any) -> str | None:
        tenant = current_tenant.get()
        return tenant if tenant in connections.settings else None

    db_for_write = db_for_read

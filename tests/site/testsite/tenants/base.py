"""Django's PostgreSQL engine, with the tenant in the search path."""

from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    """Uses the schema of its `tenant`."""

    tenant = "public"

    def init_connection_state(self) -> None:
        super().init_connection_state()
        if self.tenant == "fails":
            raise LookupError("this tenant is unknown")
        with self.connection.cursor() as cursor:
            cursor.execute(f"SET search_path TO {self.tenant}")

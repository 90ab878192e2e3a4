"""What PostgreSQL itself knows of its clients, and its entry in Django's settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier

from .servers import Server


def settings_of(server: Server, name: str, **settings: Any) -> dict[str, Any]:
    """Return an entry for Django's DATABASES; the server knows its connections by `name`."""
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "127.0.0.1",
        "PORT": server.port,
        "USER": "test",
        "NAME": "postgres",
        **settings,
        "OPTIONS": {"application_name": name, **settings.get("OPTIONS", {})},
    }


class Database:
    """A look at the server from outside."""

    def __init__(self, server: Server) -> None:
        self._connection = psycopg.connect(
            host="127.0.0.1", port=server.port, user="test", dbname="postgres", autocommit=True
        )
        self.close = self._connection.close

    def _count(self, query: str, *args: str) -> int:
        row = self._connection.execute(query, args).fetchone()
        assert row is not None
        return int(row[0])

    def held(self, name: str) -> int:
        """Count the connections of the clients that call themselves `name`."""
        return self._count("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", name)

    def asleep(self, name: str) -> int:
        """Count those of these clients that are in the middle of `pg_sleep`."""
        return self._count(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE application_name = %s AND state = 'active' AND query LIKE 'SELECT pg_sleep%%'",
            name,
        )

    def terminate(self, name: str) -> None:
        """End the connections of these clients, as a restart of the server does."""
        self._connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = %s", [name]
        )

    def written(self, key: str) -> int:
        """Count the notes with this text in the table."""
        return self._count("SELECT count(*) FROM testsite_note WHERE text = %s", key)

    def make_schema(self, name: str, tables: Sequence[str]) -> None:
        """Make a schema with empty tables like those of the public one."""
        self._connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(name)))
        for table in tables:
            self._connection.execute(
                SQL("CREATE TABLE {}.{} (LIKE public.{} INCLUDING ALL)").format(
                    Identifier(name), Identifier(table), Identifier(table)
                )
            )

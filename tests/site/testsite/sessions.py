"""Sessions in a database that can be made to fail."""

from typing import Any

from django.contrib.sessions.backends.db import SessionStore as DatabaseSessionStore
from django.db import OperationalError

broken = False


class SessionStore(DatabaseSessionStore):
    @classmethod
    def get_model_class(cls) -> Any:
        if broken:
            raise OperationalError("the database is broken")
        return super().get_model_class()

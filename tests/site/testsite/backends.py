"""An authentication backend that fails for some users."""

from typing import Any

from django.contrib.auth.backends import ModelBackend


class FailingBackend(ModelBackend):
    """Finds every user, but raises an error for those with a certain first name."""

    def get_user(self, user_id: Any) -> Any:
        user = super().get_user(user_id)
        if user is not None and user.first_name == "faulty":
            raise LookupError("the backend fails")
        return user

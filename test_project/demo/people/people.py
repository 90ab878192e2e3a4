"""The users of the demonstration, and what others see of a user."""

USERNAMES = ("ann", "ben", "cleo")
STAFF = "cleo"  # may see who is connected, and disconnect them


def person(user):
    """Return what others may see."""
    return {"id": user.pk, "name": user.get_short_name() or user.get_username()}

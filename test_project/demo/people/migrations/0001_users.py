"""Three users without passwords: nobody can log in as one of them except by people/views.py."""

from django.contrib.auth.hashers import make_password
from django.db import migrations

from demo.people.people import USERNAMES


def add_users(apps, schema_editor):
    User = apps.get_model("auth", "User")
    for username in USERNAMES:
        User.objects.create(username=username, first_name=username.capitalize(), password=make_password(None))


class Migration(migrations.Migration):
    dependencies = [("auth", "0012_alter_user_first_name_max_length")]
    operations = [migrations.RunPython(add_users, migrations.RunPython.noop)]

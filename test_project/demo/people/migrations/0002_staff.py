"""One of the users becomes a member of staff, who may see who is connected and disconnect them, and nothing else."""

from django.db import migrations

from demo.people.people import STAFF

PERMISSIONS = {"view_connection": "Can view WebSocket", "disconnect_connection": "Can disconnect WebSocket"}


def add_staff(apps, schema_editor):
    ContentType = apps.get_model("contenttypes", "ContentType")
    Permission = apps.get_model("auth", "Permission")
    user = apps.get_model("auth", "User").objects.get(username=STAFF)
    user.is_staff = True
    user.save()
    # Django adds permissions only after all migrations, and keeps those that are there.
    kind, _ = ContentType.objects.get_or_create(app_label="django_websocket", model="connection")
    for codename, name in PERMISSIONS.items():
        permission, _ = Permission.objects.get_or_create(content_type=kind, codename=codename, defaults={"name": name})
        user.user_permissions.add(permission)


class Migration(migrations.Migration):
    dependencies = [("people", "0001_users"), ("contenttypes", "0002_remove_content_type_name")]
    operations = [migrations.RunPython(add_staff, migrations.RunPython.noop)]

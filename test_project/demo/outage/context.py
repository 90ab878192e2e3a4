from django.conf import settings


def outage(request):
    """Tell templates whether there is somebody who starts the server again, and what survives its end."""
    return {"supervised": bool(settings.SUPERVISOR), "shared_broker": settings.SHARED_BROKER}

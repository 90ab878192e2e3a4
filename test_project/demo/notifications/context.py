def unread(request):
    """Give templates the number of the user's unread notifications."""
    if not request.user.is_authenticated:
        return {}
    return {"unread": request.user.notifications.filter(read=False).count}

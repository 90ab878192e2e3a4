from django.contrib.auth.decorators import login_required
from django.shortcuts import render

from .models import Vote


@login_required
def poll(request):
    own = Vote.objects.filter(user=request.user).first()
    return render(request, "poll/poll.html", {"choices": Vote.Choice.choices, "own": own and own.choice})

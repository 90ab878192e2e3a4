"""A strict Content Security Policy: nothing from elsewhere, no inline code, no inline styles.

Django 6 has a middleware of its own for this; this one does the same with every version.
"""

import secrets
from urllib.parse import urlsplit

from django.conf import settings

from django_websocket.addresses import websocket_url

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' 'nonce-{nonce}'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self' {sockets}",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)


def content_security_policy(get_response):
    def middleware(request):
        request.csp_nonce = secrets.token_urlsafe(16)  # {% websocket_client %} gives it to its import map
        response = get_response(request)
        if not (settings.DEBUG and response.status_code in (404, 500)):  # Django's own pages have inline styles
            address = urlsplit(websocket_url("site", request=request))
            policy = POLICY.format(nonce=request.csp_nonce, sockets=f"{address.scheme}://{address.netloc}")
            response.headers["Content-Security-Policy"] = policy
        return response

    return middleware

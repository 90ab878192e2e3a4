"""gunicorn for the WebSockets of a Django site; the ordinary pages keep their own server.

    gunicorn -c websocket.conf.py project.wsgi:websocket

One worker of these settings holds thousands of clients: a WebSocket costs a file descriptor and a few KiB.
"""

worker_class = "django_websocket.worker.GeventWebSocketWorker"

# Only nginx, on the same machine, talks to it. A Unix socket does as well: "unix:/run/example/websocket.sock".
bind = "127.0.0.1:8001"

# One process uses one core. With more than one, or with a second gunicorn, WEBSOCKET_BROKER must be a Redis: the
# default, memory://, does not leave its process, and half of a chat would not hear the other half.
workers = 1

# Requests in progress: handshakes, and views that have not accepted yet. A conversation is not among them.
worker_connections = 1000

# Connections that wait to be accepted: after a restart, all clients come back within seconds. The kernel cuts it down
# to `sysctl net.core.somaxconn`.
backlog = 4096

# Time to stop, in seconds: clients are told of the restart (1012), conversations come to their end, and what remains
# then is killed. systemd's TimeoutStopSec= must be longer.
graceful_timeout = 30

# The worker's hub reports every second that it runs. A view that computes for longer than this without waiting for
# anything stops all clients of its process, and gunicorn kills it.
timeout = 30

# Must stay off: it loads the application, and with it socket, ssl and threading, before gevent has replaced them. The
# worker refuses to start then.
preload_app = False

# Whose X-Forwarded-Proto is believed: nginx on this machine. Elsewhere name its addresses; "*" believes everybody.
forwarded_allow_ips = "127.0.0.1,::1"

# By default gunicorn takes the parser of gunicorn_h1c where that is installed. It is a little faster, and 0.6.9 lets
# through what RFC 9112 forbids: folded lines, and lines that end without a carriage return.
http_parser = "python"

# Nobody uses it here, and by default every gunicorn of one user has it at the same path: the second one starts, and
# `gunicornc` talks to the wrong one.
control_socket_disable = True

# nginx writes an access log. To have one here too, with a line for each conversation when it ends, "-" writes to
# standard output. This format has no query string, in which tickets may stand.
accesslog = None
access_log_format = (
    '%({websocket.client}e)s %({websocket.user}e)s %(t)s "%(m)s %(U)s" %(s)s %({websocket.view}e)s %(L)s s, '
    "received %({websocket.received}e)s, sent %({websocket.sent}e)s, %({websocket.code}e)s %({websocket.reason}e)s"
)

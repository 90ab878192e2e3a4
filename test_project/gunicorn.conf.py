from gunicorn.workers import SUPPORTED_WORKERS

SUPPORTED_WORKERS["GeventWebSocketWorker"] = "django_websocket.worker.GeventWebSocketWorker"

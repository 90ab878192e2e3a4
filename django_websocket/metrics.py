"""The figures of a WebSocket server for Prometheus: what each means, and their text.

    WEBSOCKET_METRICS = {"path": "/metrics", "token": "..."}

Every worker knows the figures of all workers of its server (one gunicorn). `Collector` has them for a registry of
`prometheus_client`, which the extra `metrics` installs.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from django_websocket import conf
from django_websocket.handler.figures import Figures, bounds_of, of_server
from django_websocket.transport.turns import let_others_run_if_spent

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["METRICS", "Collector", "Described"]

PREFIX = "django_websocket_"
TIMEOUT = 10.0  # seconds to read the figures from a server


class Described(NamedTuple):
    """One of the metrics: its name, behind `django_websocket_`, its kind, its labels, and what it says."""

    name: str
    kind: str
    labels: Sequence[str]
    text: str


METRICS = (
    Described("connections", "gauge", ["view"], "WebSockets that are open now"),
    Described("handshakes_total", "counter", ["view", "status"], "Handshakes that were answered, by the HTTP status"),
    Described("handshake_duration_seconds", "histogram", [], "Time from a handshake's request to its answer"),
    Described("connection_duration_seconds", "histogram", [], "How long the WebSockets that have ended were open"),
    Described(
        "closes_total",
        "counter",
        ["code", "by"],
        "WebSockets that have ended, by the close code and by who ended them: client, server or nobody",
    ),
    Described("ping_rtt_seconds", "histogram", [], "Time from a ping of the server to the client's pong"),
    Described("view_errors_total", "counter", [], "Exceptions of WebSocket views that nobody has caught"),
    Described("received_messages_total", "counter", [], "Messages that clients have sent"),
    Described(
        "sent_messages_total", "counter", [], "Messages for clients: the views' own, and those published to them"
    ),
    Described("received_bytes_total", "counter", [], "Bytes of all frames from clients"),
    Described("sent_bytes_total", "counter", [], "Bytes of all frames that the kernel has taken for clients"),
    Described("outbox_bytes", "gauge", [], "Bytes that wait in memory until their clients read"),
    Described(
        "dropped_messages_total",
        "counter",
        ["policy"],
        "Messages that were dropped: somebody was too slow, by the policy of the subscription, or exceeded a rate",
    ),
    Described("published_total", "counter", ["result"], "Messages that this server has published, by the result"),
    Described("publish_duration_seconds", "histogram", [], "Time until the broker had taken a published message"),
    Described(
        "delivered_total", "counter", [], "Published messages that were handed to a subscriber, once for each of them"
    ),
    Described(
        "delivery_lag_seconds",
        "histogram",
        [],
        "Time to hand out what has come from the broker together to all subscribers in a process",
    ),
    Described("channels", "gauge", [], "Channels that the processes are subscribed to"),
    Described("subscriptions", "gauge", [], "Subscribers of these channels"),
    Described("broker_up", "gauge", [], "1 if all processes can use the broker, as far as they have tried, else 0"),
    Described("broker_reconnects_total", "counter", [], "How often a process was subscribed again after an outage"),
    Described(
        "missed_total", "counter", [], "How often a subscriber was told that messages of a channel may be missing"
    ),
    Described(
        "resumes_total",
        "counter",
        ["result", "source"],
        "How often somebody asked for the past of a channel: whole or incomplete, from memory or the broker",
    ),
    Described(
        "gaps_total",
        "counter",
        ["healed"],
        "How often a process had missed messages of a channel with history, and whether it has got them since",
    ),
    Described("presence_members", "gauge", [], "Users who are present in channels through this server"),
    Described("hub_lag_seconds", "histogram", [], "How late the event loop is, measured once a second"),
    Described("hub_stalls_total", "counter", [], "How often something has held up the event loop"),
    Described("processes", "gauge", [], "Workers that run now"),
)
"""All metrics but those of the processes, in the order in which they are written."""


class Collector:
    """Collects the figures of the server for `prometheus_client`; each call of `collect` looks again.

    To have them beside metrics of your own: `registry.register(Collector())`. Needs `prometheus_client`.
    """

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without values: their names are known before the server runs."""
        for described in METRICS:
            yield metric_of(described, Figures({}, {}, {}))

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. While they are written, clients are served in between."""
        figures = of_server()
        figures.gauges["processes"] = {(): len(figures.processes)}
        for described in METRICS:
            yield metric_of(described, figures)
            let_others_run_if_spent()
        yield from of_processes(figures.processes)


def metric_of(described: Described, figures: Figures) -> Metric:
    """Return one of the metrics."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    name = described.name.removesuffix("_total")
    full_name = PREFIX + name
    if described.kind == "histogram":
        total, numbers = figures.histograms.get(name, (0.0, []))
        bounds = [str(bound) for bound in bounds_of(name)] + ["+Inf"]
        below = list(accumulate(numbers)) or [0] * len(bounds)
        histogram = HistogramMetricFamily(full_name, described.text)
        histogram.add_metric([], list(zip(bounds, below, strict=True)), total)
        return histogram
    kind = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
    metric = kind(full_name, described.text, labels=described.labels)
    numbers_by_labels = (figures.totals if described.kind == "counter" else figures.gauges).get(name, {})
    if not described.labels and not numbers_by_labels:
        numbers_by_labels = {(): 0}
    for labels, number in numbers_by_labels.items():
        metric.add_metric(labels, number)
    return metric


def of_processes(processes: Sequence[int]) -> Iterator[Metric]:
    """Yield what the system knows of the workers: memory, descriptors and time, each summed up."""
    from prometheus_client import ProcessCollector
    from prometheus_client.core import Metric

    summed: dict[str, tuple[Metric, float]] = {}
    for process in processes:
        for metric in ProcessCollector(PREFIX.rstrip("_"), partial(int, process), registry=None).collect():
            if metric.name.endswith("start_time_seconds"):
                continue
            (sample,) = metric.samples
            before = summed[metric.name][1] if metric.name in summed else 0.0
            summed[metric.name] = metric, before + sample.value
        let_others_run_if_spent()
    for name, (metric, value) in summed.items():
        found = Metric(name, metric.documentation, metric.type)
        found.add_sample(metric.samples[0].name, {}, value)
        yield found


def written(accept: str = "") -> tuple[bytes, str]:
    """Return the figures as text, and its content type: that of OpenMetrics if the header `Accept` asks for it."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry()
    registry.register(Collector())
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def fetch() -> str:
    """Return the text of the server that runs on this machine, from its `bind` in WEBSOCKET_METRICS.

    For `manage.py websockets --metrics`. Raises ValueError, with a sentence that says what to do, if the settings name
    no server, or it does not answer or refuses.
    """
    exposed = conf.current().exposed
    if exposed is None or exposed.address is None:
        raise ValueError('Add "bind": "127.0.0.1:9101" to WEBSOCKET_METRICS: the figures are read from there')
    host, port = exposed.address
    connection = http.client.HTTPConnection(
        {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, timeout=TIMEOUT
    )
    try:
        connection.request("GET", "/metrics", headers=authorization(exposed))
        response = connection.getresponse()
        body = response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"No server tells its metrics at {host}:{port}; is it running? {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise ValueError(
            f"The server at {host}:{port} answered with {response.status} {response.reason}: {body.strip()}"
        )
    return body


def authorization(exposed: conf.Exposed) -> dict[str, Any]:
    """Return the header that lets a request read the figures."""
    return {"Authorization": f"Bearer {exposed.token}"} if exposed.token else {}

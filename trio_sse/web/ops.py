"""For the operator: ``/healthz`` (alive), ``/readyz`` (able to serve), ``/metrics`` (Prometheus text)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from quart import Response

from .. import server
from ..event import EventID
from . import problem
from .bodies import held

if TYPE_CHECKING:
    from . import TrioSSE

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


def add_routes(app: TrioSSE) -> None:
    """Serve the three."""

    @app.get("/healthz")
    async def alive() -> Response:
        return Response("alive\n", content_type="text/plain")

    @app.get("/readyz")
    async def ready() -> Response:
        if app.hub.failed or app.hub.ending is not None:
            return problem.respond(503, f"the hub takes no streams: {app.hub.ending}")
        if app.hub.journal.unwritable is not None:
            return problem.respond(503, app.hub.journal.unwritable)
        return Response("ready\n", content_type="text/plain")

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(app.metrics.registry), content_type=CONTENT_TYPE_LATEST)


class Metrics(Collector):
    """What Prometheus is told: read from the hub when it asks, so that counting costs nothing more."""

    def __init__(self, app: TrioSSE) -> None:
        self._app = app
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._latency = Histogram(
            "trio_sse_publish_to_last_write_seconds",
            "From an event's place in the journal to its last subscriber's write, of about one event a second.",
            buckets=BUCKETS_S,
            registry=self.registry,
        )

    def watch_latency(self) -> None:
        """Begin to observe latencies of the app's hub."""
        journal = self._app.hub.journal

        def observe(id: EventID) -> None:
            self._latency.observe(max(0, journal.now_ms() - id.ms) / 1000)

        self._app.hub.broadcaster.last_write.observe = observe

    def collect(self) -> Iterator[Metric]:
        """One metric a line of the hub's statistics."""
        if not self._app.has_hub:
            return
        now = self._app.hub.statistics()
        yield GaugeMetricFamily("trio_sse_streams", "Open streams.", now.streams)
        yield CounterMetricFamily("trio_sse_refused", "Streams sent away for want of room.", self._app.limits.refused)
        yield self._over_rate()
        yield GaugeMetricFamily("trio_sse_body_bytes", "Bytes of requests' bodies that are held.", held.bytes)
        told = "Requests' bodies that were refused because too many bytes of them were held."
        yield CounterMetricFamily("trio_sse_bodies_refused", told, held.refused)
        counted = self._app.limits.statistics
        yield GaugeMetricFamily("trio_sse_counted_streams", "Streams that count against the caps.", counted.streams)
        yield GaugeMetricFamily("trio_sse_counted_addresses", "Addresses that have them.", counted.addresses)
        yield GaugeMetricFamily("trio_sse_counted_subjects", "Subjects of tokens that have them.", counted.subjects)
        if (connections := server.connections()) is not None:
            yield from _connections(connections)
        yield CounterMetricFamily("trio_sse_published", "Events published.", now.published)
        yield CounterMetricFamily("trio_sse_delivered", "Events handed to subscribers.", now.delivered)
        yield CounterMetricFamily("trio_sse_written", "Those of them written straight to a socket.", now.written)
        yield CounterMetricFamily("trio_sse_lagging", "Times a subscriber's channel ran full.", now.lagging)
        yield CounterMetricFamily("trio_sse_gaps", "Gaps told to subscribers.", now.gaps)
        yield GaugeMetricFamily("trio_sse_journal_events", "Events kept.", now.journal.events)
        told = "What all that the journal keeps is counted as, in bytes, against its limit."
        yield GaugeMetricFamily("trio_sse_journal_bytes", told, now.journal.bytes)
        told = "Events removed to make room for others, which their topics' own limits would have kept."
        yield CounterMetricFamily("trio_sse_journal_evicted", told, now.journal.evicted)
        yield GaugeMetricFamily("trio_sse_journal_topics", "Topics with events.", now.journal.topics)

    def _over_rate(self) -> Metric:
        told = CounterMetricFamily("trio_sse_over_rate", "Requests that had to wait for a rate.", labels=["of", "rate"])
        for (kind, name), times in self._app.rates.meter.refused.items():
            told.add_metric([kind, name], times)
        return told


def _connections(now: server.IdleRow) -> Iterator[Metric]:
    yield GaugeMetricFamily("trio_sse_connections", "Open connections.", now.open)
    yield GaugeMetricFamily("trio_sse_connections_waiting", "Those of them that wait for a request.", now.waiting)
    yield CounterMetricFamily("trio_sse_evicted", "Connections ended to make room for another.", now.evicted)
    yield CounterMetricFamily("trio_sse_turned_away", "Requests that came when too many were served.", now.turned_away)

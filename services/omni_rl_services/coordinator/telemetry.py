"""The figures for Prometheus: the field's names with the prefix `omni_rl_`, in a registry of our own."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import get_args

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from omni_rl.bridge.seam import ReplicaState
from omni_rl.ledger.incidents import OpenSeverity
from omni_rl.sync.result import Outcome, SyncResult
from omni_rl_services.coordinator.run_metrics import RunMetrics

CONTENT_TYPE = CONTENT_TYPE_LATEST
INCIDENTS = 10_000
"""The most series of open incidents, the worst first: the event loop stands for 15 us for each, at every scrape."""
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Telemetry:
    """Every figure that `/metrics` shows; `runs` has those of as many runs' newest steps."""

    def __init__(self, runs: int) -> None:
        self.registry = CollectorRegistry()
        self.runs = RunMetrics(self.registry, runs)
        self.tokens = self._counter("ingested_tokens", "Sampled tokens taken in.")
        self.parts = self._counter("ingested_parts", "Parts taken in, by whether they were new.", "stored")
        self.seals = self._counter("sealed_steps", "Steps judged, by severity.", "severity")
        self.seal_seconds = self._histogram("seal_seconds", "Seconds from a seal's arrival to its verdict.")
        self.requests = self._counter("http_requests", "Requests, by route and status.", "method", "route", "status")
        self.request_seconds = self._histogram(
            "http_request_seconds", "Seconds from a request to the end of its answer.", "method", "route"
        )
        self.syncs = self._counter("syncs", "Weight syncs, by outcome.", "outcome")
        self.sync_seconds = self._gauge("sync_phase_seconds", "Seconds of the latest sync, by phase.", "phase")
        self.sync_stall = self._gauge("sync_stall_seconds", "Longest time without an engine step, latest sync.")
        self.sync_bytes = self._gauge("sync_bytes", "Bytes of weights in the latest sync.")
        self.sync_elements = self._gauge("sync_elements", "Storage elements of an engine, latest sync.", "proven")
        self.last_sync = self._gauge("last_sync_timestamp_seconds", "When the latest sync was committed.")
        self.gate_closed = self._gauge("gate_closed", "1 while generation is held.")
        self.ray_up = self._gauge("ray_up", "1 while the Ray cluster answers.")
        self._incidents = self._gauge(
            "incident_open",
            "An incident that is not over: 1 warn, 2 mask, 3 pause.",
            *("run", "incident_kind", "cause", "acknowledged"),
        )
        self._members = self._gauge("cluster_members", "Rollout engines and trainers, by state.", "role", "state")
        self._cluster = self._gauge("cluster_info", "1 for the run whose policies the cluster hosts.", "run")
        self.events = self._counter("events", "Events, by kind.", "event")
        self.subscribers = self._gauge("event_subscribers", "Open event streams.")
        self.webhook_told = self._counter("webhook_deliveries", "Incidents' states that a webhook received.", "webhook")
        self.webhook_failures = self._counter("webhook_failures", "Deliveries to a webhook that failed.", "webhook")
        # A series that begins with its first failure has no increase for an alert to see.
        for outcome in (*get_args(Outcome), "failed"):
            self.syncs.labels(outcome)

    def watch_dropped(self, name: str, dropped: Callable[[], int]) -> None:
        """Show how many steps a sink missed."""
        self._gauge(f"sink_{name}_dropped_steps", "Steps that the sink missed.").set_function(dropped)

    def members(self, members: Iterable[ReplicaState]) -> None:
        """Show how many members there are in each state."""
        self._members.clear()
        for (role, state), count in Counter((member.role, member.state) for member in members).items():
            self._members.labels(role, state).set(count)

    def cluster_of(self, run: str | None) -> None:
        """Show whose policies the cluster hosts, so that an alert about an engine can name its run."""
        self._cluster.clear()
        if run is not None:
            self._cluster.labels(run).set(1)

    def open_incidents(self, severities: Iterable[OpenSeverity]) -> None:
        """Show the open incidents; of those with the same labels, the worst."""
        self._incidents.clear()
        for one in severities:
            in_hand = "yes" if one.acknowledged else "no"
            self._incidents.labels(one.run or "", one.kind, one.cause or "", in_hand).set(one.severity)

    def synced(self, result: SyncResult, finished: float, *, weights: bool) -> None:
        """Count a sync, and show it if `weights` says that it was to bring new ones."""
        self.syncs.labels(result.outcome).inc()
        if weights:
            self.show_sync(result, finished)

    def show_sync(self, result: SyncResult, finished: float) -> None:
        """Show the latest sync that was to bring new weights."""
        self.sync_seconds.clear()
        for phase, seconds in result.seconds.items():
            self.sync_seconds.labels(phase).set(seconds)
        self.sync_stall.set(result.stall)
        self.sync_bytes.set(result.bytes)
        self.sync_elements.labels("yes").set(result.elements_proven)
        self.sync_elements.labels("no").set(result.elements - result.elements_proven)
        if result.outcome == "committed":
            self.last_sync.set(finished)

    def expose(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"omni_rl_{name}", meaning, labels, registry=self.registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> prometheus_client.Counter:
        return prometheus_client.Counter(f"omni_rl_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, *labels: str) -> Histogram:
        return Histogram(f"omni_rl_{name}", meaning, labels, registry=self.registry, buckets=SECONDS)

"""Prometheus: the field's names with the prefix `omni_rl_`, in a registry of our own."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import get_args

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from omni_rl.api.runs import LIMITED
from omni_rl.ledger.types import Incident
from omni_rl.sync.result import Outcome, SyncResult
from omni_rl_services.coordinator.bridge import ReplicaState
from omni_rl_services.coordinator.sinks import JudgedStep

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Telemetry:
    """Every figure that `/metrics` shows. `step` makes it a sink.

    Of `runs` runs there are figures; the one that was silent longest goes. A label for every run ever would grow for
    ever, and every scrape with it.
    """

    def __init__(self, runs: int) -> None:
        self._max_runs = runs
        self.registry = CollectorRegistry()
        self._figures = {
            name: self._gauge(name, f"{name} of the latest step (docs: the field's metrics).", "run", "bucket")
            for name in LIMITED
        }
        self._severity = self._gauge("severity", "0 ok, 1 warn, 2 mask, 3 pause.", "run")
        self._silent = self._gauge(
            "silent", "1 for a run whose steps stopped coming; its other figures are old.", "run"
        )
        self._step = self._gauge("step", "The latest sealed step.", "run")
        self._attempt = self._gauge("attempt", "The latest attempt.", "run")
        self.tokens = self._counter("ingested_tokens", "Sampled tokens taken in.")
        self.parts = self._counter("ingested_parts", "Parts taken in, by whether they were new.", "stored")
        self.seals = self._counter("sealed_steps", "Steps judged, by severity.", "severity")
        self.seal_seconds = self._histogram("seal_seconds", "From the seal's arrival to its verdict.")
        self.requests = self._counter("http_requests", "Requests, by route and status.", "method", "route", "status")
        self.request_seconds = self._histogram("http_request_seconds", "To the end of an answer.", "method", "route")
        self.syncs = self._counter("syncs", "Weight syncs, by outcome.", "outcome")
        self.sync_seconds = self._gauge("sync_phase_seconds", "Of the latest sync.", "phase")
        self.sync_stall = self._gauge("sync_stall_seconds", "Longest time without an engine step, latest sync.")
        self.sync_bytes = self._gauge("sync_bytes", "Of the latest sync.")
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
        self.events = self._counter("events", "Events, by kind.", "kind")
        self.subscribers = self._gauge("event_subscribers", "Open event streams.")
        self.webhook_told = self._counter("webhook_deliveries", "Incidents' states that a webhook received.", "webhook")
        self.webhook_failures = self._counter("webhook_failures", "Tries to tell a webhook that failed.", "webhook")
        # A series that begins with its first failure has no increase for an alert to see.
        for outcome in (*get_args(Outcome), "failed"):
            self.syncs.labels(outcome)
        self._seen: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def watch_dropped(self, name: str, dropped: Callable[[], int]) -> None:
        """Show how many steps a sink missed."""
        self._gauge(f"sink_{name}_dropped_steps", "Steps that the sink missed.").set_function(dropped)

    def members(self, members: Iterable[ReplicaState]) -> None:
        """Show how many there are in each state."""
        self._members.clear()
        for (role, state), count in Counter((member.role, member.state) for member in members).items():
            self._members.labels(role, state).set(count)

    def step(self, step: JudgedStep) -> None:
        self._forget_buckets(step.run, tuple(step.figures))
        for bucket, metrics in step.figures.items():
            for name, value in metrics.items():
                self._figures[name].labels(step.run, bucket).set(value)
        self._severity.labels(step.run).set(int(step.severity))
        self._step.labels(step.run).set(step.step)
        self._attempt.labels(step.run).set(step.attempt)
        self.seals.labels(step.severity.label).inc()

    def open_incidents(self, incidents: Iterable[Incident]) -> None:
        """Show the incidents that are not over; of those that are alike, the worst."""
        worst: dict[tuple[str, str, str, str], int] = {}
        for one in incidents:
            labels: tuple[str, str, str, str] = (
                one.run or "",
                one.kind,
                one.cause or "",
                "no" if one.acknowledged is None else "yes",
            )
            worst[labels] = max(worst.get(labels, 0), one.severity)
        self._incidents.clear()
        for key, severity in worst.items():
            self._incidents.labels(*key).set(severity)

    def silent(self, runs: Iterable[str]) -> None:
        """Show which runs are silent."""
        self._silent.clear()
        for run in runs:
            self._silent.labels(run).set(1)

    def synced(self, result: SyncResult, finished: float, *, weights: bool) -> None:
        """`weights`: whether it was to bring new ones."""
        self.syncs.labels(result.outcome).inc()
        if not weights:
            return
        self.sync_seconds.clear()
        for phase, seconds in result.seconds.items():
            self.sync_seconds.labels(phase).set(seconds)
        self.sync_stall.set(result.stall)
        self.sync_bytes.set(result.bytes)
        self.sync_elements.labels("yes").set(result.elements_proven)
        self.sync_elements.labels("no").set(result.elements - result.elements_proven)
        if result.outcome == "committed":
            self.last_sync.set(finished)

    def close(self) -> None:
        return None

    def expose(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _forget_buckets(self, run: str, buckets: tuple[str, ...]) -> None:
        """A bucket that this step has no tokens of, and the run that was silent longest, are no longer shown."""
        for gone in set(self._seen.pop(run, ())) - set(buckets):
            self._remove(run, gone)
        self._seen[run] = buckets
        if len(self._seen) > self._max_runs:
            oldest, kept = self._seen.popitem(last=False)
            for bucket in kept:
                self._remove(oldest, bucket)
            for gauge in (self._severity, self._step, self._attempt):
                gauge.remove(oldest)

    def _remove(self, run: str, bucket: str) -> None:
        for gauge in self._figures.values():
            gauge.remove(run, bucket)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"omni_rl_{name}", meaning, labels, registry=self.registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> prometheus_client.Counter:
        return prometheus_client.Counter(f"omni_rl_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, *labels: str) -> Histogram:
        return Histogram(f"omni_rl_{name}", meaning, labels, registry=self.registry, buckets=SECONDS)

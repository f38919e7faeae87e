"""What `/metrics` shows of each run's latest step: figures by kind of prompt, their limits, the trainer's own."""

import itertools
import math
import statistics
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Gauge

from omni_rl.api.runs import LIMITED
from omni_rl.consistency.limits import Severity
from omni_rl.kinds import OVERALL
from omni_rl_services.coordinator.sinks import SinkStep

Labels = tuple[str, ...]
RECENT = 32
"""The number of newest steps whose distances in time give a run's usual pace."""
LEARNT = 64
"""The most figures of a run's trainer that are shown: their names are the client's, and each is a series."""
LEVELS = (Severity.WARN, Severity.MASK, Severity.PAUSE)


@dataclass
class _Shown:
    """The values of a run's series by their gauge, what the trainer said of its `attempt`, and when its steps were
    sealed."""

    attempt: int | None = None
    learnt: dict[str, float] = field(default_factory=dict)
    sealed: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT + 1))
    values: dict[str, Mapping[Labels, float]] = field(default_factory=dict)


class RunMetrics:
    """The series of the `runs` runs whose steps are newest; with one more, the run whose latest step is oldest is
    dropped. A label for every run ever would grow for ever, and every scrape with it."""

    def __init__(self, registry: CollectorRegistry, runs: int) -> None:
        self._max_runs = runs
        self._shown: OrderedDict[str, _Shown] = OrderedDict()
        self._gauges = {
            name: Gauge(f"omni_rl_{name}", meaning, ("run", *labels), registry=registry)
            for name, meaning, labels in (
                *((name, f"{name} of the latest step (docs: the field's metrics).", ("kind",)) for name in LIMITED),
                ("limit", "The limit above which a figure has that severity.", ("kind", "metric", "severity")),
                ("training", "The trainer's latest figures, by its own names; reward among them.", ("figure",)),
                ("severity", "Where the run stands: 0 ok, 1 warn, 2 mask, 3 pause.", ()),
                ("step", "The number of the latest sealed step.", ()),
                ("attempt", "The number of the latest attempt.", ()),
                ("last_step_timestamp_seconds", "When the latest step was sealed.", ()),
                ("step_interval_seconds", f"Median seconds between the newest {RECENT} steps.", ()),
            )
        }

    def step(self, step: SinkStep, earlier: Iterable[float] = ()) -> None:
        """Show a run's latest step. `earlier` says when steps before it were sealed, where they are not known here."""
        run, attempt = step.of.run, step.of.attempt
        shown = self._shown.setdefault(run, _Shown())
        self._shown.move_to_end(run)
        if shown.attempt != attempt:
            shown.attempt, shown.learnt = attempt, {}
            shown.sealed.clear()
        shown.sealed.extend((*earlier, step.sealed))
        for name in LIMITED:
            self._show(run, name, {(kind,): found[name] for kind, found in step.figures.items() if name in found})
        self._show(run, "limit", _limits(step))
        one = {"step": step.step, "attempt": attempt, "last_step_timestamp_seconds": step.sealed}
        for name, value in one.items():
            self._show(run, name, {(): value})
        times = list(shown.sealed)
        if len(times) > 1:
            pace = statistics.median(after - before for before, after in itertools.pairwise(times))
            self._show(run, "step_interval_seconds", {(): pace})
        self.severity(run, step.severity)
        self.learnt(run, attempt, step.training)
        if len(self._shown) > self._max_runs:
            self.forget(next(iter(self._shown)))

    def learnt(self, run: str, attempt: int, training: Mapping[str, float | None]) -> None:
        """Show the trainer's figures of a run that is shown; those that are not named stay."""
        shown = self._shown.get(run)
        if shown is None or shown.attempt != attempt:
            return
        learnt = shown.learnt | {name: math.nan if value is None else value for name, value in training.items()}
        shown.learnt = dict(itertools.islice(learnt.items(), LEARNT))
        self._show(run, "training", {(name,): value for name, value in shown.learnt.items()})

    def severity(self, run: str, severity: Severity) -> None:
        """Show a run's severity, if the run is shown: it may change between two steps."""
        if run in self._shown:
            self._show(run, "severity", {(): int(severity)})

    def forget(self, run: str) -> None:
        """Show a run no longer."""
        shown = self._shown.get(run)
        if shown is not None:
            for name in list(shown.values):
                self._show(run, name, {})
            del self._shown[run]

    def _show(self, run: str, name: str, values: Mapping[Labels, float]) -> None:
        """Set a run's series in one gauge, and remove those that have no value now: a kind that this step has no tokens
        of, say, must not look as if its figures were new."""
        gauge, before = self._gauges[name], self._shown[run].values.get(name, {})
        for gone in before.keys() - values.keys():
            gauge.remove(run, *gone)
        for labels, value in values.items():
            if before.get(labels) != value:  # limits, most of all, hardly ever change
                gauge.labels(run, *labels).set(value)
        self._shown[run].values[name] = values


def _limits(step: SinkStep) -> dict[Labels, float]:
    """Return the limits of a step's figures by labels. A kind without limits of its own is judged by those of all."""
    overall = step.limits.get(OVERALL, {})
    return {
        (kind, metric, level.label): limit.above(level)
        for kind in step.figures
        for metric, limit in step.limits.get(kind, overall).items()
        for level in LEVELS
    }

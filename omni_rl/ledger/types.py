"""What goes into the ledger and what comes out; steps are numbered within an attempt, attempts within a run."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.comparison import StepComparison
from omni_rl.consistency.figures import Metrics
from omni_rl.ledger.records import StepRecords
from omni_rl.sync.journal import SyncRecord

Stored = Literal["new", "same"]


class StepKey(NamedTuple):
    run: str
    attempt: int
    step: int

    def __str__(self) -> str:
        return f"step {self.step} of {self.run}, attempt {self.attempt}"


@dataclass(frozen=True)
class Run:
    """`config` is what the run was registered with, `state` what its policy carries from one step to the next.
    `sealed`: when its `latest` step was."""

    run: str
    created: float
    config: Mapping[str, Any]
    state: Any = None
    attempts: tuple[int, ...] = ()
    latest: StepKey | None = None
    sealed: float | None = None


@dataclass(frozen=True)
class Part:
    """One rank's records of a step, as they were acknowledged."""

    rank: int
    digest: str
    samples: int
    tokens: int
    received: float


@dataclass(frozen=True)
class NewEvent:
    kind: str
    data: Mapping[str, Any]
    run: str | None = None


@dataclass(frozen=True)
class Event:
    """`id`s rise in the order in which events became durable."""

    id: int
    at: float
    kind: str
    run: str | None
    data: Mapping[str, Any]


@dataclass(frozen=True)
class NewAlarm:
    """`sentence` says what is wrong, `action` what was done about it."""

    severity: int
    sentence: str
    cause: str | None = None
    action: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Alarm:
    id: int
    run: str
    attempt: int | None
    step: int | None
    opened: float
    closed: float | None
    severity: int
    cause: str | None
    sentence: str
    action: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True)
class KeptCheck:
    """Both policies compared once, `found` as it was told. `key`: the step that it was about; None: the probe."""

    id: int
    at: float
    key: StepKey | None
    found: Mapping[str, Any]


@dataclass(frozen=True)
class NewStep:
    """A step to be sealed. `parts`: digest of each rank's part that it was judged from. `kept`: the samples to keep,
    worst first: the rank that posted it, its row, and its figures. `state`: the run's policy afterwards; None leaves
    it. `flips` by MoE layer. `other_alarms`: numbers of the run's alarms that `alarm` does not take the place of."""

    key: StepKey
    parts: Mapping[int, str]
    severity: int
    comparison: StepComparison
    samples: int
    tokens: int
    verdict: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, float | None] = field(default_factory=dict)
    weight_version: str = ""
    kept: tuple[tuple[int, StepRecords, Metrics], ...] = ()
    flips: tuple[int, ...] | None = None
    state: Any = None
    events: tuple[NewEvent, ...] = ()
    alarm: NewAlarm | None = None
    other_alarms: Collection[int] = ()


@dataclass(frozen=True)
class StepRow:
    """A sealed step in one line; `figures` are those of all its tokens."""

    key: StepKey
    sealed: float
    severity: int
    samples: int
    tokens: int
    weight_version: str
    training: Mapping[str, float | None]
    figures: Metrics


@dataclass(frozen=True)
class Bin:
    """Figures of the answer positions [first, last)."""

    first: int
    last: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class KeptSample:
    """A sample without its tokens, known by the rank that posted it and its name; `place` 0 is the worst of its
    step."""

    rank: int
    sample: str
    kind: str
    place: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Step:
    """A sealed step whole: figures by kind (`overall` among them) and by position, and what is kept of its samples."""

    row: StepRow
    verdict: Mapping[str, Any]
    by_kind: Mapping[str, Metrics]
    by_position: Mapping[str, tuple[Bin, ...]]
    samples: tuple[KeptSample, ...]
    parts: tuple[Part, ...]
    flips: tuple[int, ...] | None


@dataclass(frozen=True)
class Sample:
    """A kept sample with its tokens: `record` has one row."""

    key: StepKey
    kept: KeptSample
    record: StepRecords


@dataclass(frozen=True)
class Timeline:
    """Figures over steps, B buckets of `width` steps each (1: every step by itself), in order, empty ones left out.

    `first`, `last` int64 [B]: the steps that a bucket covers, inclusive; `steps` how many of them there are. `low` and
    `high` float64 [B] by figure: the least and the greatest value, NaN where there is none. `severity` the worst;
    `broken`: steps with logprobs that are no numbers.
    """

    kind: str
    width: int
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    steps: NDArray[np.int64]
    severity: NDArray[np.int64]
    broken: NDArray[np.int64]
    low: Mapping[str, NDArray[np.float64]]
    high: Mapping[str, NDArray[np.float64]]

    def at(self) -> NDArray[np.int64]:
        """Where `line` has its points: each step, or a bucket's first and last."""
        return self.first if self.width == 1 else np.stack([self.first, self.last], axis=1).reshape(-1)

    def line(self, figure: str) -> NDArray[np.float64]:
        """One line through every extreme: each step's value, or a bucket's least and greatest."""
        low, high = self.low[figure], self.high[figure]
        return high if self.width == 1 else np.stack([low, high], axis=1).reshape(-1)


@dataclass(frozen=True)
class SyncTransition:
    """`what`: a phase was entered, or a replica did its part of it, or failed. `at` in Unix seconds."""

    at: float
    phase: str
    what: str
    replica: str | None
    detail: str


@dataclass(frozen=True)
class Sync:
    """A weight sync of a run, numbered in the order in which syncs began."""

    number: int
    run: str
    record: SyncRecord
    transitions: tuple[SyncTransition, ...]
